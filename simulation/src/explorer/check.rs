//! The promises of PROTOCOL.md, and what excuses what.
//!
//! [`LICENCES`] is the one list of excuses, and all are the protocol's own; an excuse that is
//! withheld shows the first walk that needs it. What holds without any excuse (E4, D1, H3, the
//! giving up of copies) is checked where it happens, in `requests` and `holding`.

use super::witness::{Facts, Invariant, Violation};
use super::world::World;

/// All of `facts` together excuse a breach of `invariant`.
#[derive(Clone, Copy, Debug)]
pub struct Licence {
    /// What may be broken.
    pub invariant: Invariant,
    /// When.
    pub facts: Facts,
    /// Why.
    pub reason: &'static str,
}

const fn licence(invariant: Invariant, facts: u32, reason: &'static str) -> Licence {
    Licence { invariant, facts: Facts(facts), reason }
}

use Invariant::{Counters, ExportedOnce, NothingLost, OneVerdict, Together};

/// All excuses.
pub const LICENCES: &[Licence] = &[
    licence(
        NothingLost,
        Facts::CRASHED_UNHEALED.0,
        "a second crash before what the first one cost was placed again",
    ),
    licence(ExportedOnce, Facts::UNANSWERED.0, "(a) an attempt got no answer"),
    licence(ExportedOnce, Facts::CRASHED_UNTOLD.0, "(b) crash before a Done, (c) unsettled"),
    licence(
        ExportedOnce,
        Facts::DONE_LOST.0 | Facts::CRASHED.0,
        "(b) crash after a Done that did not arrive",
    ),
    licence(
        ExportedOnce,
        Facts::DONE_UNLIKE.0 | Facts::CRASHED.0,
        "(b) crash after a Done that did not cover the replica's spans",
    ),
    licence(
        ExportedOnce,
        Facts::DONE_LOST.0 | Facts::STOOD_STILL.0,
        "(b) stand-still after a Done that did not arrive",
    ),
    licence(
        ExportedOnce,
        Facts::DONE_UNLIKE.0 | Facts::STOOD_STILL.0,
        "(b) stand-still after a Done that did not cover the replica's spans",
    ),
    licence(ExportedOnce, Facts::SUSPECTED.0, "(d) a live node was dropped from a view"),
    licence(ExportedOnce, Facts::UNCALM.0, "(e) SETTLE_MAX ran out"),
    licence(ExportedOnce, Facts::LAST_LEFT.0, "(f) the last active node left"),
    licence(Together, Facts::UNANSWERED.0, "as for exported once"),
    licence(Together, Facts::CRASHED_UNTOLD.0, "as for exported once"),
    licence(Together, Facts::SUSPECTED.0, "as for exported once"),
    licence(Together, Facts::UNCALM.0, "as for exported once"),
    licence(Together, Facts::LAST_LEFT.0, "as for exported once"),
    licence(Together, Facts::REROUTED.0, "a batch was routed around a holder"),
    licence(Together, Facts::LOSSY.0, "frames were lost or came twice"),
    licence(OneVerdict, Facts::SUSPECTED.0, "I2 (d)"),
    licence(OneVerdict, Facts::UNCALM.0, "I2 (e)"),
    licence(OneVerdict, Facts::LAST_LEFT.0, "I2 (f)"),
    licence(OneVerdict, Facts::CRASHED_UNTOLD.0, "a node died with an untold verdict"),
    licence(
        OneVerdict,
        Facts::DONE_LOST.0 | Facts::CRASHED.0,
        "a node died with a verdict of which the news was lost",
    ),
    licence(
        OneVerdict,
        Facts::DONE_UNLIKE.0 | Facts::CRASHED.0,
        "a node died with a verdict that came before the spans",
    ),
    licence(
        OneVerdict,
        Facts::DONE_LOST.0 | Facts::STOOD_STILL.0,
        "a node stood still with a verdict of which the news was lost",
    ),
    licence(
        OneVerdict,
        Facts::DONE_UNLIKE.0 | Facts::STOOD_STILL.0,
        "a node stood still with a verdict that came before the spans",
    ),
    licence(Counters, Facts::REROUTED.0, "counted as rerouted or unacknowledged"),
    licence(Counters, Facts::LOSSY.0, "what comes twice is counted as redelivered"),
    licence(Counters, Facts::SUSPECTED.0, "views were not stable"),
    licence(Counters, Facts::CRASHED.0, "views were not stable"),
    licence(Counters, Facts::LEFT.0, "views were not stable"),
    licence(Counters, Facts::JOINED.0, "views were not stable"),
    licence(Counters, Facts::STOOD_STILL.0, "views were not stable"),
];

