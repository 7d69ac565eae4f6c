//! SDKs that find the mesh by the environment alone, as the README says.

use crate::mesh::Mesh;
use std::process::Command;
use tracemesh_tests::program::Program;
use tracemesh_tests::{parts, readme};

/// Spans of the trace that each of the programs sends.
const SPANS_OF_A_TRACE: usize = 11;

/// The assignments of a text of the README.
fn environment(mesh: &Mesh, name: &str) -> Vec<(String, String)> {
    let text = mesh.here(&readme::text(name));
    let words = text.split_whitespace().filter(|word| *word != "export");
    let pairs = words.filter_map(|word| word.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Sends one trace for each protocol and compression with the command that `sender` makes of the
/// two, and finds each whole.
fn send(protocols: &[&str], sender: impl Fn(&str, &str) -> Command) {
    let mesh = Mesh::start();
    let mut sent = Vec::new();
    for protocol in protocols {
        let text = if *protocol == "grpc" { "sdk-grpc" } else { "sdk-http" };
        for compression in ["none", "gzip"] {
            let mut command = sender(protocol, compression);
            command.envs(environment(&mesh, text));
            let printed = Program::run("sdk", mesh.host.path(), &mut command).succeeded();
            let trace_id = printed.lines().last().expect("the program prints the trace id");
            sent.push(trace_id.to_owned());
        }
    }
    mesh.assert_came_out(sent.len() * SPANS_OF_A_TRACE, SPANS_OF_A_TRACE);
    let came = mesh.span_counts();
    assert!(sent.iter().all(|trace_id| came.contains_key(trace_id)), "{sent:?}");
}

/// A script beside this file.
fn script(name: &str) -> String {
    format!("{}/tests/ways_in/sdks/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn python() {
    let Some(python) = parts::python_with_sdk() else { return };
    send(&["grpc", "http"], |protocol, compression| {
        let mut command = Command::new(&python);
        command.args([&script("send.py"), protocol, compression]);
        command
    });
}

#[test]
fn javascript() {
    let Some(sdk) = parts::javascript_sdk() else { return };
    send(&["grpc", "http/protobuf", "http/json"], |protocol, compression| {
        let mut command = Command::new("node");
        command.arg(script("send.mjs")).arg(&sdk).args([protocol, compression]);
        command
    });
}

#[test]
fn go() {
    let Some(program) = parts::go_sdk() else { return };
    send(&["grpc", "http"], |protocol, compression| {
        let mut command = Command::new(&program);
        command.args([protocol, compression]);
        command
    });
}

#[test]
fn java() {
    let Some(jars) = parts::java_sdk() else { return };
    send(&["grpc", "http"], |_, compression| {
        let mut command = Command::new("java");
        command.arg("-cp").arg(jars.join("*")).arg(script("Send.java"));
        command.env("OTEL_EXPORTER_OTLP_COMPRESSION", compression);
        command.envs([("OTEL_METRICS_EXPORTER", "none"), ("OTEL_LOGS_EXPORTER", "none")]);
        command
    });
}
