//! What the fields of OTLP trace messages are, and the check of a whole message against it.
//!
//! The tables follow opentelemetry-proto's structs, which are the oracle in tests: what a check
//! accepts, prost decodes. Names are those of OTLP's JSON form. Unknown fields are valid with any
//! wire type but groups, so newer versions of OTLP pass. The walk is recursive, bounded by
//! [`NESTING_MAX`], exact about where something is wrong, and three times slower than the walk for
//! usual spans in [`crate::scan`], which leaves to it whatever is unusual.

use super::{Field, Problem, Reader, Value, WireError};
use std::fmt;
use std::ops::Range;

/// Messages inside each other that are accepted, the request not counted. Spans use 5 before
/// attribute values nest. Prost, and most languages' decoders, end at 100; in JSON an array takes
/// 3 levels where it takes 2 messages, and serde_json, like others, ends at 128: so whatever is
/// accepted can be exported in either form, and wrapped in some messages more.
pub const NESTING_MAX: u32 = 64;

/// A request, frame or span is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} in {place} at byte {at}")]
pub struct Malformed {
    /// What is wrong.
    pub problem: Problem,
    /// The innermost message or field whose kind is known.
    pub place: Place,
    /// Offset from the start of the request.
    pub at: usize,
}

/// A kind of message, or one of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Such as `span`.
    pub message: &'static str,
    /// Such as `traceId`.
    pub field: Option<&'static str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Some(field) => write!(f, "{field} of {}", self.message),
            None => f.write_str(self.message),
        }
    }
}

/// A kind of message.
#[derive(Debug)]
pub struct Message {
    /// For error messages.
    pub name: &'static str,
    /// In the order of their numbers.
    pub rules: &'static [Rule],
}

/// A known field.
#[derive(Debug)]
pub struct Rule {
    /// Below 17 in all of OTLP.
    pub number: u32,
    /// In JSON.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// How often it may come.
    pub count: Count,
}

/// What a field holds, and how JSON writes it.
#[derive(Debug)]
pub enum Kind {
    /// Varint; true or false.
    Bool,
    /// Varint; 32 bits, a number.
    Int32,
    /// Varint; 32 bits, a number.
    Uint32,
    /// Varint; a decimal string.
    Int64,
    /// A number.
    Fixed32,
    /// A decimal string.
    Fixed64,
    /// Fixed64; a number or the name of what is none.
    Double,
    /// UTF-8.
    Text,
    /// Bytes; hexadecimal digits.
    Id,
    /// Base64.
    Bytes,
    /// An object.
    Message(&'static Message),
}

/// How often a field may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Once; if again, the last one counts, and messages are merged.
    One,
    /// Any number of times; an array.
    Many,
    /// As `One`, and it replaces its siblings.
    OneOf,
}

impl WireError {
    /// Says in which message it was met.
    pub(crate) fn inside(self, message: &'static Message) -> Malformed {
        let place = Place { message: message.name, field: None };
        Malformed { problem: self.problem, place, at: self.at }
    }
}

