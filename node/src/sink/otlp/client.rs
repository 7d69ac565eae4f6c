//! One OTLP gRPC call at a time: raw bytes out, and what the answer means.
//!
//! Request bytes pass untouched; only the small answer is decoded. A status counts as the server's
//! word only when it came with a `grpc-status`: what the library makes up for a connection that
//! broke, or for a proxy's HTTP error, means *later*, whatever its code.

use crate::sink::{ATTEMPT_MAX, Compression, StartError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::uri::PathAndQuery;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::iter::successors;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower::ServiceExt;

const GRPC_STATUS: &str = "grpc-status";
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A connection that is not made by then will not be: half of an attempt, so that a second address
/// of the name can be tried.
const CONNECT_MAX: Duration = Duration::from_millis(2_500);

/// While requests are open and nothing comes, ask so often whether the other end is there; servers
/// object to being asked much more often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Longest wait that a server can ask for: clients give up on a request after as much.
const AFTER_MAX: Duration = Duration::from_secs(300);

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The server has it, but for `rejected_span_count` of its spans, which it will never take.
    Taken { rejected_span_count: u64, message: String },
    /// The server took nothing, or was not reached.
    Later { after: Option<Duration>, reason: String },
    /// It was sent, and what arrived is unknown.
    Unanswered { reason: String },
    /// The server does not take it, and never will.
    Never { reason: String },
}

/// A connection to one OTLP server.
pub(in crate::sink) struct Client {
    sink: String,
    endpoint: String,
    channel: Channel,
    headers: MetadataMap,
    compression: Option<CompressionEncoding>,
    /// The server does not know our compression: do without.
    plain: AtomicBool,
}

impl Client {
    /// Connects to nothing yet.
    pub(in crate::sink) fn new(
        sink: &str,
        endpoint: &str,
        compression: Compression,
        headers: &BTreeMap<String, String>,
    ) -> Result<Self, StartError> {
        let refused = || StartError::Endpoint { sink: sink.into(), endpoint: endpoint.into() };
        let target = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| refused())?;
        if target.uri().scheme_str() != Some("http") || target.uri().host().is_none() {
            return Err(refused());
        }
        let channel = target
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(ATTEMPT_MAX)
            .connect_lazy();
        let compression = match compression {
            Compression::None => None,
            Compression::Gzip => Some(CompressionEncoding::Gzip),
            Compression::Zstd => Some(CompressionEncoding::Zstd),
        };
        let headers = metadata(sink, headers)?;
        let (sink, endpoint, plain) = (sink.to_owned(), endpoint.to_owned(), false.into());
        Ok(Self { sink, endpoint, channel, headers, compression, plain })
    }

    pub(super) fn sink(&self) -> &str {
        &self.sink
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Sends one request and waits for its answer, no longer than until `deadline`.
    pub(super) async fn call(&self, request: Bytes, deadline: Instant) -> Answer {
        let compression = self.compression.filter(|_| !self.plain.load(Ordering::Relaxed));
        let reply = self.post(request.clone(), compression, deadline).await;
        if compression.is_none()
            || !matches!(&reply, Reply::No(s) if s.code() == Code::Unimplemented)
        {
            return reply.into();
        }
        // Either the service is unknown there, or only the compression.
        let reply = self.post(request, None, deadline).await;
        if matches!(reply, Reply::Ok(_)) && !self.plain.swap(true, Ordering::Relaxed) {
            let (sink, endpoint) = (&self.sink, &self.endpoint);
            tracing::warn!(sink, endpoint, "sink does not know the compression: sending plain");
        }
        reply.into()
    }

    async fn post(
        &self,
        body: Bytes,
        compression: Option<CompressionEncoding>,
        deadline: Instant,
    ) -> Reply {
        let answered = Arc::new(AtomicBool::new(false));
        // The codec copies, which only what is compressed is worth.
        let (body, plain) =
            if compression.is_some() { (body, None) } else { (Bytes::new(), Some(body)) };
        let mut grpc = Grpc::new(wrapped(self.channel.clone(), plain, answered.clone()))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        if let Some(compression) = compression {
            grpc = grpc.send_compressed(compression);
        }
        let mut request = Request::new(body);
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let call = grpc.unary(request, PathAndQuery::from_static(EXPORT), RawCodec);
        match timeout_at(deadline, call).await {
            Ok(Ok(response)) => Reply::Ok(response.into_inner()),
            Ok(Err(status)) if answered.load(Ordering::Relaxed) => Reply::No(status),
            Ok(Err(status)) if is_unreached(&status) => Reply::Unreached(chain(&status)),
            Ok(Err(status)) => Reply::Broken(chain(&status)),
            Err(_) => Reply::Broken("no answer in time".to_owned()),
        }
    }
}

/// What came back for one request.
enum Reply {
    /// An encoded `ExportTraceServiceResponse`.
    Ok(Bytes),
    /// The server's own words.
    No(Status),
    /// There was no connection.
    Unreached(String),
    /// Something on the way failed; what arrived is unknown.
    Broken(String),
}

/// Whether a connection could not even be made.
fn is_unreached(status: &Status) -> bool {
    let mut error: Option<&dyn std::error::Error> = Some(status);
    while let Some(cause) = error {
        if cause.is::<tonic::ConnectError>() {
            return true;
        }
        error = cause.source();
    }
    false
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        let status = match reply {
            Reply::Ok(response) => return taken(response),
            Reply::Unreached(reason) => return Self::Later { after: None, reason },
            Reply::Broken(reason) => return Self::Unanswered { reason },
            Reply::No(status) => status,
        };
        let after = RpcStatus::retry_after(status.details());
        let reason = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Self::Later { after, reason },
            Code::ResourceExhausted if after.is_some() => Self::Later { after, reason },
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::Internal
            | Code::Unauthenticated => Self::Never { reason },
        }
    }
}

