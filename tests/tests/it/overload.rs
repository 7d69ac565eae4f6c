//! More than a node can take: clients are put off and come back, and nothing that was acknowledged
//! is lost.

use crate::host;
use crate::mesh::{TRIES_MAX, start};
use crate::otlp::{PROTOBUF, encoded, span, trace_id};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracemesh_tests::grpc::{Answer, Client, Server};
use tracemesh_tests::host::Host;
use tracemesh_tests::http;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::wait::{last, wait_until, wait_within};

/// The smallest budget that a node may have.
const MEMORY_BYTES: usize = 16 << 20;
/// Bytes of a span's name: some thousand spans fill the smallest budget.
const NAME_BYTES: u64 = 4000;
/// Names are of so many lengths, so that an allocator rounds up neither all of them nor none.
const NAME_LENGTHS: u64 = 1000;
/// Spans of a request here, each a trace of its own.
const SPANS_OF_A_REQUEST: u64 = 50;
/// An attempt waits longer and longer before it is made again; this is far longer than that.
const SINK_IS_FOUND_AGAIN: Duration = Duration::from_secs(180);
/// Clients that come back together, each with a connection of its own.
const STORM_CLIENTS: u64 = 200;
/// For how long all of them are put off.
const STORM: Duration = Duration::from_secs(60);
/// The budget of a node that they come back to: large beside what a program takes in any case.
const STORM_MEMORY_BYTES: u64 = 256 << 20;
/// A client of a storm first waits about so long, then half as long again each time, up to a most.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// When a collector gives up, and drops what it could not send.
const COLLECTOR_GIVES_UP: Duration = Duration::from_secs(300);

/// A sink that refuses everything until it is opened, and then keeps what it gets.
struct Sink {
    server: Server,
    is_open: Arc<AtomicBool>,
    trace_ids: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

impl Sink {
    fn start() -> Self {
        let (is_open, trace_ids) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (open, kept): (_, Arc<Mutex<BTreeSet<_>>>) =
            (Arc::clone(&is_open), Arc::clone(&trace_ids));
        let server = Server::start("127.0.0.1:0", move |message| {
            if !open.load(Relaxed) {
                return Answer::Refused(Status::unavailable("closed"));
            }
            let request = ExportTraceServiceRequest::decode(message).expect("a node sends OTLP");
            let scopes = request.resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
            let ids = scopes.flat_map(|spans| spans.spans).map(|span| span.trace_id);
            kept.lock().expect("nothing panics while it keeps ids").extend(ids);
            Answer::Taken
        });
        Self { server, is_open, trace_ids }
    }

    fn missing(&self, wanted: &BTreeSet<Vec<u8>>) -> usize {
        let kept = self.trace_ids.lock().expect("nothing panics while it keeps ids");
        wanted.difference(&kept).count()
    }
}

fn settings(host: &Host, sink: &Sink) -> Settings {
    host.node("a")
        .with("node.memory", json!(format!("{MEMORY_BYTES}B")))
        .with("ingest.request_bytes_max", json!("1MiB"))
        .with("ingest.in_flight_max", json!("4MiB"))
        .with("sinks", json!([{ "otlp": { "endpoint": sink.server.url() } }]))
}

/// An encoded request, and the traces in it.
struct Request {
    bytes: Vec<u8>,
    trace_ids: Vec<Vec<u8>>,
}

/// Requests that are all different, and the traces of those that were acknowledged.
struct Load {
    spans_of_a_request: u64,
    next: AtomicU64,
    acknowledged: Mutex<BTreeSet<Vec<u8>>>,
}

impl Default for Load {
    fn default() -> Self {
        let (next, acknowledged) = Default::default();
        Self { spans_of_a_request: SPANS_OF_A_REQUEST, next, acknowledged }
    }
}

impl Load {
    fn acknowledged(&self) -> BTreeSet<Vec<u8>> {
        self.acknowledged.lock().expect("nothing panics while it keeps ids").clone()
    }

    fn request(&self) -> Request {
        let first = self.next.fetch_add(self.spans_of_a_request, Relaxed);
        let numbers = first..first + self.spans_of_a_request;
        let trace_ids: Vec<_> = numbers.clone().map(|number| trace_id(number).to_vec()).collect();
        let spans = numbers.zip(&trace_ids).map(|(number, id)| {
            let name = "n".repeat((NAME_BYTES - number % NAME_LENGTHS) as usize);
            opentelemetry_proto::tonic::trace::v1::Span { name, ..span(id, 0) }
        });
        Request { bytes: encoded(spans.collect()), trace_ids }
    }

