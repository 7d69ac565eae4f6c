//! `decided_in_time`: a trace first reaches a sink when it is due, not before and not long after.
//!
//! Due is computed from what clients sent and heard, by nobody's clock but the world's. The
//! invariant: nothing makes a trace due early except the end of the last node; and what delays one
//! is excused whole, be it a fault, an end without a word or a pause from [`BEFORE`] its first span
//! on. Who joins and who leaves in order delays it by [`SETTLE_MAX`] at most. Sinks that answer
//! delay nothing: what counts is when the first attempt reached one.

use super::exports::{self, SPANS_MAX};
use super::licence::{DETECT_MAX, SETTLE_MAX};
use super::model::{Model, OneTrace};
use super::{Finding, Invariant, Verdict, clock, story};
use crate::plan::{Fault, Millis, Mood};

/// Whoever is gone for so long is in no view, and nobody waits for it.
const BEFORE: u64 = DETECT_MAX;

/// Turns, a good sink, and messages on their way.
const LATE_MAX: u64 = 1_000;

/// A node counts whole milliseconds from its own start.
pub(super) const EARLY_MAX: u64 = 10;

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    for trace in &model.traces {
        let Some(export) = trace.exports.first().map(|first| &model.exports[*first]) else {
            continue;
        };
        if trace.spans.len() >= SPANS_MAX {
            continue;
        }
        let wrong = if let Some(due) = early(model, trace, export.at) {
            format!(
                "was exported at {}, but is due at {} at the earliest",
                clock(export.at),
                clock(due)
            )
        } else if let Some(due) = late(model, trace, export.at) {
            format!(
                "was exported at {}, but was due at {} at the latest",
                clock(export.at),
                clock(due)
            )
        } else {
            continue;
        };
        let invariant = Invariant::DecidedInTime;
        let is_told = verdict.tells(invariant);
        verdict.add(Finding {
            invariant,
            at: export.at,
            trace: Some(trace.number),
            nodes: vec![export.node],
            text: format!("trace {} {wrong}", story::trace(model, trace.number)),
            story: if is_told { story::of_trace(model, trace) } else { Vec::new() },
        });
    }
}

/// When it was due, if it was exported before that. The last nodes to leave wait for nothing.
fn early(model: &Model<'_>, trace: &OneTrace, at: Millis) -> Option<Millis> {
    let due = exports::due(model, trace)?;
    let export = trace.exports.first().map(|first| &model.exports[*first])?;
    let leaves = model.lives.at(export.node, at).is_none_or(|life| life.draining.is_some());
    (at.0 + EARLY_MAX < due.0 && !leaves).then_some(due)
}

/// When it was due, if it was exported long after that though nothing delayed it.
fn late(model: &Model<'_>, trace: &OneTrace, at: Millis) -> Option<Millis> {
    let spans = model.spans_of(trace);
    let cluster = &model.history.plan.cluster;
    let promised = spans.iter().filter_map(|span| Some((span, span.promised?.0.at)));
    let due = promised.map(|(span, held)| match span.number.span {
        0 => held.0 + cluster.root_delay_ms.0.min(cluster.age_max_ms.0),
        _ => held.0 + cluster.age_max_ms.0,
    });
    let due = due.min()?;
    if at.0 <= due + LATE_MAX {
        return None;
    }
    let first = spans.iter().filter_map(|span| span.sent).min()?;
    let (from, until) = (Millis(first.0.saturating_sub(BEFORE)), Millis(due + LATE_MAX));
    // Where views change, owner and replica may need a moment to agree.
    let is_uncalm = !model.views.changes_within(from, until).is_empty();
    let allowed = due + LATE_MAX + if is_uncalm { SETTLE_MAX } else { 0 };
    let until = Millis(allowed);
    // A sink that does not answer holds up what comes for as long as an attempt may take.
    let delays = |fault: &Fault| {
        matches!(
            fault,
            Fault::Slow { .. } | Fault::Links { .. } | Fault::Sink { mood: Mood::Dead, .. }
        )
    };
    let is_delayed = model.faults.lossy(from, until)
        || model.faults.within(from, until).any(|stretch| delays(stretch.fault))
        || model.lives.ends(from, until).any(|(_, _, end)| !end.is_orderly())
        || model.lives.nodes().any(|node| model.lives.paused_within(node, from, until));
    (at.0 > allowed && !is_delayed).then_some(Millis(due))
}
