//! Where finished traces go.
//!
//! A sink makes *single* attempts: the owner of a trace decides when to try again (PROTOCOL.md,
//! D2). Each sink is one task with one queue, bounded in bytes. The invariant: it answers every
//! attempt exactly once, and within [`ATTEMPT_MAX`] of beginning it; one that does not fit into the
//! queue, or is dropped on the way, with [`Outcome::Again`]. A sink keeps nothing: the spans stay
//! with their holders until it acknowledged them, so stopping one loses nothing.
//!
//! A bad trace costs that trace only: what makes encoding panic, or what a server refuses for good,
//! is singled out of its request, written raw to the sink's dead-letter file, and refused.
//!
//! Nothing here retries, and nothing here knows who owns a trace.

mod dead_letter;
mod file;
mod health;
mod letter;
mod lines;
mod metrics;
mod optional;
mod otlp;
mod queue;
mod reply;
mod request;
mod rotation;
mod stdout;
#[cfg(test)]
pub(crate) mod testing;

pub use dead_letter::{DEAD_LETTER_BYTES_MAX, DeadLetterError, DeadLetters};
pub(crate) use letter::{Read as Letter, read as read_letter};
pub use metrics::Metrics;
pub use otlp::Target;
pub(crate) use otlp::{Answer, Client};
pub use reply::{Answered, Reply, Withdrawn};
pub(crate) use request::{Room, encode};
pub(crate) use rotation::numbered;
pub use rotation::{Durability, Rotation};

use crate::environment::WallClock;
use crate::reload::FileError;
use crate::spans::{Chunk, TraceId};
use lines::Lines;
use rotation::RotatedFile;
use std::any::Any;
use std::collections::{BTreeMap, btree_map};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long an attempt may last once a sink began to write it; less than `SETTLE_MAX`, so that an
/// attempt in flight never outlasts the wait for calm.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// What the queue of a file or of stdout holds at most: as much as an OTLP sink's does by default.
const LINES_QUEUE_BYTES_MAX: usize = 256 << 20;

/// One trace on its way out.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The trace.
    pub trace_id: TraceId,
    /// All its spans in this attempt.
    pub chunks: Vec<Chunk>,
    /// Number of spans in `chunks`.
    pub span_count: u32,
    /// Bytes of the spans in `chunks`; what the attempt counts for in a queue.
    pub bytes: usize,
    /// When the trace was due here; none when nobody decided about it.
    pub due: Option<Instant>,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has the spans.
    Acknowledged,
    /// The sink will never take them; they are in its dead-letter file.
    Refused,
    /// The attempt began, and what arrived is unknown: it may be in the sink, or not.
    Unanswered,
    /// Not now: nothing was taken. `after` is what the sink asked to wait.
    Again {
        /// The sink's own wish, from `RetryInfo` or `Retry-After`.
        after: Option<Duration>,
    },
}

impl Outcome {
    /// Again, when the sink said nothing about when.
    pub(crate) const AGAIN: Self = Self::Again { after: None };
}

/// One configured sink, as the owner of a trace sees it.
pub trait Sink: Send + Sync {
    /// The label in metrics and logs: `otlp`, `file`, `stdout`; from the second of a kind on with a
    /// number: `otlp-2`.
    fn name(&self) -> &str;
    /// Queues an attempt and returns at once. When nobody waits for `reply` any more, an attempt
    /// that the sink has not begun is cancelled.
    fn submit(&self, attempt: Arc<Attempt>, reply: Reply);
}

/// One sink as configured. Not `Debug`: headers carry secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum SinkConfig {
    /// An OTLP server.
    Otlp(OtlpConfig),
    /// OTLP JSON, a trace a line, appended to this file.
    File {
        /// Created if missing; its directory must exist.
        path: PathBuf,
        /// When it is begun anew.
        rotation: Rotation,
        /// When a line counts as written.
        durability: Durability,
    },
    /// The same lines to standard output.
    Stdout,
}

/// An OTLP sink as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Where it sends, and how.
    pub target: Target,
    /// Size of a request before compression; only a single span over it makes a larger one.
    pub request_bytes_max: usize,
    /// Bytes of spans that may wait for this sink or be on their way to it.
    pub queue_bytes_max: usize,
    /// How long a trace may be put off, from due on, by a server that answers.
    pub retry_for: Duration,
    /// Whether the owners of traces wait for it.
    pub demand: Demand,
    /// Bound of its dead-letter file.
    pub dead_letter_bytes_max: u64,
}

/// Whether the owner of a trace waits for a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// It holds a trace until the sink has it; a full queue pushes back.
    Required,
    /// The sink has a queue of its own; what it has no room for becomes a dead letter.
    Optional,
}

/// What an OTLP server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, on HTTP/2.
    Grpc,
    /// Protobuf in POST requests.
    Http,
}

