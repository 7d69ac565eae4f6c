//! Traces that nobody takes, kept in a file for a second look.
//!
//! One file a sink, a letter a line; a whole attempt is written even when parts of it had arrived.
//!
//! The invariant: after `Ok` the trace is in the file whole; after an error no part of it is. The
//! file is opened for each letter, so it may be moved away at any time. It is bounded in bytes;
//! when it or the disk is full, the trace stays where it is, or, of a sink that nobody waits for,
//! is dropped, which is counted and said.

use super::file::LineFile;
use super::health::{Health, Pace, Trouble};
use super::lines::Lines;
use super::metrics::{DeadLetterMetrics, Metrics};
use super::{Attempt, Outcome, letter};
use crate::environment::WallClock;
use prometheus_client::metrics::gauge::Gauge;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Size of a dead-letter file where none is configured: far more than a few bad traces, and little
/// on any disk.
pub const DEAD_LETTER_BYTES_MAX: u64 = 1 << 30;

/// A dead letter was not written; the trace must be kept, and the attempt made again.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// Someone should look at the file, and move it away.
    #[error("{path} has reached its limit of {bytes_max} bytes")]
    Full {
        /// The dead-letter file.
        path: PathBuf,
        /// Its bound.
        bytes_max: u64,
    },
    /// The disk said no.
    #[error("cannot write {path}")]
    Write {
        /// The dead-letter file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One dead-letter file. Clones write to the same one.
#[derive(Clone)]
pub struct DeadLetters {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    bytes_max: u64,
    sink: String,
    clock: WallClock,
    metrics: DeadLetterMetrics,
    refusals: Pace,
    health: Health,
    /// Size when last seen, as the gauge counts it; the lock makes one letter follow another.
    size: Mutex<u64>,
}

impl DeadLetters {
    /// The file at `path`, which need not exist, nor its directory. `sink` is who refuses: the name
    /// in letters and metrics.
    pub fn new(
        path: PathBuf,
        bytes_max: u64,
        sink: String,
        clock: WallClock,
        metrics: &Metrics,
    ) -> Self {
        let metrics = metrics.dead_letters(&sink);
        let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        metrics.bytes.inc_by(size as i64);
        let (refusals, health) = (Pace::default(), Health::new(Gauge::default()));
        let size = Mutex::new(size);
        let inner = Inner { path, bytes_max, sink, clock, metrics, refusals, health, size };
        Self { inner: Arc::new(inner) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Appends an attempt, and returns when it is written. Blocks on the disk.
    pub fn write(&self, attempt: &Attempt, reason: &str) -> Result<(), DeadLetterError> {
        let inner = &*self.inner;
        let mut size = inner.size.lock().unwrap_or_else(PoisonError::into_inner);
        let written =
            inner.append(&letter::write(attempt, &inner.sink, reason, (inner.clock)()))?;
        inner.metrics.bytes.inc_by(written as i64 - *size as i64);
        *size = written;
        inner.metrics.spans.inc_by(u64::from(attempt.span_count));
        Ok(())
    }

    /// Writes an attempt that a sink will never take, and says what became of it. Blocks on the
    /// disk.
    pub(super) fn refuse(&self, attempt: &Attempt, reason: &str) -> Outcome {
        let Inner { path, sink, refusals, health, .. } = &*self.inner;
        match self.write(attempt, reason) {
            Ok(()) => {
                health.up();
                if refusals.due() {
                    let (path, trace_id) = (path.display(), attempt.trace_id);
                    tracing::warn!(sink, %trace_id, reason, %path, "trace is now a dead letter");
                }
                Outcome::Refused
            }
            Err(error) => {
                if health.down(Trouble::Passing) {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(sink, error, "a trace that is refused cannot become a letter");
                }
                Outcome::AGAIN
            }
        }
    }

    /// The same for a sink that nobody waits for: what cannot be written is dropped.
    pub(super) fn refuse_or_drop(&self, attempt: &Attempt, reason: &str) {
        if matches!(self.refuse(attempt, reason), Outcome::Again { .. }) {
            self.inner.metrics.dropped.inc_by(u64::from(attempt.span_count));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let size = self.size.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.metrics.bytes.dec_by(*size as i64);
    }
}

impl Inner {
    /// The size of the file with the line.
    fn append(&self, line: &[u8]) -> Result<u64, DeadLetterError> {
        let error = |source| DeadLetterError::Write { path: self.path.clone(), source };
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).map_err(error)?;
        }
        let mut file = LineFile::open(&self.path).map_err(error)?;
        let size = file.bytes().map_err(error)? + line.len() as u64;
        if size > self.bytes_max {
            let (path, bytes_max) = (self.path.clone(), self.bytes_max);
            return Err(DeadLetterError::Full { path, bytes_max });
        }
        file.append(line).map_err(error)?;
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::request;
    use crate::sink::testing::{span_ids, trace};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use prometheus_client::registry::Registry;
    use std::time::{Duration, SystemTime};

    const BYTES_MAX: u64 = 2_000;

    fn letters(path: PathBuf) -> DeadLetters {
        let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_nanos(12_345));
        let metrics = Metrics::register(&mut Registry::default());
        DeadLetters::new(path, BYTES_MAX, "otlp".into(), clock, &metrics)
    }

    #[test]
    fn letter_carries_the_spans_and_why() {
        let directory = tempfile::tempdir().unwrap();
        let letters = letters(directory.path().join("dead-letters/otlp.jsonl"));
        let attempts = [trace(1, 3), trace(2, 1)];
        attempts.iter().for_each(|attempt| letters.write(attempt, "too \"odd\"\n").unwrap());
        let text = fs::read_to_string(letters.path()).unwrap();
        assert_eq!(letters.inner.metrics.bytes.get(), text.len() as i64);
        assert_eq!(letters.inner.metrics.spans.get(), 4);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        for (line, attempt) in lines.iter().zip(&attempts) {
            assert_eq!(line["sink"], "otlp");
            assert_eq!(line["reason"], "too \"odd\"\n");
            assert_eq!(line["time_unix_nano"], "12345");
            assert_eq!(line["trace_id"], attempt.trace_id.to_string());
            assert_eq!(line["span_count"], attempt.span_count);
            let request = STANDARD.decode(line["request"].as_str().unwrap()).unwrap();
            let wanted = request::encode(std::slice::from_ref(attempt), usize::MAX);
            assert_eq!(span_ids(&[request.into()]), span_ids(&wanted));
        }
    }

    #[test]
    fn full_file_refuses_or_drops_and_keeps_what_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("otlp.jsonl");
        let letters = letters(path.clone());
        let refused = loop {
            if let Err(refused) = letters.write(&trace(1, 1), "no") {
                break refused;
            }
        };
        assert!(matches!(&refused, DeadLetterError::Full { .. }));
        assert!(refused.to_string().contains("otlp.jsonl has reached its limit of 2000 bytes"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() > 1_000 && text.len() <= 2_000 && text.ends_with('\n'));
        let written = text.lines().count() as u64;
        assert_eq!(letters.refuse(&trace(1, 1), "no"), Outcome::AGAIN);
        letters.refuse_or_drop(&trace(1, 3), "no");
        let metrics = &letters.inner.metrics;
        assert_eq!((metrics.spans.get(), metrics.dropped.get()), (written, 3));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn file_that_was_moved_away_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("otlp.jsonl");
        let letters = letters(path.clone());
        letters.write(&trace(1, 9), "first").unwrap();
        fs::rename(&path, directory.path().join("seen.jsonl")).unwrap();
        letters.write(&trace(2, 1), "second").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(letters.inner.metrics.bytes.get(), text.len() as i64);
    }

    #[test]
    fn unwritable_directory_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let blocked = directory.path().join("file");
        fs::write(&blocked, "").unwrap();
        let refused = letters(blocked.join("otlp.jsonl")).write(&trace(1, 1), "no").unwrap_err();
        assert!(refused.to_string().contains("file/otlp.jsonl"));
    }
}
