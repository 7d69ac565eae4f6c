//! One export attempt of one trace, over all its tries (PROTOCOL.md, D2 and D3).
//!
//! The spans of an attempt never change; which sinks still owe an acknowledgement does. An attempt
//! that is not in flight and owes nothing is over. Tries are spaced by a backoff that doubles and
//! is spread by the trace id, so that traces which failed together do not come back together.

use super::Effect;
use crate::sink::{Attempt, Outcome, Withdrawn};
use crate::spans::TraceId;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// The first wait before an attempt is made again.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest: a sink that is back is found within it.
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// From so many tries on, the backoff is the same.
const TRIES_TOLD: u32 = 5;

/// Some of the configured sinks, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SinkSet(u64);

impl SinkSet {
    /// So many sinks may be configured.
    pub const SINKS_MAX: u32 = u64::BITS;

    /// The first `count` sinks, at most [`Self::SINKS_MAX`].
    pub fn first(count: u32) -> Self {
        Self(u64::MAX.checked_shr(u64::BITS - count.min(Self::SINKS_MAX)).unwrap_or(0))
    }

    /// The sinks' numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..Self::SINKS_MAX).filter(move |sink| self.0 >> sink & 1 == 1)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn is_one(self) -> bool {
        self.0.is_power_of_two()
    }

    fn remove(&mut self, sink: u32) {
        self.0 &= !1_u64.checked_shl(sink).unwrap_or(0);
    }
}

