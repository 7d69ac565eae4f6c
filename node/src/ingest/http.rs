//! OTLP over HTTP: protobuf and JSON.
//!
//! The invariant: the answer has the request's content type, for whatever fails a
//! `google.rpc.Status`; where that type is neither, plain text. What is no export request is told
//! what would be. Answers from [`COMPRESSED_BYTES_MIN`] on are compressed for clients that take
//! that. A refused request is read to its end, and forgotten, for some seconds: an HTTP/1 client
//! that is still sending would otherwise see a broken connection, and send again for ever what can
//! never be accepted.

use super::answer::{self, Failure};
use super::collect::Encoding;
use super::grpc::TRACE_EXPORT;
use super::intake::{Charge, Intake, Received};
use super::{Accepted, Export, Refusal};
use crate::listen::Respond;
use crate::metrics::Protocol;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tonic::Code;
use tower::util::option_layer;
use tower::{Layer, service_fn};
use tower_http::CompressionLevel;
use tower_http::compression::predicate::SizeAbove;
use tower_http::compression::{CompressionBody, CompressionLayer};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long a refused client may go on sending before it gets its answer: 64 MiB at 0.1 Gbit/s.
const FORGET_MAX: Duration = Duration::from_secs(5);
/// JSON up to this size is converted on the spot, in some milliseconds.
const JSON_INLINE_MAX: usize = 1 << 20;
/// How long browsers may remember what a web page may send; none remembers longer than two hours.
const CORS_AGE_MAX: Duration = Duration::from_secs(3600);
/// Below this an answer is longer compressed than as it is: a message shrinks to two thirds, and
/// the frame of gzip takes 18 bytes, the header for it and the chunks of HTTP/1 some 45.
const COMPRESSED_BYTES_MIN: u16 = 256;
const TRACES: &str = "/v1/traces";
const OTHER_SIGNALS: [&str; 3] = ["/v1/metrics", "/v1/logs", "/v1development/profiles"];
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// How a request is written, and how it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

/// How to read an export request.
#[derive(Clone, Copy, Debug)]
struct Head {
    format: Format,
    encoding: Encoding,
}

type Answer = Response<Full<Bytes>>;

/// Answers requests on an OTLP HTTP port.
pub(super) fn service<E: Export>(
    intake: Intake<E>,
    cors_origins: &[HeaderValue],
) -> impl Respond<CompressionBody<Full<Bytes>>> {
    let respond = service_fn(move |request: Request<Incoming>| {
        let intake = intake.clone();
        async move { Ok::<_, Infallible>(respond(&intake, request).await) }
    });
    let compress = CompressionLayer::new().quality(CompressionLevel::Fastest);
    let respond = compress.compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN)).layer(respond);
    TowerToHyperService::new(option_layer(cors(cors_origins)).layer(respond))
}

/// What web pages of these origins may do, if there are any: browsers ask with OPTIONS before they
/// send, and without a token.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origins = match origins {
        [] => return None,
        _ if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        _ => AllowOrigin::list(origins.iter().cloned()),
    };
    let layer = CorsLayer::new().allow_origin(origins).allow_methods([Method::POST]);
    let layer = layer.allow_headers(AllowHeaders::mirror_request());
    Some(layer.expose_headers([RETRY_AFTER]).max_age(CORS_AGE_MAX))
}

pub(super) async fn respond<E, B>(intake: &Intake<E>, request: Request<B>) -> Answer
where
    E: Export,
    B: Body<Data = Bytes> + Unpin,
{
    let (parts, mut body) = request.into_parts();
    let response = match head(&parts.method, parts.uri.path(), &parts.headers) {
        Ok(head) => {
            let answer = export(intake, head, &parts.headers, &mut body).await;
            intake.answered(Protocol::Http, &answer);
            response(head.format, answer)
        }
        Err(misdirected) => *misdirected,
    };
    // Who asked first, or speaks HTTP/2, reads the answer before it has sent everything.
    let asked_first = parts.headers.contains_key(EXPECT);
    if !response.status().is_success() && !asked_first && parts.version <= Version::HTTP_11 {
        forget(intake, &mut body).await;
    }
    response
}

/// Reads what is left of a refused request, and keeps nothing of it.
async fn forget<E, B>(intake: &Intake<E>, body: &mut B)
where
    E: Export,
    B: Body<Data = Bytes> + Unpin,
{
    let rest = async { while let Ok(Some(_)) = intake.next(body).await {} };
    // Whatever comes of it, the answer stands.
    let _: Result<(), Elapsed> = timeout(FORGET_MAX, rest).await;
}

