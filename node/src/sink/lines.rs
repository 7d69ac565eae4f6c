//! The worker of the sinks that write OTLP JSON, a trace a line.
//!
//! Encoding and writing happen on a blocking thread, a batch at a time; the writer travels there
//! and back, so it has one owner. The invariant: an attempt is acknowledged when its whole line was
//! written. After the first line that fails, the rest of the batch is not tried.
//!
//! A disk that neither writes nor fails holds the thread; the attempts are answered with `Again`
//! after [`ATTEMPT_MAX`] all the same, and the queue fills until the disk is back.

use super::dead_letter::DeadLetters;
use super::health::Health;
use super::metrics::SinkMetrics;
use super::queue::{Batching, Inbox};
use super::{ATTEMPT_MAX, Attempt, Outcome, guarded, request};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use std::io;
use std::slice;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// What is there goes at once; 4 MiB of spans are encoded in well under a second.
const BATCHING: Batching = Batching {
    count_min: 1,
    linger: Duration::ZERO,
    bytes_max: 4 << 20,
};

/// Takes lines, each ended by a newline.
pub(super) trait Lines: Send + 'static {
    /// Writes a whole line, or leaves no trace of it where that is possible. Blocks.
    fn append(&mut self, line: &[u8]) -> io::Result<()>;
}

/// An attempt as a line; a test puts one here that panics.
type ToLine = fn(&Arc<Attempt>) -> Result<Vec<u8>, String>;

pub(super) struct Worker<L> {
    lines: L,
    /// What log lines call the target.
    path: String,
    to_line: ToLine,
    metrics: SinkMetrics,
    health: Health,
    dead_letters: DeadLetters,
}

impl<L: Lines> Worker<L> {
    pub(super) fn new(
        lines: L,
        path: String,
        metrics: SinkMetrics,
        dead_letters: DeadLetters,
    ) -> Self {
        let health = Health::new(metrics.up.clone());
        Self {
            lines,
            path,
            to_line,
            metrics,
            health,
            dead_letters,
        }
    }

    /// Works until nobody submits any more, or `stop`.
    pub(super) async fn run(self, mut inbox: Inbox, stop: CancellationToken) {
        let mut worker = self;
        loop {
            let batch = select! {
                biased;
                () = stop.cancelled() => return,
                batch = inbox.next_batch(&BATCHING) => batch,
            };
            let Some(batch) = batch else { return };
            let attempts: Vec<_> = batch
                .iter()
                .map(|pending| pending.attempt.clone())
                .collect();
            let path = worker.path.clone();
            let mut writing = spawn_blocking(move || {
                let outcomes = worker.write(&attempts);
                (worker, outcomes)
            });
            let Ok(written) = timeout(ATTEMPT_MAX, &mut writing).await else {
                // Answers with Again; whether the lines will be written is unknown.
                drop(batch);
                tracing::error!(path, "a write takes longer than an attempt may");
                let Some(returned) = returned(writing, &stop).await else {
                    return;
                };
                worker = returned;
                continue;
            };
            let (returned, outcomes) = written.expect("what may panic in it is guarded");
            batch
                .into_iter()
                .zip(outcomes)
                .for_each(|(pending, outcome)| pending.answer(outcome));
            worker = returned;
        }
    }

    fn write(&mut self, attempts: &[Arc<Attempt>]) -> Vec<Outcome> {
        let mut works = true;
        let mut outcomes = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let outcome = if works {
                self.write_one(attempt)
            } else {
                Outcome::AGAIN
            };
            works &= !matches!(outcome, Outcome::Again { .. });
            outcomes.push(outcome);
        }
        outcomes
    }

    fn write_one(&mut self, attempt: &Arc<Attempt>) -> Outcome {
        let line = match guarded(|| (self.to_line)(attempt)) {
            Ok(Ok(line)) => line,
            Ok(Err(reason)) | Err(reason) => return self.dead_letters.refuse(attempt, &reason),
        };
        let start = Instant::now();
        let appended = self.lines.append(&line);
        self.metrics.seconds.observe(start.elapsed().as_secs_f64());
        let path = &self.path;
        match appended {
            Ok(()) => {
                if self.health.up() {
                    tracing::info!(path, "writing again");
                }
                self.metrics.spans.inc_by(u64::from(attempt.span_count));
                Outcome::Acknowledged
            }
            Err(error) => {
                if self.health.down() {
                    tracing::error!(path, %error, "cannot write; traces wait with their owners");
                }
                Outcome::AGAIN
            }
        }
    }
}

/// The worker, once its disk answers; `None` when it should stop instead.
async fn returned<L>(
    writing: JoinHandle<(Worker<L>, Vec<Outcome>)>,
    stop: &CancellationToken,
) -> Option<Worker<L>> {
    select! {
        biased;
        () = stop.cancelled() => None,
        written = writing => Some(written.expect("what may panic in it is guarded").0),
    }
}

fn to_line(attempt: &Arc<Attempt>) -> Result<Vec<u8>, String> {
    let requests = request::encode(slice::from_ref(attempt), usize::MAX);
    let mut line = Vec::new();
    for request in requests {
        let request =
            ExportTraceServiceRequest::decode(request).map_err(|error| error.to_string())?;
        serde_json::to_writer(&mut line, &request).map_err(|error| error.to_string())?;
        line.push(b'\n');
    }
    Ok(line)
}
