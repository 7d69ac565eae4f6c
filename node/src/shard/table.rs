//! The traces of a shard, found by trace id.
//!
//! A slab of traces and a hash table of indexes into it. The invariant: an index stays that of its
//! trace until the trace is removed, and may be used again afterwards, so whoever keeps one across
//! turns checks the trace's id. The hash is the trace key, keyed by the cluster's secret, because
//! clients choose trace ids.
//!
//! There are many traces and most are in no cache, so none is touched or moved for the sake of
//! another: the slab grows by pages, and the hash table knows the hashes.

use super::trace::{LookedAt, Trace};
use crate::spans::TraceId;
use hashbrown::HashTable;
use std::hint::black_box;
use std::ops::RangeInclusive;
use tracemesh_membership::{HashKey, Slot};

/// Traces of one page of the slab.
const PAGE_TRACES: usize = 1024;

#[derive(Clone, Debug)]
pub(crate) struct Table {
    hash_key: HashKey,
    /// The number of the present view; all traces have this one or, where they were not looked at
    /// since, the one before.
    view: u8,
    /// All full but the last one.
    pages: Vec<Vec<Option<Trace>>>,
    free: Vec<u32>,
    by_id: HashTable<Entry>,
}

/// Where a trace is.
#[derive(Clone, Debug)]
struct Entry {
    index: u32,
    /// The upper half of the trace key.
    hash: u32,
}

impl Entry {
    fn new(index: u32, key: u64) -> Self {
        Self { index, hash: (key >> 32) as u32 }
    }

    fn hash(&self) -> u64 {
        table_hash(u64::from(self.hash) << 32)
    }
}

/// What the hash table goes by: the upper half of a trace key, in its upper and its lower bits.
fn table_hash(key: u64) -> u64 {
    key & !u64::from(u32::MAX) | key >> 32
}

impl Table {
    pub(crate) fn new(hash_key: HashKey) -> Self {
        Self { hash_key, view: 0, pages: Vec::new(), free: Vec::new(), by_id: HashTable::new() }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn find(&self, id: TraceId) -> Option<u32> {
        let key = self.hash_key.trace_key(&id.0);
        self.by_id.find(table_hash(key), |entry| self.is(entry, key, id)).map(|entry| entry.index)
    }

    /// Makes room for about those of these traces, by key, that are not known, and looks at the
    /// others.
    pub(crate) fn expect(&mut self, keys: impl ExactSizeIterator<Item = u64>) {
        let count = keys.len();
        let known = self.likely(keys);
        self.look(&known, LookedAt::Trace..=LookedAt::LastBlock);
        self.by_id.reserve(count - known.len(), Entry::hash);
    }

    /// The indexes of those of these traces, by key, that are known, and seldom that of another
    /// one, because no trace is looked at: the hashes have 32 bits.
    pub(crate) fn likely(&self, keys: impl Iterator<Item = u64>) -> Vec<u32> {
        let has_hash = |key: u64| move |entry: &Entry| entry.hash == (key >> 32) as u32;
        let entries = keys.filter_map(|key| self.by_id.find(table_hash(key), has_hash(key)));
        entries.map(|entry| entry.index).collect()
    }

    /// Looks at traces to which something is about to happen, and what they point to. Looks with
    /// nothing between them wait for memory together, and leave what they touched in a cache.
    pub(crate) fn look(&self, indexes: &[u32], what: RangeInclusive<LookedAt>) {
        let traces = || indexes.iter().filter_map(|&index| self.get(index));
        for at in LookedAt::ALL.into_iter().filter(|at| what.contains(at)) {
            black_box(traces().fold(0, |seen, trace| seen ^ trace.look(at)));
        }
    }

    /// The index of the trace with this id and key, and whether the trace was not known and is new
    /// and empty.
    pub(crate) fn find_or_insert(&mut self, id: TraceId, key: u64, slot: Slot) -> (u32, bool) {
        let hash = table_hash(key);
        if let Some(entry) = self.by_id.find(hash, |entry| self.is(entry, key, id)) {
            return (entry.index, false);
        }
        let trace = Some(Trace::new(id, slot, self.view));
        let index = match self.free.pop() {
            Some(index) => {
                let (page, at) = place(index);
                self.pages[page][at] = trace;
                index
            }
            None => self.push(trace),
        };
        self.by_id.insert_unique(hash, Entry::new(index, key), Entry::hash);
        (index, true)
    }

    fn push(&mut self, trace: Option<Trace>) -> u32 {
        if self.pages.last().is_none_or(|page| page.len() == PAGE_TRACES) {
            self.pages.push(Vec::with_capacity(PAGE_TRACES));
        }
        let page = self.pages.len() - 1;
        self.pages[page].push(trace);
        u32::try_from(page * PAGE_TRACES + self.pages[page].len() - 1).unwrap_or(u32::MAX)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Trace> {
        let (page, at) = place(index);
        self.pages.get(page)?.get(at)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Trace> {
        let (page, at) = place(index);
        self.pages.get_mut(page)?.get_mut(at)?.as_mut()
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Trace> {
        let (page, at) = place(index);
        let trace = self.pages.get_mut(page)?.get_mut(at)?.take()?;
        let hash = table_hash(self.hash_key.trace_key(&trace.id.0));
        if let Ok(entry) = self.by_id.find_entry(hash, |other| other.index == index) {
            entry.remove();
        }
        self.free.push(index);
        Some(trace)
    }

    /// A new view begins, by which every trace is to be looked at. All were by the last one.
    pub(crate) fn begin_view(&mut self) {
        self.view = self.view.wrapping_add(1);
    }

    /// Whether a trace was not looked at by the present view before; from now on it was.
    pub(crate) fn meets_view(&mut self, index: u32) -> bool {
        let view = self.view;
        let trace = self.get_mut(index);
        trace.is_some_and(|trace| std::mem::replace(&mut trace.view, view) != view)
    }

    /// Whether a trace was looked at by the present view.
    pub(crate) fn is_met(&self, trace: &Trace) -> bool {
        trace.view == self.view
    }

    /// Above all indexes.
    pub(crate) fn end(&self) -> u32 {
        let last = self.pages.last().map_or(0, Vec::len);
        let full = self.pages.len().saturating_sub(1) * PAGE_TRACES;
        u32::try_from(full + last).unwrap_or(u32::MAX)
    }

    /// All traces with their indexes, in slab order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Trace)> {
        (0..).zip(self.pages.iter().flatten()).filter_map(|(index, trace)| {
            let trace = trace.as_ref()?;
            Some((index, trace))
        })
    }

    fn is(&self, entry: &Entry, key: u64, id: TraceId) -> bool {
        entry.hash == (key >> 32) as u32
            && self.get(entry.index).is_some_and(|trace| trace.id == id)
    }
}

/// The page of an index, and where in it.
fn place(index: u32) -> (usize, usize) {
    (index as usize / PAGE_TRACES, index as usize % PAGE_TRACES)
}
