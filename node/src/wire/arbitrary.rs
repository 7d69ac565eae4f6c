//! Random requests for property tests: valid ones, valid ones in unusual encodings, damaged ones.

use super::schema::{Kind, Message};
use super::{Reader, Value, put_varint, schema};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

/// Cases of a property test, so that all of them together take seconds.
pub(crate) const CASES: u32 = 100;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z.]{1,12}",
        "\\PC{0,6}",
        "[ -~]{120,140}",
        Just("\u{0}\u{7f}\u{80}\u{ffff}\u{10ffff}\"\\\n".to_owned()),
    ]
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    use any_value::Value;
    let leaf = option::weighted(
        0.9,
        prop_oneof![
            text().prop_map(Value::StringValue),
            any::<bool>().prop_map(Value::BoolValue),
            any::<i64>().prop_map(Value::IntValue),
            (-3..200i64).prop_map(Value::IntValue),
            any::<f64>().prop_map(Value::DoubleValue),
            vec(any::<u8>(), 0..5).prop_map(Value::BytesValue),
        ],
    )
    .prop_map(|value| AnyValue { value });
    leaf.prop_recursive(3, 8, 3, |inner| {
        let pair = (text(), option::weighted(0.9, inner.clone()));
        let pair = pair.prop_map(|(key, value)| KeyValue { key, value });
        prop_oneof![
            vec(inner, 0..3).prop_map(|values| Value::ArrayValue(ArrayValue { values })),
            vec(pair, 0..3).prop_map(|values| Value::KvlistValue(KeyValueList { values })),
        ]
        .prop_map(|value| AnyValue { value: Some(value) })
    })
}

/// Attributes; some keys come often.
pub(crate) fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let key = prop_oneof![Just("a".to_owned()), Just("service.name".to_owned()), text()];
    let pair = (key, option::weighted(0.9, any_value()));
    vec(pair.prop_map(|(key, value)| KeyValue { key, value }), 0..4)
}

fn id(length: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => (1..7u8).prop_map(move |byte| vec![byte; length]),
        4 => vec(any::<u8>(), length),
        1 => Just(vec![0; length]),
        1 => vec(any::<u8>(), 0..20),
    ]
}

fn event() -> impl Strategy<Value = span::Event> {
    (any::<u64>(), text(), attributes(), 0..300u32).prop_map(
        |(time_unix_nano, name, attributes, dropped_attributes_count)| span::Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count,
        },
    )
}

fn link() -> impl Strategy<Value = span::Link> {
    (id(16), id(8), text(), attributes(), 0..300u32, any::<u32>()).prop_map(
        |(trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags)| {
            span::Link {
                trace_id,
                span_id,
                trace_state,
                attributes,
                dropped_attributes_count,
                flags,
            }
        },
    )
}

/// A span; ids may be of the wrong length or zero.
pub(crate) fn span() -> impl Strategy<Value = Span> {
    let ids = (id(16), id(8), prop_oneof![Just(vec![]), id(8)]);
    let small = (text(), text(), prop_oneof![0..7i32, any::<i32>()], any::<u32>());
    let times = (any::<u64>(), any::<u64>());
    let lists = (attributes(), vec(event(), 0..2), vec(link(), 0..2));
    let dropped = (0..300u32, 0..2u32, any::<u32>());
    let status = (text(), prop_oneof![0..3i32, any::<i32>()])
        .prop_map(|(message, code)| Status { message, code });
    (ids, small, times, lists, dropped, option::of(status)).prop_map(
        |(ids, small, times, lists, dropped, status)| Span {
            trace_id: ids.0,
            span_id: ids.1,
            parent_span_id: ids.2,
            trace_state: small.0,
            name: small.1,
            kind: small.2,
            flags: small.3,
            start_time_unix_nano: times.0,
            end_time_unix_nano: times.1,
            attributes: lists.0,
            events: lists.1,
            links: lists.2,
            dropped_attributes_count: dropped.0,
            dropped_events_count: dropped.1,
            dropped_links_count: dropped.2,
            status,
        },
    )
}

fn scope_spans() -> impl Strategy<Value = ScopeSpans> {
    let scope = (text(), text(), attributes(), 0..300u32).prop_map(
        |(name, version, attributes, dropped_attributes_count)| InstrumentationScope {
            name,
            version,
            attributes,
            dropped_attributes_count,
        },
    );
    (option::of(scope), vec(span(), 0..5), text())
        .prop_map(|(scope, spans, schema_url)| ScopeSpans { scope, spans, schema_url })
}

