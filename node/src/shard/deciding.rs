//! What an owner does when a trace is due: decide, export, try again, tell (rules D of
//! PROTOCOL.md).
//!
//! The invariant: a span becomes done only when every sink has it or refused it for good, or its
//! trace is sampled out; and whoever finished an attempt tells the other holders, even when it is
//! no owner any more. At most one attempt of a trace at a time.

use super::attempt::{Answer, Result, Trying};
use super::placing::spans_of;
use super::trace::{SpanState, Trace};
use super::{CALM_AGAIN, Cause, Effect, Limits, Role, SETTLE_MAX, Shard, to_ms};
use crate::frame::{DoneTrace, Verdict, trace_id_bytes};
use crate::process;
use crate::sink::Attempt;
use crate::spans::{Chunk, TraceId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Whether an owner was calm when it decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calm {
    /// It was.
    Yes,
    /// It was not, and had waited for as long as it may.
    RanOut,
}

/// A trace that was due in so many crashes is not opened any more.
const CRASHES_MAX: usize = 3;
/// But only so long after the last of them: a node that was only out of reach is mostly back by
/// then.
const DOUBT: Duration = Duration::from_secs(30);

impl Shard {
    /// What one sink, or the dead-letter file, said to an attempt.
    pub fn on_answer(
        &mut self,
        now: Instant,
        trace_id: TraceId,
        number: u32,
        sink: u32,
        answer: Answer,
    ) {
        let now_ms = self.ms(now);
        let Some(index) = self.find(trace_id, now_ms) else { return };
        let Some(trace) = self.table.get_mut(index) else { return };
        let Some(trying) = trace.trying.as_mut().filter(|trying| trying.number == number) else {
            return;
        };
        if answer == Answer::Unanswered {
            self.tally.unanswered += u64::from(trying.attempt.span_count);
        }
        trying.on_answer(sink, answer);
        if trying.in_flight() {
            return;
        }
        let again = trying.owed().then(|| trying.backoff_ms(trace_id));
        if self.drop_attempt_done_elsewhere(index) {
            self.after_change(index, now_ms);
        } else if let Some(backoff_ms) = again {
            self.wake_at(index, now_ms + backoff_ms);
            self.place(index, now_ms);
        } else {
            self.finish_attempt(index, now_ms);
        }
    }

    pub(super) fn decide(&mut self, index: u32, now_ms: u64, calm: Calm) {
        let Limits { spans_max, bytes_max, .. } = self.limits;
        let Some(trace) = self.table.get(index) else { return };
        let (cause, crashes) = (self.cause(trace), self.crashes(trace));
        let Some(trace) = self.table.get_mut(index) else { return };
        let late = trace.has_done();
        // A trace that came when no sink answered may have grown beyond what one attempt can bear.
        let (chunks, span_count) = trace.begin_sending(spans_max, bytes_max);
        let due = self.started + Duration::from_millis(trace.due_ms);
        let attempt = attempt_of(trace.id, chunks, span_count, due);
        let taken_over = std::mem::take(&mut trace.taken_over);
        let known = trace.verdict;
        let delay = Duration::from_millis(now_ms.saturating_sub(trace.due_ms));
        if taken_over {
            self.tally.taken_over += u64::from(span_count);
        }
        if calm == Calm::RanOut {
            self.tally.uncalm += u64::from(span_count);
        }
        let trace_id = attempt.trace_id;
        if crashes >= CRASHES_MAX && known == Verdict::None {
            tracing::error!(%trace_id, crashes, "trace was due in every one of these crashes");
            self.bury(index, "its owners crashed");
            return;
        }
        let decider = &mut self.decide;
        let decided = catch_unwind(AssertUnwindSafe(|| {
            let verdict = if known == Verdict::None { decider.decide(&attempt) } else { known };
            (verdict, process::process(attempt, late))
        }));
        let Ok((verdict, processed)) = decided else {
            tracing::error!(%trace_id, "trace makes deciding panic");
            self.bury(index, "deciding panicked");
            return;
        };
        if known == Verdict::None {
            self.tally.decided.push((cause, verdict, delay));
        }
        self.change(index, now_ms, |trace| trace.verdict = verdict);
        if verdict == Verdict::SampledOut {
            let count = self.change(index, now_ms, |trace| {
                let count = trace.turn(SpanState::Held, SpanState::Done)
                    + trace.turn(SpanState::Sending, SpanState::Done);
                trace.free_done();
                count
            });
            self.tally.sampled_out += u64::from(count.unwrap_or(0));
            self.tell_done(index);
            self.after_change(index, now_ms);
            return;
        }
        self.begin(index, Trying::export(Arc::new(processed), self.sinks, late));
    }

    /// Whether a trace seems to have been due in so many crashes, and its owners may only have been
    /// out of reach: it waits, unless nobody is left to wait for.
    pub(super) fn is_in_doubt(&self, trace: &Trace, now_ms: u64) -> bool {
        now_ms < doubt_ends(trace)
            && trace.verdict == Verdict::None
            && self.crashes(trace) >= CRASHES_MAX
            && !self.outlook.is_last_to_leave()
    }

    /// How many owners crashed while it was due, as far as one knows.
    fn crashes(&self, trace: &Trace) -> usize {
        trace.vanished.count(|life| self.outlook.has_life(&self.hash_key, life))
    }

    /// Sends a trace to the dead letters as it is held.
    fn bury(&mut self, index: u32, why: &'static str) {
        let Some(trace) = self.table.get(index) else { return };
        let Some(raw) = spans_of(trace, |_, state| state == SpanState::Sending) else { return };
        self.begin(index, Trying::dead_letter(Arc::new(raw), why));
    }

    fn cause(&self, trace: &Trace) -> Cause {
        if self.outlook.is_last_to_leave() {
            Cause::Drain
        } else if trace.taken_over {
            Cause::Takeover
        } else if trace.held_count >= self.limits.spans_max {
            Cause::Spans
        } else if trace.span_bytes() >= self.limits.bytes_max {
            Cause::Bytes
        } else if trace.rooted {
            Cause::Root
        } else {
            Cause::Age
        }
    }

    fn begin(&mut self, index: u32, mut trying: Trying) {
        self.attempt_number = self.attempt_number.wrapping_add(1);
        trying.number = self.attempt_number;
        let Some(trace) = self.table.get_mut(index) else { return };
        self.effects.push(trying.effect());
        trace.trying = Some(Box::new(trying));
    }

    /// Gives up an attempt that owes something still, but of which every span was said to be done
    /// by somebody else; without this, spans that come later would wait for its end for ever. One
    /// that is in flight is withdrawn, and given up when that is answered.
    pub(super) fn drop_attempt_done_elsewhere(&mut self, index: u32) -> bool {
        let Some(trace) = self.table.get_mut(index) else { return false };
        let Some(trying) = trace.trying.as_deref().filter(|trying| trying.owed()) else {
            return false;
        };
        if trace.keys_in(SpanState::Sending).next().is_some() {
            return false;
        }
        if trying.in_flight() {
            trying.withdraw();
            return false;
        }
        trace.trying = None;
        true
    }

    /// The backoff of an attempt is over: the owner makes it again when it is calm, whoever is none
    /// any more gives it up and asks.
    pub(super) fn try_again(&mut self, index: u32, role: Role, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        let is_calm = self.outlook.is_calm(trace.slot) || now_ms >= calm_by(trace);
        let Some(trying) = trace.trying.as_mut() else { return };
        if trying.in_flight() {
            return;
        }
        if role == Role::Owner && !is_calm {
            self.wake_at(index, now_ms + to_ms(CALM_AGAIN));
            return;
        }
        if role == Role::Owner {
            self.attempt_number = self.attempt_number.wrapping_add(1);
            trying.again(self.attempt_number);
            self.effects.push(trying.effect());
            return;
        }
        trace.turn(SpanState::Sending, SpanState::Held);
        trace.trying = None;
        self.after_change(index, now_ms);
    }

    /// Every sink has the spans or refused them for good (D3).
    fn finish_attempt(&mut self, index: u32, now_ms: u64) {
        let trying = self.table.get_mut(index).and_then(|trace| trace.trying.take());
        let Some(trying) = trying else { return };
        self.change(index, now_ms, |trace| {
            trace.turn(SpanState::Sending, SpanState::Done);
            trace.free_done();
        });
        // All of them, also those that another node said to be done meanwhile: this sink has them.
        let count = u64::from(trying.attempt.span_count);
        match trying.result() {
            Result::Exported => {
                self.tally.exported += count;
                if trying.late {
                    self.tally.late += count;
                    self.tally.in_parts += 1;
                }
            }
            Result::Refused => self.tally.refused += count,
            Result::Poison => self.tally.poison += count,
        }
        self.tell_done(index);
        self.after_change(index, now_ms);
    }

    pub(super) fn tell_done(&mut self, index: u32) {
        let Some(trace) = self.table.get(index) else { return };
        for holder in self.outlook.others(trace.slot).into_iter().flatten() {
            let (target, _) = self.outlook.member(holder);
            let done = DoneTrace {
                trace_id: trace_id_bytes(trace.id),
                verdict: trace.verdict.into(),
                sum: trace.done_sum(),
            };
            self.effects.push(Effect::Done { target, done });
        }
    }
}

/// When a trace that has seen so many owners vanish is no longer in doubt; 0 for any other.
pub(super) fn doubt_ends(trace: &Trace) -> u64 {
    if trace.vanished.lives().len() < CRASHES_MAX {
        return 0;
    }
    trace.vanished.added_ms().saturating_add(to_ms(DOUBT))
}

/// When an owner stops waiting for calm. Owners that come back while a trace is in doubt may have
/// exported it, and have as long to say so as there is when it becomes due.
pub(super) fn calm_by(trace: &Trace) -> u64 {
    trace.due_ms.max(doubt_ends(trace)).saturating_add(to_ms(SETTLE_MAX))
}

fn attempt_of(trace_id: TraceId, chunks: Vec<Chunk>, span_count: u32, due: Instant) -> Attempt {
    let bytes = chunks.iter().map(|chunk| chunk.spans.len()).sum();
    Attempt { trace_id, chunks, span_count, bytes, due: Some(due) }
}
