//! What clients are told, in their own format.
//!
//! Pure: turns an answer into bytes. The invariant: `partial_success` appears only when spans were
//! refused for good, since clients never send again what it names; times to wait are whole seconds,
//! rounded up, since the collector's own receivers and clients cut fractions off; and no answer is
//! longer than [`MESSAGE_BYTES_MAX`] and some bytes, whatever a client sent.

use super::{Accepted, Refusal};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message;
use serde_json::json;
use std::time::Duration;
use tonic::Code;

/// The longest message: errors of JSON repeat what they found, and a gRPC status is a header, of
/// which many clients take 8 KiB.
const MESSAGE_BYTES_MAX: usize = 512;
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

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
    json!({ "partialSuccess": {
        "rejectedSpans": accepted.refused_span_count.to_string(),
        "errorMessage": accepted.message,
    }})
    .to_string()
}

/// An error as both protocols tell it.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) message: String,
    /// Whole seconds after which to try again; none: never.
    pub(super) retry_seconds: Option<u64>,
}

impl Failure {
    /// One that stays, whatever a client does.
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Self { code, message, retry_seconds: None }
    }

    /// The encoded `google.rpc.Status`, with `RetryInfo` when it is for now only.
    pub(super) fn protobuf(&self) -> Bytes {
        let detail = |seconds: u64| {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            let retry_delay = Some(ProtoDuration { seconds, nanos: 0 });
            Any { type_url: RETRY_INFO.into(), value: RetryInfo { retry_delay }.encode_to_vec() }
        };
        let details = self.retry_seconds.map(detail).into_iter().collect();
        let (code, message) = (self.code as i32, self.message.clone());
        RpcStatus { code, message, details }.encode_to_vec().into()
    }

    /// The same in protobuf's JSON form.
    pub(super) fn json(&self) -> String {
        let detail = |seconds| json!({ "@type": RETRY_INFO, "retryDelay": format!("{seconds}s") });
        let mut status = json!({ "code": self.code as i32, "message": self.message });
        if let Some(seconds) = self.retry_seconds {
            status["details"] = json!([detail(seconds)]);
        }
        status.to_string()
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let failure = |code| Self::new(code, refusal.to_string());
        match refusal {
            Refusal::Malformed(_) | Refusal::TooLarge(_) => failure(Code::InvalidArgument),
            Refusal::Unauthenticated => failure(Code::Unauthenticated),
            Refusal::Later { after, .. } => {
                Self { retry_seconds: Some(whole_seconds(*after)), ..failure(Code::Unavailable) }
            }
        }
    }
}

/// Rounded up, and at least one.
fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_whole_seconds_rounded_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (9999, 10)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn partial_success_is_absent_unless_spans_were_refused() {
        let warned = Accepted { refused_span_count: 0, message: "a warning".into() };
        assert!(accepted_protobuf(&warned).is_empty());
        assert_eq!(accepted_json(&warned), "{}");
    }

    #[test]
    fn message_is_cut_between_characters() {
        let failure = Failure::new(Code::InvalidArgument, "é".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(failure.message, "é".repeat(MESSAGE_BYTES_MAX / 2));
        let failure = Failure::new(Code::InvalidArgument, format!("x{}", "é".repeat(600)));
        assert_eq!(failure.message.len(), MESSAGE_BYTES_MAX - 1);
    }
}
