//! `tracemesh-sim` as people use it, and what it says to what it does not understand.
//!
//! Every simulation runs in a process of its own, here too: a second one in the same process would
//! not be the same.

use std::process::{Command, Output};

/// Short, and long enough for nodes to meet, take spans and export them.
const MINUTES: &str = "0.25";

fn simulator(arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tracemesh-sim"));
    program.args(arguments).output().expect("the simulator can be run")
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
}

#[track_caller]
fn assert_refused(arguments: &[&str], why: &str) {
    let output = simulator(arguments);
    assert_code(&output, 2);
    assert!(text(&output).contains(why), "{arguments:?}: {}", text(&output));
}

/// A file with a plan, as the program prints it, changed.
fn plan(change: impl FnOnce(String) -> String) -> tempfile::NamedTempFile {
    let printed = simulator(&["plan", "7", "--minutes", MINUTES]);
    assert_code(&printed, 0);
    let file = tempfile::NamedTempFile::new().expect("there is room for a file");
    let plan = change(String::from_utf8(printed.stdout).expect("a plan is text"));
    std::fs::write(file.path(), plan).expect("there is room for a plan");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("names of temporary files are text")
}

#[test]
fn same_seed_is_the_same_in_two_processes() {
    let output = simulator(&["determinism", "--seeds", "3", "--minutes", MINUTES]);
    assert_code(&output, 0);
    assert!(
        text(&output).contains("3 seeds, each in two processes: 0 differ"),
        "{}",
        text(&output)
    );
}

#[test]
fn printed_plan_is_replayed_as_its_seed_is() {
    let plan = plan(|plan| plan);
    let of_seed = simulator(&["replay", "7", "--minutes", MINUTES]);
    let of_plan = simulator(&["replay", "--plan", path(&plan)]);
    assert_code(&of_seed, 0);
    assert_eq!(text(&of_seed), text(&of_plan));
}

#[test]
fn swarm_tells_what_it_saw_and_that_it_measures_no_speed() {
    let output = simulator(&["swarm", "--seeds", "2", "--minutes", MINUTES]);
    assert_code(&output, 0);
    let text = text(&output);
    for part in ["2 simulations", "spans acknowledged", "recovery paths", "no figures of speed"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// No time to heal: what was held when the clients stopped is held at the end.
#[test]
fn failed_check_is_told_and_is_exit_code_1() {
    let plan = plan(|plan| {
        let mut plan: serde_json::Value = serde_json::from_str(&plan).expect("a plan is JSON");
        plan["liveness_ms"] = 0.into();
        plan.to_string()
    });
    let output = simulator(&["replay", "--plan", path(&plan)]);
    assert_code(&output, 1);
    assert!(text(&output).contains("everything_ends"), "{}", text(&output));
}

#[test]
fn log_and_events_have_virtual_times_and_end_where_told() {
    let events = tempfile::NamedTempFile::new().expect("there is room for a file");
    let arguments = ["replay", "7", "--minutes", MINUTES, "--log", "--until", "2.5", "--events"];
    let output = simulator(&[&arguments[..], &[path(&events)]].concat());
    let text = text(&output);
    assert!(text.contains("2.5 virtual s") && text.contains("view changed"), "{text}");
    let events = std::fs::read_to_string(events.path()).expect("events were written");
    let last = events.lines().next_back().expect("something happened");
    let at: f64 = last.split_whitespace().next().and_then(|at| at.parse().ok()).expect("a time");
    assert!(at > 2.0 && at <= 2.51, "{last}");
}

#[test]
fn what_is_not_understood_is_refused_with_what_was_wrong() {
    assert_refused(&["--unknown"], "--unknown");
    assert_refused(&["replay", "seven"], "seven");
    assert_refused(&["replay"], "required");
    assert_refused(&["swarm", "--seeds", "5..5"], "FROM..TO");
    assert_refused(&["swarm", "--minutes=-1"], "--minutes");
    assert_refused(&["swarm", "--jobs", "0"], "--jobs");
    assert_refused(&["speed", "--nodes", "0"], "--nodes");
    assert_refused(&["replay", "--plan", "/nowhere/plan.json"], "/nowhere/plan.json");
    assert_refused(&["determinism", "--other", "/nowhere/program"], "/nowhere/program");
    assert_refused(&["rebalance", "99"], "99");
}

#[test]
fn broken_plan_is_refused_with_its_place() {
    let cut = plan(|plan| plan[..plan.len() / 2].to_owned());
    assert_refused(&["replay", "--plan", path(&cut)], "EOF while parsing");
    let nobody = plan(|plan| plan.replacen("\"nodes\": ", "\"nodes\": 0, \"_\": ", 1));
    assert_refused(&["replay", "--plan", path(&nobody)], "unknown field");
    let nobody = plan(|plan| {
        let mut plan: serde_json::Value = serde_json::from_str(&plan).expect("a plan is JSON");
        plan["nodes"] = 0.into();
        plan.to_string()
    });
    assert_refused(&["replay", "--plan", path(&nobody)], "nodes is 0, but must be from 1 to 50");
    let elsewhere = plan(|plan| {
        let mut plan: serde_json::Value = serde_json::from_str(&plan).expect("a plan is JSON");
        plan["faults"] = serde_json::json!([{
            "at_ms": 10, "fault": {"drain": {"node": 99, "restart": null}}
        }]);
        plan.to_string()
    });
    assert_refused(&["replay", "--plan", path(&elsewhere)], "faults[0].node is 99");
}

#[test]
fn mutants_are_looked_for_where_the_repository_is() {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let mut program = Command::new(env!("CARGO_BIN_EXE_tracemesh-sim"));
    let output = program.arg("mutants").current_dir(directory.path()).output();
    let output = output.expect("the simulator can be run");
    assert_code(&output, 2);
    assert!(text(&output).contains("root of the repository"), "{}", text(&output));
}
