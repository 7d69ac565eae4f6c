//! What a run found, for people and as JSON.
//!
//! A [`Report`] is made once, at the end, and only says what was measured; [`Report::is_good`] is
//! the one place that decides whether a run succeeded.

use super::ledger::Findings;
use super::processes::ProcessCost;
use super::sender::Tally;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// What the ids were made from.
    pub(super) seed: u64,
    /// Whether everything was as it should be.
    pub(super) good: bool,
    pub(super) sent: Sent,
    /// Absent when nothing was acknowledged.
    pub(super) acknowledgements: Option<Acknowledgements>,
    /// Absent when nothing that comes out was looked at.
    pub(super) verification: Option<Findings>,
    /// Of the processes that were asked for.
    pub(super) processes: Vec<ProcessCost>,
    /// Of all of them together; absent when one ended during the run.
    pub(super) processes_cpu_seconds_per_million_spans: Option<f64>,
    /// Of this process.
    pub(super) load: ProcessCost,
}

/// What was sent.
#[derive(Debug, Serialize)]
pub(super) struct Sent {
    pub(super) traces: u64,
    pub(super) requests: u64,
    pub(super) spans: u64,
    pub(super) bytes: u64,
    pub(super) spans_acknowledged: u64,
    /// Of requests that a target will never take.
    pub(super) spans_refused: u64,
    /// Refused for good inside of acknowledged requests.
    pub(super) spans_rejected: u64,
    /// Of requests that were given up.
    pub(super) spans_unacknowledged: u64,
    pub(super) retries: u64,
    /// Failed tries by cause.
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) last_failure: Option<String>,
    pub(super) seconds: f64,
    pub(super) spans_acknowledged_per_second: f64,
}

/// How requests were acknowledged.
#[derive(Debug, Serialize)]
pub(super) struct Acknowledgements {
    pub(super) p50_milliseconds: f64,
    pub(super) p99_milliseconds: f64,
    pub(super) max_milliseconds: f64,
    /// The longest time between two of them.
    pub(super) gap_max_milliseconds: f64,
}

/// How much of what should not happen is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    /// Traces with a span that came out twice.
    pub(super) traces_twice: u64,
    /// Traces that came out in parts.
    pub(super) traces_in_parts: u64,
}

impl Report {
    /// Whether nothing was lost or failed for good, and what else happened is allowed.
    fn is_good(sent: &Sent, verification: Option<&Findings>, allowed: Allowed) -> bool {
        let all_acknowledged = sent.spans_acknowledged == sent.spans && sent.spans_rejected == 0;
        let all_came_out = verification.is_none_or(|findings| {
            findings.spans_lost == 0
                && findings.traces_twice <= allowed.traces_twice
                && findings.traces_in_parts <= allowed.traces_in_parts
        });
        all_acknowledged && all_came_out
    }

    /// Puts a report together.
    pub(super) fn new(
        seed: u64,
        tally: &Tally,
        verification: Option<Findings>,
        allowed: Allowed,
        processes: Vec<ProcessCost>,
        load: ProcessCost,
    ) -> Self {
        let sent = Sent::new(tally);
        let costs: Option<Vec<_>> =
            processes.iter().map(|process| process.cpu_seconds_per_million_spans).collect();
        Self {
            seed,
            good: Self::is_good(&sent, verification.as_ref(), allowed),
            sent,
            acknowledgements: Acknowledgements::new(tally),
            verification,
            processes_cpu_seconds_per_million_spans: costs
                .filter(|costs| !costs.is_empty())
                .map(|costs| costs.iter().sum()),
            processes,
            load,
        }
    }
}

impl Sent {
    fn new(tally: &Tally) -> Self {
        Self {
            traces: tally.trace_count,
            requests: tally.requests_sent,
            spans: tally.spans_sent,
            bytes: tally.bytes_sent,
            spans_acknowledged: tally.spans_acknowledged,
            spans_refused: tally.spans_refused,
            spans_rejected: tally.spans_rejected,
            spans_unacknowledged: tally.spans_unacknowledged,
            retries: tally.retries,
            failures: tally.failures.clone(),
            last_failure: tally.last_failure.clone(),
            seconds: tally.elapsed.as_secs_f64(),
            spans_acknowledged_per_second: tally.spans_acknowledged as f64
                / tally.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
        }
    }
}

impl Acknowledgements {
    fn new(tally: &Tally) -> Option<Self> {
        let milliseconds = |microseconds| microseconds as f64 / 1000.0;
        (!tally.latency.is_empty()).then(|| Self {
            p50_milliseconds: milliseconds(tally.latency.value_at_quantile(0.5)),
            p99_milliseconds: milliseconds(tally.latency.value_at_quantile(0.99)),
            max_milliseconds: milliseconds(tally.latency.max()),
            gap_max_milliseconds: tally.gap_max.as_secs_f64() * 1000.0,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sent.fmt(f)?;
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.fmt(f)?;
        }
        match &self.verification {
            Some(findings) => fmt_findings(findings, f)?,
            None => writeln!(f, "came out      not looked at: neither --listen nor --verify-file")?,
        }
        for process in &self.processes {
            writeln!(f, "cost          {process}")?;
        }
        if let Some(sum) = self.processes_cpu_seconds_per_million_spans {
            writeln!(f, "cost, all     {sum:.2} CPU s per million spans")?;
        }
        writeln!(f, "cost of load  {}", self.load)?;
        let verdict = if self.good { "good" } else { "NOT GOOD" };
        writeln!(f, "verdict       {verdict} (seed {})", self.seed)
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "sent          {} spans, {} traces, {} requests, {:.1} MB in {:.1} s ({:.0} spans/s)",
            self.spans,
            self.traces,
            self.requests,
            self.bytes as f64 / 1e6,
            self.seconds,
            self.spans_acknowledged_per_second,
        )?;
        writeln!(
            f,
            "acknowledged  {} spans; refused {}, given up {}; {} retries",
            self.spans_acknowledged,
            self.spans_refused + self.spans_rejected,
            self.spans_unacknowledged,
            self.retries,
        )?;
        for (cause, count) in &self.failures {
            writeln!(f, "failed tries  {count} × {cause}")?;
        }
        match &self.last_failure {
            Some(failure) => writeln!(f, "last failure  {failure}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Acknowledgements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "latency       p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; longest gap {:.1} ms",
            self.p50_milliseconds,
            self.p99_milliseconds,
            self.max_milliseconds,
            self.gap_max_milliseconds,
        )
    }
}

fn fmt_findings(findings: &Findings, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "came out      {} spans; lost {}, twice {} (in {} traces), traces in parts {}",
        findings.spans_arrived,
        findings.spans_lost,
        findings.spans_twice,
        findings.traces_twice,
        findings.traces_in_parts,
    )?;
    for trace in &findings.traces_lost {
        writeln!(f, "lost          spans of trace {trace}")?;
    }
    for (count, what) in [
        (findings.spans_unacknowledged_arrived, "spans that were not acknowledged"),
        (findings.spans_foreign, "spans of somebody else"),
        (findings.attempts_unreadable, "requests or lines that cannot be read"),
    ] {
        if count > 0 {
            writeln!(f, "also came     {count} {what}")?;
        }
    }
    Ok(())
}
