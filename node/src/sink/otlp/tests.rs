//! The OTLP sink against a server that answers by script.

mod over_http;
mod over_tls;
mod several;

use super::over_grpc::RawCodec;
use super::*;
use crate::sink::reply::submit;
use crate::sink::testing::{attempt, decode, resource, scope, span_ids, spans, trace};
use crate::sink::{Compression, Metrics, Protocol, Sink, queue};
use crate::spans::TraceId;
use crate::tls::ClientFiles;
use futures_util::future::join_all;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prometheus_client::registry::Registry;
use prost::Message;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::slice;
use std::time::SystemTime;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Response, Status};

/// What the server does with a request.
enum Say {
    Yes,
    Rejected(i64),
    No(Status),
    /// An HTTP status without a gRPC one.
    Http(u16),
    Nothing,
}

/// From a decoded request and how many came before it, to the answer.
type Script = fn(&BTreeSet<u8>, usize) -> Say;

struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Bytes>>>,
    /// `grpc-encoding` and `x-key` of each call.
    headers: Arc<Mutex<Vec<(String, String)>>>,
    arrived: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Server {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script, true)
    }

    fn on(listener: TcpListener, script: Script, compressed: bool) -> Self {
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<Bytes>>> = Arc::default();
        let headers: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let arrived = Arc::new(Notify::new());
        let (seen, seen_headers, note) = (requests.clone(), headers.clone(), arrived.clone());
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let header = |name: &str| {
                let value = request.headers().get(name);
                value.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
            };
            seen_headers.lock().unwrap().push((header("grpc-encoding"), header("x-key")));
            let (seen, note) = (seen.clone(), note.clone());
            let answer = answer(request, script, compressed, seen, note);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut task = JoinSet::new();
        task.spawn(async move {
            let server = tonic::transport::Server::builder();
            server.serve_with_incoming(service, TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, requests, headers, arrived, _task: task }
    }

    fn requests(&self) -> Vec<Bytes> {
        self.requests.lock().unwrap().clone()
    }
}

async fn answer(
    request: http::Request<Body>,
    script: Script,
    compressed: bool,
    seen: Arc<Mutex<Vec<Bytes>>>,
    arrived: Arc<Notify>,
) -> http::Response<Body> {
    let http: Arc<Mutex<Option<u16>>> = Arc::default();
    let code = http.clone();
    let export = tower::service_fn(move |request: Request<Bytes>| {
        let (seen, arrived, code) = (seen.clone(), arrived.clone(), code.clone());
        async move {
            let request = request.into_inner();
            let count = {
                let mut seen = seen.lock().unwrap();
                seen.push(request.clone());
                seen.len() - 1
            };
            arrived.notify_one();
            let traces = span_ids(&[request]).iter().map(|id| id.2[0]).collect();
            let partial = |rejected_spans| ExportTracePartialSuccess {
                rejected_spans,
                error_message: "odd".into(),
            };
            let partial_success = match script(&traces, count) {
                Say::Yes => None,
                Say::Rejected(count) => Some(partial(count)),
                Say::No(status) => return Err(status),
                Say::Http(status) => {
                    *code.lock().unwrap() = Some(status);
                    None
                }
                Say::Nothing => std::future::pending().await,
            };
            let response = ExportTraceServiceResponse { partial_success };
            Ok(Response::new(Bytes::from(response.encode_to_vec())))
        }
    });
    let mut grpc = tonic::server::Grpc::new(RawCodec);
    if compressed {
        grpc = grpc
            .accept_compressed(CompressionEncoding::Zstd)
            .accept_compressed(CompressionEncoding::Gzip);
    }
    let response = grpc.unary(export, request).await;
    match *http.lock().unwrap() {
        Some(code) => http::Response::builder()
            .status(code)
            .header("content-type", "application/grpc")
            .body(Body::empty())
            .unwrap(),
        None => response,
    }
}

/// The wall clock of all sinks.
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

const RETRY_FOR: Duration = Duration::from_secs(300);

fn target(protocol: Protocol, endpoints: &[String]) -> Target {
    let key = (http::HeaderName::from_static("x-key"), http::HeaderValue::from_static("secret"));
    Target {
        endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        protocol,
        compression: Compression::Zstd,
        headers: vec![key],
        tls: ClientFiles::default(),
    }
}

/// A sink under test.
struct Rig {
    sink: Arc<dyn Sink>,
    metrics: SinkMetrics,
    letters: PathBuf,
    stop: CancellationToken,
    worker: JoinSet<()>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new(address: SocketAddr) -> Self {
        Self::with(address, |_| {})
    }

    fn with(address: SocketAddr, adjust: impl FnOnce(&mut Exporter)) -> Self {
        Self::of(&target(Protocol::Grpc, &[format!("http://{address}")]), adjust)
    }

    fn of(target: &Target, adjust: impl FnOnce(&mut Exporter)) -> Self {
        Self::with_clock(target, Arc::new(|| NOW), adjust)
    }

    fn with_clock(
        target: &Target,
        clock: crate::environment::WallClock,
        adjust: impl FnOnce(&mut Exporter),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let letters = directory.path().join("dead-letters/otlp.jsonl");
        let all = Metrics::register(&mut Registry::default());
        let metrics = all.sink("otlp");
        let (client, files) = Client::new("otlp", target, &clock).unwrap();
        let dead_letters = DeadLetters::new(letters.clone(), 1 << 20, "otlp".into(), clock, &all);
        let mut worker = Worker::new(client, 1 << 20, RETRY_FOR, metrics.clone(), dead_letters);
        adjust(Arc::get_mut(&mut worker.exporter).unwrap());
        let (sink, inbox) = queue::queue("otlp".into(), 1 << 30, metrics.queue_bytes.clone());
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(worker.run(inbox, stop.clone()));
        if let Some(files) = files {
            tasks.spawn(files.keep(stop.clone()));
        }
        Self { sink, metrics, letters, stop, worker: tasks, _directory: directory }
    }

    async fn export(&self, attempts: &[Arc<Attempt>]) -> Vec<Outcome> {
        let outcomes = attempts.iter().map(|a| submit(&*self.sink, a.clone()));
        let outcomes: Vec<_> = outcomes.collect();
        join_all(outcomes).await
    }

    /// Exports attempts again and again, until the outcome is as wanted.
    async fn wait_for(&self, attempts: &[Arc<Attempt>], wanted: Outcome) {
        let wait = async { while self.export(attempts).await != slice::from_ref(&wanted) {} };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it comes to that");
    }

    async fn export_one(&self) -> Outcome {
        self.export(&[trace(1, 2)]).await.remove(0)
    }

    /// Trace ids of the dead letters.
    fn dead(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.letters).unwrap_or_default();
        let id = |line: &str| {
            let letter: serde_json::Value = serde_json::from_str(line).unwrap();
            letter["trace_id"].as_str().unwrap().to_owned()
        };
        text.lines().map(id).collect()
    }
}

