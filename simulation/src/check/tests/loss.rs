//! Spans that were acknowledged and did not come out: what is found, and what is excused.

use super::*;

#[test]
fn span_lost_without_a_crash_is_found_with_its_story() {
    let mut told = Told::calm();
    told.load(0..100);
    let trace = told.trace(100, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.export(2_100, 1, all_spans(trace)[..3].to_vec());
    let verdict = told.judge();
    assert_only(&verdict, Invariant::NoAcknowledgedSpanLost, 1);
    assert_eq!(verdict.totals.lost, 1);
    let finding = verdict.findings[0].to_string();
    for word in ["none of those", "owner node-1, replica node-2", "seed 1", "span 3 was ack"] {
        assert!(finding.contains(word), "{finding}");
    }
}

#[test]
fn span_lost_with_one_of_two_holders_is_found() {
    for gone in [1, 2] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        let others: Vec<_> = (0..NODES).filter(|node| *node != gone).collect();
        told.crash(1_500, gone, &others);
        // Another crash that has nothing to do with it is no excuse.
        let others: Vec<_> = others.into_iter().filter(|node| *node != 4).collect();
        told.crash(1_600, 4, &others);
        assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);
    }
}

#[test]
fn span_lost_with_both_holders_at_once_is_licensed() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    told.crash(1_900, 2, &[0, 3, 4]);
    assert_licensed(&told.judge(), Licence::BothHoldersGone);
}

#[test]
fn span_lost_with_the_second_holder_is_licensed_until_it_was_copied() {
    for (second, licence) in [(15_000, Some(Licence::BothHoldersGone)), (21_900, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.crash(1_500, 1, &[0, 2, 3, 4]);
        told.crash(second, 2, &[0, 3, 4]);
        assert_lost(told, licence);
    }
}

#[test]
fn what_keeps_nodes_apart_gives_copying_more_time() {
    let pair_cut = |pair| Fault::PairCut { pair, for_ms: Millis(9_000) };
    for (from, fault, licence) in [
        (1_400, pair_cut((2, 4)), Some(Licence::BothHoldersGone)),
        (17_000, pair_cut((2, 4)), None),
        (1_400, Fault::DiskFull { node: 2, for_ms: Millis(9_000) }, None),
        (1_400, Fault::Sink { node: None, for_ms: Millis(9_000), mood: Mood::Dead }, None),
    ] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.crash(1_500, 1, &[0, 2, 3, 4]);
        told.fault(from, from + 9_000, fault);
        told.crash(21_900, 2, &[0, 3, 4]);
        assert_lost(told, licence);
    }
}

#[test]
fn restart_counts_as_the_loss_of_a_holder() {
    for (second, licence) in [(9_000, Some(Licence::BothHoldersGone)), (21_500, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        for (at, node) in [(1_500, 1), (second, 2)] {
            told.life(at, node, Life::Crashed);
            told.life(at + 100, node, Life::Started);
            told.life(at + 900, node, Life::Ready);
            let generation = |other| if other == 1 || (other == 2 && node == 2) { 2 } else { 1 };
            let members: Vec<_> = (0..NODES).map(|other| (other, generation(other), 0)).collect();
            (0..NODES).for_each(|other| told.view_of(at + 1_000, other, &members));
        }
        assert_lost(told, licence);
    }
}

/// The replica of a trace's slot once a node has gone.
fn heir(told: &Told, trace: u32, gone: u16) -> NodeNumber {
    let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
    let holders = told.placement.holders_among(slot, |index| index != gone).unwrap();
    usize::from(holders.replica.unwrap())
}

#[test]
fn span_lost_after_a_leave_is_licensed_only_if_both_present_holders_are_gone_at_once() {
    let both = Some(Licence::BothHoldersGone);
    for (is_heir, second, licence) in
        [(true, 7_000, both), (true, 30_000, None), (false, 7_000, None)]
    {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        let heir = heir(&told, trace, 2);
        let other = [0, 3, 4].into_iter().find(|node| (*node == heir) == is_heir).unwrap();
        told.accept(1_000, 0, all_spans(trace));
        told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Drained);
        told.crash(6_000, 1, &[0, 3, 4]);
        let rest: Vec<_> = [0, 3, 4].into_iter().filter(|node| *node != other).collect();
        told.crash(second, other, &rest);
        assert_lost(told, licence);
    }
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Drained);
    told.crash(6_000, 1, &[0, 3, 4]);
    assert_lost(told, None);
}

#[test]
fn span_lost_with_the_holders_of_long_ago_is_found() {
    let mut told = Told::calm();
    told.history.plan.nodes = 6;
    let all: Vec<_> = (0..6).collect();
    // A slot that moves to the node that joins, and keeps its owner as replica.
    let placement = Placement::new(Arc::new(view_of(&told.history.plan, &all)));
    let moves = |trace: &u32| {
        let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, *trace));
        let holders = placement.holders(slot).unwrap();
        (holders.owner, holders.replica) == (5, Some(1))
    };
    let mut trace = told.trace(0, 1, 2);
    while !moves(&trace) {
        trace = told.trace(trace + 1, 1, 2);
    }
    told.accept(1_000, 0, all_spans(trace));
    told.life(1_500, 5, Life::Started);
    told.life(1_600, 5, Life::Ready);
    all.iter().for_each(|node| told.view(1_700, *node, &all));
    told.crash(30_000, 1, &[0, 2, 3, 4, 5]);
    told.crash(31_000, 2, &[0, 3, 4, 5]);
    assert_lost(told, None);
}

