//! The traces of some slots: holding, placing, deciding, asking (PROTOCOL.md, rules H, P, D, A).
//!
//! A pure state machine: what happens comes in with `now`, what is to be done goes out as
//! [`Effect`]s; no clock, no task, no lock. Who is owner is never stored: it is looked up in the
//! present placement whenever a rule asks, so acting after a crash is no special path. The
//! invariant: the bytes of a span leave a shard only when the span is done here, or when this node
//! is no holder and every holder confirmed that it has them. Bounded by the memory budget, which
//! the caller checks before a Hold comes in ([`Shard::bytes`]), and for remembered traces by
//! [`Limits::remember_bytes_max`].

mod asking;
mod attempt;
mod blocks;
mod deciding;
mod fingerprint;
mod held;
mod hold;
mod look;
mod offers;
mod placing;
mod remembering;
mod review;
mod scopes;
mod standing;
mod table;
mod telling;
pub(crate) mod trace;
mod vanished;

pub use asking::{Replier, Reply};
pub use attempt::{Answer, SinkSet};
pub use fingerprint::Known;
pub use hold::HoldPart;
pub use standing::{PeerStanding, Standing};

use crate::decide::Decide;
use crate::frame::{DoneTrace, HoldTrace, Verdict};
use crate::sink::{Attempt, Withdrawn};
use blocks::{Arrived, Spare};
use deciding::{Calm, calm_by, doubt_ends};
use held::Held;
use look::LOOKED_AT_ONCE;
use offers::Offers;
use review::Review;
use scopes::Scopes;
use standing::Outlook;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use table::Table;
use tokio::time::Instant;
use trace::{Before, Trace};
use tracemesh_membership::{HashKey, NodeId};

/// How long an owner waits, from due on, for calm.
pub const SETTLE_MAX: Duration = Duration::from_secs(10);
/// How long after a trace was due whoever is not its owner asks what became of it; doubling with
/// every time it was asked, up to [`ASK_AFTER_MAX`].
pub const ASK_AFTER: Duration = Duration::from_secs(5);
/// The longest wait between two questions about one trace.
pub const ASK_AFTER_MAX: Duration = Duration::from_secs(60);
/// How often an unplaced trace is offered to a holder that has not confirmed it.
pub const OFFER_AGAIN: Duration = Duration::from_secs(1);
/// Traces that become due one after the other are looked at together: a busy node has some every
/// millisecond, and each time to wake up costs more than to look at them.
const WAKE_STEP_MS: u64 = 10;
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
    /// So many traces are looked at for a new view, and as many offered to others, before something
    /// else has its turn.
    pub traces_per_turn: usize,
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
#[derive(Clone, Debug)]
pub enum Effect {
    /// Hand the attempt to these sinks; each outcome comes back to [`Shard::on_answer`].
    Export {
        /// The spans.
        attempt: Arc<Attempt>,
        /// Tells this round of tries from earlier ones.
        number: u32,
        /// The sinks that still owe an acknowledgement.
        sinks: SinkSet,
        /// Whether the try should not begin any more.
        withdrawn: Withdrawn,
    },
    /// Write the attempt to the dead-letter file; whether it is there comes back to
    /// [`Shard::on_answer`] as the answer of sink 0.
    DeadLetter {
        /// The spans.
        attempt: Arc<Attempt>,
        /// Tells this try from earlier ones.
        number: u32,
        /// Why it goes there.
        why: &'static str,
    },
    /// Tell another holder that spans became done.
    Done {
        /// The other holder.
        target: NodeId,
        /// What became done.
        done: DoneTrace,
    },
    /// Tell another holder all that is known of a trace, and give it spans; what it says comes back
    /// to [`Shard::on_reply`], and that this is no more under way to [`Shard::on_arrived`].
    Offer {
        /// The other holder.
        target: NodeId,
        /// What is known.
        trace: Box<HoldTrace>,
        /// Spans that it is likely to lack.
        spans: Option<Box<Attempt>>,
        /// The trace's version, to be given back with the reply.
        version: u32,
        /// What this counts in the target's allowance.
        bytes: usize,
    },
}

/// What a shard counted since it was last asked.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Remembered traces forgotten for lack of space, and traces of which the oldest keys were.
    pub forgotten_early: u64,
    /// Traces of which a second part was exported.
    pub in_parts: u64,
    /// Decided traces by cause and verdict, each with its delay after it was due.
    pub decided: Vec<(Cause, Verdict, Duration)>,
}

