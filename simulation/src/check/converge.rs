//! `views_converge`: soon after everything healed, all nodes that live have one view, of
//! themselves.
//!
//! The invariant: a view is compared with lives, which were seen from outside, so views that agree
//! on something wrong are found as well. Nothing is said about the time before
//! [`CONVERGE_MAX`] after the last fault or change of a life.

use super::model::Model;
use super::{Finding, Invariant, Verdict, clock};
use crate::history::ViewSeen;
use crate::plan::{Millis, NodeNumber};

/// A crash is detected after 2 s, by a node that doubts itself 3 s later; three rounds of 200 ms
/// make a joining node stable, and a partition heals after `alone_after` (10 s) at the worst.
pub(super) const CONVERGE_MAX: u64 = 15_000;

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    let since = calm_since(model);
    let ended = model.history.ended_at;
    if since.0 + CONVERGE_MAX > ended.0 {
        return;
    }
    let late = Millis(since.0 + CONVERGE_MAX);
    for change in model.views.changes_within(late, ended) {
        let text = format!(
            "node-{} has another view at {}, though nothing happened since {}: {}",
            change.node,
            clock(change.at),
            clock(since),
            model.views.text(change.after)
        );
        verdict.add(finding(model, change.at, vec![change.node], text));
    }
    for text in differences(model) {
        verdict.add(finding(model, ended, Vec::new(), text));
    }
}

/// Since when no fault was at work, and no node began, left or ended.
pub(super) fn calm_since(model: &Model<'_>) -> Millis {
    model.history.healed_at.max(model.lives.last_change())
}

/// In which way views are not one view of those that are active, in words.
pub(super) fn differences(model: &Model<'_>) -> Vec<String> {
    let ended = model.history.ended_at;
    let active = model.lives.active(ended);
    let views: Vec<(NodeNumber, Option<&ViewSeen>)> = model
        .lives
        .nodes()
        .filter(|node| active & 1 << node != 0)
        .map(|node| {
            let seen = model.views.at(node, ended).map(|view| model.views.seen(view));
            (node, model.history.last_looks.get(&node).map(|look| &look.view).or(seen))
        })
        .collect();
    let mut texts = Vec::new();
    for (node, view) in &views {
        let Some(view) = view else {
            texts.push(format!("node-{node} is active and has no view"));
            continue;
        };
        let members = view.members.iter().fold(0, |set, member| set | 1 << member.0);
        for other in model.lives.nodes() {
            let (is_active, is_member) = (active & 1 << other != 0, members & 1 << other != 0);
            if is_active && !is_member {
                texts.push(format!("node-{node} lacks node-{other}, which is active, in its view"));
            } else if is_member && !is_active {
                texts.push(format!(
                    "node-{node} has node-{other}, which is not active, in its view"
                ));
            }
        }
    }
    for pair in views.windows(2) {
        if let [(one, Some(view)), (other, Some(others))] = pair
            && view != others
            && view.members.len() == others.members.len()
        {
            texts.push(format!(
                "node-{one} and node-{other} have different views, {:016x} and {:016x}",
                view.hash, others.hash
            ));
        }
    }
    texts
}

fn finding(model: &Model<'_>, at: Millis, nodes: Vec<NodeNumber>, text: String) -> Finding {
    let lives = model.lives.nodes().flat_map(|node| model.lives.story(node));
    let (invariant, trace) = (Invariant::ViewsConverge, None);
    Finding { invariant, at, trace, nodes, text, story: lives.collect() }
}
