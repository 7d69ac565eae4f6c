//! What came out of the sinks: `exported_together`, `no_span_twice`, `one_verdict_per_trace`,
//! `owner_exports`, and spans from nowhere.
//!
//! The invariant: an export is judged against those of its own trace only, so the work is the sum
//! of the traces' exports. When a trace was due is computed here from what clients sent, at the
//! earliest moment that is possible; a span acknowledged before that has no excuse for coming late.

use super::faults::AFTERMATH;
use super::licence::{self, Licence, SETTLE_MAX, STEP_MAX};
use super::model::{Model, OneExport, OneTrace};
use super::{Finding, Invariant, Verdict, clock, story};
use crate::history::SinkSaid;
use crate::plan::{Fault, Millis, NodeNumber};
use std::collections::{BTreeMap, BTreeSet};

/// PROTOCOL's `ATTEMPT_MAX`, and a turn: an export is reported at its end, and who began it may be
/// no owner any more.
pub(super) const ATTEMPT_MAX: u64 = 5_000 + 1_000;

/// Traces of at least so many spans are due at once, so that no time can be told: half the default
/// of `traces.spans_max`.
pub(super) const SPANS_MAX: usize = 5_000;

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    for trace in &model.traces {
        together(model, trace, verdict);
        twice(model, trace, verdict);
        marks(model, trace, verdict);
    }
    for export in &model.exports {
        owner(model, export, verdict);
    }
    sampled_out(model, verdict);
}

/// A finding about a trace.
fn add(
    model: &Model<'_>,
    verdict: &mut Verdict,
    trace: &OneTrace,
    invariant: Invariant,
    (at, nodes, text): (Millis, Vec<NodeNumber>, String),
) {
    let is_told = verdict.tells(invariant);
    let story = if is_told { story::of_trace(model, trace) } else { Vec::new() };
    let text = format!("trace {} {text}", story::trace(model, trace.number));
    verdict.add(Finding { invariant, at, trace: Some(trace.number), nodes, text, story });
}

/// The earliest moment at which a trace can be due; none if nothing of it was sent.
pub(super) fn due(model: &Model<'_>, trace: &OneTrace) -> Option<Millis> {
    let spans = model.spans_of(trace);
    let first = spans.iter().filter_map(|span| span.sent).min()?;
    let cluster = &model.history.plan.cluster;
    let by_age = first.0 + cluster.age_max_ms.0;
    let root = spans.iter().find(|span| span.number.span == 0).and_then(|span| span.sent);
    let by_root = root.map_or(u64::MAX, |root| root.0 + cluster.root_delay_ms.0);
    Some(Millis(by_age.min(by_root)))
}

fn before(at: Millis, by: u64) -> Millis {
    Millis(at.0.saturating_sub(by))
}

fn together(model: &Model<'_>, trace: &OneTrace, verdict: &mut Verdict) {
    let Some(due) = due(model, trace) else { return };
    let spans = model.spans_of(trace);
    if spans.len() >= SPANS_MAX {
        return;
    }
    let in_time = spans.iter().filter_map(|span| {
        let (first, _) = span.promised.filter(|(first, _)| first.at < due)?;
        Some((span.kept?, first))
    });
    let parts: BTreeSet<usize> = in_time.clone().map(|(kept, _)| kept).collect();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
    if first == last {
        return;
    }
    verdict.totals.in_parts += 1;
    let (one, two) = (&model.exports[*first], &model.exports[*last]);
    let parts_excuse =
        || licence::excuse_parts(model, trace.number, in_time.map(|span| span.1), due);
    // An attempt without an answer is made again with the same spans: whatever was there is in it,
    // unless somebody else made it.
    let excuse = licence::excuse(model, one, two)
        .filter(|licence| *licence != Licence::AttemptUnanswered || one.node != two.node);
    if let Some(licence) = excuse.or_else(parts_excuse) {
        return verdict.license(model, licence, trace.number, two.at);
    }
    let text = format!(
        "came out in {} attempts, at {} of node-{} and last at {} of node-{}, though all of it \
         was acknowledged before it was due",
        parts.len(),
        clock(one.at),
        one.node,
        clock(two.at),
        two.node
    );
    let about = (two.at, vec![one.node, two.node], text);
    add(model, verdict, trace, Invariant::ExportedTogether, about);
}

fn twice(model: &Model<'_>, trace: &OneTrace, verdict: &mut Verdict) {
    let kept: Vec<usize> = model.kept_of(trace).collect();
    if kept.len() < 2 {
        return;
    }
    // Pairs of exports that have a span in common and none in between that has it.
    let mut last = vec![None; trace.spans.len()];
    let mut again = vec![false; trace.spans.len()];
    let mut pairs = BTreeSet::new();
    for export in kept {
        for span in &model.exports[export].spans {
            let place = *span as usize - trace.spans.start;
            if let Some(earlier) = last[place].replace(export) {
                again[place] = true;
                pairs.insert((earlier, export));
            }
        }
    }
    verdict.totals.twice += again.iter().filter(|again| **again).count() as u64;
    let mut licences = BTreeMap::new();
    for (earlier, export) in pairs {
        let (one, two) = (&model.exports[earlier], &model.exports[export]);
        if let Some(licence) = licence::excuse(model, one, two) {
            licences.entry(licence).or_insert(two.at);
            continue;
        }
        let both = one.spans.iter().filter(|span| two.spans.contains(span)).count();
        let text = format!(
            "has {both} spans in the sink of node-{} since {} and again in that of node-{} at {}",
            one.node,
            clock(one.at),
            two.node,
            clock(two.at)
        );
        let about = (two.at, vec![one.node, two.node], text);
        add(model, verdict, trace, Invariant::NoSpanTwice, about);
    }
    for (licence, at) in licences {
        verdict.license(model, licence, trace.number, at);
    }
}

