//! Which view each node had when, and who the holders of a slot are in it.
//!
//! Placement is the one part of the product that checks ask, because a slot's holders are by
//! definition what it says; whether it says what it should is itself checked (`placing`). The
//! invariant: a view here is a set of members with incarnations, weight 1 and the plan's zones,
//! so sets that are equal have the same holders, whoever had them.

use super::faults::Faults;
use super::licence::DETECT_MAX;
use super::lives::Lives;
use crate::history::{Entry, History, Life, ViewSeen, What};
use crate::plan::{Millis, NodeNumber, Plan, node_id};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracemesh_membership::{
    HashKey, Incarnation, MemberIndex, MemberState, Placement, Slot, View, ViewMember, Weight,
};

/// A set of nodes, one bit each; a plan has at most 50.
pub(super) type NodeSet = u64;

/// Who holds a slot: owner, replica.
pub(super) type HoldersOf = (NodeNumber, Option<NodeNumber>);

/// Which view of [`Views`].
pub(super) type ViewIndex = usize;

/// A node has another view than before; none from its start to its first view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) at: Millis,
    pub(super) node: NodeNumber,
    pub(super) before: Option<ViewIndex>,
    pub(super) after: Option<ViewIndex>,
}

/// A node dropped a member from its view that lived: one that did not leave, or one that left while
/// it was cut off, so that it could not tell what it had done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    pub(super) at: Millis,
    /// When the observer had it in its view again, or one of both ended or left; otherwise the end
    /// of time.
    pub(super) until: Millis,
    pub(super) member: NodeNumber,
    /// The observer's view before.
    pub(super) before: ViewIndex,
}

/// All views of all nodes.
#[derive(Debug)]
pub(super) struct Views {
    seen: Vec<(ViewSeen, NodeSet)>,
    changes: Vec<Change>,
    key: HashKey,
    seed: u64,
    /// All nodes of the plan, and the number of each member of it.
    everybody: Placement,
    numbers: Vec<NodeNumber>,
    known: RefCell<BTreeMap<(u16, NodeSet), Option<HoldersOf>>>,
}

impl Views {
    pub(super) fn new(history: &History) -> Self {
        let nodes: Vec<NodeNumber> = history.plan.all_nodes().collect();
        let view = view_of(&history.plan, &nodes);
        let number = |id: &str| id.strip_prefix("node-").and_then(|number| number.parse().ok());
        let numbers = view.members().iter().filter_map(|member| number(member.id.as_str()));
        let numbers = numbers.collect();
        let mut views = Self {
            seen: Vec::new(),
            changes: Vec::new(),
            key: HashKey(history.hash_key),
            seed: history.plan.seed,
            everybody: Placement::new(Arc::new(view)),
            numbers,
            known: RefCell::default(),
        };
        let mut index_of = BTreeMap::new();
        let mut present = vec![None; nodes.len()];
        for Entry { at, what } in &history.entries {
            let (node, after) = match what {
                What::Life { node, event: Life::Started } => (*node, None),
                What::View { node, view } => {
                    let index = *index_of.entry(view).or_insert_with(|| views.add(view));
                    (*node, Some(index))
                }
                _ => continue,
            };
            let Some(present) = present.get_mut(node) else { continue };
            if *present != after {
                views.changes.push(Change { at: *at, node, before: *present, after });
                *present = after;
            }
        }
        views
    }

    fn add(&mut self, view: &ViewSeen) -> ViewIndex {
        let set = view.members.iter().fold(0, |set, (node, _, _)| set | 1 << node);
        self.seen.push((view.clone(), set));
        self.seen.len() - 1
    }

    /// A view.
    pub(super) fn seen(&self, view: ViewIndex) -> &ViewSeen {
        &self.seen[view].0
    }

    /// Its members as a set.
    pub(super) fn set(&self, view: ViewIndex) -> NodeSet {
        self.seen[view].1
    }

    /// Every change of every node's view, in order.
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Changes in a stretch of time.
    pub(super) fn changes_within(&self, from: Millis, until: Millis) -> &[Change] {
        let first = self.changes.partition_point(|change| change.at < from);
        let end = self.changes.partition_point(|change| change.at <= until);
        &self.changes[first..end.max(first)]
    }

    /// The view of a node at a moment, what changed in that millisecond included.
    pub(super) fn at(&self, node: NodeNumber, at: Millis) -> Option<ViewIndex> {
        let end = self.changes.partition_point(|change| change.at <= at);
        self.changes[..end].iter().rev().find(|change| change.node == node)?.after
    }

