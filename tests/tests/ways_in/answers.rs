//! What the collector does with each answer that a node can give: the README's table, observed.
//!
//! A collector with both of its OTLP exporters, as they are by default, sends to a node that has a
//! reason to give that answer. What it did is read from its log.

use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::time::Duration;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::{wait_for, wait_until};
use tracemesh_tests::{http, parts, readme};

use crate::mesh::TRACEMESH;

/// The exporters, as the collector names them.
const EXPORTERS: [&str; 2] = ["otlp", "otlphttp"];
/// The shortest and longest first wait of the collector by itself: 5 s, more or less by half
/// (exporterhelper's defaults); and the longest that a node asks for.
const WAITS: [Duration; 2] = [Duration::from_millis(2_500), Duration::from_secs(10)];
/// A span that can be accepted.
const SPAN: &str =
    r#"{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}"#;
/// One that never can.
const SPAN_WITHOUT_IDS: &str =
    r#"{"traceId": "00000000000000000000000000000000", "spanId": "0000000000000000"}"#;

/// A reason for an answer.
struct Case {
    /// As in the table.
    reason: &'static str,
    settings: fn(Settings) -> Settings,
    /// Brings the node into the state that the answer tells of.
    before: fn(&mut Node),
    /// Path, content type and body for the collector's receiver.
    request: fn() -> (&'static str, &'static str, Vec<u8>),
}

/// What became of a request, as both exporters saw it.
#[derive(PartialEq, Eq)]
struct Row {
    reason: &'static str,
    grpc: String,
    http: String,
    collector: &'static str,
}

