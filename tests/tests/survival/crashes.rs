//! Nodes end without a word (`kill -9`), one at a time, each after the last one's traces were
//! copied again.

use crate::run::Run;

#[test]
fn each_of_three_is_killed_in_turn() {
    let mut run = Run::of(3);
    for node in 0..3 {
        run.cluster.kill(node);
        run.go_on();
        run.cluster.wait_until_settled();
        run.cluster.start(node);
        run.go_on();
    }
    run.end("each of three is killed in turn");
}

#[test]
fn two_of_five_are_killed_one_after_the_other() {
    let mut run = Run::of(5);
    for node in [0, 3] {
        run.cluster.kill(node);
        run.go_on();
        run.cluster.wait_until_settled();
    }
    run.go_on();
    run.end("two of five are killed one after the other");
}

#[test]
fn killed_nodes_are_back_at_once_ten_times_in_a_row() {
    let mut run = Run::of(3);
    for time in 0..10 {
        let node = time % 3;
        run.cluster.kill(node);
        run.cluster.start(node);
        run.go_on();
    }
    run.end("killed nodes are back at once, ten times in a row");
}
