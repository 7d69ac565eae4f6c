//! What the protocol excepts from its invariants, each exception by name with its rule.
//!
//! PROTOCOL.md's I1 to I3 say what cannot hold. Each of these cases is a [`Licence`] here: whether
//! it applies is computed from lives, views and faults around the traces that it is to excuse, and
//! it has to name something that touched *these* traces. The invariant: an excuse is counted, and
//! one that is used for more traces than [`Licence::share_max`] allows is itself a finding; a
//! protocol that only ever works by its exceptions does not work.

use super::exports::{self, ATTEMPT_MAX};
use super::faults::Faults;
use super::model::{Model, OneExport, Promise};
use super::timing::EARLY_MAX;
use super::views::{Change, Dropped};
use super::{Finding, Invariant, Verdict};
use crate::history::SinkSaid;
use crate::plan::{Millis, NodeNumber};
use serde::{Deserialize, Serialize};
use std::fmt;
use tracemesh_membership::Slot;

/// PROTOCOL's `SETTLE_MAX`: an owner decides at the latest so long after a trace was due.
pub(super) const SETTLE_MAX: u64 = 10_000;
/// PROTOCOL's `REMEMBER`.
const REMEMBER: u64 = 600_000;
/// A Done is on its way within a turn and there within a round trip; a second is generous.
pub(super) const DONE_WITHIN: u64 = 1_000;
/// If it is lost, the replica asks after `ASK_AFTER` (5 s), and again after 10 s.
const DONE_LOST_WITHIN: u64 = 16_000;
/// A member that does not answer is dropped after 2 s; a node that doubts itself waits 3 s more.
pub(super) const DETECT_MAX: u64 = 5_000;
/// Copying after a crash: until it is detected, and everybody settled.
pub(super) const COPY_MAX: u64 = DETECT_MAX + SETTLE_MAX;
/// The longest step between two looks at a node: a view is seen at the end of the step in which it
/// came, and what the node did by it may stand before.
pub(super) const STEP_MAX: u64 = 100;
/// Traces that any licence may excuse whatever its share, because small runs have coarse shares.
const ALWAYS: u64 = 10;

/// An exception of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Licence {
    /// I1: `cluster.replicas` is 0, and the one holder is gone.
    Unreplicated,
    /// I1: acknowledged when the view had one member, which is gone.
    SingleMember,
    /// I1: owner and replica both ended without a word before a copy can have been made.
    BothHoldersGone,
    /// M4: the last copy is in the spool of a node that never began again, or lost its disk.
    Spooled,
    /// M4: the last copy was left over where the disk was too full to spool it.
    NotSpooled,
    /// I2 (a): the sink has it, and the node was told nothing or "not now".
    AttemptUnanswered,
    /// I2 (b): the exporter ended, or stood still, before its Done can have arrived everywhere.
    ExporterCrashed,
    /// I2 (c): a node crashed or stood still while a view change of the slot was not settled.
    UnsettledViewChange,
    /// I2 (d): a holder of the slot that lived was dropped from somebody's view, or left while it
    /// was cut off.
    LiveNodeDropped,
    /// I2 (e): owner and replica had different views for `SETTLE_MAX`.
    SettleMaxRanOut,
    /// I2 (f): there was a moment without an active node.
    LastActiveLeft,
    /// I2 (f): the exporter forgot traces early, or the second export came after `REMEMBER`.
    RememberedEvicted,
    /// I3: a holder may not have answered the entry node in time, so that others got the batch.
    Rerouted,
    /// I3: datagrams may have been lost while the trace came together.
    LostFrames,
}

impl Licence {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreplicated => "unreplicated",
            Self::SingleMember => "single_member",
            Self::BothHoldersGone => "both_holders_gone",
            Self::Spooled => "spooled",
            Self::NotSpooled => "not_spooled",
            Self::AttemptUnanswered => "attempt_unanswered",
            Self::ExporterCrashed => "exporter_crashed",
            Self::UnsettledViewChange => "unsettled_view_change",
            Self::LiveNodeDropped => "live_node_dropped",
            Self::SettleMaxRanOut => "settle_max_ran_out",
            Self::LastActiveLeft => "last_active_left",
            Self::RememberedEvicted => "remembered_evicted",
            Self::Rerouted => "rerouted",
            Self::LostFrames => "lost_frames",
        }
    }

    /// The share of a run's traces that it may excuse, from 0 to 1, beyond the first ten.
    ///
    /// Where the rule itself names each trace's own event, the bound is the rule (1.0). Where it
    /// names a stretch of time, the bound is what such stretches are of a run at the most: a
    /// node's traces of one second and crash, what a node or two hold for half a minute, what a
    /// partition divides while it lasts. For two of them no rule says how much that is, so it
    /// is what 150 runs of two minutes showed, and a margin: of `LiveNodeDropped` 0.21, of
    /// `SettleMaxRanOut` 0.001.
    pub fn share_max(self) -> f64 {
        match self {
            Self::AttemptUnanswered => 1.0,
            Self::LiveNodeDropped | Self::SingleMember | Self::Unreplicated | Self::LostFrames => {
                0.5
            }
            Self::BothHoldersGone
            | Self::Spooled
            | Self::NotSpooled
            | Self::UnsettledViewChange
            | Self::LastActiveLeft
            | Self::Rerouted => 0.3,
            Self::ExporterCrashed => 0.2,
            Self::RememberedEvicted => 0.1,
            Self::SettleMaxRanOut => 0.02,
        }
    }
}

