//! What a shard says of itself when it is asked: about one trace, and how far back it reaches.
//!
//! Reads and changes nothing that a rule of PROTOCOL.md looks at. One trace costs a look-up and a
//! walk over its keys.

use super::Shard;
use super::trace::SpanState;
use crate::frame::{Told, milliseconds};
use crate::spans::TraceId;
use std::time::Duration;
use tokio::time::Instant;

impl Shard {
    /// What is held or remembered of a trace; none when nothing is.
    pub fn tell(&self, now: Instant, trace_id: TraceId) -> Option<Told> {
        let trace = self.table.get(self.table.find(trace_id)?)?;
        let now_ms = self.ms(now);
        let count = |state| u32::try_from(trace.keys_in(state).count()).unwrap_or(u32::MAX);
        let is_held = trace.held_count > 0;
        let from_now = |at: u64| i64::try_from(at).ok()?.checked_sub_unsigned(now_ms);
        let held_for = || self.since(trace.held_since).map(|since| now.duration_since(since));
        Some(Told {
            held: count(SpanState::Held),
            sending: count(SpanState::Sending),
            done: count(SpanState::Done),
            verdict: trace.verdict.into(),
            due_in_ms: from_now(trace.due_ms).filter(|_| is_held),
            held_for_ms: held_for().filter(|_| is_held).map(milliseconds),
            unplaced: trace.unplaced,
            version: trace.version,
            asked: u32::from(trace.asked),
        })
    }

    /// Since when the oldest trace is held as owner, as replica, as stand-in; to the second.
    pub fn held_since(&self) -> [Option<Instant>; 3] {
        self.held.oldest().map(|since| since.and_then(|since| self.since(since)))
    }

    /// Since when nothing is held any more of the trace that was remembered first.
    pub fn remembered_since(&mut self) -> Option<Instant> {
        loop {
            let &(until_ms, index) = self.remembered.front()?;
            if self.table.get(index).is_some_and(|trace| trace.remembered_until_ms == until_ms) {
                let until = self.started + Duration::from_millis(until_ms);
                return until.checked_sub(self.limits.remember);
            }
            self.remembered.pop_front();
        }
    }

    fn since(&self, seconds: u32) -> Option<Instant> {
        self.started.checked_add(Duration::from_secs(seconds.into()))
    }
}

/// A moment as [`Trace::held_since`](super::trace::Trace::held_since) keeps it.
pub(super) fn to_seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}
