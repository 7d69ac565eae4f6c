//! A node stands still (SIGSTOP) for so long that others take over, and wakes with all it had.

use crate::Size;
use crate::run::Run;
use std::time::Duration;
use tracemesh_tests::wait::last;

fn pause_one_of_three(pause: Duration) {
    let mut run = Run::of(3);
    run.cluster.pause(1);
    last(pause);
    run.cluster.resume(1);
    run.go_on();
    run.cluster.wait_until_settled();
    run.go_on();
    run.end(&format!("one of three stands still for {pause:?}"));
}

#[test]
fn one_of_three_stands_still_for_three_seconds() {
    pause_one_of_three(Duration::from_secs(3));
}

#[test]
fn one_of_three_stands_still_for_a_minute() {
    if Size::asked_for() == Size::Small {
        eprintln!("SKIPPED: a pause of a minute needs TRACEMESH_SURVIVAL=full");
        return;
    }
    pause_one_of_three(Duration::from_secs(60));
}
