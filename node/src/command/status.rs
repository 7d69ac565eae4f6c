//! `tracemesh status`: what one node sees of the mesh.
//!
//! Asks the node's console twice, [`RATE_INTERVAL`] apart, because a rate needs two readings; with
//! `--json` once, and prints the answer as it came. Bounded by [`ANSWER_TIME_MAX`] and
//! [`ANSWER_BYTES_MAX`]. It asks one node and compares nothing: what other nodes see, they say.

use super::Exit;
use crate::status::{Member, State, Status};
use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Between the two readings of a rate: long enough for several batches of every client, short
/// enough to wait for.
const RATE_INTERVAL: Duration = Duration::from_secs(1);
/// A console answers from memory; what takes longer is not there.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// A hundred members need 30 KB.
const ANSWER_BYTES_MAX: usize = 8 << 20;

const EXAMPLE: &str = "\
Example:
  tracemesh status --node http://127.0.0.1:4320";

/// Whom to ask.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// Console of a node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4320")]
    node: http::Uri,
    /// Print the node's answer as it is, JSON
    #[arg(long)]
    json: bool,
}

/// Prints the status of a node.
pub(super) async fn run(arguments: &Arguments, output: &mut dyn Write) -> anyhow::Result<Exit> {
    let first = fetch(&arguments.node).await?;
    if arguments.json {
        output.write_all(&first)?;
        writeln!(output)?;
        return Ok(Exit::Done);
    }
    let before = Instant::now();
    sleep(RATE_INTERVAL).await;
    let second = fetch(&arguments.node).await?;
    let elapsed = before.elapsed();
    let [first, second] = [parse(&first)?, parse(&second)?];
    output.write_all(report(&second, &first.counters, elapsed).as_bytes())?;
    Ok(Exit::Done)
}

async fn fetch(node: &http::Uri) -> anyhow::Result<Bytes> {
    let answer = timeout(ANSWER_TIME_MAX, request(node)).await;
    answer.map_err(anyhow::Error::from).flatten().with_context(|| format!("cannot ask {node}"))
}

async fn request(node: &http::Uri) -> anyhow::Result<Bytes> {
    let uri = format!("{}/api/v1/status", node.to_string().trim_end_matches('/'));
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(uri.parse()?).await?;
    ensure!(response.status().is_success(), "the answer is {}", response.status());
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(anyhow::Error::from_boxed)?.to_bytes())
}

fn parse(body: &[u8]) -> anyhow::Result<Status> {
    serde_json::from_slice(body).context("the answer is no status of a node")
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
        ("node", format!("{} ({}, {readiness}{degraded})", status.id, name(status.state))),
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
            name(member.state).to_owned(),
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

/// Columns as wide as their widest cell, two spaces between them.
fn table(rows: Vec<Vec<String>>) -> String {
    let column_count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..column_count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

fn name(state: State) -> &'static str {
    match state {
        State::Joining => "joining",
        State::Active => "active",
        State::Leaving => "leaving",
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{SpansHeld, View};
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    fn member(id: &str, state: State, zone: &str) -> Member {
        Member {
            id: id.to_owned(),
            state,
            generation: 3,
            epoch: 1,
            mesh_address: "127.0.0.1:4319".to_owned(),
            console_address: "127.0.0.1:4320".to_owned(),
            zone: zone.to_owned(),
            weight: 1.0,
            owned_slots: 32_768,
            replica_slots: 7,
            fill_percent: 12,
        }
    }

    fn status() -> Status {
        Status {
            id: "a".to_owned(),
            cluster: "blue".to_owned(),
            started_unix_seconds: 1_700_000_000,
            state: State::Active,
            ready: true,
            degraded: vec!["alone".to_owned()],
            view: View { hash: "00ff".to_owned(), members: 2 },
            members: vec![
                member("a", State::Active, "rack 7"),
                member("longer-name", State::Leaving, ""),
            ],
            spans_held: SpansHeld { owner: 1, replica: 2, stand_in: 3 },
            traces_held: 4,
            memory_bytes: 3 << 19,
            memory_budget_bytes: 4 << 30,
            counters: BTreeMap::from([
                ("spans_accepted_total".to_owned(), 500),
                ("spans_exported_total".to_owned(), 5),
                ("spans_late_total".to_owned(), 0),
            ]),
        }
    }

    #[test]
    fn report_shows_members_and_rates_in_columns() {
        let before = BTreeMap::from([
            ("spans_accepted_total".to_owned(), 100),
            // The process that counted this is gone.
            ("spans_exported_total".to_owned(), 900),
        ]);
        let report = report(&status(), &before, Duration::from_secs(2));
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

    /// A console that answers with `code` and `body`, until the tasks are dropped.
    async fn console(tasks: &mut JoinSet<()>, code: StatusCode, body: String) -> Arguments {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let router = Router::new().route("/api/v1/status", get(async move || (code, body)));
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Arguments { node, json: true }
    }

    #[tokio::test]
    async fn json_is_the_answer_as_it_came() {
        let mut tasks = JoinSet::new();
        let body = serde_json::to_string(&status()).unwrap();
        let arguments = console(&mut tasks, StatusCode::OK, body.clone()).await;
        let mut output = Vec::new();
        assert_eq!(run(&arguments, &mut output).await.unwrap(), Exit::Done);
        assert_eq!(String::from_utf8(output).unwrap(), format!("{body}\n"));
        let fetched = fetch(&arguments.node).await.unwrap();
        assert_eq!(parse(&fetched).unwrap(), status());
    }

    #[tokio::test]
    async fn node_that_gives_no_status_is_named() {
        let mut tasks = JoinSet::new();
        let mut arguments = console(&mut tasks, StatusCode::NOT_FOUND, String::new()).await;
        let error = format!("{:#}", run(&arguments, &mut Vec::new()).await.unwrap_err());
        assert!(error.contains(&arguments.node.to_string()) && error.contains("404"), "{error}");

        let endless = "x".repeat(ANSWER_BYTES_MAX + 1);
        arguments = console(&mut tasks, StatusCode::OK, endless).await;
        let error = format!("{:#}", run(&arguments, &mut Vec::new()).await.unwrap_err());
        assert!(error.contains("length limit exceeded"), "{error}");

        assert!(parse(b"{}").unwrap_err().to_string().contains("no status"));
    }

    #[tokio::test]
    async fn node_that_is_not_there_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let arguments = Arguments { node: node.parse().unwrap(), json: true };
        let error = run(&arguments, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot ask {node}")), "{error:#}");
    }
}
