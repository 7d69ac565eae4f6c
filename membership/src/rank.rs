//! Weighted rendezvous hashing: who of some members comes first for a slot, and who second.
//!
//! Each member draws a number for each slot, `hash = mix(slot, node_key)`, uniform and independent
//! of who else is there. With equal weights the highest number wins. With weights the highest
//! `weight / -ln(u)` wins, `u` being the upper half of the hash as a fraction: the logarithmic
//! method (Schindelhauer and Schomaker, 2005), by which a member wins in proportion to its weight.
//!
//! The invariant on which all of placement rests: (score, hash, smaller index) is a total order
//! that does not depend on the other members. `u` has 32 bits, so that neighbouring values of
//! `ln(u)` are 2^-32 apart and no rounding can make two of them change places: with equal weights
//! the order by score is the order by hash, and the logarithms need not be computed. The arithmetic
//! is integers, one division, and a logarithm in pure Rust, so that all platforms agree.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::view::{NodeId, View};

const NODE_KEY: [u8; 16] = *b"tracemesh/node/1";

/// Index of a member in [`View::members`].
pub type MemberIndex = u16;

/// No member at all; a view has fewer.
pub(crate) const NOBODY: MemberIndex = MemberIndex::MAX;

/// What the ranking needs to know of the members.
#[derive(Debug, PartialEq)]
pub(crate) struct Contenders {
    count: usize,
    /// Sorted by name.
    zones: Vec<Zone>,
    equal_weights: bool,
}

/// The members of one zone, sorted by index.
#[derive(Debug, Default, PartialEq)]
struct Zone {
    members: Vec<Contender>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Contender {
    node_key: u64,
    weight: f64,
    index: MemberIndex,
}

/// The owner and the replica of a slot; [`NOBODY`] where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ranked {
    pub(crate) owner: MemberIndex,
    pub(crate) replica: MemberIndex,
}

