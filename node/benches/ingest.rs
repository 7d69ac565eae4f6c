//! What a span costs from a client's request to the batches of its holders: receiving, in every way
//! that clients have, validating scan and split, in CPU time of the thread that does it; what
//! reading and holding a span costs; and the memory that a held span takes.
//!
//! `cargo bench -p tracemesh --bench ingest`. Linux only: the CPU time is read from `/proc`.
//! Three nodes, each span with an owner and a replica. One nanosecond a span is 0.001 CPU seconds a
//! million spans. Each step takes turns with prost, which decodes the same requests, so that both
//! suffer from whatever else the machine does: the ratio is what can be compared with other
//! machines. The node's code uses the node's allocator and prost the system's, for which the goals
//! were set.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(unsafe_code, reason = "an allocator is unsafe by nature; the work is done elsewhere")]

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prometheus_client::registry::Registry;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracemesh::cut::Cut;
use tracemesh::decide::KeepAll;
use tracemesh::environment::WallClock;
use tracemesh::frame::Origin;
use tracemesh::ingest::{Accepted, Admission, Export, InFlight, Listeners, Refusal, Settings};
use tracemesh::json::to_json;
use tracemesh::metrics::Metrics;
use tracemesh::scan::{Scan, scan, scan_trusted};
use tracemesh::shard::{HoldPart, Limits, Shard, SinkSet, Standing};
use tracemesh::span_view::{SpanView, unframed};
use tracemesh::split::{Targets, split};
use tracemesh_membership::{
    HashKey, Incarnation, MemberState, Placement, View, ViewMember, Weight,
};

#[global_allocator]
static ALLOCATOR: Either = Either;

thread_local! {
    /// Whether this thread measures prost.
    static IS_PROST: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator while prost is measured, the node's otherwise. What prost allocates is
/// freed before that ends.
struct Either;

impl Either {
    fn present(&self) -> &'static dyn GlobalAlloc {
        if IS_PROST.get() { &System } else { &tracemesh::Allocator }
    }
}

