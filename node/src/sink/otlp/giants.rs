//! How far giant traces came: those that one request cannot hold.
//!
//! When a later request of an attempt is not taken, the earlier ones are not sent again: the next
//! try of the same owner has the same spans, and gives the same requests. The invariant: a request
//! that is skipped was taken. Bounded by [`GIANTS_MAX`]; the oldest is forgotten first, and then
//! sent anew, as it is by another owner.

use crate::sink::Attempt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Giants that wait for their next try: a few KB, and more than there is memory for.
const GIANTS_MAX: usize = 256;

/// What a server took of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Requests, from the first on.
    pub(super) requests: usize,
    /// Of their spans, those that it will never take.
    pub(super) rejected_span_count: u64,
    /// What it said about these.
    pub(super) message: String,
}

#[derive(Default)]
pub(super) struct Giants(Mutex<Vec<(Weak<Attempt>, Progress)>>);

impl Giants {
    /// How far an attempt came in earlier tries.
    pub(super) fn take(&self, attempt: &Arc<Attempt>) -> Progress {
        let mut giants = self.lock();
        let place = giants.iter().position(|(known, _)| known.as_ptr() == Arc::as_ptr(attempt));
        place.map(|place| giants.remove(place).1).unwrap_or_default()
    }

    /// Keeps that for the next try.
    pub(super) fn keep(&self, attempt: &Arc<Attempt>, progress: Progress) {
        let mut giants = self.lock();
        giants.retain(|(known, _)| known.strong_count() > 0);
        if giants.len() >= GIANTS_MAX {
            giants.remove(0);
        }
        giants.push((Arc::downgrade(attempt), progress));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Weak<Attempt>, Progress)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::trace;

    #[test]
    fn progress_belongs_to_one_attempt_and_the_oldest_is_forgotten() {
        let giants = Giants::default();
        let progress = |requests| Progress { requests, ..Progress::default() };
        let attempts: Vec<_> = (0..GIANTS_MAX + 1).map(|_| trace(1, 1)).collect();
        for (number, attempt) in (1..).zip(&attempts) {
            giants.keep(attempt, progress(number));
        }
        assert_eq!(giants.take(&attempts[0]), Progress::default());
        assert_eq!(giants.take(&attempts[1]), progress(2));
        assert_eq!(giants.take(&attempts[1]), Progress::default());
        drop(attempts);
        giants.keep(&trace(1, 1), progress(1));
        assert_eq!(giants.lock().len(), 1);
    }
}
