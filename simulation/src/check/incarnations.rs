//! `incarnations_grow`: who begins again, or stood still and can know it, is a new incarnation.
//!
//! All that others promised or confirmed to an incarnation is void with it, so a life that goes on
//! under the name of an earlier one is believed to hold what it does not. The invariant: what is
//! compared is a node's own view of itself, as seen from outside, with lives, which it cannot know.

use super::ending;
use super::lives::OneLife;
use super::model::Model;
use super::{Finding, Invariant, Verdict, clock};
use crate::plan::{Fault, Millis, NodeNumber, Seen};

/// A node notices a pause longer than `PAUSE_MAX` (600 ms) when it looks, every 100 ms.
const NOTICED: u64 = 800;

/// By then it has looked, and its view was seen.
const SOON: u64 = 1_000;

/// Generation and epoch.
type Incarnation = (u64, u32);

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    for node in model.lives.nodes() {
        let mut last: Option<Incarnation> = None;
        for life in model.lives.of(node) {
            let ended = life.ended.map_or(model.history.ended_at, |(at, _)| at);
            // What was seen when it began is its former life's view.
            let changes = model.views.changes_within(Millis(life.started.0 + 1), ended).iter();
            let own = changes.filter(|change| change.node == node);
            let mut own = own.filter_map(|change| itself(model, node, change.after?));
            let first = own.next();
            // Where clock and record both went back, it has to hear of its former life first.
            if let (Some(last), Some(first)) = (last, first)
                && first <= last
                && !ending::may_refuse(model, node)
            {
                let text = format!("begins again as {first:?}, but was {last:?} before");
                add(model, verdict, node, life.started, text);
            }
            last = last.max(first).max(own.max());
            pauses(model, verdict, node, life);
        }
    }
}

fn pauses(model: &Model<'_>, verdict: &mut Verdict, node: NodeNumber, life: &OneLife) {
    // Where no clock tells, nobody can know.
    let unseen = |fault: &Fault| match fault {
        Fault::Pause { node: other, seen, .. } => *other == node && *seen == Seen::StoodStill,
        _ => false,
    };
    if model.history.plan.faults.iter().any(|timed| unseen(&timed.fault)) {
        return;
    }
    for &(paused, woken) in &life.pauses {
        let then = Millis(woken.0 + SOON);
        let lives_on = life.ended.map_or(model.history.ended_at, |(at, _)| at) > then;
        let mut others = life.pauses.iter().filter(|one| **one != (paused, woken));
        let slow =
            |fault: &Fault| matches!(fault, Fault::Slow { node: other, .. } if *other == node);
        if woken.0 - paused.0 < NOTICED
            || !lives_on
            || others.any(|one| one.0 <= then && paused <= one.1)
            || model.faults.within(paused, then).any(|stretch| slow(stretch.fault))
        {
            continue;
        }
        let at = |at| itself(model, node, model.views.at(node, at)?);
        if let (Some(before), Some(after)) = (at(paused), at(then))
            && after <= before
        {
            let text = format!(
                "stood still until {} and goes on as {after:?}, but was {before:?} before",
                clock(woken)
            );
            add(model, verdict, node, paused, text);
        }
    }
}

/// How a node names itself in a view of its own, if it is in it.
fn itself(model: &Model<'_>, node: NodeNumber, view: usize) -> Option<Incarnation> {
    let mut members = model.views.seen(view).members.iter();
    members.find(|member| member.0 == node).map(|member| (member.1, member.2))
}

fn add(model: &Model<'_>, verdict: &mut Verdict, node: NodeNumber, at: Millis, text: String) {
    verdict.add(Finding {
        invariant: Invariant::IncarnationsGrow,
        at,
        trace: None,
        nodes: vec![node],
        text: format!("node-{node} {text}"),
        story: model.lives.story(node),
    });
}
