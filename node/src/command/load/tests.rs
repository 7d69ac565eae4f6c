//! Whole runs against a system that is made up, and that can be made to fail.

use super::receiver::{Export, serve};
use super::*;
use bytes::Bytes;
use clap::Parser;
use futures_util::FutureExt;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tonic::{Code, Status};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn parse(line: &[String]) -> Result<Arguments, clap::Error> {
    let words = line.iter().flat_map(|part| part.split_whitespace());
    Ok(Line::try_parse_from(["load"].into_iter().chain(words))?.arguments)
}

/// 3,000 spans in requests of 64, without waiting at the end for what may come twice.
fn arguments(targets: &[SocketAddr], more: &str) -> Arguments {
    let mut line = vec!["--seed 5 --request-spans 64 --linger 0s".to_owned(), more.to_owned()];
    line.extend(targets.iter().map(|target| format!("--target http://{target}")));
    if !more.contains("--deadline") {
        // A busy machine must not turn a slow answer into a second try.
        line.push("--deadline 10m --give-up-after 10m".to_owned());
    }
    if !more.contains("--duration") {
        line.push("--spans 3000".to_owned());
    }
    parse(&line).unwrap()
}

/// Servers that run until they are dropped.
#[derive(Default)]
struct Servers(JoinSet<()>);

impl Servers {
    async fn start(&mut self, export: Export) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.0.spawn(async { serve(listener, export).await.unwrap() });
        address
    }

    async fn start_three(&mut self, export: &Export) -> [SocketAddr; 3] {
        [
            self.start(Arc::clone(export)).await,
            self.start(Arc::clone(export)).await,
            self.start(Arc::clone(export)).await,
        ]
    }
}

fn always(answer: impl Fn() -> Result<Bytes, Status> + Send + Sync + 'static) -> Export {
    Arc::new(move |_| std::future::ready(answer()).boxed())
}

async fn run(arguments: Arguments) -> Report {
    let (_interrupt, mut interrupts) = mpsc::channel(1);
    Run::prepare(arguments).await.unwrap().run(&mut interrupts).await.unwrap()
}

/// How often a made-up mesh exports a trace, by how many it exported before.
type Copies = fn(u64) -> usize;

/// Assembles traces of 8 spans and exports each when it is whole, before it acknowledges the
/// request that made it so.
struct Mesh {
    open: Mutex<BTreeMap<Vec<u8>, Vec<ExportTraceServiceRequest>>>,
    exported: AtomicU64,
    copies: Copies,
}

impl Mesh {
    fn new(copies: Copies) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), exported: AtomicU64::new(0), copies })
    }

    /// Takes a request and returns what is to be exported.
    fn on_request(&self, request: Bytes) -> Vec<ExportTraceServiceRequest> {
        let request = ExportTraceServiceRequest::decode(request).unwrap();
        let mut open = self.open.lock().unwrap();
        let mut whole = Vec::new();
        for (trace_id, span) in single_spans(request) {
            let trace = open.entry(trace_id.clone()).or_default();
            trace.push(span);
            if trace.len() == 8 {
                let spans = open.remove(&trace_id).unwrap();
                let resource_spans = spans.into_iter().flat_map(|span| span.resource_spans);
                let trace = ExportTraceServiceRequest { resource_spans: resource_spans.collect() };
                let copies = (self.copies)(self.exported.fetch_add(1, Ordering::Relaxed));
                whole.extend(std::iter::repeat_n(trace, copies));
            }
        }
        whole
    }

    /// Exports to the receiver whose address `receiver` will know.
    fn exporting_to(self: &Arc<Self>, receiver: &Arc<Mutex<Option<SocketAddr>>>) -> Export {
        let (mesh, receiver) = (Arc::clone(self), Arc::clone(receiver));
        Arc::new(move |request| {
            let exports = mesh.on_request(request);
            let receiver = receiver.lock().unwrap().unwrap();
            let messages = exports.into_iter().map(|export| export.encode_to_vec().into());
            forward(receiver, messages.collect()).boxed()
        })
    }
}