impl Contenders {
    pub(crate) fn new(view: &View) -> Self {
        let members = view.members();
        let mut zones = BTreeMap::<&str, Zone>::new();
        for (index, member) in (0..).zip(members) {
            let weight = f64::from(member.weight.thousandths());
            let contender = Contender { node_key: node_key(&member.id), weight, index };
            zones.entry(&member.zone).or_default().members.push(contender);
        }
        Self {
            count: members.len(),
            zones: zones.into_values().collect(),
            equal_weights: members.iter().all(|member| member.weight == members[0].weight),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The owner has the highest score of those admitted; the replica the highest of those in
    /// another zone than the owner's or, where there is none, the second highest.
    pub(crate) fn rank(&self, slot: u16, admits: impl Fn(MemberIndex) -> bool) -> Ranked {
        let slot_key = slot_key(slot);
        let (mut first, mut second, mut elsewhere) = (Draw::NONE, Draw::NONE, Draw::NONE);
        for zone in &self.zones {
            let (best, runner_up) = if self.equal_weights {
                zone.best_two::<true>(slot_key, &admits)
            } else {
                zone.best_two::<false>(slot_key, &admits)
            };
            if best.beats(&first) {
                elsewhere = first;
                (first, second) = (best, runner_up);
            } else if best.beats(&elsewhere) {
                elsewhere = best;
            }
        }
        let replica = if elsewhere.index == NOBODY { second.index } else { elsewhere.index };
        Ranked { owner: first.index, replica }
    }

    /// What everybody scores for a slot, the highest first.
    pub(crate) fn scores(&self, slot: u16) -> Vec<(MemberIndex, f64)> {
        let slot_key = slot_key(slot);
        let members = self.zones.iter().flat_map(|zone| &zone.members);
        let draw = |&Contender { node_key, weight, index }: &Contender| {
            let hash = finalize(slot_key ^ node_key);
            Draw { score: weight / -libm::log(fraction(hash)), hash, index }
        };
        let mut draws: Vec<Draw> = members.map(draw).collect();
        draws.sort_unstable_by(|one, other| match one.beats(other) {
            true => Ordering::Less,
            false => Ordering::Greater,
        });
        draws.into_iter().map(|draw| (draw.index, draw.score)).collect()
    }
}

impl Zone {
    /// `EQUAL`: all weights are equal, and the hash alone decides.
    fn best_two<const EQUAL: bool>(
        &self,
        slot_key: u64,
        admits: impl Fn(MemberIndex) -> bool,
    ) -> (Draw, Draw) {
        let (mut best, mut runner_up) = (Draw::NONE, Draw::NONE);
        for &Contender { node_key, weight, index } in &self.members {
            let hash = finalize(slot_key ^ node_key);
            // Nearly all draws are far from the best two, and must cost next to nothing.
            let hopeless = if EQUAL {
                hash < runner_up.hash
            } else {
                // -ln(u) is at least 1 - u, so this one is no runner-up: no logarithm. Where the
                // two are closest, at u = 1 - 2^-33, they are 2^-34 apart, far above rounding.
                weight < runner_up.score * (1.0 - fraction(hash))
            };
            if hopeless || !admits(index) {
                continue;
            }
            let score = if EQUAL { 0.0 } else { weight / -libm::log(fraction(hash)) };
            let draw = Draw { score, hash, index };
            if draw.beats(&best) {
                (best, runner_up) = (draw, best);
            } else if draw.beats(&runner_up) {
                runner_up = draw;
            }
        }
        (best, runner_up)
    }
}

/// What a member drew for a slot.
#[derive(Clone, Copy)]
struct Draw {
    score: f64,
    hash: u64,
    index: MemberIndex,
}

impl Draw {
    const NONE: Self = Self { score: -1.0, hash: 0, index: NOBODY };

    /// The total order. `NONE` loses against everything.
    fn beats(&self, other: &Self) -> bool {
        if self.score != other.score {
            self.score > other.score
        } else if self.hash != other.hash {
            self.hash > other.hash
        } else {
            self.index < other.index
        }
    }
}

/// What a slot brings to every member's draw.
fn slot_key(slot: u16) -> u64 {
    finalize((u64::from(slot) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Of the id alone: neither its address nor its generation moves a slot.
fn node_key(id: &NodeId) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&NODE_KEY);
    hasher.write(id.as_str().as_bytes());
    hasher.finish()
}

/// The upper 32 bits as a fraction in (0, 1), never 0 or 1.
fn fraction(hash: u64) -> f64 {
    ((hash >> 32) as f64 + 0.5) / (1_u64 << 32) as f64
}

/// The finalizer of MurmurHash3: every bit of the input changes every bit of the output half the
/// time.
fn finalize(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;

    /// What the module says, without a shortcut.
    fn by_the_book(contenders: &Contenders, slot: u16, admitted: u16) -> Ranked {
        let slot_key = finalize((u64::from(slot) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut order = Vec::new();
        for (zone, members) in contenders.zones.iter().enumerate() {
            for contender in &members.members {
                let hash = finalize(slot_key ^ contender.node_key);
                let score = contender.weight / -libm::log(fraction(hash));
                if admitted >> contender.index & 1 == 1 {
                    order.push((score, hash, Reverse(contender.index), zone));
                }
            }
        }
        order.sort_by(|a, b| b.partial_cmp(a).unwrap());
        let Some(&(_, _, Reverse(owner), zone)) = order.first() else {
            return Ranked { owner: NOBODY, replica: NOBODY };
        };
        let elsewhere = order.iter().find(|draw| draw.3 != zone).or(order.get(1));
        let replica = elsewhere.map_or(NOBODY, |draw| draw.2.0);
        Ranked { owner, replica }
    }

    fn contenders() -> impl Strategy<Value = Contenders> {
        let weight = prop_oneof![Just(1_000_u32), Just(2_000), 1_u32..1_000_000];
        let member = (any::<u64>(), weight, 0_usize..4);
        (prop::collection::vec(member, 0..12), any::<bool>(), 1_usize..5).prop_map(
            |(members, equal_weights, zone_count)| {
                let mut zones: Vec<_> = (0..zone_count).map(|_| Zone::default()).collect();
                let count = members.len();
                for (index, (node_key, weight, zone)) in (0..).zip(members) {
                    let weight = if equal_weights { 1_000.0 } else { f64::from(weight) };
                    let contender = Contender { node_key, weight, index };
                    zones[zone % zone_count].members.push(contender);
                }
                Contenders { count, zones, equal_weights }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_shortcuts_change_nothing(contenders in contenders(), slot: u16, admitted: u16) {
            let expected = by_the_book(&contenders, slot, admitted);
            let admits = |index: MemberIndex| admitted >> index & 1 == 1;
            prop_assert_eq!(contenders.rank(slot, admits), expected);
        }

        #[test]
        fn whoever_scores_highest_is_the_owner(contenders in contenders(), slot: u16) {
            let scores = contenders.scores(slot);
            prop_assert_eq!(scores.len(), contenders.len());
            prop_assert!(scores.is_sorted_by(|one, other| one.1 >= other.1));
            let owner = scores.first().map_or(NOBODY, |first| first.0);
            prop_assert_eq!(owner, contenders.rank(slot, |_| true).owner);
        }

        #[test]
        fn the_score_rises_with_the_upper_half_of_the_hash(hash: u64, weight in 1_u32..1_000_000) {
            let above = hash.saturating_add(1 << 32);
            prop_assume!(above >> 32 != hash >> 32);
            let score = |hash| f64::from(weight) / -libm::log(fraction(hash));
            prop_assert!(score(above) > score(hash));
            prop_assert!(-libm::log(fraction(hash)) > 1.0 - fraction(hash));
        }
    }

    #[test]
    fn the_shortcut_holds_where_the_logarithm_is_closest_to_its_bound() {
        for steps in 0..1_000_u64 {
            let hash = (u64::from(u32::MAX) - steps) << 32;
            assert!(-libm::log(fraction(hash)) > 1.0 - fraction(hash));
            let below = (u64::from(u32::MAX) - steps - 1) << 32;
            assert!(libm::log(fraction(hash)) > libm::log(fraction(below)));
        }
    }
}
