//! Three real nodes over a network in memory: join, take spans anywhere, drain.
//!
//! Speed decides nothing here. The clock is paused: time goes on only when all tasks wait, so a
//! busy machine is never taken for a silent peer. And the traces are such that none can be decided
//! early: one is due only after its root span, and roots are sent when all other spans are
//! acknowledged.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracemesh::config::{self, Config, Flags, Surroundings};
use tracemesh::environment::Environment;
use tracemesh::ingest::{Accepted, Export};
use tracemesh::node::{End, Node};
use tracemesh::sink::Sink;
use tracemesh::spans::TraceId;
use tracemesh::status::{SpansHeld, Status};
use tracemesh_simulation::network::Network;
use tracemesh_simulation::sink::MemorySink;
use tracemesh_simulation::starts::MemoryStarts;

/// How long a condition may take to become true: far longer than any takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// The pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Spans of a trace besides its root.
const CHILD_COUNT: u64 = 7;

/// Addresses of the mesh, in the network in memory only.
const MESH: [&str; 3] = ["127.0.0.1:4319", "127.0.0.2:4319", "127.0.0.3:4319"];

struct Member<E> {
    export: E,
    report: Box<dyn Fn() -> Status>,
    sink: Arc<MemorySink>,
    leave: CancellationToken,
}

/// A cluster in which every node runs.
struct Cluster<E> {
    members: Vec<Member<E>>,
    runs: JoinSet<(usize, End)>,
    _data: TempDir,
}

fn config(number: usize, data: &Path) -> Config {
    let flags = Flags {
        node_id: Some(format!("node-{number}")),
        seed: MESH.map(str::to_owned).into(),
        data_dir: Some(data.display().to_string()),
        sink: vec!["stdout".to_owned()],
        ..Default::default()
    };
    let variables = [
        ("TRACEMESH_LISTEN__GRPC", "127.0.0.1:0"),
        ("TRACEMESH_LISTEN__HTTP", "127.0.0.1:0"),
        ("TRACEMESH_LISTEN__MESH", MESH[number]),
        ("TRACEMESH_LISTEN__CONSOLE", "127.0.0.1:0"),
        ("TRACEMESH_TRACES__ROOT_DELAY", "100ms"),
        ("TRACEMESH_TRACES__AGE_MAX", "1h"),
        ("TRACEMESH_DRAIN__ANNOUNCE", "0s"),
    ];
    let surroundings = Surroundings {
        variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        host_name: "simulated".to_owned(),
        memory_bytes: Some(1 << 30),
    };
    config::load(&flags, &surroundings).expect("the configuration is right")
}

fn environment(number: usize, network: &Network, sink: &Arc<MemorySink>) -> Environment {
    let (network, sink) = (network.clone(), Arc::clone(sink));
    Environment {
        bind_mesh: Box::new(move |address: SocketAddr| network.bind(address)),
        wall_clock: Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        seed: [number as u8; 32],
        start_sinks: Box::new(|_, _, _, _| Ok((vec![sink as Arc<dyn Sink>], None))),
        open_starts: Box::new(|_| Arc::new(MemoryStarts::default())),
        shard_count: 2,
    }
}

/// Starts all nodes and waits until everybody is in the view of everybody.
async fn start_cluster() -> Cluster<impl Export> {
    let data = tempfile::tempdir().expect("there is room for a directory");
    let network = Network::new();
    let (mut members, mut runs) = (Vec::new(), JoinSet::new());
    for number in 0..MESH.len() {
        let sink = Arc::new(MemorySink::default());
        let environment = environment(number, &network, &sink);
        let node = Node::start(&config(number, data.path()), environment)
            .await
            .expect("nothing is in the way of a node");
        let leave = CancellationToken::new();
        members.push(Member {
            export: node.export(),
            report: Box::new(node.reporter()),
            sink,
            leave: leave.clone(),
        });
        runs.spawn(async move { (number, node.run(leave.cancelled()).await) });
    }
    let mut cluster = Cluster { members, runs, _data: data };
    cluster.agree().await;
    cluster
}

