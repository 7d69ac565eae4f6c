//! Views and placement: who agrees, what moves, what has settled.

use super::*;
use crate::check::placing::{Zones, needless};

#[test]
fn what_is_unplaced_long_after_healing_is_found() {
    // A node that crashes late leaves no time.
    for (crash, is_found) in [(70_000, true), (80_000, false)] {
        for (unplaced, settled) in [(3, true), (0, false), (3, false)] {
            let mut told = Told::calm();
            told.crash(crash, 4, &[0, 1, 2, 3]);
            let mut history = told.end();
            let look = history.last_looks.get_mut(&3).unwrap();
            (look.unplaced, look.settled) = (unplaced, settled);
            let verdict = check(&history);
            if is_found {
                assert_only(&verdict, Invariant::EverythingEnds, 1);
                assert!(pending(&history)[0].contains("node-3 has"));
            } else {
                assert_green(&verdict);
            }
        }
    }
}

#[test]
fn both_copies_in_one_zone_are_found() {
    let zone = |node: NodeNumber| (node % 2).to_string();
    let good = [Some((0, Some(1))), Some((1, Some(2)))];
    assert_eq!(placing::together(0b111, zone, &good), None);
    assert_eq!(placing::together(0b101, zone, &[Some((0, Some(2)))]), None, "one zone is left");
    for (holders, why) in [((0, Some(2)), "in one zone"), ((1, None), "no replica")] {
        let (_, text) = placing::together(0b111, zone, &[good[0], Some(holders)]).unwrap();
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn views_that_differ_at_the_end_are_found() {
    let mut told = Told::calm();
    told.view(70_000, 3, &[0, 1, 2, 3]);
    let history = told.end();
    assert_only(&check(&history), Invariant::ViewsConverge, 1);
    assert!(pending(&history)[0].contains("node-3 lacks node-4"));

    let mut told = Told::calm();
    told.life(70_000, 4, Life::Crashed);
    let verdict = told.judge();
    assert_only(&verdict, Invariant::ViewsConverge, 4);
    assert!(verdict.findings[0].text.contains("node-4, which is not active"));

    let mut told = Told::calm();
    told.view_of(70_000, 3, &[(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0)]);
    let verdict = told.judge();
    assert_only(&verdict, Invariant::ViewsConverge, 2);
    assert!(verdict.findings[0].text.contains("have different views"));
}

#[test]
fn view_that_changes_in_a_calm_cluster_is_found() {
    let mut told = Told::calm();
    told.view(90_000, 3, &[0, 1, 2, 3]);
    told.view(91_000, 3, &[0, 1, 2, 3, 4]);
    assert_only(&told.judge(), Invariant::ViewsConverge, 2);
}

#[test]
fn slot_that_moves_in_vain_is_found() {
    let with = [Some((0, Some(1))), Some((2, Some(0))), Some((1, Some(2)))];
    let good = [Some((0, Some(1))), Some((0, Some(1))), Some((1, Some(0)))];
    assert_eq!(needless(2, Zones::None, &with, &good), None);
    let wrong = [
        (0, Some((1, Some(0))), "in vain"),
        (1, Some((1, Some(0))), "is not the owner"),
        (1, Some((1, Some(3))), "is not the owner"),
        (2, Some((0, Some(1))), "the owner of"),
        (2, None, "has no holders"),
    ];
    for (slot, holders, why) in wrong {
        let mut without = good;
        without[slot] = holders;
        let (_, text) = needless(2, Zones::None, &with, &without).unwrap();
        assert!(text.contains(why), "{text}");
    }
    let mut without = good;
    without[1] = Some((1, Some(0)));
    assert_eq!(needless(2, Zones::Named, &with, &without), None, "an heir in the same zone");
}

#[test]
fn placement_of_every_view_that_occurred_is_minimal() {
    for zones in [0, 2, 3] {
        let mut told =
            Told::of(Plan { cluster: ClusterOptions { zones, ..plan().cluster }, ..plan() });
        told.crash(10_000, 1, &[0, 2, 3, 4]);
        told.crash(20_000, 2, &[0, 3, 4]);
        told.life(25_000, 5, Life::Started);
        told.life(26_000, 5, Life::Ready);
        [0, 3, 4, 5].iter().for_each(|node| told.view(26_000, *node, &[0, 3, 4, 5]));
        assert_green(&told.judge());
    }
}

#[test]
fn leaving_node_is_in_no_view() {
    let mut told = Told::calm();
    told.life(70_000, 4, Life::Draining);
    (0..NODES).for_each(|node| told.view(70_200, node, &[0, 1, 2, 3]));
    assert_green(&told.judge());
}

#[test]
fn view_that_is_seen_at_the_end_of_its_step_counts_from_the_beginning() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (30_000, 2));
    told.view(30_008, 2, &[0, 2, 3, 4]);
    told.view(40_000, 2, &[0, 1, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::LiveNodeDropped);
}
