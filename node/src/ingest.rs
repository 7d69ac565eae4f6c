//! The way in: OTLP over gRPC and HTTP.
//!
//! Both protocols end in one function, [`Export::export`], which takes the raw bytes of an
//! `ExportTraceServiceRequest`. What it answers is the whole contract with a client: accepted,
//! partly refused for good, or come back later.

use bytes::Bytes;
use std::time::Duration;

/// A request was taken: every span in it is held as often as the cluster promises, but for those
/// refused for good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Spans that can never be accepted (`partial_success.rejected_spans`).
    pub refused_span_count: u64,
    /// Why, for `partial_success.error_message`; empty when none was refused.
    pub message: String,
}

/// A request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no valid request; the client must not send them again
    /// (`INVALID_ARGUMENT`, HTTP 400).
    #[error("{0}")]
    Malformed(String),
    /// Over the size limit; the client must not send it again (`INVALID_ARGUMENT`, HTTP 413).
    #[error("{0}")]
    TooLarge(String),
    /// Not now; the client should send it again, here or elsewhere, after `after`
    /// (`UNAVAILABLE` with `RetryInfo`, HTTP 503 with `Retry-After`).
    #[error("{why}")]
    Later {
        /// What is in the way.
        why: &'static str,
        /// 1 s to 10 s, jittered.
        after: Duration,
    },
}

/// Takes requests; implemented by the router, and by whatever a test puts in its place.
pub trait Export: Clone + Send + Sync + 'static {
    /// Holds the spans of one encoded `ExportTraceServiceRequest`, or says why not.
    fn export(&self, request: Bytes) -> impl Future<Output = Result<Accepted, Refusal>> + Send;
}
