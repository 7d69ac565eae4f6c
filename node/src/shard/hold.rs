//! Receiving spans: rules H1 to H3 of PROTOCOL.md.
//!
//! A shard never refuses for its view: it holds what it is given, and a span that it knows, held or
//! done, is not stored again. Whether there is memory for it was asked before.

use super::{Before, Limits, Role, Shard, to_ms};
use crate::cut::{Cut, span_key};
use crate::frame::{HoldTrace, Origin, ReplyTrace, Verdict, trace_id_bytes};
use crate::shard::telling::to_seconds;
use crate::shard::trace::{SpanKey, SpanState, Trace};
use crate::spans::{Scope, TraceId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What a Hold says of all its traces.
#[derive(Clone, Copy, Debug)]
pub struct HoldPart {
    /// Who it comes from.
    pub origin: Origin,
    /// Another holder was routed around.
    pub marked: bool,
    /// The sender's view. Where it is another than the receiver's, somebody may lack these spans.
    pub view_hash: u64,
    /// Until the traces are due.
    pub due_in: Duration,
}

impl Shard {
    /// Holds the spans of some traces of a frame.
    pub fn on_hold(&mut self, now: Instant, cut: &Cut, traces: &[u32], part: HoldPart) {
        let now_ms = self.ms(now);
        let mut scopes = vec![None; cut.scan().scopes.len()];
        self.table.expect(traces.iter().map(|&number| cut.trace_key(number)));
        self.outlook.look(traces.iter().map(|&number| cut.slots()[number as usize]));
        for &number in traces {
            let (id, key) = (cut.trace_id(number), cut.trace_key(number));
            let slot = cut.slots()[number as usize];
            let (index, new) = self.table.find_or_insert(id, key, slot);
            self.review(index, now_ms);
            let Some(trace) = self.table.get(index) else { continue };
            let before = if new { Before::default() } else { Before::of(trace) };
            if before.held == 0 {
                self.begin_holding(index, now_ms);
            }
            let repeats_done = self.store(index, cut, number, &mut scopes, part);
            self.set_due(index, now_ms, part.due_in);
            self.account(index, before, now_ms);
            if part.marked || self.is_foreign(part) || self.is_stand_in(index) {
                self.doubt(index, part, now_ms);
            }
            self.after_change(index, now_ms);
            if repeats_done && part.origin == Origin::Entry && self.is_finished_by_me(index) {
                self.tell_done(index);
            }
        }
    }

    /// Whether I am the owner and nothing of the trace is held. What a client sends again may be
    /// new to the replica, which then holds spans that are done: better told now than when it asks,
    /// or it exports them again should I crash before.
    fn is_finished_by_me(&self, index: u32) -> bool {
        let is_done = self.table.get(index).is_some_and(|trace| trace.held_count == 0);
        is_done && self.role_of(index) == Role::Owner
    }

    /// Whatever is held of the trace from now on came now.
    fn begin_holding(&mut self, index: u32, now_ms: u64) {
        if let Some(trace) = self.table.get_mut(index) {
            trace.held_since = to_seconds(now_ms);
        }
    }

    /// Adds the spans of one trace that are not known yet; whether one is known to be done.
    fn store(
        &mut self,
        index: u32,
        cut: &Cut,
        number: u32,
        scopes: &mut [Option<Arc<Scope>>],
        part: HoldPart,
    ) -> bool {
        let Some(trace) = self.table.get_mut(index) else { return false };
        let spans = cut.spans(number);
        let (known, came) = (trace.key_count(), spans.len());
        trace.reserve(came);
        let (mut last, mut repeats_done) = (None, false);
        for span in spans {
            let key = span_key(&self.hash_key, span.span_id, span.kind);
            if let Some(state) = trace.state(key) {
                repeats_done |= state == SpanState::Done;
                continue;
            }
            if last.replace(span.scope) != Some(span.scope) {
                let scope = scopes[span.scope as usize].get_or_insert_with(|| {
                    let (resource, scope) = cut.scope_fields(span.scope);
                    self.scopes.intern(resource, scope)
                });
                self.arrived.begin(Arc::clone(scope));
            }
            trace.push(key, SpanState::Held);
            trace.rooted |= span.root;
            self.arrived.push(|spans| cut.append_span(span, spans));
        }
        trace.store(&mut self.arrived, &mut self.spare);
        let fresh = trace.key_count() - known;
        if self.role_of(index) == Role::Owner {
            match part.origin {
                Origin::Entry => self.tally.redelivered += (came - fresh) as u64,
                Origin::Placing => self.tally.repaired += fresh as u64,
            }
        }
        repeats_done
    }

    /// H1.
    fn set_due(&mut self, index: u32, now_ms: u64, due_in: Duration) {
        let Limits { root_delay, spans_max, bytes_max, .. } = self.limits;
        let Some(trace) = self.table.get_mut(index) else { return };
        let due_in = if trace.rooted { due_in.min(root_delay) } else { due_in };
        trace.due_ms = trace.due_ms.min(now_ms + to_ms(due_in));
        if trace.held_count >= spans_max || trace.span_bytes() >= bytes_max {
            trace.due_ms = trace.due_ms.min(now_ms);
        }
    }

    /// Takes in what a sender knows of a trace and compares it with what is here; says only what is
    /// worth saying. Names alone may tell that another holder was routed around, too.
    pub fn on_names(
        &mut self,
        now: Instant,
        trace_id: TraceId,
        named: &HoldTrace,
        part: HoldPart,
    ) -> Option<ReplyTrace> {
        let mut reply = ReplyTrace { trace_id: trace_id_bytes(trace_id), ..Default::default() };
        let now_ms = self.ms(now);
        let index = match self.find(trace_id, now_ms) {
            Some(index) => index,
            None if named.done.is_empty() => {
                reply.wanted.clone_from(&named.names);
                return (!reply.wanted.is_empty()).then_some(reply);
            }
            None => {
                let key = self.hash_key.trace_key(&trace_id.0);
                self.table.find_or_insert(trace_id, key, self.hash_key.slot(&trace_id.0)).0
            }
        };
        let trace = self.table.get_mut(index)?;
        let before = if trace.key_count() == 0 { Before::default() } else { Before::of(trace) };
        learn(trace, named, now_ms);
        compare(trace, named, &mut reply);
        self.account(index, before, now_ms);
        if part.marked {
            self.doubt(index, part, now_ms);
        }
        self.after_change(index, now_ms);
        let says_something =
            !reply.wanted.is_empty() || !reply.done.is_empty() || reply.verdict() != Verdict::None;
        says_something.then_some(reply)
    }

    /// H3. By an entry node's other view this node may be a holder, on whom it relies from now on:
    /// what others confirmed before is no reason to give up what is here.
    fn doubt(&mut self, index: u32, part: HoldPart, now_ms: u64) {
        if part.origin == Origin::Entry && self.is_foreign(part) {
            self.confirm_anew(index, now_ms);
        }
        self.unplace(index, now_ms);
    }

    fn is_foreign(&self, part: HoldPart) -> bool {
        part.view_hash != self.view_hash()
    }

    fn is_stand_in(&self, index: u32) -> bool {
        self.role_of(index) == Role::StandIn
    }
}

/// H1: takes in what a sender knows beyond spans.
fn learn(trace: &mut Trace, named: &HoldTrace, now_ms: u64) {
    trace.due_ms = trace.due_ms.min(now_ms + u64::from(named.due_in_ms));
    trace.verdict = trace.verdict.max(named.verdict());
    named.vanished.iter().for_each(|&life| trace.vanished.add(life, now_ms));
    for &name in &named.done {
        let key = SpanKey::new(name);
        match trace.state(key) {
            None => trace.push(key, SpanState::Done),
            Some(_) => {
                trace.finish(key);
            }
        }
    }
    trace.free_done();
}

/// Says what a sender's names mean here.
fn compare(trace: &Trace, named: &HoldTrace, reply: &mut ReplyTrace) {
    for &name in &named.names {
        match trace.state(SpanKey::new(name)) {
            None => reply.wanted.push(name),
            Some(SpanState::Done) => reply.done.push(name),
            Some(SpanState::Held | SpanState::Sending) => {}
        }
    }
    reply.verdict = trace.verdict.into();
}
