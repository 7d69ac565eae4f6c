//! The worker of the sinks that write OTLP JSON, a trace a line.
//!
//! Encoding and writing happen on a blocking thread, a batch at a time; the writer travels there
//! and back, so it has one owner. The invariant: an attempt is acknowledged when its whole line was
//! written. After the first line that fails, the rest of the batch is not tried.
//!
//! A disk that neither writes nor fails holds the thread; what became of the attempts is unknown,
//! which is said after [`ATTEMPT_MAX`], and the queue fills until the disk is back.

use super::dead_letter::DeadLetters;
use super::health::{Health, Trouble};
use super::metrics::SinkMetrics;
use super::queue::{Batching, Inbox};
use super::{ATTEMPT_MAX, Attempt, Outcome, guarded, joined, request};
use crate::json::to_json;
use std::io;
use std::slice;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// What is there goes at once; 4 MiB of spans are encoded in well under a second.
const BATCHING: Batching = Batching { count_min: 1, linger: Duration::ZERO, bytes_max: 4 << 20 };

/// Takes lines, each ended by a newline.
pub(super) trait Lines: Send + 'static {
    /// Writes a whole line, or leaves no trace of it where that is possible. Blocks.
    fn append(&mut self, line: &[u8]) -> io::Result<()>;

    /// Returns when lines are where they are to be before they are acknowledged. Blocks.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An attempt as a line; a test puts one here that panics.
type ToLine = fn(&Arc<Attempt>) -> Result<Vec<u8>, String>;

pub(super) struct Worker<L> {
    lines: L,
    /// What log lines call the target.
    path: String,
    to_line: ToLine,
    metrics: SinkMetrics,
    health: Arc<Health>,
    dead_letters: DeadLetters,
}

impl<L: Lines> Worker<L> {
    pub(super) fn new(
        lines: L,
        path: String,
        metrics: SinkMetrics,
        dead_letters: DeadLetters,
    ) -> Self {
        let health = Arc::new(Health::new(metrics.up.clone()));
        Self { lines, path, to_line, metrics, health, dead_letters }
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
            let attempts: Vec<_> = batch.iter().map(|pending| pending.attempt.clone()).collect();
            let (path, health) = (worker.path.clone(), worker.health.clone());
            let mut writing = spawn_blocking(move || {
                let outcomes = worker.write(&attempts);
                (worker, outcomes)
            });
            let Ok(written) = timeout(ATTEMPT_MAX, &mut writing).await else {
                batch.into_iter().for_each(|pending| pending.answer(Outcome::Unanswered));
                if health.down(Trouble::Passing) {
                    tracing::error!(path, "a write takes longer than an attempt may");
                }
                let Some(returned) = returned(writing, &stop).await else {
                    return;
                };
                worker = returned;
                continue;
            };
            let Some((returned, outcomes)) = joined(written) else {
                return;
            };
            batch.into_iter().zip(outcomes).for_each(|(pending, outcome)| pending.answer(outcome));
            worker = returned;
        }
    }

    fn write(&mut self, attempts: &[Arc<Attempt>]) -> Vec<Outcome> {
        let mut works = true;
        let mut outcomes = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let outcome = if works { self.write_one(attempt) } else { Outcome::AGAIN };
            works &= !matches!(outcome, Outcome::Again { .. });
            outcomes.push(outcome);
        }
        let written = attempts.iter().zip(&mut outcomes);
        let written = written.filter(|(_, outcome)| **outcome == Outcome::Acknowledged);
        if let Err(error) = self.lines.sync() {
            self.on_error(&error);
            written.for_each(|(_, outcome)| *outcome = Outcome::Unanswered);
            return outcomes;
        }
        let spans: Vec<_> = written.map(|(attempt, _)| u64::from(attempt.span_count)).collect();
        if works && !spans.is_empty() && self.health.up() {
            tracing::info!(path = self.path, "writing again");
        }
        self.metrics.spans.inc_by(spans.iter().sum());
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
        match appended {
            Ok(()) => Outcome::Acknowledged,
            Err(error) => {
                self.on_error(&error);
                Outcome::AGAIN
            }
        }
    }

    fn on_error(&self, error: &io::Error) {
        if self.health.down(Trouble::Passing) {
            let path = &self.path;
            tracing::error!(path, %error, "cannot write; traces wait with their owners");
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
        written = writing => joined(written).map(|(worker, _)| worker),
    }
}