// SAFETY: both are allocators, and each frees what is its own.
unsafe impl GlobalAlloc for Either {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's, as below.
        unsafe { self.present().alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { self.present().alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { self.present().dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { self.present().realloc(block, layout, size) }
    }
}

/// Different requests, so that they do not stay in the nearest cache.
const REQUEST_COUNT: usize = 64;
const SPANS_PER_REQUEST: usize = 512;
const SPANS_PER_TRACE: usize = 8;
const NODE_COUNT: usize = 3;
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Requests whose spans are held at once: 250 MB of spans. The allocator has some MB of pages that
/// are not full, however much is held.
const HELD_REQUEST_COUNT: usize = 1000;
const PAGE_BYTES: usize = 4096;
const REQUESTS_IN_FLIGHT: usize = 8;
/// Understood by both ports.
const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const GRPC: &str = "application/grpc";
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
/// CPU seconds that each step is measured for.
const MEASURED_SECONDS: f64 = 1.0;
/// Of so many rounds of a step, one is followed by a round of prost, which is slow.
const PROST_EVERY: u32 = 4;
/// Goals for receiving, validating and splitting together, CPU seconds a million spans, on a
/// machine on which prost takes [`GOAL_PROST`].
const MUST: f64 = 0.35;
const AIM: f64 = 0.29;
const GOAL_PROST: f64 = 1.9;

fn main() {
    let mut dice = StdRng::seed_from_u64(1);
    let frames: Vec<_> = (0..HELD_REQUEST_COUNT).map(|_| Bytes::from(request(&mut dice))).collect();
    // The first time into memory that is new to the process, which has to grow by it.
    let memory = hold(&frames).memory;
    let requests: Vec<Vec<u8>> = (0..REQUEST_COUNT).map(|_| request(&mut dice)).collect();
    let scans: Vec<Scan> = requests.iter().map(|request| scanned(request)).collect();
    let bytes: usize = requests.iter().map(Vec::len).sum();
    println!("{} bytes a span", bytes / (REQUEST_COUNT * SPANS_PER_REQUEST));

    let step = |name: &str, run: &mut dyn FnMut() -> usize| step(name, &requests, run);
    step("validate: scan of a client's request", &mut || {
        requests.iter().map(|request| scanned(request).spans.len()).sum()
    });
    step("scan of a peer's frame", &mut || {
        let scanned = |(frame, scan): (&Vec<u8>, &Scan)| {
            scan_trusted(frame, scan.ids_end).map_or(0, |scan| scan.spans.len())
        };
        requests.iter().zip(&scans).map(scanned).sum()
    });
    step("split: targets and batches for 3 nodes", &mut || {
        requests.iter().zip(&scans).map(|(request, scan)| batches(request, scan)).sum()
    });
    step("validate and split", &mut || {
        requests.iter().map(|request| batches(request, &scanned(request))).sum()
    });
    let receive = |name: &str, content_type, encoding| {
        let bodies = requests.iter().map(|request| body(request, content_type, encoding));
        let mut server = Server::start(content_type, encoding, bodies.collect());
        let name = format!("receive, validate and split: {name}, {encoding}");
        step(&name, &mut || server.receive_all())
    };
    let ratio = receive("gRPC", GRPC, "identity");
    for encoding in ["gzip", "zstd"] {
        receive("gRPC", GRPC, encoding);
    }
    for encoding in ["identity", "gzip", "zstd"] {
        receive("HTTP protobuf", PROTOBUF, encoding);
    }
    for encoding in ["identity", "gzip", "zstd"] {
        receive("HTTP JSON", JSON, encoding);
    }
    step("read ids, times and status of a span", &mut || {
        spans(&requests, &scans).map(|view| view.end_nanos() as usize & 1).sum()
    });
    step("read these and an attribute by key", &mut || {
        let found = |view: &SpanView<'_>| view.attribute("http.response.status_code").is_some();
        spans(&requests, &scans).filter(found).count()
    });
    hold(&frames);
    let nanos = hold(&frames).nanos;
    println!("{nanos:8.1} ns/span  scan of a frame and insert into a shard, in memory used before");
    println!("{memory}");
    println!(
        "receive over gRPC, validate and split: {ratio:.3} of what prost's decoding takes (must \
         {:.3}, aim {:.3}: {MUST} and {AIM} CPU s a million spans where prost takes {GOAL_PROST})",
        MUST / GOAL_PROST,
        AIM / GOAL_PROST,
    );
}

/// OTLP, served by the thread that measures; another one is the client.
struct Server {
    runtime: Runtime,
    go: SyncSender<()>,
    answered: mpsc::Receiver<usize>,
}

/// Validates and splits in place of the router.
#[derive(Clone)]
struct Splitting;

impl Export for Splitting {
    async fn export(&self, request: Bytes) -> Result<Accepted, Refusal> {
        black_box(batches(&request, &scanned(&request)));
        Ok(Accepted::default())
    }
}

impl Server {
    fn start(content_type: &'static str, encoding: &'static str, bodies: Vec<Bytes>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        // Nobody asks for the time where there is no TLS.
        let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH);
        let listeners = Listeners::bind(Settings::default(), &clock);
        let listeners = runtime.block_on(listeners).expect("ports");
        let address = match content_type {
            GRPC => listeners.grpc_addresses()[0],
            _ => listeners.http_addresses()[0],
        };
        let (_, admission) = watch::channel(Admission::Serving);
        runtime.spawn(listeners.serve(
            Splitting,
            admission,
            InFlight::new(256 << 20),
            Metrics::register(&mut Registry::default()).ingest,
            CancellationToken::new(),
        ));
        let (go, going) = sync_channel(1);
        let (answers, answered) = mpsc::channel(1);
        let request = http::Request::post(format!("http://{address}{EXPORT_PATH}"))
            .header("content-type", content_type)
            .header("te", "trailers");
        let request = match content_type {
            GRPC => request.header("grpc-encoding", encoding),
            _ => request.header("content-encoding", encoding),
        };
        let (head, ()) = request.body(()).expect("a valid request").into_parts();
        let http2 = content_type == GRPC;
        std::thread::spawn(move || send_all(&head, http2, &bodies, going, answers));
        Self { runtime, go, answered }
    }

    /// How many requests were answered.
    fn receive_all(&mut self) -> usize {
        self.go.send(()).expect("the client lives as long as the server");
        self.runtime.block_on(self.answered.recv()).expect("the client answers")
    }
}

/// Each time that it is told to, sends every request and says how many were accepted.
fn send_all(
    head: &Parts,
    http2: bool,
    bodies: &[Bytes],
    going: Receiver<()>,
    answers: mpsc::Sender<usize>,
) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
    let send = async |body: &Bytes| {
        let request = http::Request::from_parts(head.clone(), Full::new(body.clone()));
        let (head, body) = client.request(request).await.expect("the server answers").into_parts();
        let body = body.collect().await.expect("the server answers");
        let mut headers = head.headers;
        headers.extend(body.trailers().cloned().unwrap_or_default());
        head.status.is_success() && headers.get("grpc-status").is_none_or(|status| status == "0")
    };
    while going.recv().is_ok() {
        let mut accepted = 0;
        for some in bodies.chunks(REQUESTS_IN_FLIGHT) {
            let sent = runtime.block_on(futures_util::future::join_all(some.iter().map(send)));
            accepted += sent.into_iter().filter(|accepted| *accepted).count();
        }
        assert_eq!(accepted, bodies.len(), "every request is accepted");
        // An error means that the measuring is over.
        let _ = answers.blocking_send(accepted);
    }
}