    fn acknowledge(&self, request: &Request) {
        let mut acknowledged = self.acknowledged.lock().expect("nothing panics while it keeps ids");
        acknowledged.extend(request.trace_ids.iter().cloned());
    }

    /// Sends a request by gRPC: it is acknowledged, or put off as it should be, for so long.
    fn send_by_grpc(&self, client: &mut Client, request: &Request) -> Result<(), Duration> {
        match client.export(request.bytes.clone()) {
            Ok(_) => self.acknowledge(request),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                let seconds = retry_seconds(status.details());
                assert!((1..=10).contains(&seconds), "{status:?}");
                return Err(Duration::from_secs(seconds));
            }
        }
        Ok(())
    }

    /// The same by HTTP.
    fn send_by_http(&self, node: &Node, request: &Request) -> Result<(), Duration> {
        let answer = node.post(PROTOBUF, &request.bytes);
        match answer.status {
            200 => self.acknowledge(request),
            status => {
                assert_eq!(status, 503, "{}", answer.text());
                let seconds = answer.header("retry-after").parse().expect("a number");
                assert!((1..=10).contains(&seconds), "{seconds}");
                return Err(Duration::from_secs(seconds));
            }
        }
        Ok(())
    }

    /// Whether a new request is acknowledged.
    fn by_grpc(&self, client: &mut Client) -> bool {
        self.send_by_grpc(client, &self.request()).is_ok()
    }

    fn by_http(&self, node: &Node) -> bool {
        self.send_by_http(node, &self.request()).is_ok()
    }
}

