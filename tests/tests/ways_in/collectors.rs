//! The OpenTelemetry Collector in front of the mesh, with the README's exporters.
//!
//! A collector reads several files as one, so the README's text is one file, and what it leaves to
//! its reader another.

use crate::generator::{self, SPANS_OF_A_TRACE};
use crate::mesh::Mesh;
use serde_json::json;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;
use tracemesh_tests::{http, parts, readme};

/// A request with one span.
const ONE_SPAN: &[u8] = br#"{"resourceSpans": [{"scopeSpans": [{"spans": [
    {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}]}]}]}"#;
const JSON: (&str, &str) = ("content-type", "application/json");
/// Traces that are sent through a collector.
const TRACES: usize = 200;

/// Spans of a request of the collector: few enough that each of its connections gets some.
const BATCH: usize = 64;

/// Starts a collector with a text of the README; `None` without Go.
fn collector(mesh: &Mesh, text: &str) -> Option<Program> {
    let otelcol = parts::otelcol()?;
    let (exporters, others) =
        (mesh.host.path().join("exporters.yaml"), mesh.host.path().join("others.yaml"));
    fs::write(&exporters, text).expect("a configuration can be written");
    let endpoint = format!("127.0.0.1:{}", mesh.front_port());
    let rest = json!({
        "receivers": { "otlp": { "protocols": { "grpc": { "endpoint": endpoint } } } },
        "processors": { "batch": {
            "timeout": "100ms", "send_batch_size": BATCH, "send_batch_max_size": BATCH } },
        "service": {
            "telemetry": { "metrics": { "level": "none" } },
            "pipelines": { "traces": { "receivers": ["otlp"], "processors": ["batch"] } },
        },
    });
    fs::write(&others, rest.to_string()).expect("a configuration can be written");
    let mut command = Command::new(otelcol);
    command.arg("--config").arg(exporters).arg("--config").arg(others);
    Some(Program::start("otelcol", mesh.host.path(), &mut command))
}

/// Sends through a collector with a text of the README, changed by `change`; `None` without Go.
fn send_through(name: &str, mesh: &Mesh, change: impl Fn(String) -> String) -> Option<()> {
    let text = change(mesh.here(&readme::text(name)));
    let mut collector = collector(mesh, &text)?;
    collector.wait_for_output("Everything is ready");
    let address = format!("127.0.0.1:{}", mesh.front_port());
    generator::send(mesh, &address, TRACES)?;
    mesh.assert_came_out(TRACES * SPANS_OF_A_TRACE, SPANS_OF_A_TRACE);
    Some(())
}

/// Replaces what must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in {text}");
    text.replace(from, to)
}

#[test]
fn collector_sends_to_one_node_over_grpc() {
    send_through("collector-grpc", &Mesh::start(), |text| text);
}

#[test]
fn collector_sends_to_one_node_over_http() {
    send_through("collector-http", &Mesh::start(), |text| text);
}

#[test]
fn collector_sends_to_one_node_over_http_as_json() {
    send_through("collector-http", &Mesh::start(), |text| {
        replaced(&text, "encoding: proto ", "encoding: json ")
    });
}

#[test]
fn collector_sends_by_tls_and_with_a_token() {
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let addresses = (1..=3).map(|number| format!("127.0.0.{number}"));
    let parameters = rcgen::CertificateParams::new(addresses.collect::<Vec<_>>());
    let parameters = parameters.expect("addresses can be certified");
    let certificate = parameters.self_signed(&key).expect("a certificate signs itself");
    let files = [
        ("server.pem", certificate.pem()),
        ("server.key", key.serialize_pem()),
        ("tokens", "collector:a-token\n".to_owned()),
        ("ca.pem", certificate.pem()),
    ];
    let moved = |mesh: &Mesh, text: &str| {
        text.replace("/etc/tracemesh", &mesh.host.path().to_string_lossy())
    };
    let mesh = Mesh::start_with(|settings, mesh| {
        for (name, text) in &files {
            fs::write(mesh.host.path().join(name), text).expect("a file can be written");
        }
        let path = |name: &str| mesh.host.path().join(name);
        let [certificate, key, tokens] = ["server.pem", "server.key", "tokens"].map(path);
        // The test has no YAML; the README's text has to name the same keys.
        let text = moved(mesh, &readme::text("secured"));
        for part in ["ingest:\n  tls: {cert_file: ", ", key_file: ", "}\n  bearer_tokens_file: "] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        settings
            .with("ingest.tls", json!({ "cert_file": certificate, "key_file": key }))
            .with("ingest.bearer_tokens_file", json!(tokens))
    });
    send_through("collector-secured", &mesh, |text| {
        replaced(&moved(&mesh, &text), "${env:TRACEMESH_TOKEN}", "a-token")
    });
}

