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

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::view::{NodeId, View};

const NODE_KEY: [u8; 16] = *b"tracemesh/node/1";

/// Index of a member in [`View::members`].
pub type MemberIndex = u16;

/// No member at all; a view has fewer.
pub(crate) const NOBODY: MemberIndex = MemberIndex::MAX;

/// What the ranking needs to know of the members, by their index in the view.
#[derive(Debug, PartialEq)]
pub(crate) struct Contenders {
    node_keys: Vec<u64>,
    weights: Vec<f64>,
    zones: Vec<u16>,
    equal_weights: bool,
    one_zone: bool,
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
        let mut names: Vec<_> = members.iter().map(|member| &member.zone).collect();
        names.sort_unstable();
        names.dedup();
        let zone_of = |zone| {
            names
                .binary_search(&zone)
                .map_or(NOBODY, |number| number as u16)
        };
        Self {
            node_keys: members.iter().map(|member| node_key(&member.id)).collect(),
            weights: members
                .iter()
                .map(|member| f64::from(member.weight.thousandths()))
                .collect(),
            zones: members.iter().map(|member| zone_of(&member.zone)).collect(),
            equal_weights: members
                .iter()
                .all(|member| member.weight == members[0].weight),
            one_zone: names.len() <= 1,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.node_keys.len()
    }

    /// The owner has the highest score; the replica the highest of those in another zone than the
    /// owner's or, where there is none, the second highest.
    pub(crate) fn rank(&self, slot: u16, candidates: impl Iterator<Item = MemberIndex>) -> Ranked {
        if self.equal_weights {
            self.rank_by::<true>(slot, candidates)
        } else {
            self.rank_by::<false>(slot, candidates)
        }
    }

    /// `EQUAL`: the weights are equal, and the hash alone decides.
    fn rank_by<const EQUAL: bool>(
        &self,
        slot: u16,
        candidates: impl Iterator<Item = MemberIndex>,
    ) -> Ranked {
        let slot_key = finalize((u64::from(slot) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut podium = Podium::EMPTY;
        for index in candidates {
            let member = usize::from(index);
            let hash = finalize(slot_key ^ self.node_keys[member]);
            let floor = if self.one_zone {
                &podium.second
            } else {
                &podium.elsewhere
            };
            let score = if EQUAL {
                if hash < floor.hash {
                    continue;
                }
                0.0
            } else {
                let weight = self.weights[member];
                let fraction = fraction(hash);
                // -ln(u) is at least 1 - u, so this one cannot reach the floor: no logarithm. Where
                // the two are closest, at u = 1 - 2^-33, they are 2^-34 apart, far above rounding.
                if weight < floor.score * (1.0 - fraction) {
                    continue;
                }
                weight / -libm::log(fraction)
            };
            podium.offer(&self.zones, Contender { score, hash, index });
        }
        podium.ranked()
    }
}

#[derive(Clone, Copy)]
struct Contender {
    score: f64,
    hash: u64,
    index: MemberIndex,
}

impl Contender {
    const NONE: Self = Self {
        score: -1.0,
        hash: 0,
        index: NOBODY,
    };

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

/// The best of those offered so far, in whatever order.
struct Podium {
    first: Contender,
    second: Contender,
    /// The best of those in another zone than that of `first`; never better than `second`.
    elsewhere: Contender,
}

impl Podium {
    const EMPTY: Self = Self {
        first: Contender::NONE,
        second: Contender::NONE,
        elsewhere: Contender::NONE,
    };

    fn offer(&mut self, zones: &[u16], contender: Contender) {
        let zone = |of: &Contender| zones.get(usize::from(of.index));
        let other_zone = zone(&contender) != zone(&self.first);
        if contender.beats(&self.first) {
            if other_zone {
                self.elsewhere = self.first;
            }
            self.second = self.first;
            self.first = contender;
            return;
        }
        if other_zone && contender.beats(&self.elsewhere) {
            self.elsewhere = contender;
        }
        if contender.beats(&self.second) {
            self.second = contender;
        }
    }

    fn ranked(&self) -> Ranked {
        let replica = if self.elsewhere.index == NOBODY {
            self.second.index
        } else {
            self.elsewhere.index
        };
        Ranked {
            owner: self.first.index,
            replica,
        }
    }
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
    use proptest::prelude::*;

    use super::*;

    /// Section by section what the module says, without a shortcut.
    fn by_the_book(contenders: &Contenders, slot: u16, candidates: &[u16]) -> Ranked {
        let slot_key = finalize((u64::from(slot) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut all: Vec<_> = candidates
            .iter()
            .map(|&index| {
                let hash = finalize(slot_key ^ contenders.node_keys[usize::from(index)]);
                let weight = contenders.weights[usize::from(index)];
                (
                    weight / -libm::log(fraction(hash)),
                    hash,
                    std::cmp::Reverse(index),
                )
            })
            .collect();
        all.sort_by(|a, b| b.partial_cmp(a).unwrap());
        let order: Vec<u16> = all.into_iter().map(|(_, _, index)| index.0).collect();
        let Some(&owner) = order.first() else {
            return Ranked {
                owner: NOBODY,
                replica: NOBODY,
            };
        };
        let zone = |index: u16| contenders.zones[usize::from(index)];
        let elsewhere = order.iter().find(|index| zone(**index) != zone(owner));
        let replica = elsewhere.or(order.get(1)).copied().unwrap_or(NOBODY);
        Ranked { owner, replica }
    }

    fn contenders() -> impl Strategy<Value = Contenders> {
        let weight = prop_oneof![Just(1_000_u32), Just(2_000), 1_u32..1_000_000];
        let member = (any::<u64>(), weight, 0_u16..4);
        (
            prop::collection::vec(member, 0..12),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(members, equal_weights, one_zone)| Contenders {
                node_keys: members.iter().map(|member| member.0).collect(),
                weights: members
                    .iter()
                    .map(|member| {
                        if equal_weights {
                            1_000.0
                        } else {
                            f64::from(member.1)
                        }
                    })
                    .collect(),
                zones: members
                    .iter()
                    .map(|member| if one_zone { 0 } else { member.2 })
                    .collect(),
                equal_weights,
                one_zone,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_shortcuts_change_nothing(contenders in contenders(), slot: u16, admitted: u16) {
            let candidates: Vec<u16> = (0..contenders.len() as u16)
                .filter(|index| admitted >> index & 1 == 1)
                .collect();
            let expected = by_the_book(&contenders, slot, &candidates);
            prop_assert_eq!(contenders.rank(slot, candidates.iter().copied()), expected);
            prop_assert_eq!(contenders.rank(slot, candidates.iter().rev().copied()), expected);
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