/// The seconds of `RetryInfo` in an encoded `google.rpc.Status`.
fn retry_seconds(status: &[u8]) -> u64 {
    #[derive(Clone, PartialEq, Message)]
    struct Detail {
        #[prost(string, tag = "1")]
        kind: String,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<Detail>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        delay: Option<Delay>,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    struct Delay {
        #[prost(int64, tag = "1")]
        seconds: i64,
    }
    let status = RpcStatus::decode(status).expect("details are a status");
    let detail = status.details.first().expect("there is a detail");
    assert!(detail.kind.ends_with("google.rpc.RetryInfo"), "{}", detail.kind);
    let info = RetryInfo::decode(&detail.value[..]).expect("it is what it says");
    let seconds = info.delay.expect("there is a delay").seconds;
    seconds.try_into().expect("nobody can wait for less than nothing")
}

/// Whether the node says at `path` that it is full.
fn says_full(node: &Node, path: &str) -> bool {
    let degraded = http::get(&node.console_url(path)).json()["degraded"].take();
    degraded.as_array().expect("what is degraded is a list").contains(&json!("full"))
}

fn assert_within_budget(node: &Node) {
    let metrics = node.metrics();
    let bytes = metrics.sum("tracemesh_memory_bytes", &[]);
    let budget = metrics.sum("tracemesh_memory_budget_bytes", &[]);
    assert!(bytes <= budget, "{bytes} bytes of {budget}");
}

#[test]
fn full_node_puts_clients_off_and_loses_nothing_of_what_it_acknowledged() {
    let host = host();
    let sink = Sink::start();
    let mut node = settings(&host, &sink).start();
    let load = Load::default();
    let mut client = Client::new(node.grpc_url());
    assert!(load.by_grpc(&mut client) && load.by_http(&node), "there is room at first");
    assert!(!says_full(&node, "/readyz"));
    let before = node.program().resident_bytes_max();

    wait_until("the budget to be used up", || !load.by_grpc(&mut client));
    wait_until("HTTP to say so, too", || !load.by_http(&node));
    // Balancers would otherwise take all full nodes out at once.
    assert!(node.is_ready());
    for _ in 0..20 {
        let says_full = || ["/readyz", "/api/v1/status"].map(|path| says_full(&node, path));
        assert!(load.by_grpc(&mut client) || says_full() == [true; 2], "clients are put off");
    }
    assert_within_budget(&node);

    // Clients that do not wait at all.
    thread::scope(|scope| {
        for number in 0..16 {
            let (load, node) = (&load, &node);
            scope.spawn(move || {
                let mut client = Client::new(node.grpc_url());
                for _ in 0..40 {
                    match number % 2 {
                        0 => load.by_grpc(&mut client),
                        _ => load.by_http(node),
                    };
                }
            });
        }
    });
    assert_within_budget(&node);
    let grown = node.program().resident_bytes_max() - before;
    assert!(grown < 8 * MEMORY_BYTES as u64, "it grew by {grown} bytes");

    sink.is_open.store(true, Relaxed);
    let is_taken = || load.by_grpc(&mut client).then_some(());
    wait_within(SINK_IS_FOUND_AGAIN, "requests to be taken again", is_taken);
    let acknowledged = load.acknowledged();
    assert!(acknowledged.len() > 1000, "the budget held {}", acknowledged.len());
    let all = || (sink.missing(&acknowledged) == 0).then_some(());
    wait_within(SINK_IS_FOUND_AGAIN, "all that was acknowledged to come out", all);
    wait_until("nobody to be put off any more", || !says_full(&node, "/readyz"));
}

/// A client of a storm: it sends each request until it is acknowledged, as a collector does, and
/// has enough when one that it sent to a node with a sink was. `refused_twice` counts the clients
/// that were put off so often. Whether it was served before a collector would have given up.
fn insist(load: &Load, node: &Node, sink: &Sink, number: u64, refused_twice: &AtomicU64) -> bool {
    let begun = Instant::now();
    let mut client = number.is_multiple_of(2).then(|| Client::new(node.grpc_url()));
    let mut request = load.request();
    let mut back_off = BACK_OFF;
    let mut refusals = 0;
    while begun.elapsed() < COLLECTOR_GIVES_UP {
        let has_sink = sink.is_open.load(Relaxed);
        let sent = match &mut client {
            Some(client) => load.send_by_grpc(client, &request),
            None => load.send_by_http(node, &request),
        };
        match sent {
            Ok(()) if has_sink => return true,
            Ok(()) => request = load.request(),
            Err(asked) => {
                refusals += 1;
                refused_twice.fetch_add(u64::from(refusals == 2), Relaxed);
                // Between a half and three halves of it, and never less than was asked for.
                let percent = 50 + (number * 37 + refusals * 61) % 101;
                thread::park_timeout(asked.max(back_off * percent as u32 / 100));
                back_off = (back_off * 3 / 2).min(BACK_OFF_MAX);
            }
        }
    }
    false
}

#[test]
fn clients_that_were_refused_for_a_minute_are_all_served_once_the_sink_is_back() {
    let host = host();
    let sink = Sink::start();
    let memory = json!(format!("{STORM_MEMORY_BYTES}B"));
    let mut node = settings(&host, &sink).with("node.memory", memory).start();
    let load = Load { spans_of_a_request: 10, ..Load::default() };
    let mut first = Client::new(node.grpc_url());
    assert!(load.by_grpc(&mut first) && load.by_http(&node), "there is room at first");
    let before = node.program().resident_bytes_max();
    let most = STORM_MEMORY_BYTES / NAME_BYTES;
    assert!((0..most).any(|_| !load.by_grpc(&mut first)), "the budget is used up at some time");

    let refused_twice = AtomicU64::new(0);
    let served = thread::scope(|scope| {
        let (load, node, sink, refused_twice) = (&load, &node, &sink, &refused_twice);
        let client = |number| move || insist(load, node, sink, number, refused_twice);
        let clients: Vec<_> = (0..STORM_CLIENTS).map(|n| scope.spawn(client(n))).collect();
        last(STORM);
        wait_until("all to be refused", || refused_twice.load(Relaxed) == STORM_CLIENTS);
        assert_within_budget(node);
        sink.is_open.store(true, Relaxed);
        let ends = clients.into_iter().map(|client| client.join().expect("no client panics"));
        ends.filter(|served| *served).count()
    });
    assert_eq!(served as u64, STORM_CLIENTS, "a collector would have dropped the others' spans");
    let acknowledged = load.acknowledged();
    let all = || (sink.missing(&acknowledged) == 0).then_some(());
    wait_within(SINK_IS_FOUND_AGAIN, "all that was acknowledged to come out", all);
    assert_within_budget(&node);
    let grown = node.program().resident_bytes_max() - before;
    let most = STORM_MEMORY_BYTES / 4 * 5;
    assert!(grown <= most, "it grew by {grown} bytes, more than {most}");
}

/// Fills one node of three, and sees the others go on; false when somebody was routed around, as on
/// a machine so busy that a node is silent or stands still.
fn fill_one_of_three() -> bool {
    let host = host();
    let sink = Sink::start();
    let endpoint = json!([{ "otlp": { "endpoint": sink.server.url() } }]);
    let mut all = host.nodes(&["a", "b", "c"]);
    all.iter_mut().for_each(|node| node.set("sinks", endpoint.clone()));
    all[2].set("node.memory", json!(format!("{MEMORY_BYTES}B")));
    all[2].set("ingest.request_bytes_max", json!("1MiB"));
    all[2].set("ingest.in_flight_max", json!("4MiB"));
    let nodes = start(&all);
    let sum = |name| nodes.iter().map(|node| node.metrics().sum(name, &[])).sum::<f64>();
    let view_changes = sum("tracemesh_view_changes_total");
    let rerouted = sum("tracemesh_spans_rerouted_total");

    // Of fifty traces some are the full node's, so all such requests are put off in the end.
    let load = Load::default();
    let mut client = Client::new(nodes[0].grpc_url());
    wait_until("one node to be full", || !load.by_grpc(&mut client) && !load.by_grpc(&mut client));
    let mut single = Load { spans_of_a_request: 1, ..Load::default() };
    *single.next.get_mut() = load.next.load(Relaxed);
    let taken = (0..60).filter(|_| single.by_grpc(&mut client)).count();
    let was_rerouted = sum("tracemesh_spans_rerouted_total") != rerouted;
    let view_changed = sum("tracemesh_view_changes_total") != view_changes;
    eprintln!("{taken} of 60 were taken; rerouted {was_rerouted}, another view {view_changed}");
    assert_within_budget(&nodes[2]);

    sink.is_open.store(true, Relaxed);
    let mut acknowledged = load.acknowledged();
    acknowledged.extend(single.acknowledged());
    let all = || (sink.missing(&acknowledged) == 0).then_some(());
    wait_within(SINK_IS_FOUND_AGAIN, "all that was acknowledged to come out", all);
    if was_rerouted || view_changed {
        return false;
    }
    assert!((1..60).contains(&taken), "{taken} of 60: traces of the other two nodes are taken");
    true
}

#[test]
fn one_full_node_of_three_is_not_routed_around_and_the_others_go_on() {
    // Fullness is an answer.
    assert!((0..TRIES_MAX).any(|_| fill_one_of_three()), "not in {TRIES_MAX} tries");
}

/// How many connections this process may have; a test takes two thousand, or what there is.
fn connections_max() -> usize {
    let limit = Command::new("sh").args(["-c", "ulimit -n"]).output().expect("sh starts");
    let limit = String::from_utf8_lossy(&limit.stdout).trim().parse().unwrap_or(usize::MAX);
    2000.min(limit.saturating_sub(200))
}

/// The program, started as systems do that let it open few files unless it asks for more.
fn program_with_few_files(host: &Host) -> PathBuf {
    let path = host.path().join("few-files");
    let program = host.program().display();
    let text = format!("#!/bin/sh\nulimit -S -n 256\nexec '{program}' \"$@\"\n");
    fs::write(&path, text).expect("a script can be written");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be made a program");
    path
}

#[test]
fn idle_connections_cost_next_to_nothing() {
    let elsewhere = host();
    let host = Host::new(program_with_few_files(&elsewhere));
    let mut node = host.node("a").start();
    let load = Load::default();
    assert!(load.by_http(&node));
    let before = node.program().resident_bytes_max();
    let count = connections_max();
    let idle: Vec<_> = (0..count).map(|number| idle(&node, number)).collect();
    let grown = node.program().resident_bytes_max().saturating_sub(before) as usize;
    assert!(grown < count * (64 << 10), "{count} idle connections took {grown} bytes");
    assert!(load.by_http(&node) && load.by_grpc(&mut Client::new(node.grpc_url())));
    assert_eq!(node.metrics().sum("tracemesh_connections_refused_total", &[]), 0.0);
    drop(idle);
}

/// A connection by which something was said, and on which nothing happens any more.
fn idle(node: &Node, number: usize) -> TcpStream {
    let url = node.http_url("");
    let address = match number % 2 {
        0 => url.trim_start_matches("http://").to_owned(),
        _ => node.grpc_address(),
    };
    let mut stream = TcpStream::connect(address).expect("a node takes connections");
    let said: &[u8] = match number % 2 {
        0 => b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    };
    stream.write_all(said).expect("the node reads");
    stream.read_exact(&mut [0; 9]).expect("the node answers");
    stream
}
