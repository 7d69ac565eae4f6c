//! A sink in memory, which remembers what it was given.
//!
//! It acknowledges every attempt at once. The invariant: what was acknowledged is remembered, in
//! the order in which it came, every repetition too, so that a trace exported twice is seen twice.
//! Bounded by [`ATTEMPTS_MAX`]; a sink that is full takes nothing more, and says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tracemesh::sink::{Attempt, Outcome, QueueFull, Sink};

/// More than any test exports to one sink.
pub const ATTEMPTS_MAX: usize = 100_000;

/// The sink of one node.
#[derive(Debug, Default)]
pub struct MemorySink {
    attempts: Mutex<Vec<Arc<Attempt>>>,
}

impl MemorySink {
    /// Everything that it acknowledged so far.
    pub fn attempts(&self) -> Vec<Arc<Attempt>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Attempt>>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for MemorySink {
    fn name(&self) -> &str {
        "memory"
    }

    fn submit(&self, attempt: Arc<Attempt>) -> Result<oneshot::Receiver<Outcome>, QueueFull> {
        let mut attempts = self.lock();
        if attempts.len() == ATTEMPTS_MAX {
            return Err(QueueFull);
        }
        attempts.push(attempt);
        let (answer, outcome) = oneshot::channel();
        // Nobody waits any more only if the owner gave up in the meantime, which it cannot here.
        let _ = answer.send(Outcome::Acknowledged);
        Ok(outcome)
    }
}
