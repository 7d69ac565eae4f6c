//! What a node says about itself at `/api/v1/status`.
//!
//! The console writes this document and `tracemesh status` reads it; both use these structs, so the
//! two cannot disagree. A document is a snapshot: it owns nothing, and its size is bounded by the
//! number of members. Fields are only ever added, so a newer node can be asked by an older command.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use tracemesh_membership::Placement;

/// One node's answer, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Id of the node that answers.
    pub id: String,
    /// Name of its cluster.
    pub cluster: String,
    /// When its process started, in seconds since 1970; its counters are as old.
    #[serde(default)]
    pub started_unix_seconds: u64,
    /// Its own state.
    pub state: State,
    /// Whether it accepts spans.
    pub ready: bool,
    /// What is impaired: `alone`, `unreplicated`, `full`; empty when all is well.
    pub degraded: Vec<String>,
    /// The view that it acts by.
    pub view: View,
    /// The members of that view and those joining or leaving, sorted by id.
    pub members: Vec<Member>,
    /// Spans that it holds, by role.
    pub spans_held: SpansHeld,
    /// Traces of which it holds spans, in whatever role.
    pub traces_held: u64,
    /// Traces, remembered ones too, of which another holder may lack something.
    #[serde(default)]
    pub traces_unplaced: u64,
    /// Whether nothing is left to hand over for its view.
    #[serde(default)]
    pub settled: bool,
    /// Bytes of the budget in use.
    pub memory_bytes: u64,
    /// The budget, in bytes.
    pub memory_budget_bytes: u64,
    /// Counters since the start, by their name in `/metrics` without the prefix; those that have
    /// labels as the sum over all of them.
    pub counters: BTreeMap<String, u64>,
}

/// Which members a node believes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Hash of the view in hexadecimal; equal on nodes that agree.
    pub hash: String,
    /// Number of members in it.
    pub members: u64,
}

impl View {
    /// What is told of the view of a placement.
    pub fn of(placement: &Placement) -> Self {
        let view = placement.view();
        Self { hash: format!("{:016x}", view.hash()), members: view.members().len() as u64 }
    }
}

/// One member, as the node that answers sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: State,
    /// Which start of the process it is.
    pub generation: u64,
    /// How often that process stood still; with `generation`, the incarnation.
    pub epoch: u64,
    /// `host:port` of its mesh listener.
    pub mesh_address: String,
    /// `host:port` of its console; empty when it told none.
    #[serde(default)]
    pub console_address: String,
    /// Rack or site; empty when none is named.
    pub zone: String,
    /// Its weight in the placement.
    pub weight: f64,
    /// Slots whose owner it is.
    pub owned_slots: u32,
    /// Slots whose replica it is.
    pub replica_slots: u32,
    /// Share of its memory budget in use, 0 to 100.
    pub fill_percent: u8,
}

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Bound, but holds no slots and accepts nothing yet.
    Joining,
    /// Holds slots.
    Active,
    /// Hands over what it holds and goes.
    Leaving,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Leaving => "leaving",
        })
    }
}

/// Spans held by one node, by role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpansHeld {
    /// As owner of their trace.
    pub owner: u64,
    /// As replica.
    pub replica: u64,
    /// In the place of a silent holder.
    pub stand_in: u64,
}

/// How a node ended, told to whoever waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "snake_case")]
pub enum Ending {
    /// In order, and nothing is held any more.
    Drained,
    /// In order, but not in time.
    Left {
        /// Spans that were still held.
        span_count: u64,
    },
    /// Because it could not go on.
    Failed,
}
