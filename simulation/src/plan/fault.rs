//! What goes wrong in a simulation, each fault with its own end.
//!
//! Nothing here happens: what a fault does is in `cluster`. Names and shapes are those of the JSON
//! that plans are written in.

use super::{LinkOptions, Millis, NodeNumber};
use serde::{Deserialize, Serialize};

/// A fault and when it begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// Since the simulation began.
    pub at_ms: Millis,
    /// What happens.
    pub fault: Fault,
}

/// Something that goes wrong, with its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The node ends without a word.
    Crash {
        /// Which.
        node: NodeNumber,
        /// Its next start; never, when there is none.
        restart: Option<Restart>,
    },
    /// SIGTERM.
    Drain {
        /// Which.
        node: NodeNumber,
        /// Its next start, counted from when it ended.
        restart: Option<Restart>,
    },
    /// A spare node starts.
    Join {
        /// Which.
        node: NodeNumber,
    },
    /// SIGSTOP, then SIGCONT.
    Pause {
        /// Which.
        node: NodeNumber,
        /// For how long.
        for_ms: Millis,
        /// Whether its clocks show it, so that it can notice.
        seen: Seen,
    },
    /// The node gets one turn of so many.
    Slow {
        /// Which.
        node: NodeNumber,
        /// For how long.
        for_ms: Millis,
        /// One turn in how many lock steps.
        turn_of: u32,
    },
    /// Its wall clock jumps.
    ClockStep {
        /// Which.
        node: NodeNumber,
        /// By how much, backwards when negative.
        by_ms: i64,
    },
    /// Its wall clock runs fast or slow from now on.
    ClockSkew {
        /// Which.
        node: NodeNumber,
        /// By how many millionths.
        ppm: i64,
    },
    /// Nodes on one side and all others do not hear each other.
    Partition {
        /// One side.
        side: Vec<NodeNumber>,
        /// For how long.
        for_ms: Millis,
        /// Which way is cut.
        cut: Cut,
        /// 0 for one cut; otherwise it comes and goes with this period.
        flapping_ms: Millis,
    },
    /// Two nodes do not hear each other, while gossip passes by way of the others.
    PairCut {
        /// Both.
        pair: (NodeNumber, NodeNumber),
        /// For how long.
        for_ms: Millis,
    },
    /// All links are as bad as this.
    Links {
        /// For how long.
        for_ms: Millis,
        /// How bad.
        link: LinkOptions,
    },
    /// The sink of every node, or of one, behaves badly.
    Sink {
        /// Which node's; all, when there is none.
        node: Option<NodeNumber>,
        /// For how long.
        for_ms: Millis,
        /// What it does.
        mood: Mood,
    },
    /// Nothing can be written to the node's disk.
    DiskFull {
        /// Which.
        node: NodeNumber,
        /// For how long.
        for_ms: Millis,
    },
    /// A node of this number is started beside the others with settings that must agree and do not.
    Disagree {
        /// A spare node.
        node: NodeNumber,
    },
}

impl Fault {
    /// What it is called in counts.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Crash { restart: None, .. } => "crash for good",
            Self::Crash { .. } => "crash and restart",
            Self::Drain { restart: None, .. } => "drain for good",
            Self::Drain { .. } => "drain and restart",
            Self::Join { .. } => "join",
            Self::Pause { .. } => "pause",
            Self::Slow { .. } => "slow node",
            Self::ClockStep { .. } => "clock step",
            Self::ClockSkew { .. } => "clock skew",
            Self::Partition { .. } => "partition",
            Self::PairCut { .. } => "cut pair",
            Self::Links { .. } => "bad links",
            Self::Sink { .. } => "bad sink",
            Self::DiskFull { .. } => "full disk",
            Self::Disagree { .. } => "differing settings",
        }
    }
}

/// How a node starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// After its end.
    pub after_ms: Millis,
    /// What its clock and record make of its generation.
    pub generation: Generation,
    /// Whether it finds its data directory.
    pub data: Data,
}

/// What becomes of a node's generation at a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generation {
    /// A newer one, as it should be.
    New,
    /// The same as before: the record is lost, and the clock shows the time of the last start.
    Same,
    /// An older one: the record is lost, and the clock went back further.
    Older,
}

/// What becomes of a data directory at a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// It is there.
    Kept,
    /// It is empty.
    Lost,
}

/// Whether a node's clocks show that it stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// They jump.
    Jump,
    /// They stood still too, as in a suspended virtual machine.
    StoodStill,
}

/// Which way a partition cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Nothing passes.
    Both,
    /// Nothing leaves the side.
    Out,
    /// Nothing reaches the side.
    In,
}

/// How a sink behaves; shares are of attempts, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mood {
    /// It takes everything, after a while.
    Slow {
        /// How long it takes.
        for_ms: Millis,
    },
    /// It answers "not now" to a share of attempts.
    Failing {
        /// Which share.
        share: f64,
    },
    /// It keeps a share of attempts and says that it did not.
    Lying {
        /// Which share.
        share: f64,
    },
    /// It keeps a share of attempts, and its answer is lost.
    Mute {
        /// Which share.
        share: f64,
    },
    /// It never answers, and keeps nothing.
    Dead,
    /// It refuses a share of attempts for good.
    Refusing {
        /// Which share.
        share: f64,
    },
}
