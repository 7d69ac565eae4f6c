//! What a new view means for the traces that were here before it (PROTOCOL.md, P1).
//!
//! A shard remembers hundreds of thousands of traces, and clients wait meanwhile for what they
//! sent to be held: so some are looked at in each turn, those of which something is held first, and
//! any other one before something happens to it. The invariant: no rule meets a trace that was not
//! looked at by the present view, and the node has not settled before all were.

use super::offers::Former;
use super::standing::{Standing, Stayed, index_of, role};
use super::vanished::life;
use super::{Role, Shard};
use crate::spans::TraceId;
use tracemesh_membership::{MemberIndex, Slot, ViewMember};

/// The last view, for as long as some trace was looked at by no later one.
#[derive(Clone, Debug)]
pub(super) struct Review {
    former: Standing,
    /// Where this node was in it.
    my_index: Option<MemberIndex>,
    /// Who of it is in the present view still.
    stayed: Stayed,
    /// What was unplaced in it; none where only this node's own state is another.
    unplaced: Option<Former>,
    pass: Pass,
    /// Where in the table to go on, and when.
    next: u32,
    pub(super) next_ms: u64,
}

/// Between two turns of looking at traces, in milliseconds: all nodes look at theirs at the same
/// time, and clients are to have more than half of it. With a turn of 256 traces a shard looks at
/// 64,000 a second.
const REST_MS: u64 = 4;

/// In place of one trace that is looked at, so many may be passed over.
const PASSED_OVER: usize = 16;

/// A walk through the table, and what it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pass {
    Held,
    All,
}

impl Review {
    /// What it takes beside the traces themselves.
    pub(super) fn cost_bytes(&self) -> usize {
        self.unplaced.as_ref().map_or(0, Former::cost_bytes)
    }

    fn role(&self, slot: Slot) -> Role {
        role(&self.former.placement, self.my_index, slot)
    }

    fn owner(&self, slot: Slot) -> Option<&ViewMember> {
        self.former.owner(slot)
    }

    pub(super) fn hash(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.former.view_hash(), self.former.state, self.pass, self.next).hash(hasher);
    }

    /// What a trace's future depends on as long as it was not looked at.
    pub(super) fn hash_trace(&self, index: u32, met: bool, hasher: &mut impl std::hash::Hasher) {
        hasher.write_u8(u8::from(met));
        if let Some(unplaced) = self.unplaced.as_ref().filter(|_| !met) {
            unplaced.hash(index, hasher);
        }
    }
}

impl Shard {
    /// The view changed from `former`, or this node's own state did.
    pub(super) fn begin_review(&mut self, former: Standing, now_ms: u64) {
        let present = self.outlook.placement();
        let same_view = former.view_hash() == self.view_hash();
        let was = |member: &ViewMember| index_of(&former.placement, &member.id);
        let unplaced =
            (!same_view).then(|| self.offers.begin_view(present.view().members().iter().map(was)));
        self.table.begin_view();
        self.review = Some(Box::new(Review {
            my_index: index_of(&former.placement, &self.outlook.me),
            stayed: Stayed::new(&former.placement, present),
            former,
            unplaced,
            pass: Pass::Held,
            next: 0,
            next_ms: now_ms,
        }));
        self.review_some(now_ms);
    }

    /// Looks at as many traces as one turn may, if it is time for one.
    pub(super) fn review_some(&mut self, now_ms: u64) {
        if self.review.as_ref().is_some_and(|review| review.next_ms <= now_ms) {
            self.review_turn(now_ms);
        }
    }

    fn review_turn(&mut self, now_ms: u64) {
        let mut left = self.limits.traces_per_turn * PASSED_OVER;
        while let Some(review) = &mut self.review {
            if review.next >= self.table.end() {
                if review.pass == Pass::All {
                    self.review = None;
                    return;
                }
                (review.pass, review.next) = (Pass::All, 0);
            } else if left == 0 {
                review.next_ms = now_ms + REST_MS;
                return;
            } else {
                let (index, pass) = (review.next, review.pass);
                review.next += 1;
                let trace = self.table.get(index);
                if trace.is_some_and(|trace| pass == Pass::All || trace.held_count > 0) {
                    self.review(index, now_ms);
                    left = left.saturating_sub(PASSED_OVER);
                } else {
                    left -= 1;
                }
            }
        }
    }

    /// Looks at all that are left: the view changes again.
    pub(super) fn end_review(&mut self, now_ms: u64) {
        while self.review.is_some() {
            self.review_turn(now_ms);
        }
    }

    /// The index of a trace that is here, and was looked at.
    pub(super) fn find(&mut self, id: TraceId, now_ms: u64) -> Option<u32> {
        let index = self.table.find(id)?;
        self.review(index, now_ms);
        Some(index)
    }

    /// Looks at one trace, unless that was done.
    pub(super) fn review(&mut self, index: u32, now_ms: u64) {
        let Some(review) = self.review.take() else { return };
        if self.table.meets_view(index) {
            self.take_role(index, &review, now_ms);
            self.take_seats(index, &review, now_ms);
        }
        self.review = Some(review);
    }

    /// The view changed: a held trace may have another owner now.
    fn take_role(&mut self, index: u32, review: &Review, now_ms: u64) {
        let Some(trace) = self.table.get_mut(index).filter(|trace| trace.held_count > 0) else {
            return;
        };
        let role = self.outlook.role(trace.slot);
        self.held.change(review.role(trace.slot), trace.held_since, trace.held_count, 0);
        self.held.change(role, trace.held_since, 0, trace.held_count);
        let owner = review.owner(trace.slot);
        let was_mine = owner.is_some_and(|owner| owner.id == self.outlook.me);
        let generation = |owner: &ViewMember| owner.incarnation.generation;
        let vanished = owner.is_some_and(|o| !self.outlook.is_alive(&o.id, generation(o)));
        let takes_over = trace.due_ms <= now_ms && role == Role::Owner && !was_mine;
        trace.taken_over |= takes_over;
        if let Some(owner) = owner.filter(|_| takes_over && vanished) {
            trace.vanished.add(life(&self.hash_key, &owner.id, generation(owner)), now_ms);
        }
        trace.asked = 0;
        if let Some(trying) = &trace.trying {
            trying.leave_to(role != Role::Owner);
        }
        if self.outlook.is_last_to_leave() {
            trace.due_ms = trace.due_ms.min(now_ms);
        }
        self.look_again(index, now_ms);
    }

    /// The view changed: a trace may have other holders now, or not have come to those it had.
    fn take_seats(&mut self, index: u32, review: &Review, now_ms: u64) {
        let slot = self.table.get(index).map(|trace| trace.slot);
        let (Some(was), Some(slot)) = (&review.unplaced, slot) else { return };
        let (former, present) = (&review.former.placement, self.outlook.placement());
        let is_known = was.contains(index);
        if present.view().members().is_empty() {
            if is_known {
                self.keep_unplaced(index, now_ms);
            }
        } else if is_known || !review.stayed.holders(former, present, slot) {
            self.begin_placing(index, former, was, now_ms);
        }
    }
}