fn taken(response: Bytes) -> Answer {
    // The status was OK: that the answer is garbled besides does not undo it.
    let partial = ExportTraceServiceResponse::decode(response).ok().and_then(|r| r.partial_success);
    let partial = partial.unwrap_or_default();
    let rejected_span_count = u64::try_from(partial.rejected_spans).unwrap_or(0);
    Answer::Taken { rejected_span_count, message: partial.error_message }
}

/// The channel, sending `plain` in place of the request's body where there is one, and noting
/// whether a response carried a status of the server's own.
fn wrapped(
    channel: Channel,
    plain: Option<Bytes>,
    answered: Arc<AtomicBool>,
) -> impl tower::Service<
    http::Request<Body>,
    Response = http::Response<
        impl hyper::body::Body<Data = Bytes, Error = Status> + Send + 'static,
    >,
    Error = tonic::transport::Error,
    Future: Send,
> {
    tower::service_fn(move |request: http::Request<Body>| {
        let (channel, answered) = (channel.clone(), answered.clone());
        let request = match plain.clone() {
            Some(message) => request.map(|_| framed(message)),
            None => request,
        };
        async move {
            let response: http::Response<Body> = channel.oneshot(request).await?;
            let note = move |headers: &http::HeaderMap| {
                if headers.contains_key(GRPC_STATUS) {
                    answered.store(true, Ordering::Relaxed);
                }
            };
            note(response.headers());
            Ok(response.map(|body| {
                body.map_frame(move |frame| {
                    frame.trailers_ref().into_iter().for_each(&note);
                    frame
                })
            }))
        }
    })
}

/// A message as the body of a call: a flag, which says that it is not compressed, its length, and
/// its bytes as they are.
fn framed(message: Bytes) -> Body {
    let mut prefix = BytesMut::with_capacity(5);
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    let pieces = [prefix.freeze(), message].map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    Body::new(StreamBody::new(stream::iter(pieces)))
}

fn metadata(sink: &str, headers: &BTreeMap<String, String>) -> Result<MetadataMap, StartError> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let refused = || StartError::Header { sink: sink.into(), header: name.clone() };
        let key = AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        let mut value = AsciiMetadataValue::try_from(value).map_err(|_| refused())?;
        value.set_sensitive(true);
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn chain(error: &dyn Error) -> String {
    let sources = successors(error.source(), |&source| source.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Hands bytes through.
pub(super) struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.reserve(item.len());
        target.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// `google.rpc.Status`, as in `grpc-status-details-bin`.
#[derive(prost::Message)]
struct RpcStatus {
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
    fn retry_after(details: &[u8]) -> Option<Duration> {
        let details = Self::decode(details).ok()?.details;
        let info = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
        let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay.unwrap_or_default();
        let seconds = u64::try_from(delay.seconds).unwrap_or(0);
        let nanos = u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999);
        Some(Duration::new(seconds, nanos).min(AFTER_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(seconds: i64, nanos: i32) -> Vec<u8> {
        let delay = RetryInfo { retry_delay: Some(RetryDelay { seconds, nanos }) };
        let any = |kind: &str, value| AnyMessage {
            type_url: format!("type.googleapis.com/google.rpc.{kind}"),
            value,
        };
        let details = vec![any("Help", vec![1, 2, 3]), any("RetryInfo", delay.encode_to_vec())];
        RpcStatus { details }.encode_to_vec()
    }

    fn answer(code: Code, details: Vec<u8>) -> Answer {
        Reply::No(Status::with_details(code, "why", details.into())).into()
    }

    #[test]
    fn codes_mean_what_otlp_says() {
        let retryable = [1, 4, 8, 10, 11, 14, 15];
        for number in 1..=16 {
            let code = Code::from_i32(number);
            let with = answer(code, details(3, 500_000_000));
            let without = answer(code, Vec::new());
            let reason = format!("{code:?}: why");
            if retryable.contains(&number) {
                let after = Some(Duration::from_millis(3_500));
                assert_eq!(with, Answer::Later { after, reason: reason.clone() });
            } else {
                assert_eq!(with, Answer::Never { reason: reason.clone() });
            }
            if retryable.contains(&number) && code != Code::ResourceExhausted {
                assert_eq!(without, Answer::Later { after: None, reason });
            } else {
                assert_eq!(without, Answer::Never { reason });
            }
        }
    }

    #[test]
    fn odd_waits_are_bounded_and_garbage_is_none() {
        let after = |details: Vec<u8>| RpcStatus::retry_after(&details);
        assert_eq!(after(details(-5, -1)), Some(Duration::ZERO));
        assert_eq!(after(details(i64::MAX, i32::MAX)), Some(AFTER_MAX));
        assert_eq!(after(vec![0xff; 20]), None);
        assert_eq!(after(Vec::new()), None);
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_refused_at_the_start() {
        let new = |endpoint: &str, header: (&str, &str)| {
            let headers = BTreeMap::from([(header.0.to_owned(), header.1.to_owned())]);
            Client::new("otlp", endpoint, Compression::Zstd, &headers).err()
        };
        let good = ("x-key", "secret");
        assert!(new("http://127.0.0.1:4317", good).is_none());
        for endpoint in ["127.0.0.1:4317", "https://127.0.0.1:4317", "http://", "", "http://a b"] {
            assert!(matches!(new(endpoint, good), Some(StartError::Endpoint { .. })), "{endpoint}");
        }
        for header in [("x key", "a"), ("x-bin", "a"), ("x-key", "secret\n")] {
            let error = new("http://127.0.0.1:4317", header).unwrap();
            assert!(matches!(&error, StartError::Header { .. }));
            assert!(!error.to_string().contains("secret"));
        }
    }
}