#[test]
fn span_lost_by_leaves_alone_is_found() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Drained);
    told.leave(6_000, 1, &[0, 3, 4], Ending::Drained);
    assert_lost(told, None);
}

#[test]
fn span_lost_at_the_drain_limit_is_licensed_only_while_that_disk_is_full() {
    let not_spooled = Some(Licence::NotSpooled);
    for (full, until, crash, licence) in [
        (2, 5_000, Some(6_000), not_spooled),
        (2, 5_000, Some(30_000), None),
        (2, 5_000, None, None),
        (2, 3_000, Some(6_000), None),
        (3, 5_000, Some(6_000), None),
    ] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.fault(1_100, until, Fault::DiskFull { node: full, for_ms: Millis(until - 1_100) });
        told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Left(4));
        if let Some(crash) = crash {
            told.crash(crash, 1, &[0, 3, 4]);
        }
        assert_lost(told, licence);
    }
}

/// Both holders of a trace are gone, one of them with its spans in its spool.
fn spooled(crash: u64) -> Told {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Spooled(4));
    told.crash(crash, 1, &[0, 3, 4]);
    told
}

/// A node begins again, as so many times before, beside others that live.
fn begin_again(told: &mut Told, at: u64, node: NodeNumber, generation: u64) {
    told.life(at, node, Life::Started);
    told.life(at + 500, node, Life::Ready);
    let members = [(0, 1, 0), (3, 1, 0), (4, 1, 0), (node, generation, 0)];
    members.iter().for_each(|member| told.view_of(at + 600, member.0, &members));
}

#[test]
fn span_lost_in_a_spool_is_licensed_only_if_nobody_could_read_it() {
    let licence = Some(Licence::Spooled);
    assert_lost(spooled(6_000), licence);
    // The other holder had time to copy what it has.
    assert_lost(spooled(30_000), None);

    let mut told = spooled(6_000);
    begin_again(&mut told, 20_000, 2, 2);
    assert_lost(told, None);

    let mut told = spooled(6_000);
    told.life(20_000, 2, Life::DiskLost);
    begin_again(&mut told, 20_000, 2, 2);
    assert_lost(told, licence);

    // What was read is in the spool still until it is placed.
    for (crash, again, licence) in
        [(21_000, false, licence), (21_000, true, None), (50_000, false, None)]
    {
        let mut told = spooled(6_000);
        begin_again(&mut told, 20_000, 2, 2);
        told.crash(crash, 2, &[0, 3, 4]);
        if again {
            begin_again(&mut told, crash + 3_000, 2, 3);
        }
        assert_lost(told, licence);
    }
}

