//! Which faults were at work when, and whom they kept from whom.
//!
//! The invariant: a fault is at work from its `FaultBegins` to its `FaultEnds`, or to the end where
//! that is missing, never by the plan's own times: the harness may have begun it later. Crashes,
//! drains and pauses are lives (`lives`), not stretches of time.

use super::clock;
use super::lives::Lives;
use crate::history::{Entry, History, What};
use crate::plan::{Fault, LinkOptions, Millis, Mood, NodeNumber};

/// An entry node that found a target silent probes it every 250 ms and avoids it in between; one
/// that found a connection broken dials anew. So what a fault did lasts this much longer.
pub(super) const AFTERMATH: u64 = 1_500;

/// A link whose datagrams may need this long, in microseconds, may keep an answer for longer than
/// `ACK_WAIT` once one of them is lost.
const SLOW_LINK_US: u64 = 60_000;

/// A fault and when it was at work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch<'a> {
    pub(super) from: Millis,
    pub(super) until: Millis,
    pub(super) fault: &'a Fault,
}

/// All faults of a history that were at work for a while.
#[derive(Debug)]
pub(super) struct Faults<'a> {
    stretches: Vec<Stretch<'a>>,
    link_is_bad: bool,
}

impl<'a> Faults<'a> {
    pub(super) fn new(history: &'a History) -> Self {
        let mut stretches = vec![None; history.plan.faults.len()];
        for Entry { at, what } in &history.entries {
            match what {
                What::FaultBegins(number) => {
                    let Some(timed) = history.plan.faults.get(*number) else { continue };
                    let until = history.ended_at;
                    stretches[*number] = Some(Stretch { from: *at, until, fault: &timed.fault });
                }
                What::FaultEnds(number) => {
                    if let Some(Some(stretch)) = stretches.get_mut(*number) {
                        stretch.until = *at;
                    }
                }
                _ => {}
            }
        }
        let stretches = stretches.into_iter().flatten().collect();
        Self { stretches, link_is_bad: is_bad(&history.plan.link) }
    }

    /// Whether nothing at all went wrong.
    pub(super) fn none(&self) -> bool {
        self.stretches.is_empty() && !self.link_is_bad
    }

    /// Faults at work at some moment of a stretch of time.
    pub(super) fn within(&self, from: Millis, until: Millis) -> impl Iterator<Item = &Stretch<'a>> {
        self.stretches.iter().filter(move |fault| fault.from <= until && from <= fault.until)
    }

    /// Whether datagrams between any nodes may have been lost or long on their way.
    pub(super) fn lossy(&self, from: Millis, until: Millis) -> bool {
        let is_lossy = |fault: &Fault| {
            matches!(fault, Fault::Partition { .. } | Fault::PairCut { .. })
                || matches!(fault, Fault::Links { link, .. } if is_bad(link))
        };
        self.link_is_bad || self.within(from, until).any(|stretch| is_lossy(stretch.fault))
    }

    /// Whether two nodes were cut off from each other at a moment.
    pub(super) fn apart(&self, one: NodeNumber, other: NodeNumber, at: Millis) -> bool {
        self.within(at, at).any(|stretch| is_cut(stretch.fault, one, other))
    }

    /// Whether `target` may not have answered `entry` at some moment of a stretch of time: not
    /// living, standing still, slow, or behind a bad link. The same if `entry` itself was slow.
    pub(super) fn silent(
        &self,
        lives: &Lives,
        entry: NodeNumber,
        target: NodeNumber,
        from: Millis,
        until: Millis,
    ) -> bool {
        let before = Millis(from.0.saturating_sub(AFTERMATH));
        let is_down = lives.ends(before, until).any(|(node, _, _)| node == target)
            || lives.at(target, from).is_none();
        let stood_still = |node| lives.paused_within(node, before, until);
        if is_down || stood_still(target) || stood_still(entry) {
            return true;
        }
        let mut faults = self.within(before, until);
        self.link_is_bad || faults.any(|stretch| keeps_apart(stretch.fault, entry, target))
    }

    /// When faults were at work that may keep nodes from telling each other what they have, or from
    /// taking what they are given: a node is full when no sink took anything for so long.
    pub(super) fn hindering(&self, full_after: f64) -> impl Iterator<Item = (Millis, Millis)> {
        let hinders = move |stretch: &&Stretch<'_>| match stretch.fault {
            Fault::Partition { .. } | Fault::PairCut { .. } | Fault::Slow { .. } => true,
            Fault::Links { link, .. } => is_bad(link),
            Fault::Sink { mood, .. } => {
                fills(mood) && (stretch.until.0 - stretch.from.0) as f64 >= full_after
            }
            _ => false,
        };
        let hindering = self.stretches.iter().filter(hinders);
        hindering.map(|stretch| (stretch.from, stretch.until))
    }

    /// Whether something made nodes full, so that they had to push clients back.
    pub(super) fn overload(&self) -> bool {
        self.stretches.iter().any(|stretch| match stretch.fault {
            Fault::Sink { mood, .. } => fills(mood),
            Fault::Slow { turn_of, .. } => *turn_of > 1,
            Fault::Links { link, .. } => is_bad(link),
            Fault::DiskFull { .. } => true,
            _ => false,
        })
    }

    /// Faults at work in a stretch of time, in words.
    pub(super) fn story(&self, from: Millis, until: Millis) -> Vec<String> {
        let text = |stretch: &Stretch<'_>| {
            // Only maps with keys that are no texts cannot be written, and a fault has no maps.
            let fault = serde_json::to_string(stretch.fault).unwrap_or_default();
            format!("{} fault until {}: {fault}", clock(stretch.from), clock(stretch.until))
        };
        self.within(from, until).map(text).collect()
    }
}

/// Whether nodes may become full because of a sink like this.
fn fills(mood: &Mood) -> bool {
    match mood {
        Mood::Slow { for_ms } => for_ms.0 >= 1_000,
        Mood::Failing { share } | Mood::Lying { share } | Mood::Mute { share } => *share > 0.5,
        Mood::Dead => true,
        Mood::Refusing { .. } => false,
    }
}

fn is_bad(link: &LinkOptions) -> bool {
    let longest_us = link.latency_us.saturating_add(link.jitter_us);
    let held_back = if link.reordering > 0.0 { 4 } else { 1 };
    link.loss > 0.0
        || link.bandwidth > 0
        || link.mtu < LinkOptions::GOOD.mtu
        || longest_us.saturating_mul(held_back) > SLOW_LINK_US
}

fn keeps_apart(fault: &Fault, one: NodeNumber, other: NodeNumber) -> bool {
    match fault {
        Fault::Slow { node, .. } => *node == one || *node == other,
        Fault::Links { link, .. } => is_bad(link),
        _ => is_cut(fault, one, other),
    }
}

fn is_cut(fault: &Fault, one: NodeNumber, other: NodeNumber) -> bool {
    match fault {
        Fault::Partition { side, .. } => side.contains(&one) != side.contains(&other),
        Fault::PairCut { pair, .. } => *pair == (one, other) || *pair == (other, one),
        _ => false,
    }
}