/// A request as a client of the collector sends it, with the compressors' default levels.
fn body(request: &[u8], content_type: &str, encoding: &str) -> Bytes {
    let text = (content_type == JSON).then(|| to_json(request).expect("a valid request"));
    let plain = text.as_ref().map_or(request, String::as_bytes);
    let encoded = match encoding {
        "gzip" => {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(plain).and_then(|()| gzip.finish())
        }
        "zstd" => zstd::encode_all(plain, 0),
        _ => Ok(plain.to_vec()),
    };
    let encoded = encoded.expect("there is memory");
    if content_type != GRPC {
        return encoded.into();
    }
    let mut message = BytesMut::new();
    message.put_u8(u8::from(encoding != "identity"));
    message.put_u32(encoded.len() as u32);
    message.put_slice(&encoded);
    message.freeze()
}

/// What it costs to hold a span.
struct Holding {
    nanos: f64,
    memory: String,
}

/// Holds spans in a shard, and compares what it says they take with what the process grew by. The
/// spans of a trace come in one frame, but each frame has a dozen scopes, so most chunks have one
/// span: the dear case.
fn hold(frames: &[Bytes]) -> Holding {
    let now = Instant::now();
    let key = HashKey([7; 16]);
    let alone = ViewMember {
        id: "a".into(),
        incarnation: Incarnation::default(),
        weight: Weight::default(),
        zone: "".into(),
        state: MemberState::Active,
    };
    let placement = Arc::new(Placement::new(Arc::new(View::new([alone]))));
    let limits = Limits {
        root_delay: Duration::from_secs(6),
        age_max: Duration::from_secs(30),
        spans_max: u32::MAX,
        bytes_max: usize::MAX,
        remember: Duration::from_secs(600),
        remember_bytes_max: usize::MAX,
        traces_per_turn: 256,
    };
    let sinks = SinkSet::first(1);
    let standing = Standing::alone(placement);
    let mut shard = Shard::new("a".into(), key, limits, sinks, Box::new(KeepAll), standing, now);
    let part = HoldPart {
        origin: Origin::Entry,
        marked: false,
        view_hash: shard.view_hash(),
        due_in: limits.age_max,
    };
    let (mut span_bytes, mut elapsed) = (0, 0.0);
    let before = resident_bytes();
    for frame in frames {
        let start = cpu_seconds();
        let scan = scan_trusted(frame, 0).expect("the generator makes valid requests");
        let cut = Cut::new(frame.clone(), scan, &key);
        let traces: Vec<u32> = (0..cut.slots().len() as u32).collect();
        shard.on_hold(now, &cut, &traces, part);
        elapsed += cpu_seconds() - start;
        span_bytes += cut.scan().spans.iter().map(|span| span.bytes() as usize).sum::<usize>();
    }
    let count = (HELD_REQUEST_COUNT * SPANS_PER_REQUEST) as f64;
    let beyond = |bytes: usize| (bytes as f64 - span_bytes as f64) / count;
    let memory = format!(
        "memory of a held span beyond its {:.0} bytes: {:.0} by the process, {:.0} as counted \
         (must 100, aim 60)",
        span_bytes as f64 / count,
        beyond(resident_bytes() - before),
        beyond(shard.bytes())
    );
    Holding { nanos: elapsed * 1e9 / count, memory }
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has statm");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("statm has the resident pages") * PAGE_BYTES
}

