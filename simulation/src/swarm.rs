//! Many simulations, each in a process of its own, and what they came to together.
//!
//! A child is this same program, told one seed; it prints its [`Report`] as JSON. The invariant:
//! every seed is accounted for. A child that dies, says something else or takes longer than it may
//! is a failure of its seed, told with the command that repeats it; nothing waits for ever.
//! Children are threads here only as far as somebody has to wait for them; at most `jobs` run at
//! once.

use crate::check::Swarm;
use crate::report::{self, Report};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::time::Instant;

/// What a child may print; a report with every kind of finding is far smaller.
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// How often a child is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How simulations are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program, and what it is told before the seed.
    pub program: PathBuf,
    /// What it is told besides the seed.
    pub arguments: Vec<String>,
    /// Which seeds.
    pub seeds: Range<u64>,
    /// Processes at once, at least 1.
    pub jobs: usize,
    /// A child that takes longer, in real time, is ended and counts as failed.
    pub patience: Duration,
    /// No child is started after so much real time; the seeds that are left are not run.
    pub time: Duration,
}

/// Why there is no report of a seed.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started, or its output not be read.
    #[error("the process cannot be run: {0}")]
    Run(#[from] std::io::Error),
    /// It took too long and was ended.
    #[error("the process hangs: it was ended after {0:?}")]
    Hangs(Duration),
    /// It died.
    #[error("the process died ({status}): {said}")]
    Died {
        /// How.
        status: std::process::ExitStatus,
        /// The last that it said.
        said: String,
    },
    /// It ended well but printed no report.
    #[error("the process printed no report: {0}")]
    Report(#[from] serde_json::Error),
}

/// What became of all seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// The verdicts together.
    pub swarm: Swarm,
    /// Seeds without a report, and why.
    pub broken: BTreeMap<u64, String>,
    /// Virtual time over all simulations.
    pub virtual_ms: u64,
    /// Spans acknowledged over all simulations.
    pub acknowledged: u64,
    /// Spans lost over all simulations, licensed ones too.
    pub lost: u64,
    /// Faults by class.
    pub faults: BTreeMap<String, u64>,
}

impl Summary {
    fn add(&mut self, seed: u64, result: Result<Report, ChildError>) {
        match result {
            Ok(report) => {
                self.swarm.add(&report.verdict);
                self.virtual_ms += report.virtual_ms;
                self.acknowledged += report.verdict.totals.acknowledged;
                self.lost += report.verdict.totals.lost;
                for (class, count) in report.faults {
                    *self.faults.entry(class).or_default() += count;
                }
            }
            Err(error) => {
                self.broken.insert(seed, error.to_string());
            }
        }
    }

    /// Whether every simulation was as it should be.
    pub fn is_green(&self) -> bool {
        self.broken.is_empty() && self.swarm.complaints().is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { swarm, broken, acknowledged, lost, .. } = self;
        let hours = self.virtual_ms as f64 / 3_600_000.0;
        writeln!(
            f,
            "{} simulations, {hours:.2} virtual hours, {acknowledged} spans acknowledged, \
             {lost} lost",
            swarm.runs
        )?;
        report::list(f, "faults", &self.faults)?;
        let licensed = swarm.licensed.iter().map(|(name, count)| (name.to_string(), *count));
        report::list(f, "licensed exceptions (traces)", &licensed.collect())?;
        report::list(f, "recovery paths taken (simulations)", &swarm.sometimes)?;
        let never = swarm.never();
        if !never.is_empty() {
            writeln!(f, "recovery paths never taken: {}", never.join(", "))?;
        }
        for (seed, why) in broken {
            writeln!(f, "FAILED seed {seed}: {why}")?;
        }
        for complaint in swarm.complaints() {
            writeln!(f, "FAILED {complaint}")?;
        }
        Ok(())
    }
}

/// Runs all seeds; `tell` hears of each when it is over.
pub fn run(settings: &Settings, mut tell: impl FnMut(u64, &Result<Report, ChildError>)) -> Summary {
    // Of no runtime, so it is real time.
    let end = Instant::now() + settings.time;
    let next = AtomicU64::new(settings.seeds.start);
    let (results, ended) = mpsc::sync_channel(settings.jobs.max(1));
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs.max(1) {
            let (next, results) = (&next, results.clone());
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= settings.seeds.end
                        || Instant::now() >= end
                        || results.send((seed, simulate(settings, seed))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(results);
        for (seed, result) in ended {
            tell(seed, &result);
            summary.add(seed, result);
        }
    });
    summary
}

