//! Plans that show one promise each.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Plays a plan and gives its report. `lossy_day.json` is `lossy_minutes.json` for 24 virtual
/// hours: some minutes of real time, so it is no test.
fn replay(name: &str) -> Value {
    let plan = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans").join(name);
    let mut program = Command::new(env!("CARGO_BIN_EXE_tracemesh-sim"));
    let output = program.args(["replay", "--json", "--plan"]).arg(plan).output();
    let output = output.expect("the simulator can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).expect("a report is JSON")
}

/// Six nodes in three zones; both of one zone crash at once and come back with empty disks, then
/// both of another.
#[test]
fn zone_may_be_lost_at_once() {
    let report = replay("zone_lost.json");
    let totals = &report["verdict"]["totals"];
    assert!(totals["acknowledged"].as_u64() > Some(100_000), "{totals}");
    assert_eq!((totals["lost"].as_u64(), totals["held"].as_u64()), (Some(0), Some(0)), "{totals}");
    assert_eq!(report["verdict"]["licensed"].get("both_holders_gone"), None);
}

/// A tenth of all datagrams is lost, and each takes 10 to 30 ms.
#[test]
fn bad_links_take_no_member_for_dead() {
    assert_eq!(live_nodes_dropped(&replay("lossy_minutes.json")), 0);
}

/// Datagrams are lost and overtake each other, so that QUIC lets through less than there is to
/// send, and a node leaves and comes back meanwhile: gossip must not wait for the rest.
#[test]
fn full_paths_take_no_member_for_dead() {
    assert_eq!(live_nodes_dropped(&replay("full_paths.json")), 0);
}

/// A sixth of all datagrams is held back for up to two round trips, while a cluster that could not
/// export for a minute was restarted and loses a node. Taken for lost, they leave so little of the
/// paths that owners wait for calm in vain: 160 traces were decided so, and 4 since they are not.
#[test]
fn packets_that_come_late_are_not_taken_for_lost() {
    let report = replay("late_packets.json");
    let ran_out = report["verdict"]["licensed"].get("settle_max_ran_out");
    assert!(ran_out.and_then(Value::as_u64).unwrap_or(0) < 40, "{}", report["verdict"]);
}

fn live_nodes_dropped(report: &Value) -> u64 {
    let dropped = report["verdict"]["sometimes"].get("live_node_dropped");
    dropped.and_then(Value::as_u64).unwrap_or(0)
}
