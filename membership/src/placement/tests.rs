//! Each sentence that the design says about placement, held by a test.

use std::collections::BTreeSet;

use proptest::prelude::*;
use siphasher::sip::SipHasher13;

use super::*;
use crate::view::{Incarnation, MemberState, NodeId, ViewMember, Weight};

fn member(id: &str, zone: &str, weight: f64) -> ViewMember {
    ViewMember {
        id: id.into(),
        incarnation: Incarnation::default(),
        weight: Weight::new(weight).unwrap(),
        zone: zone.into(),
        state: MemberState::Active,
    }
}

fn equal_members(count: usize) -> Vec<ViewMember> {
    (0..count).map(|number| member(&format!("node-{number}"), "", 1.0)).collect()
}

fn place(members: &[ViewMember]) -> Placement {
    Placement::new(Arc::new(View::new(members.iter().cloned())))
}

/// The rows of a table, each computed when it is asked for: properties look at few of them.
struct Rows {
    view: View,
    contenders: Contenders,
}

fn rows(members: &[ViewMember]) -> Rows {
    let view = View::new(members.iter().cloned());
    Rows { contenders: Contenders::new(&view), view }
}

fn row(rows: &Rows, slot: u16) -> Option<Holders> {
    holders(&rows.contenders.rank(slot, |_| true))
}

/// The holders of a slot by name: indices mean nothing across views.
fn names(rows: &Rows, slot: u16) -> Option<(NodeId, Option<NodeId>)> {
    row(rows, slot).map(|holders| named(&rows.view, holders))
}

fn named(view: &View, holders: Holders) -> (NodeId, Option<NodeId>) {
    let name = |index: MemberIndex| view.members()[usize::from(index)].id.clone();
    (name(holders.owner), holders.replica.map(name))
}

fn set(names: &(NodeId, Option<NodeId>)) -> BTreeSet<&NodeId> {
    std::iter::once(&names.0).chain(&names.1).collect()
}

/// Ids, zones and weights of 2 to 8 members; some sets have one zone, some equal weights.
fn members() -> impl Strategy<Value = Vec<ViewMember>> {
    let weight = prop_oneof![Just(1.0), Just(2.0), 0.1_f64..20.0];
    let ids = prop::collection::btree_set("[a-z]{1,6}", 2..9);
    (ids, any::<bool>(), any::<bool>()).prop_flat_map(move |(ids, zones, weights)| {
        let details = prop::collection::vec((0..3_u8, weight.clone()), ids.len());
        details.prop_map(move |details| {
            ids.iter()
                .zip(details)
                .map(|(id, (zone, weight))| {
                    let zone = if zones { format!("zone-{zone}") } else { String::new() };
                    member(id, &zone, if weights { weight } else { 1.0 })
                })
                .collect()
        })
    })
}

