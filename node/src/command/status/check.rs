//! `tracemesh status --check`: do the span counters of all members add up?
//!
//! Asks the nodes that it is told, and every member that these list, twice: counters move between
//! readings, and what moved bounds what may differ. Bounded by [`ROUNDS_MAX`] rounds of asking for
//! members that were not known before; all members of a round are asked at once. What the figures
//! mean is decided in [`super::sums`].

use super::sums::{self, Finding, Reading, Verdict};
use crate::command::Exit;
use crate::command::console::Console;
use crate::command::table::table;
use crate::status::{Member, State, Status};
use futures_util::future::join_all;
use http::Uri;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;
use tokio::time::sleep;

/// Between the two readings: a request that is answered at all usually is within it.
const READINGS_APART: Duration = Duration::from_secs(1);
/// Members list all members, so the second round finds those that the nodes named do not know.
const ROUNDS_MAX: usize = 4;

/// Checks the mesh of the nodes at `nodes`.
pub(super) async fn run(nodes: &[Uri], json: bool, output: &mut dyn Write) -> anyhow::Result<Exit> {
    let before = read(nodes).await?;
    sleep(READINGS_APART).await;
    let after = read(nodes).await?;
    let finding = sums::find(before, after);
    if json {
        writeln!(output, "{}", serde_json::to_string(&finding)?)?;
    } else {
        output.write_all(report(&finding).as_bytes())?;
    }
    Ok(match finding.verdict {
        Verdict::Balanced | Verdict::Explained | Verdict::MembersGone => Exit::Done,
        Verdict::Incomplete | Verdict::Unexplained => Exit::Failed,
    })
}

/// Reads every member that can be found from `nodes`.
async fn read(nodes: &[Uri]) -> anyhow::Result<Reading> {
    let Reading { mut members, mut silent, mut gone } = Reading::default();
    let ask = async |uri: &Uri| {
        let console = Console::new(uri.clone());
        let body = console.get("/api/v1/status").await?;
        console.parse::<Status>(&body)
    };
    for status in join_all(nodes.iter().map(ask)).await {
        let status = status?;
        members.insert(status.id.clone(), status);
    }
    for _ in 0..ROUNDS_MAX {
        let is_new = |member: &&Member| {
            let id = &member.id;
            !members.contains_key(id) && !silent.contains_key(id) && !gone.contains(id)
        };
        let all = members.values().flat_map(|status| &status.members);
        let new = all.filter(is_new).map(|member| {
            let is_leaving = member.state == State::Leaving;
            (member.id.clone(), (member.console_address.clone(), is_leaving))
        });
        let new: BTreeMap<String, (String, bool)> = new.collect();
        if new.is_empty() {
            break;
        }
        let answers = new.into_iter().map(async |(id, (address, is_leaving))| {
            let uri = format!("http://{address}").parse();
            let status = match uri {
                Ok(uri) => ask(&uri).await.map_err(|error| format!("{error:#}")),
                Err(_) => Err("it told nobody where its console is".to_owned()),
            };
            (id, is_leaving, status)
        });
        for (id, is_leaving, status) in join_all(answers).await {
            match status {
                Ok(status) if status.id == id => drop(members.insert(id, status)),
                Ok(status) => {
                    drop(silent.insert(id, format!("{} answers in its place", status.id)))
                }
                // Gossip lists it for some seconds after it ended.
                Err(_) if is_leaving => drop(gone.insert(id)),
                Err(why) => drop(silent.insert(id, why)),
            }
        }
    }
    Ok(Reading { members, silent, gone })
}

/// The finding for people.
fn report(finding: &Finding) -> String {
    let sums = &finding.sums;
    let mut text = String::new();
    let cell = |name: &str, count: u64| vec![name.to_owned(), count.to_string()];
    text.push_str(&table(vec![
        cell("accepted", sums.accepted),
        cell("= exported", sums.exported),
        cell("+ sampled out", sums.sampled_out),
        cell("+ dropped", sums.dropped),
        cell("+ redelivered", sums.redelivered),
        cell("+ held by owners", sums.held_owner),
        cell("right side", finding.accounted_for),
    ]));
    let (min, max) = (finding.difference_min, finding.difference_max);
    let _ = match max - min {
        0 => writeln!(text, "difference: {min:+} spans"),
        _ => {
            writeln!(text, "difference: between {min:+} and {max:+} spans, counted while they move")
        }
    };
    text.push_str("\nwhat may explain one:\n");
    text.push_str(&table(vec![
        cell("repaired", sums.repaired),
        cell("unacknowledged", sums.unacknowledged),
        cell("rerouted", sums.rerouted),
        cell("held by stand-ins", sums.held_stand_in),
        cell("exported again, possibly", sums.exported_again_possible),
        cell("members gone", finding.members_gone),
    ]));
    for later in &finding.started_later {
        let _ = writeln!(text, "{} counts {} s less than the first", later.id, later.seconds);
    }
    for (id, why) in &finding.silent {
        let _ = writeln!(text, "{id} did not answer: {why}");
    }
    if !finding.views_agree {
        text.push_str("the views of the members differ at this moment\n");
    }
    let _ = writeln!(text, "\n{} members: {}", finding.members, words(finding));
    text
}

