//! What nodes tell an operator: where a trace is, how a drain went, whether the counters add up.

use crate::mesh::start;
use crate::otlp::{encoded, hex, span, trace, trace_id};
use crate::{TRACEMESH, host};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use tracemesh_tests::host::Host;
use tracemesh_tests::http;
use tracemesh_tests::node::Node;
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::{Ended, Program};
use tracemesh_tests::readme;
use tracemesh_tests::wait::{wait_for, wait_until};

/// Spans of a trace in these tests.
const SPANS_OF_A_TRACE: u64 = 3;

/// Runs a command of the program to its end.
fn command(host: &Host, name: &str, arguments: &[&str]) -> Ended {
    Program::run(name, host.path(), Command::new(TRACEMESH).args(arguments))
}

/// The JSON that a command prints, and its exit code.
fn asked(host: &Host, name: &str, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = command(host, name, &[arguments, &["--json"]].concat());
    // The log of a program goes on where it ended before.
    let line = ended.output.lines().rfind(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{name} prints JSON:\n{}", ended.output));
    (ended.status.code(), serde_json::from_str(line).expect("it is JSON"))
}

fn explained(host: &Host, node: &Node, id: &str) -> (Option<i32>, Value) {
    asked(host, "explain", &["explain", id, "--node", &node.console_url("")])
}

fn send(node: &Node, number: u64) -> String {
    let id = trace_id(number);
    node.deliver(&encoded(trace(&id, SPANS_OF_A_TRACE)));
    hex(&id)
}

/// What an explanation says of the node that is `role` to the trace.
fn of_role<'a>(explanation: &'a Value, role: &str) -> &'a Value {
    let mut nodes = explanation["nodes"].as_array().expect("a list").iter();
    nodes.find(|node| node["role"] == role).unwrap_or(&Value::Null)
}

#[test]
fn readme_names_metrics_that_there_are() {
    let parts = readme::README.split("tracemesh_").skip(1);
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let names = parts.filter_map(|part| part.split(|c| !is_part(c)).next());
    let names: BTreeSet<_> = names.map(|name| format!("tracemesh_{name}")).collect();
    assert!(names.contains("tracemesh_sink_up"), "{names:?}");
    let host = host();
    let nodes = start(&host.nodes(&["a", "b"]));
    for name in &names {
        wait_until(name, || nodes[0].metrics().has(name, &[]));
    }
}

