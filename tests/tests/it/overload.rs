//! More than a node can take: clients are put off and come back, and nothing that was acknowledged
//! is lost.

use crate::host;
use crate::mesh::start;
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
use tonic::{Code, Status};
use tracemesh_tests::grpc::{Answer, Client, Server};
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::wait::{wait_until, wait_within};

/// The smallest budget that a node may have.
const MEMORY_BYTES: usize = 16 << 20;
/// Bytes of a span's name: some thousand spans fill the budget.
const NAME_BYTES: usize = 4000;
/// Spans of a request here, each a trace of its own.
const SPANS_OF_A_REQUEST: u64 = 50;
/// An attempt waits longer and longer before it is made again; this is far longer than that.
const SINK_IS_FOUND_AGAIN: Duration = Duration::from_secs(180);

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

    /// A request and the ids in it.
    fn request(&self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let first = self.next.fetch_add(self.spans_of_a_request, Relaxed);
        let ids: Vec<_> = (first..first + self.spans_of_a_request)
            .map(|number| trace_id(number).to_vec())
            .collect();
        let spans = ids.iter().map(|id| {
            let name = "n".repeat(NAME_BYTES);
            opentelemetry_proto::tonic::trace::v1::Span { name, ..span(id, 0) }
        });
        (encoded(spans.collect()), ids)
    }

    fn acknowledge(&self, ids: Vec<Vec<u8>>) {
        self.acknowledged.lock().expect("nothing panics while it keeps ids").extend(ids);
    }

    /// Sends a request by gRPC; whether it was acknowledged, or put off as it should be.
    fn by_grpc(&self, client: &mut Client) -> bool {
        let (request, ids) = self.request();
        match client.export(request) {
            Ok(_) => {
                self.acknowledge(ids);
                true
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                assert!((1..=10).contains(&retry_seconds(status.details())), "{status:?}");
                false
            }
        }
    }

    /// The same by HTTP.
    fn by_http(&self, node: &Node) -> bool {
        let (request, ids) = self.request();
        let answer = node.post(PROTOBUF, &request);
        match answer.status {
            200 => {
                self.acknowledge(ids);
                true
            }
            status => {
                assert_eq!(status, 503, "{}", answer.text());
                let seconds: i64 = answer.header("retry-after").parse().expect("a number");
                assert!((1..=10).contains(&seconds), "{seconds}");
                false
            }
        }
    }
}

/// The seconds of `RetryInfo` in an encoded `google.rpc.Status`.
fn retry_seconds(status: &[u8]) -> i64 {
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
    info.delay.expect("there is a delay").seconds
}

fn assert_within_budget(node: &Node) {
    let metrics = node.metrics();
    let bytes = metrics.sum("tracemesh_memory_bytes", &[]);
    assert!(bytes <= MEMORY_BYTES as f64, "{bytes} bytes of {MEMORY_BYTES}");
}

#[test]
fn full_node_puts_clients_off_and_loses_nothing_of_what_it_acknowledged() {
    let host = host();
    let sink = Sink::start();
    let mut node = settings(&host, &sink).start();
    let load = Load::default();
    let mut client = Client::new(node.grpc_url());
    assert!(load.by_grpc(&mut client) && load.by_http(&node), "there is room at first");
    let before = node.program().resident_bytes_max();

    wait_until("the budget to be used up", || !load.by_grpc(&mut client));
    wait_until("HTTP to say so, too", || !load.by_http(&node));
    // Balancers would otherwise take all full nodes out at once.
    assert!(node.is_ready());
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
}

#[test]
fn one_full_node_of_three_is_not_routed_around_and_the_others_go_on() {
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
    assert!((1..60).contains(&taken), "{taken} of 60: traces of the other two nodes are taken");
    assert_eq!(sum("tracemesh_spans_rerouted_total"), rerouted, "fullness is an answer");
    assert_eq!(sum("tracemesh_view_changes_total"), view_changes);
    assert_within_budget(&nodes[2]);

    sink.is_open.store(true, Relaxed);
    let mut acknowledged = load.acknowledged();
    acknowledged.extend(single.acknowledged());
    let all = || (sink.missing(&acknowledged) == 0).then_some(());
    wait_within(SINK_IS_FOUND_AGAIN, "all that was acknowledged to come out", all);
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
