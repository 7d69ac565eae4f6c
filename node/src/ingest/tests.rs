//! Both servers on real loopback ports, with a stand-in for the router behind them.

mod answers;
mod connections;
mod grpc;
mod http;
mod tls;
mod tokens;

use super::answer::{RetryInfo, RpcStatus};
use super::*;
use crate::metrics::{Metrics, counters, registry};
use ::http::header::AsHeaderName;
use ::http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, RETRY_AFTER};
use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prometheus_client::registry::Registry;
use prost::Message;
use serde_json::json;
use std::io::Write;
use std::sync::Mutex;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Far more than anything here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(30);
const LIMIT: usize = 1 << 20;
const LONG_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Free ports of loopback, and patience with requests that a test holds open.
fn settings() -> Settings {
    Settings { request_bytes_max: LIMIT, answer_max: PATIENCE, ..Settings::default() }
}

/// The time by which certificates of clients are checked; those of tests are valid far around it.
fn clock() -> WallClock {
    Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

/// Waits, without sleeping, for what is on its way.
async fn wait_until(mut happened: impl FnMut() -> bool) {
    let happens = async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, happens).await.expect("it happens in time");
}

/// In the place of the router.
#[derive(Clone)]
struct Fake {
    received: Arc<Mutex<Vec<Bytes>>>,
    answer: Arc<Mutex<Result<Accepted, Refusal>>>,
    /// Exports wait while this is false.
    open: watch::Sender<bool>,
}

impl Export for Fake {
    async fn export(&self, request: Bytes) -> Result<Accepted, Refusal> {
        assert_ne!(&request[..], b"panic", "planted");
        self.received.lock().unwrap().push(request);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        self.answer.lock().unwrap().clone()
    }
}

struct Server {
    fake: Fake,
    grpc: SocketAddr,
    http: SocketAddr,
    grpcs: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    admission: watch::Sender<Admission>,
    in_flight: Arc<InFlight>,
    registry: Registry,
    drain: CancellationToken,
    task: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        Self::with(settings()).await
    }

    async fn with(settings: Settings) -> Self {
        let in_flight = InFlight::new(settings.in_flight_max);
        let listeners = Listeners::bind(settings, &clock()).await.unwrap();
        let (grpcs, https) = (listeners.grpc_addresses(), listeners.http_addresses());
        let fake = Fake {
            received: Arc::default(),
            answer: Arc::new(Mutex::new(Ok(Accepted::default()))),
            open: watch::Sender::new(true),
        };
        let (admission, drain) = (watch::Sender::new(Admission::Serving), CancellationToken::new());
        let mut registry = registry();
        let metrics = Metrics::register(&mut registry).ingest;
        let mut task = JoinSet::new();
        task.spawn(listeners.serve(
            fake.clone(),
            admission.subscribe(),
            in_flight.clone(),
            metrics,
            drain.clone(),
        ));
        let (grpc, http) = (grpcs[0], https[0]);
        Self { fake, grpc, http, grpcs, https, admission, in_flight, registry, drain, task }
    }

    fn answer(&self, answer: Result<Accepted, Refusal>) {
        *self.fake.answer.lock().unwrap() = answer;
    }

    fn received(&self) -> Vec<Bytes> {
        self.fake.received.lock().unwrap().clone()
    }

    /// Waits until the stand-in has seen so many requests.
    async fn wait_received(&self, count: usize) {
        wait_until(|| self.received().len() >= count).await;
    }

    fn counter(&self, name: &str) -> u64 {
        counters(&self.registry).unwrap().get(name).copied().unwrap_or(0)
    }

    async fn post(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.http(Method::POST, "/v1/traces", headers, Full::new(body.into())).await
    }

    async fn http<B>(&self, method: Method, path: &str, headers: &[(&str, &str)], body: B) -> Reply
    where
        B: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync>,
        B: Send + Unpin + 'static,
    {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let uri = format!("http://{}{path}", self.http);
        let request = request.uri(uri).body(body).unwrap();
        Reply::read(timeout(PATIENCE, client.request(request)).await.unwrap().unwrap()).await
    }

    /// A unary call, framed by hand.
    async fn call(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let mut request = Request::builder().method(Method::POST);
        request = request.header(CONTENT_TYPE, "application/grpc").header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let uri = format!("http://{}{path}", self.grpc);
        let request = request.uri(uri).body(Full::new(body.into())).unwrap();
        Reply::read(timeout(PATIENCE, client.request(request)).await.unwrap().unwrap()).await
    }

    async fn export(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.call(LONG_PATH, headers, body).await
    }
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    /// With the trailers.
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    async fn read(response: Response<hyper::body::Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let mut headers = parts.headers;
        let collected = timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
        headers.extend(collected.trailers().cloned().unwrap_or_default());
        Self { status: parts.status, headers, body: collected.to_bytes() }
    }

    fn header(&self, name: impl AsHeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn grpc_code(&self) -> Code {
        assert_eq!(self.status, StatusCode::OK);
        Code::from_bytes(self.header("grpc-status").as_bytes())
    }

    fn grpc_message(&self) -> String {
        self.header("grpc-message").replace("%20", " ")
    }

    /// What a failure says, in whatever format.
    fn message(&self) -> String {
        match self.header(CONTENT_TYPE) {
            "application/x-protobuf" => self.rpc_status().message,
            "application/json" => self.json()["message"].as_str().unwrap().to_owned(),
            _ => self.text().to_owned(),
        }
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.header(CONTENT_TYPE), "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn rpc_status(&self) -> RpcStatus {
        assert_eq!(self.header(CONTENT_TYPE), "application/x-protobuf");
        RpcStatus::decode(&self.body[..]).unwrap()
    }
}

fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 0).unwrap()
}

/// Frames that need a window of 32 MiB to be read.
fn zstd_with_large_window(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 0).unwrap();
    encoder.window_log(25).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Something to send that compresses, but not to nothing.
fn message() -> Vec<u8> {
    (0..100_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

fn later(millis: u64) -> Refusal {
    Refusal::Later { why: "try again", after: Duration::from_millis(millis) }
}