#[test]
fn last_node_to_leave_may_spool_what_it_has() {
    for (again, licence) in [(false, Some(Licence::Spooled)), (true, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.leave(1_200, 0, &[1, 2, 3, 4], Ending::Drained);
        told.leave(1_400, 3, &[1, 2, 4], Ending::Drained);
        told.leave(1_600, 4, &[1, 2], Ending::Drained);
        told.leave(1_800, 1, &[2], Ending::Drained);
        told.leave(30_000, 2, &[2], Ending::Spooled(4));
        if again {
            told.life(40_000, 2, Life::Started);
            told.life(40_500, 2, Life::Ready);
            told.view_of(40_500, 2, &[(2, 2, 0)]);
        }
        assert_lost(told, licence);
    }
}

#[test]
fn spool_that_is_lost_is_no_excuse_while_another_could_be_read() {
    for (again, licence) in [(false, Some(Licence::Spooled)), (true, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        for node in 0..NODES {
            told.life(1_200, node, Life::Draining);
            told.view(1_300, node, &[node]);
            told.life(21_000, node, Life::Ended(Ending::Spooled(4)));
            if node != 2 {
                told.life(24_000, node, Life::DiskLost);
            }
        }
        if again {
            told.life(24_000, 2, Life::Started);
            told.life(24_500, 2, Life::Ready);
            told.view_of(24_500, 2, &[(2, 2, 0)]);
        }
        assert_lost(told, licence);
    }
}

#[test]
fn span_lost_with_its_stand_in_is_licensed_until_it_was_brought_home() {
    let both = Some(Licence::BothHoldersGone);
    for (one, two, licence) in [(3_000, 9_000, both), (3_000, 30_000, None), (30_000, 31_000, None)]
    {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.fault(500, 2_000, Fault::PairCut { pair: (0, 1), for_ms: Millis(1_500) });
        told.accept(1_000, 0, all_spans(trace));
        told.crash(one, 2, &[0, 1, 3, 4]);
        told.crash(two, 0, &[1, 3, 4]);
        assert_lost(told, licence);
    }
}

#[test]
fn one_crash_beside_a_stand_in_is_no_excuse() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.fault(500, 2_000, bad_link());
    told.accept(1_000, 0, all_spans(trace));
    told.crash(3_000, 2, &[0, 1, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);
}

#[test]
fn loss_of_the_only_member_or_without_replicas_is_licensed() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.view(900, 0, &[0]);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 0, &[1, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::SingleMember);

    // A view that it left before is no excuse.
    let mut told = Told::calm();
    told.view(700, 0, &[0]);
    told.view(900, 0, &[0, 1, 2, 3, 4]);
    let held = told.trace(0, 0, 1);
    told.accept(1_000, 2, all_spans(held));
    told.crash(1_500, 0, &[1, 2, 3, 4]);
    told.crash(30_000, 1, &[2, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);

    // When it has seen the others for long enough they have it too.
    let mut told = Told::calm();
    told.view(900, 0, &[0]);
    told.accept(1_000, 0, all_spans(trace));
    told.view(2_000, 0, &[0, 1, 2, 3, 4]);
    told.crash(30_000, 0, &[1, 2, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);

    let mut told = Told::calm();
    told.history.plan.cluster.replicas = 0;
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::Unreplicated);

    let mut told = Told::calm();
    told.history.plan.cluster.replicas = 0;
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 2, &[0, 1, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);

    // Whoever left in order handed it to another, whose crash excuses it then.
    let heir = usize::from({
        let told = Told::calm();
        let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
        told.placement.holders_among(slot, |index| index != 1).unwrap().owner
    });
    for (crash, licence) in [(heir, Some(Licence::Unreplicated)), (4, None)] {
        assert_ne!(heir, 4);
        let mut told = Told::calm();
        told.history.plan.cluster.replicas = 0;
        told.accept(1_000, 0, all_spans(trace));
        told.leave(1_200, 1, &[0, 2, 3, 4], Ending::Drained);
        let rest: Vec<_> = [0, 2, 3, 4].into_iter().filter(|node| *node != crash).collect();
        told.crash(30_000, crash, &rest);
        assert_lost(told, licence);
    }
}

#[test]
fn later_promise_of_others_is_no_weaker() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    told.crash(1_900, 2, &[0, 3, 4]);
    told.accept(5_000, 0, all_spans(trace));
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);
}

#[test]
fn what_anybody_keeps_is_found_even_while_it_is_in_a_sink_too() {
    for held in [[4, 0, 0], [0, 4, 0], [0, 0, 4]] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.export(2_100, 1, all_spans(trace));
        let mut history = told.end();
        history.last_looks.get_mut(&3).unwrap().held = held;
        assert_only(&check(&history), Invariant::EverythingEnds, 1);
    }
}

#[test]
fn dead_letter_is_no_loss_and_what_is_held_is_late() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.answer(2_100, 1, all_spans(trace), SinkSaid::Refused);
    let verdict = told.judge();
    assert_green(&verdict);
    assert_eq!(verdict.totals.refused, 4);

    let mut told = Told::calm();
    told.accept(1_000, 0, all_spans(trace));
    let mut history = told.end();
    history.last_looks.get_mut(&1).unwrap().held = [4, 0, 0];
    let verdict = check(&history);
    assert_only(&verdict, Invariant::EverythingEnds, 1);
    assert_eq!((verdict.totals.lost, verdict.totals.held), (0, 4));
    let pending = pending(&history);
    assert_eq!(pending.len(), 2, "{pending:?}");
    assert!(pending[0].contains("node-1 holds 4 spans as owner"));
    assert!(pending[1].contains("to be held by node-1 and node-2"));
}

/// Nodes 1 and 2 hold a trace, and are alone; then 2 leaves.
fn left_to_one() -> Told {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    for node in [0, 3, 4] {
        told.life(500, node, Life::Crashed);
    }
    [1, 2].iter().for_each(|node| told.view(700, *node, &[1, 2]));
    told.accept(1_000, 1, all_spans(trace));
    told.leave(1_200, 2, &[1], Ending::Drained);
    told
}

#[test]
fn loss_after_a_leave_to_the_only_one_left_is_licensed_until_another_joined() {
    let mut told = left_to_one();
    told.crash(40_000, 1, &[]);
    assert_lost(told, Some(Licence::SingleMember));
    for (crash, licence) in [(9_000, Some(Licence::SingleMember)), (40_000, None)] {
        let mut told = left_to_one();
        told.life(3_000, 5, Life::Started);
        told.life(4_000, 5, Life::Ready);
        [1, 5].iter().for_each(|node| told.view(4_000, *node, &[1, 5]));
        told.crash(crash, 1, &[5]);
        assert_lost(told, licence);
    }
}

#[test]
fn node_that_believes_to_be_alone_is_no_excuse_while_the_other_holder_lives() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.view(1_200, 1, &[1]);
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    assert_lost(told, None);
}
