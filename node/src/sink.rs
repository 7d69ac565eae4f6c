//! Where finished traces go.
//!
//! A sink makes *single* attempts: the owner of a trace decides when to try again (PROTOCOL.md, D2).
//! Each sink is one task with one queue, bounded in bytes ([`Sink::submit`] refuses what does not
//! fit), and it answers every attempt that it took exactly once, within [`ATTEMPT_MAX`] of beginning
//! it. It keeps nothing: the spans stay with their holders until the sink acknowledged them.

use crate::spans::{Chunk, TraceId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an attempt may last once a sink began to write it; less than `SETTLE_MAX`, so that an
/// attempt in flight never outlasts the wait for calm.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// One trace on its way out.
#[derive(Debug)]
pub struct Attempt {
    /// The trace.
    pub trace_id: TraceId,
    /// All its spans in this attempt.
    pub chunks: Vec<Chunk>,
    /// Number of spans in `chunks`.
    pub span_count: u32,
    /// Bytes of the spans in `chunks`; what the attempt counts for in a queue.
    pub bytes: usize,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has the spans.
    Acknowledged,
    /// The sink will never take them; they are in its dead-letter file.
    Refused,
    /// Not now: nothing, or an unknown part, arrived. `after` is what the sink asked to wait.
    Again {
        /// The sink's own wish, from `RetryInfo` or `Retry-After`.
        after: Option<Duration>,
    },
}

/// The queue is full; nothing was taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue of the sink is full")]
pub struct QueueFull;

/// One configured sink, as the owner of a trace sees it.
pub trait Sink: Send + Sync {
    /// The label in metrics and logs: `otlp`, `file`, `stdout`, with a number when there are several.
    fn name(&self) -> &str;
    /// Queues an attempt and returns at once. The receiver yields the outcome; when it yields an
    /// error the sink's task has ended, and nothing is known.
    fn submit(&self, attempt: Arc<Attempt>) -> Result<oneshot::Receiver<Outcome>, QueueFull>;
}