impl Message {
    /// The rule for a field; none if it is unknown.
    pub fn rule(&'static self, number: u32) -> Option<&'static Rule> {
        self.rules.iter().find(|rule| rule.number == number)
    }

    /// Checks all fields of the message at `range` of `request`, which lies inside `depth`
    /// messages, the request not counted.
    pub fn check(
        &'static self,
        request: &[u8],
        range: Range<usize>,
        depth: u32,
    ) -> Result<(), Malformed> {
        if depth >= NESTING_MAX {
            let nesting = WireError { problem: Problem::Nesting, at: range.start };
            return Err(nesting.inside(self));
        }
        for field in Reader::within(request, range) {
            let field = field.map_err(|error| error.inside(self))?;
            self.check_field(request, &field, depth)?;
        }
        Ok(())
    }

    /// Checks one field of such a message, with what is inside it.
    pub fn check_field(
        &'static self,
        request: &[u8],
        field: &Field<'_>,
        depth: u32,
    ) -> Result<(), Malformed> {
        let Some(rule) = self.rule(field.number) else {
            return Ok(());
        };
        let malformed = |problem, at| Malformed {
            problem,
            place: Place { message: self.name, field: Some(rule.name) },
            at,
        };
        match (&rule.kind, field.value) {
            (Kind::Bool | Kind::Int32 | Kind::Uint32 | Kind::Int64, Value::Varint(_))
            | (Kind::Fixed64 | Kind::Double, Value::Fixed64(_))
            | (Kind::Fixed32, Value::Fixed32(_))
            | (Kind::Id | Kind::Bytes, Value::Bytes(_)) => Ok(()),
            (Kind::Text, Value::Bytes(text)) => std::str::from_utf8(text)
                .map(drop)
                .map_err(|e| malformed(Problem::Utf8, field.end - text.len() + e.valid_up_to())),
            (Kind::Message(inner), Value::Bytes(payload)) => {
                inner.check(request, field.end - payload.len()..field.end, depth + 1)
            }
            _ => Err(malformed(Problem::WireType, field.start)),
        }
    }
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Rule {
    Rule { number, name, kind, count: Count::One }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Rule {
    Rule { number, name, kind, count: Count::Many }
}

const fn one_of(number: u32, name: &'static str, kind: Kind) -> Rule {
    Rule { number, name, kind, count: Count::OneOf }
}

/// `ExportTraceServiceRequest`.
pub static REQUEST: Message =
    Message { name: "request", rules: &[many(1, "resourceSpans", Kind::Message(&RESOURCE_SPANS))] };

/// `ResourceSpans`.
pub static RESOURCE_SPANS: Message = Message {
    name: "resource spans",
    rules: &[
        one(1, "resource", Kind::Message(&RESOURCE)),
        many(2, "scopeSpans", Kind::Message(&SCOPE_SPANS)),
        one(3, "schemaUrl", Kind::Text),
    ],
};

/// `ScopeSpans`.
pub static SCOPE_SPANS: Message = Message {
    name: "scope spans",
    rules: &[
        one(1, "scope", Kind::Message(&SCOPE)),
        many(2, "spans", Kind::Message(&SPAN)),
        one(3, "schemaUrl", Kind::Text),
    ],
};

static RESOURCE: Message = Message {
    name: "resource",
    rules: &[
        many(1, "attributes", Kind::Message(&KEY_VALUE)),
        one(2, "droppedAttributesCount", Kind::Uint32),
        many(3, "entityRefs", Kind::Message(&ENTITY_REF)),
    ],
};

static ENTITY_REF: Message = Message {
    name: "entity reference",
    rules: &[
        one(1, "schemaUrl", Kind::Text),
        one(2, "type", Kind::Text),
        many(3, "idKeys", Kind::Text),
        many(4, "descriptionKeys", Kind::Text),
    ],
};

static SCOPE: Message = Message {
    name: "scope",
    rules: &[
        one(1, "name", Kind::Text),
        one(2, "version", Kind::Text),
        many(3, "attributes", Kind::Message(&KEY_VALUE)),
        one(4, "droppedAttributesCount", Kind::Uint32),
    ],
};

/// `Span`.
pub static SPAN: Message = Message {
    name: "span",
    rules: &[
        one(1, "traceId", Kind::Id),
        one(2, "spanId", Kind::Id),
        one(3, "traceState", Kind::Text),
        one(4, "parentSpanId", Kind::Id),
        one(5, "name", Kind::Text),
        one(6, "kind", Kind::Int32),
        one(7, "startTimeUnixNano", Kind::Fixed64),
        one(8, "endTimeUnixNano", Kind::Fixed64),
        many(9, "attributes", Kind::Message(&KEY_VALUE)),
        one(10, "droppedAttributesCount", Kind::Uint32),
        many(11, "events", Kind::Message(&EVENT)),
        one(12, "droppedEventsCount", Kind::Uint32),
        many(13, "links", Kind::Message(&LINK)),
        one(14, "droppedLinksCount", Kind::Uint32),
        one(15, "status", Kind::Message(&STATUS)),
        one(16, "flags", Kind::Fixed32),
    ],
};

static EVENT: Message = Message {
    name: "event",
    rules: &[
        one(1, "timeUnixNano", Kind::Fixed64),
        one(2, "name", Kind::Text),
        many(3, "attributes", Kind::Message(&KEY_VALUE)),
        one(4, "droppedAttributesCount", Kind::Uint32),
    ],
};

static LINK: Message = Message {
    name: "link",
    rules: &[
        one(1, "traceId", Kind::Id),
        one(2, "spanId", Kind::Id),
        one(3, "traceState", Kind::Text),
        many(4, "attributes", Kind::Message(&KEY_VALUE)),
        one(5, "droppedAttributesCount", Kind::Uint32),
        one(6, "flags", Kind::Fixed32),
    ],
};

static STATUS: Message = Message {
    name: "status",
    rules: &[one(2, "message", Kind::Text), one(3, "code", Kind::Int32)],
};

static KEY_VALUE: Message = Message {
    name: "attribute",
    rules: &[one(1, "key", Kind::Text), one(2, "value", Kind::Message(&ANY_VALUE))],
};

/// `AnyValue`.
pub static ANY_VALUE: Message = Message {
    name: "attribute value",
    rules: &[
        one_of(1, "stringValue", Kind::Text),
        one_of(2, "boolValue", Kind::Bool),
        one_of(3, "intValue", Kind::Int64),
        one_of(4, "doubleValue", Kind::Double),
        one_of(5, "arrayValue", Kind::Message(&ARRAY)),
        one_of(6, "kvlistValue", Kind::Message(&KEY_VALUE_LIST)),
        one_of(7, "bytesValue", Kind::Bytes),
    ],
};

static ARRAY: Message =
    Message { name: "array value", rules: &[many(1, "values", Kind::Message(&ANY_VALUE))] };

static KEY_VALUE_LIST: Message =
    Message { name: "key-value list", rules: &[many(1, "values", Kind::Message(&KEY_VALUE))] };
