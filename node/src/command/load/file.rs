//! What comes out into files: follows the JSON-lines files that nodes write.
//!
//! A line is one trace as OTLP JSON, written by one attempt. Lines are read whole, from where the
//! file ended when the run began; the invariant is that `offset` is the beginning of a line, so
//! that a torn line that its writer takes back does no harm. When the file at the path is another
//! one (it was rotated), the old one is read to its end first, and then those between the two.
//!
//! Bounded by [`LINE_BYTES_MAX`]; reads every [`POLL_INTERVAL`].

use super::arrivals::Arrivals;
use crate::sink::numbered;
use anyhow::{Context, bail};
use serde::Deserialize;
use std::fs::Metadata;
use std::io::{ErrorKind, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::{MissedTickBehavior, interval};

/// How often a file is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// What is read at once, unless a line is longer.
const READ_BYTES: u64 = 4 << 20;
/// The longest line: a trace of the largest size, 32 MiB, as JSON.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// A file being followed.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    /// The open file, unless there is none yet.
    file: Option<File>,
    /// Where its next line begins.
    offset: u64,
}

impl Follower {
    /// Begins at the present end of the file, or at the beginning of one that comes to be.
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        let mut follower = Self { path: path.to_owned(), file: None, offset: 0 };
        follower.file = follower.open_if_there(path).await?;
        if let Some(file) = &follower.file {
            follower.offset = file.metadata().await?.len();
        }
        Ok(follower)
    }

    /// Notes every line until it is dropped, or the file cannot be read.
    pub(super) async fn follow(mut self, arrivals: Arc<Arrivals>) -> anyhow::Result<()> {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            self.read(&arrivals)
                .await
                .with_context(|| format!("cannot follow {}", self.path.display()))?;
        }
    }

    async fn open_if_there(&self, path: &Path) -> anyhow::Result<Option<File>> {
        match File::open(path).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
        }
    }

    /// Reads all whole lines that are there, of the next file too if this one was rotated away.
    async fn read(&mut self, arrivals: &Arrivals) -> anyhow::Result<()> {
        loop {
            // Asked before reading: what is read afterwards is all of a file that was left.
            let is_left = self.is_left().await?;
            if let Some(file) = &mut self.file {
                self.offset = read_lines(file, self.offset, arrivals).await?;
            }
            if !is_left {
                return Ok(());
            }
            let Some(next) = self.next_file().await? else {
                return Ok(());
            };
            self.file = Some(next);
            self.offset = 0;
        }
    }

    /// The file that was begun after the open one: at the path, unless there were several rotations
    /// since this last looked.
    async fn next_file(&self) -> anyhow::Result<Option<File>> {
        let Some(file) = &self.file else {
            return self.open_if_there(&self.path).await;
        };
        loop {
            let open = file.metadata().await?;
            if open.nlink() == 0 {
                bail!("it was removed before the next one was found; keep more files");
            }
            let place = self.place_of(&open).await?;
            let next = match place {
                Some(number) if number > 1 => numbered(&self.path, number - 1),
                _ => self.path.clone(),
            };
            let next = self.open_if_there(&next).await?;
            // Unless all of them moved on meanwhile.
            if self.place_of(&open).await? == place {
                return Ok(next);
            }
        }
    }

    /// The number under which a file was put aside; none when it has another name.
    async fn place_of(&self, open: &Metadata) -> anyhow::Result<Option<u32>> {
        // A rotation under way leaves one gap.
        let (mut number, mut gaps) = (1, 0);
        while gaps < 2 {
            match fs::metadata(numbered(&self.path, number)).await {
                Ok(file) if is_same(&file, open) => return Ok(Some(number)),
                Ok(_) => gaps = 0,
                Err(error) if error.kind() == ErrorKind::NotFound => gaps += 1,
                Err(error) => return Err(error.into()),
            }
            number += 1;
        }
        Ok(None)
    }

    /// Whether the path names another file than the open one.
    async fn is_left(&self) -> anyhow::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(true);
        };
        match fs::metadata(&self.path).await {
            Ok(at_path) => Ok(!is_same(&at_path, &file.metadata().await?)),
            // Between the two steps of a rotation; the next poll sees the new file.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Notes the whole lines from `offset` on; returns where the next line will begin.
async fn read_lines(file: &mut File, mut offset: u64, arrivals: &Arrivals) -> anyhow::Result<u64> {
    let mut bytes = Vec::new();
    let mut wanted = READ_BYTES;
    loop {
        file.seek(SeekFrom::Start(offset)).await?;
        bytes.clear();
        file.take(wanted).read_to_end(&mut bytes).await?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
            // What cannot be read is counted there, and is no reason to stop.
            let _ = arrivals.note(|on_span| each_span(line, on_span));
        }
        offset += whole as u64;
        if (bytes.len() as u64) < wanted {
            return Ok(offset);
        }
        if whole == 0 {
            wanted *= 2;
        }
        if wanted > LINE_BYTES_MAX {
            bail!("a line is longer than {LINE_BYTES_MAX} bytes");
        }
    }
}

