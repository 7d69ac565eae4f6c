//! Traces that come out twice, in parts or from whom they should not: what is found, and what is
//! excused.

use super::*;

#[test]
fn trace_in_two_parts_is_found() {
    let mut told = Told::calm();
    parts(&mut told);
    let verdict = told.judge();
    assert_only(&verdict, Invariant::ExportedTogether, 1);
    assert_eq!(verdict.totals.in_parts, 1);
}

#[test]
fn parts_are_licensed_where_a_holder_was_silent_or_datagrams_were_lost() {
    let mut told = Told::calm();
    parts(&mut told);
    told.fault(900, 1_005, Fault::PairCut { pair: (0, 2), for_ms: Millis(100) });
    assert_licensed(&told.judge(), Licence::Rerouted);

    let mut told = Told::calm();
    parts(&mut told);
    told.fault(1_300, 1_400, bad_link());
    assert_licensed(&told.judge(), Licence::LostFrames);

    let mut told = Told::calm();
    parts(&mut told);
    told.fault(30_000, 31_000, bad_link());
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);
}

#[test]
fn parts_around_a_view_change_are_found_though_it_moved_the_slot() {
    let mut told = Told::calm();
    parts(&mut told);
    told.life(900, 5, Life::Started);
    told.life(950, 5, Life::Ready);
    (0..NODES).for_each(|node| told.view_of(1_500, node, &[(0, 1, 0), (1, 1, 0), (2, 1, 1)]));
    let members = [(0, 1, 0), (1, 1, 0), (2, 1, 1), (3, 1, 0), (4, 1, 0), (5, 1, 0)];
    (0..6).for_each(|node| told.view_of(1_600, node, &members));
    // Nodes 3 and 4 were dropped as well, but they hold nothing of it.
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);
}

#[test]
fn span_in_two_sinks_is_found_once_a_trace() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (2_200, 1));
    let verdict = told.judge();
    let twice = (Invariant::NoSpanTwice, 1);
    let unmarked = (Invariant::OneVerdictPerTrace, 1);
    assert_eq!(verdict.violated, BTreeMap::from([twice, unmarked]));
    assert_eq!(verdict.totals.twice, 4);
}

#[test]
fn unanswered_attempt_licenses_another() {
    for said in [SinkSaid::Nothing, SinkSaid::Again] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, said, (2_200, 1));
        assert_licensed(&told.judge(), Licence::AttemptUnanswered);
    }
}

#[test]
fn crash_of_the_exporter_licenses_another_only_at_once() {
    for (crash, is_licensed) in [(2_110, true), (9_000, false)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (crash + 3_000, 2));
        told.crash(crash, 1, &[0, 2, 3, 4]);
        let verdict = told.judge();
        if is_licensed {
            assert_licensed(&verdict, Licence::ExporterCrashed);
        } else {
            // The replica had been told long before its owner crashed.
            assert_only(&verdict, Invariant::NoSpanTwice, 1);
        }
    }
}

#[test]
fn new_holder_that_nobody_told_is_found_when_it_exports_again() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (30_000, 2));
    // What it had been told went with its former life.
    told.life(5_000, 2, Life::Crashed);
    told.life(6_000, 2, Life::Started);
    told.life(7_000, 2, Life::Ready);
    let members: Vec<_> = (0..NODES).map(|node| (node, 1 + u64::from(node == 2), 0)).collect();
    (0..NODES).for_each(|node| told.view_of(7_500, node, &members));
    told.life(20_000, 1, Life::Crashed);
    for node in [0, 2, 3, 4] {
        let members: Vec<_> = members.iter().copied().filter(|one| one.0 != 1).collect();
        told.view_of(22_000, node, &members);
    }
    assert_only(&told.judge(), Invariant::NoSpanTwice, 1);
}

#[test]
fn partition_licenses_two_exporters_of_its_slots_only() {
    for (dropped, is_licensed) in [(1, true), (4, false)] {
        let mut told = Told::calm();
        let others: Vec<_> = (0..NODES).filter(|node| *node != dropped).collect();
        told.view(1_800, 2, &others);
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (2_200, if is_licensed { 2 } else { 1 }));
        told.view(20_000, 2, &[0, 1, 2, 3, 4]);
        let verdict = told.judge();
        if is_licensed {
            assert_licensed(&verdict, Licence::LiveNodeDropped);
        } else {
            assert_eq!(verdict.violated.get(&Invariant::NoSpanTwice), Some(&1));
        }
    }
}

