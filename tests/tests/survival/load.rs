//! The clients: `tracemesh load`, which tries every request at the next node until one takes it.
//!
//! It sends until it is told to stop; what it found it says once, at its end.

use crate::Size;
use crate::cluster::Cluster;
use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_within;

/// Requests a second.
const REQUESTS: u64 = 40;
/// Spans of a trace.
pub(crate) const SPANS_OF_A_TRACE: u64 = 8;
/// The load waits for what is missing for as long as anything comes, and a minute longer.
const END_MAX: Duration = Duration::from_secs(600);

/// Clients at work.
pub(crate) struct Load {
    program: Program,
}

impl Load {
    /// Sends to all nodes of `cluster`, those that do not run included, and takes what comes out
    /// at `listen`.
    pub(crate) fn start(cluster: &Cluster, listen: &str) -> Self {
        let rate = Size::asked_for().rate();
        let mut command = Command::new(cluster.host().program());
        command.args(["load", "--json", "--duration", "24h", "--give-up-after", "24h"]);
        command.args(["--allow-twice", "--allow-parts", "--listen", listen]);
        command.args(["--rate", &rate.to_string()]);
        command.args(["--request-spans", &(rate / REQUESTS).to_string()]);
        command.args(["--spans-per-trace", &SPANS_OF_A_TRACE.to_string()]);
        for target in cluster.targets() {
            command.args(["--target", &target]);
        }
        let mut program = Program::start("load", cluster.host().path(), &mut command);
        program.wait_for_output("receiving on");
        Self { program }
    }

    /// Begins no more traces, waits until everything came out or nothing does any more, and
    /// returns the report.
    pub(crate) fn finish(mut self) -> Report {
        self.program.interrupt();
        wait_within(END_MAX, "the end of the load", || self.program.ended());
        let output = self.program.output();
        let report = output.lines().rfind(|line| line.starts_with('{')).expect("a report");
        Report(serde_json::from_str(report).expect("the report is JSON"))
    }
}

/// What the load found.
pub(crate) struct Report(Value);

impl Report {
    /// A count of `sent` or `verification`.
    #[track_caller]
    pub(crate) fn count(&self, section: &str, name: &str) -> u64 {
        self.0[section][name].as_u64().unwrap_or_else(|| panic!("no {section}.{name}: {}", self.0))
    }

    /// The longest time between two acknowledgements, in milliseconds.
    pub(crate) fn gap(&self) -> f64 {
        self.0["acknowledgements"]["gap_max_milliseconds"].as_f64().expect("some acknowledgements")
    }

    /// All of it, for people.
    pub(crate) fn document(&self) -> &Value {
        &self.0
    }
}