const CASES: [Case; 8] = [
    Case {
        reason: "every span is held as often as the cluster promises",
        settings: |settings| settings,
        before: |_| {},
        request: || traces(SPAN),
    },
    Case {
        reason: "some spans can never be accepted (ids of zeros or of a wrong length)",
        settings: |settings| settings,
        before: |_| {},
        request: || traces(&format!("{SPAN}, {SPAN_WITHOUT_IDS}")),
    },
    Case {
        reason: "the request is no OTLP (here: a text that is not UTF-8)",
        settings: |settings| settings,
        before: |_| {},
        // Resource spans, scope spans, a span with a name.
        request: || {
            ("traces", "application/x-protobuf", b"\x0a\x07\x12\x05\x12\x03\x2a\x01\xff".into())
        },
    },
    Case {
        reason: "the request is larger than `ingest.request_bytes_max`",
        settings: |settings| settings.with("ingest.request_bytes_max", json!("1KiB")),
        before: |_| {},
        request: || {
            let name = "x".repeat(1024);
            traces(&SPAN.replace('}', &format!(r#", "name": "{name}"}}"#)))
        },
    },
    Case {
        reason: "the memory budget is used up, or too few nodes answer",
        settings: |settings| {
            let nobody = format!("http://127.0.0.1:{}", claim_base_port());
            let settings = settings.with("sinks", json!([{ "otlp": { "endpoint": nobody } }]));
            // Nothing is due meanwhile: what is tried at a sink takes more memory, and less after.
            let settings = settings.with("traces.root_delay", json!("1h"));
            let settings = settings.with("traces.age_max", json!("24h"));
            settings.with("node.memory", json!("16MiB"))
        },
        before: fill,
        request: || traces(SPAN),
    },
    Case {
        reason: "no valid token of `ingest.bearer_tokens_file`",
        settings: |settings| {
            let tokens = settings.directory().join("tokens");
            fs::write(&tokens, "shop:a-long-and-secret-token\n").expect("a file can be written");
            settings.with("ingest.bearer_tokens_file", json!(tokens))
        },
        before: |_| {},
        request: || traces(SPAN),
    },
    Case {
        reason: "logs or metrics",
        settings: |settings| settings,
        before: |_| {},
        request: || {
            let body =
                r#"{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"severityNumber": 9}]}]}]}"#;
            ("logs", "application/json", body.into())
        },
    },
    Case {
        reason: "the node has gone",
        settings: |settings| settings,
        before: |node| assert!(node.stop().success()),
        request: || traces(SPAN),
    },
];

/// A request with these spans.
fn traces(spans: &str) -> (&'static str, &'static str, Vec<u8>) {
    let body = format!(r#"{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{spans}]}}]}}]}}"#);
    ("traces", "application/json", body.into())
}

/// Sends until the node has no place for the smallest span.
fn fill(node: &mut Node) {
    let mut number = 0_u64;
    for name in [512 << 10, 8 << 10, 0].map(|length| "x".repeat(length)) {
        wait_until("the node to be full", || {
            number += 1;
            let ids = format!(r#""traceId": "{number:032x}", "spanId": "{number:016x}""#);
            let (_, content_type, body) = traces(&format!(r#"{{{ids}, "name": "{name}"}}"#));
            node.post(content_type, &body).status == 503
        });
    }
}

/// The exporters of a collector, and what it needs besides.
fn configuration(receiver: &str, node: &Node) -> Value {
    let pipeline = json!({ "receivers": ["otlp"], "exporters": EXPORTERS });
    json!({
        "receivers": { "otlp": { "protocols": { "http": { "endpoint": receiver } } } },
        "exporters": {
            "otlp": { "endpoint": node.grpc_address(), "tls": { "insecure": true } },
            "otlphttp": { "endpoint": node.http_url("") },
        },
        "service": {
            "telemetry": { "metrics": { "level": "none" }, "logs": { "encoding": "json" } },
            "pipelines": { "traces": pipeline, "logs": pipeline },
        },
    })
}

/// Plays a case.
fn observe(case: &Case, otelcol: &std::path::Path) -> Row {
    let host = Host::new(TRACEMESH);
    let mut node = (case.settings)(host.node("a")).start();
    (case.before)(&mut node);
    let receiver = format!("127.0.0.1:{}", claim_base_port());
    let file = host.path().join("otelcol.yaml");
    fs::write(&file, configuration(&receiver, &node).to_string()).expect("a file can be written");
    let mut command = Command::new(otelcol);
    let mut collector = Program::start("otelcol", host.path(), command.arg("--config").arg(&file));
    collector.wait_for_output("Everything is ready");
    let (signal, content_type, body) = (case.request)();
    let url = format!("http://{receiver}/v1/{signal}");
    let answer = http::post(&url, &[("content-type", content_type)], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = EXPORTERS.map(|exporter| {
        wait_for(&format!("the fate of a request of {exporter}"), || {
            fate(&collector.output(), exporter).or_else(|| taken(&node, exporter))
        })
    });
    let [(grpc, by_grpc), (http, by_http)] = seen;
    assert_eq!(by_grpc, by_http, "both exporters do the same: {}", case.reason);
    Row { reason: case.reason, grpc, http, collector: by_grpc }
}

/// The answer to an exporter's request and what it did then, if its log tells.
fn fate(log: &str, exporter: &str) -> Option<(String, &'static str)> {
    log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
        let text = |key: &str| line[key].as_str().unwrap_or_default();
        if text("otelcol.component.id") != exporter {
            return None;
        }
        let message = text("msg");
        let answer = || answer_in(text("error"));
        if message.starts_with("Exporting failed. Will retry") {
            let interval = text("interval");
            let seconds = interval.trim_end_matches('s').parse().expect("some seconds");
            let waits = Duration::from_secs_f64(seconds);
            assert!((WAITS[0]..=WAITS[1]).contains(&waits), "{interval}");
            return Some((answer(), "sends it again, after 2.5 to 10 s"));
        }
        if message.starts_with("Exporting failed. Dropping data") {
            return Some((answer(), "drops it and says so"));
        }
        if message.starts_with("Partial success") {
            let answer = if exporter == "otlp" { "OK" } else { "200" };
            return Some((
                format!("{answer}, `partial_success`"),
                "warns, and sends nothing again",
            ));
        }
        None
    })
}

/// The status in an error message of the collector.
fn answer_in(error: &str) -> String {
    let after = |mark: &str| {
        let (_, rest) = error.split_once(mark)?;
        let word = rest.split(|next: char| !next.is_alphanumeric()).next()?;
        Some(word.to_owned())
    };
    if error.contains("connection refused") {
        return "none".into();
    }
    let code = after("HTTP Status Code ").or_else(|| after("rpc error: code = "));
    code.unwrap_or_else(|| panic!("an error without a status: {error}"))
}

/// Whether the node says that it took the whole request.
fn taken(node: &Node, exporter: &str) -> Option<(String, &'static str)> {
    let (protocol, answer) = if exporter == "otlp" { ("grpc", "OK") } else { ("http", "200") };
    let labels = [("protocol", protocol), ("answer", "accepted")];
    let metrics = node.metrics();
    let is_taken = metrics.sum("tracemesh_requests_total", &labels) > 0.0;
    let is_whole = metrics.sum("tracemesh_spans_refused_total", &[]) == 0.0;
    (is_taken && is_whole).then(|| (answer.to_owned(), "takes it for sent"))
}

#[test]
fn readme_tells_what_the_collector_does_with_each_answer() {
    let Some(otelcol) = parts::otelcol() else { return };
    let mut table = String::from("| When | gRPC | HTTP | The collector |\n|---|---|---|---|\n");
    for case in &CASES {
        let Row { reason, grpc, http, collector } = observe(case, &otelcol);
        table += &format!("| {reason} | {grpc} | {http} | {collector} |\n");
    }
    let written = readme::section("answers");
    assert!(written == table.trim(), "between the marks of the README belongs:\n{table}");
}
