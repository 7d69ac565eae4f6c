//! Looking at traces to which something is about to happen.
//!
//! A trace comes in several frames, and is in no cache any more when the next one comes; following
//! its pointers one by one is most of what a shard pays. Looks that do not depend on each other
//! wait for memory together, so all traces are looked at first, and then what each of them points
//! to ([`Table::look`](super::table::Table::look)). The invariant: looking changes nothing. Only
//! what is needed is looked at: the bytes of spans before they are sent or freed, and of no more
//! traces than [`LOOKED_AT_ONCE`] where there may be very many.

use super::trace::LookedAt;
use super::{Role, Shard};
use crate::spans::TraceId;
use std::hint::black_box;

/// What is seen of more traces would have left the nearest caches before it is needed.
pub(super) const LOOKED_AT_ONCE: usize = 256;

impl Shard {
    /// Spans of these traces are about to be done.
    pub fn prepare(&self, traces: impl Iterator<Item = TraceId>) {
        let keys = traces.map(|id| self.hash_key.trace_key(&id.0));
        let indexes = self.table.likely(keys);
        self.look(&indexes);
        self.table.look(&indexes, LookedAt::Lists..=LookedAt::Spans);
    }

    /// These traces are due, or were to be looked at again: some are decided now, if they are mine.
    pub(super) fn look_at_due(&self, indexes: &[u32]) {
        self.look(indexes);
        let may_be_decided = |index: &u32| {
            let slot = self.table.get(*index).map(|trace| trace.slot);
            slot.is_some_and(|slot| {
                self.outlook.role(slot) == Role::Owner && self.outlook.is_calm(slot)
            })
        };
        let mine: Vec<u32> = indexes.iter().copied().filter(may_be_decided).collect();
        self.table.look(&mine, LookedAt::Lists..=LookedAt::Spans);
    }

    /// These traces are about to be forgotten.
    pub(super) fn look_at_expired(&self, indexes: &[u32]) {
        self.look(indexes);
        let traces = indexes.iter().filter_map(|&index| self.table.get(index));
        black_box(self.table.likely(traces.map(|trace| self.hash_key.trace_key(&trace.id.0))));
    }

    fn look(&self, indexes: &[u32]) {
        self.table.look(indexes, LookedAt::Trace..=LookedAt::Trace);
        let traces = indexes.iter().filter_map(|&index| self.table.get(index));
        self.outlook.look(traces.map(|trace| trace.slot));
    }
}
