//! What nodes count and what is seen in sum.

use super::*;

#[test]
fn peak_over_the_budget_is_found() {
    let mut history = Told::calm().end();
    history.memory_peaks.insert(2, 70 << 20);
    assert_green(&check(&history));
    history.memory_peaks.insert(2, (96 << 20) + (24 << 20));
    assert_only(&check(&history), Invariant::MemoryWithinBudget, 1);
}

/// A clean history whose nodes count what they did.
fn counted() -> History {
    let mut told = Told::calm();
    told.load(0..50);
    let mut history = told.end();
    for (node, look) in &mut history.last_looks {
        let exports = history.entries.iter().filter(
            |entry| matches!(&entry.what, What::Export { node: exporter, .. } if exporter == node),
        );
        let exported = exports.count() as u64 * u64::from(SPANS);
        let accepted = if *node == 0 { 50 * u64::from(SPANS) } else { 0 };
        look.counters.insert("spans_exported_total".to_owned(), exported);
        look.counters.insert("spans_accepted_total".to_owned(), accepted);
    }
    history
}

#[test]
fn counters_that_do_not_add_up_are_found() {
    let history = counted();
    assert_green(&check(&history));
    for name in ["spans_exported_total", "spans_accepted_total"] {
        let mut wrong = history.clone();
        *wrong.last_looks.get_mut(&0).unwrap().counters.get_mut(name).unwrap() += 1;
        // The node's own figure, and the sum.
        assert_only(&check(&wrong), Invariant::CountersAddUp, 2);
    }
    let mut wrong = history.clone();
    let dropped = "spans_dropped_total{reason=\"sink\"}".to_owned();
    wrong.last_looks.get_mut(&2).unwrap().counters.insert(dropped, 1);
    assert_only(&check(&wrong), Invariant::CountersAddUp, 1);
    let repaired = "spans_repaired_total".to_owned();
    wrong.last_looks.get_mut(&3).unwrap().counters.insert(repaired, 1);
    assert_green(&check(&wrong));
}

#[test]
fn request_that_nobody_answers_is_pending() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    let request = 7;
    told.add(1_000, What::Offered { request, spans: all_spans(trace) });
    told.add(1_000, What::Sent { request, node: 0 });
    let history = told.end();
    assert_only(&check(&history), Invariant::EverythingEnds, 1);
    assert!(pending(&history)[0].contains("request 7"));
}

#[test]
fn refusing_is_no_way_to_lose_nothing() {
    let refuse = |told: &mut Told| {
        told.load(0..98);
        for trace in 200..202 {
            let request = told.request;
            told.request(1_000, 0, all_spans(trace), Answer::Later);
            told.add(4_000, What::GaveUp { request });
        }
    };
    let mut told = Told::calm();
    refuse(&mut told);
    assert_only(&told.judge(), Invariant::GoodputFloor, 1);
    let mut told = Told::calm();
    refuse(&mut told);
    told.fault(500, 9_000, Fault::Sink { node: None, for_ms: Millis(8_500), mood: Mood::Dead });
    assert_green(&told.judge());
}

#[test]
fn what_must_never_be_seen_is_found() {
    let impossible = |plant: &dyn Fn(&mut Told)| {
        let mut told = Told::calm();
        plant(&mut told);
        assert_only(&told.judge(), Invariant::NothingImpossible, 1);
    };
    impossible(&|told| told.request(1_000, 0, all_spans(3), Answer::Refused));
    impossible(&|told| told.life(1_000, 5, Life::Failed("no port".to_owned())));
    impossible(&|told| {
        told.life(1_000, 5, Life::Started);
        told.life(1_000, 5, Life::Ended(Ending::Panicked("index".to_owned())));
    });
    impossible(&|told| {
        told.life(1_000, 5, Life::Started);
        told.life(1_000, 5, Life::Ended(Ending::Refused("twice".to_owned())));
    });
    impossible(&|told| {
        let trace = told.trace(0, 1, 2);
        told.export(2_000, 1, all_spans(trace)[..1].to_vec());
    });
    let mut told = Told::calm();
    told.fault(900, 900, Fault::Disagree { node: 5 });
    told.life(1_000, 5, Life::Started);
    told.life(1_000, 5, Life::Ended(Ending::Refused("settings".to_owned())));
    assert_green(&told.judge());
}

#[test]
fn paths_of_recovery_are_counted() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.accept(1_300, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
    let among = |index| index != 1;
    let heir = usize::from(told.placement.holders_among(slot, among).unwrap().owner);
    told.export(4_000, heir, all_spans(trace));
    let verdict = told.judge();
    assert_green(&verdict);
    assert_eq!(heir, 2);
    for path in ["taken_over_after_crash", "repeat_recognised"] {
        assert_eq!(verdict.sometimes[path], 1, "{path}");
    }
    assert_eq!(verdict.sometimes.len(), sometimes::PATHS.len());
}

#[test]
fn batch_for_a_dead_or_still_holder_is_rerouted() {
    let mut told = Told::calm();
    parts(&mut told);
    told.life(500, 2, Life::Paused);
    told.life(995, 2, Life::Woken);
    assert_licensed(&told.judge(), Licence::Rerouted);

    let mut told = Told::calm();
    parts(&mut told);
    told.crash(995, 2, &[0, 1, 3, 4]);
    assert_licensed(&told.judge(), Licence::Rerouted);

    // Not the batch: who stands still afterwards has it.
    let mut told = Told::calm();
    parts(&mut told);
    told.life(1_100, 2, Life::Paused);
    told.life(1_300, 2, Life::Woken);
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);
}
