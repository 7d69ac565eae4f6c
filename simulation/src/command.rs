//! What people type: `tracemesh-sim` and its subcommands.
//!
//! Exit codes: 0 everything held; 1 a check failed, or the machine did; 2 usage, which a broken
//! plan is too. Results go to standard output; progress and logs go to standard error.

mod mutating;
mod rebalancing;
mod replay;
mod speed;
mod swarming;

use crate::explorer::command::Explore;
use crate::plan::Millis;
use std::ops::Range;
use std::process::ExitCode;

/// Runs the real cluster in one process, under virtual time, from one seed, and checks what comes
/// of it. Times are virtual: latencies are those of the simulated links and say nothing about
/// speed.
#[derive(Debug, clap::Parser)]
#[command(name = "tracemesh-sim", version, after_help = EXAMPLES)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  tracemesh-sim swarm --seeds 150 --minutes 2
  tracemesh-sim replay 17 --log --until 42.5
  tracemesh-sim plan 17 > plan.json; tracemesh-sim replay --plan plan.json";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Prints the plan of a seed as JSON: cluster, links, load, faults
    Plan(PlanArguments),
    /// Runs one simulation again and tells what came of it
    Replay(replay::Arguments),
    /// Runs many simulations, each in a process of its own
    Swarm(swarming::SwarmArguments),
    /// Runs each seed in two processes and compares all that happened
    Determinism(swarming::DeterminismArguments),
    /// Explores the protocol of holding spans, without processes and clocks
    Explore(Explore),
    /// Shows what joining, leaving and crashing cost
    Rebalance(rebalancing::Arguments),
    /// Plants faults in a copy of the tree and looks whether each is caught
    Mutants(mutating::Arguments),
    /// Measures virtual time against real time
    Speed(speed::Arguments),
}

#[derive(Debug, clap::Args)]
struct PlanArguments {
    /// The seed
    seed: u64,
    #[command(flatten)]
    drawing: Drawing,
}

/// What a plan depends on besides its seed.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Drawing {
    /// Virtual minutes in which anything may fail; healing comes after
    #[arg(long, value_name = "MINUTES", default_value = "2", value_parser = minutes)]
    minutes: Millis,
}

/// What went wrong before there was a result.
#[derive(Debug)]
enum Failure {
    /// The user can do something about it: exit code 2.
    Usage(anyhow::Error),
    /// Exit code 1.
    Machine(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Machine(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Machine(error.into())
    }
}

/// Whether what was looked at is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Green,
    Red,
}

impl CommandLine {
    /// Does what was typed.
    pub fn execute(self) -> ExitCode {
        let done = match self.command {
            Command::Plan(arguments) => print_plan(&arguments),
            Command::Replay(arguments) => replay::run(&arguments),
            Command::Swarm(arguments) => swarming::run_swarm(&arguments),
            Command::Determinism(arguments) => swarming::run_determinism(&arguments),
            Command::Explore(explore) => return explore_protocol(&explore),
            Command::Rebalance(arguments) => rebalancing::run(&arguments),
            Command::Mutants(arguments) => mutating::run(&arguments),
            Command::Speed(arguments) => speed::run(&arguments),
        };
        match done {
            Ok(Finding::Green) => ExitCode::SUCCESS,
            Ok(Finding::Red) => ExitCode::from(1),
            Err(Failure::Machine(error)) => complain(&error, 1),
            Err(Failure::Usage(error)) => complain(&error, 2),
        }
    }
}

fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    eprint(format_args!("error: {error:#}\n"));
    ExitCode::from(code)
}

fn print_plan(arguments: &PlanArguments) -> Result<Finding, Failure> {
    print(format_args!("{}", crate::draw::plan(arguments.seed, arguments.drawing.minutes).text()))?;
    Ok(Finding::Green)
}

fn explore_protocol(explore: &Explore) -> ExitCode {
    match crate::explorer::command::run(explore, &mut std::io::stdout()) {
        Ok(code) => code,
        // Whoever reads the output, such as `head`, has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&error.into(), 1),
    }
}

/// Writes to standard output; a reader that went away is no error.
fn print(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    use std::io::Write;
    match std::io::stdout().write_fmt(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes to standard error, which nobody has to read.
fn eprint(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = std::io::stderr().write_fmt(text);
}

/// Minutes as typed.
fn minutes(text: &str) -> Result<Millis, String> {
    let minutes: f64 =
        text.parse().map_err(|_| "expected a number, such as 2 or 0.5".to_owned())?;
    if !(0.0..=2_000.0).contains(&minutes) {
        return Err("expected 0 to 2000".to_owned());
    }
    Ok(Millis((minutes * 60_000.0) as u64))
}

/// Seeds as typed: how many, or from and to.
fn seeds(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().ok();
    let range = match text.split_once("..") {
        Some((from, to)) => number(from).zip(number(to)).map(|(from, to)| from..to),
        None => number(text).map(|count| 0..count),
    };
    range.filter(|range| !range.is_empty()).ok_or_else(|| {
        "expected a number of seeds, or FROM..TO, such as 150 or 100..250".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn seeds_and_minutes_are_read_or_refused_with_what_was_expected() {
        assert_eq!(seeds("3"), Ok(0..3));
        assert_eq!(seeds("3..5"), Ok(3..5));
        for bad in ["", "x", "5..3", "0", "-1", "1..x"] {
            assert!(seeds(bad).unwrap_err().contains("100..250"), "{bad}");
        }
        assert_eq!(minutes("0.5"), Ok(Millis(30_000)));
        assert!(minutes("NaN").is_err() && minutes("x").is_err() && minutes("-1").is_err());
    }

    #[test]
    fn seed_that_is_no_number_is_refused() {
        let error = CommandLine::try_parse_from(["tracemesh-sim", "replay", "x"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("invalid digit"), "{error}");
    }
}