fn scanned(request: &[u8]) -> Scan {
    scan(request).expect("the generator makes valid requests")
}

/// Placement stands in as two bytes of the trace id: its cost is another benchmark's.
fn batches(request: &[u8], scan: &Scan) -> usize {
    let targets: Vec<_> = scan
        .traces
        .iter()
        .map(|trace| {
            let owner = u16::from(trace.id.0[0]) % NODE_COUNT as u16;
            let step = u16::from(trace.id.0[1]) % (NODE_COUNT as u16 - 1) + 1;
            Targets([owner, (owner + step) % NODE_COUNT as u16])
        })
        .collect();
    let batches = split(request, scan, NODE_COUNT, &targets, FRAME_BYTES_MAX);
    batches.iter().flatten().map(|part| part.request.len()).sum()
}

fn spans<'a>(requests: &'a [Vec<u8>], scans: &'a [Scan]) -> impl Iterator<Item = SpanView<'a>> {
    requests.iter().zip(scans).flat_map(|(request, scan)| {
        let payloads = scan.spans.iter().flat_map(|span| unframed(&request[span.range()]));
        payloads.filter_map(|span| SpanView::parse(span).ok())
    })
}

/// Measures one step over all requests, in turns with prost; returns the ratio of the two.
fn step(name: &str, requests: &[Vec<u8>], run: &mut dyn FnMut() -> usize) -> f64 {
    let decode = || -> usize {
        IS_PROST.set(true);
        let requests = requests.iter().map(|request| ExportTraceServiceRequest::decode(&**request));
        let count = requests.map(|request| request.map_or(0, |r| r.resource_spans.len())).sum();
        IS_PROST.set(false);
        count
    };
    black_box((run(), decode()));
    let (mut rounds, mut elapsed) = (0_u32, 0.0);
    let (mut prost_rounds, mut prost_elapsed) = (0_u32, 0.0);
    while elapsed < MEASURED_SECONDS {
        let start = cpu_seconds();
        black_box(run());
        let end = cpu_seconds();
        elapsed += end - start;
        if rounds.is_multiple_of(PROST_EVERY) {
            black_box(decode());
            prost_elapsed += cpu_seconds() - end;
            prost_rounds += 1;
        }
        rounds += 1;
    }
    let nanos = |elapsed: f64, rounds: u32| {
        elapsed * 1e9 / (f64::from(rounds) * (REQUEST_COUNT * SPANS_PER_REQUEST) as f64)
    };
    let (nanos, prost) = (nanos(elapsed, rounds), nanos(prost_elapsed, prost_rounds));
    let ratio = nanos / prost;
    println!("{nanos:8.1} ns/span  {ratio:6.3} x prost's {prost:6.1}  {name}");
    ratio
}

/// CPU time of the main thread, the only one.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("Linux has schedstat");
    let nanos = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    nanos.expect("schedstat begins with nanoseconds on a CPU") / 1e9
}

