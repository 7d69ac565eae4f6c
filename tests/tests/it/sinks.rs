//! What sinks do with traces that are refused, and with files that are full.

use crate::otlp::{encoded, hex, trace, trace_id};
use crate::{TRACEMESH, host};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::time::Instant;
use tracemesh_tests::grpc::{Answer, Server};
use tracemesh_tests::node::Node;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::{last, wait_for, wait_until};

const SPANS_OF_A_TRACE: u64 = 4;
/// How long a node waits for a sink's answer.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

fn send(node: &Node, id: &[u8]) {
    node.deliver(&encoded(trace(id, SPANS_OF_A_TRACE)));
}

#[test]
fn refused_traces_are_dead_letters_that_can_be_sent_again() {
    let host = host();
    let behind = host.node("behind").start();
    let wrong =
        json!([{ "otlp": { "endpoint": behind.http_url("/nowhere"), "protocol": "http" } }]);
    let settings = host.node("before").with("sinks", wrong);
    let node = settings.start();
    let ids: Vec<_> = (0..3).map(trace_id).collect();
    ids.iter().for_each(|id| send(&node, id));
    let refused = [("sink", "otlp")];
    node.wait_for_metric("tracemesh_spans_dead_lettered_total", &refused, 12.0);
    assert!(node.metrics().sum("tracemesh_dead_letter_bytes", &[]) > 0.0);

    let file = settings.directory().join("data/before/dead-letters/otlp.jsonl");
    let letters = fs::read_to_string(&file).expect("there are dead letters");
    assert!(letters.contains("HTTP 404"), "{letters}");
    assert_eq!(settings.log().matches("sink lets nothing in").count(), 1, "{}", settings.log());
    let mut wrong_again = Command::new(TRACEMESH);
    wrong_again.arg("replay-dead-letters").arg(&file).args(["--protocol", "http"]);
    wrong_again.args(["--to", &behind.http_url("/nowhere")]);
    let ended = Program::run("replay-wrong", host.path(), &mut wrong_again);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.output.contains("stopped before line 1: HTTP 404"), "{}", ended.output);
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
    (0..traces).for_each(|number| send(&node, &trace_id(number)));
    wait_until("all traces", || node.traces().len() as u64 == traces);
    wait_until("nothing is held", || node.metrics().sum("tracemesh_spans_held", &[]) == 0.0);
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
    let sinks = json!([{ "file": { "path": file, "rotate": "128KiB", "keep": 100 } }]);
    let node = settings.with("sinks", sinks).start();
    let mut command = Command::new(TRACEMESH);
    command.args(["load", "--spans", "4000", "--target", &node.grpc_url()]);
    command.arg("--verify-file").arg(&file);
    Program::run("load", host.path(), &mut command).succeeded();
    let directory = file.parent().expect("a file is in a directory");
    let files = fs::read_dir(directory).expect("it can be listed").filter(|entry| {
        let entry = entry.as_ref().expect("it can be listed");
        entry.path().to_string_lossy().starts_with(&*file.to_string_lossy())
    });
    assert!(files.count() > 4, "it was rotated");
}

/// A disk of 256 KiB at this path.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where only others may make one.
    fn mount(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).expect("a directory can be made");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&path);
        let is_mounted = command.status().is_ok_and(|status| status.success());
        is_mounted.then_some(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is left then is left to whoever looks after the machine.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn full_disk_is_said_with_its_path_and_loses_nothing() {
    let host = host();
    let Some(disk) = SmallDisk::mount(host.path().join("disk")) else {
        // Who may not, may not as CI either.
        return eprintln!("SKIPPED: a small disk needs leave to mount");
    };
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![0; 224 << 10]).expect("the disk has room for that");
    let file = disk.0.join("traces.jsonl");
    let node = host.node("a").with("sinks", json!([{ "file": { "path": file } }])).start();
    let traces = 100;
    (0..traces).for_each(|number| send(&node, &trace_id(number)));
    node.wait_for_metric("tracemesh_sink_up", &[("sink", "file")], 0.0);
    let said = format!("cannot write; traces wait with their owners path=\"{}\"", file.display());
    wait_until("the full disk is said", || node.output().contains(&said));
    fs::remove_file(&filler).expect("room can be made");
    wait_until("all traces", || tracemesh_tests::traces::read(&file).len() as u64 >= traces);
    let lines = tracemesh_tests::traces::read(&file);
    let ids: BTreeSet<_> = lines.iter().map(|line| line.trace_id.clone()).collect();
    assert_eq!((lines.len() as u64, ids.len() as u64), (traces, traces), "each once");
}

/// How a node ended whose sink took a trace while it did, and whether it left a spool; `None` when
/// the sink's answer came too late for the attempt.
fn end_while_a_sink_has_a_trace() -> Option<(Option<i32>, bool)> {
    let host = host();
    let (asked, came) = channel();
    let (answer, answers) = channel();
    let answers = Mutex::new(answers);
    let server = Server::start("127.0.0.1:0", move |_| {
        asked.send(()).expect("the test waits for it");
        answers.lock().expect("one request at a time").recv().expect("the test answers");
        Answer::Taken
    });
    let settings = host
        .node("a")
        .with("sinks", json!([{ "otlp": { "endpoint": server.url(), "compression": "none" } }]))
        .with("drain", json!({ "timeout": "0s", "announce": "0s" }));
    let mut node = settings.start();
    send(&node, &trace_id(1));
    came.recv().expect("the sink is asked");
    let begun = Instant::now();
    node.program().terminate();
    node.program().wait_for_output("draining");
    // It would be spooled by now.
    last(Duration::from_millis(500));
    answer.send(()).expect("the sink waits for it");
    let in_time = begun.elapsed() < ATTEMPT_MAX / 2;
    let code = node.program().wait().code();
    in_time.then(|| (code, settings.directory().join("data/a/spool").exists()))
}

#[test]
fn what_a_sink_takes_while_the_node_ends_is_not_spooled() {
    let ended = wait_for("a machine that is not too busy", end_while_a_sink_has_a_trace);
    assert_eq!(ended, (Some(0), false), "all is done, and nothing is spooled");
}
