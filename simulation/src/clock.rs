//! A node's clocks in virtual time.
//!
//! Every node has a runtime of its own, whose paused clock begins somewhere; here it is tied to the
//! time since the simulation began, which is the only time that is compared across nodes. The wall
//! clock is that time with what was done to it: steps, skew, or standing still with its machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// When every simulation begins, by a right clock.
const BEGIN: Duration = Duration::from_secs(1_700_000_000);

const MILLION: i128 = 1_000_000;

/// What was done to a node's wall clock. It belongs to the machine, and outlives a node's process.
#[derive(Clone, Debug, Default)]
pub struct WallClock {
    step_ms: Arc<AtomicI64>,
    skew_ppm: Arc<AtomicI64>,
}

impl WallClock {
    /// What it shows when so much time has passed since the simulation began.
    pub fn shows(&self, now: Duration) -> SystemTime {
        let skew =
            now.as_micros().cast_signed() * i128::from(self.skew_ppm.load(Relaxed)) / MILLION;
        let step = i128::from(self.step_ms.load(Relaxed)) * 1000;
        let micros = (BEGIN + now).as_micros().cast_signed() + skew + step;
        let micros = u64::try_from(micros.max(0)).unwrap_or(u64::MAX);
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
    }

    /// Jumps.
    pub fn step(&self, by_ms: i64) {
        self.step_ms.fetch_add(by_ms, Relaxed);
    }

    /// Runs fast or slow, as if it always had.
    pub fn skew(&self, ppm: i64) {
        self.skew_ppm.store(ppm, Relaxed);
    }
}

/// The time of one node's runtime, since the simulation began; clones tell the same.
#[derive(Clone, Debug)]
pub struct Clock {
    epoch: Instant,
    /// How long the runtime's clock stood still with its machine.
    lost_ms: Arc<AtomicU64>,
}

impl Clock {
    /// Ties the present of the runtime that this is called in to a time of the simulation.
    pub fn starting_at(now: Duration) -> Self {
        Self { epoch: Instant::now() - now, lost_ms: Arc::default() }
    }

    /// Now. Only inside the runtime of this clock.
    pub fn now(&self) -> Duration {
        Instant::now() - self.epoch + self.lost()
    }

    /// When the runtime's clock will show this time, or showed it.
    pub fn instant(&self, at: Duration) -> Instant {
        self.epoch + at.saturating_sub(self.lost())
    }

    /// The machine stood still for so long, and its clocks with it.
    pub fn lose(&self, ms: u64) {
        self.lost_ms.fetch_add(ms, Relaxed);
    }

    fn lost(&self) -> Duration {
        Duration::from_millis(self.lost_ms.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_steps_and_skews() {
        let clock = WallClock::default();
        let right = clock.shows(Duration::from_secs(100));
        clock.step(-5000);
        assert_eq!(clock.shows(Duration::from_secs(105)), right);
        clock.step(5000);
        clock.skew(10_000);
        assert_eq!(clock.shows(Duration::from_secs(100)), right + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn clock_that_stood_still_is_behind_and_catches_up_with_nothing() {
        let clock = Clock::starting_at(Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.now(), Duration::from_secs(6));
        clock.lose(2000);
        assert_eq!(clock.now(), Duration::from_secs(8));
        assert_eq!(clock.instant(clock.now()), Instant::now());
    }
}
