//! Reading single fields of a span, and adding an attribute, without decoding it.
//!
//! Policies and processors ask for a name, a time, one attribute; a [`SpanView`] finds them in the
//! bytes in one walk over the span's own fields, and attributes only when asked. The invariant: for
//! every valid span it answers what prost would decode, also where fields repeat. It borrows the
//! span, allocates nothing and is as small as its fields.
//!
//! Spans were validated where they entered the mesh. Should a peer not have done so, a malformed
//! span is an error of [`SpanView::parse`], and what is malformed deeper inside is as if it were
//! missing.

use crate::wire::{Problem, Reader, Value, WireError, framed_length, put_varint, usual_pair};

/// Tag of `spans` in `ScopeSpans`: field 2.
const TAG_SPAN: u8 = 0x12;
/// Tag of `attributes` in `Span`: field 9.
const TAG_ATTRIBUTE: u8 = 0x4a;

/// What a policy or processor may ask of a span.
#[derive(Clone, Copy, Debug)]
pub struct SpanView<'a> {
    span: &'a [u8],
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: &'a [u8],
    name: &'a [u8],
    kind: i32,
    start_nanos: u64,
    end_nanos: u64,
    status_code: i32,
    flags: u32,
    /// Offset of the first attribute.
    attributes: usize,
}

/// The value of an attribute; what is in arrays and lists is not looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttributeValue<'a> {
    /// No value, or one of a kind that is not known.
    Empty,
    /// A string.
    Text(&'a str),
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// Bytes.
    Bytes(&'a [u8]),
    /// An array of values.
    Array,
    /// A list of keys and values.
    Map,
}

impl<'a> SpanView<'a> {
    /// Reads the fields of a span, given without the tag and length that frame it.
    #[inline]
    pub fn parse(span: &'a [u8]) -> Result<Self, WireError> {
        let mut view = Self {
            span,
            trace_id: &[],
            span_id: &[],
            parent_span_id: &[],
            trace_state: &[],
            name: &[],
            kind: 0,
            start_nanos: 0,
            end_nanos: 0,
            status_code: 0,
            flags: 0,
            attributes: span.len(),
        };
        for field in Reader::new(span) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Bytes(id)) => view.trace_id = id,
                (2, Value::Bytes(id)) => view.span_id = id,
                (3, Value::Bytes(state)) => view.trace_state = state,
                (4, Value::Bytes(id)) => view.parent_span_id = id,
                (5, Value::Bytes(name)) => view.name = name,
                (6, Value::Varint(kind)) => view.kind = kind as i32,
                (7, Value::Fixed64(nanos)) => view.start_nanos = nanos,
                (8, Value::Fixed64(nanos)) => view.end_nanos = nanos,
                (9, Value::Bytes(_)) => view.attributes = view.attributes.min(field.start),
                (15, Value::Bytes(status)) => view.read_status(status)?,
                (16, Value::Fixed32(flags)) => view.flags = flags,
                (1..=9 | 15 | 16, _) => {
                    return Err(WireError { problem: Problem::WireType, at: field.start });
                }
                _ => {}
            }
        }
        Ok(view)
    }

    /// A second status is merged into the first.
    fn read_status(&mut self, status: &[u8]) -> Result<(), WireError> {
        for field in Reader::new(status) {
            let field = field?;
            if let (3, Value::Varint(code)) = (field.number, field.value) {
                self.status_code = code as i32;
            }
        }
        Ok(())
    }

    /// 16 bytes in every span that was accepted.
    pub fn trace_id(&self) -> &'a [u8] {
        self.trace_id
    }

    /// 8 bytes in every span that was accepted.
    pub fn span_id(&self) -> &'a [u8] {
        self.span_id
    }

    /// As it came: empty or zero for a root, and of any length.
    pub fn parent_span_id(&self) -> &'a [u8] {
        self.parent_span_id
    }

    /// The span has no parent.
    pub fn is_root(&self) -> bool {
        self.parent_span_id.iter().all(|byte| *byte == 0)
    }

    /// The name; empty if it is no text.
    pub fn name(&self) -> &'a str {
        text(self.name)
    }

    /// The W3C trace state; empty if it is no text.
    pub fn trace_state(&self) -> &'a str {
        text(self.trace_state)
    }

    /// The OTLP enum, which may have values that are not known yet.
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// Nanoseconds since 1970.
    pub fn start_nanos(&self) -> u64 {
        self.start_nanos
    }

    /// Nanoseconds since 1970; may be before the start.
    pub fn end_nanos(&self) -> u64 {
        self.end_nanos
    }

    /// The OTLP enum: 0 unset, 1 ok, 2 error.
    pub fn status_code(&self) -> i32 {
        self.status_code
    }

    /// The W3C trace flags in the low byte, OTLP's own above.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// The value of the first attribute with this key.
    #[inline]
    pub fn attribute(&self, key: &str) -> Option<AttributeValue<'a>> {
        attribute(&self.span[self.attributes..], 9, key)
    }
}