/// Rules H, D and A for the traces of some slots.
#[derive(Clone)]
pub struct Shard {
    hash_key: HashKey,
    limits: Limits,
    sinks: SinkSet,
    started: Instant,
    decide: Box<dyn Decide>,
    outlook: Outlook,
    table: Table,
    review: Option<Box<Review>>,
    offers: Offers,
    scopes: Scopes,
    /// Traces to look at, by when.
    wakes: BTreeMap<u64, Vec<u32>>,
    /// Until when, and where the trace is.
    remembered: VecDeque<(u64, u32)>,
    attempt_number: u32,
    /// The last version that was given to a trace: one that was forgotten and comes again has none
    /// that it had before.
    version: u32,
    trace_bytes: usize,
    remembered_bytes: usize,
    held: Held,
    arrived: Arrived,
    spare: Spare,
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
        standing: Standing,
        now: Instant,
    ) -> Self {
        Self {
            scopes: Scopes::new(hash_key.0),
            table: Table::new(hash_key),
            outlook: Outlook::new(me, standing),
            review: None,
            offers: Offers::default(),
            hash_key,
            limits,
            sinks,
            started: now,
            decide,
            wakes: BTreeMap::new(),
            remembered: VecDeque::new(),
            attempt_number: 0,
            version: 0,
            trace_bytes: 0,
            remembered_bytes: 0,
            held: Held::default(),
            arrived: Arrived::default(),
            spare: Spare::default(),
            effects: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Everything that this shard keeps, for the memory budget.
    pub fn bytes(&self) -> usize {
        let review = self.review.as_ref().map_or(0, |review| review.cost_bytes());
        self.trace_bytes + self.scopes.bytes() + self.offers.cost_bytes() + review
    }

    /// Traces of which something is held.
    pub fn held_trace_count(&self) -> u64 {
        self.held.traces()
    }

    /// Spans held as owner, as replica, as stand-in.
    pub fn held(&self) -> [u64; 3] {
        self.held.spans()
    }

    /// The hash of the view that this shard knows.
    pub fn view_hash(&self) -> u64 {
        self.outlook.view_hash()
    }

    /// Whether everything is placed that was unplaced when the present view began (P5).
    pub fn is_settled(&self) -> bool {
        self.review.is_none() && self.offers.is_settled()
    }

    /// Unplaced traces, remembered ones included.
    pub fn unplaced_count(&self) -> u64 {
        self.offers.len() as u64
    }

    /// Traces that each member of the view has yet to confirm, where there are any.
    pub fn unplaced_by_member(&self) -> BTreeMap<NodeId, u64> {
        let members = self.outlook.placement().view().members();
        let owing = members.iter().zip(self.offers.owing()).filter(|(_, traces)| *traces > 0);
        owing.map(|(member, traces)| (member.id.clone(), traces)).collect()
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let review = self.review.as_ref().map(|review| review.next_ms);
        let expires = self.remembered.front().map(|&(at, _)| at);
        let wakes = self.wakes.first_key_value().map(|(&at, _)| at.next_multiple_of(WAKE_STEP_MS));
        let at = expires.into_iter().chain(wakes).chain(review).chain(self.offers.next_wake());
        let at = at.chain(self.scopes.next_sweep()).min()?;
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
    pub fn on_view(&mut self, now: Instant, standing: Standing) {
        let same_view = standing.view_hash() == self.view_hash();
        if same_view && standing.state == self.outlook.standing.state {
            self.outlook.renew(standing);
            return;
        }
        let now_ms = self.ms(now);
        self.end_review(now_ms);
        let former = self.outlook.renew(standing);
        self.begin_review(former, now_ms);
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Instant) {
        let now_ms = self.ms(now);
        while let Some(first) = self.wakes.first_entry().filter(|first| *first.key() <= now_ms) {
            let (at, mut indexes) = first.remove_entry();
            indexes.retain(|&index| self.table.get(index).is_some_and(|trace| trace.wake_ms == at));
            for indexes in indexes.chunks(LOOKED_AT_ONCE) {
                self.look_at_due(indexes);
                for &index in indexes {
                    self.review(index, now_ms);
                    let Some(trace) = self.table.get_mut(index) else { continue };
                    if trace.wake_ms == at {
                        trace.wake_ms = u64::MAX;
                        self.consider(index, now_ms);
                    }
                }
            }
        }
        self.forget_expired(now_ms);
        self.review_some(now_ms);
        self.offer(now_ms);
        self.scopes.on_time(now_ms);
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn role_of(&self, index: u32) -> Role {
        self.table.get(index).map_or(Role::StandIn, |trace| self.outlook.role(trace.slot))
    }

    /// Runs `change` on a trace and keeps the sums right.
    fn change<T>(
        &mut self,
        index: u32,
        now_ms: u64,
        change: impl FnOnce(&mut Trace) -> T,
    ) -> Option<T> {
        let trace = self.table.get_mut(index)?;
        let before = Before::of(trace);
        let result = change(trace);
        self.account(index, before, now_ms);
        Some(result)
    }

    /// Brings the sums up to date after a trace was changed, and voids what others confirmed of it.
    fn account(&mut self, index: u32, before: Before, now_ms: u64) {
        let role = self.role_of(index);
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.give_spare(&mut self.spare);
        let after = Before::of(trace);
        self.trace_bytes = self.trace_bytes + after.bytes - before.bytes;
        self.held.change(role, trace.held_since, before.held, after.held);
        if trace.is_remembered() {
            self.remembered_bytes -= before.bytes;
            if after.held == 0 {
                self.remembered_bytes += after.bytes;
            } else {
                trace.remembered_until_ms = 0;
            }
        }
        if (before.keys, before.held, before.verdict) != (after.keys, after.held, after.verdict) {
            trace.asked = 0;
            self.confirm_anew(index, now_ms);
        }
    }

    /// Sees to it that a trace is looked at again when it must be.
    fn after_change(&mut self, index: u32, now_ms: u64) {
        self.drop_attempt_done_elsewhere(index);
        self.forget_oldest_keys(index, now_ms);
        let Some(trace) = self.table.get_mut(index) else { return };
        if trace.held_count == 0 {
            self.remember(index, now_ms);
        } else if trace.verdict != Verdict::None || self.outlook.is_last_to_leave() {
            trace.due_ms = trace.due_ms.min(now_ms);
        }
        self.look_again(index, now_ms);
        self.place(index, now_ms);
    }

    fn look_again(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get(index) else { return };
        if trace.held_count == 0 || trace.trying.is_some() {
            return;
        }
        let due_ms = trace.due_ms;
        let at = if due_ms <= now_ms { self.next_look(index, now_ms) } else { due_ms };
        self.wake_at(index, at);
    }

    /// When a due trace is to be looked at: by its owner at once, by others when it is time to ask.
    fn next_look(&self, index: u32, now_ms: u64) -> u64 {
        let Some(trace) = self.table.get(index) else { return u64::MAX };
        if self.outlook.role(trace.slot) == Role::Owner {
            return trace.due_ms.min(now_ms);
        }
        let wait = ASK_AFTER.saturating_mul(1 << trace.asked.min(4)).min(ASK_AFTER_MAX);
        now_ms.max(trace.due_ms) + to_ms(wait)
    }

    fn wake_at(&mut self, index: u32, at: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        if at < trace.wake_ms {
            trace.wake_ms = at;
            self.wakes.entry(at).or_default().push(index);
        }
    }

    /// A trace's time has come: decide (D1), try again (D2), or ask (A1). What is unplaced is
    /// offered, not asked about.
    fn consider(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get(index) else { return };
        if trace.held_count == 0 {
            return;
        }
        let role = self.outlook.role(trace.slot);
        if trace.trying.is_some() {
            self.try_again(index, role, now_ms);
            return;
        }
        let first_question = trace.due_ms.saturating_add(to_ms(ASK_AFTER));
        if now_ms < trace.due_ms {
            self.wake_at(index, trace.due_ms);
        } else if role != Role::Owner && trace.unplaced {
            // Looked at again when it is placed.
        } else if role != Role::Owner && now_ms < first_question {
            self.wake_at(index, first_question);
        } else if role != Role::Owner {
            self.ask(index, now_ms);
        } else if self.is_in_doubt(trace, now_ms) {
            self.wake_at(index, doubt_ends(trace));
        } else if self.outlook.is_calm(trace.slot) {
            self.decide(index, now_ms, Calm::Yes);
        } else if now_ms >= calm_by(trace) {
            self.decide(index, now_ms, Calm::RanOut);
        } else {
            self.wake_at(index, now_ms + to_ms(CALM_AGAIN));
        }
    }
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
