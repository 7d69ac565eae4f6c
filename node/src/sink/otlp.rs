//! The OTLP sink: export requests over gRPC or HTTP.
//!
//! What an answer means is OTLP's: acknowledged, later, or never. A request that will never be
//! taken is halved and sent again until the attempt to blame is alone, so a poisonous trace costs
//! the others nothing but time; alone, it becomes a dead letter. A request that makes encoding
//! panic goes the same way, and so does a trace that is put off for too long. Where the server
//! blames the way of sending and not what was sent, all of a request become dead letters: OTLP
//! forbids to send it again, and no half of it would fare better.
//!
//! The invariant: an attempt is acknowledged only when the server said so of each of its requests,
//! and refused only when a server that was reached said never, or later for `retry_for`. Bounded by
//! [`REQUESTS_IN_FLIGHT_MAX`] requests of `request_bytes_max`, each for [`ATTEMPT_MAX`]. No retry
//! here.

mod answer;
mod client;
mod connect;
mod giants;
mod over_grpc;
mod over_http;

pub(crate) use answer::Answer;
pub(crate) use client::Client;
pub use client::Target;

use super::dead_letter::DeadLetters;
use super::health::{Health, Pace, Trouble};
use super::metrics::SinkMetrics;
use super::queue::{Batching, Inbox, Pending};
use super::{ATTEMPT_MAX, Attempt, Outcome, guarded, joined, request};
use bytes::Bytes;
use giants::{Giants, Progress};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::select;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Enough to keep a link busy while answers travel; with requests of 3 MiB, 12 MiB of copies.
const REQUESTS_IN_FLIGHT_MAX: usize = 4;

/// A busy sink's request carries at least so many traces: what a request costs by itself is then
/// spread over some 500 spans.
const TRACES_MIN: usize = 256;

/// A trace waits no longer than this for the company of others.
const LINGER: Duration = Duration::from_millis(200);

/// Attempts as requests of at most a size, in memory that was used before; a test puts one here
/// that panics.
type Encode = fn(&[Arc<Attempt>], usize, Vec<u8>) -> Vec<Bytes>;

pub(super) struct Worker {
    exporter: Arc<Exporter>,
}

/// What the tasks of requests share.
struct Exporter {
    client: Client,
    request_bytes_max: usize,
    /// How long a trace may be put off by a sink that answers.
    retry_for: Duration,
    /// Since when the sink answers; none while it does not.
    answering_since: Mutex<Option<Instant>>,
    encode: Encode,
    giants: Giants,
    /// Memory of requests that are over, of as many as may be in flight.
    buffers: Mutex<Vec<Vec<u8>>>,
    metrics: SinkMetrics,
    health: Health,
    rejections: Pace,
    dead_letters: DeadLetters,
}

impl Worker {
    pub(super) fn new(
        client: Client,
        request_bytes_max: usize,
        retry_for: Duration,
        metrics: SinkMetrics,
        dead_letters: DeadLetters,
    ) -> Self {
        let exporter = Exporter {
            client,
            request_bytes_max,
            retry_for,
            answering_since: Mutex::default(),
            encode: request::encode_into,
            giants: Giants::default(),
            buffers: Mutex::default(),
            health: Health::new(metrics.up.clone()),
            rejections: Pace::default(),
            metrics,
            dead_letters,
        };
        Self { exporter: Arc::new(exporter) }
    }

    /// Works until nobody submits any more, or `stop`; then finishes what is in flight.
    pub(super) async fn run(self, mut inbox: Inbox, stop: CancellationToken) {
        let bytes_max = self.exporter.request_bytes_max;
        let batching = Batching { count_min: TRACES_MIN, linger: LINGER, bytes_max };
        let mut in_flight = JoinSet::new();
        loop {
            while in_flight.len() >= REQUESTS_IN_FLIGHT_MAX {
                in_flight.join_next().await.and_then(joined);
            }
            let batch = select! {
                biased;
                () = stop.cancelled() => break,
                batch = inbox.next_batch(&batching) => batch,
            };
            let Some(batch) = batch else { break };
            in_flight.spawn(self.exporter.clone().deliver(batch));
        }
        drop(inbox);
        while let Some(ended) = in_flight.join_next().await {
            joined(ended);
        }
    }
}

