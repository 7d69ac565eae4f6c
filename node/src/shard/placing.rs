//! Placing: hand-over, copying after a crash and bringing home, all by one mechanism (PROTOCOL.md,
//! P1 to P4).
//!
//! A view change makes the traces of changed slots unplaced; an unplaced trace is offered to the
//! other holders until each confirmed that it has all that is here. The invariant: bytes are given
//! up only here, only by a node that is no holder, and only when every holder of the present view
//! confirmed, in its present incarnation and under the same view, what is here now. When to offer
//! what to whom is kept by [`Offers`](super::offers::Offers).

use super::offers::{Former, Holder, OFFER_BYTES, Rank};
use super::standing::seats;
use super::trace::{SpanKey, SpanState, Trace};
use super::{Effect, OFFER_AGAIN, Role, Shard, to_ms};
use crate::frame::{HoldTrace, Verdict, milliseconds, trace_id_bytes};
use crate::sink::Attempt;
use crate::spans::Chunk;
use std::time::Duration;
use tokio::time::Instant;
use tracemesh_membership::{MemberIndex, Placement};

/// When an offer was answered but not confirmed: views differ for a round of gossip, and traces
/// change all the time.
pub(super) const OFFER_SOON: Duration = Duration::from_millis(200);

impl Shard {
    /// P1: a trace has other holders than in the `former` view, or was unplaced in it.
    pub(super) fn begin_placing(
        &mut self,
        index: u32,
        former: &Placement,
        was: &Former,
        now_ms: u64,
    ) {
        let Some(trace) = self.table.get_mut(index) else { return };
        trace.unplaced = true;
        let slot = trace.slot;
        let holders = former.holders(slot).map(seats).unwrap_or_default();
        let former_holders = holders.map(|holder| {
            let member = &former.view().members()[usize::from(holder?)];
            Some((holder?, &member.id, member.incarnation.generation))
        });
        let outlook = &self.outlook;
        let alive = former_holders.iter().flatten();
        let first = alive.clone().find(|(_, id, generation)| outlook.is_alive(id, *generation));
        let is_first = first.is_none_or(|(_, id, _)| **id == outlook.me);
        let others = outlook.others(slot).map(|member| {
            let member = member?;
            let (id, incarnation) = outlook.member(member);
            let same = |&&(_, known, generation): &&(MemberIndex, &_, u64)| {
                *known == id && generation == incarnation.generation
            };
            let known = former_holders.iter().flatten().find(same);
            let bytes = match known {
                Some(&(former_index, ..)) => was.bytes(index, former_index),
                None => is_first,
            };
            Some(Holder { member, bytes })
        });
        let wait = if is_first { 0 } else { to_ms(OFFER_AGAIN) };
        self.offers.insert(index, others, now_ms + wait, true);
        self.place(index, now_ms);
    }

    /// A view without members has no holders: what is unplaced waits for one that has.
    pub(super) fn keep_unplaced(&mut self, index: u32, now_ms: u64) {
        self.offers.insert(index, [None; 2], now_ms, true);
    }

    /// Another holder may lack something of a trace (H3).
    pub(super) fn unplace(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        if trace.unplaced {
            return;
        }
        trace.unplaced = true;
        let others = self.outlook.others(trace.slot);
        let others = others.map(|member| Some(Holder { member: member?, bytes: false }));
        self.offers.insert(index, others, now_ms, false);
    }

    /// What others confirmed of a trace until now, or are about to, counts no more.
    pub(super) fn confirm_anew(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        self.version = self.version.wrapping_add(1);
        trace.version = self.version;
        if trace.unplaced {
            self.offers.unconfirm(index, now_ms + to_ms(OFFER_SOON));
        }
    }