fn traces(count: u8) -> Vec<Arc<Attempt>> {
    (1..=count).map(|n| trace(n, 2)).collect()
}

fn encoded(attempts: &[Arc<Attempt>]) -> Vec<Bytes> {
    request::encode(attempts, usize::MAX)
}

const POISON: u8 = 7;

/// RESOURCE_EXHAUSTED that asks for 7 s.
fn full() -> Status {
    let details = answer::tests::details(7, 0);
    Status::with_details(Code::ResourceExhausted, "full", details.into())
}

fn again_in_7_seconds() -> Outcome {
    Outcome::Again { after: Some(Duration::from_secs(7)) }
}

#[tokio::test]
async fn busy_sink_sends_many_traces_a_request_compressed_with_its_headers() {
    let server = Server::start(|_, _| Say::Yes).await;
    let rig = Rig::new(server.address);
    let attempts = traces(200);
    let outcomes = rig.export(&attempts).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Acknowledged));
    let requests = server.requests();
    assert_eq!(span_ids(&requests), span_ids(&encoded(&attempts)));
    assert!(requests.len() <= 200_usize.div_ceil(TRACES_MIN), "{} requests", requests.len());
    let headers = server.headers.lock().unwrap().clone();
    assert!(headers.iter().all(|h| *h == ("zstd".into(), "secret".into())), "{headers:?}");
    assert_eq!((rig.metrics.spans.get(), rig.metrics.up.get()), (400, 1));
    assert_eq!(rig.metrics.queue_bytes.get(), 0);
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn each_status_has_the_outcome_that_otlp_gives_it() {
    // Every code has a sink of its own, as one that says later keeps the others waiting.
    let server = Server::start(|traces, _| {
        let code = *traces.first().unwrap();
        Say::No(Status::new(Code::from_i32(code.into()), "no"))
    })
    .await;
    let rigs: Vec<_> = (1..=16u8).map(|code| (code, Rig::new(server.address))).collect();
    let outcomes = join_all(rigs.iter().map(async |(code, rig)| {
        let outcome = rig.export(&[trace(*code, 1)]).await.remove(0);
        (*code, outcome, rig.dead().len(), rig.metrics.up.get())
    }));
    for (code, outcome, dead, up) in outcomes.await {
        if [1, 4, 10, 11, 14, 15].contains(&code) {
            assert_eq!((outcome, dead, up), (Outcome::AGAIN, 0, 0), "code {code}");
        } else {
            let up_then = i64::from(![12, 16].contains(&code));
            assert_eq!((outcome, dead, up), (Outcome::Refused, 1, up_then), "code {code}");
        }
    }
}

