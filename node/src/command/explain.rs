//! `tracemesh explain`: who owns a trace and why, and who holds what of it.
//!
//! Prints what one node's console finds out by asking every member; it asks nobody else and
//! concludes nothing. Bounded by the console's own deadlines.

use super::Exit;
use super::console::{self, Console};
use super::table::table;
use crate::explain::{Explanation, Node, Role, Trace, Verdict};
use crate::spans::TraceId;
use http::{Method, StatusCode, Uri};
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

const EXAMPLE: &str = "\
Example:
  tracemesh explain 5b8efff798038103d269b633813fc60c --node http://127.0.0.1:4320

Exit codes: 0 some node holds or remembers the trace, 1 none that answered does, 2 no trace id.";

/// Which trace.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// The trace's id, 32 hexadecimal digits
    trace_id: TraceId,
    /// Console of any node
    #[arg(long, value_name = "URL", default_value = console::DEFAULT)]
    node: Uri,
    /// Print the node's answer as it is, JSON
    #[arg(long)]
    json: bool,
}

/// Prints what is known of a trace.
pub(super) async fn run(arguments: &Arguments, output: &mut dyn Write) -> anyhow::Result<Exit> {
    let console = Console::new(arguments.node.clone());
    let path = format!("/api/v1/traces/{}", arguments.trace_id);
    let answer = console.ask(Method::GET, &path).await?;
    console.expect(&answer, [StatusCode::OK, StatusCode::NOT_FOUND].contains(&answer.code))?;
    let explanation: Explanation = console.parse(&answer.body)?;
    if arguments.json {
        output.write_all(&answer.body)?;
        writeln!(output)?;
    } else {
        output.write_all(report(&explanation).as_bytes())?;
    }
    Ok(if explanation.known { Exit::Done } else { Exit::Failed })
}

/// The document for people.
fn report(explanation: &Explanation) -> String {
    let mut text = String::new();
    let Explanation { trace_id, view, slot, asked, .. } = explanation;
    let silent_count = explanation.nodes.iter().filter(|node| node.silent.is_some()).count();
    let known = match (explanation.known, silent_count) {
        (true, _) => verdict(explanation.verdict).to_owned(),
        (false, 0) => "nobody holds or remembers it".to_owned(),
        (false, _) => format!("nobody who answered knows it; {silent_count} did not answer"),
    };
    let holder = |id: &Option<String>| id.clone().unwrap_or_else(|| "nobody".to_owned());
    let lines = [
        ("trace", trace_id.clone()),
        ("verdict", known),
        ("slot", format!("{slot} of 65536, by the hash of the trace id")),
        ("view", format!("{} members, hash {} (as {asked} sees it)", view.members, view.hash)),
        ("owner", format!("{}: the highest score in that view", holder(&explanation.owner))),
        ("replica", format!("{}: the next, in another zone if any", holder(&explanation.replica))),
    ];
    for (label, value) in lines {
        let _ = writeln!(text, "{label:<8} {value}");
    }
    let header = ["node", "role", "score", "zone", "held", "sending", "done", "verdict", "due in"];
    let header = header.into_iter().chain(["held for", "moves", "notes"]).map(str::to_owned);
    let rows = explanation.nodes.iter().map(|node| row(node, &view.hash));
    text.push('\n');
    text.push_str(&table([header.collect()].into_iter().chain(rows).collect()));
    text
}

fn row(node: &Node, view_hash: &str) -> Vec<String> {
    let nothing = || "-".to_owned();
    let role = match node.role {
        Role::Owner => "owner",
        Role::Replica => "replica",
        Role::Other => "-",
    };
    let score = node.score.map_or_else(nothing, |score| format!("{score:.3}"));
    let zone = if node.zone.is_empty() { nothing() } else { node.zone.clone() };
    let told = match &node.trace {
        None => std::array::from_fn(|_| nothing()),
        Some(trace) => [
            trace.held.to_string(),
            trace.sending.to_string(),
            trace.done.to_string(),
            verdict(trace.verdict).to_owned(),
            trace.due_in_ms.map_or_else(nothing, |due| seconds(due as f64)),
            trace.held_for_ms.map_or_else(nothing, |held| seconds(f64::from(held))),
            trace.version.to_string(),
        ],
    };
    let notes = notes(node, view_hash).join(", ");
    let notes = if notes.is_empty() { nothing() } else { notes };
    [node.id.clone(), role.to_owned(), score, zone].into_iter().chain(told).chain([notes]).collect()
}