impl fmt::Display for Licence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether no licence was used more than it may be.
pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    for (licence, count) in verdict.licensed.clone() {
        let allowed = ALWAYS + (licence.share_max() * verdict.totals.traces as f64) as u64;
        if count > allowed {
            let invariant = match licence {
                Licence::Unreplicated
                | Licence::SingleMember
                | Licence::BothHoldersGone
                | Licence::Spooled
                | Licence::NotSpooled => Invariant::NoAcknowledgedSpanLost,
                Licence::Rerouted | Licence::LostFrames => Invariant::ExportedTogether,
                _ => Invariant::NoSpanTwice,
            };
            let traces = verdict.totals.traces;
            verdict.add(Finding {
                invariant,
                at: model.history.ended_at,
                trace: None,
                nodes: Vec::new(),
                text: format!(
                    "the licence {licence} excuses {count} of {traces} traces, more than {allowed}"
                ),
                story: model.faults.story(Millis(0), model.history.ended_at),
            });
        }
    }
}

/// What excuses that `two` has spans that `one` had, or that `one` should have had: I2's cases.
pub(super) fn excuse(model: &Model<'_>, one: &OneExport, two: &OneExport) -> Option<Licence> {
    let slot = model.views.slot(one.trace);
    let (from, until) = (one.at, two.at);
    if one.kept && matches!(one.said, SinkSaid::Nothing | SinkSaid::Again) {
        return Some(Licence::AttemptUnanswered);
    }
    if model.lives.nobody_active(from, until) {
        return Some(Licence::LastActiveLeft);
    }
    let until = Millis(until.0 + STEP_MAX);
    if exporter_crashed(model, one, until) {
        return Some(Licence::ExporterCrashed);
    }
    if live_node_dropped(model, slot, [one, two]) {
        return Some(Licence::LiveNodeDropped);
    }
    if [one, two].into_iter().any(|export| settle_max_ran_out(model, slot, export)) {
        return Some(Licence::SettleMaxRanOut);
    }
    if unsettled(model, slot, from, until) {
        return Some(Licence::UnsettledViewChange);
    }
    // Last, because a counter says nothing about this trace.
    let forgot = model.ever_counted_by(two.node, "traces_forgotten_early_total") > 0;
    (forgot || until.0 - from.0 > REMEMBER).then_some(Licence::RememberedEvicted)
}

/// What excuses that spans with these promises, given when the trace first came, were not exported
/// together: I3's own cases.
pub(super) fn excuse_parts(
    model: &Model<'_>,
    trace: u32,
    promises: impl Iterator<Item = Promise>,
    due: Millis,
) -> Option<Licence> {
    let mut first = due;
    for promise in promises {
        first = first.min(promise.sent);
        if rerouted(model, trace, &promise) {
            return Some(Licence::Rerouted);
        }
    }
    model.faults.lossy(first, due).then_some(Licence::LostFrames)
}

/// Whether a holder, by a view that the entry node had meanwhile, may not have answered it.
pub(super) fn rerouted(model: &Model<'_>, trace: u32, promise: &Promise) -> bool {
    let mut views = model.views.of_within(promise.entry, promise.sent, promise.at);
    views.any(|view| {
        let Some((owner, replica)) = model.holders(trace, model.views.set(view)) else {
            return false;
        };
        std::iter::once(owner)
            .chain(replica)
            .any(|holder| holder != promise.entry && silent(model, promise, holder))
    })
}

/// Whether a node may not have answered the entry node while it made a promise.
pub(super) fn silent(model: &Model<'_>, promise: &Promise, target: NodeNumber) -> bool {
    let Model { faults, lives, .. } = model;
    Faults::silent(faults, lives, promise.entry, target, promise.sent, promise.at)
}

fn exporter_crashed(model: &Model<'_>, one: &OneExport, until: Millis) -> bool {
    // What the sink said is on its way first.
    let told = Millis(one.heard_at.0 + DONE_WITHIN);
    let lost = model.faults.lossy(one.at, told).then_some(one.heard_at);
    let asks_from = uncovered(model, one, told).max(lost);
    let end = asks_from.map_or(told.0, |from| from.0 + DONE_LOST_WITHIN);
    let end = Millis(end.min(until.0));
    // Whoever leaves in an orderly way tells what is done before it goes.
    let mut ends = model.lives.ends(one.at, end);
    let ended = ends.any(|(node, _, end)| node == one.node && !end.is_orderly());
    let dropped = || {
        let dropped = model.dropped.iter().filter(|dropped| dropped.member == one.node);
        dropped.into_iter().any(|dropped| (one.at..=until).contains(&dropped.at))
    };
    ended || (model.lives.paused_within(one.node, one.at, end) && dropped())
}

