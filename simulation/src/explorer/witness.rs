//! What an observer who sees everything remembers of a world: what clients were told, what sinks
//! took, and which faults happened to whom.
//!
//! It is a part of the state, because the invariants speak of the past. It never influences what
//! nodes do.

use super::setting::TRACES_MAX;
use std::ops::{BitOr, BitOrAssign};
use tracemesh::shard::Tally;

/// The most sinks of a world.
pub const SINKS_MAX: usize = 2;

/// A set of things that happened; each may excuse something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts(pub u32);

impl Facts {
    /// A batch was routed around a holder, or a request failed.
    pub const REROUTED: Self = Self(1);
    /// A message between nodes was lost, or came twice.
    pub const LOSSY: Self = Self(1 << 1);
    /// A live node was believed dead, and did not stand still: one that does notices it.
    pub const SUSPECTED: Self = Self(1 << 2);
    /// A node crashed.
    pub const CRASHED: Self = Self(1 << 3);
    /// A node crashed before the world had healed from a crash.
    pub const CRASHED_UNHEALED: Self = Self(1 << 4);
    /// A node left.
    pub const LEFT: Self = Self(1 << 5);
    /// A node joined, for the first time or again.
    pub const JOINED: Self = Self(1 << 6);
    /// The last nodes left, and decided at once.
    pub const LAST_LEFT: Self = Self(1 << 8);
    /// An owner decided although it was not calm.
    pub const UNCALM: Self = Self(1 << 9);
    /// Of a trace: an attempt got no answer, or another one than an acknowledgement.
    pub const UNANSWERED: Self = Self(1 << 10);
    /// Of a trace: a node crashed, or stood still, while the others could not know what it had
    /// finished.
    pub const CRASHED_UNTOLD: Self = Self(1 << 11);
    /// Of a trace: a Done was lost.
    pub const DONE_LOST: Self = Self(1 << 13);
    /// Of a trace: a Done did not cover what its receiver has, or had yet to get.
    pub const DONE_UNLIKE: Self = Self(1 << 14);
    /// A node stood still.
    pub const STOOD_STILL: Self = Self(1 << 15);

    /// Whether all of `others` are here.
    pub fn have(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl BitOr for Facts {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Facts {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What is promised; the numbers are those of PROTOCOL.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// Nothing acknowledged is lost.
    NothingLost,
    /// Exported once.
    ExportedOnce,
    /// Exported together.
    Together,
    /// Everything comes to rest.
    Rest,
    /// One verdict.
    OneVerdict,
    /// What is counted adds up when nothing disturbed it.
    Counters,
    /// A client is answered only when its spans are held as often as the view asks for (E4).
    Acknowledged,
    /// Only a calm owner decides (D1).
    Decided,
    /// Who holds what another holder may lack knows it (E3 and H3).
    Unplaced,
    /// A copy is given up only against a confirmation (P3 and P4).
    GivenUp,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

/// Sums over all nodes, in spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Of requests that were answered with success.
    pub accepted: u64,
    /// Finished: exported, sampled out, refused.
    pub finished: u64,
    /// That an owner got again from an entry node.
    pub redelivered: u64,
    /// That an owner got from a node that is no entry node.
    pub repaired: u64,
}

/// What is remembered.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    /// Spans of requests that were answered with success, by trace.
    pub accepted: [u8; TRACES_MAX],
    /// Of these, by a node that knew of no second one.
    pub accepted_single: [u8; TRACES_MAX],
    /// Of these, before anything of the trace was decided.
    pub accepted_early: [u8; TRACES_MAX],
    /// Something of the trace was decided.
    pub decided: [bool; TRACES_MAX],
    /// Spans that each sink took.
    pub exported: [[u8; TRACES_MAX]; SINKS_MAX],
    /// Spans that each sink refused for good.
    pub refused: [[u8; TRACES_MAX]; SINKS_MAX],
    /// Spans that a sink took twice.
    pub exported_twice: [u8; TRACES_MAX],
    /// Attempts that the first sink took.
    pub parts: [u8; TRACES_MAX],
    /// Spans that were sampled out.
    pub sampled_out: [u8; TRACES_MAX],
    /// Verdicts that were decided, as bits.
    pub verdicts: [u8; TRACES_MAX],
    /// What happened to the world.
    pub facts: Facts,
    /// What happened to each trace.
    pub trace_facts: [Facts; TRACES_MAX],
    /// Something was lost by a crash, or is held once only, and is not placed again yet.
    pub unhealed: bool,
    /// Sums over all nodes.
    pub counters: Counters,
    /// What was broken in the last step.
    pub violation: Option<Violation>,
}

impl Witness {
    /// What happened that concerns a trace.
    pub fn facts(&self, trace: usize) -> Facts {
        self.facts | self.trace_facts[trace]
    }

    /// Adds what a shard counted.
    pub fn count(&mut self, tally: &Tally) {
        self.counters.finished += tally.exported + tally.sampled_out + tally.refused + tally.poison;
        self.counters.redelivered += tally.redelivered;
        self.counters.repaired += tally.repaired;
        if tally.uncalm > 0 {
            self.facts |= Facts::UNCALM;
        }
    }

    /// A sink took an attempt.
    pub fn on_export(&mut self, sink: u32, trace: usize, spans: u8) {
        let exported = &mut self.exported[sink as usize][trace];
        self.exported_twice[trace] |= *exported & spans;
        *exported |= spans;
        if sink == 0 {
            self.parts[trace] = self.parts[trace].saturating_add(1);
        }
    }

    /// Spans that are finished: every sink took or refused them, or they were sampled out.
    pub fn finished(&self, trace: usize, sinks: u32) -> u8 {
        let done =
            |sink: u32| self.exported[sink as usize][trace] | self.refused[sink as usize][trace];
        let by_sinks = (0..sinks).fold(u8::MAX, |all, sink| all & done(sink));
        by_sinks | self.sampled_out[trace]
    }

    /// Feeds `hasher` with all of it.
    pub fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.accepted, self.accepted_single, self.accepted_early, self.decided).hash(hasher);
        (self.exported, self.refused, self.exported_twice, self.parts).hash(hasher);
        (self.sampled_out, self.verdicts, self.facts, self.trace_facts).hash(hasher);
        (self.unhealed, self.counters).hash(hasher);
    }
}