#[test]
fn collector_sends_to_all_nodes_by_trace() {
    let mesh = Mesh::start();
    let Some(()) = send_through("collector-loadbalancing", &mesh, |text| text) else { return };
    assert_all_accepted_some(&mesh);
}

#[test]
fn collector_sends_to_all_nodes_by_service() {
    send_through("collector-loadbalancing", &Mesh::start(), |text| {
        replaced(&text, "routing_key: traceID ", "routing_key: service ")
    });
}

#[test]
fn collector_sends_to_all_addresses_of_a_name() {
    let mesh = Mesh::start();
    let dns = serve_dns();
    let sent = send_through("collector-dns", &mesh, |text| {
        replaced(&text, "dns:///mesh.internal:", &format!("dns://{dns}/mesh.internal:"))
    });
    let Some(()) = sent else { return };
    assert_all_accepted_some(&mesh);
}

#[test]
fn collector_sends_everything_twice_and_it_comes_out_once() {
    let mesh = Mesh::start();
    let Some(()) = send_through("collector-several", &mesh, |text| text) else { return };
    let twice = (2 * TRACES * SPANS_OF_A_TRACE) as f64;
    wait_until("the second copies", || mesh.sum("tracemesh_spans_accepted_total") >= twice);
    mesh.assert_came_out(TRACES * SPANS_OF_A_TRACE, SPANS_OF_A_TRACE);
}

#[test]
fn clients_of_data_prepper_keep_their_port_and_their_path() {
    let mesh = Mesh::start_with(|settings, mesh| match settings.id() {
        "n1" => {
            let text = mesh.here(&readme::text("data-prepper"));
            let (_, listeners) = text.split_once("grpc: ").expect("the text sets listen.grpc");
            // What YAML writes so is JSON.
            let listeners = serde_json::from_str(listeners).expect("a list of addresses");
            settings.with("listen.grpc", listeners)
        }
        _ => settings,
    });
    let sent = send_through("collector-grpc", &mesh, |text| {
        replaced(&text, &mesh.here("10.0.0.1:4317"), &mesh.here("10.0.0.1:21890"))
    });
    let Some(()) = sent else { return };
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    assert!(readme::README.contains(path));
    let answer = http::post(&mesh.nodes[0].http_url(path), &[JSON], ONE_SPAN);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let all = (TRACES * SPANS_OF_A_TRACE + 1) as f64;
    mesh.nodes[0].wait_for_metric("tracemesh_spans_accepted_total", &[], all);
}

/// The copied example that the README warns of.
#[test]
fn collector_refuses_endpoints_and_balancing() {
    let mesh = Mesh::start();
    let text = "exporters: {otlp: {endpoints: [\"127.0.0.1:4317\"], balancing: round_robin}}\n\
                service: {pipelines: {traces: {exporters: [otlp]}}}\n";
    let Some(mut collector) = collector(&mesh, text) else { return };
    assert!(!collector.wait().success());
    let printed = collector.output();
    assert!(printed.contains("has invalid keys: balancing, endpoints"), "{printed}");
}

#[track_caller]
fn assert_all_accepted_some(mesh: &Mesh) {
    for node in &mesh.nodes {
        assert!(node.metrics().sum("tracemesh_spans_accepted_total", &[]) > 0.0);
    }
}

/// A name server that knows one answer: the three nodes.
fn serve_dns() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = socket.local_addr().expect("a bound socket has an address");
    // Ends with the process.
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let answer = answer(&query[..length]);
            // A client that went away asks no more.
            let _ = socket.send_to(&answer, client);
        }
    });
    address
}

/// The answer to a query with one question (RFC 1035, section 4): addresses when it asks for type
/// A, else none.
fn answer(query: &[u8]) -> Vec<u8> {
    const HEADER: usize = 12;
    let name = query[HEADER..].iter().position(|&byte| byte == 0).expect("a name ends");
    let question = &query[HEADER..HEADER + name + 5];
    let asks_for_addresses = question[name + 1..name + 3] == [0, 1];
    let nodes: &[u8] = if asks_for_addresses { &[1, 2, 3] } else { &[] };
    // The query's number; an authoritative answer, with recursion as was desired.
    let mut answer = vec![query[0], query[1], 0x85, 0x80];
    answer.extend([0, 1, 0, nodes.len() as u8, 0, 0, 0, 0]);
    answer.extend(question);
    for &node in nodes {
        // The name of the question, type A, class IN, for 60 s, four bytes.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, node]);
    }
    answer
}
