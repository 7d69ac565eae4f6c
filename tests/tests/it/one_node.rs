//! One node, as somebody meets it who has just installed it.

use crate::otlp::{PROTOBUF, encoded, hex, span, trace, trace_id};
use crate::{TRACEMESH, host};
use serde_json::json;
use std::process::Command;
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;
use tracemesh_tests::{grpc, http};

const JSON_TRACE: &str = r#"{"resourceSpans":[{
    "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
    "scopeSpans":[{"spans":[{
        "traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174",
        "name":"checkout","kind":2,
        "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000"}]}]}]}"#;

#[test]
fn node_without_a_configuration_writes_a_posted_trace_beside_itself() {
    let host = host();
    let base_port = claim_base_port();
    let mut command = Command::new(TRACEMESH);
    command.args(["--base-port", &base_port.to_string()]);
    let mut node = Program::start("node", host.path(), &mut command);
    node.wait_for_output("ready");
    for port in base_port..base_port + 4 {
        let address = format!("127.0.0.1:{port}");
        assert!(node.output().contains(&address), "{address} is named: {}", node.output());
    }
    let url = format!("http://127.0.0.1:{}/v1/traces", base_port + 1);
    let answer = http::post(&url, &[("content-type", "application/json")], JSON_TRACE.as_bytes());
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert_eq!(answer.json(), json!({}));
    let file = host.path().join(format!("tracemesh-traces-{}.jsonl", base_port + 2));
    wait_until("the trace file", || !tracemesh_tests::traces::read(&file).is_empty());
    let [line] = &tracemesh_tests::traces::read(&file)[..] else { panic!("one trace, one line") };
    assert_eq!(line.trace_id, "5b8efff798038103d269b633813fc60c");
    assert_eq!(line.spans[0]["name"], "checkout");
}

#[test]
fn standard_output_has_traces_and_nothing_else() {
    let host = host();
    let base_port = claim_base_port();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" > traces", TRACEMESH, "--sink", "stdout"]);
    let arguments = ["--base-port", &base_port.to_string()];
    let mut node = Program::start("node", host.path(), command.args(arguments));
    node.wait_for_output("ready");
    let url = format!("http://127.0.0.1:{}/v1/traces", base_port + 1);
    let answer = http::post(&url, &[("content-type", "application/json")], JSON_TRACE.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    node.terminate();
    assert!(node.wait().success());
    let [line] = &tracemesh_tests::traces::read(&host.path().join("traces"))[..] else {
        panic!("one trace, one line")
    };
    assert_eq!(line.trace_id, "5b8efff798038103d269b633813fc60c");
    assert!(node.output().contains("drained"), "the log is elsewhere: {}", node.output());
}

#[test]
fn second_signal_stops_a_node_at_once() {
    let host = host();
    // Nobody listens there, so that it cannot drain.
    let sink = format!("http://127.0.0.1:{}", claim_base_port());
    let node = host.node("a").with("sinks", json!([{ "otlp": { "endpoint": sink } }]));
    let mut node = node.with("drain.timeout", json!("1h")).start();
    node.deliver(&encoded(trace(&trace_id(1), 2)));
    node.program().interrupt();
    node.program().wait_for_output("asked to stop; asked again, this node stops at once");
    node.program().wait_for_output("draining");
    node.program().terminate();
    assert_eq!(node.program().wait().code(), Some(1), "{}", node.output());
    assert!(node.output().contains("what no other node has is lost"), "{}", node.output());
}

#[test]
fn spans_of_a_trace_that_come_in_several_requests_are_one_line() {
    let host = host();
    let node = host.node("a").with("traces.root_delay", json!("10m"));
    let node = node.with("traces.spans_max", json!(3)).start();
    let mut client = grpc::Client::new(node.grpc_url());
    let id = trace_id(1);
    client.export(encoded(vec![span(&id, 1)])).expect("a node takes a child before its root");
    client.export(encoded(vec![span(&id, 0)])).expect("a node takes the root");
    assert_eq!(node.post(PROTOBUF, &encoded(vec![span(&id, 2)])).status, 200);
    assert_eq!(node.wait_for_trace(&hex(&id)).spans.len(), 3);
    assert_eq!(node.traces().len(), 1);
}