/// Until when a replica may get spans that no Done covers, if it may: a span that was on its way
/// while the trace was exported may have come to one of its holders only, so that they do not know
/// the same of the trace before a client was told that both have it.
fn uncovered(model: &Model<'_>, one: &OneExport, told: Millis) -> Option<Millis> {
    let spans = model.spans_of(model.trace(one.trace)?);
    let sent = spans.iter().filter(|span| span.sent.is_some_and(|sent| sent <= told));
    let held = sent.map(|span| span.promised.map_or(Millis(u64::MAX / 2), |(first, _)| first.at));
    held.max().filter(|held| *held > one.at)
}

/// Whether one of these exports was made while a holder that lived was dropped, or one of the
/// exporters: cut off, it may still be the owner by its own view when it is none any more by the
/// others'. Whoever is back is handed what it lacks only until everybody has settled, which an
/// attempt that is under way delays.
fn live_node_dropped(model: &Model<'_>, slot: Slot, exports: [&OneExport; 2]) -> bool {
    let matters = |dropped: &Dropped| {
        if exports.iter().any(|export| export.node == dropped.member) {
            return true;
        }
        let holders = model.views.holders(slot, model.views.set(dropped.before));
        holders.is_some_and(|(owner, replica)| {
            owner == dropped.member || replica == Some(dropped.member)
        })
    };
    let in_time = |dropped: &&Dropped| {
        let until = dropped.until.0.saturating_add(SETTLE_MAX + ATTEMPT_MAX);
        exports.iter().any(|export| dropped.at.0 <= export.at.0 + STEP_MAX && export.at.0 <= until)
    };
    model.dropped.iter().filter(in_time).any(matters)
}

/// Whether an export may have been decided although it was not calm: of a trace that was due for
/// `SETTLE_MAX`, where exporter and replica had different views all that time, or where the
/// exporter says that it decided traces so. On paths that are full for long, hand-over takes longer
/// than an owner waits.
fn settle_max_ran_out(model: &Model<'_>, slot: Slot, export: &OneExport) -> bool {
    let due = model.trace(export.trace).and_then(|trace| exports::due(model, trace));
    let waited = due.is_some_and(|due| export.at.0 + EARLY_MAX >= due.0 + SETTLE_MAX);
    let decides_uncalm = || {
        model.ever_counted_by(export.node, "spans_exported_again_possible_total{cause=\"uncalm\"}")
            > 0
    };
    waited && (decides_uncalm() || views_differ(model, slot, export))
}

/// Whether the exporter and the replica in its view had different views for `SETTLE_MAX` before.
fn views_differ(model: &Model<'_>, slot: Slot, export: &OneExport) -> bool {
    let views = &model.views;
    let Some(since) = export.at.0.checked_sub(SETTLE_MAX) else { return false };
    let Some(view) = views.at(export.node, export.at) else { return false };
    let Some((owner, Some(replica))) = views.holders(slot, views.set(view)) else { return false };
    let changes = views.changes_within(Millis(since), export.at).iter();
    let moments = changes.map(|change| change.at).chain([Millis(since), export.at]);
    owner == export.node
        && moments.into_iter().all(|at| views.at(owner, at) != views.at(replica, at))
}

/// Whether a node crashed or stood still while a change of the slot's holders, which was not about
/// this node, was at most `SETTLE_MAX` old or about to be noticed.
fn unsettled(model: &Model<'_>, slot: Slot, from: Millis, until: Millis) -> bool {
    let views = &model.views;
    let from = Millis(from.0.saturating_sub(COPY_MAX));
    let is_about = |change: &Change, node: NodeNumber| {
        let member = |view: Option<usize>| {
            let mut members = views.seen(view?).members.iter();
            members.find(|member| member.0 == node)
        };
        member(change.before) != member(change.after)
    };
    let crashes = model.lives.ends(from, until).filter(|(_, _, end)| !end.is_orderly());
    let crashes = crashes.map(|(node, at, _)| (node, at));
    let pauses = model.lives.nodes().flat_map(|node| {
        let pauses = model.lives.of(node).iter().flat_map(|life| &life.pauses);
        pauses.map(move |(at, _)| (node, *at))
    });
    let pauses = pauses.filter(|(_, at)| (from..=until).contains(at));
    crashes.chain(pauses).any(|(node, at)| {
        let since = Millis(at.0.saturating_sub(SETTLE_MAX));
        let changes = views.changes_within(since, Millis(at.0 + DETECT_MAX)).iter();
        let others = changes.filter(|change| change.before.is_some() && change.after.is_some());
        others
            .filter(|change| !is_about(change, node))
            .any(|change| views.differ(slot, change.before, change.after))
    })
}
