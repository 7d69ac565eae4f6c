//! Resources and scopes, each kept once per shard however many spans refer to it.
//!
//! Spans of one service repeat the same resource in every request. The invariant: equal bytes give
//! the same allocation while any span refers to it. What nobody refers to any more is dropped when
//! the table has doubled since the last sweep, so a client that never repeats itself costs at most
//! twice what is held, and every [`SWEEP_EVERY_MS`] where there are many bytes: a node that is full
//! of what is not needed takes nothing in by which a table could double.

use crate::spans::{Resource, Scope};
use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::mem::size_of;
use std::sync::Arc;

/// Below this size the table is never swept.
const SWEPT_FROM: usize = 1024;

/// A table of fewer bytes is not swept by time.
const SWEPT_FROM_BYTES: usize = 1 << 20;

/// The time between two sweeps, in milliseconds. One costs a millisecond for 10,000 scopes.
const SWEEP_EVERY_MS: u64 = 10_000;

/// Counters of an `Arc`, and a table entry.
const ENTRY_BYTES: usize = 16 + 16;

#[derive(Clone, Debug)]
pub(crate) struct Scopes {
    hash_key: [u8; 16],
    resources: HashTable<Arc<Resource>>,
    scopes: HashTable<Arc<Scope>>,
    sweep_at: usize,
    swept_ms: u64,
    bytes: usize,
}

impl Scopes {
    /// `hash_key` is secret, so that a client cannot choose bytes that collide.
    pub(crate) fn new(hash_key: [u8; 16]) -> Self {
        Self {
            hash_key,
            resources: HashTable::new(),
            scopes: HashTable::new(),
            sweep_at: SWEPT_FROM,
            swept_ms: 0,
            bytes: 0,
        }
    }

    /// What the table keeps, for the memory budget.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The one allocation for these bytes.
    pub(crate) fn intern(&mut self, resource: Box<[u8]>, scope: Box<[u8]>) -> Arc<Scope> {
        let resource = self.intern_resource(resource);
        let hash = self.hash(&scope) ^ Arc::as_ptr(&resource).addr() as u64;
        let same =
            |known: &Arc<Scope>| Arc::ptr_eq(&known.resource, &resource) && known.fields == scope;
        if let Some(known) = self.scopes.find(hash, same) {
            return Arc::clone(known);
        }
        let scope = Arc::new(Scope { resource, fields: scope });
        self.bytes += scope_bytes(&scope);
        let hash_key = self.hash_key;
        self.scopes.insert_unique(hash, Arc::clone(&scope), |known| {
            hash_of(hash_key, &known.fields) ^ Arc::as_ptr(&known.resource).addr() as u64
        });
        if self.scopes.len() >= self.sweep_at {
            self.sweep();
        }
        scope
    }

    /// When [`Self::on_time`] has something to do.
    pub(crate) fn next_sweep(&self) -> Option<u64> {
        (self.bytes >= SWEPT_FROM_BYTES).then_some(self.swept_ms + SWEEP_EVERY_MS)
    }

    pub(crate) fn on_time(&mut self, now_ms: u64) {
        if self.next_sweep().is_some_and(|at| at <= now_ms) {
            self.sweep();
            self.swept_ms = now_ms;
        }
    }

    fn intern_resource(&mut self, fields: Box<[u8]>) -> Arc<Resource> {
        let hash = self.hash(&fields);
        if let Some(known) = self.resources.find(hash, |known| known.fields == fields) {
            return Arc::clone(known);
        }
        let resource = Arc::new(Resource { fields });
        self.bytes += resource_bytes(&resource);
        let hash_key = self.hash_key;
        self.resources
            .insert_unique(hash, Arc::clone(&resource), |known| hash_of(hash_key, &known.fields));
        resource
    }

    fn sweep(&mut self) {
        self.scopes.retain(|scope| Arc::strong_count(scope) > 1);
        self.resources.retain(|resource| Arc::strong_count(resource) > 1);
        self.bytes = self.scopes.iter().map(|scope| scope_bytes(scope)).sum::<usize>()
            + self.resources.iter().map(|resource| resource_bytes(resource)).sum::<usize>();
        self.sweep_at = (2 * self.scopes.len()).max(SWEPT_FROM);
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        hash_of(self.hash_key, bytes)
    }
}

fn hash_of(key: [u8; 16], bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&key);
    hasher.write(bytes);
    hasher.finish()
}

fn scope_bytes(scope: &Scope) -> usize {
    size_of::<Scope>() + scope.fields.len() + ENTRY_BYTES
}

fn resource_bytes(resource: &Resource) -> usize {
    size_of::<Resource>() + resource.fields.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(bytes: &[u8]) -> Box<[u8]> {
        bytes.into()
    }

    #[test]
    fn equal_bytes_are_one_allocation() {
        let mut scopes = Scopes::new([7; 16]);
        let first = scopes.intern(boxed(b"resource"), boxed(b"scope"));
        let again = scopes.intern(boxed(b"resource"), boxed(b"scope"));
        let other = scopes.intern(boxed(b"other"), boxed(b"scope"));
        assert!(Arc::ptr_eq(&first, &again));
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(!Arc::ptr_eq(&first.resource, &other.resource));
    }

    #[test]
    fn what_nobody_refers_to_is_swept() {
        let mut scopes = Scopes::new([7; 16]);
        let kept = scopes.intern(boxed(b"kept"), boxed(b"kept"));
        for number in 0..10 * SWEPT_FROM {
            scopes.intern(boxed(&number.to_le_bytes()), boxed(b""));
        }
        assert!(scopes.scopes.len() <= SWEPT_FROM);
        assert!(scopes.bytes() < SWEPT_FROM * 300);
        assert!(Arc::ptr_eq(&kept, &scopes.intern(boxed(b"kept"), boxed(b"kept"))));
    }

    #[test]
    fn many_bytes_are_swept_by_time_though_no_more_come() {
        let mut scopes = Scopes::new([7; 16]);
        let kept = scopes.intern(boxed(b"kept"), boxed(b"kept"));
        assert_eq!(scopes.next_sweep(), None);
        scopes.intern(vec![1; 2 * SWEPT_FROM_BYTES].into(), boxed(b""));
        scopes.on_time(SWEEP_EVERY_MS - 1);
        assert!(scopes.bytes() > SWEPT_FROM_BYTES);
        assert_eq!(scopes.next_sweep(), Some(SWEEP_EVERY_MS));
        scopes.on_time(SWEEP_EVERY_MS);
        assert!(scopes.bytes() < 1000 && scopes.next_sweep().is_none());
        assert!(Arc::ptr_eq(&kept, &scopes.intern(boxed(b"kept"), boxed(b"kept"))));
    }
}
