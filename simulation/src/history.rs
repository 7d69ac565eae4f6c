//! What was seen from outside of the nodes in one simulation: what clients sent and were told, what
//! sinks got, when nodes lived, which views they had.
//!
//! Checks read this and nothing else, so they cannot share a mistake with the code that they check.
//! The invariant: entries stand in the order in which things happened, and an entry is never
//! changed or taken back. It is bounded by the plan: so many requests, faults and looks at the
//! nodes.

use crate::plan::{Millis, NodeNumber, Plan};
use std::collections::BTreeMap;

/// A request of a client, by number; sent again it keeps its number.
pub type RequestNumber = u32;

/// A span, by the numbers of its trace and within it; 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanNumber {
    /// The trace.
    pub trace: u32,
    /// The span within it.
    pub span: u16,
}

/// Everything that was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// What was meant to happen.
    pub plan: Plan,
    /// The secret by which trace ids become slots.
    pub hash_key: [u8; 16],
    /// What did, in order.
    pub entries: Vec<Entry>,
    /// When the last fault ended and the liveness phase began.
    pub healed_at: Millis,
    /// When the simulation ended: everything was finished, or the liveness phase was over.
    pub ended_at: Millis,
    /// The last look at each node that lived at the end.
    pub last_looks: BTreeMap<NodeNumber, Look>,
    /// What each node had counted in its lives before, as [`Look::counters`] has it of the last.
    pub former_counters: BTreeMap<NodeNumber, BTreeMap<String, u64>>,
    /// The most bytes that each node had allocated at once, by the allocator's count, beyond what
    /// it had when it became ready; over all its lives.
    pub memory_peaks: BTreeMap<NodeNumber, u64>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Millis,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A client has a new request.
    Offered {
        /// Its number.
        request: RequestNumber,
        /// What is in it.
        spans: Vec<SpanNumber>,
    },
    /// It sent the request to a node.
    Sent {
        /// Which request.
        request: RequestNumber,
        /// Where to.
        node: NodeNumber,
    },
    /// It was told something.
    Told {
        /// Which request.
        request: RequestNumber,
        /// By whom.
        node: NodeNumber,
        /// What.
        answer: Answer,
        /// The hash of the node's view when it answered.
        view: Option<u64>,
    },
    /// It gave the request up.
    GaveUp {
        /// Which.
        request: RequestNumber,
    },
    /// A sink was given spans of one trace, and answered.
    Export {
        /// The node whose sink it is.
        node: NodeNumber,
        /// The spans, all of one trace.
        spans: Vec<SpanNumber>,
        /// Whether they are marked as late.
        late: bool,
        /// Whether the sink has them now.
        kept: bool,
        /// What it said.
        said: SinkSaid,
        /// When the node hears that, if it still lives.
        heard_at: Millis,
    },
    /// A node began or ended a part of its life.
    Life {
        /// Which.
        node: NodeNumber,
        /// What happened to it.
        event: Life,
    },
    /// A node has another view than before.
    View {
        /// Which.
        node: NodeNumber,
        /// The view.
        view: ViewSeen,
    },
    /// A fault of the plan begins, by its number there.
    FaultBegins(usize),
    /// It ends.
    FaultEnds(usize),
}

/// What a client was told about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every span is held.
    Accepted,
    /// Not now.
    Later,
    /// Never: the bytes are no request. Not what these clients deserve.
    Refused,
    /// The connection broke: the node ended.
    Broken,
    /// Nothing, for as long as the client waits.
    Nothing,
}

/// What a sink said to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkSaid {
    /// It has the spans.
    Acknowledged,
    /// It will never take them; they are in the dead-letter file.
    Refused,
    /// Not now.
    Again,
    /// Nothing that the node could hear.
    Nothing,
}

/// What happened to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Its process began.
    Started,
    /// Its process could not begin, and why.
    Failed(String),
    /// It accepts spans.
    Ready,
    /// It ended without a word.
    Crashed,
    /// It stands still.
    Paused,
    /// It goes on.
    Woken,
    /// It was asked to leave.
    Draining,
    /// Its process ended by itself, with this many spans left when it drained.
    Ended(Ending),
    /// What was on its disk is lost, when it had no process.
    DiskLost,
}

/// How a process ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It drained, and nothing was left.
    Drained,
    /// It drained, and so many spans were left over and spooled.
    Spooled(u64),
    /// It drained, and so many spans were left over that could not be spooled.
    Left(u64),
    /// It must not be a member, and why.
    Refused(String),
    /// A task of it panicked.
    Panicked(String),
}

/// A node's view: who holds slots, as it believes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewSeen {
    /// Its hash.
    pub hash: u64,
    /// The members in it, with generation and epoch.
    pub members: Vec<(NodeNumber, u64, u32)>,
}

/// A look at what a node says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// When.
    pub at: Millis,
    /// Its view.
    pub view: ViewSeen,
    /// Spans held as owner, as replica, as stand-in.
    pub held: [u64; 3],
    /// Traces of which it has not heard that all their holders have what it has.
    pub unplaced: u64,
    /// Whether it has settled in its view: nothing is left to hand over for it.
    pub settled: bool,
    /// Its counters, by their names in `/metrics` without the prefix, labels in braces.
    pub counters: BTreeMap<String, u64>,
}

impl History {
    /// A history in which nothing happened yet.
    pub fn new(plan: Plan, hash_key: [u8; 16]) -> Self {
        Self {
            plan,
            hash_key,
            entries: Vec::new(),
            healed_at: Millis(0),
            ended_at: Millis(0),
            last_looks: BTreeMap::new(),
            former_counters: BTreeMap::new(),
            memory_peaks: BTreeMap::new(),
        }
    }

    /// Adds what happened now.
    pub fn add(&mut self, at: Millis, what: What) {
        self.entries.push(Entry { at, what });
    }
}
