//! The lives of owners that vanished while a trace was due: what a poisonous trace is told by.
//!
//! A life is a hash of a node's id and generation, the same on every node, so that one crash counts
//! once whoever saw it, and a life that turns up again (a partition healed) does not count. Bounded
//! by [`VANISHED_MAX`]; nothing is allocated for the many traces that no owner has died of.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use tracemesh_membership::{HashKey, NodeId};

/// More lives than this are not kept: there are enough to bury a trace.
const VANISHED_MAX: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vanished(Option<Box<Lives>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lives {
    hashes: Vec<u64>,
    /// When the last of them was added here.
    added_ms: u64,
}

impl Vanished {
    pub(crate) fn add(&mut self, life: u64, now_ms: u64) {
        let lives = self.0.get_or_insert_default();
        if lives.hashes.len() < VANISHED_MAX && !lives.hashes.contains(&life) {
            lives.hashes.push(life);
            lives.added_ms = now_ms;
        }
    }

    pub(crate) fn lives(&self) -> &[u64] {
        self.0.as_ref().map_or(&[], |lives| &lives.hashes)
    }

    /// How many of them are gone still.
    pub(crate) fn count(&self, is_there: impl Fn(u64) -> bool) -> usize {
        self.lives().iter().filter(|life| !is_there(**life)).count()
    }

    /// When the last of them was added.
    pub(crate) fn added_ms(&self) -> u64 {
        self.0.as_ref().map_or(0, |lives| lives.added_ms)
    }
}

/// The life of a node.
pub(super) fn life(hash_key: &HashKey, id: &NodeId, generation: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&hash_key.0);
    hasher.write(id.as_str().as_bytes());
    hasher.write_u64(generation);
    hasher.finish()
}