impl<E: Export> Cluster<E> {
    /// Looks until `condition` is true. `what` completes the sentence "waited in vain for ...".
    async fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !condition(self) {
            if let Some(ended) = self.runs.try_join_next() {
                panic!("a node ended while {what} was waited for: {ended:?}");
            }
            let reports: Vec<_> = self.reports().collect();
            assert!(begin.elapsed() < DEADLINE, "waited in vain for {what}: {reports:#?}");
            sleep(PAUSE).await;
        }
    }

    fn reports(&self) -> impl Iterator<Item = Status> {
        self.members.iter().map(|member| (member.report)())
    }

    /// Waits until all nodes are ready and have one view, of all of them and nobody else.
    async fn agree(&mut self) {
        let count = self.members.len();
        self.wait_until("one view of all nodes", |cluster| {
            let reports: Vec<_> = cluster.reports().collect();
            reports.iter().all(|report| {
                report.ready
                    && report.view == reports[0].view
                    && report.view.members == count as u64
                    && report.members.len() == count
            })
        })
        .await;
    }

    /// Sends spans to all nodes by turns; each is acknowledged.
    async fn send(&self, spans: Vec<Span>) {
        let mut requests = vec![Vec::new(); self.members.len()];
        let places = (0..requests.len()).cycle();
        for (span, place) in spans.into_iter().zip(places) {
            requests[place].push(span);
        }
        for (member, spans) in self.members.iter().zip(requests) {
            let answer = member.export.export(encoded(spans)).await;
            assert_eq!(answer, Ok(Accepted::default()));
        }
    }

    /// Waits until no node holds anything.
    async fn finish(&mut self) {
        self.wait_until("all spans to be exported", |cluster| {
            cluster.reports().all(|report| report.spans_held == SpansHeld::default())
        })
        .await;
    }

    /// Asks a node to leave, and waits until it has.
    async fn drain(&mut self, number: usize) {
        self.members[number].leave.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.runs.join_next()).await;
        let ended = ended.expect("draining comes to an end");
        let as_asked = matches!(&ended, Some(Ok((who, End::Drained))) if *who == number);
        assert!(as_asked, "{ended:?}");
    }
}

fn trace_id(number: u64) -> [u8; 16] {
    (u128::from(number) + 1).to_be_bytes()
}

fn span_id(number: u64) -> [u8; 8] {
    (number + 1).to_be_bytes()
}

/// Spans with these numbers of these traces; 0 is the root.
fn spans(traces: Range<u64>, numbers: Range<u64>) -> Vec<Span> {
    let span = |trace: u64, number: u64| Span {
        trace_id: trace_id(trace).into(),
        span_id: span_id(number).into(),
        parent_span_id: if number == 0 { Vec::new() } else { span_id(0).into() },
        name: format!("step {number} of {trace}"),
        ..Default::default()
    };
    traces.flat_map(|trace| numbers.clone().map(move |number| span(trace, number))).collect()
}

fn children(traces: Range<u64>) -> Vec<Span> {
    spans(traces, 1..CHILD_COUNT + 1)
}

fn roots(traces: Range<u64>) -> Vec<Span> {
    spans(traces, 0..1)
}

fn encoded(spans: Vec<Span>) -> Bytes {
    let scope = ScopeSpans { spans, ..Default::default() };
    let resource = ResourceSpans { scope_spans: vec![scope], ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec().into()
}

/// What each attempt at each trace held, sorted.
type Exported = BTreeMap<TraceId, Vec<Vec<String>>>;

fn exported<'a>(sinks: impl IntoIterator<Item = &'a Arc<MemorySink>>) -> Exported {
    let mut exported = Exported::new();
    for attempt in sinks.into_iter().flat_map(|sink| sink.attempts()) {
        let mut names = Vec::new();
        for chunk in &attempt.chunks {
            let spans = ScopeSpans::decode(&*chunk.spans).expect("chunks are OTLP");
            for span in spans.spans {
                assert_eq!(span.trace_id, attempt.trace_id.0);
                names.push(span.name);
            }
        }
        names.sort_unstable();
        exported.entry(attempt.trace_id).or_default().push(names);
    }
    exported
}

/// Every trace once and whole.
fn expected(traces: Range<u64>) -> Exported {
    let trace = |trace: u64| {
        let spans = spans(trace..trace + 1, 0..CHILD_COUNT + 1);
        let names = spans.into_iter().map(|span| span.name).collect();
        (TraceId(trace_id(trace)), vec![names])
    };
    traces.map(trace).collect()
}

#[tokio::test(start_paused = true)]
async fn scattered_spans_meet_once_on_one_owner_even_if_a_node_is_drained_in_between() {
    let mut cluster = start_cluster().await;
    let sinks: Vec<_> = cluster.members.iter().map(|member| Arc::clone(&member.sink)).collect();

    cluster.send(children(0..300)).await;
    cluster.send(roots(0..300)).await;
    cluster.finish().await;
    assert_eq!(exported(&sinks), expected(0..300));
    let shares: Vec<_> = sinks.iter().map(|sink| sink.attempts().len()).collect();
    assert!(shares.iter().all(|share| *share > 0), "every node owns some: {shares:?}");

    cluster.send(children(300..400)).await;
    cluster.drain(2).await;
    cluster.members.pop();
    cluster.agree().await;
    cluster.send(roots(300..400)).await;
    cluster.finish().await;
    assert_eq!(exported(&sinks), expected(0..400));
    assert_eq!(sinks[2].attempts().len(), shares[2], "a leaving node decides nothing early");

    cluster.drain(1).await;
    cluster.members.pop();
    cluster.drain(0).await;
    assert_eq!(exported(&sinks), expected(0..400), "draining repeats nothing");
}
