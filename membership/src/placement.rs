//! Placement: which members hold which slot.
//!
//! A table, slot to (owner, replica), computed once for a view and shared. It is a pure function of
//! the *set* of members with their weights and zones: nodes that agree on the set agree on every
//! slot, with no claims, no history, and nothing to reconcile when a partition heals. Where one
//! member comes or goes, each slot keeps at least one of its holders, and slots that the member
//! does not hold keep both.
//!
//! A value: built, then never changed. It does not know whether a member answers;
//! [`Placement::holders_among`] is asked with those that do.

use std::sync::Arc;

pub use crate::rank::MemberIndex;
use crate::rank::{Contenders, NOBODY, Ranked};
use crate::slot::{SLOT_COUNT, Slot};
use crate::view::View;

/// Who holds a slot, as indices into the view's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holders {
    /// Decides about the slot's traces.
    pub owner: MemberIndex,
    /// Keeps the same data; in another zone than the owner's where there is one. None in a view of
    /// one member.
    pub replica: Option<MemberIndex>,
}

impl Holders {
    /// Whether this member is one of them.
    #[must_use]
    pub fn contain(&self, member: MemberIndex) -> bool {
        self.owner == member || self.replica == Some(member)
    }
}

/// The holders of every slot in one view.
#[derive(Debug)]
pub struct Placement {
    view: Arc<View>,
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    contenders: Contenders,
    /// By slot; empty for an empty view.
    rows: Box<[Ranked]>,
    /// By member: slots owned, slots held as replica.
    shares: Box<[(u32, u32)]>,
}

impl Placement {
    /// Computes the table: some 5 ms for 10 members, 30 ms for 200, twice that where all weights
    /// differ. An empty view has no holders.
    ///
    /// # Panics
    /// The view has more than 65,535 members.
    #[must_use]
    pub fn new(view: Arc<View>) -> Self {
        let contenders = Contenders::new(&view);
        Self { view, table: Arc::new(Table::new(contenders)) }
    }

    /// The placement of the next view. Where only incarnations changed, it is the same table.
    #[must_use]
    pub fn next(&self, view: Arc<View>) -> Self {
        let contenders = Contenders::new(&view);
        if contenders == self.table.contenders {
            Self { view, table: Arc::clone(&self.table) }
        } else {
            Self { view, table: Arc::new(Table::new(contenders)) }
        }
    }

    /// The view that it was computed for.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The holders of a slot; `None` in an empty view. A table look-up.
    #[must_use]
    pub fn holders(&self, slot: Slot) -> Option<Holders> {
        self.table.rows.get(usize::from(slot.0)).and_then(holders)
    }

    /// The holders that the same scores and the same rule for zones give among some of the members
    /// only. Scores them anew: microseconds.
    #[must_use]
    pub fn holders_among(
        &self,
        slot: Slot,
        admitted: impl Fn(MemberIndex) -> bool,
    ) -> Option<Holders> {
        let ranked = self.table.contenders.rank(slot.0, admitted);
        holders(&ranked)
    }

    /// What every member of the view scores for a slot, the highest first: the first is its owner,
    /// and the next one in another zone, or the next one at all, its replica.
    #[must_use]
    pub fn scores(&self, slot: Slot) -> Vec<(MemberIndex, f64)> {
        let scores = self.table.contenders.scores(slot.0);
        scores.into_iter().map(|(member, score)| (member, score / 1000.0)).collect()
    }

    /// How many slots a member owns, and how many it holds as replica; (0, 0) for an index that is
    /// not in the view.
    #[must_use]
    pub fn share(&self, member: MemberIndex) -> (u32, u32) {
        self.table.shares.get(usize::from(member)).copied().unwrap_or_default()
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Table {
    fn new(contenders: Contenders) -> Self {
        let count = contenders.len();
        assert!(count <= usize::from(NOBODY), "a view of {count} members has no indices");
        let slots = if count == 0 { 0 } else { SLOT_COUNT };
        let rows: Box<[Ranked]> =
            (0..slots).map(|slot| contenders.rank(slot as u16, |_| true)).collect();
        let mut shares = vec![(0, 0); count].into_boxed_slice();
        for row in &rows {
            shares[usize::from(row.owner)].0 += 1;
            if let Some(share) = shares.get_mut(usize::from(row.replica)) {
                share.1 += 1;
            }
        }
        Self { contenders, rows, shares }
    }
}

fn holders(ranked: &Ranked) -> Option<Holders> {
    let member = |index| (index != NOBODY).then_some(index);
    Some(Holders { owner: member(ranked.owner)?, replica: member(ranked.replica) })
}

#[cfg(test)]
mod tests;