/// What a sink said to a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has the spans.
    Acknowledged,
    /// It will never take them; they are in its dead-letter file.
    Refused,
    /// It did not take them now.
    Again {
        /// What it asked to wait.
        after: Option<Duration>,
    },
    /// Nothing is known: it may have them.
    Unanswered,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Acknowledged => Self::Acknowledged,
            Outcome::Refused => Self::Refused,
            Outcome::Again { after } => Self::Again { after },
            Outcome::Unanswered => Self::Unanswered,
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Result {
    /// At least one sink has the spans, and every other one has or refused them.
    Exported,
    /// Every sink refused them for good.
    Refused,
    /// They were never decided about, and are in the dead-letter file.
    Poison,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Destination {
    Sinks,
    /// And why.
    DeadLetters(&'static str),
}

/// An attempt between its first try and its end.
#[derive(Clone, Debug)]
pub(crate) struct Trying {
    pub(crate) attempt: Arc<Attempt>,
    /// Tells the answers to this try from those to earlier ones.
    pub(crate) number: u32,
    /// Some span of the trace was done when the attempt began.
    pub(crate) late: bool,
    /// Tells the sinks to which it is in flight.
    withdrawn: Withdrawn,
    destination: Destination,
    /// One sink alone is asked.
    one_sink: bool,
    owed: SinkSet,
    flying: SinkSet,
    acknowledged: bool,
    tries: u32,
    after: Duration,
}

impl Trying {
    pub(crate) fn export(attempt: Arc<Attempt>, sinks: SinkSet, late: bool) -> Self {
        Self::new(attempt, Destination::Sinks, sinks, late)
    }

    pub(crate) fn dead_letter(attempt: Arc<Attempt>, why: &'static str) -> Self {
        Self::new(attempt, Destination::DeadLetters(why), SinkSet::first(1), false)
    }

    fn new(attempt: Arc<Attempt>, destination: Destination, sinks: SinkSet, late: bool) -> Self {
        Self {
            attempt,
            number: 0,
            late,
            withdrawn: Withdrawn::default(),
            destination,
            one_sink: sinks.is_one(),
            owed: sinks,
            flying: sinks,
            acknowledged: false,
            tries: 0,
            after: Duration::ZERO,
        }
    }

    pub(crate) fn effect(&self) -> Effect {
        let (attempt, number) = (Arc::clone(&self.attempt), self.number);
        match self.destination {
            Destination::Sinks => {
                let withdrawn = self.withdrawn.clone();
                Effect::Export { attempt, number, sinks: self.flying, withdrawn }
            }
            Destination::DeadLetters(why) => Effect::DeadLetter { attempt, number, why },
        }
    }

    pub(crate) fn on_answer(&mut self, sink: u32, answer: Answer) {
        self.flying.remove(sink);
        match answer {
            Answer::Acknowledged => {
                self.acknowledged = true;
                self.owed.remove(sink);
            }
            Answer::Refused => self.owed.remove(sink),
            Answer::Again { after } => self.after = self.after.max(after.unwrap_or_default()),
            Answer::Unanswered => {}
        }
    }

    /// Sinks that have not begun the try should not begin it: all of it is done. That ends it as if
    /// they had put it off.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.set(true);
    }

    /// The same, or the contrary, because another node is owner now, or this one again. Where
    /// several sinks are asked, one may have begun: better that the others go on than that the new
    /// owner asks all of them again.
    pub(crate) fn leave_to(&self, other: bool) {
        self.withdrawn.set(other && self.one_sink);
    }

    pub(crate) fn in_flight(&self) -> bool {
        !self.flying.is_empty()
    }

    pub(crate) fn owed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// All that the future depends on besides the number and the spans, for
    /// [`Shard::fingerprint`](super::Shard::fingerprint).
    pub(super) fn hash(&self, hasher: &mut impl Hasher) {
        let tries = self.tries.min(TRIES_TOLD);
        (self.late, &self.destination, self.owed, self.flying).hash(hasher);
        (self.acknowledged, tries, self.after).hash(hasher);
    }

    /// Begins the next try, with the sinks that still owe.
    pub(crate) fn again(&mut self, number: u32) {
        self.number = number;
        self.withdrawn.set(false);
        self.flying = self.owed;
        self.tries += 1;
        self.after = Duration::ZERO;
    }

    /// Until the next try: half of the doubling backoff, the other half spread by the trace id.
    pub(crate) fn backoff_ms(&self, trace_id: TraceId) -> u64 {
        let full = BACKOFF_MIN.saturating_mul(1 << self.tries.min(16)).min(BACKOFF_MAX);
        let full = super::to_ms(full);
        let spread = u64::from(trace_id.0[7]) + u64::from(trace_id.0[15]) * 256;
        let backoff = full / 2 + full / 2 * spread / (1 << 16);
        backoff.max(super::to_ms(self.after))
    }

    pub(crate) fn result(&self) -> Result {
        match (&self.destination, self.acknowledged) {
            (Destination::DeadLetters(_), _) => Result::Poison,
            (Destination::Sinks, true) => Result::Exported,
            (Destination::Sinks, false) => Result::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trying(sinks: u32) -> Trying {
        let trace_id = TraceId([9; 16]);
        let attempt = Attempt { trace_id, chunks: Vec::new(), span_count: 1, bytes: 1, due: None };
        Trying::export(Arc::new(attempt), SinkSet::first(sinks), false)
    }

    #[test]
    fn set_of_the_first_sinks_has_them() {
        assert!(SinkSet::first(0).is_empty());
        assert_eq!(SinkSet::first(3).iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(SinkSet::first(64).iter().count(), 64);
    }

    #[test]
    fn retry_goes_only_to_the_sinks_that_owe() {
        let mut trying = trying(3);
        trying.on_answer(0, Answer::Acknowledged);
        trying.on_answer(1, Answer::Refused);
        assert!(trying.in_flight());
        trying.on_answer(2, Answer::Again { after: None });
        assert!(!trying.in_flight() && trying.owed());
        trying.again(2);
        assert_eq!(trying.flying.iter().collect::<Vec<_>>(), [2]);
        trying.on_answer(2, Answer::Acknowledged);
        assert!(!trying.owed());
        assert_eq!(trying.result(), Result::Exported);
    }

    #[test]
    fn only_what_one_sink_has_is_left_to_a_new_owner() {
        for (sinks, is_left) in [(1, true), (2, false)] {
            let trying = trying(sinks);
            trying.leave_to(true);
            assert_eq!(trying.withdrawn.is_set(), is_left, "{sinks} sinks");
            trying.leave_to(false);
            assert!(!trying.withdrawn.is_set());
            trying.withdraw();
            assert!(trying.withdrawn.is_set());
        }
    }

    #[test]
    fn wait_that_a_sink_asked_for_is_kept() {
        let mut trying = trying(1);
        let after = Some(Duration::from_secs(30));
        trying.on_answer(0, Answer::Again { after });
        assert_eq!(trying.backoff_ms(TraceId([0; 16])), 30_000);
        trying.again(2);
        assert!(trying.backoff_ms(TraceId([0; 16])) < 1000);
    }
}
