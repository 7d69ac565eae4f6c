//! The way back from a sink: what became of attempts.
//!
//! Whoever has many attempts under way is answered into one channel, and so wakes once for all that
//! were answered together. The invariant: a [`Reply`] is given once, and one that is dropped on the
//! way says [`Outcome::Again`]. The channel is the owner's, who keeps room in it for every reply.

use super::{Attempt, Outcome, Sink};
use crate::spans::TraceId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::mpsc;

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its trace.
    pub trace_id: TraceId,
    /// Which try of it.
    pub number: u32,
    /// Which sink says so.
    pub sink: u32,
    /// What it says.
    pub outcome: Outcome,
}

/// Whether an attempt that its sink has not begun should not begin any more (PROTOCOL.md, D2);
/// clones share it. One that has begun goes on.
#[derive(Clone, Debug, Default)]
pub struct Withdrawn(Arc<AtomicBool>);

impl Withdrawn {
    /// Whether it is.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(crate) fn set(&self, withdrawn: bool) {
        self.0.store(withdrawn, Relaxed);
    }
}

/// Where the outcome of one attempt goes.
#[derive(Debug)]
pub struct Reply {
    to: mpsc::Sender<Answered>,
    answered: Answered,
    withdrawn: Option<Withdrawn>,
}

impl Reply {
    /// A reply about a try at one sink. There has to be room for it in `to`.
    pub fn new(to: mpsc::Sender<Answered>, trace_id: TraceId, number: u32, sink: u32) -> Self {
        let answered = Answered { trace_id, number, sink, outcome: Outcome::AGAIN };
        Self { to, answered, withdrawn: None }
    }

    /// The same for an attempt that may be withdrawn.
    pub(crate) fn until(mut self, withdrawn: Withdrawn) -> Self {
        self.withdrawn = Some(withdrawn);
        self
    }

    /// Says what became of the attempt.
    pub fn give(mut self, outcome: Outcome) {
        self.answered.outcome = outcome;
    }

    /// Nobody wants it any more, so the attempt should not begin.
    pub(super) fn is_unwanted(&self) -> bool {
        self.withdrawn.as_ref().is_some_and(Withdrawn::is_set) || self.to.is_closed()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Who asked may have gone; then nobody is left to care.
        let _ = self.to.try_send(self.answered);
    }
}

/// Submits an attempt; the future is its outcome, and dropping it cancels the attempt if the sink
/// has not begun it.
pub(super) fn submit(
    sink: &dyn Sink,
    attempt: Arc<Attempt>,
) -> impl Future<Output = Outcome> + use<> {
    let (to, mut answers) = mpsc::channel(1);
    let reply = Reply::new(to, attempt.trace_id, 0, 0);
    sink.submit(attempt, reply);
    async move { answers.recv().await.map_or(Outcome::Unanswered, |answered| answered.outcome) }
}
