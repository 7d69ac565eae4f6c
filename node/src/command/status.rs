//! `tracemesh status`: what one node sees of the mesh.
//!
//! Asks the node's console twice, [`RATE_INTERVAL`] apart, because a rate needs two readings; with
//! `--json` once, and prints the answer as it came. It asks one node and compares nothing: what
//! other nodes see, they say; but for `--check`, which is about all of them.

mod check;
mod sums;

use super::console::{self, Console};
use super::table::table;
use super::{Exit, Misuse};
use crate::status::{Member, Status};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between the two readings of a rate: long enough for several batches of every client, short
/// enough to wait for.
const RATE_INTERVAL: Duration = Duration::from_secs(1);
const EXAMPLE: &str = "\
Example:
  tracemesh status --node http://127.0.0.1:4320
  tracemesh status --check                        do the span counters of all members add up?

A check reads all members twice and prints both sides of the sum, what may explain a difference,
and the bound that a moving mesh allows. Exit code: 1 when a difference stays unexplained or a
member did not answer.";

/// Whom to ask.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// Console of a node; with --check of any members, the others are found
    #[arg(long = "node", value_name = "URL", default_value = console::DEFAULT)]
    nodes: Vec<http::Uri>,
    /// Ask all members whether the span counters add up
    #[arg(long)]
    check: bool,
    /// Print JSON: the node's answer as it is, or the finding of --check
    #[arg(long)]
    json: bool,
}

/// Prints the status of a node.
pub(super) async fn run(arguments: &Arguments, output: &mut dyn Write) -> anyhow::Result<Exit> {
    if arguments.check {
        return check::run(&arguments.nodes, arguments.json, output).await;
    }
    let [node] = arguments.nodes.as_slice() else {
        return Err(Misuse("--node: one node shows its status; several need --check".into()).into());
    };
    let (console, path) = (Console::new(node.clone()), "/api/v1/status");
    let first = console.get(path).await?;
    if arguments.json {
        output.write_all(&first)?;
        writeln!(output)?;
        return Ok(Exit::Done);
    }
    let before = Instant::now();
    sleep(RATE_INTERVAL).await;
    let second = console.get(path).await?;
    let elapsed = before.elapsed();
    let [first, second]: [Status; 2] = [console.parse(&first)?, console.parse(&second)?];
    output.write_all(report(&second, &first.counters, elapsed).as_bytes())?;
    Ok(Exit::Done)
}

/// The status for people. `before` holds the counters of `elapsed` ago.
fn report(status: &Status, before: &BTreeMap<String, u64>, elapsed: Duration) -> String {
    let mut text = String::new();
    let readiness = if status.ready { "ready" } else { "not ready" };
    let degraded = match status.degraded.as_slice() {
        [] => String::new(),
        names => format!(", degraded: {}", names.join(", ")),
    };
    let lines = [
        ("node", format!("{} ({}, {readiness}{degraded})", status.id, status.state)),
        ("cluster", status.cluster.clone()),
        ("view", format!("{} members, hash {}", status.view.members, status.view.hash)),
        ("traces held", status.traces_held.to_string()),
        (
            "spans held",
            format!(
                "{} as owner, {} as replica, {} as stand-in",
                status.spans_held.owner, status.spans_held.replica, status.spans_held.stand_in
            ),
        ),
        (
            "memory",
            format!(
                "{} of {}",
                mebibytes(status.memory_bytes),
                mebibytes(status.memory_budget_bytes)
            ),
        ),
    ];
    for (label, value) in lines {
        let _ = writeln!(text, "{label:<12} {value}");
    }
    text.push('\n');
    text.push_str(&table(members(&status.members)));
    text.push('\n');
    text.push_str(&table(rates(&status.counters, before, elapsed)));
    text
}

fn members(members: &[Member]) -> Vec<Vec<String>> {
    let header = ["member", "state", "incarnation", "mesh", "zone", "owns", "replica of", "full"];
    let row = |member: &Member| {
        vec![
            member.id.clone(),
            member.state.to_string(),
            format!("{}.{}", member.generation, member.epoch),
            member.mesh_address.clone(),
            if member.zone.is_empty() { "-".to_owned() } else { member.zone.clone() },
            member.owned_slots.to_string(),
            member.replica_slots.to_string(),
            format!("{}%", member.fill_percent),
        ]
    };
    [header.map(str::to_owned).to_vec()].into_iter().chain(members.iter().map(row)).collect()
}

