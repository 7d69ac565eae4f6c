//! The one memory budget, from ingest to sink.
//!
//! Stages report what they keep; this is the only counter. It decides nothing but the two bounds of
//! PROTOCOL.md: Holds from entry nodes are refused first, so that what is already in the cluster
//! can still move, and the last part belongs to export attempts.

use crate::frame::Origin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Share of the budget above which spans of clients are refused, in percent.
pub const CLIENTS_PERCENT: usize = 85;
/// Share of the budget above which spans of other holders are refused, in percent.
pub const HOLDERS_PERCENT: usize = 95;

/// Bytes kept by each stage, and their bound.
#[derive(Debug)]
pub struct Memory {
    budget_bytes: usize,
    shards: Vec<AtomicUsize>,
    in_flight: AtomicUsize,
}

impl Memory {
    /// An empty budget, shared by so many shards.
    pub fn new(budget_bytes: usize, shards: usize) -> Self {
        let shards = std::iter::repeat_with(AtomicUsize::default).take(shards).collect();
        Self { budget_bytes: budget_bytes.max(1), shards, in_flight: AtomicUsize::new(0) }
    }

    /// The bound.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// What is kept now.
    pub fn bytes(&self) -> usize {
        let shards: usize = self.shards.iter().map(|bytes| bytes.load(Relaxed)).sum();
        shards + self.in_flight.load(Relaxed)
    }

    /// What is kept now, in percent of the budget.
    pub fn fill_percent(&self) -> usize {
        self.bytes().saturating_mul(100) / self.budget_bytes
    }

    /// Whether spans from there are refused now.
    pub fn is_full(&self, origin: Origin) -> bool {
        let bound = match origin {
            Origin::Entry => CLIENTS_PERCENT,
            Origin::Placing => HOLDERS_PERCENT,
        };
        self.bytes() > self.budget_bytes / 100 * bound
    }

    /// What a shard keeps now.
    pub fn set_shard(&self, shard: usize, bytes: usize) {
        if let Some(counter) = self.shards.get(shard) {
            counter.store(bytes, Relaxed);
        }
    }

    /// Counts a request until the returned guard is dropped.
    pub fn in_flight(&self, bytes: usize) -> InFlight<'_> {
        self.in_flight.fetch_add(bytes, Relaxed);
        InFlight { memory: self, bytes }
    }
}

/// A request that is being handled.
#[derive(Debug)]
pub struct InFlight<'a> {
    memory: &'a Memory,
    bytes: usize,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.memory.in_flight.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_refused_before_holders() {
        let memory = Memory::new(1000, 2);
        memory.set_shard(0, 500);
        memory.set_shard(1, 300);
        assert!(!memory.is_full(Origin::Entry));
        let request = memory.in_flight(100);
        assert!(memory.is_full(Origin::Entry) && !memory.is_full(Origin::Placing));
        let another = memory.in_flight(100);
        assert!(memory.is_full(Origin::Placing));
        drop((request, another));
        assert!(!memory.is_full(Origin::Entry));
    }
}
