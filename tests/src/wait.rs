//! Waiting for a condition, with a deadline.
//!
//! Nothing else in the tests sleeps, unless a fault has to last: a fixed pause is too short on a
//! busy machine and too long on all others. The deadline is generous, because it is met only when a
//! test fails.

use std::time::Duration;
use tokio::time::Instant;

/// How long a condition may take to become true: far longer than any takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// The pause between two looks at a condition: short beside what tests wait for, long beside a
/// look.
const PAUSE: Duration = Duration::from_millis(25);

/// Looks at `condition` until it yields a value. `what` completes the sentence "waited in vain for
/// …".
///
/// # Panics
/// After [`DEADLINE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, condition)
}

/// As [`wait_for`], with a deadline of one's own.
///
/// # Panics
/// After `deadline`.
pub fn wait_within<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let mut value = None;
    let came = comes_true_within(deadline, || {
        value = condition();
        value.is_some()
    });
    assert!(came, "waited {deadline:?} in vain for {what}");
    value.expect("the condition yielded one")
}

/// Whether `condition` becomes true within `deadline`; for what is reported before it fails.
pub fn comes_true_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() >= deadline {
            return false;
        }
        pause();
    }
    true
}

/// Waits until `condition` is true; see [`wait_for`].
///
/// # Panics
/// After [`DEADLINE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Lets a fault last for so long, where how long it lasts is what is tested. Never to wait for
/// something to happen.
pub fn last(duration: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < duration {
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "the pause between two looks at a condition")]
fn pause() {
    std::thread::sleep(PAUSE);
}