/// The value of the first `KeyValue` with this key among the fields `number` of a message, such as
/// the attributes of a resource (field 1).
#[inline]
pub fn attribute<'a>(message: &'a [u8], number: u32, key: &str) -> Option<AttributeValue<'a>> {
    for field in Reader::new(message) {
        let field = field.ok()?;
        if field.number == number
            && let Value::Bytes(pair) = field.value
            && let Some(value) = value_if_key(pair, key)
        {
            return Some(value);
        }
    }
    None
}

/// The value of a `KeyValue` if it has this key. In an unusual one keys are compared first, the
/// last of them, because it may come after the value.
#[inline]
fn value_if_key<'a>(pair: &'a [u8], key: &str) -> Option<AttributeValue<'a>> {
    let mut value = AttributeValue::Empty;
    if let Some((found, any)) = usual_pair(pair) {
        return (found == key.as_bytes()).then(|| read_value(any, &mut value).map(|()| value))?;
    }
    let mut found: &[u8] = &[];
    for field in Reader::new(pair) {
        if let (1, Value::Bytes(bytes)) = field.map(|field| (field.number, field.value)).ok()? {
            found = bytes;
        }
    }
    if found != key.as_bytes() {
        return None;
    }
    for field in Reader::new(pair) {
        if let (2, Value::Bytes(any)) = field.map(|field| (field.number, field.value)).ok()? {
            read_value(any, &mut value)?;
        }
    }
    Some(value)
}

/// Merges an `AnyValue` into `value`: the last kind that is set counts.
#[inline]
fn read_value<'a>(any: &'a [u8], value: &mut AttributeValue<'a>) -> Option<()> {
    for field in Reader::new(any) {
        let field = field.ok()?;
        *value = match (field.number, field.value) {
            (1, Value::Bytes(bytes)) => AttributeValue::Text(std::str::from_utf8(bytes).ok()?),
            (2, Value::Varint(number)) => AttributeValue::Bool(number != 0),
            (3, Value::Varint(number)) => AttributeValue::Int(number as i64),
            (4, Value::Fixed64(bits)) => AttributeValue::Double(f64::from_bits(bits)),
            (5, Value::Bytes(_)) => AttributeValue::Array,
            (6, Value::Bytes(_)) => AttributeValue::Map,
            (7, Value::Bytes(bytes)) => AttributeValue::Bytes(bytes),
            _ => continue,
        };
    }
    Some(())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The spans of a chunk, or of any sequence of framed `spans` fields, each without its frame.
#[inline]
pub fn unframed(spans: &[u8]) -> impl Iterator<Item = &[u8]> {
    Reader::new(spans).map_while(Result::ok).filter_map(|field| match field.value {
        Value::Bytes(span) => Some(span),
        Value::Varint(_) | Value::Fixed64(_) | Value::Fixed32(_) => None,
    })
}