fn notes(node: &Node, view_hash: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = &node.silent {
        notes.push(format!("did not answer: {why}"));
    }
    if let Some(other) = node.view_hash.as_deref().filter(|hash| *hash != view_hash) {
        notes.push(format!("its view is {other}"));
    }
    if let Some(Trace { unplaced: true, held: 1.., .. }) = node.trace {
        notes.push("another holder may lack something".to_owned());
    }
    if let Some(Trace { asked: 1.., .. }) = node.trace {
        notes.push("it asks the owner what became of it".to_owned());
    }
    notes
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::None => "none yet",
        Verdict::SampledOut => "sampled out",
        Verdict::Keep => "keep",
    }
}

fn seconds(milliseconds: f64) -> String {
    format!("{:.1} s", milliseconds / Duration::from_secs(1).as_millis() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::Nodes;
    use crate::status::View;
    use axum::Json;
    use axum::routing::get;

    fn trace() -> Trace {
        Trace {
            held: 5,
            sending: 0,
            done: 2,
            verdict: Verdict::None,
            due_in_ms: Some(-1500),
            held_for_ms: Some(31_000),
            unplaced: true,
            version: 3,
            asked: 0,
        }
    }

    fn explanation() -> Explanation {
        let node = |id: &str, role, score| Node {
            id: id.to_owned(),
            role,
            score: Some(score),
            zone: String::new(),
            silent: None,
            view_hash: Some("00ff".to_owned()),
            trace: None,
        };
        let owner = Node { trace: Some(trace()), ..node("a", Role::Owner, 4.25) };
        let silent = Some("no way".to_owned());
        let replica = Node { silent, view_hash: None, ..node("b", Role::Replica, 1.5) };
        let other = Node { view_hash: Some("0001".into()), ..node("c", Role::Other, 0.125) };
        Explanation {
            trace_id: "ab".repeat(16),
            known: true,
            verdict: Verdict::None,
            asked: "c".to_owned(),
            view: View { hash: "00ff".to_owned(), members: 3 },
            slot: 77,
            owner: Some("a".to_owned()),
            replica: Some("b".to_owned()),
            nodes: vec![owner, replica, other],
        }
    }

    #[test]
    fn report_says_who_owns_and_who_holds_what() {
        let expected = "\
trace    abababababababababababababababab
verdict  none yet
slot     77 of 65536, by the hash of the trace id
view     3 members, hash 00ff (as c sees it)
owner    a: the highest score in that view
replica  b: the next, in another zone if any

node  role     score  zone  held  sending  done  verdict   due in  held for  moves  notes
a     owner    4.250  -     5     0        2     none yet  -1.5 s  31.0 s    3      \
another holder may lack something
b     replica  1.500  -     -     -        -     -         -       -         -      \
did not answer: no way
c     -        0.125  -     -     -        -     -         -       -         -      \
its view is 0001
";
        assert_eq!(report(&explanation()), expected);
    }

    #[test]
    fn what_nobody_knows_is_not_taken_for_absent_while_somebody_is_silent() {
        let mut unknown = explanation();
        (unknown.known, unknown.nodes[0].trace) = (false, None);
        assert!(report(&unknown).contains("nobody who answered knows it; 1 did not answer"));
        unknown.nodes[1].silent = None;
        assert!(report(&unknown).contains("nobody holds or remembers it"));
    }

    #[tokio::test]
    async fn exit_code_tells_whether_anybody_knows_the_trace() {
        for (known, code, exit) in
            [(true, StatusCode::OK, Exit::Done), (false, StatusCode::NOT_FOUND, Exit::Failed)]
        {
            let answer = Explanation { known, ..explanation() };
            let body = serde_json::to_string(&answer).unwrap();
            let nodes = Nodes::start(|router| {
                let explain = get(async move || (code, Json(answer)));
                router.route("/api/v1/traces/{trace_id}", explain)
            });
            let node = nodes.await;
            let trace_id = "ab".repeat(16).parse().unwrap();
            let arguments = Arguments { trace_id, node: node.url(), json: true };
            let mut output = Vec::new();
            assert_eq!(run(&arguments, &mut output).await.unwrap(), exit);
            assert_eq!(String::from_utf8(output).unwrap(), format!("{body}\n"));
        }
        let stranger = Nodes::start(|router| router).await;
        let trace_id = "ab".repeat(16).parse().unwrap();
        let arguments = Arguments { trace_id, node: stranger.url(), json: false };
        let error = run(&arguments, &mut Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains("no console of a Tracemesh node"), "{error}");
    }
}