/// Whether these facts excuse a breach, when one of the excuses is withheld.
pub fn is_licensed(invariant: Invariant, facts: Facts, withheld: Option<usize>) -> bool {
    let licences = LICENCES.iter().enumerate().filter(|(at, _)| Some(*at) != withheld);
    let mut licences = licences.map(|(_, licence)| licence);
    licences.any(|licence| licence.invariant == invariant && facts.have(licence.facts))
}

impl World {
    fn is_excused(&self, invariant: Invariant, facts: Facts) -> bool {
        is_licensed(invariant, facts, self.plan.setting.withheld)
    }

    /// What must hold after every step.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&mut self) -> Result<(), Violation> {
        if let Some(violation) = self.witness.violation.take() {
            return Err(violation);
        }
        for trace in 0..self.plan.traces.len() {
            self.check_nothing_lost(trace)?;
            let two = self.witness.verdicts[trace].count_ones() > 1;
            if two && !self.is_excused(Invariant::OneVerdict, self.witness.facts(trace)) {
                let what = format!("trace {trace} was decided twice, differently");
                return Err(Violation { invariant: Invariant::OneVerdict, what });
            }
        }
        Ok(())
    }

    fn check_nothing_lost(&self, trace: usize) -> Result<(), Violation> {
        let witness = &self.witness;
        let promised = witness.accepted[trace] & !witness.accepted_single[trace];
        let held = self.nodes.iter().fold(0, |held, node| held | node.known[trace].held);
        let lost = promised & !held & !witness.finished(trace, self.plan.setting.sinks);
        if lost != 0 && !self.is_excused(Invariant::NothingLost, witness.facts(trace)) {
            let what = format!("trace {trace} spans {lost:b} were acknowledged and are nowhere");
            return Err(Violation { invariant: Invariant::NothingLost, what });
        }
        Ok(())
    }

    /// What must hold when a sink took an attempt.
    pub(super) fn check_export(&mut self, trace: usize) {
        let twice = self.witness.exported_twice[trace];
        let facts = self.witness.facts(trace);
        if twice != 0 && !self.is_excused(Invariant::ExportedOnce, facts) {
            let what = format!("trace {trace} spans {twice:b} were exported twice");
            self.violate(Invariant::ExportedOnce, what);
        }
    }

    /// What must hold when only faults could happen.
    ///
    /// # Errors
    /// It does not.
    pub fn check_at_rest(&self) -> Result<(), Violation> {
        for trace in 0..self.plan.traces.len() {
            let holds = |node: &super::node::Node| node.known[trace].held != 0;
            if let Some(node) = self.nodes.iter().position(holds) {
                let what = format!("node {node} holds trace {trace} for ever");
                return Err(Violation { invariant: Invariant::Rest, what });
            }
            self.check_nothing_lost(trace)?;
            let witness = &self.witness;
            let work = self.plan.setting.work.iter().flatten();
            let all = work.filter(|work| work.0 == trace).fold(0, |all, work| all | work.1);
            let (early, parts) = (witness.accepted_early[trace] == all, witness.parts[trace]);
            let facts = witness.facts(trace);
            if early && parts > 1 && !self.is_excused(Invariant::Together, facts) {
                let what = format!("trace {trace} was exported in {parts} parts");
                return Err(Violation { invariant: Invariant::Together, what });
            }
        }
        if self.requests.iter().any(Option::is_some) {
            let what = "a request is never answered".to_owned();
            return Err(Violation { invariant: Invariant::Rest, what });
        }
        self.check_counters()
    }

    fn check_counters(&self) -> Result<(), Violation> {
        let traces = 0..self.plan.traces.len();
        let facts = traces.fold(Facts::default(), |all, trace| all | self.witness.facts(trace));
        let counters = self.witness.counters;
        let right = counters.finished + counters.redelivered;
        let adds_up = right >= counters.accepted && right <= counters.accepted + counters.repaired;
        if !adds_up && !self.is_excused(Invariant::Counters, facts) {
            let what = format!("{counters:?} do not add up");
            return Err(Violation { invariant: Invariant::Counters, what });
        }
        Ok(())
    }
}