#[test]
fn partition_licenses_nothing_that_came_out_before_and_long_after_it() {
    for (second, is_licensed) in [(15_000, true), (30_000, false)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (second, 2));
        told.view(12_000, 2, &[0, 2, 3, 4]);
        told.view(13_000, 2, &[0, 1, 2, 3, 4]);
        let verdict = told.judge();
        let licences = verdict.licensed.get(&Licence::LiveNodeDropped);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn span_that_no_done_covered_gives_the_exporter_more_time_to_crash() {
    // Acknowledged before the export, after it, long after it.
    for (accepted, is_licensed) in [(1_500, false), (6_000, true), (30_000, true)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        let mut spans = all_spans(trace);
        let last = vec![spans.pop().unwrap()];
        told.accept(1_000, 0, spans);
        told.request(1_100, 0, last.clone(), Answer::Later);
        told.accept(accepted, 0, last);
        told.export(2_100, 1, all_spans(trace));
        told.crash(9_000, 1, &[0, 2, 3, 4]);
        told.export(12_000, 2, all_spans(trace));
        let verdict = told.judge();
        let licences = verdict.licensed.get(&Licence::ExporterCrashed);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn exporter_that_stood_still_until_it_was_dropped_licenses_another() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (5_000, 2));
    told.life(2_105, 1, Life::Paused);
    told.view(4_500, 2, &[0, 2, 3, 4]);
    told.life(6_000, 1, Life::Woken);
    let members: Vec<_> = (0..NODES).map(|node| (node, 1, u32::from(node == 1))).collect();
    (0..NODES).for_each(|node| told.view_of(7_000, node, &members));
    assert_licensed(&told.judge(), Licence::ExporterCrashed);
}

#[test]
fn crash_in_an_unsettled_view_change_licenses_another() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    // A new epoch of the replica is a change of holders, and an unrelated node crashes in it.
    let members = [(0, 1, 0), (1, 1, 0), (2, 1, 1), (3, 1, 0), (4, 1, 0)];
    (0..NODES).for_each(|node| told.view_of(1_500, node, &members));
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (9_000, 2));
    told.life(3_500, 3, Life::Crashed);
    let members = [(0, 1, 0), (1, 1, 0), (2, 1, 1), (4, 1, 0)];
    [0, 1, 2, 4].iter().for_each(|node| told.view_of(5_500, *node, &members));
    let verdict = told.judge();
    assert_eq!(verdict.licensed.get(&Licence::UnsettledViewChange), Some(&1));
    assert_eq!(verdict.findings[0].invariant, Invariant::OwnerExports);
    assert_eq!(verdict.findings[0].trace, Some(trace));
}

#[test]
fn different_views_for_as_long_as_a_trace_is_due_license_another() {
    let due = 1_000 + ROOT_DELAY;
    let cases = [(1_100, due + 10_100, true), (8_000, due + 10_100, false), (1_100, 11_500, false)];
    for (differ_since, first, is_licensed) in cases {
        let mut told = Told::calm();
        let other = [(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 1)];
        told.view_of(differ_since, 2, &other);
        twice(&mut told, first, SinkSaid::Acknowledged, (first + 900, 2));
        (0..NODES).for_each(|node| told.view_of(20_000, node, &other));
        let verdict = told.judge();
        let licences = verdict.licensed.get(&Licence::SettleMaxRanOut);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn who_decides_uncalm_licenses_another_of_what_was_due_for_long_enough() {
    for (second, is_licensed) in [(11_900, false), (12_000, true)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (second, 1));
        let mut history = told.end();
        let counters = &mut history.last_looks.get_mut(&1).unwrap().counters;
        let name = "spans_exported_again_possible_total{cause=\"uncalm\"}";
        counters.insert(name.to_owned(), 3);
        let verdict = check(&history);
        let licences = verdict.licensed.get(&Licence::SettleMaxRanOut);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn nobody_active_in_between_licenses_another() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (40_000, 1));
    for node in 0..NODES {
        told.life(3_000, node, Life::Draining);
        told.life(4_000, node, Life::Ended(Ending::Drained));
        told.life(10_000, node, Life::Started);
        told.life(11_000, node, Life::Ready);
        let members: Vec<_> = (0..NODES).map(|node| (node, 2, 0)).collect();
        told.view_of(11_000, node, &members);
    }
    assert_licensed(&told.judge(), Licence::LastActiveLeft);
}

#[test]
fn early_forgetting_licenses_another() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (40_000, 1));
    let mut history = told.end();
    let forgotten = BTreeMap::from([("traces_forgotten_early_total".to_owned(), 3)]);
    let former = BTreeMap::from([(1, forgotten.clone())]);
    let mut before = History { former_counters: former, ..history.clone() };
    assert_licensed(&check(&before), Licence::RememberedEvicted);
    before.former_counters.clear();
    assert!(check(&before).violated.contains_key(&Invariant::NoSpanTwice));
    history.last_looks.get_mut(&1).unwrap().counters = forgotten;
    assert_licensed(&check(&history), Licence::RememberedEvicted);
}

