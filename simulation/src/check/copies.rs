//! When a copy is gone, and until when there may be only one: the ends of lives that took with them
//! what was held, and how long placing may last (PROTOCOL.md, I1).
//!
//! I1 promises nothing where a slot's owner and its replica are gone before placing has ended. That
//! is read here from views: two nodes that ended one soon after the other are an excuse only for
//! slots of which both were the holders, in a view that somebody had or of which placing may not
//! have ended. The invariant: only an end without a word takes copies with it, or one whose rest
//! is neither handed over nor in a spool that is read again. Bounded by ends of lives times
//! changes of views.
//!
//! That placing has ended is not seen: it is taken to last for [`COPY_MAX`] from a failure, or from
//! the end of whatever kept nodes from each other meanwhile.

use super::figures;
use super::licence::{COPY_MAX, Licence, SETTLE_MAX, STEP_MAX};
use super::lives::{End, OneLife};
use super::model::Model;
use super::views::{Change, NodeSet};
use crate::plan::{Fault, Millis, NodeNumber};
use std::collections::BTreeMap;

/// An end of a life with which what the node held is gone.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) node: NodeNumber,
    /// When the life began.
    pub(super) began: Millis,
    pub(super) at: Millis,
    /// What excuses it, if another end excuses the loss of the other copy.
    pub(super) licence: Licence,
    /// Until when it was the only member by its own view, if what it had then may not have been
    /// placed by the next.
    pub(super) alone: Option<Millis>,
    /// Views by which spans may have been held then, as sets of members, and until when somebody
    /// had them.
    pub(super) views: BTreeMap<NodeSet, Millis>,
}

/// Something that placing has to wait for.
#[derive(Clone, Copy, Debug)]
struct Hindrance {
    from: Millis,
    until: Millis,
    /// Placing may last so long after it.
    then: u64,
}

/// Ends and hindrances of a history.
#[derive(Debug)]
pub(super) struct Copies {
    taken: Vec<Taken>,
    hindrances: Vec<Hindrance>,
}

impl Copies {
    pub(super) fn new(model: &Model<'_>) -> Self {
        let mut copies = Self { taken: Vec::new(), hindrances: hindrances(model) };
        let changes = model.views.changes().iter();
        let left: Vec<(&Change, Millis)> =
            changes.map(|change| (change, copies.placed_by(change.at))).collect();
        let ends = model.lives.ends(Millis(0), model.history.ended_at);
        let mut taken: Vec<Taken> = ends
            .filter_map(|(node, at, end)| {
                let licence = copies.licence(model, node, at, end)?;
                let mut lives = model.lives.of(node).iter();
                let began = lives.find(|life| life.ended == Some((at, end)))?.started;
                let (alone, views) = views_at(model, &left, node, at);
                Some(Taken { node, began, at, licence, alone, views })
            })
            .collect();
        taken.sort_by_key(|taken| taken.at);
        copies.taken = taken;
        copies
    }

    /// The ends since a moment that took with them what was held, in order.
    pub(super) fn taken_since(&self, since: Millis) -> &[Taken] {
        &self.taken[self.taken.partition_point(|taken| taken.at < since)..]
    }

    /// Whether what a node had at an end is in a spool that it read again.
    pub(super) fn is_in_spool(&self, node: NodeNumber, at: Millis, end: End) -> bool {
        let is_it = |taken: &Taken| (taken.node, taken.at) == (node, at);
        matches!(end, End::Spooled(_)) && !self.taken.iter().any(is_it)
    }

    /// When what lost a copy at a moment, or came to where it does not belong, is placed again.
    pub(super) fn placed_by(&self, from: Millis) -> Millis {
        let mut by = Millis(from.0 + COPY_MAX);
        loop {
            let at_work = self.hindrances.iter().filter(|one| one.from <= by && from <= one.until);
            match at_work.map(|one| Millis(one.until.0 + one.then)).max() {
                Some(later) if later > by => by = later,
                _ => return by,
            }
        }
    }

