//! What cannot hold yet, in one place, and the judgement over a swarm.
//!
//! Placing (PROTOCOL.md, P1 to P5), settled views, hand-over and the spool are not built. Until
//! they are, each failure that only they can prevent stands here with its reason. The invariant:
//! the list cannot rot. A swarm is red when something fails that is not listed, and as well when
//! something that is listed could have failed often enough ([`OCCASIONS_MIN`]) and never did: then
//! it holds, and has to be taken off the list.

use super::{Invariant, Licence, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Simulations that had an occasion for an expected failure after which its absence means
/// something.
pub const OCCASIONS_MIN: u64 = 30;

/// A failure that is expected until something is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectedFailure {
    /// Owner and replica of an acknowledged span are gone, one long after the other.
    LostAfterSecondFailure,
    /// A holder left in an orderly way, and later another was gone.
    LostAfterLeaveAndCrash,
    /// A holder that left ran into its drain limit.
    LostAtDrainLimit,
    /// Who stood in for a holder is gone, and long after or before it another holder.
    LostWithStandIn,
    /// A stand-in still holds what all sinks have, long after everything was healed.
    HeldByStandIn,
    /// A trace came out in parts, because its slot moved meanwhile.
    SplitAroundViewChange,
    /// A span came out twice, because its slot moved meanwhile.
    TwiceAroundViewChange,
}

/// Why a failure is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// What does not hold.
    pub invariant: Invariant,
    /// Why it cannot hold yet.
    pub reason: &'static str,
    /// What has to be built so that it does.
    pub until: &'static str,
}

impl ExpectedFailure {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::HeldByStandIn,
        Self::LostAfterSecondFailure,
        Self::LostAfterLeaveAndCrash,
        Self::LostAtDrainLimit,
        Self::LostWithStandIn,
        Self::SplitAroundViewChange,
        Self::TwiceAroundViewChange,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostAfterSecondFailure => "lost_after_second_failure",
            Self::LostAfterLeaveAndCrash => "lost_after_leave_and_crash",
            Self::LostAtDrainLimit => "lost_at_drain_limit",
            Self::LostWithStandIn => "lost_with_stand_in",
            Self::HeldByStandIn => "held_by_stand_in",
            Self::SplitAroundViewChange => "split_around_view_change",
            Self::TwiceAroundViewChange => "twice_around_view_change",
        }
    }

    /// Why it is expected.
    pub const fn expectation(self) -> Expectation {
        let (invariant, reason, until) = match self {
            Self::LostAfterSecondFailure => (
                Invariant::NoAcknowledgedSpanLost,
                "after a crash or a quick restart nobody copies what the other holder has",
                "copying to new holders (P1, P2)",
            ),
            Self::LostAfterLeaveAndCrash => (
                Invariant::NoAcknowledgedSpanLost,
                "a leaving node hands over to the owner alone, so one copy is left",
                "confirmation by all other holders (P3, P4)",
            ),
            Self::LostAtDrainLimit => (
                Invariant::NoAcknowledgedSpanLost,
                "what is left at the drain limit is not written down",
                "the spool (M4)",
            ),
            Self::LostWithStandIn => (
                Invariant::NoAcknowledgedSpanLost,
                "a stand-in brings spans home only some seconds after they are due",
                "offering what is unplaced (P2)",
            ),
            Self::HeldByStandIn => (
                Invariant::EverythingEnds,
                "a stand-in asks about spans at waits that double to a minute, and a holder that \
                 forgot early what was done wants them again",
                "offering what is unplaced (P2), and hand-over of what is remembered",
            ),
            Self::SplitAroundViewChange => (
                Invariant::ExportedTogether,
                "a new owner decides what it was given since, and asks nobody for the rest",
                "hand-over (P1, P2) and settled views (P5, D1)",
            ),
            Self::TwiceAroundViewChange => (
                Invariant::NoSpanTwice,
                "what is done is not handed over, and two nodes may both believe to be owner",
                "hand-over of remembered traces (P1, P2) and settled views (P5, D1)",
            ),
        };
        Expectation { invariant, reason, until }
    }
}

impl fmt::Display for ExpectedFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The verdicts of many simulations together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swarm {
    /// Simulations.
    pub runs: u64,
    /// Seeds in which something failed that was not expected, with what.
    pub red: BTreeMap<u64, Vec<Invariant>>,
    /// Simulations in which each expected failure was seen.
    pub seen: BTreeMap<ExpectedFailure, u64>,
    /// Simulations in which it could have been.
    pub could: BTreeMap<ExpectedFailure, u64>,
    /// Traces that each licence excused.
    pub licensed: BTreeMap<Licence, u64>,
    /// Simulations in which each path of recovery was taken.
    pub sometimes: BTreeMap<String, u64>,
}

impl Swarm {
    /// Adds a verdict.
    pub fn add(&mut self, verdict: &Verdict) {
        self.runs += 1;
        if !verdict.is_green() {
            self.red.insert(verdict.seed, verdict.unexpected.keys().copied().collect());
        }
        for (expected, count) in &verdict.expected {
            *self.seen.entry(*expected).or_default() += u64::from(*count > 0);
        }
        for (expected, count) in &verdict.occasions {
            *self.could.entry(*expected).or_default() += u64::from(*count > 0);
        }
        for (licence, count) in &verdict.licensed {
            *self.licensed.entry(*licence).or_default() += count;
        }
        for (path, count) in &verdict.sometimes {
            *self.sometimes.entry(path.clone()).or_default() += u64::from(*count > 0);
        }
    }

    /// Why the swarm is red, a sentence each; nothing when it is green.
    pub fn complaints(&self) -> Vec<String> {
        let failed = self.red.iter().map(|(seed, invariants)| {
            let names: Vec<_> = invariants.iter().map(|invariant| invariant.name()).collect();
            format!("seed {seed}: {}", names.join(", "))
        });
        let of = |counts: &BTreeMap<_, u64>, one| counts.get(one).copied().unwrap_or(0);
        let holds = ExpectedFailure::ALL.iter().filter_map(|expected| {
            let could = of(&self.could, expected);
            let is_absent = of(&self.seen, expected) == 0 && could >= OCCASIONS_MIN;
            is_absent.then(|| {
                format!(
                    "{expected} could have been seen in {could} simulations and never was: it \
                     holds now, take it off the list of expected failures"
                )
            })
        });
        failed.chain(holds).collect()
    }

    /// Paths of recovery that no simulation took.
    pub fn never(&self) -> Vec<&'static str> {
        let paths = super::sometimes::PATHS.iter().copied();
        paths.filter(|path| self.sometimes.get(*path).is_none_or(|count| *count == 0)).collect()
    }
}
