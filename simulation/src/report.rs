//! What one simulation came to, as a child process tells its parent and a command tells people.

use crate::check::{self, Verdict};
use crate::cluster::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The end of a simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Nodes of its cluster at the start.
    pub nodes: usize,
    /// Virtual time that it took.
    pub virtual_ms: u64,
    /// Hash over all events, in hexadecimal; the same for the same plan and code.
    pub hash: String,
    /// Number of events.
    pub events: u64,
    /// Faults that began, by class.
    pub faults: BTreeMap<String, u64>,
    /// What the checks say.
    pub verdict: Verdict,
    /// What was not finished at the end, in words.
    pub pending: Vec<String>,
}

impl Report {
    /// Judges what came of a simulation.
    pub fn new(outcome: &Outcome) -> Self {
        let Outcome { history, hash } = outcome;
        let mut faults = BTreeMap::new();
        for timed in &history.plan.faults {
            if timed.at_ms <= history.ended_at {
                *faults.entry(timed.fault.class().to_owned()).or_default() += 1;
            }
        }
        Self {
            seed: history.plan.seed,
            nodes: history.plan.nodes,
            virtual_ms: history.ended_at.0,
            hash: format!("{:016x}", hash.0),
            events: hash.1,
            faults,
            verdict: check::check(history),
            pending: check::pending(history),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, nodes, hash, events, verdict, .. } = self;
        let seconds = self.virtual_ms as f64 / 1000.0;
        let totals = verdict.totals;
        writeln!(f, "seed {seed}: {nodes} nodes, {seconds:.1} virtual s, {events} events, {hash}")?;
        writeln!(
            f,
            "spans: offered {}, acknowledged {}, exported {}, refused for good {}, held {}, \
             lost {}, twice {}; traces: {}, in parts {}",
            totals.offered,
            totals.acknowledged,
            totals.exported,
            totals.refused,
            totals.held,
            totals.lost,
            totals.twice,
            totals.traces,
            totals.in_parts
        )?;
        list(f, "faults", &self.faults)?;
        let licensed = verdict.licensed.iter().map(|(name, count)| (name.to_string(), *count));
        list(f, "licensed exceptions (traces)", &licensed.collect())?;
        for line in &self.pending {
            writeln!(f, "pending: {line}")?;
        }
        for finding in &verdict.findings {
            writeln!(f, "\n{finding}")?;
        }
        f.write_str(if verdict.is_green() { "all checks hold" } else { "CHECKS FAILED" })
    }
}

/// One line of names with their counts; none when there are none.
pub fn list(f: &mut impl fmt::Write, title: &str, counts: &BTreeMap<String, u64>) -> fmt::Result {
    let counted = counts.iter().filter(|(_, count)| **count > 0);
    let counted: Vec<_> = counted.map(|(name, count)| format!("{name} {count}")).collect();
    if counted.is_empty() {
        return Ok(());
    }
    writeln!(f, "{title}: {}", counted.join(", "))
}
