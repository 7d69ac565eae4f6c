//! The explorer's command line.

use super::bugs::Bug;
use super::check::LICENCES;
use super::directed::{directed, excused};
use super::rows::ROWS;
use super::schedule::{Played, Schedule};
use super::search::{SMALL, search};
use super::setting::Atlas;
use super::story::story;
use super::walk::{Ended, Twist, walk};
use super::witness::Invariant;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::time::Instant;

/// Explore the protocol of holding spans
#[derive(Debug, clap::Args)]
pub struct Explore {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Walk at random, from each seed: faults, then healing, then the checks at rest
    Walk {
        /// The seeds, the last one not included
        #[arg(long, value_name = "FROM..TO", default_value = "0..10000", value_parser = seeds)]
        seeds: Range<u64>,
        /// A bug to plant
        #[arg(long)]
        bug: Option<Bug>,
    },
    /// Tell the walk of one seed, step by step
    Tell {
        /// The seed
        seed: u64,
        /// A bug to plant
        #[arg(long)]
        bug: Option<Bug>,
    },
    /// Plant each bug, and show the schedule or the first walk that catches it
    Bugs {
        /// Walks for each bug
        #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
        walks_max: u64,
    },
    /// Play the schedule of each row of "What happens when"
    Rows {
        /// Tell the stories of the rows with this in their names
        #[arg(long, value_name = "PART")]
        tell: Option<String>,
    },
    /// Withhold each excuse, and show the schedule or the first walk that needs it
    Licences {
        /// Walks for each excuse
        #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
        walks_max: u64,
    },
    /// Search a small world completely
    Search {
        /// Which: `list` names them
        name: String,
        /// States after which to give up
        #[arg(long, value_name = "COUNT", default_value_t = 2_000_000)]
        states_max: usize,
        /// A bug to plant
        #[arg(long)]
        bug: Option<Bug>,
    },
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| {
        let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        (from < to).then_some(from..to)
    });
    range.ok_or_else(|| "seeds are two numbers, the lesser first: 0..1000".to_owned())
}

/// Does what was asked, and says how it went. The exit code is 0 when every promise held (or every
/// bug was caught), 1 when not, 2 when there is no such world.
///
/// # Errors
/// The output cannot be written.
pub fn run(explore: &Explore, out: &mut impl Write) -> io::Result<ExitCode> {
    let atlas = Arc::new(Atlas::new());
    match &explore.what {
        What::Walk { seeds, bug } => walk_all(seeds.clone(), *bug, &atlas, out),
        What::Tell { seed, bug } => {
            let (text, ended) = story(*seed, Twist { bug: *bug, withheld: None }, &atlas);
            write!(out, "{text}")?;
            Ok(code(ended.violation.is_none()))
        }
        What::Bugs { walks_max } => hunt_all(*walks_max, &atlas, out),
        What::Rows { tell } => play_rows(tell.as_deref(), &atlas, out),
        What::Licences { walks_max } => try_licences(*walks_max, &atlas, out),
        What::Search { name, states_max, bug } => search_one(name, *states_max, *bug, &atlas, out),
    }
}

