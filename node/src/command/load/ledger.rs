//! What was acknowledged, what came out, and what follows from both.
//!
//! One [`Ledger`] belongs to a run; the sender tells it what was acknowledged, receivers what
//! arrived. It keeps a bit for each span, a few bytes for each trace, and no ids: memory is about
//! 1 byte a span with 8-span traces. The invariant: `missing` is the number of spans that are
//! acknowledged and have not arrived, at every moment.
//!
//! It judges only what it is told: it neither waits nor knows why something is missing.

use super::plan::{Plan, SpanNumber};

/// The most lost traces that a report names.
const EXAMPLES_MAX: usize = 5;

/// The state of a verification.
#[derive(Debug)]
pub(super) struct Ledger {
    plan: Plan,
    /// A bit for each request.
    acknowledged: Bits,
    /// A bit for each span.
    arrived: Bits,
    /// A bit for each trace that had a span arrive more than once.
    twice: Bits,
    /// A bit for each trace whose spans first arrived in more than one attempt.
    in_parts: Bits,
    /// For each trace the last attempt that brought a new span of it; 0 for none.
    last_attempt: Vec<u32>,
    attempt: u32,
    missing: u64,
    arrived_count: u64,
    twice_count: u64,
    foreign_count: u64,
    unreadable_count: u64,
}

/// The outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Findings {
    /// Distinct spans that arrived.
    pub(super) spans_arrived: u64,
    /// Spans that were acknowledged and did not arrive.
    pub(super) spans_lost: u64,
    /// The first traces with a lost span, as hex.
    pub(super) traces_lost: Vec<String>,
    /// Arrivals of spans that had arrived before.
    pub(super) spans_twice: u64,
    /// Traces with such spans.
    pub(super) traces_twice: u64,
    /// Traces whose spans first arrived in more than one attempt (request, or line of a file).
    pub(super) traces_in_parts: u64,
    /// Spans that arrived although their request was not acknowledged; this is allowed.
    pub(super) spans_unacknowledged_arrived: u64,
    /// Spans that this run did not send.
    pub(super) spans_foreign: u64,
    /// Requests or lines that could not be read.
    pub(super) attempts_unreadable: u64,
}

impl Ledger {
    /// An empty ledger for the spans of `plan`.
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            acknowledged: Bits::default(),
            arrived: Bits::default(),
            twice: Bits::default(),
            in_parts: Bits::default(),
            last_attempt: Vec::new(),
            attempt: 0,
            missing: 0,
            arrived_count: 0,
            twice_count: 0,
            foreign_count: 0,
            unreadable_count: 0,
        }
    }

    /// A target acknowledged a request, once.
    pub(super) fn on_acknowledged(&mut self, request: u64) {
        assert!(!self.acknowledged.set(request), "a request is acknowledged once");
        let waiting = self.plan.spans_of(request).map(|number| self.plan.position(number));
        self.missing += waiting.filter(|position| !self.arrived.get(*position)).count() as u64;
    }

    /// An attempt arrived, with these spans; `None` for one that this run did not send.
    pub(super) fn on_attempt(&mut self, spans: impl Iterator<Item = Option<SpanNumber>>) {
        self.attempt += 1;
        for span in spans {
            match span {
                Some(number) => self.on_span(number),
                None => self.foreign_count += 1,
            }
        }
    }

    /// Something arrived that cannot be read.
    pub(super) fn on_unreadable(&mut self) {
        self.unreadable_count += 1;
    }

    fn on_span(&mut self, number: SpanNumber) {
        if self.arrived.set(self.plan.position(number)) {
            self.twice_count += 1;
            self.twice.set(number.trace);
            return;
        }
        self.arrived_count += 1;
        self.missing -= u64::from(self.acknowledged.get(self.plan.request_of(number)));
        let trace = number.trace as usize;
        if self.last_attempt.len() <= trace {
            self.last_attempt.resize(trace + 1, 0);
        }
        let last = std::mem::replace(&mut self.last_attempt[trace], self.attempt);
        if last != 0 && last != self.attempt {
            self.in_parts.set(number.trace);
        }
    }

    /// Spans that are acknowledged and have not arrived.
    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// The outcome as of now; reads every span of the first `trace_count` traces once.
    pub(super) fn findings(&self, trace_count: u64) -> Findings {
        let mut findings = Findings {
            spans_arrived: self.arrived_count,
            spans_twice: self.twice_count,
            traces_twice: self.twice.count(),
            traces_in_parts: self.in_parts.count(),
            spans_foreign: self.foreign_count,
            attempts_unreadable: self.unreadable_count,
            ..Findings::default()
        };
        for trace in 0..trace_count {
            let lost_before = findings.spans_lost;
            for number in self.plan.spans_of_trace(trace) {
                let arrived = self.arrived.get(self.plan.position(number));
                let acknowledged = self.acknowledged.get(self.plan.request_of(number));
                findings.spans_lost += u64::from(acknowledged && !arrived);
                findings.spans_unacknowledged_arrived += u64::from(arrived && !acknowledged);
            }
            if findings.spans_lost > lost_before && findings.traces_lost.len() < EXAMPLES_MAX {
                findings.traces_lost.push(hex::encode(self.plan.trace_id(trace)));
            }
        }
        findings
    }
}

