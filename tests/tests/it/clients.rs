//! Clients that others wrote, pointing at one node.

use crate::host;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::Node;
use tracemesh_tests::parts;
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;

/// Spans of a trace of telemetrygen: the root and seven children.
const SPANS_OF_A_TRACE: usize = 8;
/// Traces that telemetrygen sends.
const TRACE_COUNT: usize = 200;

/// Sends [`TRACE_COUNT`] traces with telemetrygen.
fn generate(host: &Host, telemetrygen: &PathBuf, address: &str) {
    let mut command = Command::new(telemetrygen);
    command.args(["traces", "--otlp-endpoint", address, "--otlp-insecure"]);
    // Its own default is one span a second.
    command.args(["--rate", "0", "--traces", &TRACE_COUNT.to_string()]);
    command.args(["--child-spans", &(SPANS_OF_A_TRACE - 1).to_string()]);
    Program::run("telemetrygen", host.path(), &mut command).succeeded();
}

/// All generated traces are in the node's file, each once and whole.
fn assert_all_generated(node: &Node) {
    let all = (TRACE_COUNT * SPANS_OF_A_TRACE) as f64;
    wait_until("all generated spans", || {
        node.metrics().sum("tracemesh_spans_exported_total", &[]) >= all
    });
    let lines = node.traces();
    assert_eq!(lines.len(), TRACE_COUNT);
    assert!(lines.iter().all(|line| line.spans.len() == SPANS_OF_A_TRACE));
}

#[test]
fn telemetrygen_sends_to_a_node() {
    let Some(telemetrygen) = parts::telemetrygen() else {
        return;
    };
    let host = host();
    let node = host.node("a").with("traces.root_delay", json!("6s")).start();
    generate(&host, &telemetrygen, &node.grpc_address());
    assert_all_generated(&node);
}

#[test]
fn collector_sends_to_a_node_over_grpc_and_over_http() {
    let (Some(otelcol), Some(telemetrygen)) = (parts::otelcol(), parts::telemetrygen()) else {
        return;
    };
    for protocol in ["otlp", "otlphttp"] {
        let host = host();
        let node = host.node("a").with("traces.root_delay", json!("6s")).start();
        let endpoint = match protocol {
            "otlp" => node.grpc_url(),
            _ => node.http_url(""),
        };
        let port = claim_base_port();
        let file = host.path().join("otelcol.yaml");
        let config = json!({
            "receivers": { "otlp": { "protocols": {
                "grpc": { "endpoint": format!("127.0.0.1:{port}") } } } },
            "processors": { "batch": { "timeout": "100ms" } },
            "exporters": { protocol: { "endpoint": endpoint, "tls": { "insecure": true } } },
            "service": {
                "telemetry": { "metrics": { "level": "none" } },
                "pipelines": { "traces": {
                    "receivers": ["otlp"], "processors": ["batch"], "exporters": [protocol] } },
            },
        });
        fs::write(&file, config.to_string()).expect("a configuration can be written");
        let mut command = Command::new(&otelcol);
        command.arg("--config").arg(&file);
        let mut collector = Program::start("otelcol", host.path(), &mut command);
        collector.wait_for_output("Everything is ready");
        generate(&host, &telemetrygen, &format!("127.0.0.1:{port}"));
        assert_all_generated(&node);
    }
}

#[test]
fn python_sdk_sends_to_a_node_over_grpc_and_over_http() {
    let Some(python) = parts::python_with_sdk() else {
        return;
    };
    let host = host();
    let node = host.node("a").start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clients/send.py");
    let targets = [
        ("grpc", node.grpc_url(), "none"),
        ("grpc", node.grpc_url(), "gzip"),
        ("http", node.http_url("/v1/traces"), "none"),
        ("http", node.http_url("/v1/traces"), "gzip"),
    ];
    for (protocol, url, compression) in targets {
        let mut command = Command::new(&python);
        command.args([script, protocol, &url, compression]);
        let printed = Program::run("python", host.path(), &mut command).succeeded();
        let trace_id = printed.lines().last().expect("the script prints the trace id");
        let line = node.wait_for_trace(trace_id);
        let names: Vec<_> = line.spans.iter().map(|span| span["name"].as_str()).collect();
        assert!(names.contains(&Some("checkout")), "{names:?}");
        assert_eq!(names.len(), 11, "{protocol} {compression}");
    }
}
