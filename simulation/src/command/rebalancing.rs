//! `rebalance`: what joining, leaving and crashing cost, case by case.

use super::{Failure, Finding, print};
use crate::check;
use crate::cluster::{self, Watching};
use crate::rebalance::{self, Case};
use anyhow::Context;
use std::process::{Command, Stdio};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// One case only, by its number from 0
    #[arg(value_name = "CASE", value_parser = clap::value_parser!(u16).range(..7))]
    case: Option<u16>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Finding, Failure> {
    match arguments.case {
        Some(number) => one(&Case::all()[usize::from(number)]),
        None => all(),
    }
}

/// Each in a process of its own, one after the other.
fn all() -> Result<Finding, Failure> {
    print(format_args!("{}", rebalance::HEAD))?;
    let program = std::env::current_exe().context("this program does not know its own file")?;
    let mut finding = Finding::Green;
    for (number, case) in Case::all().iter().enumerate() {
        let mut child = Command::new(&program);
        child.args(["rebalance", &number.to_string()]).stdin(Stdio::null());
        let status = child.status().with_context(|| format!("case {case} cannot be run"))?;
        if !status.success() {
            finding = Finding::Red;
        }
    }
    print(format_args!(
        "times are virtual: those of links with 2 to 3 ms, and no figures of speed\n"
    ))?;
    Ok(finding)
}

fn one(case: &Case) -> Result<Finding, Failure> {
    let outcome = cluster::run(case.plan(), Watching::default())?;
    let verdict = check::check(&outcome.history);
    print(format_args!("{}", rebalance::table(case, &outcome.history, &verdict)))?;
    for finding in &verdict.findings {
        print(format_args!("{finding}\n"))?;
    }
    Ok(if verdict.is_green() { Finding::Green } else { Finding::Red })
}
