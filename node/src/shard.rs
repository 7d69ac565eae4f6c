//! The traces of some slots: holding, deciding, asking (PROTOCOL.md, rules H, D, A).
//!
//! A pure state machine: what happens comes in with `now`, what is to be done goes out as
//! [`Effect`]s; no clock, no task, no lock. Who is owner is never stored: it is looked up in the
//! present placement whenever a rule asks, so acting after a crash is no special path. The
//! invariant: the bytes of a span leave a shard only when the span is done here, or when its owner
//! confirmed to a leaving node that it has the span. Bounded by the memory budget, which the caller
//! checks before a Hold comes in ([`Shard::bytes`]), and for remembered traces by
//! [`Limits::remember_bytes_max`].

mod attempt;
mod hold;
mod scopes;
mod table;
pub(crate) mod trace;

pub use attempt::{Answer, SinkSet};
pub use hold::HoldPart;

use crate::decide::Decide;
use crate::frame::{DoneTrace, HoldTrace, ReplyTrace, Verdict, milliseconds, trace_id_bytes};
use crate::process;
use crate::sink::Attempt;
use crate::spans::{Chunk, TraceId};
use attempt::Trying;
use scopes::Scopes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use table::Table;
use tokio::time::Instant;
use trace::{SpanKey, SpanState, Trace};
use tracemesh_membership::{
    HashKey, Incarnation, MemberIndex, MemberState, NodeId, Placement, Slot,
};

/// How long an owner waits, from due on, for its replica to publish the same view.
pub const SETTLE_MAX: Duration = Duration::from_secs(10);
/// How long after a trace was due whoever is not its owner asks what became of it; doubling with
/// every time it was asked, up to [`ASK_AFTER_MAX`].
pub const ASK_AFTER: Duration = Duration::from_secs(5);
/// The longest wait between two questions about one trace.
pub const ASK_AFTER_MAX: Duration = Duration::from_secs(60);
/// How often a leaving node offers what it holds (`OFFER_AGAIN`).
pub const OFFER_AGAIN: Duration = Duration::from_secs(1);
/// How often an owner looks whether it is calm: a gossip round is 200 ms.
const CALM_AGAIN: Duration = Duration::from_millis(100);

/// What bounds a trace in time and size.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the arrival of a root span to due.
    pub root_delay: Duration,
    /// From the first span to due.
    pub age_max: Duration,
    /// A trace with so many spans is due at once.
    pub spans_max: u32,
    /// A trace with so many bytes is due at once.
    pub bytes_max: usize,
    /// How long a done trace is remembered.
    pub remember: Duration,
    /// What remembered traces of this shard may take; the oldest are forgotten first.
    pub remember_bytes_max: usize,
}

/// How a node stands to a trace, by its present view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides and exports.
    Owner,
    /// Keeps the same data.
    Replica,
    /// Holds, but is no holder.
    StandIn,
}

/// What made a trace due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its root came `root_delay` ago.
    Root,
    /// It is `age_max` old.
    Age,
    /// It reached `spans_max`.
    Spans,
    /// It reached `bytes_max`.
    Bytes,
    /// The last node leaves.
    Drain,
    /// Its former owner vanished when it was due.
    Takeover,
}

/// What a shard wants done.
#[derive(Debug)]
pub enum Effect {
    /// Hand the attempt to these sinks; each outcome comes back to [`Shard::on_answer`].
    Export {
        /// The spans.
        attempt: Arc<Attempt>,
        /// Tells this round of tries from earlier ones.
        number: u32,
        /// The sinks that still owe an acknowledgement.
        sinks: SinkSet,
    },
    /// Write the attempt to the dead-letter file; whether it is there comes back to
    /// [`Shard::on_answer`] as the answer of sink 0.
    DeadLetter {
        /// The spans.
        attempt: Arc<Attempt>,
        /// Tells this try from earlier ones.
        number: u32,
    },
    /// Tell another holder that spans became done.
    Done {
        /// The other holder.
        target: NodeId,
        /// What became done.
        done: DoneTrace,
    },
    /// Ask the owner about a trace by names; the reply comes back to [`Shard::on_reply`].
    Ask {
        /// The owner.
        target: NodeId,
        /// The question.
        trace: HoldTrace,
        /// The trace's version, to be given back with the reply.
        version: u32,
    },
    /// Send spans that the owner wanted.
    Give {
        /// The owner.
        target: NodeId,
        /// The wanted spans.
        spans: Attempt,
        /// Until the trace is due.
        due_in: Duration,
    },
}