/// Every counter that has ever moved. One that went back is that of a new process.
fn rates(
    counters: &BTreeMap<String, u64>,
    before: &BTreeMap<String, u64>,
    elapsed: Duration,
) -> Vec<Vec<String>> {
    let moved = counters.iter().filter(|(_, total)| **total > 0);
    let row = |(name, total): (&String, &u64)| {
        let grown = total.saturating_sub(before.get(name).copied().unwrap_or_default());
        let rate = grown as f64 / elapsed.as_secs_f64();
        vec![name.clone(), total.to_string(), format!("{rate:.0}")]
    };
    let header = ["counter", "total", "a second"].map(str::to_owned).to_vec();
    [header].into_iter().chain(moved.map(row)).collect()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::console::ANSWER_BYTES_MAX;
    use crate::command::testing::{Nodes, status};
    use axum::http::StatusCode;
    use axum::routing::get;
    use tokio::net::TcpListener;

    #[test]
    fn report_shows_members_and_rates_in_columns() {
        let before = BTreeMap::from([
            ("spans_accepted_total".to_owned(), 100),
            // The process that counted this is gone.
            ("spans_exported_total".to_owned(), 900),
        ]);
        let report = report(&status("a"), &before, Duration::from_secs(2));
        let expected = "\
node         a (active, ready, degraded: alone)
cluster      blue
view         2 members, hash 00ff
traces held  4
spans held   1 as owner, 2 as replica, 3 as stand-in
memory       1.5 MiB of 4096.0 MiB

member       state    incarnation  mesh            zone    owns   replica of  full
a            active   3.1          127.0.0.1:4319  rack 7  32768  7           12%
longer-name  leaving  3.1          127.0.0.1:4319  -       32768  7           12%

counter               total  a second
spans_accepted_total  500    200
spans_exported_total  5      0
";
        assert_eq!(report, expected);
    }

    /// A console that answers with `code` and `body`.
    async fn console(code: StatusCode, body: String) -> (Nodes, Arguments) {
        let serve = get(async move || (code, body));
        let node = Nodes::start(|router| router.route("/api/v1/status", serve)).await;
        let nodes = vec![node.url()];
        (node, Arguments { nodes, check: false, json: true })
    }

    #[tokio::test]
    async fn json_is_the_answer_as_it_came() {
        let body = serde_json::to_string(&status("a")).unwrap();
        let (_node, arguments) = console(StatusCode::OK, body.clone()).await;
        let mut output = Vec::new();
        assert_eq!(run(&arguments, &mut output).await.unwrap(), Exit::Done);
        assert_eq!(String::from_utf8(output).unwrap(), format!("{body}\n"));
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), status("a"));
    }

    #[tokio::test]
    async fn several_nodes_are_for_a_check_only() {
        let nodes = ["http://a", "http://b"].map(http::Uri::from_static).to_vec();
        let arguments = Arguments { nodes, check: false, json: false };
        let error = run(&arguments, &mut Vec::new()).await.unwrap_err();
        assert!(error.is::<Misuse>() && error.to_string().contains("--check"), "{error}");
    }

    #[tokio::test]
    async fn node_that_gives_no_status_is_named() {
        let (node, arguments) = console(StatusCode::NOT_FOUND, String::new()).await;
        let error = format!("{:#}", run(&arguments, &mut Vec::new()).await.unwrap_err());
        assert!(error.contains(&node.url().to_string()) && error.contains("404"), "{error}");

        let endless = "x".repeat(ANSWER_BYTES_MAX + 1);
        let (_node, arguments) = console(StatusCode::OK, endless).await;
        let error = format!("{:#}", run(&arguments, &mut Vec::new()).await.unwrap_err());
        assert!(error.contains("length limit exceeded"), "{error}");

        let (_node, arguments) = console(StatusCode::OK, "{}".to_owned()).await;
        let arguments = Arguments { json: false, ..arguments };
        let error = format!("{:#}", run(&arguments, &mut Vec::new()).await.unwrap_err());
        assert!(error.contains("no console of a Tracemesh node"), "{error}");
    }

    #[tokio::test]
    async fn node_that_is_not_there_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let nodes = vec![node.parse().unwrap()];
        let arguments = Arguments { nodes, check: false, json: true };
        let error = run(&arguments, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot ask {node}")), "{error:#}");
    }
}