#[test]
fn traces_of_one_request_are_a_line_each() {
    let host = host();
    let node = host.node("a").start();
    let spans = (0..10).flat_map(|number| trace(&trace_id(number), 8)).collect();
    assert_eq!(node.post(PROTOBUF, &encoded(spans)).status, 200);
    for number in 0..10 {
        assert_eq!(node.wait_for_trace(&hex(&trace_id(number))).spans.len(), 8);
    }
    assert_eq!(node.traces().len(), 10);
    node.wait_for_metric("tracemesh_spans_exported_total", &[], 80.0);
    assert_eq!(node.metrics().sum("tracemesh_spans_accepted_total", &[]), 80.0);
}

#[test]
fn trace_without_a_root_is_written_when_it_is_old_enough() {
    let host = host();
    let node = host.node("a").with("traces.age_max", json!("1s")).start();
    let id = trace_id(2);
    assert_eq!(node.post(PROTOBUF, &encoded(vec![span(&id, 1)])).status, 200);
    assert_eq!(node.wait_for_trace(&hex(&id)).spans.len(), 1);
}

#[test]
fn trace_that_is_still_open_at_sigterm_is_written_before_the_node_ends() {
    let host = host();
    let mut node = host.node("a").with("traces.root_delay", json!("10m")).start();
    let id = trace_id(3);
    assert_eq!(node.post(PROTOBUF, &encoded(trace(&id, 8))).status, 200);
    assert!(node.stop().success(), "a drained node ends with 0");
    let [line] = &node.traces()[..] else { panic!("one trace: {:?}", node.traces()) };
    assert_eq!((line.trace_id.as_str(), line.spans.len()), (hex(&id).as_str(), 8));
}

#[test]
fn sighup_is_answered_and_changes_nothing() {
    let host = host();
    let mut node = host.node("a").with("traces.root_delay", json!("10m")).start();
    let id = trace_id(4);
    assert_eq!(node.post(PROTOBUF, &encoded(trace(&id, 8))).status, 200);
    node.program().hang_up();
    node.program().wait_for_output("reloading the configuration is not built");
    assert!(node.is_ready());
    assert!(node.stop().success(), "it drains as ever");
    assert_eq!(node.traces().len(), 1);
}

#[test]
fn both_paths_and_both_compressions_of_otlp_http_are_served() {
    let host = host();
    let node = host.node("a").start();
    let body = |number| encoded(trace(&trace_id(number), 2));
    let paths = ["/v1/traces", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"];
    for (number, path) in (0..).zip(paths) {
        let headers = [("content-type", PROTOBUF)];
        let answer = http::post(&node.http_url(path), &headers, &body(number));
        assert_eq!((answer.status, answer.header("content-type")), (200, PROTOBUF), "{path}");
    }
    let gzip = crate::bad_requests::gzip(&body(2));
    let zstd = zstd::encode_all(&body(3)[..], 3).expect("bytes can be compressed");
    for (encoding, bytes) in [("gzip", gzip), ("zstd", zstd)] {
        let headers = [("content-type", PROTOBUF), ("content-encoding", encoding)];
        let answer = http::post(&node.http_url("/v1/traces"), &headers, &bytes);
        assert_eq!(answer.status, 200, "{encoding}: {}", answer.text());
    }
    for number in 0..4 {
        assert_eq!(node.wait_for_trace(&hex(&trace_id(number))).spans.len(), 2);
    }
}

#[test]
fn console_says_that_the_node_is_well() {
    let host = host();
    let node = host.node("a").start();
    assert_eq!(http::get(&node.console_url("/healthz")).status, 200);
    let status = http::get(&node.console_url("/api/v1/status")).json();
    assert_eq!((&status["id"], &status["ready"]), (&json!("a"), &json!(true)));
    let metrics = node.metrics();
    for name in ["memory_bytes", "memory_budget_bytes", "members", "spans_held"] {
        let name = format!("tracemesh_{name}");
        assert!(metrics.has(&name, &[]), "{name} is missing among {:?}", metrics.names());
    }
}
