//! Whether something works now, told once: a gauge, and one log line for each trouble.
//!
//! Its owner logs, as only it knows how bad an outage is. Something that fails and works in turns
//! is logged at most every [`LOG_EVERY`], so nothing outside can fill the log.

use prometheus_client::metrics::gauge::Gauge;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Log lines about one thing are at least so far apart: six a minute can be read.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Lets through one log line every [`LOG_EVERY`].
#[derive(Default)]
pub(super) struct Pace {
    last: Mutex<Option<Instant>>,
}

impl Pace {
    /// Whether to log now.
    pub(super) fn due(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = last.is_none_or(|last| now - last >= LOG_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

pub(super) struct Health {
    gauge: Gauge,
    state: Mutex<State>,
    pace: Pace,
}

/// Why something does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It may pass by itself.
    Passing,
    /// Somebody has to mend what was configured.
    Settings,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down {
        trouble: Trouble,
        /// It was logged.
        told: bool,
        /// It, or another one before it, was logged, so the end should be.
        tell_end: bool,
    },
}

impl Health {
    /// Works until it is told otherwise.
    pub(super) fn new(gauge: Gauge) -> Self {
        gauge.set(1);
        Self { gauge, state: Mutex::new(State::Up), pace: Pace::default() }
    }

    /// It failed. True when that should be logged.
    pub(super) fn down(&self, trouble: Trouble) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (was_told, tell_end) = match *state {
            State::Up => (false, false),
            State::Down { trouble: before, told, tell_end } => {
                (told && before == trouble, tell_end)
            }
        };
        let tell = !was_told && self.pace.due();
        *state = State::Down { trouble, told: was_told || tell, tell_end: tell_end || tell };
        self.gauge.set(0);
        tell
    }

    /// It worked. True when the end of an outage should be logged.
    pub(super) fn up(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = matches!(*state, State::Down { tell_end: true, .. });
        *state = State::Up;
        self.gauge.set(1);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_once_and_flapping_not_every_time() {
        let gauge = Gauge::default();
        let health = Health::new(gauge.clone());
        let down = || health.down(Trouble::Passing);
        assert_eq!(gauge.get(), 1);
        assert_eq!((health.up(), down(), down()), (false, true, false));
        assert_eq!(gauge.get(), 0);
        assert_eq!((health.up(), health.up()), (true, false));
        assert_eq!(gauge.get(), 1);
        assert_eq!((down(), health.up()), (false, false));
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!((down(), health.up()), (true, true));
    }

    #[tokio::test(start_paused = true)]
    async fn another_trouble_is_told_though_the_first_has_not_ended() {
        let health = Health::new(Gauge::default());
        assert!(health.down(Trouble::Passing));
        assert!(!health.down(Trouble::Settings), "not yet");
        tokio::time::advance(LOG_EVERY).await;
        assert!(health.down(Trouble::Settings));
        tokio::time::advance(LOG_EVERY).await;
        assert!(!health.down(Trouble::Settings), "it was told");
        assert!(health.down(Trouble::Passing));
        assert!(!health.down(Trouble::Settings), "not yet");
        assert!(health.up(), "its end is told all the same");
    }
}