/// A growing set of small numbers.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Puts a number in; whether it was there before.
    fn set(&mut self, number: u64) -> bool {
        let word = (number / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        let before = self.0[word] & bit != 0;
        self.0[word] |= bit;
        before
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Shape;
    use super::*;

    const TRACES: u64 = 192;

    fn plan() -> Plan {
        Plan::new(Shape {
            seed: 1,
            spans_per_trace: 8,
            trace_count: Some(TRACES),
            target_count: 3,
            request_spans: 512,
        })
    }

    fn acknowledged() -> Ledger {
        let mut ledger = Ledger::new(plan());
        plan().schedule(0).for_each(|request| ledger.on_acknowledged(request));
        ledger
    }

    fn arrive(ledger: &mut Ledger, traces: impl Iterator<Item = u64>) {
        for trace in traces {
            ledger.on_attempt(plan().spans_of_trace(trace).map(Some));
        }
    }

    #[test]
    fn whole_traces_once_leave_nothing_to_find() {
        let mut ledger = acknowledged();
        assert_eq!(ledger.missing(), TRACES * 8);
        arrive(&mut ledger, 0..TRACES);
        assert_eq!(ledger.missing(), 0);
        let expected = Findings { spans_arrived: TRACES * 8, ..Findings::default() };
        assert_eq!(ledger.findings(TRACES), expected);
    }

    #[test]
    fn acknowledgement_after_arrival_is_not_missing() {
        let mut ledger = Ledger::new(plan());
        arrive(&mut ledger, 0..TRACES);
        plan().schedule(0).for_each(|request| ledger.on_acknowledged(request));
        assert_eq!((ledger.missing(), ledger.findings(TRACES).spans_lost), (0, 0));
    }

    #[test]
    fn missing_span_is_lost_and_its_trace_named() {
        let mut ledger = acknowledged();
        arrive(&mut ledger, (0..TRACES).filter(|trace| *trace != 5));
        ledger.on_attempt(plan().spans_of_trace(5).skip(1).map(Some));
        let findings = ledger.findings(TRACES);
        assert_eq!((ledger.missing(), findings.spans_lost), (1, 1));
        assert_eq!(findings.traces_lost, [hex::encode(plan().trace_id(5))]);
    }

    #[test]
    fn span_of_an_unacknowledged_request_may_be_missing_or_arrive() {
        let mut ledger = Ledger::new(plan());
        arrive(&mut ledger, 0..1);
        let findings = ledger.findings(TRACES);
        assert_eq!((findings.spans_lost, findings.spans_unacknowledged_arrived), (0, 8));
    }

    #[test]
    fn trace_exported_again_is_twice_and_not_in_parts() {
        let mut ledger = acknowledged();
        arrive(&mut ledger, (0..TRACES).chain([7]));
        let findings = ledger.findings(TRACES);
        assert_eq!((findings.spans_twice, findings.traces_twice), (8, 1));
        assert_eq!(findings.traces_in_parts, 0);
    }

    #[test]
    fn span_twice_in_one_attempt_is_twice() {
        let mut ledger = acknowledged();
        let span = Some(SpanNumber { trace: 3, span: 2 });
        ledger.on_attempt([span, span].into_iter());
        let findings = ledger.findings(TRACES);
        assert_eq!((findings.spans_twice, findings.traces_in_parts), (1, 0));
    }

    #[test]
    fn trace_in_two_attempts_is_in_parts_and_not_twice() {
        let mut ledger = acknowledged();
        ledger.on_attempt(plan().spans_of_trace(4).take(3).map(Some));
        ledger.on_attempt(plan().spans_of_trace(4).skip(3).map(Some));
        let findings = ledger.findings(TRACES);
        assert_eq!((findings.traces_in_parts, findings.spans_twice), (1, 0));
    }

    #[test]
    fn foreign_spans_are_counted_apart() {
        let mut ledger = acknowledged();
        ledger.on_attempt([None, None].into_iter());
        let findings = ledger.findings(TRACES);
        assert_eq!((findings.spans_foreign, findings.spans_arrived), (2, 0));
    }
}