/// Each span in a request of its own, with its trace id.
fn single_spans(
    request: ExportTraceServiceRequest,
) -> impl Iterator<Item = (Vec<u8>, ExportTraceServiceRequest)> {
    request.resource_spans.into_iter().flat_map(|mut resource| {
        let scopes = std::mem::take(&mut resource.scope_spans);
        scopes.into_iter().flat_map(move |mut scope| {
            let (resource, spans) = (resource.clone(), std::mem::take(&mut scope.spans));
            spans.into_iter().map(move |span| {
                let (mut resource, mut scope) = (resource.clone(), scope.clone());
                let trace_id = span.trace_id.clone();
                scope.spans.push(span);
                resource.scope_spans.push(scope);
                let resource_spans = vec![resource];
                (trace_id, ExportTraceServiceRequest { resource_spans })
            })
        })
    })
}

async fn forward(receiver: SocketAddr, messages: Vec<Bytes>) -> Result<Bytes, Status> {
    let sending = Sending {
        deadline: Duration::from_secs(600),
        give_up_after: Duration::from_secs(60),
        compression: Some(CompressionEncoding::Zstd),
        connections: 1,
    };
    let client = Client::new(&[format!("http://{receiver}").parse().unwrap()], sending);
    for bytes in messages {
        let due = tokio::time::Instant::now();
        let outgoing = client::Outgoing { number: 0, target: 0, bytes, span_count: 0, due };
        let end = client.deliver(outgoing).await.end;
        assert_eq!(end, client::End::Acknowledged { refused_span_count: 0 });
    }
    Ok(Bytes::new())
}

/// A run through three entries of a made-up mesh to a receiver.
async fn run_through(mesh: Arc<Mesh>, more: &str) -> Report {
    let receiver = Arc::new(Mutex::new(None));
    let mut servers = Servers::default();
    let targets = servers.start_three(&mesh.exporting_to(&receiver)).await;
    let more = format!("--listen 127.0.0.1:0 --settle 1ms {more}");
    let run = Run::prepare(arguments(&targets, &more)).await.unwrap();
    *receiver.lock().unwrap() = run.address;
    let (_interrupt, mut interrupts) = mpsc::channel(1);
    run.run(&mut interrupts).await.unwrap()
}

#[tokio::test]
async fn mesh_that_exports_every_trace_once_is_good() {
    let report = run_through(Mesh::new(|_| 1), "").await;
    let findings = report.verification.as_ref().unwrap();
    assert!(report.good, "{report}");
    assert_eq!((report.sent.spans, report.sent.spans_acknowledged), (3000, 3000));
    assert_eq!((findings.spans_arrived, findings.spans_foreign), (3000, 0));
    assert!(report.acknowledgements.is_some());
}

#[tokio::test]
async fn mesh_that_drops_every_hundredth_trace_is_caught() {
    let report = run_through(Mesh::new(|number| usize::from(number % 100 != 99)), "").await;
    let findings = report.verification.as_ref().unwrap();
    assert!(!report.good);
    assert_eq!((findings.spans_lost, findings.traces_lost.len()), (24, 3));
    assert!(report.to_string().contains("lost 24"), "{report}");
}

#[tokio::test]
async fn mesh_that_exports_some_traces_twice_is_caught_unless_allowed() {
    for (more, good) in [("", false), ("--allow-twice=2", false), ("--allow-twice", true)] {
        let mesh = Mesh::new(|number| 1 + usize::from(number % 100 == 99));
        let report = run_through(mesh, more).await;
        let findings = report.verification.as_ref().unwrap();
        assert_eq!((findings.traces_twice, findings.spans_twice), (3, 24));
        assert_eq!((findings.spans_lost, findings.traces_in_parts), (0, 0));
        assert_eq!(report.good, good, "{more}");
    }
}

