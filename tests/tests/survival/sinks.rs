//! Sinks fail: they are down, or they keep spans and do not say so.

use crate::Size;
use crate::cluster::Cluster;
use crate::run::{Run, undisturbed};
use crate::sink::Manner;
use std::time::Duration;
use tracemesh_tests::wait::last;

#[test]
fn sink_is_down_for_a_while() {
    let outcome = undisturbed(|| {
        let mut run = Run::of(3);
        run.sink.close();
        run.cluster.wait_until_sink_is_down();
        if Size::asked_for() == Size::Full {
            last(Duration::from_secs(20));
        }
        run.sink.open();
        run.go_on();
        run.end("the sink is down for a while")
    });
    outcome.assert_once();
}

#[test]
fn sink_keeps_spans_and_denies_it() {
    let every = match Size::asked_for() {
        Size::Small => 10,
        Size::Full => 100,
    };
    let outcome = undisturbed(|| {
        let run = Run::start(Cluster::of(3), 3, Manner::Lying(every));
        (0..10).for_each(|_| run.go_on());
        run.end("the sink keeps spans and denies it")
    });
    outcome.assert_once();
}
