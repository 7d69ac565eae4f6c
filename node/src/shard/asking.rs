//! What a holder hears and asks: what is done, what became of a trace, what others lack (rules A
//! and P3 of PROTOCOL.md).
//!
//! The invariant: asking takes nothing over. Only a confirmation places a trace, and only placing
//! gives up bytes.

use super::trace::{SpanKey, SpanState};
use super::{Shard, to_ms};
use crate::frame::{ReplyTrace, Verdict};
use crate::spans::TraceId;
use tokio::time::Instant;
use tracemesh_membership::{Incarnation, NodeId};

/// Who answered an [`Effect::Offer`](super::Effect::Offer), and by what view.
#[derive(Clone, Copy, Debug)]
pub struct Replier<'a> {
    /// Who.
    pub id: &'a NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its view; 0 confirms nothing.
    pub view_hash: u64,
}

/// The reply of a holder about one trace, parsed.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The trace.
    pub trace_id: TraceId,
    /// What the holder neither holds nor knows as done, in ascending order.
    pub wanted: Vec<SpanKey>,
    /// What it knows as done.
    pub done: Vec<SpanKey>,
    /// The verdict it knows.
    pub verdict: Verdict,
}

impl Reply {
    /// Parses what a frame says; nothing said about a trace means that all of it is held there.
    pub fn new(trace_id: TraceId, said: Option<&ReplyTrace>) -> Self {
        let keys = |names: &[u64]| names.iter().copied().map(SpanKey::new).collect();
        let mut wanted: Vec<_> = said.map_or_else(Vec::new, |said| keys(&said.wanted));
        wanted.sort_unstable();
        Self {
            trace_id,
            wanted,
            done: said.map_or_else(Vec::new, |said| keys(&said.done)),
            verdict: said.map_or(Verdict::None, ReplyTrace::verdict),
        }
    }
}

impl Shard {
    /// Other nodes say that spans became done (PROTOCOL.md, A0).
    pub fn on_done(&mut self, now: Instant, trace_id: TraceId, verdict: Verdict, sum: u64) {
        let now_ms = self.ms(now);
        let Some(index) = self.find(trace_id, now_ms) else { return };
        let Some(trace) = self.table.get(index) else { return };
        let covers_all = trace.sum() == sum;
        self.change(index, now_ms, |trace| {
            trace.verdict = trace.verdict.max(verdict);
            if covers_all {
                trace.turn(SpanState::Held, SpanState::Done);
                trace.turn(SpanState::Sending, SpanState::Done);
                trace.free_done();
            }
        });
        self.after_change(index, now_ms);
    }

    /// What was offered to a member was answered, or was lost; so many bytes are under way no more.
    pub fn on_arrived(&mut self, member: &NodeId, bytes: usize, arrived: bool) {
        if let Some(member) = self.outlook.index_of(member) {
            self.offers.ended(member, bytes, arrived);
        }
    }

    /// A member grants so many bytes of hand-over a second.
    pub fn on_grant(&mut self, member: &NodeId, bytes_per_second: u64) {
        if let Some(member) = self.outlook.index_of(member) {
            self.offers.grant(member, bytes_per_second);
        }
    }

    /// A holder answered an offer or a question about a trace, which had `version` then (P3, A1).
    pub fn on_reply(&mut self, now: Instant, from: Replier<'_>, version: u32, reply: &Reply) {
        let now_ms = self.ms(now);
        let Some(index) = self.find(reply.trace_id, now_ms) else { return };
        let member = self.outlook.index_of(from.id);
        let is_present = |member| from.incarnation == self.outlook.member(member).1;
        let confirms = reply.wanted.is_empty()
            && from.view_hash == self.view_hash()
            && member.is_some_and(is_present)
            && self.table.get(index).is_some_and(|trace| trace.version == version);
        self.change(index, now_ms, |trace| {
            trace.verdict = trace.verdict.max(reply.verdict);
            for &key in &reply.done {
                trace.finish(key);
            }
            trace.free_done();
        });
        match member {
            Some(member) if !reply.wanted.is_empty() => {
                self.give(index, member, now_ms, &reply.wanted);
            }
            Some(member) => self.on_offered(index, member, confirms, now_ms),
            None => {}
        }
        self.after_change(index, now_ms);
    }

    /// A1: asks the owner what became of a trace.
    pub(super) fn ask(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.asked = trace.asked.saturating_add(1);
        let owner = self.outlook.others(trace.slot)[0];
        if let Some(owner) = owner {
            self.send(index, owner, now_ms, |_, _| false);
        }
        let at = self.next_look(index, now_ms);
        self.wake_at(index, at.max(now_ms + to_ms(super::OFFER_AGAIN)));
    }
}