/// Checks everything that can be said before the body is read.
fn head(method: &Method, path: &str, headers: &HeaderMap) -> Result<Head, Box<Answer>> {
    let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    let format = format(value(CONTENT_TYPE));
    let told =
        |status, code, text: String| Box::new(failed(format, status, &Failure::new(code, text)));
    if OTHER_SIGNALS.contains(&path) {
        let text = format!("Tracemesh takes traces only: POST {TRACES}");
        return Err(told(StatusCode::NOT_FOUND, Code::Unimplemented, text));
    }
    if path != TRACES && path != TRACE_EXPORT {
        let text = format!("nothing here; there is POST {TRACES} and POST {TRACE_EXPORT}");
        return Err(told(StatusCode::NOT_FOUND, Code::Unimplemented, text));
    }
    if method != Method::POST {
        let text = format!("POST spans to {path}");
        let mut response = told(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, text);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Err(response);
    }
    let Some(format) = format else {
        let text = "content-type must be application/x-protobuf or application/json; \
                    OTLP over gRPC is on another port, listen.grpc, by default 4317";
        return Err(told(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, text.into()));
    };
    let Some(encoding) = Encoding::parse(value(CONTENT_ENCODING)) else {
        let text = format!("content-encoding must be one of {}", Encoding::ACCEPTED);
        let mut response = told(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, text);
        let accepted = HeaderValue::from_static(Encoding::ACCEPTED);
        response.headers_mut().insert(ACCEPT_ENCODING, accepted);
        return Err(response);
    };
    Ok(Head { format, encoding })
}

fn format(content_type: &[u8]) -> Option<Format> {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    let is = |name: &[u8]| media_type.trim_ascii().eq_ignore_ascii_case(name);
    if is(b"application/x-protobuf") || is(b"application/protobuf") {
        Some(Format::Protobuf)
    } else if is(b"application/json") {
        Some(Format::Json)
    } else {
        None
    }
}

async fn export<E, B>(
    intake: &Intake<E>,
    head: Head,
    headers: &HeaderMap,
    body: &mut B,
) -> Result<Accepted, Refusal>
where
    E: Export,
    B: Body<Data = Bytes> + Unpin,
{
    let charge = intake.admit(headers)?;
    let received = intake.read(read(intake, charge, body, head.encoding)).await?;
    let answering = async {
        let received = match head.format {
            Format::Protobuf => received,
            Format::Json => from_json(received).await?,
        };
        intake.take(received).await
    };
    intake.in_time(answering).await
}

async fn read<E, B>(
    intake: &Intake<E>,
    charge: Charge,
    body: &mut B,
    encoding: Encoding,
) -> Result<Received, Refusal>
where
    E: Export,
    B: Body<Data = Bytes> + Unpin,
{
    let mut collector = intake.collector(encoding, charge);
    if let Some(length) = body.size_hint().exact() {
        collector.expect(usize::try_from(length).unwrap_or(usize::MAX))?;
    }
    while let Some(data) = intake.next(body).await? {
        collector.push(data)?;
    }
    collector.finish().await
}

/// The same request as protobuf, charged besides its JSON.
async fn from_json(json: Received) -> Result<Received, Refusal> {
    if json.bytes.is_empty() {
        return Ok(json);
    }
    if json.bytes.len() <= JSON_INLINE_MAX {
        return convert(json);
    }
    json.charge.in_flight().aside(|| convert(json)).await
}

fn convert(json: Received) -> Result<Received, Refusal> {
    let Received { bytes, mut charge } = json;
    let converted = crate::json::from_json(&bytes);
    let bytes = converted.map_err(|error| Refusal::Malformed(error.to_string()))?;
    charge.add(bytes.len())?;
    Ok(Received { bytes: bytes.into(), charge })
}

fn response(format: Format, answer: Result<Accepted, Refusal>) -> Answer {
    let refusal = match answer {
        Ok(accepted) => {
            let (content_type, body) = match format {
                Format::Protobuf => (PROTOBUF, answer::accepted_protobuf(&accepted).into()),
                Format::Json => (JSON, answer::accepted_json(&accepted).into()),
            };
            return written(StatusCode::OK, content_type, body);
        }
        Err(refusal) => refusal,
    };
    let failure = Failure::from(&refusal);
    let failed = |status| failed(Some(format), status, &failure);
    match refusal {
        Refusal::Malformed(_) => failed(StatusCode::BAD_REQUEST),
        Refusal::TooLarge(_) => failed(StatusCode::PAYLOAD_TOO_LARGE),
        Refusal::Unauthenticated => {
            let mut response = failed(StatusCode::UNAUTHORIZED);
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        Refusal::Later { .. } => {
            let mut response = failed(StatusCode::SERVICE_UNAVAILABLE);
            let seconds = failure.retry_seconds.map(HeaderValue::from);
            response.headers_mut().extend(seconds.map(|seconds| (RETRY_AFTER, seconds)));
            response
        }
    }
}

/// Tells of a failure in the format of the request, as far as it is known.
fn failed(format: Option<Format>, status: StatusCode, failure: &Failure) -> Answer {
    match format {
        Some(Format::Protobuf) => written(status, PROTOBUF, failure.protobuf()),
        Some(Format::Json) => written(status, JSON, failure.json().into()),
        None => written(status, TEXT, format!("{}\n", failure.message).into()),
    }
}

fn written(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