/// A line: as much of OTLP JSON as is needed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TracesData<'a> {
    #[serde(borrow)]
    resource_spans: Vec<ResourceSpans<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    #[serde(borrow)]
    scope_spans: Vec<ScopeSpans<'a>>,
}

#[derive(Deserialize)]
struct ScopeSpans<'a> {
    #[serde(borrow)]
    spans: Vec<Ids<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ids<'a> {
    trace_id: &'a str,
    span_id: &'a str,
}

/// Hands the ids of a line's spans, as bytes, to `on_span`; an id that is no hex is empty.
fn each_span(line: &[u8], mut on_span: impl FnMut(&[u8], &[u8])) -> Result<(), serde_json::Error> {
    let data: TracesData<'_> = serde_json::from_slice(line)?;
    let scopes = data.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    for ids in scopes.flat_map(|scope| &scope.spans) {
        let [trace_id, span_id] =
            [ids.trace_id, ids.span_id].map(|id| hex::decode(id).unwrap_or_default());
        on_span(&trace_id, &span_id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Plan, Shape};
    use super::*;
    use std::fs as blocking;
    use std::io::Write;

    /// A directory with a followed file, whose first line was there before.
    struct Scene {
        directory: tempfile::TempDir,
        plan: Plan,
        arrivals: Arrivals,
        follower: Follower,
    }

    impl Scene {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let plan = Plan::new(Shape {
                seed: 3,
                spans_per_trace: 8,
                trace_count: Some(100),
                target_count: 1,
                request_spans: 512,
            });
            let path = directory.path().join("traces.jsonl");
            blocking::write(&path, line(&plan, 99)).unwrap();
            let follower = Follower::open(&path).await.unwrap();
            Self { directory, plan, arrivals: Arrivals::new(plan), follower }
        }

        fn append(&self, text: &str) {
            let path = self.directory.path().join("traces.jsonl");
            let file = blocking::File::options().create(true).append(true).open(path);
            file.unwrap().write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self) {
            let path = self.directory.path();
            blocking::rename(path.join("traces.jsonl"), path.join("traces.1.jsonl")).unwrap();
        }

        /// Reads once; spans that arrived so far, and attempts that could not be read.
        async fn read(&mut self) -> (u64, u64) {
            self.follower.read(&self.arrivals).await.unwrap();
            let findings = self.arrivals.with(|ledger| ledger.findings(100));
            assert_eq!((findings.spans_twice, findings.spans_foreign), (0, 0));
            (findings.spans_arrived, findings.attempts_unreadable)
        }
    }

    /// A trace as OTLP JSON, with fields beside those that are read.
    fn line(plan: &Plan, trace: u64) -> String {
        let ids = plan.spans_of_trace(trace).map(|number| {
            let span_id = hex::encode(plan.span_id(number).to_be_bytes());
            let trace_id = hex::encode(plan.trace_id(trace));
            format!(r#"{{"traceId":"{trace_id}","name":"\n","spanId":"{span_id}","kind":2}}"#)
        });
        let spans = Vec::from_iter(ids).join(",");
        let scope = format!(r#"{{"scope":{{"name":"x"}},"spans":[{spans}]}}"#);
        format!("{{\"resourceSpans\":[{{\"resource\":{{}},\"scopeSpans\":[{scope}]}}]}}\n")
    }

    #[tokio::test]
    async fn only_lines_that_come_after_the_start_count() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.read().await, (0, 0));
        scene.append(&line(&scene.plan, 0));
        assert_eq!(scene.read().await, (8, 0));
        scene.append(&[line(&scene.plan, 1), line(&scene.plan, 2)].concat());
        assert_eq!(scene.read().await, (24, 0));
    }

    #[tokio::test]
    async fn torn_line_counts_when_it_is_whole() {
        let mut scene = Scene::new().await;
        let line = line(&scene.plan, 0);
        scene.append(&line[..30]);
        assert_eq!(scene.read().await, (0, 0));
        scene.append(&line[30..]);
        assert_eq!(scene.read().await, (8, 0));
    }

    #[tokio::test]
    async fn line_that_its_writer_takes_back_does_no_harm() {
        let mut scene = Scene::new().await;
        let path = scene.directory.path().join("traces.jsonl");
        let bytes = blocking::metadata(&path).unwrap().len();
        scene.append(&line(&scene.plan, 0)[..30]);
        assert_eq!(scene.read().await, (0, 0));
        blocking::File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        scene.append(&line(&scene.plan, 1));
        assert_eq!(scene.read().await, (8, 0));
    }

    #[tokio::test]
    async fn rotated_file_is_read_to_its_end_and_then_the_new_one() {
        let mut scene = Scene::new().await;
        scene.append(&line(&scene.plan, 0));
        scene.rotate();
        assert_eq!(scene.read().await, (8, 0), "between the steps of a rotation");
        scene.append(&line(&scene.plan, 1));
        assert_eq!(scene.read().await, (16, 0));
    }

    #[tokio::test]
    async fn files_of_several_rotations_are_read_in_their_order() {
        let mut scene = Scene::new().await;
        let path = scene.directory.path().join("traces.jsonl");
        scene.append(&line(&scene.plan, 0));
        for trace in 1..=3 {
            for number in (1..trace).rev() {
                let [from, to] = [number, number + 1].map(|n| numbered(&path, n as u32));
                blocking::rename(from, to).unwrap();
            }
            blocking::rename(&path, numbered(&path, 1)).unwrap();
            scene.append(&line(&scene.plan, trace));
        }
        assert_eq!(scene.read().await, (32, 0));
        blocking::rename(&path, numbered(&path, 1)).unwrap();
        assert_eq!(scene.read().await, (32, 0));
        blocking::remove_file(numbered(&path, 1)).unwrap();
        scene.append(&line(&scene.plan, 4));
        let error = scene.follower.read(&scene.arrivals).await.unwrap_err().to_string();
        assert!(error.contains("keep more files"), "{error}");
    }

    #[tokio::test]
    async fn line_longer_than_one_reading_is_read_whole() {
        let mut scene = Scene::new().await;
        let long = line(&scene.plan, 0).replace("\"x\"", &format!("\"{}\"", "x".repeat(5_000_000)));
        scene.append(&[long, line(&scene.plan, 1)].concat());
        assert_eq!(scene.read().await, (16, 0));
    }

    #[tokio::test]
    async fn line_that_is_no_trace_is_counted() {
        let mut scene = Scene::new().await;
        scene.append("{\"resourceSpans\":1}\n");
        scene.append(&line(&scene.plan, 0));
        assert_eq!(scene.read().await, (8, 1));
    }
}