/// A request of interleaved traces from some services.
fn request(dice: &mut StdRng) -> Vec<u8> {
    let trace_ids: Vec<[u8; 16]> =
        (0..SPANS_PER_REQUEST / SPANS_PER_TRACE).map(|_| dice.random()).collect();
    let resource_count = dice.random_range(3..=8);
    let mut resource_spans: Vec<_> = (0..resource_count).map(|_| resource(dice)).collect();
    for index in 0..SPANS_PER_REQUEST {
        let trace_id = trace_ids[index % trace_ids.len()];
        let scope_spans = &mut resource_spans[dice.random_range(0..resource_count)].scope_spans;
        let scope = dice.random_range(0..scope_spans.len());
        scope_spans[scope].spans.push(span(trace_id, dice));
    }
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn resource(dice: &mut StdRng) -> ResourceSpans {
    const KEYS: [&str; 10] = [
        "service.name",
        "service.version",
        "service.instance.id",
        "host.name",
        "host.arch",
        "os.type",
        "process.pid",
        "process.runtime.name",
        "telemetry.sdk.language",
        "deployment.environment.name",
    ];
    let scope = |name: &str| ScopeSpans {
        scope: Some(InstrumentationScope {
            name: format!("io.opentelemetry.{name}"),
            version: "2.11.0".to_owned(),
            ..InstrumentationScope::default()
        }),
        schema_url: "https://opentelemetry.io/schemas/1.27.0".to_owned(),
        ..ScopeSpans::default()
    };
    ResourceSpans {
        resource: Some(Resource {
            attributes: KEYS.iter().map(|key| text(key, dice)).collect(),
            ..Resource::default()
        }),
        scope_spans: vec![scope("http-server"), scope("jdbc")],
        schema_url: "https://opentelemetry.io/schemas/1.27.0".to_owned(),
    }
}

fn span(trace_id: [u8; 16], dice: &mut StdRng) -> Span {
    const KEYS: [&str; 12] = [
        "http.request.method",
        "url.path",
        "url.scheme",
        "server.address",
        "client.address",
        "user_agent.original",
        "network.protocol.version",
        "http.route",
        "db.system.name",
        "db.namespace",
        "thread.name",
        "code.function.name",
    ];
    let key_count = dice.random_range(6..=KEYS.len());
    let mut attributes: Vec<_> = KEYS[..key_count].iter().map(|key| text(key, dice)).collect();
    attributes.push(number("server.port", 8080));
    attributes.push(number("http.response.status_code", 200));
    let start = 1_750_000_000_000_000_000 + dice.random_range(0..1_000_000_000);
    let events = (0..usize::from(dice.random_ratio(1, 5))).map(|_| span::Event {
        time_unix_nano: start,
        name: "exception".to_owned(),
        attributes: vec![text("exception.type", dice)],
        dropped_attributes_count: 0,
    });
    let events = events.collect();
    let links = (0..usize::from(dice.random_ratio(1, 20))).map(|_| span::Link {
        trace_id: trace_id.to_vec(),
        span_id: vec![1; 8],
        ..span::Link::default()
    });
    let links = links.collect();
    Span {
        trace_id: trace_id.to_vec(),
        span_id: dice.random::<[u8; 8]>().to_vec(),
        parent_span_id: dice.random::<[u8; 8]>().to_vec(),
        name: "GET /api/v1/orders/{id}".to_owned(),
        kind: dice.random_range(1..=5),
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000,
        attributes,
        events,
        links,
        status: Some(Status { code: dice.random_range(0..=2), ..Status::default() }),
        flags: 257,
        ..Span::default()
    }
}

fn text(key: &str, dice: &mut StdRng) -> KeyValue {
    let length = dice.random_range(4..24);
    let letters = (0..length).map(|_| char::from(dice.random_range(b'a'..=b'z')));
    let value = Value::StringValue(letters.collect());
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn number(key: &str, value: i64) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::IntValue(value)) });
    KeyValue { key: key.to_owned(), value }
}