/// Whether a node was a holder of a slot all the time between two exports, by its own views: who is
/// none hands over what it remembers, and forgets.
fn stayed_holder(model: &Model<'_>, one: &OneExport, two: &OneExport) -> bool {
    let (views, slot) = (&model.views, model.views.slot(one.trace));
    views.of_within(one.node, one.at, two.at).all(|view| {
        views
            .holders(slot, views.set(view))
            .is_some_and(|(owner, replica)| owner == one.node || replica == Some(one.node))
    })
}

/// Late spans follow a verdict, and say so: the first export is not late, and what a node exports
/// after it was told that a sink has a part is.
fn marks(model: &Model<'_>, trace: &OneTrace, verdict: &mut Verdict) {
    let exports = || trace.exports.iter().map(|number| &model.exports[*number]);
    for (number, export) in exports().enumerate() {
        let mut earlier = exports().take(number);
        let wrong = if export.late {
            // What was done elsewhere may have been learnt from an attempt of any node.
            let is_done = |one: &OneExport| one.kept || one.said == SinkSaid::Refused;
            (!earlier.any(is_done)).then_some("is marked as late, but nothing of it was done")
        } else {
            let forgets = model.ever_counted_by(export.node, "traces_forgotten_early_total") > 0;
            let knows = |one: &OneExport| {
                one.node == export.node
                    && one.said == SinkSaid::Acknowledged
                    && one.heard_at < export.at
                    && same_life(model, one, export)
                    && stayed_holder(model, one, export)
            };
            (!forgets && earlier.any(knows))
                .then_some("is not marked as late, though its node had exported a part")
        };
        if let Some(wrong) = wrong {
            let text = format!("{wrong} (at {} of node-{})", clock(export.at), export.node);
            let about = (export.at, vec![export.node], text);
            add(model, verdict, trace, Invariant::OneVerdictPerTrace, about);
        }
    }
}

fn same_life(model: &Model<'_>, one: &OneExport, two: &OneExport) -> bool {
    // An attempt that began before the other's answer knows nothing of it; there is one at a time,
    // but a slow sink's answers come in a heap.
    let slow = |fault: &Fault| matches!(fault, Fault::Sink { .. });
    let mut faults = model.faults.within(before(one.at, AFTERMATH), two.at);
    model.lives.ends(one.at, two.at).all(|(node, _, _)| node != one.node)
        && model.lives.at(one.node, two.at).is_some_and(|life| life.draining.is_none())
        && !faults.any(|stretch| slow(stretch.fault))
}

/// Nobody is owner for long without believing it.
fn owner(model: &Model<'_>, export: &OneExport, verdict: &mut Verdict) {
    let slot = model.views.slot(export.trace);
    let slow = model.faults.within(before(export.at, SETTLE_MAX), export.at);
    let is_slow = slow.into_iter().any(|stretch| {
        matches!(stretch.fault, Fault::Sink { .. } | Fault::Slow { .. } | Fault::Pause { .. })
    });
    let window = if is_slow { 60_000 } else { ATTEMPT_MAX };
    // A view is seen at the end of the step in which it came.
    let seen = Millis(export.at.0 + STEP_MAX);
    let mut views = model.views.of_within(export.node, before(export.at, window), seen);
    let owns = |view| {
        let holders = model.views.holders(slot, model.views.set(view));
        holders.is_some_and(|(owner, _)| owner == export.node)
    };
    if views.any(owns) {
        return;
    }
    let Some(trace) = model.trace(export.trace) else { return };
    let view = model.views.text(model.views.at(export.node, export.at));
    let text = format!(
        "was exported at {} by node-{}, which is no owner of slot {} in its view {view}",
        clock(export.at),
        export.node,
        slot.0
    );
    let about = (export.at, vec![export.node], text);
    add(model, verdict, trace, Invariant::OwnerExports, about);
}

/// No plan samples anything out yet.
fn sampled_out(model: &Model<'_>, verdict: &mut Verdict) {
    let count = model.counted("spans_sampled_out_total");
    if count > 0 {
        verdict.add(Finding {
            invariant: Invariant::OneVerdictPerTrace,
            at: model.history.ended_at,
            trace: None,
            nodes: Vec::new(),
            text: format!("{count} spans were sampled out, though no plan asks for it"),
            story: Vec::new(),
        });
    }
}
