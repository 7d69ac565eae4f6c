//! What a span costs from a request's bytes to the batches of its holders: validating scan and
//! split, in CPU time of this process; what reading and holding a span costs; and the memory that a
//! held span takes.
//!
//! `cargo bench -p tracemesh --bench ingest`. Linux only: the CPU time is read from `/proc`.
//! Three nodes, each span with an owner and a replica. One nanosecond a span is 0.001 CPU seconds a
//! million spans.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracemesh::cut::Cut;
use tracemesh::decide::KeepAll;
use tracemesh::frame::Origin;
use tracemesh::scan::{Scan, scan, scan_trusted};
use tracemesh::shard::{HoldPart, Limits, Shard, SinkSet};
use tracemesh::span_view::{SpanView, unframed};
use tracemesh::split::{Targets, split};
use tracemesh_membership::{HashKey, Placement, View};

/// Different requests, so that they do not stay in the nearest cache.
const REQUEST_COUNT: usize = 64;
const SPANS_PER_REQUEST: usize = 512;
const SPANS_PER_TRACE: usize = 8;
const NODE_COUNT: usize = 3;
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Requests whose spans are held at once: 100 MB of spans.
const HELD_REQUEST_COUNT: usize = 400;
const PAGE_BYTES: usize = 4096;
/// CPU seconds that each step is measured for.
const MEASURED_SECONDS: f64 = 1.0;
/// Goals for receiving, validating and splitting together, CPU seconds a million spans.
const MUST: f64 = 0.35;
const AIM: f64 = 0.29;

fn main() {
    let mut dice = StdRng::seed_from_u64(1);
    let requests: Vec<Vec<u8>> = (0..REQUEST_COUNT).map(|_| request(&mut dice)).collect();
    let scans: Vec<Scan> = requests.iter().map(|request| scanned(request)).collect();
    let bytes: usize = requests.iter().map(Vec::len).sum();
    println!("{} bytes a span", bytes / (REQUEST_COUNT * SPANS_PER_REQUEST));

    step("validate: scan of a client's request", || {
        requests.iter().map(|request| scanned(request).spans.len()).sum()
    });
    step("scan of a peer's frame", || {
        requests.iter().map(|frame| scan_trusted(frame).map_or(0, |scan| scan.spans.len())).sum()
    });
    step("split: targets and batches for 3 nodes", || {
        requests.iter().zip(&scans).map(|(request, scan)| batches(request, scan)).sum()
    });
    let sum = step("validate and split", || {
        requests.iter().map(|request| batches(request, &scanned(request))).sum()
    });
    step("read ids, times and status of a span", || {
        spans(&requests, &scans).map(|view| view.end_nanos() as usize & 1).sum()
    });
    step("read these and an attribute by key", || {
        let found = |view: &SpanView<'_>| view.attribute("http.response.status_code").is_some();
        spans(&requests, &scans).filter(found).count()
    });
    step("decode with prost, for comparison", || {
        let decode = |request: &Vec<u8>| ExportTraceServiceRequest::decode(&**request);
        requests.iter().map(|request| decode(request).map_or(0, |r| r.resource_spans.len())).sum()
    });
    hold(&mut dice);
    println!(
        "validate and split: {:.3} CPU s a million spans; the goals (must {MUST}, aim {AIM}) \
         include receiving",
        sum / 1000.0
    );
}

/// Holds spans in a shard, and compares what it says they take with what the process grew by. The
/// spans of a trace come in one frame, but each frame has a dozen scopes, so most chunks have one
/// span: the dear case.
fn hold(dice: &mut StdRng) {
    let now = Instant::now();
    let key = HashKey([7; 16]);
    let placement = Arc::new(Placement::new(Arc::new(View::new([]))));
    let limits = Limits {
        root_delay: Duration::from_secs(6),
        age_max: Duration::from_secs(30),
        spans_max: u32::MAX,
        bytes_max: usize::MAX,
        remember: Duration::from_secs(600),
        remember_bytes_max: usize::MAX,
    };
    let sinks = SinkSet::first(1);
    let mut shard = Shard::new("a".into(), key, limits, sinks, Box::new(KeepAll), placement, now);
    let part = HoldPart { origin: Origin::Entry, unplaced: false, due_in: limits.age_max };
    let (mut span_bytes, mut elapsed) = (0, 0.0);
    let before = resident_bytes();
    for _ in 0..HELD_REQUEST_COUNT {
        let frame = Bytes::from(request(dice));
        let start = cpu_seconds();
        let scan = scan_trusted(&frame).expect("the generator makes valid requests");
        let cut = Cut::new(frame, scan, &key);
        let traces: Vec<u32> = (0..cut.slots().len() as u32).collect();
        shard.on_hold(now, &cut, &traces, part);
        elapsed += cpu_seconds() - start;
        span_bytes += cut.scan().spans.iter().map(|span| span.bytes() as usize).sum::<usize>();
    }
    let count = (HELD_REQUEST_COUNT * SPANS_PER_REQUEST) as f64;
    let beyond = |bytes: usize| (bytes as f64 - span_bytes as f64) / count;
    println!("{:8.1} ns/span  scan of a frame and insert into a shard", elapsed * 1e9 / count);
    println!(
        "memory of a held span beyond its {:.0} bytes: {:.0} by the process, {:.0} as counted \
         (must 100, aim 60)",
        span_bytes as f64 / count,
        beyond(resident_bytes() - before),
        beyond(shard.bytes())
    );
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

/// Measures one step over all requests and returns nanoseconds a span.
fn step(name: &str, mut run: impl FnMut() -> usize) -> f64 {
    black_box(run());
    let start = cpu_seconds();
    let mut rounds = 0_u32;
    let elapsed = loop {
        black_box(run());
        rounds += 1;
        let elapsed = cpu_seconds() - start;
        if elapsed > MEASURED_SECONDS {
            break elapsed;
        }
    };
    let span_count = f64::from(rounds) * (REQUEST_COUNT * SPANS_PER_REQUEST) as f64;
    let nanos = elapsed * 1e9 / span_count;
    println!("{nanos:8.1} ns/span  {name}");
    nanos
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
