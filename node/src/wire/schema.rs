//! What the fields of OTLP trace messages are, and the check of a whole message against it.
//!
//! The tables follow opentelemetry-proto's structs, which are the oracle in the tests of
//! [`crate::scan`]: what a check accepts, prost decodes. Unknown fields are valid with any wire type but
//! groups, so newer versions of OTLP pass. The walk is recursive, bounded by [`NESTING_MAX`], exact
//! about where something is wrong, and three times slower than the walk for usual spans in
//! [`crate::scan`], which leaves to it whatever is unusual.

use super::{Field, Problem, Reader, Value, WireError};
use std::ops::Range;

/// Messages inside each other that are accepted, the request not counted. Spans use 5 before
/// attribute values nest. Prost, and most languages' decoders, end at 100; in JSON a level of an array
/// takes 3 levels for 2 messages, and serde_json, like others, ends at 128: so whatever
/// is accepted can be exported, wrapped in a few messages more, in either form.
pub const NESTING_MAX: u32 = 64;

/// A request, frame or span is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} in {place} at byte {at}")]
pub struct Malformed {
    /// What is wrong.
    pub problem: Problem,
    /// The innermost message or field whose kind is known, such as `span name`.
    pub place: &'static str,
    /// Offset from the start of the request.
    pub at: usize,
}

impl WireError {
    /// Says in which message it was met.
    pub(crate) fn inside(self, message: &'static Message) -> Malformed {
        Malformed {
            problem: self.problem,
            place: message.name,
            at: self.at,
        }
    }
}

/// The known fields of a kind of message.
#[derive(Debug)]
pub struct Message {
    /// For error messages.
    pub name: &'static str,
    fields: &'static [(u32, &'static str, Kind)],
}