#[tokio::test]
async fn wait_that_a_server_asks_for_is_passed_on() {
    let server = Server::start(|_, _| Say::No(full())).await;
    let rig = Rig::new(server.address);
    assert_eq!(rig.export_one().await, again_in_7_seconds());
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn partial_success_is_not_sent_again_and_is_counted() {
    let server = Server::start(|_, _| Say::Rejected(3)).await;
    let rig = Rig::new(server.address);
    let outcomes = rig.export(&traces(5)).await;
    assert_eq!(outcomes, vec![Outcome::Acknowledged; 5]);
    assert_eq!(server.requests().len(), 1);
    assert_eq!((rig.metrics.spans.get(), rig.metrics.spans_rejected.get()), (7, 3));
}

#[tokio::test]
async fn warning_without_rejected_spans_is_a_success() {
    let server = Server::start(|_, _| Say::Rejected(0)).await;
    let rig = Rig::new(server.address);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!((rig.metrics.spans.get(), rig.metrics.spans_rejected.get()), (2, 0));
}

#[tokio::test]
async fn silent_server_costs_an_attempt_its_time_and_no_more() {
    let server = Server::start(|_, _| Say::Nothing).await;
    let rig = Rig::new(server.address);
    let outcome = submit(&*rig.sink, trace(1, 1));
    server.arrived.notified().await;
    tokio::time::pause();
    let start = Instant::now();
    assert_eq!(outcome.await, Outcome::Unanswered);
    assert!(start.elapsed() <= ATTEMPT_MAX);
    assert_eq!(rig.metrics.up.get(), 0);
}

#[tokio::test]
async fn connection_that_dies_in_mid_request_leaves_it_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(listener.local_addr().unwrap());
    let outcome = submit(&*rig.sink, trace(1, 100));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut some = [0; 200];
    stream.read_exact(&mut some).await.unwrap();
    drop((stream, listener));
    assert_eq!(outcome.await, Outcome::Unanswered);
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn answer_that_is_not_the_servers_own_leaves_it_unknown() {
    let server = Server::start(|traces, _| match traces.first() {
        Some(1) => Say::Http(200),
        Some(2) => Say::Http(404),
        Some(3) => Say::Http(503),
        _ => Say::Http(400),
    })
    .await;
    let rigs: Vec<_> = (1..=4u8).map(|n| (n, Rig::new(server.address))).collect();
    let outcomes = join_all(rigs.iter().map(async |(n, rig)| {
        let outcome = rig.export(&[trace(*n, 1)]).await.remove(0);
        (*n, outcome, rig.dead().len())
    }));
    for (n, outcome, dead) in outcomes.await {
        assert_eq!((outcome, dead), (Outcome::Unanswered, 0), "trace {n}");
    }
}

#[tokio::test]
async fn server_that_starts_late_is_found() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let rig = Rig::new(socket.local_addr().unwrap());
    for _ in 0..2 {
        assert_eq!(rig.export_one().await, Outcome::AGAIN);
        assert_eq!(rig.metrics.up.get(), 0);
    }
    let _server = Server::on(socket.listen(16).unwrap(), |_, _| Say::Yes, true);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!(rig.metrics.up.get(), 1);
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn giant_trace_is_split_over_requests_and_acknowledged_once_all_are() {
    let server = Server::start(|_, count| match count {
        2 => Say::No(Status::unavailable("not now")),
        _ => Say::Yes,
    })
    .await;
    let rig = Rig::with(server.address, |exporter| exporter.request_bytes_max = 10_000);
    let scopes: Vec<_> = (0..2).map(|n| scope(&resource(n), n)).collect();
    let chunks =
        scopes.iter().zip([1, 1001]).map(|(s, first)| (s.clone(), spans(1, first, 300, 50)));
    let giant = attempt(1, chunks.collect());
    assert_eq!(rig.export(slice::from_ref(&giant)).await, [Outcome::AGAIN]);
    assert_eq!((server.requests().len(), rig.metrics.spans.get()), (3, 0));
    assert_eq!(rig.export(slice::from_ref(&giant)).await, [Outcome::Acknowledged]);
    let mut requests = server.requests();
    let refused = requests.remove(2);
    assert_eq!(requests[2], refused, "goes on where it stopped");
    assert!(requests.len() > 5 && requests.iter().all(|request| request.len() <= 10_000));
    assert_eq!(span_ids(&requests), span_ids(&encoded(&[giant])), "each once");
    assert_eq!(rig.metrics.spans.get(), 600);
}

#[tokio::test]
async fn poisonous_trace_is_found_in_its_request_and_costs_no_other() {
    let server = Server::start(|traces, _| match traces.contains(&POISON) {
        true => Say::No(Status::invalid_argument("poison")),
        false => Say::Yes,
    })
    .await;
    let rig = Rig::new(server.address);
    let outcomes = rig.export(&traces(70)).await;
    for (n, outcome) in (1..).zip(outcomes) {
        let wanted = if n == POISON { Outcome::Refused } else { Outcome::Acknowledged };
        assert_eq!(outcome, wanted, "trace {n}");
    }
    assert_eq!(rig.dead(), [TraceId([POISON; 16]).to_string()]);
    let requests = server.requests();
    let taken: Vec<_> = requests
        .iter()
        .filter(|request| span_ids(&[(*request).clone()]).iter().all(|id| id.2[0] != POISON))
        .cloned()
        .collect();
    let others: Vec<_> = traces(70).into_iter().filter(|a| a.trace_id.0[0] != POISON).collect();
    assert_eq!(span_ids(&taken), span_ids(&encoded(&others)), "each once");
    assert!(requests.len() <= 1 + 2 * 7, "{} requests to find it", requests.len());
    assert_eq!(rig.metrics.spans.get(), 138);
}

#[tokio::test]
async fn server_that_bars_a_sink_is_asked_once_for_many_traces() {
    let server = Server::start(|traces, _| match traces.contains(&POISON) {
        true => Say::No(Status::unauthenticated("the token has expired")),
        false => Say::Yes,
    })
    .await;
    let rig = Rig::new(server.address);
    assert_eq!(rig.export(&traces(70)).await, vec![Outcome::Refused; 70]);
    assert_eq!((server.requests().len(), rig.dead().len()), (1, 70));
    assert_eq!(rig.metrics.up.get(), 0);
    assert!(fs::read_to_string(&rig.letters).unwrap().contains("the token has expired"));
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!(rig.metrics.up.get(), 1);
}

#[tokio::test]
async fn trouble_while_looking_for_poison_leaves_the_rest_for_later() {
    let server = Server::start(|_, count| match count {
        0 | 2 => Say::No(Status::invalid_argument("poison")),
        1 => Say::Yes,
        _ => Say::No(full()),
    })
    .await;
    let rig = Rig::new(server.address);
    let outcomes = rig.export(&traces(8)).await;
    assert_eq!(outcomes[..4], vec![Outcome::Acknowledged; 4]);
    assert_eq!(outcomes[4..], vec![again_in_7_seconds(); 4]);
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn panic_while_encoding_costs_that_trace_only() {
    let server = Server::start(|_, _| Say::Yes).await;
    let rig = Rig::with(server.address, |exporter| {
        exporter.encode = |attempts, bytes_max, _| {
            assert!(attempts.iter().all(|a| a.trace_id.0[0] != POISON), "planted");
            request::encode(attempts, bytes_max)
        }
    });
    let outcomes = rig.export(&traces(70)).await;
    let refused: Vec<_> = (1..=70u8)
        .zip(&outcomes)
        .filter(|(_, outcome)| **outcome != Outcome::Acknowledged)
        .map(|(n, outcome)| (n, *outcome))
        .collect();
    assert_eq!(refused, [(POISON, Outcome::Refused)]);
    assert_eq!(rig.dead(), [TraceId([POISON; 16]).to_string()]);
    assert!(fs::read_to_string(&rig.letters).unwrap().contains("planted"));
    assert_eq!(rig.export_one().await, Outcome::Acknowledged, "the sink lives on");
}

#[tokio::test]
async fn refused_trace_stays_held_when_its_letter_cannot_be_written() {
    let server = Server::start(|_, _| Say::No(Status::invalid_argument("poison"))).await;
    let rig = Rig::new(server.address);
    fs::write(rig.letters.parent().unwrap(), "a file where the directory should be").unwrap();
    assert_eq!(rig.export_one().await, Outcome::AGAIN);
}

#[tokio::test]
async fn server_without_our_compression_gets_plain_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::on(listener, |_, _| Say::Yes, false);
    let rig = Rig::new(server.address);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    let headers = server.headers.lock().unwrap().clone();
    let encodings: Vec<_> = headers.iter().map(|(encoding, _)| encoding.as_str()).collect();
    assert_eq!(encodings, ["zstd", "", ""]);
    assert!(decode(&server.requests()[0]).resource_spans.len() == 1 && rig.dead().is_empty());
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_gives_back_the_rest() {
    let server = Server::start(|_, count| match count {
        0 => Say::Yes,
        _ => Say::Nothing,
    })
    .await;
    let mut rig = Rig::new(server.address);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    server.arrived.notified().await;
    let in_flight = submit(&*rig.sink, trace(2, 1));
    server.arrived.notified().await;
    let waiting = submit(&*rig.sink, trace(3, 1));
    rig.stop.cancel();
    assert_eq!(waiting.await, Outcome::AGAIN);
    assert_eq!(submit(&*rig.sink, trace(4, 1)).await, Outcome::AGAIN);
    tokio::time::pause();
    assert_eq!(in_flight.await, Outcome::Unanswered);
    rig.worker.join_next().await.unwrap().unwrap();
    assert_eq!(rig.metrics.queue_bytes.get(), 0);
}
