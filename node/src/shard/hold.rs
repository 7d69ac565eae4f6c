//! Receiving spans: rules H1 to H3 of PROTOCOL.md.
//!
//! A shard never refuses for its view: it holds what it is given, and a span that it knows, held or
//! done, is not stored again. Whether there is memory for it was asked before.

use super::{Before, Limits, Role, Shard, to_ms};
use crate::cut::{Cut, span_key};
use crate::frame::{HoldTrace, Origin, ReplyTrace, Verdict, trace_id_bytes};
use crate::scan::ScannedSpan;
use crate::shard::telling::to_seconds;
use crate::shard::trace::{SpanKey, SpanState};
use crate::spans::{Scope, TraceId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What a Hold says of all its traces.
#[derive(Clone, Copy, Debug)]
pub struct HoldPart {
    /// Who it comes from.
    pub origin: Origin,
    /// Another holder was routed around, or the sender's view is another than mine: somebody may
    /// lack these spans.
    pub unplaced: bool,
    /// Until the traces are due.
    pub due_in: Duration,
}

impl Shard {
    /// Holds the spans of some traces of a frame.
    pub fn on_hold(&mut self, now: Instant, cut: &Cut, traces: &[u32], part: HoldPart) {
        let now_ms = self.ms(now);
        let mut scopes = vec![None; cut.scan().scopes.len()];
        let id_and_key = |number: u32| (cut.trace_id(number), cut.trace_key(number));
        self.table.prepare(traces.iter().copied().map(id_and_key));
        for &number in traces {
            let (slot, (id, key)) = (cut.slots()[number as usize], id_and_key(number));
            let (index, new) = self.table.find_or_insert(id, key, slot);
            let Some(trace) = self.table.get(index) else { continue };
            let before = if new { Before::default() } else { Before::of(trace) };
            if before.held == 0 {
                self.begin_holding(index, now_ms);
            }
            self.store(index, cut, number, &mut scopes, part);
            self.set_due(index, now_ms, part);
            self.account(index, before);
            self.after_change(index, now_ms);
        }
    }

    /// Whatever is held of the trace from now on came now.
    fn begin_holding(&mut self, index: u32, now_ms: u64) {
        if let Some(trace) = self.table.get_mut(index) {
            trace.held_since = to_seconds(now_ms);
        }
    }

    /// Adds the spans of one trace that are not known yet.
    fn store(
        &mut self,
        index: u32,
        cut: &Cut,
        number: u32,
        scopes: &mut [Option<Arc<Scope>>],
        part: HoldPart,
    ) {
        let Some(trace) = self.table.get_mut(index) else { return };
        let spans = cut.spans(number);
        let (known, came) = (trace.key_count(), spans.len());
        trace.reserve(came, runs(cut.spans(number)));
        let mut run: Option<Run> = None;
        for span in spans {
            let key = span_key(&self.hash_key, span.span_id, span.kind);
            if trace.state(key).is_some() {
                continue;
            }
            if run.as_ref().is_none_or(|run| run.number != span.scope) {
                if let Some(run) = run.take() {
                    trace.store(run.scope, &mut self.scratch, run.count);
                }
                let scope = scopes[span.scope as usize].get_or_insert_with(|| {
                    let (resource, scope) = cut.scope_fields(span.scope);
                    self.scopes.intern(resource, scope)
                });
                run = Some(Run { number: span.scope, scope: Arc::clone(scope), count: 0 });
            }
            if let Some(run) = &mut run {
                run.count += 1;
            }
            trace.push(key, SpanState::Held);
            trace.rooted |= span.root;
            cut.append_span(span, &mut self.scratch);
        }
        if let Some(run) = run {
            trace.store(run.scope, &mut self.scratch, run.count);
        }
        trace.shrink();
        let fresh = trace.key_count() - known;
        if self.role_of(index) == Role::Owner {
            match part.origin {
                Origin::Entry => self.tally.redelivered += (came - fresh) as u64,
                Origin::Placing => self.tally.repaired += fresh as u64,
            }
        }
    }

    /// H1 and H3.
    fn set_due(&mut self, index: u32, now_ms: u64, part: HoldPart) {
        let role = self.role_of(index);
        let Limits { root_delay, spans_max, bytes_max, .. } = self.limits;
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.unplaced |= part.unplaced || role == Role::StandIn;
        let due_in = if trace.rooted { part.due_in.min(root_delay) } else { part.due_in };
        trace.due_ms = trace.due_ms.min(now_ms + to_ms(due_in));
        if trace.held_count >= spans_max || trace.span_bytes() >= bytes_max {
            trace.due_ms = trace.due_ms.min(now_ms);
        }
    }

    /// Compares what a sender names with what is here; says only what is worth saying. Names alone
    /// may tell that another holder was routed around, too.
    pub fn on_names(
        &mut self,
        now: Instant,
        trace_id: TraceId,
        named: &HoldTrace,
        part: HoldPart,
    ) -> Option<ReplyTrace> {
        let mut reply = ReplyTrace { trace_id: trace_id_bytes(trace_id), ..Default::default() };
        let Some(index) = self.table.find(trace_id) else {
            reply.wanted.clone_from(&named.names);
            return (!reply.wanted.is_empty()).then_some(reply);
        };
        let now_ms = self.ms(now);
        let due_ms = now_ms + u64::from(named.due_in_ms);
        self.change(index, |trace| {
            trace.unplaced |= part.unplaced;
            trace.due_ms = trace.due_ms.min(due_ms);
            trace.verdict = trace.verdict.max(named.verdict());
            for &name in &named.done {
                let key = SpanKey::new(name);
                if trace.state(key).is_none() {
                    trace.push(key, SpanState::Done);
                } else if trace.state(key) == Some(SpanState::Held) {
                    trace.finish(key);
                }
            }
            trace.free_done();
            for &name in &named.names {
                match trace.state(SpanKey::new(name)) {
                    None => reply.wanted.push(name),
                    Some(SpanState::Done) => reply.done.push(name),
                    Some(SpanState::Held | SpanState::Sending) => {}
                }
            }
            reply.verdict = trace.verdict.into();
        });
        self.after_change(index, now_ms);
        let says_something =
            !reply.wanted.is_empty() || !reply.done.is_empty() || reply.verdict() != Verdict::None;
        says_something.then_some(reply)
    }
}

/// Consecutive spans of one scope that are not known yet.
struct Run {
    number: u32,
    scope: Arc<Scope>,
    count: u32,
}

/// How often the scope changes from one span to the next, and one.
fn runs<'a>(spans: impl Iterator<Item = &'a ScannedSpan>) -> usize {
    let mut last = None;
    spans.filter(|span| last.replace(span.scope) != Some(span.scope)).count()
}
