//! What an explorer of the protocol sees of a shard: what it knows of a trace, and a fingerprint.
//!
//! Two shards with equal fingerprints behave alike from now on, as far as the order of events goes.
//! So instants count only in their order, versions and the numbers of attempts not at all (whoever
//! holds one asks whether it is still the present one), and tables are read in the order of trace
//! ids. What is kept for memory's sake alone (chunks, sums, expiry of what is remembered) is left
//! out. Nothing here is called by a node at work.

use super::deciding::{calm_by, doubt_ends};
use super::trace::{SpanState, Trace};
use super::{ASK_AFTER, Shard, to_ms};
use crate::frame::Verdict;
use crate::spans::TraceId;
use std::hash::{Hash, Hasher};
use tokio::time::Instant;

/// Questions about one trace are equally far apart from so many on.
const ASKED_TOLD: u8 = 4;

/// What a shard knows of one trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Known {
    /// Spans whose bytes are here, as bits by their place in the list of names asked about.
    pub held: u8,
    /// Of these: in the export attempt in flight.
    pub sending: u8,
    /// Spans known as done.
    pub done: u8,
    /// The verdict.
    pub verdict: Verdict,
    /// Another holder may lack something, or the trace was not looked at by the present view.
    pub unplaced: bool,
}

impl Shard {
    /// What is known of a trace whose spans have these names, at most eight.
    pub fn known(&self, trace_id: TraceId, names: &[u64]) -> Option<Known> {
        let trace = self.table.get(self.table.find(trace_id)?)?;
        let (verdict, unplaced) = (trace.verdict, trace.unplaced || !self.table.is_met(trace));
        let mut known = Known { verdict, unplaced, ..Known::default() };
        for (key, state) in trace.keys() {
            let bit = names.iter().position(|&name| name == key.name()).map_or(0, |at| 1_u8 << at);
            match state {
                SpanState::Held => known.held |= bit,
                SpanState::Sending => {
                    known.held |= bit;
                    known.sending |= bit;
                }
                SpanState::Done => known.done |= bit,
            }
        }
        Some(known)
    }

    /// The wrapping sum of all keys of a trace, as a Done that covers all of them carries it.
    pub fn sum(&self, trace_id: TraceId) -> Option<u64> {
        Some(self.table.get(self.table.find(trace_id)?)?.sum())
    }

    /// The version of a trace: another one than before means that it changed.
    pub fn version(&self, trace_id: TraceId) -> Option<u32> {
        Some(self.table.get(self.table.find(trace_id)?)?.version)
    }

    /// Whether an answer to this try is waited for.
    pub fn awaits(&self, trace_id: TraceId, number: u32) -> bool {
        let trace = self.table.find(trace_id).and_then(|index| self.table.get(index));
        let trying = trace.and_then(|trace| trace.trying.as_ref());
        trying.is_some_and(|trying| trying.number == number && trying.in_flight())
    }

    /// Feeds `hasher` with all that the shard's future depends on.
    pub fn fingerprint(&self, now: Instant, hasher: &mut impl Hasher) {
        let now_ms = self.ms(now);
        self.outlook.hash(hasher);
        self.offers.hash_members(hasher);
        let mut traces: Vec<(u32, &Trace)> = self.table.iter().collect();
        traces.sort_unstable_by_key(|(_, trace)| trace.id);
        let mut instants = vec![now_ms];
        let review_at = self.review.as_ref().map(|review| review.next_ms.max(now_ms));
        instants.extend(review_at);
        for &(index, trace) in &traces {
            instants.extend(self.instants(index, trace).map(|at| at.max(now_ms)));
        }
        instants.sort_unstable();
        instants.dedup();
        if let Some(review) = &self.review {
            review.hash(hasher);
            instants.binary_search(&review.next_ms.max(now_ms)).hash(hasher);
        }
        for (index, trace) in traces {
            hash_trace(trace, hasher);
            self.offers.hash(index, hasher);
            if let Some(review) = &self.review {
                review.hash_trace(index, self.table.is_met(trace), hasher);
            }
            for at in self.instants(index, trace) {
                instants.binary_search(&at.max(now_ms)).hash(hasher);
            }
        }
        self.stale_wakes().hash(hasher);
    }

    /// When what is to be done about a trace becomes another.
    fn instants(&self, index: u32, trace: &Trace) -> impl Iterator<Item = u64> + use<> {
        let held = trace.held_count > 0;
        let points = held.then(|| turning_points(trace)).into_iter().flatten();
        points.chain(trace.unplaced.then(|| self.offers.instants(index)).into_iter().flatten())
    }

    /// Moments in the queue at which nothing will be done, before the first that counts: passing
    /// each of them is a step of its own.
    fn stale_wakes(&self) -> usize {
        let is_stale =
            |at: u64, index: &u32| self.table.get(*index).is_none_or(|trace| trace.wake_ms != at);
        let moments = self.wakes.iter();
        moments
            .take_while(|(at, indexes)| indexes.iter().all(|index| is_stale(**at, index)))
            .count()
    }
}

/// When a trace is decided, asked about, no longer in doubt, decided although not calm, looked at.
fn turning_points(trace: &Trace) -> [u64; 5] {
    let ask = trace.due_ms.saturating_add(to_ms(ASK_AFTER));
    [trace.due_ms, ask, doubt_ends(trace), calm_by(trace), trace.wake_ms]
}

fn hash_trace(trace: &Trace, hasher: &mut impl Hasher) {
    let mut keys: Vec<_> = trace.keys().collect();
    keys.sort_unstable();
    (trace.id, keys, trace.verdict).hash(hasher);
    (trace.rooted, trace.unplaced, trace.taken_over, trace.vanished.lives()).hash(hasher);
    trace.asked.min(ASKED_TOLD).hash(hasher);
    match &trace.trying {
        Some(trying) => trying.hash(hasher),
        None => hasher.write_u8(0),
    }
}
