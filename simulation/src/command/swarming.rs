//! `swarm` and `determinism`: many simulations in processes of their own.

use super::{Drawing, Failure, Finding, eprint, print, seeds};
use crate::report::Report;
use crate::swarm::{self, ChildError, Progress, Settings};
use anyhow::Context;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A year.
const MINUTES_MAX: u64 = 366 * 24 * 60;

/// Events before the first that differs, which are told with it.
const CONTEXT_EVENTS: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct SwarmArguments {
    #[command(flatten)]
    many: Many,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeterminismArguments {
    #[command(flatten)]
    many: Many,
    /// The program that runs each seed the second time, such as a debug build; default: this one
    #[arg(long, value_name = "PROGRAM")]
    other: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Many {
    /// How many seeds, or which: FROM..TO
    #[arg(long, value_name = "SEEDS", default_value = "20", value_parser = seeds)]
    seeds: Range<u64>,
    #[command(flatten)]
    drawing: Drawing,
    /// Processes at once; default: one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// End a simulation that takes longer than this, in real seconds
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    patience: u64,
    /// Start no simulation after so many real minutes
    #[arg(long = "for", value_name = "MINUTES", default_value = "1440")]
    for_minutes: u64,
}

impl Many {
    fn settings(&self) -> anyhow::Result<Settings> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let minutes = self.drawing.minutes.0 as f64 / 60_000.0;
        Ok(Settings {
            program: std::env::current_exe().context("this program does not know its own file")?,
            arguments: vec!["--minutes".to_owned(), minutes.to_string()],
            seeds: self.seeds.clone(),
            jobs: self.jobs.map_or_else(cores, usize::from),
            patience: Duration::from_secs(self.patience),
            time: Duration::from_secs(60 * self.for_minutes.min(MINUTES_MAX)),
        })
    }

    /// The command that repeats one seed.
    fn command(&self, seed: u64) -> String {
        let minutes = self.drawing.minutes.0 as f64 / 60_000.0;
        format!("tracemesh-sim replay {seed} --minutes {minutes}")
    }
}

pub(super) fn run_swarm(arguments: &SwarmArguments) -> Result<Finding, Failure> {
    let many = &arguments.many;
    let settings = many.settings()?;
    let (progress, total) = (Progress::default(), many.seeds.end - many.seeds.start);
    let is_terminal = std::io::stderr().is_terminal();
    let summary = swarm::run(&settings, |seed, result| {
        let failure = failure(result);
        let line = progress.advance(total, u64::from(failure.is_some()));
        if is_terminal {
            eprint(format_args!("\r{line}"));
        }
        if let Some(why) = failure {
            let command = many.command(seed);
            eprint(format_args!("{}{why}\n  {command}\n", if is_terminal { "\n" } else { "" }));
        }
    });
    if is_terminal {
        eprint(format_args!("\n"));
    }
    print(format_args!("{summary}"))?;
    print(format_args!(
        "latencies in a simulation are those of its links, and no figures of speed\n"
    ))?;
    Ok(if summary.is_green() { Finding::Green } else { Finding::Red })
}

/// Why a seed failed, if it did.
fn failure(result: &Result<Report, ChildError>) -> Option<String> {
    match result {
        Err(error) => Some(error.to_string()),
        Ok(report) if report.verdict.is_green() => None,
        Ok(report) => {
            let first = report.verdict.findings.first().map(ToString::to_string);
            Some(format!("seed {}: {}", report.seed, first.unwrap_or_default()))
        }
    }
}

pub(super) fn run_determinism(arguments: &DeterminismArguments) -> Result<Finding, Failure> {
    let one = arguments.many.settings()?;
    let program = arguments.other.clone().unwrap_or_else(|| one.program.clone());
    if !program.is_file() {
        let why = anyhow::anyhow!("{} is no program", program.display());
        return Err(Failure::Usage(why));
    }
    let two = Settings { program, ..one.clone() };
    let mut different = 0;
    let mut firsts = std::collections::BTreeMap::new();
    let summary = swarm::run(&one, |seed, result| {
        if let Ok(report) = result {
            firsts.insert(seed, (report.hash.clone(), report.events));
        }
    });
    let mut broken: Vec<_> = summary.broken.into_iter().collect();
    let summary = swarm::run(&two, |seed, result| {
        let (Ok(report), Some(first)) = (result, firsts.get(&seed)) else { return };
        if *first != (report.hash.clone(), report.events) {
            different += 1;
            let told = first_difference(&one, &two, seed).unwrap_or_else(|error| error.to_string());
            eprint(format_args!("seed {seed} differs from itself\n{told}\n"));
        }
    });
    broken.extend(summary.broken);
    for (seed, why) in &broken {
        eprint(format_args!("seed {seed}: {why}\n  {}\n", arguments.many.command(*seed)));
    }
    let seeds = firsts.len();
    print(format_args!("{seeds} seeds, each in two processes: {different} differ\n"))?;
    let same = different == 0 && broken.is_empty();
    Ok(if same { Finding::Green } else { Finding::Red })
}

/// Runs a seed twice more with logs, and tells where these part.
fn first_difference(one: &Settings, two: &Settings, seed: u64) -> anyhow::Result<String> {
    let directory = tempfile::tempdir().context("no directory for the logs of events")?;
    let mut logs = Vec::new();
    for (name, settings) in [("one", one), ("two", two)] {
        let log = directory.path().join(name);
        let mut settings = settings.clone();
        settings.arguments.extend(["--events".to_owned(), log.display().to_string()]);
        swarm::simulate(&settings, seed)?;
        logs.push(log);
    }
    part(&logs[0], &logs[1])
}

/// The first line in which two logs differ, with what came before.
fn part(one: &Path, two: &Path) -> anyhow::Result<String> {
    let lines = |path: &Path| anyhow::Ok(BufReader::new(File::open(path)?).lines());
    let (mut one, mut two) = (lines(one)?, lines(two)?);
    let mut before = VecDeque::new();
    for number in 1_u64.. {
        let [here, there] = [one.next().transpose()?, two.next().transpose()?];
        match (here, there) {
            (None, None) => break,
            (Some(here), Some(there)) if here == there => {
                before.push_back(here);
                if before.len() > CONTEXT_EVENTS {
                    before.pop_front();
                }
            }
            (here, there) => {
                let context = before.iter().map(|line| format!("    {line}\n")).collect::<String>();
                let told = |line: Option<String>| line.unwrap_or_else(|| "the end".to_owned());
                let (here, there) = (told(here), told(there));
                return Ok(format!("event {number}:\n{context}  1 {here}\n  2 {there}"));
            }
        }
    }
    Ok("two further runs were the same".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parted(one: &str, two: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = [("one", one), ("two", two)].map(|(name, text)| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        part(&one, &two).unwrap()
    }

    #[test]
    fn first_event_that_differs_is_told_with_what_came_before() {
        let told = parted("a\nb\nc\nd\n", "a\nb\nx\nd\n");
        assert_eq!(told, "event 3:\n    a\n    b\n  1 c\n  2 x");
        assert!(parted("a\n", "a\nb\n").ends_with("  1 the end\n  2 b"));
        assert!(parted("a\n", "a\n").contains("the same"));
    }
}
