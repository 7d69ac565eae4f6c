//! Sends requests as an OTLP exporter does.
//!
//! Each try has a deadline. What the specification calls retryable is sent again, the same bytes,
//! to the next target: at once while there are targets that were not tried, then after growing
//! pauses, and never to a target before the time that it asked for. The invariant: a request ends
//! acknowledged, refused for good, or given up after `give_up_after`, exactly once, and only an
//! OTLP success counts as acknowledged.
//!
//! It holds connections and no other state; how many requests are under way is the caller's
//! affair.

use super::codec::BytesCodec;
use super::plan::mix;
use bytes::Bytes;
use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use std::error::Error;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, TimeoutExpired};

/// The gRPC method of OTLP traces.
pub(super) const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The first pause after every target was tried; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause, short beside an exporter's 30 s, because a run is short too.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How requests are sent.
#[derive(Clone, Debug)]
pub(super) struct Sending {
    /// Time for one try.
    pub(super) deadline: Duration,
    /// From the first try on, no try begins later than this.
    pub(super) give_up_after: Duration,
    /// Compression of requests.
    pub(super) compression: Option<CompressionEncoding>,
    /// Connections to each target, used in turn.
    pub(super) connections: usize,
}

/// Connections to all targets.
#[derive(Debug)]
pub(super) struct Client {
    targets: Vec<Target>,
    sending: Sending,
}

#[derive(Debug)]
struct Target {
    uri: Uri,
    /// They dial when used, and again when broken.
    connections: Vec<Grpc<Channel>>,
}

/// A request to be delivered.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// Its number in the plan.
    pub(super) number: u64,
    /// The target to try first.
    pub(super) target: usize,
    /// The encoded `ExportTraceServiceRequest`.
    pub(super) bytes: Bytes,
    /// Spans in it.
    pub(super) span_count: u64,
    /// When it should be sent; its latency counts from here.
    pub(super) due: Instant,
}

/// What became of a request.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Its number in the plan.
    pub(super) number: u64,
    /// Spans in it.
    pub(super) span_count: u64,
    /// The outcome.
    pub(super) end: End,
    /// When it ended.
    pub(super) at: Instant,
    /// From when it was due.
    pub(super) latency: Duration,
    /// The failures of all tries but an acknowledged one.
    pub(super) failures: Vec<Failure>,
}

/// The ways for a request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A target answered with success.
    Acknowledged {
        /// `partial_success.rejected_spans`.
        refused_span_count: u64,
    },
    /// A target answered that it will never take it.
    Refused,
    /// It kept failing until it was given up.
    GivenUp,
}

/// Why one try failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No connection, or it broke.
    #[error("{target}: {reason}")]
    Connection {
        /// Where to.
        target: Uri,
        /// The innermost cause.
        reason: String,
    },
    /// No answer within the deadline.
    #[error("{target}: no answer within the deadline")]
    Deadline {
        /// Where to.
        target: Uri,
    },
    /// An answer that is no success.
    #[error("{target}: {} {message}", self.label())]
    Answer {
        /// Where from.
        target: Uri,
        /// The gRPC status.
        code: Code,
        /// Its message.
        message: String,
        /// `RetryInfo.retry_delay`, if there is one.
        retry_after: Option<Duration>,
    },
}

impl Failure {
    /// Whether OTLP allows to send the request again.
    fn is_retryable(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Deadline { .. } => true,
            Self::Answer { code: Code::ResourceExhausted, retry_after, .. } => {
                retry_after.is_some()
            }
            Self::Answer { code, .. } => matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            ),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Connection { .. } | Self::Deadline { .. } => None,
            Self::Answer { retry_after, .. } => *retry_after,
        }
    }

    /// A short name, to count failures by.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Connection { .. } => "connection".to_owned(),
            Self::Deadline { .. } => "deadline".to_owned(),
            Self::Answer { code, .. } => format!("{code:?}"),
        }
    }
}

impl Client {
    /// Prepares connections; none is dialled yet. Must be called inside a runtime.
    pub(super) fn new(targets: &[Uri], sending: Sending) -> Self {
        let target = |uri: &Uri| Target::new(uri.clone(), &sending);
        Self { targets: targets.iter().map(target).collect(), sending }
    }

