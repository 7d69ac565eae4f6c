//! Sinks fail: they are down, or they keep spans and do not say so.

use crate::Size;
use crate::cluster::Cluster;
use crate::run::{Run, undisturbed};
use crate::sink::Manner;
use serde_json::json;
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

/// Needs the spool: what a node could not hand over before `drain.timeout` it writes down, ends
/// with exit code 3, and takes up at its next start.
#[test]
fn nodes_are_restarted_while_the_sink_is_down_and_memory_is_full() {
    let mut cluster = Cluster::of(3);
    // Some ten seconds of load, twice of what is held while all is well.
    let memory = format!("{}MiB", Size::asked_for().rate() / 125);
    cluster.set("node.memory", &json!(memory));
    cluster.set("drain.timeout", &json!("5s"));
    let mut run = Run::start(cluster, 3, Manner::Honest);
    run.sink.close();
    run.cluster.wait_until_full();
    for node in 0..3 {
        let code = run.cluster.stop(node);
        assert!(matches!(code, Some(0 | 3)), "all is handed over or written down, not {code:?}");
        run.cluster.launch(node);
        run.cluster.wait_until_ready();
    }
    run.sink.open();
    run.go_on();
    run.end("all are restarted while the sink is down and memory is full");
}
