//! What a holder does that is not the owner: learn what is done, ask, and give what is wanted
//! (rules A of PROTOCOL.md).
//!
//! The invariant: asking takes nothing over. A leaving node forgets a trace only when the present
//! owner, in its present incarnation and under the same view, confirmed that it has everything.

use super::deciding::attempt_of;
use super::trace::{SpanKey, SpanState};
use super::{Effect, Role, Shard};
use crate::frame::{HoldTrace, ReplyTrace, Verdict, milliseconds, trace_id_bytes};
use crate::spans::TraceId;
use std::time::Duration;
use tokio::time::Instant;
use tracemesh_membership::{Incarnation, MemberState, NodeId};

/// The reply of an owner about one trace, parsed.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The trace.
    pub trace_id: TraceId,
    /// What the owner neither holds nor knows as done.
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
        Self {
            trace_id,
            wanted: said.map_or_else(Vec::new, |said| keys(&said.wanted)),
            done: said.map_or_else(Vec::new, |said| keys(&said.done)),
            verdict: said.map_or(Verdict::None, ReplyTrace::verdict),
        }
    }
}

impl Shard {
    /// Other nodes say that spans became done (PROTOCOL.md, A0).
    pub fn on_done(&mut self, now: Instant, trace_id: TraceId, verdict: Verdict, sum: u64) {
        let Some(index) = self.table.find(trace_id) else { return };
        let Some(trace) = self.table.get(index) else { return };
        let covers_all = trace.sum() == sum;
        self.change(index, |trace| {
            trace.verdict = trace.verdict.max(verdict);
            if covers_all {
                trace.turn(SpanState::Held, SpanState::Done);
                trace.free_done();
            }
        });
        self.after_change(index, self.ms(now));
    }

    /// The owner answered an [`Effect::Ask`] (PROTOCOL.md, A1; for a leaving node also P3 and P4).
    pub fn on_reply(
        &mut self,
        now: Instant,
        from: &NodeId,
        sender: (u64, Incarnation),
        version: u32,
        reply: &Reply,
    ) {
        let Some(index) = self.table.find(reply.trace_id) else { return };
        let now_ms = self.ms(now);
        let confirmed = reply.wanted.is_empty()
            && sender.0 == self.view_hash()
            && self.table.get(index).is_some_and(|trace| trace.version == version)
            && self.is_owner_in(from, sender.1, index);
        self.change(index, |trace| {
            trace.verdict = trace.verdict.max(reply.verdict);
            for &key in &reply.done {
                trace.finish(key);
            }
            trace.free_done();
        });
        let Some(trace) = self.table.get(index) else { return };
        let wanted = |key, state| state != SpanState::Done && reply.wanted.contains(&key);
        let chunks = if reply.wanted.is_empty() { Vec::new() } else { trace.chunks(wanted) };
        if !chunks.is_empty() {
            let due_in = Duration::from_millis(trace.due_ms.saturating_sub(now_ms));
            let spans = attempt_of(reply.trace_id, chunks, reply.wanted.len() as u32);
            self.effects.push(Effect::Give { target: from.clone(), spans, due_in });
            // Whether it arrived is found out by asking again.
        }
        if confirmed && self.state == MemberState::Leaving && self.role_of(index) != Role::Owner {
            self.forget(index);
            return;
        }
        self.after_change(index, now_ms);
    }

    fn is_owner_in(&self, node: &NodeId, incarnation: Incarnation, index: u32) -> bool {
        let Some(trace) = self.table.get(index) else { return false };
        let Some(holders) = self.placement.holders(trace.slot) else { return false };
        let owner = &self.placement.view().members()[holders.owner as usize];
        owner.id == *node && owner.incarnation == incarnation
    }

    pub(super) fn ask(&mut self, index: u32, now_ms: u64) {
        let holders = self.table.get(index).and_then(|trace| self.placement.holders(trace.slot));
        if let Some(holders) = holders {
            let target = self.placement.view().members()[holders.owner as usize].id.clone();
            let Some(trace) = self.table.get_mut(index) else { return };
            trace.asked = trace.asked.saturating_add(1);
            let question = HoldTrace {
                trace_id: trace_id_bytes(trace.id),
                due_in_ms: milliseconds(Duration::from_millis(trace.due_ms.saturating_sub(now_ms))),
                names: trace.keys_in(SpanState::Held).map(SpanKey::name).collect(),
                done: trace.keys_in(SpanState::Done).map(SpanKey::name).collect(),
                verdict: trace.verdict.into(),
            };
            let version = trace.version;
            self.effects.push(Effect::Ask { target, trace: question, version });
        }
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.asked = trace.asked.max(1);
        let at = self.next_look(index, now_ms);
        self.wake_at(index, at);
    }
}