#[test]
fn licence_that_is_used_too_often_is_found() {
    let mut told = Told::calm();
    let mut trace = 0;
    for _ in 0..20 {
        trace = told.trace(trace + 1, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
    }
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    told.crash(1_900, 2, &[0, 3, 4]);
    let verdict = told.judge();
    assert_eq!(verdict.licensed, BTreeMap::from([(Licence::BothHoldersGone, 20)]));
    assert_only(&verdict, Invariant::NoAcknowledgedSpanLost, 1);
    assert!(verdict.findings[0].text.contains("excuses 20 of 20 traces, more than 16"));
}

#[test]
fn sampling_that_nobody_asked_for_is_found() {
    let mut told = Told::calm();
    told.load(0..50);
    let mut history = told.end();
    let counters = &mut history.last_looks.get_mut(&1).unwrap().counters;
    counters.insert("spans_sampled_out_total".to_owned(), 1);
    assert_only(&check(&history), Invariant::OneVerdictPerTrace, 1);
}

#[test]
fn export_by_a_node_that_is_no_owner_is_found() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.export(2_100, 2, all_spans(trace));
    assert_only(&told.judge(), Invariant::OwnerExports, 1);
}

#[test]
fn unanswered_attempt_is_no_excuse_for_what_it_left_out() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    let spans = all_spans(trace);
    told.accept(1_000, 0, spans.clone());
    told.answer(2_100, 1, spans[..2].to_vec(), SinkSaid::Nothing);
    told.export(2_300, 1, spans[2..].to_vec());
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);

    // Whoever is owner next makes an attempt of its own.
    let mut told = Told::calm();
    told.accept(1_000, 0, spans.clone());
    told.leave(1_900, 1, &[0, 2, 3, 4], Ending::Drained);
    told.answer(2_100, 1, spans[..2].to_vec(), SinkSaid::Nothing);
    told.export(2_300, 2, spans[2..].to_vec());
    assert_licensed(&told.judge(), Licence::AttemptUnanswered);
}

#[test]
fn orderly_leave_of_the_exporter_licenses_nothing() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (5_000, 2));
    told.leave(1_900, 1, &[0, 2, 3, 4], Ending::Drained);
    told.life(2_500, 1, Life::Ended(Ending::Drained));
    assert_only(&told.judge(), Invariant::NoSpanTwice, 1);
}

#[test]
fn orderly_leave_of_an_exporter_that_was_cut_off_licenses_another() {
    for (until, is_licensed) in [(2_050, false), (2_150, true)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (5_000, 2));
        told.fault(2_000, until, Fault::PairCut { pair: (1, 2), for_ms: Millis(until - 2_000) });
        told.leave(1_900, 1, &[0, 2, 3, 4], Ending::Drained);
        let verdict = told.judge();
        if is_licensed {
            assert_licensed(&verdict, Licence::LiveNodeDropped);
        } else {
            assert_only(&verdict, Invariant::NoSpanTwice, 1);
        }
    }
}

#[test]
fn lost_done_gives_the_exporter_more_time_to_crash() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (9_000, 2));
    told.fault(2_050, 2_500, bad_link());
    told.crash(6_000, 1, &[0, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::ExporterCrashed);
}

#[test]
fn what_was_done_long_ago_may_be_forgotten() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (602_200, 1));
    let verdict = told.judge();
    assert_eq!(verdict.licensed, BTreeMap::from([(Licence::RememberedEvicted, 1)]));
}

#[test]
fn member_that_was_dropped_and_ended_licenses_nothing_later() {
    for (crash, is_licensed) in [(3_000, false), (29_000, true)] {
        let mut told = Told::calm();
        told.view(2_000, 0, &[0, 2, 3, 4]);
        told.life(crash, 1, Life::Crashed);
        let trace = told.trace(0, 1, 2);
        told.accept(29_500, 0, all_spans(trace));
        told.export(31_000, 2, all_spans(trace));
        told.export(31_100, 2, all_spans(trace));
        [2, 3, 4].iter().for_each(|node| told.view(crash + 500, *node, &[0, 2, 3, 4]));
        let licensed = told.judge().licensed.contains_key(&Licence::LiveNodeDropped);
        assert_eq!(licensed, is_licensed, "{crash}");
    }
}

#[test]
fn span_in_an_export_of_another_trace_is_found() {
    let mut told = Told::calm();
    let one = told.trace(0, 1, 2);
    let other = told.trace(one + 1, 1, 2);
    told.accept(1_000, 0, all_spans(one));
    told.accept(1_000, 0, all_spans(other));
    let mixed = [all_spans(one), all_spans(other)].concat();
    told.export(2_100, 1, mixed);
    told.export(2_100, 1, all_spans(other));
    let verdict = told.judge();
    assert_only(&verdict, Invariant::NothingImpossible, 4);
}