    /// Delivers one request.
    pub(super) async fn deliver(&self, outgoing: Outgoing) -> Delivery {
        let Outgoing { number, target, bytes, span_count, due } = outgoing;
        let begin = Instant::now();
        let mut failures = Vec::new();
        let mut not_before = vec![begin; self.targets.len()];
        let end = loop {
            let place = (target + failures.len()) % self.targets.len();
            let connection = number as usize / self.targets.len();
            let try_of_it = self.targets[place].export(connection, bytes.clone(), &self.sending);
            let failure = match try_of_it.await {
                Ok(refused_span_count) => break End::Acknowledged { refused_span_count },
                Err(failure) => failure,
            };
            let now = Instant::now();
            not_before[place] = now + failure.retry_after().unwrap_or_default();
            let pause = self.pause(number, failures.len());
            let next = (now + pause).max(not_before[(place + 1) % self.targets.len()]);
            let is_retryable = failure.is_retryable();
            failures.push(failure);
            if !is_retryable {
                break End::Refused;
            }
            if next.duration_since(begin) > self.sending.give_up_after {
                break End::GivenUp;
            }
            sleep_until(next).await;
        };
        let at = Instant::now();
        Delivery { number, span_count, end, at, latency: at.duration_since(due), failures }
    }

    /// How long to wait after try number `tries`, counted from 0, whatever servers ask for.
    fn pause(&self, number: u64, tries: usize) -> Duration {
        let Some(rounds) = (tries + 1).checked_sub(self.targets.len()) else {
            return Duration::ZERO;
        };
        let doubled = PAUSE_MIN.saturating_mul(1 << rounds.min(16)).min(PAUSE_MAX);
        // Between half and all of it, so that requests do not come back together.
        let dice = mix(number.wrapping_add((tries as u64) << 48)) as f64;
        doubled.mul_f64(0.5 + 0.5 * dice / u64::MAX as f64)
    }
}

impl Target {
    fn new(uri: Uri, sending: &Sending) -> Self {
        let connection = || {
            let channel = Endpoint::from(uri.clone())
                .connect_timeout(sending.deadline)
                .tcp_nodelay(true)
                .connect_lazy();
            let grpc = Grpc::with_origin(channel, uri.clone());
            match sending.compression {
                Some(encoding) => grpc.send_compressed(encoding),
                None => grpc,
            }
        };
        let connections = (0..sending.connections).map(|_| connection()).collect();
        Self { uri, connections }
    }

    /// One try; the number of spans that a success refused for good.
    async fn export(
        &self,
        connection: usize,
        bytes: Bytes,
        sending: &Sending,
    ) -> Result<u64, Failure> {
        let mut grpc = self.connections[connection % self.connections.len()].clone();
        let mut request = Request::new(bytes);
        request.set_timeout(sending.deadline);
        let call = async {
            grpc.ready().await.map_err(|error| self.connection_failure(&error))?;
            let path = PathAndQuery::from_static(EXPORT_PATH);
            grpc.unary(request, path, BytesCodec).await.map_err(|status| self.failure(&status))
        };
        let answer = timeout(sending.deadline, call)
            .await
            .map_err(|_| Failure::Deadline { target: self.uri.clone() })??;
        // An answer that cannot be read is a success all the same.
        let answer = ExportTraceServiceResponse::decode(answer.into_inner()).unwrap_or_default();
        let refused = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(refused.max(0) as u64)
    }

    /// tonic makes a status of everything; only those that came from the server have no source.
    fn failure(&self, status: &Status) -> Failure {
        match status.source() {
            Some(source) if innermost(source).is::<TimeoutExpired>() => {
                Failure::Deadline { target: self.uri.clone() }
            }
            Some(source) => self.connection_failure(source),
            None => Failure::Answer {
                target: self.uri.clone(),
                code: status.code(),
                message: status.message().to_owned(),
                retry_after: retry_after(status.details()),
            },
        }
    }

    fn connection_failure(&self, error: &(dyn Error + 'static)) -> Failure {
        let reason = innermost(error).to_string();
        Failure::Connection { target: self.uri.clone(), reason }
    }
}

fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// `google.rpc.Status`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<RpcDetail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct RpcDetail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RetryDelay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct RetryDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The delay that a server asks for in `grpc-status-details-bin`; a negative one is none.
fn retry_after(details: &[u8]) -> Option<Duration> {
    let details = RpcStatus::decode(details).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.clone()).ok()?.retry_delay.unwrap_or_default();
    let seconds = u64::try_from(delay.seconds).ok()?;
    Some(Duration::new(seconds, u32::try_from(delay.nanos).ok()?))
}