fn code(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn walk_all(
    seeds: Range<u64>,
    bug: Option<Bug>,
    atlas: &Arc<Atlas>,
    out: &mut impl Write,
) -> io::Result<ExitCode> {
    let began = Instant::now();
    let count = seeds.end - seeds.start;
    let (mut steps, mut accepted, mut finished) = (0, 0_u64, 0_u64);
    let mut broken: BTreeMap<Invariant, (u64, u64, Ended)> = BTreeMap::new();
    for seed in seeds {
        let ended = walk(seed, Twist { bug, withheld: None }, atlas, |_, _, _| {});
        steps += ended.steps;
        accepted += u64::from(ended.accepted);
        finished += u64::from(ended.finished);
        let Some(violation) = &ended.violation else { continue };
        let known = broken.entry(violation.invariant).or_insert((0, seed, ended.clone()));
        known.0 += 1;
        if ended.steps < known.2.steps {
            (known.1, known.2) = (seed, ended);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = steps as f64 / seconds.max(1e-9);
    let violations: u64 = broken.values().map(|known| known.0).sum();
    writeln!(
        out,
        "{count} walks, {steps} steps, {violations} violations, {seconds:.1} s, {rate:.0} steps/s"
    )?;
    writeln!(out, "{accepted} spans acknowledged, {finished} of them finished")?;
    for (times, seed, ended) in broken.values() {
        let Some(violation) = &ended.violation else { continue };
        writeln!(out, "{violation}: {times} times, shortest: seed {seed}, {} steps", ended.steps)?;
    }
    Ok(code(broken.is_empty()))
}

fn hunt_all(walks_max: u64, atlas: &Arc<Atlas>, out: &mut impl Write) -> io::Result<ExitCode> {
    let mut all_caught = true;
    for bug in Bug::ALL {
        let schedule = directed(bug).map(|directed| &directed.schedule);
        let (is_caught, told) = seek(Twist::planted(bug), schedule, walks_max, atlas);
        all_caught &= is_caught;
        writeln!(out, "{bug:?}: {told}")?;
    }
    Ok(code(all_caught))
}

fn play_rows(tell: Option<&str>, atlas: &Arc<Atlas>, out: &mut impl Write) -> io::Result<ExitCode> {
    let mut all_right = true;
    for row in ROWS {
        let name = row.schedule.name;
        let (story, is_right, told) = match row.schedule.play(Twist::default(), atlas) {
            Err(impossible) => (impossible.story.clone(), false, impossible.to_string()),
            Ok(Played { story, violation: Some(violation), .. }) => {
                (story, false, violation.to_string())
            }
            Ok(Played { story, exports, .. }) => {
                (story, exports == row.exports, format!("exports: {exports}"))
            }
        };
        all_right &= is_right;
        if tell.is_some_and(|part| name.contains(part)) {
            write!(out, "{story}")?;
        }
        let how = if is_right { "as promised" } else { "not as promised" };
        writeln!(out, "{name}: {how}, {told}")?;
    }
    Ok(code(all_right))
}

fn try_licences(walks_max: u64, atlas: &Arc<Atlas>, out: &mut impl Write) -> io::Result<ExitCode> {
    let mut all_needed = true;
    for (number, licence) in LICENCES.iter().enumerate() {
        let schedule = excused(number).map(|excused| &excused.schedule);
        let (is_needed, told) = seek(Twist::withheld(number), schedule, walks_max, atlas);
        all_needed &= is_needed;
        let (invariant, reason) = (licence.invariant, licence.reason);
        writeln!(out, "{number} {invariant:?} ({reason}): {told}")?;
    }
    Ok(code(all_needed))
}

/// Looks for a broken promise: by the schedule, if there is one, otherwise by walks.
fn seek(
    twist: Twist,
    schedule: Option<&Schedule>,
    walks_max: u64,
    atlas: &Arc<Atlas>,
) -> (bool, String) {
    let Some(schedule) = schedule else {
        let mut walks = (0..walks_max).map(|seed| (seed, walk(seed, twist, atlas, |_, _, _| {})));
        let caught = walks.find_map(|(seed, ended)| Some((seed, ended.steps, ended.violation?)));
        return match caught {
            Some((seed, steps, violation)) => {
                (true, format!("caught by walk {seed} after {steps} steps: {violation}"))
            }
            None => (false, format!("not caught in {walks_max} walks")),
        };
    };
    let name = schedule.name;
    match schedule.play(twist, atlas) {
        Ok(Played { violation: Some(violation), .. }) => {
            (true, format!("caught by its schedule, {name}: {violation}"))
        }
        Ok(_) => (false, format!("not caught by its schedule, {name}")),
        Err(impossible) => (false, format!("its schedule, {name}, does not fit: {impossible}")),
    }
}

fn search_one(
    name: &str,
    states_max: usize,
    bug: Option<Bug>,
    atlas: &Arc<Atlas>,
    out: &mut impl Write,
) -> io::Result<ExitCode> {
    let Some(small) = SMALL.iter().find(|small| small.name == name) else {
        if name != "list" {
            writeln!(out, "there is no world {name:?}; there are:")?;
        }
        for small in SMALL {
            writeln!(out, "{:14} {}", small.name, small.about)?;
        }
        return Ok(if name == "list" { ExitCode::SUCCESS } else { ExitCode::from(2) });
    };
    let began = Instant::now();
    let seen = search(small.setting(bug), atlas, states_max);
    let seconds = began.elapsed().as_secs_f64();
    let (states, steps, rests) = (seen.states, seen.steps, seen.rests);
    let completeness = if seen.complete { "complete" } else { "cut short" };
    writeln!(
        out,
        "{}: {states} states, {steps} steps, {rests} at rest, {completeness}, {seconds:.1} s",
        small.about
    )?;
    if let Some((violation, story)) = &seen.violation {
        write!(out, "{story}")?;
        writeln!(out, "{violation}")?;
    }
    Ok(code(seen.complete))
}
