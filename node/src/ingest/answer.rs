//! What clients are told, in their own format.
//!
//! Pure: turns an answer into bytes. The invariant: `partial_success` appears only when spans were
//! refused for good, since clients never send again what it names; and times to wait are whole
//! seconds, rounded up, since the collector's own receivers and clients cut fractions off.

use super::{Accepted, Refusal};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message;
use std::time::Duration;
use tonic::Code;

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) retry_delay: Option<ProtoDuration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ProtoDuration {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// Whole seconds to wait, at least one.
pub(super) fn retry_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

/// The encoded `ExportTraceServiceResponse`; empty when all was accepted.
pub(super) fn accepted_protobuf(accepted: &Accepted) -> Vec<u8> {
    let partial_success = (accepted.refused_span_count > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(accepted.refused_span_count).unwrap_or(i64::MAX),
        error_message: accepted.message.clone(),
    });
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}

/// The same as OTLP JSON.
pub(super) fn accepted_json(accepted: &Accepted) -> String {
    if accepted.refused_span_count == 0 {
        return "{}".into();
    }
    serde_json::json!({ "partialSuccess": {
        "rejectedSpans": accepted.refused_span_count.to_string(),
        "errorMessage": accepted.message,
    }})
    .to_string()
}

/// The canonical code of a refusal.
pub(super) fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Malformed(_) | Refusal::TooLarge(_) => Code::InvalidArgument,
        Refusal::Later { .. } => Code::Unavailable,
    }
}

/// The encoded `google.rpc.Status` of a refusal, with `RetryInfo` when it is for now only.
pub(super) fn refused_protobuf(refusal: &Refusal) -> Bytes {
    let details = match refusal {
        Refusal::Malformed(_) | Refusal::TooLarge(_) => Vec::new(),
        Refusal::Later { after, .. } => {
            let seconds = i64::try_from(retry_seconds(*after)).unwrap_or(i64::MAX);
            let retry_delay = Some(ProtoDuration { seconds, nanos: 0 });
            vec![Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
                value: RetryInfo { retry_delay }.encode_to_vec(),
            }]
        }
    };
    let (code, message) = (code(refusal) as i32, refusal.to_string());
    RpcStatus { code, message, details }.encode_to_vec().into()
}

/// The same as JSON, without details: a client that speaks JSON reads `Retry-After`.
pub(super) fn refused_json(refusal: &Refusal) -> String {
    serde_json::json!({ "code": code(refusal) as i32, "message": refusal.to_string() }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_whole_seconds_rounded_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (9999, 10)] {
            assert_eq!(retry_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn partial_success_is_absent_unless_spans_were_refused() {
        let warned = Accepted { refused_span_count: 0, message: "a warning".into() };
        assert!(accepted_protobuf(&warned).is_empty());
        assert_eq!(accepted_json(&warned), "{}");
    }
}
