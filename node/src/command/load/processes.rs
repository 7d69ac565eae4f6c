//! What processes cost: processor time and memory, as Linux counts them in `/proc`.
//!
//! Times count from the start of a process, so a cost is the difference of two readings: a
//! [`Meter`] keeps the first.

use anyhow::{Context, bail};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// `USER_HZ`, the unit of times in `/proc/PID/stat`: 100 on every platform that Linux offers its
/// user space today, whatever the kernel's own tick is.
const TICKS_PER_SECOND: u64 = 100;

/// A process to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    /// This one.
    Own,
    /// The one with this id.
    Id(u32),
}

impl Process {
    fn directory(self) -> PathBuf {
        match self {
            Self::Own => PathBuf::from("/proc/self"),
            Self::Id(id) => PathBuf::from(format!("/proc/{id}")),
        }
    }

    fn read(self, file: &str) -> anyhow::Result<String> {
        let path = self.directory().join(file);
        fs::read_to_string(&path).with_context(|| match self {
            Self::Own => format!("cannot read {}", path.display()),
            Self::Id(id) => format!("there is no process {id} to measure"),
        })
    }

    /// User and system time of all its threads, ended ones too, since it started.
    fn processor_time(self) -> anyhow::Result<Duration> {
        parse_processor_time(&self.read("stat")?)
    }

    /// The most resident memory that it had so far, in bytes.
    fn resident_bytes_max(self) -> anyhow::Result<u64> {
        parse_resident_bytes_max(&self.read("status")?)
    }
}

/// A process and its processor time at the beginning of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    process: Process,
    begin: Duration,
}

impl Meter {
    /// Begins to measure a process; fails when there is none.
    pub(super) fn start(process: Process) -> anyhow::Result<Self> {
        Ok(Self { process, begin: process.processor_time()? })
    }

    /// What it cost since then; a process that has ended by now cannot be asked.
    pub(super) fn cost(self, span_count: u64) -> ProcessCost {
        let end = self.process.processor_time().ok();
        let cpu_seconds = end.map(|end| end.saturating_sub(self.begin).as_secs_f64());
        let per_million = |seconds| seconds * 1e6 / span_count as f64;
        ProcessCost {
            pid: match self.process {
                Process::Own => std::process::id(),
                Process::Id(id) => id,
            },
            cpu_seconds,
            cpu_seconds_per_million_spans: cpu_seconds.filter(|_| span_count > 0).map(per_million),
            resident_bytes_max: self.process.resident_bytes_max().ok(),
        }
    }
}

/// What a process cost during the run.
#[derive(Debug, Serialize)]
pub(super) struct ProcessCost {
    pub(super) pid: u32,
    /// User and system; absent when the process ended during the run.
    pub(super) cpu_seconds: Option<f64>,
    /// Of acknowledged spans.
    pub(super) cpu_seconds_per_million_spans: Option<f64>,
    /// Since the process started, not only during the run.
    pub(super) resident_bytes_max: Option<u64>,
}

impl fmt::Display for ProcessCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: ", self.pid)?;
        let Some(seconds) = self.cpu_seconds else {
            return write!(f, "ended during the run");
        };
        write!(f, "{seconds:.2} CPU s")?;
        if let Some(per_million) = self.cpu_seconds_per_million_spans {
            write!(f, ", {per_million:.2} per million spans")?;
        }
        match self.resident_bytes_max {
            Some(bytes) => write!(f, ", at most {:.0} MiB resident", bytes as f64 / 1048576.0),
            None => Ok(()),
        }
    }
}

fn parse_processor_time(stat: &str) -> anyhow::Result<Duration> {
    // The second field is the program's name in parentheses and may hold anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // Fields 14 (utime) and 15 (stime) of proc(5); the rest begins with field 3.
    let mut times = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) else {
        bail!("cannot find processor times in {stat:?}");
    };
    Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

fn parse_resident_bytes_max(status: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.context("the process has ended, or no VmHWM is known")? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_program_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1 2";
        assert_eq!(parse_processor_time(stat).unwrap(), Duration::from_secs(3));
        assert!(parse_processor_time("7 (x) S 1").is_err());
    }

    #[test]
    fn resident_memory_is_found_in_kibibytes() {
        let status = "Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   2048 kB\n";
        assert_eq!(parse_resident_bytes_max(status).unwrap(), 2 << 20);
        assert!(parse_resident_bytes_max("Name:\tx\nState:\tZ (zombie)\n").is_err());
    }

    #[test]
    fn this_process_can_be_measured_and_no_process_is_named() {
        assert!(Process::Own.resident_bytes_max().unwrap() > 0);
        Process::Id(std::process::id()).processor_time().unwrap();
        // Above the largest id that Linux gives.
        let error = Process::Id(u32::MAX).processor_time().unwrap_err();
        assert!(error.to_string().contains(&u32::MAX.to_string()));
    }
}
