//! The way into a sink: a queue that is bounded in bytes, and the batches taken from it.
//!
//! An attempt counts from [`Sink::submit`] until its outcome is known, so what waits and what is on
//! its way share one bound.
//!
//! The worker that pulls owns the receiving end; the bound is a semaphore that both share.

use super::request::Room;
use super::{Attempt, Outcome, Reply, Sink};
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

/// Attempts in a queue, besides its bound in bytes: at the default of 256 MiB it is only met by
/// traces of less than 1 KiB, and 40 MB of entries is what it allows.
pub(super) const ATTEMPTS_MAX: usize = 256 << 10;

/// Makes a queue of at most `bytes_max` bytes of spans. An attempt over it is taken when nothing
/// else is there, or it could never leave.
pub(super) fn queue(name: String, bytes_max: usize, gauge: Gauge) -> (Arc<Queue>, Inbox) {
    let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX).max(1);
    let (sender, receiver) = mpsc::channel(ATTEMPTS_MAX);
    let bytes = Arc::new(Semaphore::new(bytes_max as usize));
    let queue = Queue { name, sender, bytes, bytes_max, gauge };
    (Arc::new(queue), Inbox { receiver, carried: None })
}

/// The end of the queue that the owners of traces have.
pub(super) struct Queue {
    name: String,
    sender: mpsc::Sender<Pending>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
    gauge: Gauge,
}

impl Sink for Queue {
    fn name(&self) -> &str {
        &self.name
    }

    fn submit(&self, attempt: Arc<Attempt>, reply: Reply) {
        let bytes = u32::try_from(attempt.bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        let Ok(permit) = self.bytes.clone().try_acquire_many_owned(bytes) else { return };
        let counted = Counted { gauge: self.gauge.clone(), permit };
        counted.gauge.inc_by(i64::from(bytes));
        let queued = Instant::now();
        let pending = Pending { attempt, queued, counted, reply };
        // Dropped when the worker has ended or there are too many: nothing was taken.
        let _ = self.sender.try_send(pending);
    }
}

/// An attempt that a sink has taken and not yet answered.
pub(super) struct Pending {
    pub(super) attempt: Arc<Attempt>,
    queued: Instant,
    /// Given back before the reply, as fields are dropped in order: whoever is answered finds room.
    counted: Counted,
    reply: Reply,
}

impl Pending {
    pub(super) fn answer(self, outcome: Outcome) {
        drop(self.counted);
        self.reply.give(outcome);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.reply.is_unwanted()
    }
}

/// The share of the bound that one attempt takes.
struct Counted {
    gauge: Gauge,
    permit: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec_by(self.permit.num_permits() as i64);
    }
}

/// When a batch is ready to go.
pub(super) struct Batching {
    /// A batch of so many goes at once; more are taken when they are there already.
    pub(super) count_min: usize,
    /// A smaller one goes when its first attempt has waited so long.
    pub(super) linger: Duration,
    /// It never grows over this size of a request, unless by its first attempt.
    pub(super) bytes_max: usize,
}

/// The end of the queue that the sink's worker has.
pub(super) struct Inbox {
    receiver: mpsc::Receiver<Pending>,
    /// The attempt that did not fit into the last batch.
    carried: Option<Pending>,
}

impl Inbox {
    /// The next attempts that go together, at least one; `None` when no more will come. When the
    /// future is dropped, what it had gathered is answered with `Again`.
    pub(super) async fn next_batch(&mut self, batching: &Batching) -> Option<Vec<Pending>> {
        let mut batch: Vec<Pending> = Vec::new();
        let mut room = Room::new(batching.bytes_max);
        loop {
            let next = match self.carried.take() {
                Some(pending) => Some(pending),
                None => self.receive(batch.first(), batch.len(), batching).await,
            };
            let Some(pending) = next else {
                return (!batch.is_empty()).then_some(batch);
            };
            if pending.is_cancelled() {
                continue;
            }
            let fits = room.take(&pending.attempt);
            if !fits && !batch.is_empty() {
                self.carried = Some(pending);
                return Some(batch);
            }
            batch.push(pending);
            if !fits {
                return Some(batch);
            }
        }
    }

