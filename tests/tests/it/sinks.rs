//! What sinks do with traces that are refused, and with files that are full.

use crate::otlp::{PROTOBUF, encoded, hex, trace, trace_id};
use crate::{TRACEMESH, host};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;

const SPANS_OF_A_TRACE: u64 = 4;

#[test]
fn refused_traces_are_dead_letters_that_can_be_sent_again() {
    let host = host();
    let behind = host.node("behind").start();
    let wrong =
        json!([{ "otlp": { "endpoint": behind.http_url("/nowhere"), "protocol": "http" } }]);
    let settings = host.node("before").with("sinks", wrong);
    let node = settings.start();
    let ids: Vec<_> = (0..3).map(trace_id).collect();
    for id in &ids {
        assert_eq!(node.post(PROTOBUF, &encoded(trace(id, SPANS_OF_A_TRACE))).status, 200);
    }
    let refused = [("sink", "otlp")];
    node.wait_for_metric("tracemesh_spans_dead_lettered_total", &refused, 12.0);
    assert!(node.metrics().sum("tracemesh_dead_letter_bytes", &[]) > 0.0);

    let file = settings.directory().join("data/before/dead-letters/otlp.jsonl");
    let letters = fs::read_to_string(&file).expect("there are dead letters");
    assert!(letters.contains("HTTP 404"), "{letters}");
    let damaged = letters.replacen('\n', "\n{\"sink\":\n", 1);
    fs::write(&file, damaged).expect("they can be damaged");
    let mut command = Command::new(TRACEMESH);
    command.arg("replay-dead-letters").arg(&file).args(["--json", "--protocol", "http"]);
    command.args(["--to", &behind.http_url("")]);
    let ended = Program::run("replay", host.path(), &mut command);
    assert_eq!(ended.status.code(), Some(1), "a line is damaged");
    let summary = ended.output.lines().rfind(|line| line.starts_with('{')).expect("a summary");
    let summary: Value = serde_json::from_str(summary).expect("it is JSON");
    let wanted = json!({
        "letters_sent": 3, "spans_sent": 12, "spans_rejected": 0, "letters_refused": 0,
        "lines_damaged": 1, "next_line": 5 });
    assert_eq!(summary, wanted);
    for id in &ids {
        let spans = behind.wait_for_trace(&hex(id)).spans.len() as u64;
        assert_eq!(spans, SPANS_OF_A_TRACE);
    }
}

#[test]
fn sink_that_is_not_required_holds_up_nobody() {
    let host = host();
    let settings = host.node("a");
    let file = settings.trace_file();
    let sinks = json!([
        { "file": { "path": file } },
        { "otlp": { "endpoint": "http://127.0.0.1:1", "required": false, "queue": "1KiB" } } ]);
    let settings = settings.with("sinks", sinks);
    let mut node = settings.start();
    let traces = 20;
    for number in 0..traces {
        let request = encoded(trace(&trace_id(number), SPANS_OF_A_TRACE));
        assert_eq!(node.post(PROTOBUF, &request).status, 200);
    }
    wait_until("nothing is held", || node.metrics().sum("tracemesh_spans_held", &[]) == 0.0);
    assert_eq!(node.traces().len() as u64, traces);
    // What was in its queue is written down at the end.
    assert!(node.stop().success());
    let letters = settings.directory().join("data/a/dead-letters/otlp.jsonl");
    let letters = fs::read_to_string(letters).expect("there are dead letters");
    assert_eq!(letters.lines().count() as u64, traces);
    assert!(letters.contains("the queue of the sink is full"));
    assert!(letters.contains("the node ended first"));
}

#[test]
fn load_finds_every_span_in_files_that_are_rotated() {
    let host = host();
    let settings = host.node("a");
    let file = settings.trace_file();
    let sinks = json!([{ "file": { "path": file, "rotate": "64KiB", "keep": 1000 } }]);
    let node = settings.with("sinks", sinks).start();
    let mut command = Command::new(TRACEMESH);
    command.args(["load", "--spans", "8000", "--target", &node.grpc_url()]);
    command.arg("--verify-file").arg(&file);
    Program::run("load", host.path(), &mut command).succeeded();
    let directory = file.parent().expect("a file is in a directory");
    let files = fs::read_dir(directory).expect("it can be listed").filter(|entry| {
        let entry = entry.as_ref().expect("it can be listed");
        entry.path().to_string_lossy().starts_with(&*file.to_string_lossy())
    });
    assert!(files.count() > 10, "it was rotated");
}
