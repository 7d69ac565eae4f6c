//! Nodes come and go in order, as operators make them: nothing is lost, twice or in parts.

use crate::cluster::Cluster;
use crate::run::{Run, undisturbed};
use crate::sink::Manner;

#[test]
fn five_are_restarted_one_after_the_other() {
    let outcome = undisturbed(|| {
        let mut run = Run::of(5);
        for node in 0..5 {
            assert_eq!(run.cluster.stop(node), Some(0), "everything was handed over");
            run.cluster.start(node);
            run.go_on();
        }
        run.end("five are restarted one after the other")
    });
    outcome.assert_once_and_whole();
}

#[test]
fn three_become_six_and_three_again() {
    let outcome = undisturbed(|| {
        let mut run = Run::start(Cluster::of(6), 3, Manner::Honest);
        for node in 3..6 {
            run.cluster.start(node);
            run.go_on();
        }
        // Those that were there first leave: nothing depends on the first seed.
        for node in 0..3 {
            assert_eq!(run.cluster.stop(node), Some(0), "everything was handed over");
            run.cluster.wait_until_settled();
            run.go_on();
        }
        run.end("three become six and three again")
    });
    outcome.assert_once_and_whole();
}
