//! `replay`: one simulation, told to people or to the swarm that started it.

use super::{Drawing, Failure, Finding, print};
use crate::cluster::{self, Watching};
use crate::draw;
use crate::plan::{Millis, Plan};
use crate::report::Report;
use anyhow::Context;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

#[derive(Debug, clap::Args)]
#[group(id = "what", required = true, args = ["seed", "plan"])]
pub(super) struct Arguments {
    /// The seed
    seed: Option<u64>,
    /// A plan as `tracemesh-sim plan` prints it, in place of a seed
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    drawing: Drawing,
    /// Print the logs of all nodes, with virtual times, to standard error
    #[arg(long)]
    log: bool,
    /// End after so many virtual seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    until: Option<Millis>,
    /// Write a line for every event into this file
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Finding, Failure> {
    let plan = plan(arguments).map_err(Failure::Usage)?;
    if arguments.log {
        let filter = tracing_subscriber::EnvFilter::new("info,tracemesh=debug");
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(VirtualTime)
            .with_writer(std::io::stderr)
            .init();
    }
    let event_log = match &arguments.events {
        None => None,
        Some(path) => {
            let file = File::create(path).with_context(|| format!("{}", path.display()));
            let log: Box<dyn Write + Send> =
                Box::new(BufWriter::new(file.map_err(Failure::Usage)?));
            Some(log)
        }
    };
    let outcome = cluster::run(plan, Watching { event_log, until: arguments.until })?;
    let report = Report::new(&outcome);
    if arguments.json {
        let json = serde_json::to_string(&report).context("the report cannot be written")?;
        print(format_args!("{json}\n"))?;
    } else {
        print(format_args!("{report}\n"))?;
    }
    Ok(if report.verdict.is_green() { Finding::Green } else { Finding::Red })
}

fn plan(arguments: &Arguments) -> anyhow::Result<Plan> {
    if let Some(path) = &arguments.plan {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        return Plan::parse(&text).with_context(|| format!("{}", path.display()));
    }
    let seed = arguments.seed.context("a seed or --plan FILE is needed")?;
    Ok(draw::plan(seed, arguments.drawing.minutes))
}

fn seconds(text: &str) -> Result<Millis, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.0..=1e9).contains(seconds));
    let seconds = seconds.ok_or("expected a number of seconds, such as 42.5")?;
    Ok(Millis((seconds * 1000.0) as u64))
}

/// The time of the node that logs, or of the world where none does.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:>10.3}", cluster::present().as_secs_f64())
    }
}
