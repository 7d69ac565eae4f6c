//! The random numbers of the simulated world.
//!
//! One stream for each thing that draws, so that a knob turned in one place does not shift what
//! happens in another. The generator is written out here because the same seed must give the same
//! run in every release: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", 2014).

use std::ops::Range;

/// A stream of random numbers; a clone goes on alike.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The stream for one purpose of one seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let state = purpose.bytes().fold(seed, |state, byte| mix(state ^ u64::from(byte)));
        Self { state }
    }

    /// Any word.
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// From 0 to 1, and never 1.
    pub fn share(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Less than `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something with `len` entries; 0 when there is none.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// From a range, which must not be empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// True in this share of all calls.
    pub fn chance(&mut self, share: f64) -> bool {
        self.share() < share
    }
}

/// A word that looks random, the same for the same word.
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_differ_by_purpose_and_repeat_themselves() {
        let words = |purpose| {
            let mut dice = Dice::new(7, purpose);
            [dice.word(), dice.word()]
        };
        assert_eq!(words("links"), words("links"));
        assert_ne!(words("links"), words("sinks"));
    }

    #[test]
    fn numbers_stay_in_their_bounds() {
        let mut dice = Dice::new(7, "bounds");
        for _ in 0..10_000 {
            assert!(dice.share() < 1.0);
            assert!(dice.below(3) < 3);
            assert!((5..9).contains(&dice.within(5..9)));
        }
        assert_eq!(dice.below(0), 0);
    }
}
