//! Servers that others wrote, to which a node sends.

use crate::host;
use crate::otlp::{PROTOBUF, encoded, hex, trace, trace_id};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use tracemesh_tests::parts;
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;

/// Writes an authority, and certificates of it for a server and a client, into `directory`.
fn write_certificates(directory: &Path) {
    let write = |name: &str, text: String| {
        fs::write(directory.join(name), text).expect("a certificate can be written");
    };
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", params.self_signed(&key).expect("an authority").pem());
    let issuer = Issuer::new(params, key);
    for name in ["127.0.0.1", "client"] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[test]
fn node_sends_to_the_collector_over_both_protocols_with_and_without_tls() {
    let Some(otelcol) = parts::otelcol() else {
        return;
    };
    let host = host();
    let behind = host.node("behind").start();
    write_certificates(host.path());
    let path = |name: &str| host.path().join(name);
    let port = claim_base_port();
    let address = |number: u16| json!({ "endpoint": format!("127.0.0.1:{}", port + number) });
    let tls = json!({
        "cert_file": path("127.0.0.1.pem"), "key_file": path("127.0.0.1.key"),
        "client_ca_file": path("ca.pem") });
    let within_tls = |number| {
        let mut protocol = address(number);
        protocol["tls"] = tls.clone();
        protocol
    };
    let config = json!({
        "receivers": {
            "otlp": { "protocols": { "grpc": address(0), "http": address(1) } },
            "otlp/tls": { "protocols": { "grpc": within_tls(2), "http": within_tls(3) } } },
        "exporters": { "otlp": { "endpoint": behind.grpc_url(), "tls": { "insecure": true } } },
        "service": {
            "telemetry": { "metrics": { "level": "none" } },
            "pipelines": { "traces": {
                "receivers": ["otlp", "otlp/tls"], "exporters": ["otlp"] } } },
    });
    fs::write(path("otelcol.yaml"), config.to_string()).expect("a configuration can be written");
    let mut command = Command::new(&otelcol);
    command.arg("--config").arg(path("otelcol.yaml"));
    let mut collector = Program::start("otelcol", host.path(), &mut command);
    collector.wait_for_output("Everything is ready");

    let url = |scheme, number: u16| format!("{scheme}://127.0.0.1:{}", port + number);
    let files = json!({
        "ca_file": path("ca.pem"), "cert_file": path("client.pem"),
        "key_file": path("client.key") });
    let sinks = json!([
        { "otlp": { "endpoint": url("http", 0), "protocol": "grpc" } },
        { "otlp": { "endpoint": url("http", 1), "protocol": "http", "compression": "gzip" } },
        { "otlp": { "endpoint": url("https", 2), "protocol": "grpc", "tls": files } },
        { "otlp": { "endpoint": url("https", 3), "protocol": "http", "tls": files } },
    ]);
    let node = host.node("before").with("sinks", sinks).start();
    let id = trace_id(1);
    let request = encoded(trace(&id, 5));
    wait_until("the node takes a trace", || node.post(PROTOBUF, &request).status == 200);
    for sink in ["otlp", "otlp-2", "otlp-3", "otlp-4"] {
        node.wait_for_metric("tracemesh_sink_spans_total", &[("sink", sink)], 5.0);
    }
    assert_eq!(behind.wait_for_trace(&hex(&id)).spans.len(), 5);
}
