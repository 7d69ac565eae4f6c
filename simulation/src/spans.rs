//! The spans of a simulation as OTLP, and back.
//!
//! Every trace and span is told apart by its number, which its id carries, so that what comes out
//! at a sink says by itself what it is. Encoding and decoding are prost's, not the node's.

use crate::dice::mix;
use crate::history::SpanNumber;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tracemesh::sink::Attempt;

/// The attribute that marks a span as late.
const LATE: &str = "tracemesh.late";

/// What comes out at a sink is not what went in.
#[derive(Debug, thiserror::Error)]
pub enum SpanError {
    /// The bytes are no spans.
    #[error("an attempt at {trace} is no OTLP")]
    Decode {
        /// The attempt's trace.
        trace: String,
        /// What prost says.
        source: prost::DecodeError,
    },
    /// A span that was never sent, or is in an attempt of another trace.
    #[error("an attempt at {trace} has a span that does not belong there: {span:?}")]
    Strange {
        /// The attempt's trace.
        trace: String,
        /// The ids of the span, in hexadecimal.
        span: String,
    },
}

/// The id of a trace: half of it spread over all slots, half of it the number.
pub fn trace_id(seed: u64, trace: u32) -> [u8; 16] {
    let number = u64::from(trace) + 1;
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(seed ^ mix(number)).to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

/// The number in a trace id of this simulation.
pub fn trace_number(seed: u64, id: &[u8]) -> Option<u32> {
    let number = u64::from_be_bytes(id.get(8..16)?.try_into().ok()?);
    let trace = u32::try_from(number.checked_sub(1)?).ok()?;
    (trace_id(seed, trace) == id).then_some(trace)
}

fn span_id(span: SpanNumber) -> [u8; 8] {
    (u64::from(span.trace) << 16 | u64::from(span.span)).wrapping_add(1).to_be_bytes()
}

fn span_number(seed: u64, span: &Span) -> Option<SpanNumber> {
    let trace = trace_number(seed, &span.trace_id)?;
    let word = u64::from_be_bytes(span.span_id.as_slice().try_into().ok()?);
    let number = SpanNumber { trace, span: word.wrapping_sub(1) as u16 };
    (span_id(number) == span.span_id.as_slice()).then_some(number)
}

/// A request of these spans, each of about `span_bytes`.
pub fn request(seed: u64, spans: &[SpanNumber], span_bytes: usize) -> Bytes {
    let filling = "x".repeat(span_bytes.saturating_sub(60));
    let span = |number: &SpanNumber| {
        let root = SpanNumber { span: 0, ..*number };
        Span {
            trace_id: trace_id(seed, number.trace).into(),
            span_id: span_id(*number).into(),
            parent_span_id: if number.span == 0 { Vec::new() } else { span_id(root).into() },
            name: filling.clone(),
            kind: 2,
            ..Default::default()
        }
    };
    let service = KeyValue {
        key: "service.name".to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue("simulated".to_owned())) }),
    };
    let scope = ScopeSpans { spans: spans.iter().map(span).collect(), ..Default::default() };
    let resource = ResourceSpans {
        resource: Some(Resource { attributes: vec![service], ..Default::default() }),
        scope_spans: vec![scope],
        ..Default::default()
    };
    ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec().into()
}

/// What is in an attempt, and whether it is marked as late.
///
/// # Errors
/// Something in it was never sent.
pub fn exported(seed: u64, attempt: &Attempt) -> Result<(Vec<SpanNumber>, bool), SpanError> {
    let trace = || attempt.trace_id.to_string();
    let (mut numbers, mut late) = (Vec::new(), false);
    for chunk in &attempt.chunks {
        let spans = ScopeSpans::decode(&*chunk.spans)
            .map_err(|source| SpanError::Decode { trace: trace(), source })?;
        for span in &spans.spans {
            let number = span_number(seed, span)
                .filter(|_| span.trace_id == attempt.trace_id.0)
                .ok_or_else(|| SpanError::Strange {
                    trace: trace(),
                    span: format!("{:02x?}", span.span_id),
                })?;
            late |= span.attributes.iter().any(|attribute| attribute.key == LATE);
            numbers.push(number);
        }
    }
    Ok((numbers, late))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_from_ids() {
        for trace in [0, 1, 77_000, u32::MAX] {
            assert_eq!(trace_number(9, &trace_id(9, trace)), Some(trace));
            assert_eq!(trace_number(8, &trace_id(9, trace)), None);
        }
        let numbers = [SpanNumber { trace: 3, span: 0 }, SpanNumber { trace: 3, span: 7 }];
        let encoded = request(9, &numbers, 500);
        let decoded = ExportTraceServiceRequest::decode(&*encoded).unwrap();
        let spans = &decoded.resource_spans[0].scope_spans[0].spans;
        let back: Vec<_> = spans.iter().filter_map(|span| span_number(9, span)).collect();
        assert_eq!(back, numbers);
    }

    #[test]
    fn span_is_about_as_large_as_asked_for() {
        let numbers: Vec<_> = (0..20).map(|span| SpanNumber { trace: 3, span }).collect();
        let bytes = request(9, &numbers, 500).len();
        assert!((9_000..11_500).contains(&bytes), "{bytes}");
    }
}
