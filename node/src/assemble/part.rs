//! A Hold cut by shard, and the one reply that is made of what the shards say.
//!
//! Pure, so that a node's shell and an explorer of the protocol share it. The invariant: the reply
//! names a view only when every shard that took part knows that view and the node still does;
//! otherwise it names none and confirms nothing.

use crate::cut::Cut;
use crate::frame::{self, FrameError, Hold, HoldReply, HoldTrace, ReplyTrace, Sender};
use crate::shard::{HoldPart, Shard};
use crate::spans::TraceId;
use std::time::Duration;
use tokio::time::Instant;
use tracemesh_membership::{HashKey, Slot};

/// One shard's part of a Hold.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Traces of the frame, by number.
    pub traces: Vec<u32>,
    /// Traces that are named.
    pub named: Vec<(TraceId, HoldTrace)>,
}

impl Part {
    /// Whether it concerns the shard at all.
    pub fn is_empty(&self) -> bool {
        self.traces.is_empty() && self.named.is_empty()
    }

    /// Lets the shard take it in.
    pub fn hold(&self, shard: &mut Shard, now: Instant, cut: &Cut, part: HoldPart) -> PartReply {
        shard.on_hold(now, cut, &self.traces, part);
        let said = |(id, named): &(_, _)| shard.on_names(now, *id, named, part);
        let traces = self.named.iter().filter_map(said).collect();
        PartReply { view_hash: shard.view_hash(), traces }
    }
}

/// What one shard, or all that took part, say to a Hold.
#[derive(Clone, Debug)]
pub struct PartReply {
    /// The view of all of them; 0 when they differ.
    pub view_hash: u64,
    /// What is worth saying of single traces.
    pub traces: Vec<ReplyTrace>,
}

impl PartReply {
    /// What a node with this view says before any shard was asked.
    pub fn new(view_hash: u64) -> Self {
        Self { view_hash, traces: Vec::new() }
    }

    /// Adds what one more shard says.
    pub fn add(&mut self, reply: Self) {
        if reply.view_hash != self.view_hash {
            self.view_hash = 0;
        }
        self.traces.extend(reply.traces);
    }

    /// The reply of the node, which is `sender` by now, and grants so many bytes a second.
    pub fn into_reply(self, mut sender: Sender, grant: u64) -> HoldReply {
        if self.view_hash != sender.view_hash {
            sender.view_hash = 0;
        }
        HoldReply { sender, full: false, traces: self.traces, grant }
    }
}

/// What a Hold says of all its traces (PROTOCOL.md, H1 and H3).
pub fn hold_part(hold: &Hold) -> HoldPart {
    HoldPart {
        origin: hold.origin(),
        marked: hold.marked,
        view_hash: hold.sender.view_hash,
        due_in: Duration::from_millis(u64::from(hold.due_in_ms)),
    }
}

/// The traces that a Hold names.
///
/// # Errors
/// A trace id has not 16 bytes.
pub fn named(traces: Vec<HoldTrace>) -> Result<Vec<(TraceId, HoldTrace)>, FrameError> {
    let named = traces.into_iter().map(|trace| Ok((frame::trace_id(&trace.trace_id)?, trace)));
    named.collect()
}

/// The shard of a slot.
pub fn shard_of(slot: Slot, shard_count: usize) -> usize {
    usize::from(slot.0) % shard_count
}

/// Deals the traces of a Hold to the shards.
pub fn by_shard(
    cut: &Cut,
    traces: impl Iterator<Item = u32>,
    named: Vec<(TraceId, HoldTrace)>,
    hash_key: &HashKey,
    shard_count: usize,
) -> Vec<Part> {
    let mut parts = vec![Part::default(); shard_count];
    for trace in traces {
        parts[shard_of(cut.slots()[trace as usize], shard_count)].traces.push(trace);
    }
    for (id, named) in named {
        parts[shard_of(hash_key.slot(&id.0), shard_count)].named.push((id, named));
    }
    parts
}
