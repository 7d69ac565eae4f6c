//! What a span costs in whole processes: real nodes, `tracemesh load` as clients and as the sink.
//!
//! `cargo bench -p tracemesh-tests --bench nodes -- one`, or `three`, or `three-without-replica`.
//! OTLP gRPC in and out, uncompressed; every span that comes out is verified. A first load warms
//! the nodes up, because memory that was never touched costs more than the work; of the second one,
//! the line `cost, all` is the figure: CPU seconds (user and system) of the nodes per million
//! spans, the load itself not included. Meanwhile this process decodes the same requests with prost
//! now and then, with the system's allocator, so that both suffer from whatever else the machine
//! does: the ratio is what can be compared with other machines, and with the goals.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::json;
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use tracemesh::command::load_requests;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;

/// Enough for some seconds of load, and held by the nodes while they wait for root spans.
const SPANS: &str = "3000000";
/// Requests that prost decodes in one go: more than the nearest caches hold.
const DECODED_REQUESTS: usize = 32;
/// Until it decodes them again.
const DECODE_EVERY: Duration = Duration::from_millis(300);
/// The goals are set for a machine on which prost takes so many CPU seconds a million spans.
const GOAL_PROST: f64 = 1.9;

struct Cluster {
    ids: &'static [&'static str],
    replicas: u8,
    /// CPU seconds a million spans.
    goal: f64,
}

fn main() -> ExitCode {
    let what = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let cluster = match what.as_deref() {
        Some("one") => Cluster { ids: &["a"], replicas: 1, goal: 1.2 },
        Some("three") => Cluster { ids: &["a", "b", "c"], replicas: 1, goal: 3.3 },
        Some("three-without-replica") => Cluster { ids: &["a", "b", "c"], replicas: 0, goal: 2.0 },
        _ => {
            eprintln!("usage: cargo bench -p tracemesh-tests --bench nodes -- CLUSTER");
            eprintln!("where CLUSTER is one, three or three-without-replica");
            // `cargo bench --workspace` names nothing, and nothing is measured.
            return ExitCode::SUCCESS;
        }
    };
    match measure(&cluster) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cluster: &Cluster) -> Result<(), String> {
    let host = Host::new(env!("CARGO_BIN_EXE_tracemesh-under-test"));
    let sink = format!("127.0.0.1:{}", claim_base_port());
    let endpoint = format!("http://{sink}");
    let settings = host.nodes(cluster.ids).into_iter().map(|node| {
        node.with("sinks", json!([{ "otlp": { "endpoint": endpoint, "compression": "none" } }]))
            .with("cluster.replicas", json!(cluster.replicas))
            .with("node.memory", json!("4GiB"))
            .with("traces.root_delay", json!("2s"))
    });
    let settings: Vec<Settings> = settings.collect();
    let mut nodes: Vec<Node> = settings.iter().map(Settings::launch).collect();
    nodes.iter_mut().for_each(Node::wait_until_ready);
    nodes.iter().for_each(|node| node.wait_for_members(cluster.ids.len()));
    let mut load = || {
        let mut load = Command::new(host.program());
        load.args(["load", "--spans", SPANS, "--listen", &sink]).stderr(Stdio::inherit());
        for node in &mut nodes {
            load.args(["--target", &node.grpc_url()]);
            load.args(["--pid", &node.program().id().to_string()]);
        }
        let output = load.output().map_err(|error| format!("cannot start the load: {error}"))?;
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{report}");
        if !output.status.success() {
            return Err(format!("the load ended with {}", output.status));
        }
        let sum = report.lines().find_map(|line| line.strip_prefix("cost, all"));
        let sum = sum.and_then(|sum| sum.trim_start().split(' ').next()?.parse::<f64>().ok());
        sum.ok_or_else(|| "the report has no sum".to_owned())
    };
    println!("\n== {SPANS} spans, to warm up");
    load()?;
    println!("== {SPANS} spans, measured");
    let (cost, prost) = beside_prost(cluster.ids.len(), load);
    let cost = cost?;
    println!(
        "{cost:.2} CPU s a million spans; decoding them with prost takes {prost:.2} here; ratio \
         {:.2} (goal {:.2}: {} where prost takes {GOAL_PROST})",
        cost / prost,
        cluster.goal / GOAL_PROST,
        cluster.goal,
    );
    Ok(())
}

/// Runs `measured` while prost decodes requests of the same load in a thread; what `measured`
/// returns, and what prost takes in CPU seconds a million spans.
fn beside_prost<T>(target_count: usize, measured: impl FnOnce() -> T) -> (T, f64) {
    let (requests, span_count) = load_requests(target_count as u64, DECODED_REQUESTS);
    let (stop, stopped) = sync_channel::<()>(1);
    std::thread::scope(|scope| {
        let decoding = scope.spawn(move || {
            let (mut rounds, mut seconds) = (0, 0.0);
            while rounds == 0
                || stopped.recv_timeout(DECODE_EVERY) == Err(RecvTimeoutError::Timeout)
            {
                let start = cpu_seconds();
                for request in &requests {
                    black_box(ExportTraceServiceRequest::decode(&**request).ok());
                }
                seconds += cpu_seconds() - start;
                rounds += 1;
            }
            seconds * 1e6 / (rounds * span_count) as f64
        });
        let result = measured();
        drop(stop);
        (result, decoding.join().expect("valid requests decode"))
    })
}

/// CPU time of this thread.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has schedstat");
    let nanos = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    nanos.expect("schedstat begins with nanoseconds on a CPU") / 1e9
}