/// A `spans` field with the given span (without its frame) and one attribute more: a boolean or a
/// text. An attribute of the same key is left where it is.
pub fn framed_with_attribute(span: &[u8], key: &str, value: Marking<'_>) -> Vec<u8> {
    let value_bytes = match value {
        Marking::Bool(_) => 2,
        Marking::Text(text) => framed_length(text.len()),
    };
    let pair_bytes = framed_length(key.len()) + framed_length(value_bytes);
    let span_bytes = span.len() + framed_length(pair_bytes);
    let mut out = Vec::with_capacity(framed_length(span_bytes));
    begin(&mut out, TAG_SPAN, span_bytes);
    out.extend_from_slice(span);
    begin(&mut out, TAG_ATTRIBUTE, pair_bytes);
    begin(&mut out, 0x0a, key.len());
    out.extend_from_slice(key.as_bytes());
    begin(&mut out, 0x12, value_bytes);
    match value {
        Marking::Bool(value) => out.extend_from_slice(&[0x10, u8::from(value)]),
        Marking::Text(text) => {
            begin(&mut out, 0x0a, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// The value of an attribute that the mesh adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marking<'a> {
    /// Such as `tracemesh.late`.
    Bool(bool),
    /// Such as a reason.
    Text(&'a str),
}

fn begin(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    put_varint(out, length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::arbitrary::{CASES, damage, unusual_span};
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
    use opentelemetry_proto::tonic::trace::v1::Span;
    use proptest::prelude::*;
    use prost::Message as _;

    fn expected(value: &Option<AnyValue>) -> AttributeValue<'_> {
        use any_value::Value;
        match value.as_ref().and_then(|any| any.value.as_ref()) {
            None => AttributeValue::Empty,
            Some(Value::StringValue(text)) => AttributeValue::Text(text),
            Some(Value::BoolValue(value)) => AttributeValue::Bool(*value),
            Some(Value::IntValue(value)) => AttributeValue::Int(*value),
            Some(Value::DoubleValue(value)) => AttributeValue::Double(*value),
            Some(Value::ArrayValue(_)) => AttributeValue::Array,
            Some(Value::KvlistValue(_)) => AttributeValue::Map,
            Some(Value::BytesValue(bytes)) => AttributeValue::Bytes(bytes),
        }
    }

    fn assert_same(view: &SpanView<'_>, span: &Span) {
        assert_eq!(view.trace_id(), span.trace_id);
        assert_eq!(view.span_id(), span.span_id);
        assert_eq!(view.parent_span_id(), span.parent_span_id);
        assert_eq!(view.is_root(), span.parent_span_id.iter().all(|byte| *byte == 0));
        assert_eq!(view.name(), span.name);
        assert_eq!(view.trace_state(), span.trace_state);
        assert_eq!(view.kind(), span.kind);
        assert_eq!(view.start_nanos(), span.start_time_unix_nano);
        assert_eq!(view.end_nanos(), span.end_time_unix_nano);
        assert_eq!(view.status_code(), span.status.as_ref().map_or(0, |status| status.code));
        assert_eq!(view.flags(), span.flags);
        assert_eq!(view.attribute("no such key"), None);
        for pair in &span.attributes {
            let first = span.attributes.iter().find(|other| other.key == pair.key);
            let expected = first.map(|pair| expected(&pair.value));
            // Debug, because NaN is not itself.
            let found = view.attribute(&pair.key);
            assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{}", pair.key);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2 * CASES))]

        #[test]
        fn a_view_of_a_valid_span_says_what_prost_decodes(bytes in unusual_span()) {
            let span = Span::decode(&*bytes).unwrap();
            assert_same(&SpanView::parse(&bytes).unwrap(), &span);
        }

        #[test]
        fn a_view_of_a_damaged_span_says_what_prost_decodes_or_never_panics(
            bytes in unusual_span(), damages in prop::collection::vec(damage(), 5),
        ) {
            for damage in damages {
                let mut bytes = bytes.clone();
                damage.iter().for_each(|damage| damage.apply(&mut bytes));
                match (SpanView::parse(&bytes), Span::decode(&*bytes)) {
                    (Ok(view), Ok(span)) => assert_same(&view, &span),
                    (Ok(view), Err(_)) => {
                        let _ = (view.name(), view.trace_state(), view.attribute("a"));
                    }
                    (Err(error), decoded) => {
                        prop_assert!(decoded.is_err() || error.problem == Problem::Group);
                    }
                }
            }
        }

        #[test]
        fn an_added_attribute_is_the_last_and_the_rest_stays(
            bytes in unusual_span(), key in ".{1,200}", text in prop::option::of(".{0,200}"),
        ) {
            let value = text.as_deref().map_or(Marking::Bool(true), Marking::Text);
            let framed = framed_with_attribute(&bytes, &key, value);
            prop_assert_eq!(framed.len(), framed.capacity());
            let spans: Vec<_> = unframed(&framed).collect();
            prop_assert_eq!(spans.len(), 1);
            let mut span = Span::decode(spans[0]).unwrap();
            let value = text.map_or(any_value::Value::BoolValue(true), |text| {
                any_value::Value::StringValue(text)
            });
            let expected = KeyValue { key, value: Some(AnyValue { value: Some(value) }) };
            prop_assert_eq!(span.attributes.pop(), Some(expected));
            prop_assert_eq!(span.encode_to_vec(), Span::decode(&*bytes).unwrap().encode_to_vec());
        }
    }

    #[test]
    fn the_value_counts_also_when_the_key_comes_twice() {
        // A key, a value, another key: the last key counts, whatever the first was.
        let pair = b"\x0a\x01x\x12\x02\x10\x01\x0a\x01k";
        let span = [&[TAG_ATTRIBUTE, pair.len() as u8][..], pair].concat();
        let view = SpanView::parse(&span).unwrap();
        assert_eq!(view.attribute("k"), Some(AttributeValue::Bool(true)));
        assert_eq!(view.attribute("x"), None);
        assert_same(&view, &Span::decode(&*span).unwrap());
    }
}
