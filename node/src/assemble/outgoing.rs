//! What the effects of one turn of a shard say to sinks and to other nodes.
//!
//! Pure, so that a node's shell and an explorer of the protocol share it. Offers to one member
//! travel together: each frame has at most [`NAMES_BYTES_MAX`] of names and a frame's size of
//! spans, and every trace in it keeps the version that it had, to be given back with the reply. How
//! much may go to whom was decided by the shard.

use crate::frame::{self, DoneTrace, Hold, HoldReply, HoldTrace, Origin, Sender};
use crate::shard::{Effect, Replier, Reply, Shard, SinkSet};
use crate::sink::{Attempt, Room, Withdrawn, encode};
use crate::spans::TraceId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;
use tracemesh_membership::NodeId;

/// Bytes of names in one Hold that is about many traces.
pub(crate) const NAMES_BYTES_MAX: usize = 256 << 10;

/// Bytes of spans beside the names of one trace, however many these are.
const SPANS_BYTES_MIN: usize = 64 << 10;

/// A Hold for another holder: what is known of some traces, and spans of them.
#[derive(Clone, Debug)]
pub struct Placing {
    /// The other holder.
    pub target: NodeId,
    /// The frame.
    pub hold: Hold,
    /// The traces that it is about, each with its version then.
    pub asked: Vec<(TraceId, u32)>,
    /// What it counts in the target's allowance.
    pub bytes: usize,
}

/// A try of an attempt for some sinks.
#[derive(Debug)]
pub struct Export {
    /// The spans.
    pub attempt: Arc<Attempt>,
    /// Which try.
    pub number: u32,
    /// Where they go.
    pub sinks: SinkSet,
    /// Whether it should not begin any more.
    pub withdrawn: Withdrawn,
}

/// The effects of a turn, by where they go.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Attempts for sinks.
    pub exports: Vec<Export>,
    /// Attempts for the dead-letter file, with their numbers and why.
    pub dead_letters: Vec<(Arc<Attempt>, u32, &'static str)>,
    /// What became done, by who is to hear of it.
    pub done: BTreeMap<NodeId, Vec<DoneTrace>>,
    /// Spans that go to other holders as bytes.
    pub given_spans: u64,
    /// What other holders are told, asked and given.
    pub holds: Vec<Placing>,
}

/// What one member is told of one trace.
struct Offer {
    trace: HoldTrace,
    spans: Option<Arc<Attempt>>,
    version: u32,
    bytes: usize,
}

impl Offer {
    /// What is said besides spans.
    fn named_bytes(&self) -> usize {
        self.bytes - self.spans.as_ref().map_or(0, |spans| spans.bytes)
    }
}

impl Outgoing {
    /// Sorts the effects of a turn of a node that is `sender`.
    pub fn new(effects: Vec<Effect>, sender: Sender) -> Self {
        let mut outgoing = Self::default();
        let mut offers: BTreeMap<NodeId, Vec<Offer>> = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Export { attempt, number, sinks, withdrawn } => {
                    outgoing.exports.push(Export { attempt, number, sinks, withdrawn });
                }
                Effect::DeadLetter { attempt, number, why } => {
                    outgoing.dead_letters.push((attempt, number, why));
                }
                Effect::Done { target, done } => {
                    outgoing.done.entry(target).or_default().push(done);
                }
                Effect::Offer { target, trace, spans, version, bytes } => {
                    let given = spans.as_ref().map_or(0, |spans| spans.span_count);
                    outgoing.given_spans += u64::from(given);
                    let spans = spans.map(Arc::from);
                    let offer = Offer { trace: *trace, spans, version, bytes };
                    offers.entry(target).or_default().push(offer);
                }
            }
        }
        for (target, offers) in offers {
            for frame in frames(offers) {
                outgoing.tell(&target, frame, sender);
            }
        }
        outgoing
    }

    /// A trace whose spans do not fit into one frame is answered about by none of them: whether all
    /// arrived is found out by the next offer.
    fn tell(&mut self, target: &NodeId, offers: Vec<Offer>, sender: Sender) {
        let asked =
            |offer: &Offer| Some((frame::trace_id(&offer.trace.trace_id).ok()?, offer.version));
        let mut asked: Vec<_> = offers.iter().filter_map(asked).collect();
        let mut bytes = offers.iter().map(|offer| offer.bytes).sum();
        let holds = holds(offers);
        if holds.len() > 1 {
            asked.clear();
        }
        for hold in holds {
            let hold = Hold { sender, ..hold };
            let (asked, bytes) = (std::mem::take(&mut asked), std::mem::take(&mut bytes));
            self.holds.push(Placing { target: target.clone(), hold, asked, bytes });
        }
    }
}

