//! Remembering what is done, so that late spans follow their trace and repeated ones are
//! recognised.
//!
//! A trace is remembered from when nothing of it is held until its time is over, or until the bound
//! on memory is reached; then the one that was remembered longest goes first, and is counted; so
//! are traces of more than [`KEYS_MAX`] spans, of which the oldest are forgotten. The invariant: an
//! entry of the queue counts only when it names the time that the trace itself does.

use super::look::LOOKED_AT_ONCE;
use super::trace::{KEYS_MAX, Trace};
use super::{Shard, to_ms};

impl Shard {
    /// Keeps the keys of a trace of which nothing is held, for as long as there is room.
    pub(super) fn remember(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.wake_ms = u64::MAX;
        if trace.is_remembered() {
            return;
        }
        trace.remembered_until_ms = now_ms + to_ms(self.limits.remember).max(1);
        self.remembered_bytes += trace.cost_bytes();
        self.remembered.push_back((trace.remembered_until_ms, index));
        while self.remembered_bytes > self.limits.remember_bytes_max {
            if !self.forget_oldest() {
                break;
            }
            self.tally.forgotten_early += 1;
        }
    }

    /// Bounds what is known of one trace.
    pub(super) fn forget_oldest_keys(&mut self, index: u32, now_ms: u64) {
        let has_many = |trace: &Trace| trace.key_count() > KEYS_MAX;
        if self.table.get(index).is_some_and(has_many)
            && self.change(index, now_ms, Trace::forget_oldest_keys) == Some(true)
        {
            self.tally.forgotten_early += 1;
        }
    }

    pub(super) fn forget_expired(&mut self, now_ms: u64) {
        loop {
            let expired = self.remembered.iter().take_while(|(until_ms, _)| *until_ms <= now_ms);
            let expired = expired.take(LOOKED_AT_ONCE).map(|&(_, index)| index);
            let expired: Vec<u32> = expired.collect();
            if expired.is_empty() {
                return;
            }
            self.look_at_expired(&expired);
            for _ in expired {
                self.forget_first();
            }
        }
    }

    /// Forgets the trace that has been remembered longest; `false` when there is none.
    fn forget_oldest(&mut self) -> bool {
        while !self.remembered.is_empty() {
            if self.forget_first() {
                return true;
            }
        }
        false
    }

    /// Takes the first entry from the queue and, if it counts, forgets its trace; whether it did.
    fn forget_first(&mut self) -> bool {
        let Some((until_ms, index)) = self.remembered.pop_front() else { return false };
        let counts = |trace: &Trace| trace.remembered_until_ms == until_ms;
        let is_forgotten = self.table.get(index).is_some_and(counts);
        if is_forgotten {
            self.forget(index);
        }
        is_forgotten
    }

    pub(super) fn forget(&mut self, index: u32) {
        let role = self.role_of(index);
        let Some(trace) = self.table.remove(index) else { return };
        self.offers.remove(index);
        self.trace_bytes -= trace.cost_bytes();
        self.held.change(role, trace.held_since, trace.held_count, 0);
        if trace.is_remembered() {
            self.remembered_bytes -= trace.cost_bytes();
        }
    }
}
