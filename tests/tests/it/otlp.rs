//! OTLP requests as clients build them, and some that none would build.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

/// Content type of OTLP in protobuf over HTTP.
pub(crate) const PROTOBUF: &str = "application/x-protobuf";

/// The `number`th trace id of a test; ids spread over all slots.
pub(crate) fn trace_id(number: u64) -> [u8; 16] {
    let spread = (u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    spread.to_be_bytes()
}

/// Bytes in lower-case hex, as trace files write ids.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Span `number` of a trace, counted from 0; 0 is the root.
pub(crate) fn span(trace_id: &[u8], number: u64) -> Span {
    let span_id = |number: u64| (number + 1).to_be_bytes().to_vec();
    let parent_span_id = if number == 0 { Vec::new() } else { span_id(0) };
    Span {
        trace_id: trace_id.to_vec(),
        span_id: span_id(number),
        parent_span_id,
        name: format!("step {number}"),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_000_500_000,
        ..Span::default()
    }
}

/// All spans of a trace, the root first.
pub(crate) fn trace(trace_id: &[u8], span_count: u64) -> Vec<Span> {
    (0..span_count).map(|number| span(trace_id, number)).collect()
}

/// One request with `spans` in one scope of one resource.
pub(crate) fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let service = AnyValue { value: Some(Value::StringValue("shop".to_owned())) };
    let service = KeyValue { key: "service.name".to_owned(), value: Some(service) };
    let resource = Resource { attributes: vec![service], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans =
        vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }
}

/// The bytes of [`request`].
pub(crate) fn encoded(spans: Vec<Span>) -> Vec<u8> {
    request(spans).encode_to_vec()
}

/// A request of one span, given as the bytes of a `Span`, valid or not.
pub(crate) fn around_span(span: &[u8]) -> Vec<u8> {
    field(1, &field(2, &field(2, span)))
}

/// A length-delimited protobuf field.
pub(crate) fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend_from_slice(bytes);
    field
}

/// What a response says about refused spans: their count, and why.
pub(crate) fn refused(response: &[u8]) -> (i64, String) {
    let response = ExportTraceServiceResponse::decode(response).expect("a response is protobuf");
    let partial = response.partial_success.unwrap_or_default();
    (partial.rejected_spans, partial.error_message)
}

/// Bytes that look random and are the same every time.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    /// The next byte.
    pub(crate) fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 56) as u8
    }
}
