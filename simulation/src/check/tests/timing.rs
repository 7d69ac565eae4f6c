//! When traces come out, and what is late.

use super::*;

#[test]
fn late_span_may_come_out_later() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    let spans = all_spans(trace);
    told.accept(1_000, 0, spans[..2].to_vec());
    told.export(2_100, 1, spans[..2].to_vec());
    told.accept(2_200, 0, spans[2..].to_vec());
    let what = What::Export {
        node: 1,
        spans: spans[2..].to_vec(),
        late: true,
        kept: true,
        said: SinkSaid::Acknowledged,
        heard_at: Millis(2_304),
    };
    told.add(2_300, what);
    let verdict = told.judge();
    assert_green(&verdict);
    assert_eq!(verdict.sometimes["late_span_exported"], 1);
}

#[test]
fn trace_that_comes_out_before_or_long_after_it_is_due_is_found() {
    let due = 1_000 + ROOT_DELAY;
    for (at, is_found) in [(due - 20, true), (due, false), (due + 900, false), (due + 1_100, true)]
    {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(11_000, 0, all_spans(trace));
        told.export(10_000 + at, 1, all_spans(trace));
        let verdict = told.judge();
        if is_found {
            assert_only(&verdict, Invariant::DecidedInTime, 1);
        } else {
            assert_green(&verdict);
        }
    }
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(11_000, 0, all_spans(trace));
    told.export(20_000, 1, all_spans(trace));
    told.crash(8_000, 4, &[0, 1, 2, 3]);
    assert_green(&told.judge());

    for (mood, is_found) in [(Mood::Dead, false), (Mood::Failing { share: 1.0 }, true)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(11_000, 0, all_spans(trace));
        told.export(15_000, 1, all_spans(trace));
        told.fault(5_000, 10_500, Fault::Sink { node: None, for_ms: Millis(5_500), mood });
        let found = told.judge().violated.contains_key(&Invariant::DecidedInTime);
        assert_eq!(found, is_found, "{mood:?}");
    }

    // A new owner waits until all have settled, and no longer.
    for (at, is_found) in [(22_900, false), (23_100, true)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(11_000, 0, all_spans(trace));
        told.leave(11_500, 1, &[0, 2, 3, 4], Ending::Drained);
        told.export(at, 2, all_spans(trace));
        let verdict = told.judge();
        if is_found {
            assert_only(&verdict, Invariant::DecidedInTime, 1);
        } else {
            assert_green(&verdict);
        }
    }
}

#[test]
fn late_mark_without_an_earlier_part_is_found() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    let (spans, said) = (all_spans(trace), SinkSaid::Acknowledged);
    told.add(
        2_100,
        What::Export { node: 1, spans, late: true, kept: true, said, heard_at: Millis(2_104) },
    );
    assert_only(&told.judge(), Invariant::OneVerdictPerTrace, 1);
}