#[tokio::test]
async fn system_that_assembles_nothing_exports_traces_in_parts() {
    for (more, good) in [("", false), ("--allow-parts=375", true)] {
        let receiver = Arc::new(Mutex::new(None));
        let address = Arc::clone(&receiver);
        let export: Export = Arc::new(move |request| {
            forward(address.lock().unwrap().unwrap(), vec![request]).boxed()
        });
        let mut servers = Servers::default();
        let targets = servers.start_three(&export).await;
        let more = format!("--listen 127.0.0.1:0 --settle 1ms {more}");
        let run = Run::prepare(arguments(&targets, &more)).await.unwrap();
        *receiver.lock().unwrap() = run.address;
        let (_interrupt, mut interrupts) = mpsc::channel(1);
        let report = run.run(&mut interrupts).await.unwrap();
        let findings = report.verification.unwrap();
        assert_eq!((findings.traces_in_parts, findings.spans_lost), (375, 0));
        assert_eq!(report.good, good);
    }
}

#[tokio::test]
async fn traces_that_come_out_into_files_are_verified() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("traces.jsonl");
    fs::write(&path, "{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[]}]}]}\n").unwrap();
    let mesh = Mesh::new(|_| 1);
    let file = path.clone();
    let export: Export = Arc::new(move |request| {
        let mut lines = Vec::new();
        for trace in mesh.on_request(request) {
            serde_json::to_writer(&mut lines, &trace).unwrap();
            lines.push(b'\n');
        }
        let mut file = fs::File::options().append(true).open(&file).unwrap();
        file.write_all(&lines).unwrap();
        std::future::ready(Ok(Bytes::new())).boxed()
    });
    let mut servers = Servers::default();
    let target = servers.start(export).await;
    let more = format!("--requests-in-flight 1 --verify-file {}", path.display());
    let report = run(arguments(&[target], &more)).await;
    assert!(report.good, "{report}");
    assert_eq!(report.verification.unwrap().spans_arrived, 3000);
}

#[tokio::test]
async fn requests_go_to_another_target_when_one_fails() {
    let mut servers = Servers::default();
    let unavailable = servers.start(always(|| Err(Status::unavailable("joining")))).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = servers.start(Arc::new(|_| std::future::pending().boxed())).await;
    let fine = servers.start(always(|| Ok(Bytes::new()))).await;
    let targets = [unavailable, closed, silent, fine];
    let report = run(arguments(&targets, "--deadline 300ms")).await;
    assert!(report.good, "{report}");
    assert!(report.verification.is_none());
    for cause in ["Unavailable", "connection", "deadline"] {
        assert!(report.sent.failures[cause] > 0, "{cause}: {report}");
    }
    assert_eq!(report.sent.retries, report.sent.failures.values().sum::<u64>());
}

#[tokio::test]
async fn refused_requests_are_not_sent_again() {
    let mut servers = Servers::default();
    let target = servers.start(always(|| Err(Status::invalid_argument("no")))).await;
    let report = run(arguments(&[target], "")).await;
    assert!(!report.good);
    assert_eq!((report.sent.spans_refused, report.sent.retries), (3000, 0));
    assert!(report.to_string().contains("InvalidArgument no"), "{report}");
}

#[tokio::test]
async fn partial_success_counts_what_it_refuses() {
    let answer = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 2,
            error_message: String::new(),
        }),
    };
    let answer = Bytes::from(answer.encode_to_vec());
    let mut servers = Servers::default();
    let target = servers.start(always(move || Ok(answer.clone()))).await;
    let report = run(arguments(&[target], "")).await;
    assert!(!report.good);
    assert_eq!(report.sent.spans_rejected, 2 * report.sent.requests);
}

/// A server that is full and asks to be left alone for 60 s.
fn busy() -> Export {
    // `google.rpc.Status` with one detail, a `RetryInfo` of 60 s.
    let mut details = b"\x1a\x30\x0a\x28type.googleapis.com/google.rpc.RetryInfo".to_vec();
    details.extend(b"\x12\x04\x0a\x02\x08\x3c");
    let details = Bytes::from(details);
    always(move || Err(Status::with_details(Code::ResourceExhausted, "full", details.clone())))
}