    /// Whether an end takes with it what was held, as what.
    fn licence(
        &self,
        model: &Model<'_>,
        node: NodeNumber,
        at: Millis,
        end: End,
    ) -> Option<Licence> {
        match end {
            End::Crashed | End::Gave => Some(Licence::BothHoldersGone),
            End::Drained(0) => None,
            End::Drained(_) => has_full_disk(model, node, at).then_some(Licence::NotSpooled),
            End::Spooled(_) => self.is_spool_lost(model, node, at).then_some(Licence::Spooled),
        }
    }

    /// Whether nobody read the spool that a node left: it never started again, or its disk was lost
    /// before. A life that was too short to place what it read leaves the spool to the next.
    fn is_spool_lost(&self, model: &Model<'_>, node: NodeNumber, at: Millis) -> bool {
        let lives = model.lives.of(node);
        let is_it = |life: &OneLife| life.ended.is_some_and(|ended| ended.0 == at);
        let Some(writer) = lives.iter().position(is_it) else { return true };
        for pair in lives[writer..].windows(2) {
            if pair[0].disk_lost {
                return true;
            }
            let has_placed = match pair[1].ended {
                None | Some((_, End::Spooled(_) | End::Drained(0))) => true,
                Some((ended, _)) => self.placed_by(pair[1].started) < ended,
            };
            if has_placed {
                return false;
            }
        }
        true
    }
}

/// Whether nothing can be written to a node's disk.
pub(super) fn has_full_disk(model: &Model<'_>, node: NodeNumber, at: Millis) -> bool {
    let is_it =
        |fault: &Fault| matches!(fault, Fault::DiskFull { node: full, .. } if *full == node);
    // An end is seen at the end of its step.
    let from = Millis(at.0.saturating_sub(STEP_MAX));
    model.faults.within(from, at).any(|stretch| is_it(stretch.fault))
}

/// What keeps nodes from hearing each other or from taking what they are given, and changes of
/// views, each of which voids what was confirmed.
fn hindrances(model: &Model<'_>) -> Vec<Hindrance> {
    let faults = model.faults.hindering(full_after(model));
    let pauses = model.lives.nodes().flat_map(|node| model.lives.of(node));
    let pauses = pauses.flat_map(|life| life.pauses.iter().copied());
    let lasting = faults.chain(pauses);
    let lasting = lasting.map(|(from, until)| Hindrance { from, until, then: COPY_MAX });
    let changes = model.views.changes().iter();
    let changes = changes.filter(|change| change.before.is_some() && change.after.is_some());
    let changes =
        changes.map(|change| Hindrance { from: change.at, until: change.at, then: SETTLE_MAX });
    lasting.chain(changes).collect()
}

/// After how many milliseconds without a sink a node may be full.
fn full_after(model: &Model<'_>) -> f64 {
    let plan = &model.history.plan;
    plan.cluster.memory_bytes as f64 / 2.0 / figures::held_bytes(plan, 1.0)
}

/// Until when a node was the only member by its own view, and all views by which something may have
/// been held when it ended, each until when somebody had it: those that somebody had still, and
/// those left when placing by the next one may not have ended.
fn views_at(
    model: &Model<'_>,
    left: &[(&Change, Millis)],
    ended: NodeNumber,
    at: Millis,
) -> (Option<Millis>, BTreeMap<NodeSet, Millis>) {
    let is_up = |node: &NodeNumber| {
        let mut lives = model.lives.of(*node).iter();
        lives.any(|life| life.started <= at && life.ended.is_none_or(|(ended, _)| at <= ended))
    };
    let present = model.lives.nodes().filter(is_up);
    let present = present.filter_map(|node| Some((node, model.views.at(node, at)?, at)));
    let former = left.iter().filter(|(change, placed_by)| change.at <= at && at <= *placed_by);
    let former = former.filter_map(|(change, _)| Some((change.node, change.before?, change.at)));
    let (mut alone, mut views) = (None, BTreeMap::new());
    for (node, view, until) in present.chain(former) {
        let set = model.views.set(view);
        let known = views.entry(set).or_insert(until);
        *known = until.max(*known);
        if node == ended && set == 1 << ended {
            alone = alone.max(Some(until));
        }
    }
    (alone, views)
}
