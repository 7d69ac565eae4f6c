//! What a span costs in whole processes: real nodes, `tracemesh load` as clients and as the sink.
//!
//! `cargo bench -p tracemesh-tests --bench nodes -- one`, or `three`, or `three-without-replica`.
//! OTLP gRPC in and out, uncompressed; every span that comes out is verified. A first load warms
//! the nodes up, because memory that was never touched costs more than the work; of the second one,
//! the line `cost, all` is the figure: CPU seconds (user and system) of the nodes per million
//! spans, the load itself not included.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

use serde_json::json;
use std::process::{Command, ExitCode};
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;

/// Enough for some seconds of load, and held by the nodes while they wait for root spans.
const SPANS: &str = "1000000";

fn main() -> ExitCode {
    let what = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let (ids, replicas): (&[&str], u8) = match what.as_deref() {
        Some("one") => (&["a"], 1),
        Some("three") => (&["a", "b", "c"], 1),
        Some("three-without-replica") => (&["a", "b", "c"], 0),
        _ => {
            eprintln!("usage: cargo bench -p tracemesh-tests --bench nodes -- CLUSTER");
            eprintln!("where CLUSTER is one, three or three-without-replica");
            // `cargo bench --workspace` names nothing, and nothing is measured.
            return ExitCode::SUCCESS;
        }
    };
    let host = Host::new(env!("CARGO_BIN_EXE_tracemesh-under-test"));
    let sink = format!("127.0.0.1:{}", claim_base_port());
    let endpoint = format!("http://{sink}");
    let settings = host.nodes(ids).into_iter().map(|node| {
        node.with("sinks", json!([{ "otlp": { "endpoint": endpoint, "compression": "none" } }]))
            .with("cluster.replicas", json!(replicas))
            .with("node.memory", json!("4GiB"))
            .with("traces.root_delay", json!("6s"))
    });
    let settings: Vec<Settings> = settings.collect();
    let mut nodes: Vec<Node> = settings.iter().map(Settings::launch).collect();
    nodes.iter_mut().for_each(Node::wait_until_ready);
    nodes.iter().for_each(|node| node.wait_for_members(ids.len()));
    for round in ["to warm up", "measured"] {
        println!("\n== {SPANS} spans, {round}");
        let mut load = Command::new(host.program());
        load.args(["load", "--spans", SPANS, "--listen", &sink]);
        for node in &mut nodes {
            load.args(["--target", &node.grpc_url()]);
            load.args(["--pid", &node.program().id().to_string()]);
        }
        match load.status() {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("the load ended with {status}");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("cannot start the load: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
