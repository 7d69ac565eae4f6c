//! Directed schedules: an order of events written by hand, for what chance finds rarely.
//!
//! A schedule is plain values. Each step must be possible when its turn comes, so a schedule cannot
//! tell of something that the world would not do; one that no longer fits is mended, not skipped.
//! After the last step nothing fails any more, and the world comes to rest.

use super::choices::{Choice, Phase};
use super::message::Kind;
use super::setting::{Atlas, Budget, Plan, Setting};
use super::story::{tell, tell_nodes};
use super::witness::Violation;
use super::world::{Action, SinkSays, World};
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::time::Instant;

/// Steps without faults after which a schedule's world must be at rest.
const REST_STEPS_MAX: usize = 2000;

/// One step of a schedule. Nodes by number; messages by what they are and between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This happens.
    Do(Action),
    /// The first such message arrives.
    Deliver(Kind, usize, usize),
    /// The first such message is lost.
    Lose(Kind, usize, usize),
    /// The first attempt of a node is answered so.
    Sink(usize, SinkSays),
    /// A node's timers, until it begins an attempt, asks, or has no more of them.
    Timers(usize),
}

/// A step that was not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {number}, {step:?}, is not possible")]
pub struct Impossible {
    /// Which step, from 0.
    pub number: usize,
    /// What it was.
    pub step: Step,
}

/// Plays a schedule and lets the world come to rest; returns its story and what was broken.
///
/// # Errors
/// A step is not possible.
pub fn play(
    setting: Setting,
    steps: &[Step],
    atlas: &Arc<Atlas>,
) -> Result<(String, Option<Violation>), Impossible> {
    let plan = Arc::new(Plan::new(setting, Arc::clone(atlas), Instant::now()));
    let mut world = World::new(plan);
    let mut choices = Vec::new();
    let mut text = String::new();
    for (number, &step) in steps.iter().enumerate() {
        let mut did = 0;
        loop {
            world.choices(Phase::Faults, &mut choices);
            let action = find(&world, &choices, step);
            let is_over = did > 0 && !matches!(step, Step::Timers(_));
            let Some(action) = action.filter(|_| !is_over) else { break };
            let under_way = world.messages.len();
            let _ = writeln!(text, "      {}", tell_nodes(&world));
            let _ = writeln!(text, "{number:4}  {}", tell(&world, action));
            world.apply(action);
            did += 1;
            if let Err(violation) = world.check() {
                return Ok((text, Some(violation)));
            }
            if matches!(step, Step::Timers(_)) && world.messages.len() > under_way {
                break;
            }
        }
        if did == 0 {
            return Err(Impossible { number, step });
        }
    }
    let violation = rest(&mut world, &mut text).err();
    Ok((text, violation))
}

/// Lets everything happen that is no fault, the first choice first and timers last.
fn rest(world: &mut World, text: &mut String) -> Result<(), Violation> {
    world.budget = Budget::default();
    let mut choices: Vec<Choice> = Vec::new();
    let mut timer = 0;
    for _ in 0..REST_STEPS_MAX {
        world.choices(Phase::Healing, &mut choices);
        let is_timer = |choice: &&Choice| matches!(choice.action, Action::Timer(_));
        let other = choices.iter().find(|choice| !is_timer(choice));
        let timers: Vec<&Choice> = choices.iter().filter(is_timer).collect();
        timer += 1;
        let turn = timers.get(timer % timers.len().max(1)).copied();
        let Some(choice) = other.or(turn) else { return world.check_at_rest() };
        let _ = writeln!(text, "      {}", tell(world, choice.action));
        world.apply(choice.action);
        world.check()?;
    }
    let what = format!("no rest within {REST_STEPS_MAX} steps");
    Err(Violation { invariant: super::witness::Invariant::Rest, what })
}

/// The action that a step means now, if it is possible.
fn find(world: &World, choices: &[Choice], step: Step) -> Option<Action> {
    let is = |number: usize, kind: Kind, from: usize, to: usize| {
        let message = &world.messages[number];
        (message.kind(), message.from, message.to) == (kind, from, to)
    };
    let mut actions = choices.iter().map(|choice| choice.action);
    actions.find(|&action| match (step, action) {
        (Step::Do(wanted), action) => wanted == action,
        (Step::Deliver(kind, from, to), Action::Deliver(number)) => is(number, kind, from, to),
        (Step::Lose(kind, from, to), Action::Drop(number)) => is(number, kind, from, to),
        (Step::Sink(node, wanted), Action::Sink(number, says)) => {
            wanted == says && is(number, Kind::Export, node, node)
        }
        (Step::Timers(node), Action::Timer(other)) => node == other,
        _ => false,
    })
}