    /// One more for a batch of `count`, or `None` when the batch should not wait.
    async fn receive(
        &mut self,
        first: Option<&Pending>,
        count: usize,
        batching: &Batching,
    ) -> Option<Pending> {
        match first {
            None => self.receiver.recv().await,
            Some(first) if count < batching.count_min => {
                let deadline = first.queued + batching.linger;
                timeout_at(deadline, self.receiver.recv()).await.ok().flatten()
            }
            Some(_) => self.receiver.try_recv().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Withdrawn;
    use crate::sink::reply::submit;
    use crate::sink::testing::trace;
    use futures_util::FutureExt;

    const LINGER: Duration = Duration::from_millis(200);

    fn batching(count_min: usize, bytes_max: usize) -> Batching {
        Batching { count_min, linger: LINGER, bytes_max }
    }

    #[tokio::test]
    async fn queue_refuses_what_is_over_its_bytes_until_an_outcome_is_known() {
        let gauge = Gauge::default();
        let attempt = trace(1, 3);
        let (queue, mut inbox) = queue("otlp".into(), 2 * attempt.bytes, gauge.clone());
        let outcome = submit(&*queue, attempt.clone());
        let _second = submit(&*queue, attempt.clone());
        assert_eq!(submit(&*queue, attempt.clone()).now_or_never(), Some(Outcome::AGAIN));
        assert_eq!(gauge.get(), 2 * attempt.bytes as i64);
        let mut batch = inbox.next_batch(&batching(2, 1 << 20)).await.unwrap();
        assert_eq!(
            submit(&*queue, attempt.clone()).now_or_never(),
            Some(Outcome::AGAIN),
            "still on its way"
        );
        batch.remove(0).answer(Outcome::Acknowledged);
        assert_eq!(outcome.await, Outcome::Acknowledged);
        let _third = submit(&*queue, attempt.clone());
        drop((batch, inbox));
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test]
    async fn attempt_that_is_withdrawn_is_in_no_batch_and_may_be_made_again() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        let (to, mut answers) = mpsc::channel(2);
        let withdrawn = Withdrawn::default();
        for number in 1..3 {
            let attempt = trace(number, 1);
            let reply = Reply::new(to.clone(), attempt.trace_id, number.into(), 0);
            let reply = if number == 1 { reply.until(withdrawn.clone()) } else { reply };
            queue.submit(attempt, reply);
        }
        withdrawn.set(true);
        let batch = inbox.next_batch(&batching(1, 1 << 20)).await.unwrap();
        assert_eq!((batch.len(), batch[0].attempt.trace_id), (1, trace(2, 1).trace_id));
        let answered = answers.recv().await.unwrap();
        assert_eq!((answered.number, answered.outcome), (1, Outcome::AGAIN));
    }

    #[tokio::test]
    async fn attempt_over_the_whole_queue_is_taken_alone() {
        let (queue, _inbox) = queue("otlp".into(), 10, Gauge::default());
        let _outcome = submit(&*queue, trace(1, 3));
        assert_eq!(submit(&*queue, trace(2, 1)).now_or_never(), Some(Outcome::AGAIN));
    }

    #[tokio::test]
    async fn attempt_that_is_dropped_anywhere_answers_again() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        let (pulled, waiting) = (submit(&*queue, trace(1, 1)), submit(&*queue, trace(2, 1)));
        let batch = inbox.next_batch(&batching(1, 1)).await.unwrap();
        assert_eq!(batch.len(), 1);
        drop(batch);
        assert_eq!(pulled.await, Outcome::AGAIN);
        drop(inbox);
        assert_eq!(waiting.await, Outcome::AGAIN);
        assert_eq!(submit(&*queue, trace(3, 1)).now_or_never(), Some(Outcome::AGAIN));
    }

    #[tokio::test(start_paused = true)]
    async fn small_batch_waits_for_company_but_not_long() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        let _one = submit(&*queue, trace(1, 1));
        let start = Instant::now();
        let batch = inbox.next_batch(&batching(16, 1 << 20)).await.unwrap();
        assert_eq!((batch.len(), start.elapsed()), (1, LINGER));
    }

    #[tokio::test(start_paused = true)]
    async fn enough_go_at_once_with_all_that_is_there() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        let outcomes: Vec<_> = (0..20).map(|n| submit(&*queue, trace(n + 1, 1))).collect();
        let start = Instant::now();
        let batch = inbox.next_batch(&batching(16, 1 << 20)).await.unwrap();
        assert_eq!((batch.len(), start.elapsed()), (outcomes.len(), Duration::ZERO));
    }

    #[tokio::test]
    async fn batch_ends_at_the_size_of_a_request_and_carries_the_rest_over() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        let traces: Vec<_> = (1..=5).map(|n| trace(n, 4)).collect();
        let outcomes: Vec<_> = traces.iter().map(|t| submit(&*queue, t.clone())).collect();
        // Each trace has its own resource and scope: about 100 bytes more than its spans.
        let bytes_max = 2 * (traces[0].bytes + 150);
        let mut sizes = Vec::new();
        let mut pulled = Vec::new();
        while pulled.len() < outcomes.len() {
            let batch = inbox.next_batch(&batching(1, bytes_max)).await.unwrap();
            sizes.push(batch.len());
            pulled.extend(batch.iter().map(|pending| pending.attempt.trace_id));
        }
        assert_eq!(sizes, [2, 2, 1]);
        assert_eq!(pulled, traces.iter().map(|t| t.trace_id).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_over_a_whole_request_goes_alone_and_at_once() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        let _giant = submit(&*queue, trace(1, 50));
        let _small = submit(&*queue, trace(2, 1));
        let start = Instant::now();
        let batch = inbox.next_batch(&batching(16, 500)).await.unwrap();
        assert_eq!((batch.len(), start.elapsed()), (1, Duration::ZERO));
    }

    #[tokio::test]
    async fn cancelled_attempt_never_begins() {
        let (queue, mut inbox) = queue("otlp".into(), 1 << 20, Gauge::default());
        drop(submit(&*queue, trace(1, 1)));
        let _kept = submit(&*queue, trace(2, 1));
        let batch = inbox.next_batch(&batching(1, 1 << 20)).await.unwrap();
        assert_eq!(batch.len(), 1);
        assert_eq!(batch[0].attempt.trace_id, trace(2, 1).trace_id);
    }
}
