//! The one memory budget, from ingest to sink.
//!
//! Stages report what they keep; this is the only counter. It decides nothing but the two bounds of
//! PROTOCOL.md: Holds from entry nodes are refused first, so that what is already in the cluster
//! can still move, and the last part belongs to export attempts. When they were met last is
//! remembered for people: between two requests that were put off a node is just below its bound.

use crate::frame::Origin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Share of the budget above which spans of clients are refused, in percent.
pub const CLIENTS_PERCENT: usize = 85;
/// Share of the budget above which spans of other holders are refused, in percent.
pub const HOLDERS_PERCENT: usize = 95;

/// A shortage is told for so long after it was met last: a client that was put off is asked to come
/// again within 10 s, and meets it again then; half as much more is for the way.
const SHORTAGE_TOLD: Duration = Duration::from_secs(15);

/// When there was no room for spans last.
#[derive(Debug, Default)]
pub struct Shortage {
    met: Option<Instant>,
}

impl Shortage {
    /// There is no room now.
    pub fn on_met(&mut self, now: Instant) {
        self.met = Some(now);
    }

    /// Whether clients are put off, or were so lately that they have not all come again.
    pub fn is_told(&self, now: Instant) -> bool {
        self.met.is_some_and(|met| now.saturating_duration_since(met) < SHORTAGE_TOLD)
    }
}

/// Bytes kept by each stage, and their bound.
#[derive(Debug)]
pub struct Memory {
    budget_bytes: usize,
    shards: Vec<AtomicUsize>,
    in_flight: AtomicUsize,
    shortage: Mutex<Shortage>,
}

impl Memory {
    /// An empty budget, shared by so many shards.
    pub fn new(budget_bytes: usize, shards: usize) -> Self {
        let shards = std::iter::repeat_with(AtomicUsize::default).take(shards).collect();
        let (in_flight, shortage) = Default::default();
        Self { budget_bytes: budget_bytes.max(1), shards, in_flight, shortage }
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

    fn is_over(&self, origin: Origin) -> bool {
        let bound = match origin {
            Origin::Entry => CLIENTS_PERCENT,
            Origin::Placing => HOLDERS_PERCENT,
        };
        self.bytes() > self.budget_bytes / 100 * bound
    }

    /// Whether spans that came from there have to be refused now, which is remembered.
    pub fn is_full(&self, origin: Origin) -> bool {
        let is_full = self.is_over(origin);
        if is_full {
            self.shortage().on_met(Instant::now());
        }
        is_full
    }

    /// Whether there is no room for spans of clients, or some were refused some seconds ago.
    pub fn is_short(&self, now: Instant) -> bool {
        self.is_over(Origin::Entry) || self.shortage().is_told(now)
    }

    fn shortage(&self) -> MutexGuard<'_, Shortage> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn shortage_is_told_until_those_who_were_put_off_have_come_again() {
        let memory = Memory::new(1000, 1);
        assert!(!memory.is_short(Instant::now()));
        let request = memory.in_flight(900);
        assert!(memory.is_full(Origin::Entry));
        drop(request);
        let now = Instant::now();
        assert!(memory.is_short(now), "it has room now, and had none for a client");
        assert!(memory.is_short(now + Duration::from_secs(10)));
        assert!(!memory.is_short(now + SHORTAGE_TOLD));
        memory.set_shard(0, 900);
        assert!(memory.is_short(now + SHORTAGE_TOLD), "whether a client comes or not");
    }
}