/// What a shard counted since it was last asked.
#[derive(Debug, Default, PartialEq)]
pub struct Tally {
    /// Spans that an owner got again from an entry node.
    pub redelivered: u64,
    /// Spans that an owner got from a node that is no entry node.
    pub repaired: u64,
    /// Spans that became done because a sink has them.
    pub exported: u64,
    /// Of these: in an attempt that began when some span of the trace was done.
    pub late: u64,
    /// Spans that became done because their trace was sampled out.
    pub sampled_out: u64,
    /// Spans that every sink refused for good.
    pub refused: u64,
    /// Spans of traces that made deciding or processing panic.
    pub poison: u64,
    /// Spans of attempts that may have reached a sink and are made again.
    pub unanswered: u64,
    /// Spans of traces taken over when due.
    pub taken_over: u64,
    /// Spans of traces decided although not calm.
    pub uncalm: u64,
    /// Remembered traces forgotten for lack of space.
    pub forgotten_early: u64,
    /// Traces of which a second part was exported.
    pub in_parts: u64,
    /// Decided traces by cause and verdict, each with its delay after it was due.
    pub decided: Vec<(Cause, Verdict, Duration)>,
}

/// Rules H, D and A for the traces of some slots.
pub struct Shard {
    me: NodeId,
    hash_key: HashKey,
    limits: Limits,
    sinks: SinkSet,
    started: Instant,
    decide: Box<dyn Decide>,
    table: Table,
    scopes: Scopes,
    wakes: BinaryHeap<Reverse<(u64, u32)>>,
    trying: BTreeMap<TraceId, Trying>,
    remembered: VecDeque<(u64, TraceId)>,
    placement: Arc<Placement>,
    my_index: Option<MemberIndex>,
    state: MemberState,
    published_views: BTreeMap<NodeId, u64>,
    attempt_number: u32,
    trace_bytes: usize,
    remembered_bytes: usize,
    held: [u64; 3],
    held_traces: u64,
    scratch: Vec<u8>,
    effects: Vec<Effect>,
    tally: Tally,
}

