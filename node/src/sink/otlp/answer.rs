//! What a server's answer means, over either protocol.
//!
//! OTLP tells three things apart: taken (perhaps without some spans), later, and never. Whether
//! never is said of what was sent or of how is told apart besides. Two more come from the way
//! there: no server was reached, so nothing was sent; or something was sent and nothing is known of
//! it. The messages that say more are decoded here.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use std::error::Error;
use std::iter::successors;
use std::time::Duration;

/// The longest wait that a server can ask for: clients give up on a request after as much.
pub(super) const AFTER_MAX: Duration = Duration::from_secs(300);

/// The largest answer that is read: it holds a count and a sentence.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server has it, but for `rejected_span_count` of its spans, which it will never take.
    Taken { rejected_span_count: u64, message: String },
    /// The server took nothing, and may later.
    Later { after: Option<Duration>, reason: String },
    /// There was no connection to a server.
    Unreached { reason: String },
    /// It was sent, and what arrived is unknown.
    Unanswered { reason: String },
    /// The server does not take it, and never will.
    Never { reason: String },
    /// The server takes nothing that comes in this way, whatever it is: somebody has to mend the
    /// sink's settings or the server's.
    Barred { reason: String },
}

impl Answer {
    /// The server said yes, with an encoded `ExportTraceServiceResponse`.
    pub(super) fn taken(response: &[u8]) -> Self {
        // That the rest of the answer is garbled does not undo it.
        let response = ExportTraceServiceResponse::decode(response).unwrap_or_default();
        let partial = response.partial_success.unwrap_or_default();
        let rejected_span_count = u64::try_from(partial.rejected_spans).unwrap_or(0);
        Self::Taken { rejected_span_count, message: partial.error_message }
    }
}

/// What came back for one request.
pub(super) struct Reply {
    pub(super) answer: Answer,
    /// What the server did not understand may be the compression.
    pub(super) is_compression_unknown: bool,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { answer, is_compression_unknown: false }
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn Error) -> String {
    let sources = successors(error.source(), |&source| source.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// `google.rpc.Status`, as in `grpc-status-details-bin`, and as the body of an HTTP error.
#[derive(prost::Message)]
pub(super) struct RpcStatus {
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RetryDelay>,
}

/// `google.protobuf.Duration`.
#[derive(prost::Message)]
struct RetryDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl RpcStatus {
    /// The wait that a `RetryInfo` among the details asks for, if there is one.
    pub(super) fn retry_after(details: &[u8]) -> Option<Duration> {
        let details = Self::decode(details).ok()?.details;
        let info = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
        let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay.unwrap_or_default();
        let seconds = u64::try_from(delay.seconds).unwrap_or(0);
        let nanos = u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999);
        Some(Duration::new(seconds, nanos).min(AFTER_MAX))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A status that asks for a wait.
    pub(in super::super) fn details(seconds: i64, nanos: i32) -> Vec<u8> {
        let delay = RetryInfo { retry_delay: Some(RetryDelay { seconds, nanos }) };
        let any = |kind: &str, value| AnyMessage {
            type_url: format!("type.googleapis.com/google.rpc.{kind}"),
            value,
        };
        let details = vec![any("Help", vec![1, 2, 3]), any("RetryInfo", delay.encode_to_vec())];
        RpcStatus { message: String::new(), details }.encode_to_vec()
    }

    #[test]
    fn odd_waits_are_bounded_and_garbage_is_none() {
        let after = |details: Vec<u8>| RpcStatus::retry_after(&details);
        assert_eq!(after(details(-5, -1)), Some(Duration::ZERO));
        assert_eq!(after(details(i64::MAX, i32::MAX)), Some(AFTER_MAX));
        assert_eq!(after(vec![0xff; 20]), None);
        assert_eq!(after(Vec::new()), None);
    }
}