/// The frames of some offers: one, or several where the spans of one trace do not fit into one. The
/// last one names all, and no frame is larger than one of spans alone.
fn holds(offers: Vec<Offer>) -> Vec<Hold> {
    let spans: Vec<_> = offers.iter().filter_map(|offer| offer.spans.clone()).collect();
    let named: usize = offers.iter().map(Offer::named_bytes).sum();
    let spans_bytes_max = frame::FRAME_SPANS_BYTES_MAX.saturating_sub(named);
    let mut requests = encode(&spans, spans_bytes_max.max(SPANS_BYTES_MIN));
    let due_in_ms = offers.iter().map(|offer| offer.trace.due_in_ms).max().unwrap_or(0);
    let hold = Hold { origin: Origin::Placing.into(), due_in_ms, ..Hold::default() };
    // A span that is nearly as large as a frame leaves no room for the names.
    let has_room = |request: &mut Bytes| request.len() + named <= frame::FRAME_SPANS_BYTES_MAX;
    let request = requests.pop_if(has_room).unwrap_or_default();
    let traces = offers.into_iter().map(|offer| offer.trace).collect();
    let last = Hold { request, traces, ..hold.clone() };
    requests.into_iter().map(|request| Hold { request, ..hold.clone() }).chain([last]).collect()
}

/// The frames of all that a node holds, one after the other, for its spool.
pub fn spooled(held: Vec<(HoldTrace, Attempt)>) -> impl Iterator<Item = Hold> {
    let offers = held.into_iter().map(|(trace, spans)| {
        let bytes = spans.bytes + trace.bytes();
        Offer { trace, spans: Some(Arc::new(spans)), version: 0, bytes }
    });
    frames(offers.collect()).into_iter().flat_map(holds)
}

/// Offers by frame, in their order.
fn frames(offers: Vec<Offer>) -> Vec<Vec<Offer>> {
    let spans_bytes_max = frame::FRAME_SPANS_BYTES_MAX - NAMES_BYTES_MAX;
    let mut frames: Vec<Vec<Offer>> = Vec::new();
    let (mut names, mut room) = (0, Room::new(spans_bytes_max));
    for offer in offers {
        let named = offer.named_bytes();
        let fits = offer.spans.as_ref().is_none_or(|spans| room.take(spans));
        if frames.is_empty() || !fits || names + named > NAMES_BYTES_MAX {
            frames.push(Vec::new());
            (names, room) = (0, Room::new(spans_bytes_max));
            if let Some(spans) = &offer.spans {
                room.take(spans);
            }
        }
        names += named;
        if let Some(frame) = frames.last_mut() {
            frame.push(offer);
        }
    }
    frames
}

/// Tells a shard, one of so many, what another holder said to a [`Placing`].
pub fn on_reply(
    shard: &mut Shard,
    shard_count: usize,
    now: Instant,
    from: &NodeId,
    asked: &[(TraceId, u32)],
    reply: &HoldReply,
) {
    if reply.grant > 0 {
        shard.on_grant(from, reply.grant / shard_count.max(1) as u64);
    }
    if reply.full {
        return;
    }
    let (incarnation, view_hash) = (reply.sender.incarnation(), reply.sender.view_hash);
    let replier = Replier { id: from, incarnation, view_hash };
    let said: BTreeMap<&[u8], _> =
        reply.traces.iter().map(|said| (said.trace_id.as_ref(), said)).collect();
    for &(trace_id, version) in asked {
        let said = Reply::new(trace_id, said.get(&trace_id.0[..]).copied());
        shard.on_reply(now, replier, version, &said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::{attempt, resource, scope, spans};
    use prost::Message;

    #[test]
    fn names_beside_a_span_as_large_as_a_frame_have_a_frame_of_their_own() {
        /// What transport carries at most.
        const CARRIED: usize = (4 << 20) + (64 << 10);
        for (padding, frames) in [(1_000, 1), (frame::FRAME_SPANS_BYTES_MAX - 1_000, 2)] {
            let chunk = (scope(&resource(0), 0), spans(1, 1, 1, padding));
            let spans = attempt(1, vec![chunk]);
            let names = (0..20_000).map(|name| name << 2).collect();
            let trace = HoldTrace { names, ..HoldTrace::default() };
            let bytes = spans.bytes + trace.bytes();
            let holds = holds(vec![Offer { trace, spans: Some(spans), version: 0, bytes }]);
            assert_eq!(holds.len(), frames);
            assert!(holds.iter().all(|hold| hold.encoded_len() <= CARRIED));
            assert_eq!(holds.iter().map(|hold| hold.traces.len()).sum::<usize>(), 1);
        }
    }
}