impl Shard {
    /// A shard without traces, of a node that is `me`, whose finished traces go to `sinks`.
    pub fn new(
        me: NodeId,
        hash_key: HashKey,
        limits: Limits,
        sinks: SinkSet,
        decide: Box<dyn Decide>,
        placement: Arc<Placement>,
        now: Instant,
    ) -> Self {
        let my_index = index_of(&placement, &me);
        Self {
            scopes: Scopes::new(hash_key.0),
            table: Table::new(hash_key.clone()),
            me,
            hash_key,
            limits,
            sinks,
            started: now,
            decide,
            wakes: BinaryHeap::new(),
            trying: BTreeMap::new(),
            remembered: VecDeque::new(),
            placement,
            my_index,
            state: MemberState::Joining,
            published_views: BTreeMap::new(),
            attempt_number: 0,
            trace_bytes: 0,
            remembered_bytes: 0,
            held: [0; 3],
            held_traces: 0,
            scratch: Vec::new(),
            effects: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Everything that this shard keeps, for the memory budget.
    pub fn bytes(&self) -> usize {
        self.trace_bytes + self.scopes.bytes()
    }

    /// Traces of which something is held.
    pub fn held_trace_count(&self) -> u64 {
        self.held_traces
    }

    /// Spans held as owner, as replica, as stand-in.
    pub fn held(&self) -> [u64; 3] {
        self.held
    }

    /// The hash of the view that this shard knows.
    pub fn view_hash(&self) -> u64 {
        self.placement.view().hash()
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let expires = self.remembered.front().map(|&(at, _)| at);
        let wakes = self.wakes.peek().map(|&Reverse((at, _))| at);
        let at = expires.into_iter().chain(wakes).min()?;
        Some(self.started + Duration::from_millis(at))
    }

    /// What is to be done since this was last called.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What was counted since this was last called.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// The view, or what others publish of theirs, changed.
    pub fn on_view(
        &mut self,
        now: Instant,
        placement: Arc<Placement>,
        state: MemberState,
        published_views: BTreeMap<NodeId, u64>,
    ) {
        let changed = placement.view().hash() != self.view_hash() || state != self.state;
        self.published_views = published_views;
        if !changed {
            return;
        }
        let former_index = self.my_index;
        let former = std::mem::replace(&mut self.placement, placement);
        self.my_index = index_of(&self.placement, &self.me);
        self.state = state;
        let now_ms = self.ms(now);
        self.held = [0; 3];
        let held: Vec<u32> = self
            .table
            .iter()
            .filter(|(_, trace)| trace.held_count > 0)
            .map(|(index, _)| index)
            .collect();
        for index in held {
            let Some(trace) = self.table.get(index) else { continue };
            let role = self.role(trace.slot);
            let was_owner = former.holders(trace.slot).map(|holders| holders.owner) == former_index
                && former_index.is_some();
            self.held[role as usize] += u64::from(trace.held_count);
            let flush = self.is_last_to_leave();
            let Some(trace) = self.table.get_mut(index) else { continue };
            if role == Role::Owner && !was_owner && trace.due_ms <= now_ms {
                trace.taken_over = true;
            }
            trace.asked = 0;
            if flush {
                trace.due_ms = trace.due_ms.min(now_ms);
            }
            if trace.due_ms <= now_ms || self.state == MemberState::Leaving {
                let at = self.next_look(index, now_ms);
                self.wake_at(index, at);
            }
        }
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Instant) {
        let now_ms = self.ms(now);
        while let Some(&Reverse((at, index))) = self.wakes.peek() {
            if at > now_ms {
                break;
            }
            self.wakes.pop();
            let Some(trace) = self.table.get_mut(index) else { continue };
            if trace.wake_ms == at {
                trace.wake_ms = u64::MAX;
                self.consider(index, now_ms);
            }
        }
        self.forget_expired(now_ms);
    }

    /// What one sink, or the dead-letter file, said to an attempt.
    pub fn on_answer(
        &mut self,
        now: Instant,
        trace_id: TraceId,
        number: u32,
        sink: u32,
        answer: Answer,
    ) {
        let Some(trying) = self.trying.get_mut(&trace_id) else { return };
        if trying.number != number {
            return;
        }
        if answer == Answer::Unanswered {
            self.tally.unanswered += u64::from(trying.attempt.span_count);
        }
        trying.on_answer(sink, answer);
        if trying.in_flight() {
            return;
        }
        let Some(index) = self.table.find(trace_id) else { return };
        let now_ms = self.ms(now);
        let Some(trying) = self.trying.get(&trace_id) else { return };
        if trying.owed() {
            let again = now_ms + trying.backoff_ms(trace_id);
            self.wake_at(index, again);
        } else if let Some(trying) = self.trying.remove(&trace_id) {
            self.finish_attempt(index, now_ms, &trying);
        }
    }

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

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn role(&self, slot: Slot) -> Role {
        match (self.placement.holders(slot), self.my_index) {
            (Some(holders), Some(me)) if holders.owner == me => Role::Owner,
            (Some(holders), Some(me)) if holders.replica == Some(me) => Role::Replica,
            _ => Role::StandIn,
        }
    }

    fn role_of(&self, index: u32) -> Role {
        self.table.get(index).map_or(Role::StandIn, |trace| self.role(trace.slot))
    }

    fn is_owner_in(&self, node: &NodeId, incarnation: Incarnation, index: u32) -> bool {
        let Some(trace) = self.table.get(index) else { return false };
        let Some(holders) = self.placement.holders(trace.slot) else { return false };
        let owner = &self.placement.view().members()[holders.owner as usize];
        owner.id == *node && owner.incarnation == incarnation
    }

    /// Nobody is active any more: those who leave are the view, and decide at once (M4).
    fn is_last_to_leave(&self) -> bool {
        self.state == MemberState::Leaving && self.my_index.is_some()
    }

    /// Runs `change` on a trace and keeps the sums right.
    fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut Trace) -> T) -> Option<T> {
        let trace = self.table.get_mut(index)?;
        let before = Before::of(trace);
        let result = change(trace);
        self.account(index, before);
        Some(result)
    }

