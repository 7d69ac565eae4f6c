//! OTLP over gRPC, on raw bytes.
//!
//! A unary gRPC call is an HTTP/2 request whose body is five bytes (a flag and a length) and one
//! message. Reading these five bytes here rather than through tonic's codec is what lets a request
//! be refused with the right status, bounded in bytes in flight and in its zstd window, and stopped
//! in the middle of a bomb: tonic answers too much with codes that clients send again for ever, or
//! drop though they should not. tonic gives the statuses and the health service.
//!
//! The invariant: every call of the trace service is answered with OK, `INVALID_ARGUMENT`,
//! `UNAUTHENTICATED`, or `UNAVAILABLE` with `RetryInfo`. Answers are never compressed: they are
//! some bytes long. The health service is open to all.

use super::answer::{self, Failure};
use super::collect::Encoding;
use super::intake::{Charge, Intake, Received};
use super::{Accepted, Admission, Export, Refusal};
use crate::listen::Respond;
use crate::metrics::Protocol;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::{Request, Response};
use std::convert::Infallible;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::Service;

const TRACE_SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";
/// What health is told of: the whole server, and the one service.
const SERVICES: [&str; 2] = ["", TRACE_SERVICE];
pub(super) const TRACE_EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const OTHER_SIGNALS: [&str; 3] = [
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
];
const HEALTH_SERVICE: &str = "/grpc.health.v1.Health/";
/// Flag and length in front of a message.
const PREFIX_BYTES: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("gzip,zstd,identity");

pub(super) type Health = HealthServer<HealthService>;

/// The health service, already right, and the future that keeps it so. At `drain` it ends the
/// streams of those who watch, which would keep their connections open otherwise.
pub(super) async fn health(
    mut admission: watch::Receiver<Admission>,
    drain: CancellationToken,
) -> (Health, impl Future<Output = ()> + Send) {
    let mut reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let now = *admission.borrow_and_update();
    report(&reporter, now).await;
    let follow = async move {
        while let Some(Ok(())) = drain.run_until_cancelled(admission.changed()).await {
            let now = *admission.borrow_and_update();
            report(&reporter, now).await;
        }
        drain.cancelled().await;
        report(&reporter, Admission::Leaving).await;
        for service in SERVICES {
            reporter.clear_service_status(service).await;
        }
    };
    (health, follow)
}

async fn report(reporter: &HealthReporter, admission: Admission) {
    let status = match admission {
        Admission::Serving => ServingStatus::Serving,
        Admission::Joining | Admission::Leaving => ServingStatus::NotServing,
    };
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Answers requests on a gRPC port.
pub(super) fn service<E: Export>(intake: Intake<E>, health: Health) -> impl Respond<Body> {
    hyper::service::service_fn(move |request: Request<Incoming>| {
        let (intake, mut health) = (intake.clone(), health.clone());
        async move {
            if request.uri().path().starts_with(HEALTH_SERVICE) {
                return health.call(request).await;
            }
            Ok::<_, Infallible>(match misdirected(&request) {
                Some(answer) => answer,
                None => export(&intake, request).await,
            })
        }
    })
}

/// The answer to what is no call of the trace service.
fn misdirected<B>(request: &Request<B>) -> Option<Response<Body>> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !is_grpc(content_type) {
        let text = "this port takes OTLP over gRPC (content-type application/grpc); \
                    OTLP over HTTP is on another one, listen.http, by default 4318\n";
        let mut response = Response::new(Body::new(Full::from(text)));
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Some(response);
    }
    if request.method() != Method::POST {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    match request.uri().path() {
        TRACE_EXPORT => None,
        path if OTHER_SIGNALS.contains(&path) => {
            Some(Status::unimplemented("Tracemesh takes traces only").into_http())
        }
        path => {
            let text = format!("there is only {TRACE_EXPORT}, and no {path}");
            let Failure { code, message, .. } = Failure::new(Code::Unimplemented, text);
            Some(Status::new(code, message).into_http())
        }
    }
}

/// `application/grpc`, with `+proto` or parameters, but not `grpc-web` or `grpc+json`.
fn is_grpc(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii();
    media_type.eq_ignore_ascii_case(b"application/grpc")
        || media_type.eq_ignore_ascii_case(b"application/grpc+proto")
}

pub(super) async fn export<E, B>(intake: &Intake<E>, request: Request<B>) -> Response<Body>
where
    E: Export,
    B: HttpBody<Data = Bytes> + Unpin,
{
    let Some(encoding) = encoding(request.headers()) else {
        let mut response = Status::unimplemented("use gzip, zstd or identity").into_http();
        response.headers_mut().insert("grpc-accept-encoding", ACCEPTED_ENCODINGS);
        return response;
    };
    let answer = async {
        let charge = intake.admit(request.headers())?;
        let read = read(intake, charge, request.into_body(), encoding);
        let received = intake.read(read).await?;
        intake.in_time(intake.take(received)).await
    };
    let answer = answer.await;
    intake.answered(Protocol::Grpc, &answer);
    let mut response = match answer {
        Ok(accepted) => accepted_response(&accepted),
        Err(refusal) => {
            let failure = Failure::from(&refusal);
            let details = failure.protobuf();
            Status::with_details(failure.code, failure.message, details).into_http()
        }
    };
    response.headers_mut().insert("grpc-accept-encoding", ACCEPTED_ENCODINGS);
    response
}

fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    match headers.get("grpc-encoding") {
        Some(name) => Encoding::parse(name.as_bytes()),
        None => Some(Encoding::Identity),
    }
}

/// Reads the one message of a unary call.
async fn read<E, B>(
    intake: &Intake<E>,
    charge: Charge,
    mut body: B,
    encoding: Encoding,
) -> Result<Received, Refusal>
where
    E: Export,
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
    let mut data = Bytes::new();
    while prefix.len() < PREFIX_BYTES {
        let Some(next) = intake.next(&mut body).await? else {
            return Err(Refusal::Malformed("the call ended before its message".into()));
        };
        data = next;
        let missing = PREFIX_BYTES - prefix.len();
        prefix.extend_from_slice(&data.split_to(missing.min(data.len())));
    }
    let compressed = match prefix[0] {
        0 => Encoding::Identity,
        1 => encoding,
        flag => {
            return Err(Refusal::Malformed(format!("unknown compression flag {flag}")));
        }
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    let mut collector = intake.collector(compressed, charge);
    collector.expect(length)?;
    let mut missing = length;
    loop {
        missing = missing.checked_sub(data.len()).ok_or_else(|| {
            Refusal::Malformed(format!("more follows after the message of {length} bytes"))
        })?;
        collector.push(data)?;
        match intake.next(&mut body).await? {
            Some(next) => data = next,
            None => break,
        }
    }
    if missing > 0 {
        let text = format!("{missing} of the {length} bytes of the message are missing");
        return Err(Refusal::Malformed(text));
    }
    collector.finish().await
}

fn accepted_response(accepted: &Accepted) -> Response<Body> {
    let message = answer::accepted_protobuf(accepted);
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message);
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from(Code::Ok as i32));
    let body = Full::new(frame.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}