#[tokio::test]
async fn wait_that_a_server_asks_for_is_honoured() {
    let mut servers = Servers::default();
    let target = servers.start(busy()).await;
    // It would have to wait for 60 s, so it gives up at once.
    let report = run(arguments(&[target], "--deadline 10m --give-up-after 59s")).await;
    assert_eq!((report.sent.spans_unacknowledged, report.sent.retries), (report.sent.spans, 0));
    assert_eq!(report.sent.spans_refused, 0);
}

#[tokio::test]
async fn wait_that_a_server_asks_for_holds_up_no_other_server() {
    let mut servers = Servers::default();
    let targets = [servers.start(busy()).await, servers.start(always(|| Ok(Bytes::new()))).await];
    // Who waited for 60 s would give up.
    let report = run(arguments(&targets, "--deadline 10m --give-up-after 59s")).await;
    assert!(report.good && report.sent.retries > 0, "{report}");
}

#[tokio::test]
async fn run_ends_when_nobody_listens() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let report =
        run(arguments(&[closed], "--duration 24h --deadline 10m --give-up-after 0s")).await;
    assert!(!report.good);
    assert!(report.sent.last_failure.unwrap().contains(&closed.to_string()));
    assert_eq!(report.sent.spans_acknowledged, 0);
}

#[tokio::test]
async fn interrupted_run_reports_on_whole_traces() {
    let mut servers = Servers::default();
    let target = servers.start(always(|| Ok(Bytes::new()))).await;
    let (interrupt, mut interrupts) = mpsc::channel(1);
    interrupt.send(()).await.unwrap();
    let run = Run::prepare(arguments(&[target], "--duration 24h")).await.unwrap();
    let report = run.run(&mut interrupts).await.unwrap();
    assert!(report.good, "{report}");
    assert_eq!(report.sent.spans_acknowledged, 8 * report.sent.traces);
    assert!(report.sent.traces > 0);
}

#[tokio::test]
async fn bad_input_is_one_clear_line() {
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = busy.local_addr().unwrap();
    for (more, expected) in [
        (format!("--listen {address}"), format!("cannot listen on {address}")),
        (format!("--pid {}", u32::MAX), format!("no process {}", u32::MAX)),
        ("--verify-file /proc/version/x".to_owned(), "/proc/version/x".to_owned()),
    ] {
        let error = Run::prepare(arguments(&[address], &more)).await.unwrap_err();
        let line = format!("{error:#}");
        assert!(line.contains(&expected) && !line.contains('\n'), "{line}");
    }
    for bad in [
        "--target https://127.0.0.1:4317",
        "--target 127.0.0.1:4317",
        "--target http://127.0.0.1:4317/v1/traces",
        "--duration 10",
        "--duration s",
        "--spans 0",
        "--spans 10 --duration 1s",
        "--requests-in-flight 0",
        "--listen nowhere",
    ] {
        assert!(parse(&[bad.to_owned()]).is_err(), "{bad}");
    }
}

#[test]
fn help_shows_an_example_that_parses() {
    let help = <Line as clap::CommandFactory>::command().render_long_help().to_string();
    let example = help.rsplit("tracemesh load").next().unwrap().replace('\\', " ");
    parse(&[example]).unwrap();
}

#[test]
fn reports_are_read_by_people_and_programs() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report =
        runtime.block_on(run_through(Mesh::new(|_| 1), &format!("--pid {}", std::process::id())));
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["verification"]["spans_lost"], 0);
    assert_eq!(json["good"], true);
    assert!(json["processes_cpu_seconds_per_million_spans"].is_f64());
    assert!(report.to_string().contains("lost 0, twice 0 (in 0 traces), traces in parts 0"));
}
