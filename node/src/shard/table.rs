//! The traces of a shard, found by trace id.
//!
//! A slab of traces and a hash table of indexes into it. The invariant: an index stays that of its
//! trace until the trace is removed, and may be used again afterwards, so whoever keeps one across
//! turns checks the trace's id. The hash is the trace key, keyed by the cluster's secret, because
//! clients choose trace ids.

use super::trace::Trace;
use crate::spans::TraceId;
use hashbrown::HashTable;
use tracemesh_membership::{HashKey, Slot};

#[derive(Clone, Debug)]
pub(crate) struct Table {
    hash_key: HashKey,
    slab: Vec<Option<Trace>>,
    free: Vec<u32>,
    by_id: HashTable<u32>,
}

impl Table {
    pub(crate) fn new(hash_key: HashKey) -> Self {
        Self { hash_key, slab: Vec::new(), free: Vec::new(), by_id: HashTable::new() }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn find(&self, id: TraceId) -> Option<u32> {
        let hash = self.hash_key.trace_key(&id.0);
        self.by_id.find(hash, |&index| self.is(index, id)).copied()
    }

    /// The trace's index, and whether the trace was not known and is new and empty.
    pub(crate) fn find_or_insert(&mut self, id: TraceId, slot: Slot) -> (u32, bool) {
        let hash = self.hash_key.trace_key(&id.0);
        if let Some(&index) = self.by_id.find(hash, |&index| self.is(index, id)) {
            return (index, false);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            u32::try_from(self.slab.len() - 1).unwrap_or(u32::MAX)
        });
        self.slab[index as usize] = Some(Trace::new(id, slot));
        let (slab, hash_key) = (&self.slab, &self.hash_key);
        self.by_id.insert_unique(hash, index, |&index| {
            slab[index as usize].as_ref().map_or(0, |trace| hash_key.trace_key(&trace.id.0))
        });
        (index, true)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Trace> {
        self.slab.get(index as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Trace> {
        self.slab.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Trace> {
        let trace = self.slab.get_mut(index as usize)?.take()?;
        let hash = self.hash_key.trace_key(&trace.id.0);
        if let Ok(entry) = self.by_id.find_entry(hash, |&other| other == index) {
            entry.remove();
        }
        self.free.push(index);
        Some(trace)
    }

    /// All traces with their indexes, in slab order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Trace)> {
        (0..).zip(&self.slab).filter_map(|(index, trace)| Some((index, trace.as_ref()?)))
    }

    fn is(&self, index: u32, id: TraceId) -> bool {
        self.get(index).is_some_and(|trace| trace.id == id)
    }
}