    /// The views that a node had in a stretch of time, the one at its beginning included.
    pub(super) fn of_within(
        &self,
        node: NodeNumber,
        from: Millis,
        until: Millis,
    ) -> impl Iterator<Item = ViewIndex> {
        let changes = self.changes_within(from, until).iter();
        let later = changes.filter(move |change| change.node == node);
        let first = self.at(node, Millis(from.0.saturating_sub(1)));
        first.into_iter().chain(later.filter_map(|change| change.after))
    }

    /// The slot of a trace.
    pub(super) fn slot(&self, trace: u32) -> Slot {
        self.key.slot(&crate::spans::trace_id(self.seed, trace))
    }

    /// Who holds a slot among some nodes.
    pub(super) fn holders(&self, slot: Slot, set: NodeSet) -> Option<HoldersOf> {
        if let Some(known) = self.known.borrow().get(&(slot.0, set)) {
            return *known;
        }
        let number = |index: MemberIndex| self.numbers[usize::from(index)];
        let among = |index: MemberIndex| set & 1 << number(index) != 0;
        let holders = self.everybody.holders_among(slot, among);
        let holders = holders.map(|found| (number(found.owner), found.replica.map(number)));
        self.known.borrow_mut().insert((slot.0, set), holders);
        holders
    }

    /// Whether a slot's holders, as (id, incarnation), differ between two views.
    pub(super) fn differ(
        &self,
        slot: Slot,
        one: Option<ViewIndex>,
        two: Option<ViewIndex>,
    ) -> bool {
        let in_view = |view: Option<ViewIndex>| {
            let view = view?;
            let (owner, replica) = self.holders(slot, self.set(view))?;
            let member = |node| self.seen(view).members.iter().find(|member| member.0 == node);
            Some((member(owner), replica.map(member)))
        };
        in_view(one) != in_view(two)
    }

    /// Members that somebody dropped although they lived and, where messages passed, did not leave.
    pub(super) fn dropped(&self, lives: &Lives, faults: &Faults<'_>) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        for (number, change) in self.changes.iter().enumerate() {
            let (Some(before), Some(after)) = (change.before, change.after) else { continue };
            let gone = self.set(before) & !self.set(after);
            for member in lives.nodes().filter(|node| gone & 1 << node != 0) {
                let Some(life) = lives.at(member, change.at) else { continue };
                let is_first =
                    lives.of(member).first().is_some_and(|one| one.started == life.started);
                // One that began again a moment ago is dropped for its former life.
                let is_former = !is_first && change.at.0 - life.started.0 < DETECT_MAX;
                let leaves = life.draining.is_some_and(|draining| draining <= change.at);
                if is_former || leaves && !faults.apart(change.node, member, change.at) {
                    continue;
                }
                let mut later = self.changes[number + 1..].iter();
                let back = later.find(|later| {
                    let has_it = |view| self.set(view) & 1 << member != 0;
                    later.node == change.node && later.after.is_none_or(has_it)
                });
                let left = life.draining.filter(|_| !leaves);
                let ended = left.into_iter().chain(life.ended.map(|(at, _)| at)).min();
                let until = back.map(|back| back.at).into_iter().chain(ended).min();
                let until = until.unwrap_or(Millis(u64::MAX));
                dropped.push(Dropped { at: change.at, until, member, before });
            }
        }
        dropped
    }

    /// A view in words: the numbers of its members, `g2` behind one in its second generation, `e1`
    /// behind one in its first epoch after that.
    pub(super) fn text(&self, view: Option<ViewIndex>) -> String {
        let Some(view) = view else { return "no view".to_owned() };
        let member = |(node, generation, epoch): &(NodeNumber, u64, u32)| {
            let all = self.seen.iter().flat_map(|(view, _)| &view.members);
            let of_node = all.filter(|other| other.0 == *node && other.1 < *generation);
            let earlier: BTreeSet<u64> = of_node.map(|other| other.1).collect();
            let mut text = node.to_string();
            if !earlier.is_empty() {
                text += &format!("g{}", earlier.len() + 1);
            }
            if *epoch > 0 {
                text += &format!("e{epoch}");
            }
            text
        };
        let members: Vec<String> = self.seen(view).members.iter().map(member).collect();
        format!("[{}]", members.join(" "))
    }
}

/// The view of some nodes of a plan; incarnations do not matter to placement.
pub(super) fn view_of(plan: &Plan, nodes: &[NodeNumber]) -> View {
    View::new(nodes.iter().map(|node| ViewMember {
        id: node_id(*node).into(),
        incarnation: Incarnation::default(),
        weight: Weight::default(),
        zone: plan.zone(*node).into(),
        state: MemberState::Active,
    }))
}
