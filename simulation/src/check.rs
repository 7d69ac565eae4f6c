//! The model and its checks: whether what was seen in a simulation is what was promised.
//!
//! A check reads a [`History`] and nothing else. It shares no code with the node but placement (who
//! holds a slot is by definition what placement says) and the ids of spans, so it cannot repeat the
//! node's mistakes. What PROTOCOL's invariants except is a [`Licence`]: computed from the history,
//! counted, and bounded. Everything else is a [`Finding`] that makes a run red.
//!
//! The invariant: a verdict is a pure function of the history. It is bounded: of each kind of
//! finding [`FINDINGS_MAX`] are told, and the others counted.
//!
//! # What was seen to make each check fail
//!
//! A check that cannot fail is a defect. Each was made to fail by a history with one planted fault
//! (`check/tests`), named here:
//!
//! | invariant | planted fault |
//! |---|---|
//! | `no_acknowledged_span_lost` | an accepted span never comes out, though one holder lives |
//! | the same | the second holder ended when the first one's copy had been made again |
//! | the same | all holders left in order; one had a spool that it could read, or room for it |
//! | `exported_together` | a trace comes out in two attempts, though all was accepted before |
//! | `no_span_twice` | a second sink keeps the same spans, though the first acknowledged them |
//! | `decided_in_time` | a trace that comes out before it is due, or a second after it |
//! | `one_verdict_per_trace` | a late mark on the first export; none on a later one; sampling |
//! | `owner_exports` | an export by a node that is no owner in any view that it had |
//! | `incarnations_grow` | a life, or one that stood still, goes on as the one before |
//! | `views_converge` | a node that lacks another in its view; a change in a calm cluster |
//! | `memory_within_budget` | a peak of half as much again as the budget and its extra |
//! | `counters_add_up` | one more span counted as accepted, exported, or held than there was |
//! | `everything_ends` | spans held at the end; a request neither told nor given up |
//! | the same | a trace that is unplaced, or a node that has not settled, long after healing |
//! | `placement_minimal` | a table that moves slots between survivors |
//! | `goodput_floor` | two of a hundred spans given up in a cluster without a fault |
//! | `nothing_impossible` | a panic; a refusal for good; an invented span; a failed start |
//! | a licence used too often | more traces excused by one licence than its bound |
//!
//! And by faults in the code itself (`simulation/mutants`):
//!
//! | invariant | mutants |
//! |---|---|
//! | `no_acknowledged_span_lost` | `done_before_sink`, `no_copying_after_crash` |
//! | `no_acknowledged_span_lost` | `forgotten_before_answer`, `holders_without_incarnations` |
//! | `no_acknowledged_span_lost` | `spool_not_read` |
//! | `exported_together` | `root_delay_from_first_span` |
//! | `no_span_twice` | `repeat_not_recognised`, `decide_as_no_owner`, `no_done` |
//! | `no_span_twice` | `remembered_not_handed_over`, `settled_in_flight` |
//! | `decided_in_time` | `due_restarted_by_hand_over` |
//! | `decided_in_time` | `due_restarted`, `root_ignored`, `root_delay_from_first_span` |
//! | `one_verdict_per_trace` | `late_not_marked` |
//! | `owner_exports` | `decide_as_no_owner`, `slots_drawn_by_member_count` |
//! | `incarnations_grow` | `no_epoch_after_stand_still`, `generation_reused` |
//! | `views_converge` | `generation_reused` |
//! | `counters_add_up` | `counter_not_counted`, `unanswered_counts_as_done` |
//! | `counters_add_up` | `replica_not_awaited` |
//! | `everything_ends` | `no_asking` |
//! | `placement_minimal` | `slots_drawn_by_member_count`, `replica_is_next_in_view` |
//! | `placement_minimal`, zones | `zones_ignored` |
//!
//! # What these checks do not see
//!
//! Spans that are sampled out have no entry in a history yet, so that a trace has one verdict is
//! checked by late marks alone. Whether a batch was re-routed, and when everybody had settled
//! before the end, is inferred from the faults at work, not seen. Dead letters of what was never
//! decided about have no entry either, and count as lost. A loss is told apart from spans that are
//! held at the end by counts only, unless all holders are gone.

mod converge;
mod copies;
mod ending;
mod exports;
mod faults;
mod figures;
mod incarnations;
mod licence;
mod lives;
mod loss;
mod model;
mod placing;
mod sometimes;
mod story;
mod swarm;
mod timing;
mod views;

pub use ending::pending;
pub use licence::Licence;
pub use swarm::Swarm;

use crate::history::History;
use crate::plan::{Millis, NodeNumber};
use model::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Findings of one kind that are told with their story; the rest is counted.
pub const FINDINGS_MAX: usize = 20;

/// What must hold in every simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invariant {
    /// Each span of an accepted request comes out of a sink, or is a dead letter, or is held.
    NoAcknowledgedSpanLost,
    /// What was acknowledged before a trace was due comes out in one attempt.
    ExportedTogether,
    /// No sink keeps a span that a sink has acknowledged already.
    NoSpanTwice,
    /// A trace first reaches a sink when it is due, not before and not long after.
    DecidedInTime,
    /// What is late says so, and nothing else does; nothing is sampled out that is exported.
    OneVerdictPerTrace,
    /// Only who believes to be the owner exports.
    OwnerExports,
    /// Who begins again, or stood still and can know it, is a new incarnation.
    IncarnationsGrow,
    /// Soon after healing everybody has the same view, of those that live.
    ViewsConverge,
    /// No node allocates much more than its budget.
    MemoryWithinBudget,
    /// What nodes count is what clients were told and what sinks got.
    CountersAddUp,
    /// After healing nothing is held or unplaced, all have settled, and no client waits.
    EverythingEnds,
    /// A change of one member moves one copy of a slot's traces, and no slot in vain; copies are in
    /// two zones where there are two.
    PlacementMinimal,
    /// Without overload at least 99 % of the spans are acknowledged.
    GoodputFloor,
    /// No panic, no refusal of a good request, no span from nowhere, no failed start.
    NothingImpossible,
}

