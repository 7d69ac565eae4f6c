//! `placement_minimal`: a change of one member moves one copy of a slot's traces, and no slot in
//! vain.
//!
//! The tables of each two views that followed each other somewhere, and differ in one member, are
//! built anew and compared by the sentences that the design states of them. The invariant: what is
//! compared are the product's whole tables, not the look-ups that the other checks use, and the two
//! have to agree as well. Bounded by [`PAIRS_MAX`], because a table costs milliseconds.

use super::model::Model;
use super::views::{HoldersOf, NodeSet, view_of};
use super::{Finding, Invariant, Verdict};
use crate::plan::NodeNumber;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracemesh_membership::{Placement, SLOT_COUNT, Slot};

/// Pairs of views that are compared in one history.
const PAIRS_MAX: usize = 16;

/// Every so many slots one is compared. Odd, so that no pattern of powers of two is missed.
const SLOT_STEP: usize = 15;

/// By slot: owner, replica.
type Table = Vec<Option<HoldersOf>>;

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    let mut pairs: BTreeSet<(NodeSet, NodeSet)> = BTreeSet::new();
    for change in model.views.changes() {
        let (Some(before), Some(after)) = (change.before, change.after) else { continue };
        let (before, after) = (model.views.set(before), model.views.set(after));
        // A join read backwards is a leave: the same sentences, and the same pair.
        let (more, less) = if before & after == after { (before, after) } else { (after, before) };
        if less & !more == 0 && (more & !less).count_ones() == 1 && less != 0 {
            pairs.insert((more, less));
        }
    }
    let mut tables: BTreeMap<NodeSet, Table> = BTreeMap::new();
    for (more, less) in pairs.into_iter().take(PAIRS_MAX) {
        for set in [more, less] {
            tables.entry(set).or_insert_with(|| table(model, set));
        }
        let Some(member) = model.lives.nodes().find(|node| more & !less & 1 << node != 0) else {
            continue;
        };
        let zones = model.history.plan.cluster.zones > 0;
        let rule = if zones { Zones::Named } else { Zones::None };
        let moved = needless(member, rule, &tables[&more], &tables[&less]);
        if let Some((slot, why)) = moved {
            add(model, verdict, member, format!("slot {slot}, {}: {why}", sets(more, less)));
        }
    }
    for (set, table) in &tables {
        let mut slots = table.iter().enumerate();
        let differs =
            slots.find(|(number, holders)| model.views.holders(slot(*number), *set) != **holders);
        if let Some((number, _)) = differs {
            let text = format!(
                "slot {}: table and look-up differ among nodes {:?}",
                slot(number).0,
                nodes(*set)
            );
            add(model, verdict, 0, text);
        }
        let zone = |node: NodeNumber| model.history.plan.zone(node);
        if let Some((slot, why)) = together(*set, zone, table) {
            add(model, verdict, 0, format!("slot {slot} among nodes {:?}: {why}", nodes(*set)));
        }
    }
}

/// The first slot with both copies in one zone although there is another, or with one copy although
/// there are more nodes than one.
pub(super) fn together(
    set: NodeSet,
    zone: impl Fn(NodeNumber) -> String,
    table: &[Option<HoldersOf>],
) -> Option<(u16, String)> {
    let zones: BTreeSet<String> = nodes(set).into_iter().map(&zone).collect();
    table.iter().enumerate().find_map(|(number, holders)| {
        let (owner, replica) = (*holders)?;
        let why = match replica {
            None if set.count_ones() > 1 => format!("node-{owner} has no replica"),
            Some(replica) if replica == owner => format!("node-{owner} is its own replica"),
            Some(replica) if zones.len() > 1 && zone(owner) == zone(replica) => {
                format!("node-{owner} and node-{replica} are in one zone")
            }
            _ => return None,
        };
        Some((slot(number).0, why))
    })
}

fn slot(number: usize) -> Slot {
    Slot((number * SLOT_STEP) as u16)
}

fn table(model: &Model<'_>, set: NodeSet) -> Table {
    let nodes = nodes(set);
    let placement = Placement::new(Arc::new(view_of(&model.history.plan, &nodes)));
    let number = |index: u16| {
        let id = placement.view().members()[usize::from(index)].id.as_str();
        id.strip_prefix("node-").and_then(|number| number.parse::<NodeNumber>().ok())
    };
    let holders = |slot| {
        let holders = placement.holders(slot)?;
        Some((number(holders.owner)?, holders.replica.and_then(number)))
    };
    (0..SLOT_COUNT as usize / SLOT_STEP).map(|number| holders(slot(number))).collect()
}

/// Whether replicas are in other zones than owners, so that not every sentence holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Zones {
    None,
    Named,
}

/// The first slot that moves needlessly when `member` leaves `more`, and why it does.
pub(super) fn needless(
    member: NodeNumber,
    zones: Zones,
    more: &[Option<HoldersOf>],
    less: &[Option<HoldersOf>],
) -> Option<(u16, String)> {
    more.iter().zip(less).enumerate().find_map(|(number, (with, without))| {
        let (Some((owner, replica)), Some((next, _))) = (with, without) else {
            return Some((slot(number).0, "has no holders".to_owned()));
        };
        let stays = |node: NodeNumber| {
            without.is_some_and(|(owner, replica)| owner == node || replica == Some(node))
        };
        let why = if *owner != member && *replica != Some(member) {
            (with != without).then(|| format!("moves from {with:?} to {without:?} in vain"))
        } else if *owner == member {
            let heir = replica.filter(|replica| !stays(*replica));
            let is_heir = zones == Zones::Named || replica.is_none_or(|replica| replica == *next);
            (heir.is_some() || !is_heir)
                .then(|| format!("the replica of {with:?} is not the owner in {without:?}"))
        } else {
            (owner != next).then(|| format!("the owner of {with:?} changes to {without:?}"))
        };
        why.map(|why| (slot(number).0, why))
    })
}

fn nodes(set: NodeSet) -> Vec<NodeNumber> {
    (0..64).filter(|node| set & 1 << node != 0).collect()
}

fn sets(more: NodeSet, less: NodeSet) -> String {
    format!("between nodes {:?} and {:?}", nodes(more), nodes(less))
}

fn add(model: &Model<'_>, verdict: &mut Verdict, member: NodeNumber, text: String) {
    verdict.add(Finding {
        invariant: Invariant::PlacementMinimal,
        at: model.history.ended_at,
        trace: None,
        nodes: vec![member],
        text,
        story: Vec::new(),
    });
}
