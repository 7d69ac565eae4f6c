//! From a trace id to its slot.
//!
//! Clients choose trace ids, so the hash is keyed: nobody outside the cluster can aim traces at one
//! node. The invariant: every node of a cluster, on every platform and in every build, computes the
//! same slot for the same id and key. Nothing here depends on the members; that is `placement`.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13Wide};

/// How many slots there are: the fixed shares of the key space.
///
/// With 100 nodes a slot is 0.15 % of a node's share, so slots add nothing visible to the imbalance
/// of the hash; the table of all of them is 256 KiB.
pub const SLOT_COUNT: u32 = 65_536;

/// Public keys of the hashes that hide nothing; different ones, so that no two of them agree.
const NAME_KEY: [u8; 16] = *b"tracemesh/name/1";
const FINGERPRINT_INPUT: &[u8] = b"tracemesh/hash-key-fingerprint/1";

/// One of [`SLOT_COUNT`] fixed shares of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

/// The key of the hash that spreads trace ids; part of the cluster's configuration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl HashKey {
    /// The key of a cluster that was given no secret one. It spreads traces as well as any other,
    /// but who knows the name can aim at a node.
    #[must_use]
    pub fn from_cluster_name(name: &str) -> Self {
        let mut hasher = SipHasher13Wide::new_with_key(&NAME_KEY);
        hasher.write(name.as_bytes());
        Self(hasher.finish128().as_bytes())
    }

    /// What may be told about the key: equal for equal keys, and of no use for finding the key.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        SipHasher13::new_with_key(&self.0).hash(FINGERPRINT_INPUT)
    }

    /// `SipHash-1-3` of the 16 bytes of the trace id.
    #[must_use]
    pub fn trace_key(&self, trace_id: &[u8; 16]) -> u64 {
        SipHasher13::new_with_key(&self.0).hash(trace_id)
    }

    /// The slot of a trace. About 0.1 µs: do it once per trace and request.
    #[must_use]
    pub fn slot(&self, trace_id: &[u8; 16]) -> Slot {
        Slot::of_trace_key(self.trace_key(trace_id))
    }
}

impl Slot {
    /// The slot of the trace with this [`HashKey::trace_key`].
    #[must_use]
    pub fn of_trace_key(key: u64) -> Self {
        let bucket = jump_consistent_hash(key, SLOT_COUNT);
        Self(u16::try_from(bucket).expect("a bucket is less than SLOT_COUNT"))
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "HashKey(fingerprint {:016x})", self.fingerprint())
    }
}

/// Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (2014): going from n to m
/// buckets moves only the share that has to move. `buckets` is at least 1.
fn jump_consistent_hash(mut key: u64, buckets: u32) -> u32 {
    let (mut bucket, mut next) = (0_i64, 0_i64);
    while next < i64::from(buckets) {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let stretch = (1_u64 << 31) as f64 / ((key >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * stretch) as i64;
    }
    bucket as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn jump_hash_agrees_with_published_values() {
        let published = [
            (1, 1, 0),
            (42, 57, 43),
            (0xDEAD_10CC, 1, 0),
            (0xDEAD_10CC, 666, 361),
            (256, 1024, 520),
        ];
        for (key, buckets, bucket) in published {
            assert_eq!(jump_consistent_hash(key, buckets), bucket, "{key} in {buckets}");
        }
    }

    #[test]
    fn slots_of_known_ids_never_change() {
        let key = HashKey::from_cluster_name("tracemesh");
        let slots: Vec<u16> = (0..4_u8).map(|id| key.slot(&[id; 16]).0).collect();
        assert_eq!(key.fingerprint(), 10_347_080_113_272_370_479);
        assert_eq!(slots, [5_333, 21_139, 61_677, 2_465]);
    }

    #[test]
    fn the_key_decides_where_a_trace_goes() {
        let one = HashKey::from_cluster_name("one");
        let other = HashKey::from_cluster_name("other");
        assert_ne!(one.fingerprint(), other.fingerprint());
        let same = (0..=255_u8).filter(|id| one.slot(&[*id; 16]) == other.slot(&[*id; 16])).count();
        assert!(same < 4, "{same} of 256 ids have the same slot under two keys");
    }

    #[test]
    fn ids_that_count_upwards_spread_over_all_slots() {
        let key = HashKey::from_cluster_name("tracemesh");
        let mut hits = vec![0_u32; SLOT_COUNT as usize];
        for id in 0..(4 * u128::from(SLOT_COUNT)) {
            hits[usize::from(key.slot(&id.to_be_bytes()).0)] += 1;
        }
        let empty = hits.iter().filter(|count| **count == 0).count();
        // With 4 expected in each, e^-4 of the slots stay empty: 1,200.
        assert!((1_000..1_400).contains(&empty), "{empty} slots without a trace");
        assert!(hits.iter().all(|count| *count < 24));
    }

    proptest! {
        #[test]
        fn more_slots_move_a_trace_only_to_a_new_slot(
            key: u64,
            few in 1_u32..5_000,
            more in 0_u32..5_000,
        ) {
            let before = jump_consistent_hash(key, few);
            let after = jump_consistent_hash(key, few + more);
            prop_assert!(before < few);
            prop_assert!(after == before || after >= few);
        }

        #[test]
        fn debug_output_does_not_tell_the_key(bytes: [u8; 16]) {
            let key = HashKey(bytes);
            let expected = format!("HashKey(fingerprint {:016x})", key.fingerprint());
            prop_assert_eq!(format!("{key:?}"), expected);
        }
    }
}