fn some_slots(start: u16) -> impl Iterator<Item = u16> {
    (0..500_u16).map(move |step| start.wrapping_add(step.wrapping_mul(131)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_leave_moves_exactly_the_slots_of_the_leaver(
        all in members(),
        who: prop::sample::Index,
        start: u16,
    ) {
        let leaver = all[who.index(all.len())].id.clone();
        let rest: Vec<_> = all.iter().filter(|member| member.id != leaver).cloned().collect();
        let (before, after) = (rows(&all), rows(&rest));
        for slot in some_slots(start) {
            let old = names(&before, slot).unwrap();
            let new = names(&after, slot).unwrap();
            if set(&old).contains(&leaver) {
                prop_assert_ne!(&old, &new);
            } else {
                prop_assert_eq!(&old, &new);
            }
        }
    }

    #[test]
    fn one_copy_and_not_two_travels_for_a_change_of_one_member(
        all in members(),
        who: prop::sample::Index,
        start: u16,
    ) {
        let changed = all[who.index(all.len())].id.clone();
        let without: Vec<_> = all.iter().filter(|member| member.id != changed).cloned().collect();
        let (with, without) = (rows(&all), rows(&without));
        for slot in some_slots(start) {
            let (with, without) = (names(&with, slot).unwrap(), names(&without, slot).unwrap());
            let newcomers = |from, to| set(to).difference(&set(from)).count();
            prop_assert!(newcomers(&with, &without) <= 1);
            prop_assert!(newcomers(&without, &with) <= 1);
        }
    }

    #[test]
    fn after_a_crash_the_former_replica_is_still_a_holder(all in members(), start: u16) {
        let zones: BTreeSet<_> = all.iter().map(|member| member.zone.clone()).collect();
        let before = rows(&all);
        for crashed in &all {
            let rest: Vec<_> = all.iter().filter(|other| other.id != crashed.id).cloned().collect();
            let after = rows(&rest);
            for slot in some_slots(start).step_by(3) {
                let (owner, replica) = names(&before, slot).unwrap();
                if owner == crashed.id {
                    let replica = replica.expect("two members or more");
                    let new = names(&after, slot).unwrap();
                    prop_assert!(set(&new).contains(&replica));
                    if zones.len() == 1 {
                        prop_assert_eq!(new.0, replica);
                    }
                }
            }
        }
    }

    #[test]
    fn after_a_join_one_of_the_old_holders_stays(
        all in members(),
        newcomer in members(),
        start: u16,
    ) {
        let taken: BTreeSet<_> = all.iter().map(|member| member.id.clone()).collect();
        let mut more = all.clone();
        more.extend(newcomer.into_iter().find(|member| !taken.contains(&member.id)));
        let (before, after) = (rows(&all), rows(&more));
        for slot in some_slots(start) {
            let old = names(&before, slot).unwrap();
            let new = names(&after, slot).unwrap();
            prop_assert!(!set(&old).is_disjoint(&set(&new)));
        }
    }

    #[test]
    fn the_order_in_which_members_are_found_does_not_matter(all in members(), start: u16) {
        let mut turned = all.clone();
        turned.reverse();
        turned.rotate_left(1);
        let (one, other) = (rows(&all), rows(&turned));
        prop_assert_eq!(one.view.hash(), other.view.hash());
        for slot in some_slots(start) {
            prop_assert_eq!(names(&one, slot), names(&other, slot));
        }
    }

    #[test]
    fn the_replica_is_in_another_zone_where_there_is_one(all in members(), start: u16) {
        let rows = rows(&all);
        let zone = |index: MemberIndex| &rows.view.members()[usize::from(index)].zone;
        let several = all.iter().any(|member| member.zone != all[0].zone);
        for slot in some_slots(start) {
            let holders = row(&rows, slot).unwrap();
            let replica = holders.replica.unwrap();
            prop_assert_ne!(holders.owner, replica);
            if several {
                prop_assert_ne!(zone(holders.owner), zone(replica));
            }
        }
    }
}

proptest! {
    // These build whole tables.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn the_table_has_the_row_of_every_slot(all in members()) {
        let (placement, rows) = (place(&all), rows(&all));
        for slot in 0..=u16::MAX {
            prop_assert_eq!(placement.holders(Slot(slot)), row(&rows, slot));
        }
    }

    #[test]
    fn holders_among_some_are_the_holders_in_a_view_of_these(
        all in members(),
        admitted: u8,
        start: u16,
    ) {
        let placement = place(&all);
        let admits = |index: MemberIndex| admitted >> index & 1 == 1;
        let some: Vec<_> = (0..).zip(placement.view().members())
            .filter(|(index, _)| admits(*index))
            .map(|(_, member)| member.clone())
            .collect();
        let expected = rows(&some);
        for slot in some_slots(start) {
            let among = placement.holders_among(Slot(slot), admits);
            let among = among.map(|holders| named(placement.view(), holders));
            prop_assert_eq!(among, names(&expected, slot));
        }
    }

    #[test]
    fn an_incarnation_changes_the_view_and_no_slot(all in members(), who: prop::sample::Index) {
        let mut restarted = all.clone();
        restarted[who.index(all.len())].incarnation.generation += 1;
        let before = place(&all);
        let after = before.next(Arc::new(View::new(restarted)));
        prop_assert_ne!(before.view().hash(), after.view().hash());
        prop_assert!(Arc::ptr_eq(&before.table, &after.table));
    }

    #[test]
    fn the_next_placement_is_that_of_its_view(all in members(), others in members(), start: u16) {
        let next = place(&all).next(Arc::new(View::new(others.clone())));
        let fresh = rows(&others);
        for slot in some_slots(start) {
            let holders = next.holders(Slot(slot)).map(|holders| named(next.view(), holders));
            prop_assert_eq!(holders, names(&fresh, slot));
        }
    }
}

#[test]
fn an_empty_view_has_no_holders() {
    let placement = Placement::default();
    assert_eq!(placement.holders(Slot(0)), None);
    assert_eq!(placement.holders(Slot(u16::MAX)), None);
    assert_eq!(placement.holders_among(Slot(7), |_| true), None);
    assert_eq!(placement.share(0), (0, 0));
}

#[test]
fn one_member_owns_everything_and_has_no_replica() {
    let placement = place(&equal_members(1));
    let expected = Holders { owner: 0, replica: None };
    assert!((0..=u16::MAX).all(|slot| placement.holders(Slot(slot)) == Some(expected)));
    assert_eq!(placement.share(0), (SLOT_COUNT, 0));
    assert!(expected.contain(0) && !expected.contain(1));
    assert_eq!(placement.holders_among(Slot(3), |_| false), None);
}

#[test]
fn shares_add_up_to_all_slots() {
    let placement = place(&equal_members(5));
    let (owned, replicas) = (0..5).fold((0, 0), |(owned, replicas), index| {
        let share = placement.share(index);
        (owned + share.0, replicas + share.1)
    });
    assert_eq!((owned, replicas), (SLOT_COUNT, SLOT_COUNT));
}

#[test]
fn slots_spread_evenly_over_equal_members() {
    // What sampling 65,536 slots leaves: about three standard deviations above the mean.
    for (count, most) in [(3, 1.015), (10, 1.035), (50, 1.09), (200, 1.20)] {
        let placement = place(&equal_members(count));
        let mean = f64::from(SLOT_COUNT) / count as f64;
        let owned = (0..count).map(|index| placement.share(index as u16).0).max().unwrap();
        let held = (0..count).map(|index| placement.share(index as u16)).map(|s| s.0 + s.1).max();
        let (owned, held) = (f64::from(owned) / mean, f64::from(held.unwrap()) / mean / 2.0);
        assert!(owned < most, "{count} members: the greatest share is {owned} of the mean");
        assert!(held < most, "{count} members: the greatest held share is {held} of the mean");
    }
}

#[test]
fn slots_spread_in_proportion_to_weights() {
    let weights = [1.0, 2.0, 4.0, 0.5];
    let members: Vec<_> =
        (0..).zip(weights).map(|(n, w)| member(&format!("n{n}"), "", w)).collect();
    let placement = place(&members);
    for (index, weight) in (0..).zip(weights) {
        let expected = f64::from(SLOT_COUNT) * weight / 7.5;
        let owned = f64::from(placement.share(index).0);
        assert!((owned / expected - 1.0).abs() < 0.05, "weight {weight}: {owned} for {expected}");
    }
}

#[test]
fn replicas_of_one_owner_spread_over_all_others() {
    let placement = place(&equal_members(5));
    let mut replicas = [0_u32; 5];
    for slot in 0..=u16::MAX {
        let holders = placement.holders(Slot(slot)).unwrap();
        if holders.owner == 2 {
            replicas[usize::from(holders.replica.unwrap())] += 1;
        }
    }
    assert_eq!(replicas[2], 0);
    let others = [replicas[0], replicas[1], replicas[3], replicas[4]];
    assert!(others.iter().all(|count| (3_000..3_550).contains(count)), "{others:?}");
}

#[test]
fn a_join_moves_its_share_to_the_newcomer_and_nothing_else() {
    let before = rows(&equal_members(9));
    let after = rows(&equal_members(10));
    let moved = (0..=u16::MAX)
        .filter(|slot| names(&before, *slot).unwrap().0 != names(&after, *slot).unwrap().0)
        .inspect(|slot| assert_eq!(names(&after, *slot).unwrap().0.as_str(), "node-9"))
        .count();
    assert!((6_200..6_900).contains(&moved), "{moved} slots moved, 6,554 is a tenth");
}

/// Another digest means that a node of this build and one of an older release place traces
/// differently: half of all traces would be split during an upgrade.
#[test]
fn the_digest_of_a_known_table_never_changes() {
    let digest = |members: &[ViewMember]| {
        let placement = place(members);
        let mut bytes = Vec::new();
        for slot in 0..=u16::MAX {
            let holders = placement.holders(Slot(slot)).unwrap();
            bytes.extend(holders.owner.to_le_bytes());
            bytes.extend(holders.replica.unwrap().to_le_bytes());
        }
        SipHasher13::new().hash(&bytes)
    };
    let zones = ["east", "west", "east", "", "west", "south", "east"];
    let weights = [1.0, 1.5, 0.25, 3.0, 1.0, 2.0, 16.0];
    let mixed: Vec<_> = zones
        .iter()
        .zip(weights)
        .enumerate()
        .map(|(number, (zone, weight))| member(&format!("node-{number}"), zone, weight))
        .collect();
    let digests = (digest(&equal_members(7)), digest(&mixed));
    assert_eq!(digests, (8_934_359_326_837_130_652, 2_067_957_809_796_264_203));
}
