//! The judgement over a swarm: what failed in which simulation, and what was seen in none.
//!
//! The invariant: a swarm is red if and only if one of its simulations is; there is nothing that
//! may fail. Bounded by the kinds of things that are counted, and by the seeds that failed.

use super::{Invariant, Licence, Verdict, sometimes};
use std::collections::BTreeMap;

/// The verdicts of many simulations together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swarm {
    /// Simulations.
    pub runs: u64,
    /// Seeds in which something failed, with what.
    pub red: BTreeMap<u64, Vec<Invariant>>,
    /// Traces that each licence excused.
    pub licensed: BTreeMap<Licence, u64>,
    /// Simulations in which each path of recovery was taken.
    pub sometimes: BTreeMap<String, u64>,
}

impl Swarm {
    /// Adds a verdict.
    pub fn add(&mut self, verdict: &Verdict) {
        self.runs += 1;
        if !verdict.is_green() {
            self.red.insert(verdict.seed, verdict.violated.keys().copied().collect());
        }
        for (licence, count) in &verdict.licensed {
            *self.licensed.entry(*licence).or_default() += count;
        }
        for (path, count) in &verdict.sometimes {
            *self.sometimes.entry(path.clone()).or_default() += u64::from(*count > 0);
        }
    }

    /// Why the swarm is red, a sentence each; nothing when it is green.
    pub fn complaints(&self) -> Vec<String> {
        let failed = self.red.iter().map(|(seed, invariants)| {
            let names: Vec<_> = invariants.iter().map(|invariant| invariant.name()).collect();
            format!("seed {seed}: {}", names.join(", "))
        });
        failed.collect()
    }

    /// Paths of recovery that no simulation took.
    pub fn never(&self) -> Vec<&'static str> {
        let paths = sometimes::PATHS.iter().copied();
        paths.filter(|path| self.sometimes.get(*path).is_none_or(|count| *count == 0)).collect()
    }
}
