//! `mutants`: whether planted faults are caught.

use super::{Failure, Finding, print};
use crate::mutants::{self, Fate, Laboratory, Mutant};
use anyhow::{Context, anyhow};
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only these; default: all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// List them, and do nothing
    #[arg(long)]
    list: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Finding, Failure> {
    let root = std::env::current_dir().context("no current directory")?;
    let mutants = chosen(arguments, &root).map_err(Failure::Usage)?;
    if arguments.list {
        for Mutant { name, ground, story, .. } in &mutants {
            print(format_args!("{name} (within {ground}): {story}\n"))?;
        }
        return Ok(Finding::Green);
    }
    let sound = std::env::current_exe().context("this program does not know its own file")?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let laboratory = Laboratory::new(&root, sound, jobs);
    let mut finding = Finding::Green;
    for mutant in &mutants {
        let fate = laboratory.try_out(mutant)?;
        if !matches!(fate, Fate::Caught { .. }) {
            finding = Finding::Red;
        }
        print(format_args!("{}: {}\n", mutant.name, told(mutant, &fate)))?;
    }
    Ok(finding)
}

fn chosen(arguments: &Arguments, root: &Path) -> anyhow::Result<Vec<Mutant>> {
    let all = mutants::all(root)?;
    if arguments.names.is_empty() {
        return Ok(all);
    }
    let named = |name: &String| {
        let found = all.iter().find(|mutant| mutant.name == *name).cloned();
        found.ok_or_else(|| anyhow!("there is no mutant {name}; --list shows all"))
    };
    arguments.names.iter().map(named).collect()
}

fn told(mutant: &Mutant, fate: &Fate) -> String {
    match fate {
        Fate::Caught { by, invariants } if invariants.is_empty() => {
            format!("caught with {by}: the process died or hung")
        }
        Fate::Caught { by, invariants } => {
            let names: Vec<_> = invariants.iter().map(|invariant| invariant.name()).collect();
            format!("caught with {by}: {}", names.join(", "))
        }
        Fate::Survived => {
            format!("SURVIVED {}: the checks have a hole. {}", mutant.ground, mutant.story)
        }
        Fate::DoesNotApply(why) => format!("DOES NOT APPLY, mend the patch: {why}"),
        Fate::DoesNotBuild(why) => format!("DOES NOT BUILD, mend the patch: {why}"),
    }
}
