//! `everything_ends`: the healed cluster finishes what it has, and every client hears of it; and
//! `nothing_impossible`: no panic, no refusal of a good request, no span from nowhere.
//!
//! [`pending`] says in words what is not finished. The harness asks it when the liveness phase is
//! over; the check is that it has nothing to say. The invariant: what is lost is not pending.

use super::converge::{CONVERGE_MAX, calm_since, differences};
use super::copies::has_full_disk;
use super::licence::SETTLE_MAX;
use super::model::{Model, OneSpan};
use super::{Finding, Invariant, Verdict, clock, story};
use crate::history::{Answer, Ending, Entry, History, Life, What};
use crate::plan::{Fault, Generation, Millis, NodeNumber};

/// From the last fault or change of a life until everybody has settled: until views agree, and as
/// long as an owner waits for calm.
const SETTLED_WITHIN: u64 = CONVERGE_MAX + SETTLE_MAX;

/// Traces that are named one by one.
const TRACES_TOLD_MAX: usize = 10;

/// What is not finished at the end of a history, a sentence each.
pub fn pending(history: &History) -> Vec<String> {
    let model = Model::new(history);
    let mut texts: Vec<_> = held(&model).collect();
    texts.extend(unsettled(&model).map(|(_, text)| text));
    texts.extend(waiting(&model));
    if calm_since(&model).0 + CONVERGE_MAX <= history.ended_at.0 {
        texts.extend(differences(&model));
    }
    texts.extend(missing(&model));
    texts
}

/// Who holds what, and as what.
fn held(model: &Model<'_>) -> impl Iterator<Item = String> {
    let roles = ["owner", "replica", "stand-in"];
    let looks = model.history.last_looks.iter();
    looks.flat_map(move |(node, look)| {
        let held = look.held.into_iter().zip(roles).filter(|(count, _)| *count > 0);
        held.map(move |(count, role)| format!("node-{node} holds {count} spans as {role}"))
    })
}

/// Who has not handed over everything, though there was time for it.
fn unsettled(model: &Model<'_>) -> impl Iterator<Item = (NodeNumber, String)> {
    let since = calm_since(model);
    let had_time = since.0 + SETTLED_WITHIN <= model.history.ended_at.0;
    let looks = model.history.last_looks.iter().filter(move |_| had_time);
    let unsettled = looks.filter(|(_, look)| !look.settled || look.unplaced > 0);
    unsettled.map(move |(node, look)| {
        let settled = if look.settled { "has settled" } else { "has not settled in its view" };
        let since = clock(since);
        let text = format!(
            "node-{node} {settled}, and {} traces are unplaced, though nothing happened since \
             {since}",
            look.unplaced
        );
        (*node, text)
    })
}

/// Requests that nobody answered for good.
fn waiting(model: &Model<'_>) -> Vec<String> {
    let open = model.requests.iter().filter(|(_, request)| {
        request.accepted().is_none()
            && request.gave_up.is_none()
            && !request.told.iter().any(|told| told.2 == Answer::Refused)
    });
    let text = |(number, request): (&u32, &super::model::OneRequest)| {
        format!(
            "request {number}, offered at {} and sent {} times, is neither accepted nor given up",
            clock(request.offered),
            request.sent.len()
        )
    };
    open.map(text).collect()
}

/// Traces that were acknowledged and did not come out, where somebody may hold them.
fn missing(model: &Model<'_>) -> Vec<String> {
    let is_missing =
        |span: &&OneSpan| span.promised.is_some() && span.kept.is_none() && !span.refused;
    let mut texts = Vec::new();
    let mut untold = 0;
    for trace in &model.traces {
        let spans = model.spans_of(trace).iter().filter(is_missing);
        let (count, last) =
            (spans.clone().count(), spans.filter_map(|span| span.promised).next_back());
        let Some((_, promise)) = last else { continue };
        if texts.len() == TRACES_TOLD_MAX {
            untold += 1;
            continue;
        }
        let set = model.view_of(&promise).map(|view| model.views.set(view));
        let holders = set.and_then(|set| model.holders(trace.number, set));
        let holders = match holders {
            Some((owner, Some(replica))) => format!("node-{owner} and node-{replica}"),
            Some((owner, None)) => format!("node-{owner}"),
            None => "nobody".to_owned(),
        };
        texts.push(format!(
            "{count} spans of trace {}, acknowledged at {} to be held by {holders}, are in no sink",
            story::trace(model, trace.number),
            clock(promise.at)
        ));
    }
    if untold > 0 {
        texts.push(format!("{untold} more traces did not come out whole"));
    }
    texts
}

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    let ended = model.history.ended_at;
    for text in held(model) {
        add(verdict, Invariant::EverythingEnds, ended, Vec::new(), text, missing(model));
    }
    for (node, text) in unsettled(model) {
        let story = model.lives.story(node);
        add(verdict, Invariant::EverythingEnds, ended, vec![node], text, story);
    }
    for text in waiting(model) {
        let is_told = verdict.tells(Invariant::EverythingEnds);
        let story = if is_told { missing(model) } else { Vec::new() };
        add(verdict, Invariant::EverythingEnds, ended, Vec::new(), text, story);
    }
    for (at, node, span) in &model.invented {
        let text = format!(
            "node-{node} exported span {} of trace {}, which no client sent or which is not of \
             that trace",
            span.span, span.trace
        );
        add(verdict, Invariant::NothingImpossible, *at, vec![*node], text, Vec::new());
    }
    for Entry { at, what } in &model.history.entries {
        let Some((node, text)) = impossible(model, *at, what) else { continue };
        let story = model.lives.story(node);
        add(verdict, Invariant::NothingImpossible, *at, vec![node], text, story);
    }
}

fn add(
    verdict: &mut Verdict,
    invariant: Invariant,
    at: Millis,
    nodes: Vec<NodeNumber>,
    text: String,
    story: Vec<String>,
) {
    verdict.add(Finding { invariant, at, trace: None, nodes, text, story });
}

/// What must never be seen of a node, whatever goes wrong around it.
fn impossible(model: &Model<'_>, at: Millis, what: &What) -> Option<(NodeNumber, String)> {
    match what {
        What::Told { request, node, answer: Answer::Refused, .. } => {
            Some((*node, format!("node-{node} refused request {request} for good")))
        }
        What::Life { node, event: Life::Ended(Ending::Panicked(why)) } => {
            Some((*node, format!("a task of node-{node} panicked: {why}")))
        }
        What::Life { node, event: Life::Failed(why) }
            if !may_refuse(model, *node) && !has_full_disk(model, *node, at) =>
        {
            Some((*node, format!("node-{node} could not begin: {why}")))
        }
        What::Life { node, event: Life::Ended(Ending::Refused(why)) }
            if !may_refuse(model, *node) =>
        {
            Some((*node, format!("node-{node} must not be a member: {why}")))
        }
        _ => None,
    }
}

/// Whether the plan gives the node a reason not to become or stay a member: settings that do not
/// agree, a generation that is not new, or a clock or a record that went back.
pub(super) fn may_refuse(model: &Model<'_>, node: NodeNumber) -> bool {
    model.history.plan.faults.iter().any(|timed| match timed.fault {
        Fault::Disagree { node: other } => other == node,
        Fault::Crash { node: other, restart: Some(restart) }
        | Fault::Drain { node: other, restart: Some(restart) } => {
            other == node && restart.generation != Generation::New
        }
        // After its next start its generation is older.
        Fault::ClockStep { node: other, by_ms } => other == node && by_ms < 0,
        _ => false,
    })
}