/// How an OTLP request is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// What every OTLP server understands; costs more than the rest of the export.
    Gzip,
    /// Cheap; a server that does not know it is sent uncompressed requests instead.
    Zstd,
}

/// A sink cannot start; nothing was started. All are errors of the configuration or of its
/// surroundings, so trying again helps only after somebody acted.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process, or another sink of this one, writes to the file.
    #[error("sink {sink}: {path} is being written by another sink; a file has one writer")]
    Locked {
        /// The sink's name.
        sink: String,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened for appending.
    #[error("sink {sink}: cannot open {path}")]
    Open {
        /// The sink's name.
        sink: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something that is not JSON lines, so it is probably somebody else's.
    #[error("sink {sink}: {path} does not begin with `{{`, so it holds no JSON lines")]
    Foreign {
        /// The sink's name.
        sink: String,
        /// The file.
        path: PathBuf,
    },
    /// Certificates cannot be used.
    #[error("sink {sink}: TLS")]
    Tls {
        /// The sink's name.
        sink: String,
        /// Which file, and why.
        source: FileError,
    },
    /// Standard output is closed.
    #[error("sink {sink}: cannot write to standard output")]
    Stdout {
        /// The sink's name.
        sink: String,
        /// Why.
        source: io::Error,
    },
}

/// How long sinks may take to stop: an attempt, and then the disk for what is left in the queue of
/// one that is not required.
const STOP_MAX: Duration = Duration::from_secs(20);

/// The tasks of the sinks. Dropping it ends them at once; attempts under way answer `Again`.
pub struct Workers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Workers {
    /// Returns when a sink's task has panicked, which is a bug of ours: the node should end.
    pub async fn failed(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if ended.is_err() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Takes nothing more, answers what waits with [`Outcome::Again`], and finishes what was begun,
    /// within [`STOP_MAX`].
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let finished = timeout(STOP_MAX, async { while self.tasks.join_next().await.is_some() {} });
        if finished.await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

/// Opens all sinks and starts their tasks on the current runtime, or starts none. `dead_letters` is
/// the directory of their dead-letter files, made when the first one is written.
pub fn start(
    configs: &[SinkConfig],
    dead_letters: &Path,
    clock: &WallClock,
    metrics: &Metrics,
) -> Result<(Vec<Arc<dyn Sink>>, Workers), StartError> {
    let mut starting =
        Starting { stop: CancellationToken::new(), clock, metrics, runs: Vec::new() };
    let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
    for (name, config) in named(configs) {
        let letters = DeadLetters::new(
            dead_letters.join(format!("{name}.jsonl")),
            dead_letter_bytes_max(config),
            name.clone(),
            clock.clone(),
            metrics,
        );
        sinks.push(match config {
            SinkConfig::Otlp(otlp) => starting.otlp(name, otlp, letters)?,
            SinkConfig::File { path, rotation, durability } => {
                let file = RotatedFile::open(&name, path, *rotation, *durability)?;
                starting.lines(name, file, path.display().to_string(), letters)
            }
            SinkConfig::Stdout => {
                let output = stdout::open(&name)?;
                starting.lines(name, output, "standard output".into(), letters)
            }
        });
    }
    let Starting { stop, runs, .. } = starting;
    let tasks = runs.into_iter().collect();
    Ok((sinks, Workers { stop, tasks }))
}

/// Sinks of which none runs yet.
struct Starting<'a> {
    stop: CancellationToken,
    clock: &'a WallClock,
    metrics: &'a Metrics,
    runs: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Starting<'_> {
    fn otlp(
        &mut self,
        name: String,
        config: &OtlpConfig,
        letters: DeadLetters,
    ) -> Result<Arc<dyn Sink>, StartError> {
        let (client, files) = otlp::Client::new(&name, &config.target, self.clock)?;
        let meter = self.metrics.sink(&name);
        let (sink, inbox) = queue::queue(name, config.queue_bytes_max, meter.queue_bytes.clone());
        let OtlpConfig { request_bytes_max, retry_for, .. } = *config;
        let worker =
            otlp::Worker::new(client, request_bytes_max, retry_for, meter, letters.clone());
        self.runs.push(Box::pin(worker.run(inbox, self.stop.clone())));
        if let Some(files) = files {
            self.runs.push(Box::pin(files.keep(self.stop.clone())));
        }
        if config.demand == Demand::Required {
            return Ok(sink);
        }
        let (sink, keeper) = optional::optional(sink, config.queue_bytes_max, letters);
        self.runs.push(Box::pin(keeper.run(self.stop.clone())));
        Ok(sink)
    }

    fn lines(
        &mut self,
        name: String,
        lines: impl Lines,
        path: String,
        letters: DeadLetters,
    ) -> Arc<dyn Sink> {
        let meter = self.metrics.sink(&name);
        let (sink, inbox) = queue::queue(name, LINES_QUEUE_BYTES_MAX, meter.queue_bytes.clone());
        let worker = lines::Worker::new(lines, path, meter, letters);
        self.runs.push(Box::pin(worker.run(inbox, self.stop.clone())));
        sink
    }
}

fn dead_letter_bytes_max(config: &SinkConfig) -> u64 {
    match config {
        SinkConfig::Otlp(otlp) => otlp.dead_letter_bytes_max,
        SinkConfig::File { .. } | SinkConfig::Stdout => DEAD_LETTER_BYTES_MAX,
    }
}

/// Each sink with its name.
pub(crate) fn named(configs: &[SinkConfig]) -> impl Iterator<Item = (String, &SinkConfig)> {
    let mut counts = BTreeMap::new();
    configs.iter().map(move |config| (name(config, &mut counts), config))
}

/// The kind, with a number from the second of a kind on: adding one at the end renames none.
fn name(config: &SinkConfig, counts: &mut BTreeMap<&'static str, u32>) -> String {
    let kind = match config {
        SinkConfig::Otlp(_) => "otlp",
        SinkConfig::File { .. } => "file",
        SinkConfig::Stdout => "stdout",
    };
    match counts.entry(kind) {
        btree_map::Entry::Vacant(entry) => {
            entry.insert(1);
            kind.to_owned()
        }
        btree_map::Entry::Occupied(mut entry) => {
            *entry.get_mut() += 1;
            format!("{kind}-{}", entry.get())
        }
    }
}

/// Runs what one trace may make panic; a panic becomes a reason.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| format!("panic: {}", message(&*panic)))
}

/// What a task returned; `None` when the runtime is ending. Passes a panic on: it is a bug of ours.
fn joined<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_cancelled)) => None,
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::reply::submit;
    use super::*;
    use crate::sink::testing::trace;
    use prometheus_client::registry::Registry;
    use std::fs;
    use std::time::SystemTime;

    fn start_in(
        directory: &Path,
        configs: &[SinkConfig],
    ) -> Result<(Vec<Arc<dyn Sink>>, Workers), StartError> {
        let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH);
        let metrics = Metrics::register(&mut Registry::default());
        start(configs, &directory.join("dead-letters"), &clock, &metrics)
    }

    fn otlp() -> SinkConfig {
        let target = Target {
            endpoints: vec!["http://127.0.0.1:1".parse().unwrap()],
            protocol: Protocol::Grpc,
            compression: Compression::Zstd,
            headers: Vec::new(),
            tls: crate::tls::ClientFiles::default(),
        };
        SinkConfig::Otlp(OtlpConfig {
            target,
            request_bytes_max: 3 << 20,
            queue_bytes_max: 1 << 20,
            retry_for: Duration::from_secs(300),
            demand: Demand::Required,
            dead_letter_bytes_max: DEAD_LETTER_BYTES_MAX,
        })
    }

    fn file(path: &Path) -> SinkConfig {
        let rotation = Rotation { bytes_max: 0, keep: 1 };
        SinkConfig::File { path: path.into(), rotation, durability: Durability::System }
    }

    #[tokio::test]
    async fn sinks_are_named_by_kind_and_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let configs = [otlp(), file(&path("a")), SinkConfig::Stdout, otlp(), file(&path("b"))];
        let (sinks, workers) = start_in(directory.path(), &configs).unwrap();
        let names: Vec<_> = sinks.iter().map(|sink| sink.name()).collect();
        assert_eq!(names, ["otlp", "file", "stdout", "otlp-2", "file-2"]);
        workers.shutdown().await;
    }

    #[tokio::test]
    async fn one_file_for_two_sinks_starts_neither() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        let error = start_in(directory.path(), &[file(&path), file(&path)]).err().unwrap();
        assert!(error.to_string().contains("traces.jsonl"), "{error}");
        start_in(directory.path(), &[file(&path)]).unwrap().1.shutdown().await;
    }

    #[tokio::test]
    async fn missing_directory_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/traces.jsonl");
        let error = start_in(directory.path(), &[file(&path)]).err().unwrap();
        assert!(error.to_string().contains("missing/traces.jsonl"), "{error}");
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_in_the_file_and_nothing_is_taken_after_a_stop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        let (sinks, workers) = start_in(directory.path(), &[file(&path)]).unwrap();
        for n in 1..=3 {
            let outcome = submit(&*sinks[0], trace(n, 2));
            assert_eq!(outcome.await, Outcome::Acknowledged);
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), usize::from(n));
        }
        workers.shutdown().await;
        assert_eq!(submit(&*sinks[0], trace(4, 1)).await, Outcome::AGAIN);
        assert!(!directory.path().join("dead-letters").exists());
    }
}
