//! What operators get wrong: each mistake is one clear line and exit code 2, before anything is
//! accepted.

use crate::host;
use serde_json::json;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use tracemesh_tests::node::Settings;
use tracemesh_tests::program::{Ended, Program};

/// The node refuses to start, with one line that has all of `words`.
#[track_caller]
fn assert_refused(settings: &Settings, words: &[&str]) {
    let ended = settings.run_to_end();
    assert_code_2(&ended);
    let lines = complaints(&ended.output);
    assert!(lines.len() == 1, "one line says what is wrong:\n{}", ended.output);
    for word in words {
        assert!(lines[0].contains(word), "{:?} says {word:?}", lines[0]);
    }
}

/// The lines that say what is wrong: all but the log's that are no errors.
fn complaints(output: &str) -> Vec<&str> {
    let lines = output.lines().filter(|line| !line.trim().is_empty());
    lines.filter(|line| !line.contains(" WARN") && !line.contains(" INFO")).collect()
}

#[track_caller]
fn assert_code_2(ended: &Ended) {
    assert_eq!(ended.status.code(), Some(2), "{}", ended.output);
}

#[test]
fn port_in_use_is_named() {
    let host = host();
    for (id, offset) in [("grpc", 0), ("http", 1), ("console", 3)] {
        let settings = host.node(id);
        let taken = format!("127.0.0.1:{}", settings.base_port() + offset);
        let _listener = TcpListener::bind(&taken).expect("the port was free");
        assert_refused(&settings, &[&taken, "in use", "listen.", "--base-port"]);
    }
    let settings = host.node("mesh");
    let _socket = UdpSocket::bind(settings.mesh_address()).expect("the port was free");
    let words = [&settings.mesh_address(), "in use", "listen.mesh", "--base-port"];
    assert_refused(&settings, &words);
}

#[test]
fn data_directory_and_sink_file_have_one_node_each() {
    let host = host();
    let first = host.node("a");
    let running = first.start();
    let data = first.directory().join("data");
    let second = host.node("b").with("node.id", json!("a")).with("node.data_dir", json!(data));
    assert_refused(&second, &[&data.to_string_lossy(), "in use"]);
    let file = first.trace_file();
    let third = host.node("c").with("sinks", json!([{ "file": { "path": file } }]));
    assert_refused(&third, &[&file.to_string_lossy(), "one writer"]);
    assert!(running.is_ready(), "the first node goes on");
}

#[test]
fn key_file_that_cannot_be_used_is_named() {
    let host = host();
    let missing = host.path().join("missing.key");
    let settings = host.node("a").with("cluster.key_file", json!(missing));
    assert_refused(&settings, &[&missing.to_string_lossy()]);
    let noise = host.path().join("noise.key");
    fs::write(&noise, "this is no key\n").expect("a file can be written");
    let settings = host.node("b").with("cluster.key_file", json!(noise));
    assert_refused(&settings, &[&noise.to_string_lossy()]);
}

#[test]
fn data_directory_that_cannot_be_written_is_named() {
    let host = host();
    let file = host.path().join("file");
    fs::write(&file, "").expect("a file can be written");
    // Whoever runs the test, root included, cannot make a directory below a file.
    let below = file.join("data");
    let settings = host.node("a").with("node.data_dir", json!(below));
    assert_refused(&settings, &[&below.to_string_lossy()]);
    let settings = host.node("b").with("sinks", json!([{ "file": { "path": below } }]));
    assert_refused(&settings, &[&below.to_string_lossy()]);
}

#[test]
fn unknown_key_is_named_with_its_line() {
    let host = host();
    assert_refused(
        &host.node("a").with("traces.rot_delay", json!("1s")),
        &["rot_delay", "tracemesh.yaml:"],
    );
}

#[test]
fn wrong_unit_is_named_with_what_was_expected() {
    let host = host();
    let settings = host.node("a").with("traces.root_delay", json!("1 fortnight"));
    assert_refused(&settings, &["root_delay", "1 fortnight", "250ms", "tracemesh.yaml:"]);
    let settings = host.node("b").with("node.memory", json!("4 GB"));
    assert_refused(&settings, &["memory", "4 GB", "GiB", "tracemesh.yaml:"]);
}

#[test]
fn key_that_is_not_built_yet_says_so() {
    let host = host();
    assert_refused(&host.node("a").with("service_map.enabled", json!(true)), &["not yet"]);
}

#[test]
fn all_mistakes_are_said_at_once_each_with_its_line() {
    let host = host();
    let file = host.path().join("tracemesh.yaml");
    let text = "\
# Four mistakes, in lines 3, 5, 6 and 8.
cluster:
  nmae: shop
traces:
  root_delay: 6
  spans_max: many
node:
  weight: -1
";
    fs::write(&file, text).expect("a file can be written");
    for name in ["check-config", "run"] {
        let mut command = std::process::Command::new(host.program());
        let ended = Program::run(name, host.path(), command.args([name, "--config"]).arg(&file));
        assert_code_2(&ended);
        let lines = complaints(&ended.output);
        assert_eq!(lines.len(), 4, "a line each:\n{}", ended.output);
        for (line, number, word) in
            [(0, 3, "nmae"), (1, 5, "root_delay"), (2, 6, "spans_max"), (3, 8, "weight")]
        {
            let has = |text: &str| lines[line].contains(text);
            assert!(has(word) && has(&format!("tracemesh.yaml:{number}:")), "{:?}", lines[line]);
        }
    }
}

#[test]
fn listening_beyond_loopback_needs_a_key() {
    let host = host();
    let settings = host.node("a").with_arguments(&["--bind", "0.0.0.0"]);
    assert_refused(&settings, &["0.0.0.0", "key"]);
}