    /// Brings the sums up to date after a trace was changed.
    fn account(&mut self, index: u32, before: Before) {
        let role = self.role_of(index);
        let Some(trace) = self.table.get_mut(index) else { return };
        let after = Before::of(trace);
        if (before.keys, before.held, before.verdict) != (after.keys, after.held, after.verdict) {
            trace.version = trace.version.wrapping_add(1);
            trace.asked = 0;
        }
        self.trace_bytes = self.trace_bytes + after.bytes - before.bytes;
        self.held_traces += u64::from(after.held > 0);
        self.held_traces -= u64::from(before.held > 0);
        let held = &mut self.held[role as usize];
        *held = *held + u64::from(after.held) - u64::from(before.held);
        if trace.is_remembered() {
            self.remembered_bytes -= before.bytes;
            if after.held == 0 {
                self.remembered_bytes += after.bytes;
            } else {
                trace.remembered_until_ms = 0;
            }
        }
    }

    /// Sees to it that a trace is looked at again when it must be.
    fn after_change(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        if trace.held_count == 0 {
            self.remember(index, now_ms);
            return;
        }
        if trace.verdict != Verdict::None {
            trace.due_ms = trace.due_ms.min(now_ms);
        }
        if self.trying.contains_key(&trace.id) {
            return;
        }
        let mut at = trace.due_ms;
        let due_in_past = at <= now_ms;
        if due_in_past || self.state == MemberState::Leaving {
            at = self.next_look(index, now_ms);
        }
        self.wake_at(index, at);
    }

    /// When a due trace is to be looked at: by its owner at once, by others when it is time to ask.
    fn next_look(&self, index: u32, now_ms: u64) -> u64 {
        let Some(trace) = self.table.get(index) else { return u64::MAX };
        if self.role(trace.slot) == Role::Owner {
            return trace.due_ms.min(now_ms);
        }
        if self.state == MemberState::Leaving {
            let wait = if trace.asked == 0 { Duration::ZERO } else { OFFER_AGAIN };
            return now_ms + to_ms(wait);
        }
        let wait = ASK_AFTER.saturating_mul(1 << trace.asked.min(4)).min(ASK_AFTER_MAX);
        now_ms.max(trace.due_ms) + to_ms(wait)
    }

    fn wake_at(&mut self, index: u32, at: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        if at < trace.wake_ms {
            trace.wake_ms = at;
            self.wakes.push(Reverse((at, index)));
        }
    }

    /// A trace's time has come: decide (D1), try again (D2), or ask (A1).
    fn consider(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get(index) else { return };
        if trace.held_count == 0 {
            return;
        }
        let role = self.role(trace.slot);
        if self.trying.contains_key(&trace.id) {
            self.try_again(index, role, now_ms);
            return;
        }
        let leaving = self.state == MemberState::Leaving && role != Role::Owner;
        let first_question = trace.due_ms.saturating_add(to_ms(ASK_AFTER));
        if now_ms < trace.due_ms && !leaving {
            self.wake_at(index, trace.due_ms);
        } else if role != Role::Owner && now_ms < first_question && !leaving {
            self.wake_at(index, first_question);
        } else if role != Role::Owner {
            self.ask(index, now_ms);
        } else if self.is_calm(trace.slot) {
            self.decide(index, now_ms);
        } else if now_ms >= trace.due_ms.saturating_add(to_ms(SETTLE_MAX)) {
            self.tally.uncalm += u64::from(trace.held_count);
            self.decide(index, now_ms);
        } else {
            self.wake_at(index, now_ms + to_ms(CALM_AGAIN));
        }
    }

