//! `everything_ends`: the healed cluster finishes what it has, and every client hears of it; and
//! `nothing_impossible`: no panic, no refusal of a good request, no span from nowhere.
//!
//! [`pending`] says in words what is not finished. The harness asks it when the liveness phase is
//! over; the check is that it has nothing to say. The invariant: what is lost is not pending.

use super::converge::{CONVERGE_MAX, calm_since, differences};
use super::model::{Model, OneSpan};
use super::{ExpectedFailure, Finding, Invariant, Verdict, clock, story};
use crate::history::{Answer, Ending, Entry, History, Life, What};
use crate::plan::{Fault, Generation, Millis, NodeNumber};

const STAND_IN: &str = "stand-in";

/// Traces that are named one by one.
const TRACES_TOLD_MAX: usize = 10;

/// What is not finished at the end of a history, a sentence each.
pub fn pending(history: &History) -> Vec<String> {
    let model = Model::new(history);
    let mut texts: Vec<_> = held(&model).into_iter().map(|(text, _)| text).collect();
    texts.extend(waiting(&model));
    if calm_since(&model).0 + CONVERGE_MAX <= history.ended_at.0 {
        texts.extend(differences(&model));
    }
    texts.extend(missing(&model));
    texts
}

/// Who holds what, and as what.
fn held(model: &Model<'_>) -> Vec<(String, &'static str)> {
    let roles = ["owner", "replica", STAND_IN];
    let looks = model.history.last_looks.iter();
    let holding = looks.flat_map(|(node, look)| {
        let held = look.held.iter().zip(roles).filter(|(count, _)| **count > 0);
        held.map(move |(count, role)| (format!("node-{node} holds {count} spans as {role}"), role))
    });
    holding.collect()
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
    for (text, role) in held(model) {
        // Nobody waits for what a stand-in keeps, unless it is nowhere else.
        let expected = (role == STAND_IN && missing(model).is_empty())
            .then_some(ExpectedFailure::HeldByStandIn);
        let (at, nodes, story) = (model.history.ended_at, Vec::new(), Vec::new());
        let invariant = Invariant::EverythingEnds;
        if expected.is_some() {
            verdict.occasions.insert(ExpectedFailure::HeldByStandIn, 1);
            verdict.add(Finding { invariant, expected, at, trace: None, nodes, text, story });
        } else {
            add(verdict, invariant, at, nodes, text, missing(model));
        }
    }
    for text in waiting(model) {
        let story = if verdict.tells(Invariant::EverythingEnds, None) {
            missing(model)
        } else {
            Vec::new()
        };
        add(verdict, Invariant::EverythingEnds, model.history.ended_at, Vec::new(), text, story);
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
    verdict.add(Finding { invariant, expected: None, at, trace: None, nodes, text, story });
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

/// Whether the record of its start cannot be written.
fn has_full_disk(model: &Model<'_>, node: NodeNumber, at: Millis) -> bool {
    let is_it =
        |fault: &Fault| matches!(fault, Fault::DiskFull { node: full, .. } if *full == node);
    model.faults.within(at, at).any(|stretch| is_it(stretch.fault))
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
