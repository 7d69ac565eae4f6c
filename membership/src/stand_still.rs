//! Notices that this process stood still.
//!
//! A stopped process, a suspended machine or a starved one wakes up with a view that may be long
//! out of date. It can tell by its clocks: between two turns of a loop that comes round every
//! [`TURN`], more than [`PAUSE_MAX`] went by. The monotonic clock misses a suspended machine, the
//! wall clock misses nothing but is also stepped by hand; either one is reason enough (rule M3).
//! The invariant: one stand-still is noticed once, by whoever looks first.
//!
//! Pure: it is told the times. What follows from a stand-still is the business of `member`.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How often the loop comes round: several times within [`PAUSE_MAX`], so that what is measured is
/// the pause and not the turn.
pub(crate) const TURN: Duration = Duration::from_millis(100);

/// The longest pause that others ride out; a longer one may have cost this node its slots.
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(600);

/// When the loop last came round, by both clocks.
#[derive(Debug)]
pub(crate) struct StandStill {
    turned: Instant,
    turned_wall: SystemTime,
}

impl StandStill {
    pub(crate) fn new(now: Instant, wall: SystemTime) -> Self {
        Self { turned: now, turned_wall: wall }
    }

    /// Looks at the clocks; `Some` is how far they jumped since the loop came round. Then this is
    /// the new beginning.
    pub(crate) fn noticed(&mut self, now: Instant, wall: SystemTime) -> Option<Duration> {
        let forwards = wall.duration_since(self.turned_wall);
        let by_wall = forwards.unwrap_or_else(|backwards| backwards.duration());
        let jump = now.saturating_duration_since(self.turned).max(by_wall);
        (jump > PAUSE_MAX).then(|| {
            self.turn(now, wall);
            jump
        })
    }

    /// The loop came round.
    pub(crate) fn turn(&mut self, now: Instant, wall: SystemTime) {
        self.turned = now;
        self.turned_wall = wall;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks() -> (Instant, SystemTime) {
        (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000))
    }

    #[test]
    fn turns_on_time_are_no_stand_still() {
        let (mut now, mut wall) = clocks();
        let mut stand_still = StandStill::new(now, wall);
        for _ in 0..100 {
            now += PAUSE_MAX;
            wall += PAUSE_MAX;
            assert_eq!(stand_still.noticed(now, wall), None);
            stand_still.turn(now, wall);
        }
    }

    #[test]
    fn a_jump_of_either_clock_in_any_direction_is_noticed_once() {
        let (now, wall) = clocks();
        let jump = PAUSE_MAX + Duration::from_millis(1);
        for (later, later_wall) in [(now + jump, wall), (now, wall + jump), (now, wall - jump)] {
            let mut stand_still = StandStill::new(now, wall);
            assert_eq!(stand_still.noticed(later, later_wall), Some(jump));
            assert_eq!(stand_still.noticed(later, later_wall), None);
        }
    }

    #[test]
    fn looking_between_two_turns_does_not_hide_a_pause() {
        let (now, wall) = clocks();
        let mut stand_still = StandStill::new(now, wall);
        let half = Duration::from_millis(350);
        assert_eq!(stand_still.noticed(now + half, wall + half), None);
        assert_eq!(stand_still.noticed(now + 2 * half, wall + 2 * half), Some(2 * half));
    }
}