impl Exporter {
    /// Answers every attempt of the batch. Ends at the first passing trouble, so at most
    /// [`ATTEMPT_MAX`] after the last answer of the server.
    async fn deliver(self: Arc<Self>, batch: Vec<Pending>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            part.retain(|pending| !pending.is_cancelled());
            if part.is_empty() {
                continue;
            }
            match self.send(&part).await {
                Answer::Taken { rejected_span_count, message } => {
                    self.on_taken(&part, rejected_span_count, &message);
                    part.into_iter().for_each(|pending| pending.answer(Outcome::Acknowledged));
                }
                Answer::Later { after, reason } => {
                    self.on_later(&reason);
                    let rest = parts.into_iter().flatten();
                    rest.for_each(|pending| pending.answer(Outcome::Again { after }));
                    return self.put_off(part, after, &reason).await;
                }
                Answer::Unreached { reason } => {
                    self.on_later(&reason);
                    let rest = parts.into_iter().flatten().chain(part);
                    return rest.for_each(|pending| pending.answer(Outcome::AGAIN));
                }
                Answer::Unanswered { reason } => {
                    self.on_later(&reason);
                    part.into_iter().for_each(|pending| pending.answer(Outcome::Unanswered));
                    let rest = parts.into_iter().flatten();
                    return rest.for_each(|pending| pending.answer(Outcome::AGAIN));
                }
                Answer::Never { reason } if part.len() == 1 => {
                    for pending in part {
                        self.refuse(pending, reason.clone()).await;
                    }
                }
                Answer::Barred { reason } => {
                    self.on_barred(&reason);
                    for pending in part {
                        self.refuse(pending, reason.clone()).await;
                    }
                }
                Answer::Never { .. } => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
            }
        }
    }

    /// One attempt at sending a part: its requests one after the other, until one is not taken.
    /// Those that were taken before are not sent again.
    async fn send(&self, part: &[Pending]) -> Answer {
        let deadline = Instant::now() + ATTEMPT_MAX;
        let attempts: Vec<_> = part.iter().map(|pending| pending.attempt.clone()).collect();
        let buffer = self.buffers().pop().unwrap_or_default();
        let mut requests =
            match guarded(|| (self.encode)(&attempts, self.request_bytes_max, buffer)) {
                Ok(requests) => requests,
                Err(reason) => return Answer::Never { reason },
            };
        if let [request] = &mut requests[..] {
            return self.post(std::mem::take(request), deadline).await;
        }
        // Only a single attempt is more than one request.
        let mut progress = self.giants.take(&attempts[0]);
        for request in requests.into_iter().skip(progress.requests) {
            match self.post(request, deadline).await {
                Answer::Taken { rejected_span_count, message } => {
                    progress.requests += 1;
                    progress.rejected_span_count += rejected_span_count;
                    if rejected_span_count > 0 {
                        progress.message = message;
                    }
                }
                answer => {
                    self.giants.keep(&attempts[0], progress);
                    return answer;
                }
            }
        }
        let Progress { rejected_span_count, message, .. } = progress;
        Answer::Taken { rejected_span_count, message }
    }

    async fn post(&self, request: Bytes, deadline: Instant) -> Answer {
        let start = Instant::now();
        let answer = self.client.call(request.clone(), deadline).await;
        self.keep(request);
        self.metrics.seconds.observe(start.elapsed().as_secs_f64());
        self.note(&answer);
        answer
    }

    /// Keeps the memory of a request for another one.
    fn keep(&self, request: Bytes) {
        let mut buffers = self.buffers();
        let is_usual = request.len() <= self.request_bytes_max && request.is_unique();
        if is_usual && buffers.len() < REQUESTS_IN_FLIGHT_MAX {
            buffers.push(request.into());
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rejected spans cannot be told from the others, and OTLP forbids to send them again: they are
    /// counted, and the attempts acknowledged.
    fn on_taken(&self, part: &[Pending], rejected_span_count: u64, message: &str) {
        let span_count: u64 = part.iter().map(|p| u64::from(p.attempt.span_count)).sum();
        let rejected_span_count = rejected_span_count.min(span_count);
        self.metrics.spans.inc_by(span_count - rejected_span_count);
        self.metrics.spans_rejected.inc_by(rejected_span_count);
        if rejected_span_count > 0 && self.rejections.due() {
            let (sink, endpoint) = (self.client.sink(), self.client.endpoint());
            let span_count = rejected_span_count;
            tracing::warn!(sink, endpoint, span_count, message, "sink rejected spans for good");
        }
    }

    /// Whether the sink answers, and whether it works.
    fn note(&self, answer: &Answer) {
        let mut since = self.answering_since.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Answer::Unreached { .. } | Answer::Unanswered { .. } => *since = None,
            Answer::Later { .. } | Answer::Barred { .. } => {
                *since = since.or(Some(Instant::now()));
            }
            Answer::Taken { .. } | Answer::Never { .. } => {
                *since = since.or(Some(Instant::now()));
                if self.health.up() {
                    tracing::info!(sink = self.client.sink(), "sink answers again");
                }
            }
        }
    }

    /// Answers attempts that the sink wants later. One that it puts off for `retry_for` is given
    /// up; the time before it was due does not count, nor that in which the sink did not answer.
    async fn put_off(&self, part: Vec<Pending>, after: Option<Duration>, reason: &str) {
        let since = *self.answering_since.lock().unwrap_or_else(PoisonError::into_inner);
        for pending in part {
            let put_off_since = pending.attempt.due.zip(since).map(|(due, since)| due.max(since));
            if put_off_since.is_some_and(|since| since.elapsed() >= self.retry_for) {
                self.refuse(pending, format!("put off for too long: {reason}")).await;
            } else {
                pending.answer(Outcome::Again { after });
            }
        }
    }

    fn on_later(&self, reason: &str) {
        if self.health.down(Trouble::Passing) {
            let (sink, endpoint) = (self.client.sink(), self.client.endpoint());
            tracing::warn!(sink, endpoint, reason, "sink takes nothing; traces wait");
        }
    }

    fn on_barred(&self, reason: &str) {
        if self.health.down(Trouble::Settings) {
            let (sink, endpoint) = (self.client.sink(), self.client.endpoint());
            tracing::error!(
                sink,
                endpoint,
                reason,
                "sink lets nothing in: check its endpoint, protocol, headers and tls; \
                 until that is mended traces become dead letters"
            );
        }
    }

    async fn refuse(&self, pending: Pending, reason: String) {
        let letters = self.dead_letters.clone();
        let attempt = pending.attempt.clone();
        let written = spawn_blocking(move || letters.refuse(&attempt, &reason));
        // Of a disk that hangs nothing is known.
        pending.answer(match timeout(ATTEMPT_MAX, written).await {
            Ok(written) => joined(written).unwrap_or(Outcome::AGAIN),
            Err(_) => Outcome::Unanswered,
        });
    }
}

#[cfg(test)]
mod tests;