/// Runs one seed in a process of its own.
///
/// # Errors
/// There is no report, because the process died, hung, or printed something else.
pub fn simulate(settings: &Settings, seed: u64) -> Result<Report, ChildError> {
    let mut command = Command::new(&settings.program);
    command.arg("replay").arg(seed.to_string()).args(&settings.arguments);
    report(command, settings.patience)
}

/// Runs what a plan says in a process of its own.
///
/// # Errors
/// There is no report of it.
pub fn replay(program: &Path, plan: &Path, patience: Duration) -> Result<Report, ChildError> {
    let mut command = Command::new(program);
    command.args(["replay", "--plan"]).arg(plan);
    report(command, patience)
}

fn report(mut command: Command, patience: Duration) -> Result<Report, ChildError> {
    command.arg("--json");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (output, complaints) = (child.stdout.take(), child.stderr.take());
    let reading = std::thread::spawn(move || read(output));
    let complaining = std::thread::spawn(move || read(complaints));
    let status = wait(&mut child, patience)?;
    let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
    let (output, complaints) = (text(reading), text(complaining));
    // Exit code 1 says that checks failed, and there is a report of it.
    if !matches!(status.code(), Some(0 | 1)) || output.is_empty() {
        let lines: Vec<_> = complaints.lines().collect();
        let last = lines[lines.len().saturating_sub(6)..].join(" | ");
        return Err(ChildError::Died { status, said: last });
    }
    Ok(serde_json::from_str(&output)?)
}

fn read(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What cannot be read is missing from the report, which is then no report.
        let _ = stream.take(REPORT_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child, in real time.
#[expect(clippy::disallowed_methods, reason = "a child process runs in real time")]
fn wait(child: &mut Child, patience: Duration) -> Result<std::process::ExitStatus, ChildError> {
    // Of no runtime, so it is real time.
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Err(ChildError::Hangs(patience));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Tells progress on one line of a terminal.
#[derive(Debug, Default)]
pub struct Progress {
    state: Mutex<(u64, u64)>,
}

impl Progress {
    /// One more simulation ended; the line to show.
    pub fn advance(&self, total: u64, failed: u64) -> String {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        state.1 += failed;
        const WIDTH: u64 = 40;
        let (done, failed) = *state;
        let full = WIDTH * done / total.max(1);
        let bar: String = (0..WIDTH).map(|at| if at < full { '#' } else { '.' }).collect();
        format!("[{bar}] {done}/{total}, {failed} failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that does as `script` says.
    fn settings(directory: &tempfile::TempDir, script: &str) -> Settings {
        let program = directory.path().join("child");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let patience = Duration::from_secs(30);
        let (seeds, time) = (3..5, Duration::from_secs(3_600));
        Settings { program, arguments: Vec::new(), seeds, jobs: 2, patience, time }
    }

    fn broken(script: &str, patience: Duration) -> BTreeMap<u64, String> {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { patience, ..settings(&directory, script) };
        let mut told = 0;
        let summary = run(&settings, |_, _| told += 1);
        assert!(!summary.is_green() && told == 2);
        summary.broken
    }

    #[test]
    fn child_that_dies_fails_its_seed_and_its_last_words_are_told() {
        let broken = broken("echo the end >&2; exit 7", Duration::from_secs(30));
        assert_eq!(broken.keys().copied().collect::<Vec<_>>(), [3, 4]);
        assert!(broken[&3].contains("the end") && broken[&3].contains('7'), "{broken:?}");
    }

    #[test]
    fn child_that_hangs_is_ended() {
        let broken = broken("exec sleep 600", Duration::from_millis(50));
        assert!(broken[&4].contains("hangs"), "{broken:?}");
    }

    #[test]
    fn no_child_is_started_when_the_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { time: Duration::ZERO, ..settings(&directory, "exit 7") };
        let summary = run(&settings, |_, _| panic!("nothing was to be run"));
        assert!(summary.broken.is_empty() && summary.swarm.runs == 0);
    }

    #[test]
    fn child_that_prints_no_report_fails_its_seed() {
        let broken = broken("echo nonsense", Duration::from_secs(30));
        assert!(broken[&3].contains("no report"), "{broken:?}");
    }
}