impl Invariant {
    /// Every invariant.
    pub const ALL: [Self; 14] = [
        Self::NoAcknowledgedSpanLost,
        Self::ExportedTogether,
        Self::NoSpanTwice,
        Self::DecidedInTime,
        Self::OneVerdictPerTrace,
        Self::OwnerExports,
        Self::IncarnationsGrow,
        Self::ViewsConverge,
        Self::MemoryWithinBudget,
        Self::CountersAddUp,
        Self::EverythingEnds,
        Self::PlacementMinimal,
        Self::GoodputFloor,
        Self::NothingImpossible,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAcknowledgedSpanLost => "no_acknowledged_span_lost",
            Self::ExportedTogether => "exported_together",
            Self::NoSpanTwice => "no_span_twice",
            Self::DecidedInTime => "decided_in_time",
            Self::OneVerdictPerTrace => "one_verdict_per_trace",
            Self::OwnerExports => "owner_exports",
            Self::IncarnationsGrow => "incarnations_grow",
            Self::ViewsConverge => "views_converge",
            Self::MemoryWithinBudget => "memory_within_budget",
            Self::CountersAddUp => "counters_add_up",
            Self::EverythingEnds => "everything_ends",
            Self::PlacementMinimal => "placement_minimal",
            Self::GoodputFloor => "goodput_floor",
            Self::NothingImpossible => "nothing_impossible",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An invariant did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub invariant: Invariant,
    /// When.
    pub at: Millis,
    /// The number of the trace, if it is about one.
    pub trace: Option<u32>,
    /// The nodes that it is about.
    pub nodes: Vec<NodeNumber>,
    /// What is wrong, in a sentence.
    pub text: String,
    /// Who held it, when each died, which view each node had.
    pub story: Vec<String>,
}

/// What was found in one history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Of which simulation.
    pub seed: u64,
    /// What did not hold: the first [`FINDINGS_MAX`] of each kind.
    pub findings: Vec<Finding>,
    /// How often each invariant did not hold.
    pub violated: BTreeMap<Invariant, u64>,
    /// Traces that each licence excused.
    pub licensed: BTreeMap<Licence, u64>,
    /// The first trace that each excused, and what went wrong around it.
    pub first_uses: BTreeMap<Licence, Vec<String>>,
    /// Paths of recovery that were taken, by name, and how often.
    pub sometimes: BTreeMap<String, u64>,
    /// Spans in numbers.
    pub totals: Totals,
}

/// Distinct spans, and traces, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Spans that clients had.
    pub offered: u64,
    /// Of these, in an accepted request.
    pub acknowledged: u64,
    /// Spans that a sink has.
    pub exported: u64,
    /// Acknowledged, in no sink, but in a dead letter.
    pub refused: u64,
    /// Acknowledged, but neither exported nor refused nor held at the end.
    pub lost: u64,
    /// Acknowledged and perhaps still held at the end.
    pub held: u64,
    /// Kept by a sink more than once.
    pub twice: u64,
    /// Traces.
    pub traces: u64,
    /// Of these, exported in more than one part though all was there.
    pub in_parts: u64,
}

impl Verdict {
    /// Whether everything held, but for what was licensed.
    pub fn is_green(&self) -> bool {
        self.violated.is_empty()
    }

    fn add(&mut self, finding: Finding) {
        let count = self.violated.entry(finding.invariant).or_default();
        *count += 1;
        if *count <= FINDINGS_MAX as u64 {
            self.findings.push(finding);
        }
    }

    /// Whether another finding of this kind would be told, so that its story is worth writing.
    fn tells(&self, invariant: Invariant) -> bool {
        let count = self.violated.get(&invariant);
        count.is_none_or(|count| *count < FINDINGS_MAX as u64)
    }

    fn license(&mut self, model: &Model<'_>, licence: Licence, trace: u32, at: Millis) {
        *self.licensed.entry(licence).or_default() += 1;
        self.first_uses.entry(licence).or_insert_with(|| story::of_use(model, trace, at));
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", clock(self.at), self.invariant, self.text)?;
        self.story.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    let model = Model::new(history);
    let mut verdict = Verdict { seed: history.plan.seed, ..Default::default() };
    loss::check(&model, &mut verdict);
    exports::check(&model, &mut verdict);
    timing::check(&model, &mut verdict);
    licence::check(&model, &mut verdict);
    incarnations::check(&model, &mut verdict);
    converge::check(&model, &mut verdict);
    ending::check(&model, &mut verdict);
    placing::check(&model, &mut verdict);
    figures::check(&model, &mut verdict);
    verdict.sometimes = sometimes::count(&model);
    verdict
}

/// A moment in seconds.
fn clock(at: Millis) -> String {
    format!("{}.{:03} s", at.0 / 1000, at.0 % 1000)
}

#[cfg(test)]
mod tests;
