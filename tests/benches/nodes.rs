//! What a span costs in whole processes: real nodes, `tracemesh load` as clients and as the sink.
//!
//! `cargo bench -p tracemesh-tests --bench nodes -- one`, or `three`, or `three-without-replica`.
//! OTLP gRPC in and out, uncompressed; every span that comes out is verified. A first load warms
//! the nodes up, because memory that was never touched costs more than the work; of the second one,
//! the line `cost, all` is the figure: CPU seconds (user and system) of the nodes per million
//! spans, the load itself not included. Meanwhile this process decodes the same requests with prost
//! now and then, with the system's allocator, so that both suffer from whatever else the machine
//! does: the ratio is what can be compared with other machines, and with the goals.
//!
//! `-- join` measures how long clients of three nodes wait for an acknowledgement at [`JOIN_RATE`],
//! and again while a fourth one joins.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::{Value, json};
use std::hint::black_box;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use tracemesh::command::load_requests;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::wait::last;

/// Enough for some seconds of load, and held by the nodes while they wait for root spans.
const SPANS: &str = "3000000";
/// Requests that prost decodes in one go: more than the nearest caches hold.
const DECODED_REQUESTS: usize = 32;
/// Until it decodes them again.
const DECODE_EVERY: Duration = Duration::from_millis(300);
/// Spans a second while a node joins.
const JOIN_RATE: &str = "20000";
/// How long these loads last, and after how long in the second one the node starts.
const JOIN_LOAD: &str = "20s";
const JOIN_AFTER: Duration = Duration::from_secs(5);
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
        Some("join") => return ended(join()),
        _ => {
            eprintln!("usage: cargo bench -p tracemesh-tests --bench nodes -- WHAT");
            eprintln!("where WHAT is one, three, three-without-replica or join");
            // `cargo bench --workspace` names nothing, and nothing is measured.
            return ExitCode::SUCCESS;
        }
    };
    ended(measure(&cluster))
}

fn ended(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Nodes that are not started yet, with one sink.
fn settings(host: &Host, ids: &[&str], replicas: u8, sink: &str) -> Vec<Settings> {
    let endpoint = format!("http://{sink}");
    let settings = host.nodes(ids).into_iter().map(|node| {
        node.with("sinks", json!([{ "otlp": { "endpoint": endpoint, "compression": "none" } }]))
            .with("cluster.replicas", json!(replicas))
            .with("node.memory", json!("4GiB"))
            .with("traces.root_delay", json!("2s"))
    });
    settings.collect()
}

/// Starts them, and waits until each sees all.
fn start(settings: &[Settings]) -> Vec<Node> {
    let mut nodes: Vec<Node> = settings.iter().map(Settings::launch).collect();
    nodes.iter_mut().for_each(Node::wait_until_ready);
    nodes.iter().for_each(|node| node.wait_for_members(settings.len()));
    nodes
}

/// How long clients wait while a node joins, beside how long they wait otherwise.
fn join() -> Result<(), String> {
    let host = Host::new(env!("CARGO_BIN_EXE_tracemesh-under-test"));
    let sink = format!("127.0.0.1:{}", claim_base_port());
    let settings = settings(&host, &["a", "b", "c", "d"], 1, &sink);
    let nodes = start(&settings[..3]);
    let load = || {
        let mut load = Command::new(host.program());
        load.args(["load", "--json", "--rate", JOIN_RATE, "--duration", JOIN_LOAD]);
        load.args(["--listen", &sink]).stdout(Stdio::piped()).stderr(Stdio::null());
        for node in &nodes {
            load.args(["--target", &node.grpc_url()]);
        }
        load.spawn().map_err(|error| format!("cannot start the load: {error}"))
    };
    let p99 = |load: Child| {
        let output = load.wait_with_output().map_err(|error| format!("the load: {error}"))?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("the load says no JSON: {error}"))?;
        let figure = |path| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        println!(
            "acknowledged in {:.1} ms (p50), {:.1} ms (p99), longest gap {:.0} ms; lost {}",
            figure("/acknowledgements/p50_milliseconds"),
            figure("/acknowledgements/p99_milliseconds"),
            figure("/acknowledgements/gap_max_milliseconds"),
            report["verification"]["spans_lost"],
        );
        Ok::<f64, String>(figure("/acknowledgements/p99_milliseconds"))
    };
    println!("== to warm up");
    p99(load()?)?;
    println!("== nobody joins");
    let before = p99(load()?)?;
    println!("== a node joins");
    let during = load()?;
    last(JOIN_AFTER);
    let _joined = settings[3].start();
    let during = p99(during)?;
    println!("p99 is {:.2} times as long while a node joins", during / before);
    Ok(())
}

fn measure(cluster: &Cluster) -> Result<(), String> {
    let host = Host::new(env!("CARGO_BIN_EXE_tracemesh-under-test"));
    let sink = format!("127.0.0.1:{}", claim_base_port());
    let mut nodes = start(&settings(&host, cluster.ids, cluster.replicas, &sink));
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