fn words(finding: &Finding) -> &'static str {
    match finding.verdict {
        Verdict::Balanced if finding.difference_min < finding.difference_max => {
            "the sum is right, as far as can be told while spans move"
        }
        Verdict::Balanced => "the sum is right",
        Verdict::Explained => "the difference is within what the terms explain",
        Verdict::MembersGone => {
            "the sum cannot be told: members left, crashed or started again, and took their \
             counters with them"
        }
        Verdict::Incomplete => "the sum cannot be told: not all members answered",
        Verdict::Unexplained => "the difference is unexplained",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{Nodes, member, status};
    use crate::status::{SpansHeld, State};
    use axum::Json;
    use axum::routing::get;

    /// A node that counts this and knows of others by id and address.
    async fn node(id: &str, counters: &[(&str, u64)], others: &[(&str, String)]) -> Nodes {
        let all = [others, &[(id, String::new())]].concat();
        let members = all.iter().map(|(id, console)| {
            let console_address = console.clone();
            Member { console_address, ..member(id, State::Active, "") }
        });
        let counters = counters.iter().map(|(name, count)| (format!("spans_{name}_total"), *count));
        let (members, counters) = (members.collect(), counters.collect());
        let spans_held = SpansHeld::default();
        let status = Status { members, counters, spans_held, ..status(id) };
        let serve = get(async move || Json(status));
        Nodes::start(|router| router.route("/api/v1/status", serve)).await
    }

    fn address(node: &Nodes) -> String {
        node.url().authority().unwrap().to_string()
    }

    /// A node that still lists one that has left.
    async fn leaver() -> Json<Status> {
        let members = vec![member("a", State::Active, ""), member("x", State::Leaving, "")];
        Json(Status {
            members,
            counters: BTreeMap::new(),
            spans_held: SpansHeld::default(),
            ..status("a")
        })
    }

    async fn checked(node: &Nodes) -> (Exit, String) {
        let mut output = Vec::new();
        let exit = run(&[node.url()], false, &mut output).await.unwrap();
        (exit, String::from_utf8(output).unwrap())
    }

    #[tokio::test]
    async fn members_are_found_from_one_and_summed() {
        let b = node("b", &[("exported", 100)], &[]).await;
        let a = node("a", &[("accepted", 100)], &[("b", address(&b))]).await;
        let (exit, text) = checked(&a).await;
        assert_eq!(exit, Exit::Done, "{text}");
        assert!(text.ends_with("\n2 members: the sum is right\n"), "{text}");
        assert!(text.contains("difference: +0 spans"), "{text}");
    }

    #[tokio::test]
    async fn residual_that_nothing_explains_fails() {
        let a = node("a", &[("accepted", 100), ("exported", 99), ("repaired", 1)], &[]).await;
        let (exit, text) = checked(&a).await;
        assert_eq!(exit, Exit::Failed, "{text}");
        assert!(text.contains("difference: -1 spans"), "{text}");
        assert!(text.ends_with("1 members: the difference is unexplained\n"), "{text}");
    }

    #[tokio::test]
    async fn member_that_does_not_answer_or_is_another_is_named() {
        let c = node("c", &[], &[]).await;
        let gone = Nodes::start(|router| router.route("/api/v1/status", get(leaver))).await;
        assert_eq!(checked(&gone).await.0, Exit::Done, "what has left is not waited for");

        let others = [("b", "127.0.0.1:1".to_owned()), ("d", address(&c)), ("e", String::new())];
        let a = node("a", &[], &others).await;
        let (exit, text) = checked(&a).await;
        assert_eq!(exit, Exit::Failed, "{text}");
        for said in [
            "b did not answer: cannot ask http://127.0.0.1:1",
            "d did not answer: c answers in its place",
            "e did not answer: it told nobody",
            "not all members answered",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}
