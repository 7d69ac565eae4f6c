//! One OTLP call over gRPC: raw bytes out, and what the answer means.
//!
//! Request bytes pass untouched; only the small answer is decoded. A status counts as the server's
//! word only when it came with a `grpc-status`: what the library makes up for a connection that
//! broke, or for a proxy's HTTP error, leaves unknown what arrived, whatever its code.

use super::answer::{Answer, Reply, RpcStatus, chain};
use super::connect::{Connection, USER_AGENT, is_unreached};
use crate::sink::Compression;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::client::Grpc as Call;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

const GRPC_STATUS: &str = "grpc-status";
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// One server over gRPC.
pub(super) struct Grpc {
    connection: Connection,
    origin: Uri,
    headers: MetadataMap,
}

impl Grpc {
    pub(super) fn new(connection: Connection, endpoint: &Uri, mut headers: HeaderMap) -> Self {
        headers.insert(http::header::USER_AGENT, USER_AGENT);
        let headers = MetadataMap::from_headers(headers);
        Self { connection, origin: endpoint.clone(), headers }
    }

    pub(super) async fn post(
        &self,
        body: Bytes,
        compression: Compression,
        deadline: Instant,
    ) -> Reply {
        let compression = match compression {
            Compression::None => None,
            Compression::Gzip => Some(CompressionEncoding::Gzip),
            Compression::Zstd => Some(CompressionEncoding::Zstd),
        };
        let answered = Arc::new(AtomicBool::new(false));
        // The codec copies, which only what is compressed is worth.
        let (body, plain) =
            if compression.is_some() { (body, None) } else { (Bytes::new(), Some(body)) };
        let service = wrapped(self.connection.clone(), plain, answered.clone());
        // Servers compress answers as the request was. The library bounds what that unfolds to.
        let mut call = Call::with_origin(service, self.origin.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        if let Some(compression) = compression {
            call = call.send_compressed(compression);
        }
        let mut request = Request::new(body);
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let call = call.unary(request, PathAndQuery::from_static(EXPORT), RawCodec);
        match timeout_at(deadline, call).await {
            Ok(Ok(response)) => Answer::taken(&response.into_inner()).into(),
            Ok(Err(status)) if answered.load(Ordering::Relaxed) => reply(&status),
            Ok(Err(status)) if was_unreached(&status) => {
                Answer::Unreached { reason: chain(&status) }.into()
            }
            Ok(Err(status)) => Answer::Unanswered { reason: chain(&status) }.into(),
            Err(_) => Answer::Unanswered { reason: "no answer in time".to_owned() }.into(),
        }
    }
}

/// Whether a connection could not even be made.
fn was_unreached(status: &Status) -> bool {
    let mut error: Option<&dyn Error> = Some(status);
    while let Some(cause) = error {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return is_unreached(error);
        }
        error = cause.source();
    }
    false
}

/// What the server's own words mean.
fn reply(status: &Status) -> Reply {
    let after = RpcStatus::retry_after(status.details());
    let reason = format!("{:?}: {}", status.code(), status.message());
    let answer = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Later { after, reason },
        Code::ResourceExhausted if after.is_some() => Answer::Later { after, reason },
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Internal
        | Code::PermissionDenied => Answer::Never { reason },
        Code::Unimplemented | Code::Unauthenticated => Answer::Barred { reason },
    };
    // Either the service is unknown there, or only the compression.
    Reply { answer, is_compression_unknown: status.code() == Code::Unimplemented }
}

/// The connection, sending `plain` in place of the request's body where there is one, and noting
/// whether a response carried a status of the server's own.
fn wrapped(
    connection: Connection,
    plain: Option<Bytes>,
    answered: Arc<AtomicBool>,
) -> impl tower::Service<
    http::Request<Body>,
    Response = http::Response<
        impl hyper::body::Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
    >,
    Error = hyper_util::client::legacy::Error,
    Future: Send,
> {
    tower::service_fn(move |request: http::Request<Body>| {
        let (connection, answered) = (connection.clone(), answered.clone());
        let request = match plain.clone() {
            Some(message) => request.map(|_| framed(message)),
            None => request,
        };
        async move {
            let response = connection.request(request).await?;
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

#[cfg(test)]
mod tests {
    use super::super::answer::tests::details;
    use super::*;
    use std::time::Duration;

    fn answer(code: Code, details: Vec<u8>) -> Answer {
        reply(&Status::with_details(code, "why", details.into())).answer
    }

    #[test]
    fn codes_mean_what_otlp_says() {
        let retryable = [1, 4, 8, 10, 11, 14, 15];
        let barred = [12, 16];
        for number in 1..=16 {
            let code = Code::from_i32(number);
            let with = answer(code, details(3, 500_000_000));
            let without = answer(code, Vec::new());
            let reason = format!("{code:?}: why");
            if retryable.contains(&number) {
                let after = Some(Duration::from_millis(3_500));
                assert_eq!(with, Answer::Later { after, reason: reason.clone() });
            } else if barred.contains(&number) {
                assert_eq!(with, Answer::Barred { reason: reason.clone() });
            } else {
                assert_eq!(with, Answer::Never { reason: reason.clone() });
            }
            if retryable.contains(&number) && code != Code::ResourceExhausted {
                assert_eq!(without, Answer::Later { after: None, reason });
            } else if barred.contains(&number) {
                assert_eq!(without, Answer::Barred { reason });
            } else {
                assert_eq!(without, Answer::Never { reason });
            }
        }
    }
}