fn resource_spans() -> impl Strategy<Value = ResourceSpans> {
    let entity = (text(), text(), vec(text(), 0..2), vec(text(), 0..2)).prop_map(
        |(schema_url, r#type, id_keys, description_keys)| EntityRef {
            schema_url,
            r#type,
            id_keys,
            description_keys,
        },
    );
    let resource = (attributes(), 0..300u32, vec(entity, 0..2)).prop_map(
        |(attributes, dropped_attributes_count, entity_refs)| Resource {
            attributes,
            dropped_attributes_count,
            entity_refs,
        },
    );
    (option::of(resource), vec(scope_spans(), 0..3), text()).prop_map(
        |(resource, scope_spans, schema_url)| ResourceSpans { resource, scope_spans, schema_url },
    )
}

/// A valid request as prost encodes it.
pub(crate) fn request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    vec(resource_spans(), 0..4)
        .prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

/// A valid request in another encoding: fields in any order, unknown fields, fields that come
/// twice, lengths and tags longer than necessary.
pub(crate) fn unusual_request() -> impl Strategy<Value = Vec<u8>> {
    (request(), any::<u64>()).prop_map(|(request, seed)| {
        let dice = &mut StdRng::seed_from_u64(seed);
        unusual(&schema::REQUEST, &request.encode_to_vec(), dice)
    })
}

/// A valid span in another encoding.
pub(crate) fn unusual_span() -> impl Strategy<Value = Vec<u8>> {
    (span(), any::<u64>()).prop_map(|(span, seed)| {
        unusual(&schema::SPAN, &span.encode_to_vec(), &mut StdRng::seed_from_u64(seed))
    })
}

fn unusual(message: &'static Message, bytes: &[u8], dice: &mut StdRng) -> Vec<u8> {
    let mut fields = Vec::new();
    for field in Reader::new(bytes) {
        let field = field.expect("prost encoded it");
        let encoded = match (message.rule(field.number).map(|rule| &rule.kind), field.value) {
            (Some(Kind::Message(inner)), Value::Bytes(payload)) => {
                let payload = unusual(inner, payload, dice);
                let mut out = Vec::new();
                put_long_varint(&mut out, field.number as usize * 8 + 2, dice);
                put_long_varint(&mut out, payload.len(), dice);
                out.extend(payload);
                out
            }
            _ => bytes[field.start..field.end].to_vec(),
        };
        if dice.random_ratio(1, 20) {
            fields.push(encoded.clone());
        }
        fields.push(encoded);
    }
    if dice.random_ratio(1, 8) {
        fields.shuffle(dice);
    }
    while dice.random_ratio(1, 10) {
        fields.insert(dice.random_range(0..=fields.len()), unknown_field(dice));
    }
    fields.concat()
}

fn put_long_varint(out: &mut Vec<u8>, value: usize, dice: &mut StdRng) {
    put_varint(out, value);
    if dice.random_ratio(1, 10) {
        let last = out.len() - 1;
        out[last] |= 0x80;
        out.push(0);
    }
}

/// A field that OTLP does not know, of any wire type.
pub(crate) fn unknown_field(dice: &mut StdRng) -> Vec<u8> {
    let number = *[17, 99, 2047, (1 << 29) - 1].choose(dice).expect("not empty");
    let mut out = Vec::new();
    let (wire_type, payload): (usize, &[u8]) = *[
        (0, &b"\x80\x80\x01"[..]),
        (1, b"12345678"),
        (2, b"\x03abc"),
        (2, b"\x04\xff\xfe\x0b\x0c"),
        (5, b"1234"),
    ]
    .choose(dice)
    .expect("not empty");
    put_varint(&mut out, number * 8 + wire_type);
    out.extend(payload);
    out
}

/// Damages a message; what comes out may still be valid.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Flip(usize, u8),
    Truncate(usize),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
}

impl Damage {
    /// Applies it somewhere in the message.
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match self {
            Self::Flip(..) if length == 0 => {}
            Self::Flip(at, bit) => bytes[at % length] ^= 1 << bit,
            Self::Truncate(at) => bytes.truncate(at % (length + 1)),
            Self::Remove(at, count) => {
                let at = at % (length + 1);
                bytes.drain(at..(at + count).min(length));
            }
            Self::Insert(at, inserted) => {
                let at = at % (length + 1);
                bytes.splice(at..at, inserted.iter().copied());
            }
        }
    }
}

/// Damage of every kind.
pub(crate) fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let inserted = prop_oneof![
        vec(any::<u8>(), 1..4),
        Just(b"\x0b\x0c".to_vec()),
        Just(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec()),
        Just(b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02".to_vec()),
        Just(b"\x0a\x02\xc3\x28".to_vec()),
        Just(b"\x2a\x03\xed\xa0\x80".to_vec()),
        Just(b"\x52\x01x".to_vec()),
    ];
    let damage = prop_oneof![
        (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        any::<usize>().prop_map(Damage::Truncate),
        (any::<usize>(), 1..4usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (any::<usize>(), inserted).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ];
    vec(damage, 1..3)
}
