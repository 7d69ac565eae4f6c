//! What the effects of one turn of a shard say to sinks and to other nodes.
//!
//! Pure, so that a node's shell and an explorer of the protocol share it. Questions to one owner
//! travel together, each frame at most [`QUESTIONS_BYTES_MAX`] of names; every trace asked about
//! keeps the version that it had, to be given back with the reply. Spans that an owner wants are
//! given up to a bound ([`GIFTS_BYTES_MAX`]) and left out beyond it: they are still held here, and
//! wanted again when the owner is asked the next time.

use crate::frame::{self, DoneTrace, Hold, HoldReply, HoldTrace, Origin, Sender, milliseconds};
use crate::shard::{Effect, Reply, Shard, SinkSet};
use crate::sink::{Attempt, encode};
use crate::spans::TraceId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracemesh_membership::NodeId;

/// Bytes of names in one Hold that asks an owner about many traces.
const QUESTIONS_BYTES_MAX: usize = 256 << 10;

/// Bytes of spans on their way from one shard to one owner that wanted them: a frame. They are
/// copies, and nobody's memory budget counts them; so there must not be many.
const GIFTS_BYTES_MAX: usize = frame::FRAME_SPANS_BYTES_MAX;

/// How many bytes of spans are on their way to each owner that wanted them.
#[derive(Debug, Default)]
pub struct Gifts(BTreeMap<NodeId, usize>);

impl Gifts {
    /// Whether so many more may be sent; they count as sent then. One gift always may.
    fn send(&mut self, target: &NodeId, bytes: usize) -> bool {
        let under_way = self.0.get(target).copied().unwrap_or(0);
        let may = under_way == 0 || under_way + bytes <= GIFTS_BYTES_MAX;
        if may {
            self.0.insert(target.clone(), under_way + bytes);
        }
        may
    }

    /// A gift arrived, or was lost.
    pub fn ended(&mut self, target: &NodeId, bytes: usize) {
        let Some(under_way) = self.0.get_mut(target) else { return };
        *under_way = under_way.saturating_sub(bytes);
        if *under_way == 0 {
            self.0.remove(target);
        }
    }
}

/// A Hold for an owner: a question, or spans that it wanted.
#[derive(Clone, Debug)]
pub struct Placing {
    /// The owner.
    pub target: NodeId,
    /// The frame.
    pub hold: Hold,
    /// The traces asked about, each with its version then.
    pub asked: Vec<(TraceId, u32)>,
    /// What it counts in [`Gifts`].
    pub given_bytes: usize,
}

/// The effects of a turn, by where they go.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Attempts for sinks, with their numbers.
    pub exports: Vec<(Arc<Attempt>, u32, SinkSet)>,
    /// Attempts for the dead-letter file, with their numbers.
    pub dead_letters: Vec<(Arc<Attempt>, u32)>,
    /// What became done, by who is to hear of it.
    pub done: BTreeMap<NodeId, Vec<DoneTrace>>,
    /// What owners are given, then what they are asked.
    pub holds: Vec<Placing>,
}

impl Outgoing {
    /// Sorts the effects of a turn of a node that is `sender`.
    pub fn new(effects: Vec<Effect>, sender: Sender, gifts: &mut Gifts) -> Self {
        let mut outgoing = Self::default();
        let mut asks: BTreeMap<NodeId, Vec<(HoldTrace, u32)>> = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Export { attempt, number, sinks } => {
                    outgoing.exports.push((attempt, number, sinks));
                }
                Effect::DeadLetter { attempt, number } => {
                    outgoing.dead_letters.push((attempt, number));
                }
                Effect::Done { target, done } => {
                    outgoing.done.entry(target).or_default().push(done);
                }
                Effect::Ask { target, trace, version } => {
                    asks.entry(target).or_default().push((trace, version));
                }
                Effect::Give { target, spans, due_in } => {
                    if gifts.send(&target, spans.bytes) {
                        outgoing.give(&target, spans, due_in, sender);
                    }
                }
            }
        }
        for (target, traces) in asks {
            outgoing.ask(&target, traces, sender);
        }
        outgoing
    }

    fn ask(&mut self, target: &NodeId, traces: Vec<(HoldTrace, u32)>, sender: Sender) {
        let mut bytes = 0;
        let mut frames: Vec<Vec<(HoldTrace, u32)>> = Vec::new();
        for (trace, version) in traces {
            let named = 40 + 8 * (trace.names.len() + trace.done.len());
            if frames.is_empty() || bytes + named > QUESTIONS_BYTES_MAX {
                frames.push(Vec::new());
                bytes = 0;
            }
            bytes += named;
            if let Some(frame) = frames.last_mut() {
                frame.push((trace, version));
            }
        }
        for frame in frames {
            let asked = frame.iter().filter_map(|(trace, version)| {
                Some((frame::trace_id(&trace.trace_id).ok()?, *version))
            });
            let asked = asked.collect();
            let hold = Hold {
                sender,
                origin: Origin::Placing.into(),
                traces: frame.into_iter().map(|(trace, _)| trace).collect(),
                ..Default::default()
            };
            self.holds.push(Placing { target: target.clone(), hold, asked, given_bytes: 0 });
        }
    }

    fn give(&mut self, target: &NodeId, spans: Attempt, due_in: Duration, sender: Sender) {
        // A trace of several frames ends, as a gift, with its first.
        let mut given_bytes = spans.bytes;
        for request in encode(&[Arc::new(spans)], frame::FRAME_SPANS_BYTES_MAX) {
            let hold = Hold {
                sender,
                origin: Origin::Placing.into(),
                due_in_ms: milliseconds(due_in),
                request,
                ..Default::default()
            };
            let (target, asked) = (target.clone(), Vec::new());
            let given_bytes = std::mem::take(&mut given_bytes);
            self.holds.push(Placing { target, hold, asked, given_bytes });
        }
    }
}

/// Tells a shard what an owner said to a [`Placing`].
pub fn on_reply(
    shard: &mut Shard,
    now: Instant,
    from: &NodeId,
    asked: &[(TraceId, u32)],
    reply: &HoldReply,
) {
    if reply.full {
        return;
    }
    let sender = (reply.sender.view_hash, reply.sender.incarnation());
    let said: BTreeMap<&[u8], _> =
        reply.traces.iter().map(|said| (said.trace_id.as_ref(), said)).collect();
    for &(trace_id, version) in asked {
        let said = Reply::new(trace_id, said.get(&trace_id.0[..]).copied());
        shard.on_reply(now, from, sender, version, &said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gifts_to_an_owner_are_bounded_and_one_always_may_go() {
        let (mut gifts, [one, two]) = (Gifts::default(), ["one", "two"].map(NodeId::from));
        assert!(gifts.send(&one, 2 * GIFTS_BYTES_MAX));
        assert!(!gifts.send(&one, 1) && gifts.send(&two, 1));
        gifts.ended(&one, 2 * GIFTS_BYTES_MAX);
        assert!(gifts.send(&one, GIFTS_BYTES_MAX - 1) && gifts.send(&one, 1));
        assert!(!gifts.send(&one, 1));
    }
}