/// Names without the prefix, and a label where there is one.
const CONTRACT: [(&str, &[(&str, &str)]); 47] = [
    ("spans_accepted_total", &[]),
    ("spans_accepted_without_replica_total", &[]),
    ("spans_unacknowledged_total", &[]),
    ("spans_refused_total", &[("reason", "ids")]),
    ("spans_refused_total", &[("reason", "size")]),
    ("spans_refused_total", &[("reason", "syntax")]),
    ("spans_redelivered_total", &[]),
    ("spans_repaired_total", &[]),
    ("spans_exported_total", &[]),
    ("sink_spans_total", &[("sink", "file")]),
    ("spans_late_total", &[]),
    ("spans_sampled_out_total", &[]),
    ("spans_dropped_total", &[("reason", "sink")]),
    ("spans_dead_lettered_total", &[("sink", "file")]),
    ("spans_exported_again_possible_total", &[("cause", "unanswered")]),
    ("spans_held", &[("role", "owner")]),
    ("spans_held", &[("role", "replica")]),
    ("spans_held", &[("role", "stand_in")]),
    ("traces_unplaced", &[("peer", "b")]),
    ("traces_forgotten_early_total", &[]),
    ("settled", &[]),
    ("traces_decided_total", &[("cause", "root"), ("verdict", "kept")]),
    ("traces_in_parts_total", &[]),
    ("acknowledge_seconds_bucket", &[("le", "+Inf")]),
    ("decide_delay_seconds_bucket", &[("le", "+Inf")]),
    ("sink_seconds_bucket", &[("sink", "file"), ("le", "+Inf")]),
    ("members", &[("state", "active")]),
    ("view_info", &[]),
    ("config_info", &[]),
    ("slots", &[("role", "owner")]),
    ("slots", &[("role", "replica")]),
    ("view_changes_total", &[]),
    ("hand_over_spans_total", &[("direction", "sent")]),
    ("hand_over_bytes_total", &[("direction", "received")]),
    ("hop_bytes_total", &[("direction", "sent")]),
    ("peer_round_trip_seconds", &[("peer", "b")]),
    ("memory_bytes", &[]),
    ("memory_budget_bytes", &[]),
    ("queue_bytes", &[("queue", "sink_file")]),
    ("unreplicated_spans", &[]),
    ("oldest_held_seconds", &[("role", "owner")]),
    ("remembered_seconds", &[]),
    ("sink_up", &[("sink", "file")]),
    ("certificate_expires_seconds", &[]),
    ("process_cpu_seconds_total", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_open_fds", &[]),
];

/// Those that are more than zero in a mesh that works and was used.
const COUNTING: [&str; 13] = [
    "spans_accepted_total",
    "spans_exported_total",
    "sink_spans_total",
    "traces_decided_total",
    "acknowledge_seconds_count",
    "decide_delay_seconds_count",
    "sink_seconds_count",
    "hop_bytes_total",
    "memory_budget_bytes",
    "certificate_expires_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
];

#[test]
fn dashboards_find_every_metric_by_its_name() {
    let host = host();
    let nodes = start(&host.nodes(&["a", "b"]));
    // Some of these are due on either.
    (0..20).for_each(|number| drop(send(&nodes[0], number)));
    for (name, labels) in CONTRACT {
        let name = format!("tracemesh_{name}");
        wait_until(&format!("{name}{labels:?}"), || nodes[0].metrics().has(&name, labels));
    }
    for name in COUNTING {
        let name = format!("tracemesh_{name}");
        wait_until(&format!("{name} to count"), || nodes[0].metrics().sum(&name, &[]) > 0.0);
    }
}

#[test]
fn any_node_tells_who_holds_a_trace_and_what_became_of_it() {
    let host = host();
    // It is due when it has one span more than it is sent with.
    let settings = host.nodes(&["a", "b", "c"]).into_iter().map(|node| {
        let node =
            node.with("traces.root_delay", json!("10m")).with("traces.age_max", json!("10m"));
        node.with("traces.spans_max", json!(SPANS_OF_A_TRACE + 1))
    });
    let mut nodes = start(&settings.collect::<Vec<_>>());
    let id = send(&nodes[0], 1);
    for node in &nodes {
        // One that did not answer in time was routed around at first.
        let explanation = wait_for("owner and replica to hold it, and nobody else", || {
            let (code, explanation) = explained(&host, node, &id);
            assert_eq!((code, &explanation["known"]), (Some(0), &json!(true)), "{explanation}");
            let holds = |role| of_role(&explanation, role)["trace"]["held"] == SPANS_OF_A_TRACE;
            let alone = of_role(&explanation, "other")["trace"].is_null();
            (holds("owner") && holds("replica") && alone).then_some(explanation)
        });
        assert_eq!(explanation["owner"], of_role(&explanation, "owner")["id"]);
        for role in ["owner", "replica"] {
            let due = of_role(&explanation, role)["trace"]["due_in_ms"].as_i64();
            assert!(due.is_some_and(|due| (1..=600_000).contains(&due)), "{explanation}");
        }
    }
    let last = encoded(vec![span(&trace_id(1), SPANS_OF_A_TRACE)]);
    nodes[0].deliver(&last);
    let done = wait_for("owner and replica to know that it is done", || {
        let explanation = explained(&host, &nodes[1], &id).1;
        let is_done = |role| of_role(&explanation, role)["trace"]["done"] == SPANS_OF_A_TRACE + 1;
        (is_done("owner") && is_done("replica")).then_some(explanation)
    });
    assert_eq!(done["verdict"], "keep");
    let owner = nodes.iter().find(|node| !node.traces().is_empty()).expect("one has written it");
    let status = http::get(&owner.console_url("/api/v1/status")).json();
    assert_eq!(status["id"], done["owner"]);

    let unknown = hex(&trace_id(2));
    let (code, explanation) = explained(&host, &nodes[2], &unknown);
    assert_eq!((code, &explanation["known"]), (Some(1), &json!(false)));
    assert!(explanation["owner"].is_string(), "{explanation}");
    let path = format!("/api/v1/traces/{unknown}");
    assert_eq!(http::get(&nodes[2].console_url(&path)).status, 404);
    assert_eq!(command(&host, "explain", &["explain", "5b8e"]).status.code(), Some(2));
    assert_eq!(http::get(&nodes[2].console_url("/api/v1/traces/5b8e")).status, 400);

    nodes[0].program().kill();
    let (code, explanation) = explained(&host, &nodes[1], &id);
    assert_eq!(code, Some(0), "{explanation}");
    let nodes = explanation["nodes"].as_array().expect("a list");
    for crashed in nodes.iter().filter(|node| node["id"] == "a") {
        assert!(crashed["silent"].is_string(), "{explanation}");
    }
}

#[test]
fn drain_command_ends_a_node_as_sigterm_does() {
    let host = host();
    let settings = host.nodes(&["a", "b", "c"]);
    let settings = settings.into_iter().map(|node| {
        node.with("traces.root_delay", json!("30s")).with("drain.announce", json!("5s"))
    });
    let mut nodes = start(&settings.collect::<Vec<_>>());
    let mut leaver = nodes.pop().expect("there are three");
    for number in 0..20 {
        send(&leaver, number);
    }
    let url = leaver.console_url("/api/v1/drain");
    let page = http::post(&url, &[("origin", "http://elsewhere")], b"");
    assert_eq!(page.status, 403, "{}", page.text());
    assert!(page.text().contains("a web page"), "{}", page.text());
    assert!(leaver.is_ready(), "a web page drains nothing");

    let console = leaver.console_url("");
    let arguments = ["drain", "--node", &console];
    let ended = thread::scope(|scope| {
        let first = scope.spawn(|| command(&host, "drain", &arguments));
        wait_until("the node to drain", || !leaver.is_ready());
        assert_eq!(http::post(&url, &[], b"").status, 202, "a second time is harmless");
        first.join().expect("the command ends")
    });
    let output = ended.succeeded();
    assert!(output.contains("c is draining") && output.contains("c drained"), "{output}");
    assert_eq!(leaver.program().wait().code(), Some(0));
    nodes.iter().for_each(|node| node.wait_for_members(2));
    let again = command(&host, "drain", &arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(again.output.contains(&format!("cannot ask {console}")), "{}", again.output);
}

#[test]
fn drain_command_says_what_is_left_over() {
    let host = host();
    // Nobody listens there.
    let sink = format!("http://127.0.0.1:{}", claim_base_port());
    let settings = host.node("a").with("sinks", json!([{ "otlp": { "endpoint": sink } }]));
    let settings = settings.with("drain.announce", json!("5s"));
    let mut node = settings.with("drain.timeout", json!("1s")).start();
    node.program().wait_for_output("each span is held once");
    send(&node, 1);
    node.wait_for_metric("tracemesh_unreplicated_spans", &[], SPANS_OF_A_TRACE as f64);
    let (code, report) = asked(&host, "drain", &["drain", "--node", &node.console_url("")]);
    assert_eq!((code, &report["ended"]), (Some(3), &json!("left")), "{report}");
    assert_eq!(report["span_count"], SPANS_OF_A_TRACE);
    assert_eq!(node.program().wait().code(), Some(3));
}

#[test]
fn counters_of_all_members_add_up_under_load_and_after_it() {
    let host = host();
    let nodes = start(&host.nodes(&["a", "b", "c"]));
    let check = || {
        let (code, found) =
            asked(&host, "check", &["status", "--check", "--node", &nodes[0].console_url("")]);
        assert_eq!((code, &found["members"]), (Some(0), &json!(3)), "{found}");
        found
    };
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut arguments = vec!["load", "--spans", "12000", "--rate", "2000"];
            let targets: Vec<_> = nodes.iter().map(Node::grpc_url).collect();
            targets.iter().for_each(|target| arguments.extend(["--target", target]));
            command(&host, "load", &arguments).succeeded()
        });
        wait_until("spans", || nodes[0].metrics().sum("tracemesh_spans_accepted_total", &[]) > 0.0);
        check();
        load.join().expect("the load ends")
    });
    wait_until("nothing held", || {
        nodes.iter().all(|node| node.metrics().sum("tracemesh_spans_held", &[]) == 0.0)
    });
    let found = check();
    assert_eq!(found["sums"]["held_owner"], 0, "{found}");
    assert!(found["sums"]["accepted"].as_u64().is_some_and(|count| count >= 12_000), "{found}");
    assert_eq!(found["difference_min"], found["difference_max"], "nothing moves: {found}");
}