    /// P4: all other holders confirmed, and no attempt is in flight.
    pub(super) fn place(&mut self, index: u32, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index) else { return };
        let in_flight = trace.trying.as_ref().is_some_and(|trying| trying.in_flight());
        let has_holders = !self.outlook.placement().view().members().is_empty();
        if !trace.unplaced || in_flight || !has_holders || !self.offers.is_confirmed(index) {
            return;
        }
        trace.unplaced = false;
        let slot = trace.slot;
        self.offers.remove(index);
        if self.outlook.role(slot) == Role::StandIn {
            self.forget(index);
        } else {
            self.look_again(index, now_ms);
        }
    }

    /// P2: offers what is due to be offered, as far as the members' allowances let it, and no more
    /// than one turn may.
    pub(super) fn offer(&mut self, now_ms: u64) {
        let table = &self.table;
        self.offers.wake(now_ms, |index| table.get(index).map_or(NO_RANK, rank));
        let mut left = self.limits.traces_per_turn;
        for _ in 0..self.offers.member_count() {
            let member = self.offers.turn_to_next_member();
            while left > 0
                && let Some((index, seat)) = self.offers.next(member, now_ms)
            {
                left -= 1;
                let with_bytes = self.offers.bytes(index, seat);
                self.offers.offered(index, seat, with_bytes, now_ms + to_ms(OFFER_AGAIN));
                self.send(index, member, now_ms, |_, state| with_bytes && state != SpanState::Done);
            }
            if left == 0 {
                break;
            }
        }
    }

    /// A member wants some of what it was offered, `keys` in ascending order: it gets it at once if
    /// its allowance lets it.
    pub(super) fn give(&mut self, index: u32, member: MemberIndex, now_ms: u64, keys: &[SpanKey]) {
        let seat = self.offers.seat(index, member);
        if self.offers.may_give(member, now_ms) {
            let wanted = |key, state| state != SpanState::Done && keys.binary_search(&key).is_ok();
            self.send(index, member, now_ms, wanted);
            if let Some(seat) = seat {
                self.offers.given(index, seat);
            }
        } else if let Some(seat) = seat {
            self.offers.want(index, seat, now_ms + 1);
        }
    }

    /// Tells a member all that is here of a trace, with the bytes of `wanted` spans.
    pub(super) fn send(
        &mut self,
        index: u32,
        member: MemberIndex,
        now_ms: u64,
        wanted: impl Fn(SpanKey, SpanState) -> bool,
    ) {
        let Some(trace) = self.table.get(index) else { return };
        let spans = spans_of(trace, wanted).map(Box::new);
        let hold = Box::new(hold_of(trace, now_ms));
        let bytes = spans.as_ref().map_or(0, |spans| spans.bytes) + hold.bytes() + OFFER_BYTES;
        let (target, _) = self.outlook.member(member);
        let version = trace.version;
        self.offers.spend(member, bytes);
        self.effects.push(Effect::Offer { target, trace: hold, spans, version, bytes });
    }

    /// All that is held here, for the spool; the bytes are shared, not copied.
    pub fn held_traces(&self, now: Instant) -> Vec<(HoldTrace, Attempt)> {
        let now_ms = self.ms(now);
        let held = self.table.iter().filter_map(|(_, trace)| {
            let spans = spans_of(trace, |_, state| state != SpanState::Done)?;
            Some((hold_of(trace, now_ms), spans))
        });
        held.collect()
    }

    /// P3, about one offer that was answered.
    pub(super) fn on_offered(
        &mut self,
        index: u32,
        member: MemberIndex,
        confirmed: bool,
        now_ms: u64,
    ) {
        let Some(seat) = self.offers.seat(index, member) else { return };
        if confirmed {
            self.offers.confirm(index, seat);
        } else {
            self.offers.again(index, seat, now_ms + to_ms(OFFER_SOON));
        }
    }
}

/// A trace that is gone goes last.
const NO_RANK: Rank = Rank::Remembered { age_ms: u64::MAX };

fn rank(trace: &Trace) -> Rank {
    if trace.held_count > 0 {
        Rank::Open { due_ms: trace.due_ms }
    } else {
        Rank::Remembered { age_ms: u64::MAX - trace.remembered_until_ms }
    }
}

/// All that is known of a trace here, as a frame says it.
pub(super) fn hold_of(trace: &Trace, now_ms: u64) -> HoldTrace {
    let due_in = Duration::from_millis(trace.due_ms.saturating_sub(now_ms));
    let held = trace.keys().filter(|(_, state)| *state != SpanState::Done);
    HoldTrace {
        trace_id: trace_id_bytes(trace.id),
        due_in_ms: milliseconds(due_in),
        names: held.map(|(key, _)| key.name()).collect(),
        done: trace.keys_in(SpanState::Done).map(SpanKey::name).collect(),
        verdict: Verdict::into(trace.verdict),
        vanished: trace.vanished.lives().to_vec(),
    }
}

/// The bytes of some spans of a trace.
pub(super) fn spans_of(
    trace: &Trace,
    wanted: impl Fn(SpanKey, SpanState) -> bool,
) -> Option<Attempt> {
    let (chunks, span_count): (Vec<Chunk>, u32) = trace.chunks(wanted);
    let bytes = chunks.iter().map(|chunk| chunk.spans.len()).sum();
    let trace_id = trace.id;
    (span_count > 0).then_some(Attempt { trace_id, chunks, span_count, bytes, due: None })
}