#[derive(Debug)]
enum Kind {
    Varint,
    Fixed64,
    Fixed32,
    Text,
    Bytes,
    Message(&'static Message),
}

impl Message {
    const fn new(name: &'static str, fields: &'static [(u32, &'static str, Kind)]) -> Self {
        Self { name, fields }
    }

    /// The message in field `number`, children of resources and scopes included.
    #[cfg(test)]
    pub(crate) fn inner(&'static self, number: u32) -> Option<&'static Self> {
        match (self.name, number) {
            ("request", 1) => return Some(&RESOURCE_SPANS),
            ("resource spans", 2) => return Some(&SCOPE_SPANS),
            ("scope spans", 2) => return Some(&SPAN),
            _ => {}
        }
        self.fields.iter().find_map(|(known, _, kind)| match kind {
            Kind::Message(inner) if *known == number => Some(*inner),
            _ => None,
        })
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
            let nesting = WireError {
                problem: Problem::Nesting,
                at: range.start,
            };
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
        let rule = self
            .fields
            .iter()
            .find(|(number, ..)| *number == field.number);
        let Some((_, place, kind)) = rule else {
            return Ok(());
        };
        match (kind, field.value) {
            (Kind::Varint, Value::Varint(_))
            | (Kind::Fixed64, Value::Fixed64(_))
            | (Kind::Fixed32, Value::Fixed32(_))
            | (Kind::Bytes, Value::Bytes(_)) => Ok(()),
            (Kind::Text, Value::Bytes(text)) => std::str::from_utf8(text).map(drop).map_err(|e| {
                let at = field.end - text.len() + e.valid_up_to();
                Malformed {
                    problem: Problem::Utf8,
                    place,
                    at,
                }
            }),
            (Kind::Message(inner), Value::Bytes(payload)) => {
                inner.check(request, field.end - payload.len()..field.end, depth + 1)
            }
            _ => Err(Malformed {
                problem: Problem::WireType,
                place,
                at: field.start,
            }),
        }
    }
}

/// `ExportTraceServiceRequest`, but for `resource_spans` (field 1).
pub static REQUEST: Message = Message::new("request", &[]);

/// `ResourceSpans`, but for `scope_spans` (field 2).
pub static RESOURCE_SPANS: Message = Message::new(
    "resource spans",
    &[
        (1, "resource", Kind::Message(&RESOURCE)),
        (3, "schema URL of resource spans", Kind::Text),
    ],
);

/// `ScopeSpans`, but for `spans` (field 2).
pub static SCOPE_SPANS: Message = Message::new(
    "scope spans",
    &[
        (1, "scope", Kind::Message(&SCOPE)),
        (3, "schema URL of scope spans", Kind::Text),
    ],
);

static RESOURCE: Message = Message::new(
    "resource",
    &[
        (1, "resource attribute", Kind::Message(&KEY_VALUE)),
        (2, "dropped attributes count of resource", Kind::Varint),
        (3, "entity reference", Kind::Message(&ENTITY_REFERENCE)),
    ],
);

static ENTITY_REFERENCE: Message = Message::new(
    "entity reference",
    &[
        (1, "schema URL of entity reference", Kind::Text),
        (2, "type of entity reference", Kind::Text),
        (3, "id key of entity reference", Kind::Text),
        (4, "description key of entity reference", Kind::Text),
    ],
);

static SCOPE: Message = Message::new(
    "scope",
    &[
        (1, "scope name", Kind::Text),
        (2, "scope version", Kind::Text),
        (3, "scope attribute", Kind::Message(&KEY_VALUE)),
        (4, "dropped attributes count of scope", Kind::Varint),
    ],
);

/// `Span`.
pub static SPAN: Message = Message::new(
    "span",
    &[
        (1, "trace id", Kind::Bytes),
        (2, "span id", Kind::Bytes),
        (3, "trace state of span", Kind::Text),
        (4, "parent span id", Kind::Bytes),
        (5, "span name", Kind::Text),
        (6, "span kind", Kind::Varint),
        (7, "start time of span", Kind::Fixed64),
        (8, "end time of span", Kind::Fixed64),
        (9, "span attribute", Kind::Message(&KEY_VALUE)),
        (10, "dropped attributes count of span", Kind::Varint),
        (11, "event", Kind::Message(&EVENT)),
        (12, "dropped events count", Kind::Varint),
        (13, "link", Kind::Message(&LINK)),
        (14, "dropped links count", Kind::Varint),
        (15, "status", Kind::Message(&STATUS)),
        (16, "span flags", Kind::Fixed32),
    ],
);

/// `Span.Event`.
pub static EVENT: Message = Message::new(
    "event",
    &[
        (1, "event time", Kind::Fixed64),
        (2, "event name", Kind::Text),
        (3, "event attribute", Kind::Message(&KEY_VALUE)),
        (4, "dropped attributes count of event", Kind::Varint),
    ],
);

/// `Span.Link`.
pub static LINK: Message = Message::new(
    "link",
    &[
        (1, "trace id of link", Kind::Bytes),
        (2, "span id of link", Kind::Bytes),
        (3, "trace state of link", Kind::Text),
        (4, "link attribute", Kind::Message(&KEY_VALUE)),
        (5, "dropped attributes count of link", Kind::Varint),
        (6, "link flags", Kind::Fixed32),
    ],
);

static STATUS: Message = Message::new(
    "status",
    &[
        (2, "status message", Kind::Text),
        (3, "status code", Kind::Varint),
    ],
);

static KEY_VALUE: Message = Message::new(
    "attribute",
    &[
        (1, "attribute key", Kind::Text),
        (2, "attribute value", Kind::Message(&ANY_VALUE)),
    ],
);

/// `AnyValue`.
pub static ANY_VALUE: Message = Message::new(
    "attribute value",
    &[
        (1, "string value", Kind::Text),
        (2, "bool value", Kind::Varint),
        (3, "int value", Kind::Varint),
        (4, "double value", Kind::Fixed64),
        (5, "array value", Kind::Message(&ARRAY)),
        (6, "key-value list", Kind::Message(&KEY_VALUE_LIST)),
        (7, "bytes value", Kind::Bytes),
    ],
);

static ARRAY: Message = Message::new(
    "array value",
    &[(1, "array element", Kind::Message(&ANY_VALUE))],
);

static KEY_VALUE_LIST: Message = Message::new(
    "key-value list",
    &[(1, "key-value pair", Kind::Message(&KEY_VALUE))],
);