    /// The replica, if any, publishes my view.
    fn is_calm(&self, slot: Slot) -> bool {
        let Some(Some(replica)) = self.placement.holders(slot).map(|holders| holders.replica)
        else {
            return true;
        };
        let replica = &self.placement.view().members()[replica as usize].id;
        self.published_views.get(replica) == Some(&self.view_hash())
    }

    fn ask(&mut self, index: u32, now_ms: u64) {
        let holders = self.table.get(index).and_then(|trace| self.placement.holders(trace.slot));
        if let Some(holders) = holders {
            let target = self.placement.view().members()[holders.owner as usize].id.clone();
            let Some(trace) = self.table.get_mut(index) else { return };
            trace.asked = trace.asked.saturating_add(1);
            let question = HoldTrace {
                trace_id: trace_id_bytes(trace.id),
                due_in_ms: milliseconds(Duration::from_millis(
                    trace.due_ms.saturating_sub(now_ms),
                )),
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

    fn decide(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get(index) else { return };
        let late = trace.has_done();
        let chunks = trace.chunks(|_, state| state == SpanState::Held);
        let attempt = attempt_of(trace.id, chunks, trace.held_count);
        let (known, taken_over) = (trace.verdict, trace.taken_over);
        let cause = self.cause(trace);
        let delay = Duration::from_millis(now_ms.saturating_sub(trace.due_ms));
        if taken_over {
            self.tally.taken_over += u64::from(attempt.span_count);
        }
        let decider = &mut self.decide;
        let raw = attempt.clone();
        let decided = catch_unwind(AssertUnwindSafe(|| {
            let verdict = if known == Verdict::None { decider.decide(&attempt) } else { known };
            (verdict, process::process(attempt, late))
        }));
        let Ok((verdict, processed)) = decided else {
            tracing::error!(trace_id = %raw.trace_id, "trace makes deciding panic");
            self.begin(index, Trying::dead_letter(Arc::new(raw)));
            return;
        };
        if known == Verdict::None {
            self.tally.decided.push((cause, verdict, delay));
        }
        self.change(index, |trace| {
            trace.verdict = verdict;
            trace.taken_over = false;
        });
        if verdict == Verdict::SampledOut {
            let count = self.change(index, |trace| {
                let count = trace.turn(SpanState::Held, SpanState::Done);
                trace.free_done();
                count
            });
            self.tally.sampled_out += u64::from(count.unwrap_or(0));
            self.tell_done(index);
            self.after_change(index, now_ms);
            return;
        }
        self.begin(index, Trying::export(Arc::new(processed), self.sinks, late));
    }

    fn cause(&self, trace: &Trace) -> Cause {
        if self.is_last_to_leave() {
            Cause::Drain
        } else if trace.taken_over {
            Cause::Takeover
        } else if trace.held_count >= self.limits.spans_max {
            Cause::Spans
        } else if trace.span_bytes() >= self.limits.bytes_max {
            Cause::Bytes
        } else if trace.rooted {
            Cause::Root
        } else {
            Cause::Age
        }
    }

    fn begin(&mut self, index: u32, mut trying: Trying) {
        self.attempt_number = self.attempt_number.wrapping_add(1);
        trying.number = self.attempt_number;
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.turn(SpanState::Held, SpanState::Sending);
        self.effects.push(trying.effect());
        self.trying.insert(trace.id, trying);
    }

    /// The backoff of an attempt is over: the owner makes it again, whoever is none any more gives
    /// it up and asks.
    fn try_again(&mut self, index: u32, role: Role, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        let Some(trying) = self.trying.get_mut(&trace.id) else { return };
        if trying.in_flight() {
            return;
        }
        if role == Role::Owner {
            self.attempt_number = self.attempt_number.wrapping_add(1);
            trying.again(self.attempt_number);
            self.effects.push(trying.effect());
            return;
        }
        trace.turn(SpanState::Sending, SpanState::Held);
        self.trying.remove(&trace.id);
        self.after_change(index, now_ms);
    }

    /// Every sink has the spans or refused them for good (D3).
    fn finish_attempt(&mut self, index: u32, now_ms: u64, trying: &Trying) {
        let count = self.change(index, |trace| {
            let count = trace.turn(SpanState::Sending, SpanState::Done);
            trace.free_done();
            count
        });
        let count = u64::from(count.unwrap_or(0));
        match trying.result() {
            attempt::Result::Exported => {
                self.tally.exported += count;
                if trying.late {
                    self.tally.late += count;
                    self.tally.in_parts += 1;
                }
            }
            attempt::Result::Refused => self.tally.refused += count,
            attempt::Result::Poison => self.tally.poison += count,
        }
        self.tell_done(index);
        self.after_change(index, now_ms);
    }

    fn tell_done(&mut self, index: u32) {
        let Some(trace) = self.table.get(index) else { return };
        let Some(holders) = self.placement.holders(trace.slot) else { return };
        let done = DoneTrace {
            trace_id: trace_id_bytes(trace.id),
            verdict: trace.verdict.into(),
            sum: trace.done_sum(),
        };
        for holder in std::iter::once(holders.owner).chain(holders.replica) {
            if Some(holder) != self.my_index {
                let target = self.placement.view().members()[holder as usize].id.clone();
                self.effects.push(Effect::Done { target, done: done.clone() });
            }
        }
    }

    /// Keeps the keys of a trace of which nothing is held, for as long as there is room.
    fn remember(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.wake_ms = u64::MAX;
        if trace.is_remembered() {
            return;
        }
        trace.remembered_until_ms = now_ms + to_ms(self.limits.remember).max(1);
        self.remembered_bytes += trace.cost_bytes();
        self.remembered.push_back((trace.remembered_until_ms, trace.id));
        while self.remembered_bytes > self.limits.remember_bytes_max {
            if !self.forget_oldest() {
                break;
            }
            self.tally.forgotten_early += 1;
        }
    }

    fn forget_expired(&mut self, now_ms: u64) {
        while self.remembered.front().is_some_and(|&(at, _)| at <= now_ms) {
            self.forget_oldest();
        }
    }

    /// Forgets the trace that has been remembered longest; `false` when there is none.
    fn forget_oldest(&mut self) -> bool {
        while let Some((until_ms, id)) = self.remembered.pop_front() {
            let Some(index) = self.table.find(id) else { continue };
            if self.table.get(index).is_some_and(|trace| trace.remembered_until_ms == until_ms) {
                self.forget(index);
                return true;
            }
        }
        false
    }

    fn forget(&mut self, index: u32) {
        let role = self.role_of(index);
        let Some(trace) = self.table.remove(index) else { return };
        self.trace_bytes -= trace.cost_bytes();
        self.held[role as usize] -= u64::from(trace.held_count);
        self.held_traces -= u64::from(trace.held_count > 0);
        if trace.is_remembered() {
            self.remembered_bytes -= trace.cost_bytes();
        }
        self.trying.remove(&trace.id);
    }
}

/// What the sums of a shard count of one trace.
#[derive(Clone, Copy, Default)]
struct Before {
    bytes: usize,
    keys: usize,
    held: u32,
    verdict: Verdict,
}

impl Before {
    fn of(trace: &Trace) -> Self {
        Self {
            bytes: trace.cost_bytes(),
            keys: trace.key_count(),
            held: trace.held_count,
            verdict: trace.verdict,
        }
    }
}

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

fn index_of(placement: &Placement, id: &NodeId) -> Option<MemberIndex> {
    MemberIndex::try_from(placement.view().position(id)?).ok()
}

fn attempt_of(trace_id: TraceId, chunks: Vec<Chunk>, span_count: u32) -> Attempt {
    let bytes = chunks.iter().map(|chunk| chunk.spans.len()).sum();
    Attempt { trace_id, chunks, span_count, bytes }
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