fn to_line(attempt: &Arc<Attempt>) -> Result<Vec<u8>, String> {
    let request = request::encode_whole(slice::from_ref(attempt));
    let mut line = to_json(&request).map_err(|error| error.to_string())?;
    line.push('\n');
    Ok(line.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::WallClock;
    use crate::sink::queue::queue;
    use crate::sink::reply::submit;
    use crate::sink::testing::{attempt, resource, scope, span_ids, trace};
    use crate::sink::{Metrics, Sink};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prometheus_client::registry::Registry;
    use prost::Message;
    use std::path::PathBuf;
    use std::sync::{Mutex, mpsc};
    use std::{fs, time::SystemTime};
    use tokio::sync::Notify;
    use tokio::task::JoinSet;

    /// Takes `room` bytes, then fails; before each line it waits for `go`, where there is one. What
    /// it took is safe when `syncs`.
    #[derive(Clone)]
    struct Target {
        text: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<usize>>,
        go: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
        begun: Arc<Notify>,
        syncs: Arc<Mutex<bool>>,
    }

    impl Target {
        fn new(room: usize) -> Self {
            let (text, begun, syncs) = (Arc::default(), Arc::default(), Arc::new(true.into()));
            Self { text, room: Arc::new(Mutex::new(room)), go: None, begun, syncs }
        }

        fn text(&self) -> String {
            String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
        }
    }

    impl Lines for Target {
        fn append(&mut self, line: &[u8]) -> io::Result<()> {
            self.begun.notify_one();
            if let Some(go) = &self.go {
                go.lock().unwrap().recv().unwrap();
            }
            let mut text = self.text.lock().unwrap();
            if text.len() + line.len() > *self.room.lock().unwrap() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            text.extend_from_slice(line);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            match *self.syncs.lock().unwrap() {
                true => Ok(()),
                false => Err(io::ErrorKind::StorageFull.into()),
            }
        }
    }

    struct Rig {
        sink: Arc<dyn Sink>,
        metrics: SinkMetrics,
        letters: PathBuf,
        _worker: JoinSet<()>,
        _directory: tempfile::TempDir,
    }

    fn rig(target: Target, to_line: ToLine) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let letters = directory.path().join("file.jsonl");
        let all = Metrics::register(&mut Registry::default());
        let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH);
        let dead_letters = DeadLetters::new(letters.clone(), 1 << 20, "file".into(), clock, &all);
        let metrics = all.sink("file");
        let mut worker = Worker::new(target, "target".into(), metrics.clone(), dead_letters);
        worker.to_line = to_line;
        let (sink, inbox) = queue("file".into(), 1 << 20, metrics.queue_bytes.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(inbox, CancellationToken::new()));
        Rig { sink, metrics, letters, _worker: tasks, _directory: directory }
    }

    async fn export(rig: &Rig, attempts: Vec<Arc<Attempt>>) -> Vec<Outcome> {
        let receivers: Vec<_> = attempts.into_iter().map(|a| submit(&*rig.sink, a)).collect();
        let mut outcomes = Vec::new();
        for receiver in receivers {
            outcomes.push(receiver.await);
        }
        outcomes
    }

    #[tokio::test]
    async fn each_trace_is_a_line_of_otlp_json() {
        let target = Target::new(1 << 20);
        let rig = rig(target.clone(), to_line);
        let attempts: Vec<_> = (1..=3).map(|n| trace(n, 2)).collect();
        let outcomes = export(&rig, attempts.clone()).await;
        assert_eq!(outcomes, vec![Outcome::Acknowledged; 3]);
        let text = target.text();
        assert!(text.ends_with('\n') && text.lines().count() == 3);
        for (line, attempt) in text.lines().zip(&attempts) {
            let request: ExportTraceServiceRequest = serde_json::from_str(line).unwrap();
            let wanted = request::encode_whole(slice::from_ref(attempt));
            assert_eq!(span_ids(&[request.encode_to_vec().into()]), span_ids(&[wanted]));
            assert!(line.contains(&format!("\"traceId\":\"{}\"", attempt.trace_id)));
            assert!(line.contains("\"startTimeUnixNano\":\"1700000000000000000\""));
        }
        assert_eq!((rig.metrics.spans.get(), rig.metrics.up.get()), (6, 1));
    }

    #[tokio::test]
    async fn full_disk_keeps_traces_with_their_owner_until_there_is_room() {
        let line_bytes = to_line(&trace(1, 2)).unwrap().len();
        let target = Target::new(3 * line_bytes - 1);
        let rig = rig(target.clone(), to_line);
        // The last would still fit, but it is not tried after one that did not.
        let traces = vec![trace(1, 2), trace(2, 2), trace(3, 2), trace(4, 1)];
        let outcomes = export(&rig, traces).await;
        assert_eq!(outcomes[..2], [Outcome::Acknowledged, Outcome::Acknowledged]);
        assert_eq!(outcomes[2..], [Outcome::AGAIN, Outcome::AGAIN]);
        assert_eq!((rig.metrics.spans.get(), rig.metrics.up.get()), (4, 0));
        *target.room.lock().unwrap() = 1 << 20;
        assert_eq!(export(&rig, vec![trace(3, 2)]).await, [Outcome::Acknowledged]);
        assert_eq!((rig.metrics.up.get(), target.text().lines().count()), (1, 3));
        assert!(!rig.letters.exists());
    }

    #[tokio::test]
    async fn lines_that_may_not_be_on_the_disk_are_not_acknowledged() {
        let target = Target::new(1 << 20);
        let rig = rig(target.clone(), to_line);
        *target.syncs.lock().unwrap() = false;
        assert_eq!(export(&rig, vec![trace(1, 2)]).await, [Outcome::Unanswered]);
        assert_eq!((rig.metrics.spans.get(), rig.metrics.up.get()), (0, 0));
        *target.syncs.lock().unwrap() = true;
        assert_eq!(export(&rig, vec![trace(1, 2)]).await, [Outcome::Acknowledged]);
        assert_eq!((rig.metrics.spans.get(), rig.metrics.up.get()), (2, 1));
    }

    #[tokio::test]
    async fn trace_that_cannot_be_encoded_costs_itself_only() {
        let target = Target::new(1 << 20);
        let rig = rig(target.clone(), |attempt| {
            assert!(attempt.trace_id.0[0] != 2, "planted");
            to_line(attempt)
        });
        let scope = scope(&resource(0), 0);
        let garbage = attempt(3, vec![(scope, vec![0x12, 0x7f, 0xff])]);
        let outcomes = export(&rig, vec![trace(1, 1), trace(2, 1), garbage, trace(4, 1)]).await;
        let (taken, refused) = (Outcome::Acknowledged, Outcome::Refused);
        assert_eq!(outcomes, [taken, refused, refused, taken]);
        assert_eq!(target.text().lines().count(), 2);
        let letters = fs::read_to_string(&rig.letters).unwrap();
        assert!(letters.lines().count() == 2 && letters.contains("panic: planted"));
        assert_eq!(rig.metrics.up.get(), 1);
    }

    #[tokio::test]
    async fn disk_that_hangs_costs_an_attempt_its_time_and_no_more() {
        let (go, gate) = mpsc::channel();
        let mut target = Target::new(1 << 20);
        target.go = Some(Arc::new(Mutex::new(gate)));
        let rig = rig(target.clone(), to_line);
        let outcome = submit(&*rig.sink, trace(1, 1));
        target.begun.notified().await;
        tokio::time::pause();
        // Timers count in milliseconds, rounded up.
        tokio::time::advance(ATTEMPT_MAX + Duration::from_millis(1)).await;
        assert_eq!(outcome.await, Outcome::Unanswered);
        assert_eq!(rig.metrics.up.get(), 0);
        tokio::time::resume();
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(export(&rig, vec![trace(2, 1)]).await, [Outcome::Acknowledged]);
        assert_eq!(rig.metrics.up.get(), 1);
    }
}
