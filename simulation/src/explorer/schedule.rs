//! Directed schedules: an order of events written by hand, for what chance finds rarely.
//!
//! A schedule is plain values. Each step must be possible when its turn comes, so a schedule cannot
//! tell of something that the world would not do; one that no longer fits is mended, not skipped.
//! After the last step nothing fails any more, and the world comes to rest.

use super::choices::{Choice, Phase};
use super::message::Kind;
use super::node::Life;
use super::setting::{Atlas, Budget, NODES_MAX, Plan, Setting, Verdicts};
use super::story::{tell, tell_nodes};
use super::walk::Twist;
use super::witness::{Invariant, Violation};
use super::world::{Action, SinkSays, World};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
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
    /// The first such Hold finds no memory.
    Refuse(usize, usize),
    /// The first attempt of a node is answered so.
    Sink(usize, SinkSays),
    /// A node's timers, until it sends something or has no more of them.
    Timers(usize),
    /// Whatever these nodes say to each other and do at once, until they wait for time to pass.
    Talk(&'static [usize]),
    /// The same while so many seconds pass at each of them.
    Pass(&'static [usize], u64),
    /// Whatever these nodes do by themselves, time and sinks included, until nothing is left.
    Live(&'static [usize]),
    /// Nothing happens, but this is so.
    See(Sight),
}

/// What is so at some moment, of the first trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A node holds these spans.
    Holds(usize, u8),
    /// A node knows these spans as done.
    Done(usize, u8),
    /// To a node's knowledge another holder may lack something.
    Unplaced(usize),
    /// To a node's knowledge no holder lacks anything.
    Placed(usize),
    /// These spans were acknowledged to clients.
    Accepted(u8),
    /// The first sink took so many attempts.
    Exports(u8),
    /// An attempt of a node is under way.
    Sending(usize),
    /// A node has settled in its view.
    Settled(usize),
    /// A node has not.
    Unsettled(usize),
    /// A node has ended in order.
    Gone(usize),
}

/// A small world and what happens in it.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// What it shows.
    pub name: &'static str,
    /// Nodes, started or not.
    pub nodes: usize,
    /// The first nodes, which are active at the beginning.
    pub started: usize,
    /// The nodes in the order in which they are the trace's holders.
    pub order: [usize; NODES_MAX],
    /// The spans of each request, as bits; the first one is the root.
    pub work: &'static [u8],
    /// What deciders say.
    pub verdicts: Verdicts,
    /// What happens, in parts that schedules share.
    pub steps: &'static [&'static [Step]],
}

/// How a schedule ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Played {
    /// What happened, in words.
    pub story: String,
    /// Attempts that the first sink took.
    pub exports: u8,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
}

/// A step that was not possible, or something that was not so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {number}, {step:?}, is not possible")]
pub struct Impossible {
    /// Which step, from 0.
    pub number: usize,
    /// What it was.
    pub step: Step,
    /// What had happened until then.
    pub story: String,
}

impl Schedule {
    /// The world of it.
    pub fn setting(&self, twist: Twist) -> Setting {
        let Twist { bug, withheld } = twist;
        Setting {
            nodes: self.nodes,
            started: self.started,
            orders: vec![self.order],
            work: self.work.iter().map(|&spans| vec![(0, spans)]).collect(),
            verdicts: self.verdicts,
            budget: Budget::PLENTY,
            bug,
            withheld,
            ..Setting::default()
        }
    }

    /// Plays it and lets the world come to rest.
    ///
    /// # Errors
    /// A step is not possible.
    pub fn play(&self, twist: Twist, atlas: &Arc<Atlas>) -> Result<Played, Impossible> {
        let plan = Arc::new(Plan::new(self.setting(twist), Arc::clone(atlas), Instant::now()));
        let mut stage = Stage { world: World::new(plan), story: String::new() };
        for (number, step) in self.steps.iter().copied().flatten().enumerate() {
            match stage.step(*step) {
                Ok(true) => {}
                Ok(false) => {
                    let _ = writeln!(stage.story, "      {}", tell_nodes(&stage.world));
                    return Err(Impossible { number, step: *step, story: stage.story });
                }
                Err(violation) => return Ok(stage.ended(Some(violation))),
            }
        }
        stage.world.budget = Budget::default();
        let violation = match stage.go_on(|_, _| true) {
            Ok(true) => stage.world.check_at_rest().err(),
            Ok(false) => {
                let what = format!("no rest within {REST_STEPS_MAX} steps");
                Some(Violation { invariant: Invariant::Rest, what })
            }
            Err(violation) => Some(violation),
        };
        Ok(stage.ended(violation))
    }
}

/// A world that is played with, and what happened in it.
struct Stage {
    world: World,
    story: String,
}

impl Stage {
    fn ended(self, violation: Option<Violation>) -> Played {
        let Self { world, story } = self;
        Played { story, exports: world.witness.parts[0], violation }
    }

    fn apply(&mut self, action: Action) -> Result<(), Violation> {
        let _ = writeln!(self.story, "      {}", tell_nodes(&self.world));
        let _ = writeln!(self.story, "  {}", tell(&self.world, action));
        self.world.apply(action);
        self.world.check()
    }

    /// Does a step; whether it was possible.
    fn step(&mut self, step: Step) -> Result<bool, Violation> {
        match step {
            Step::See(sight) => Ok(self.world.sees(sight)),
            Step::Timers(node) => self.timers(node),
            Step::Talk(nodes) => self.pass(nodes, 0),
            Step::Pass(nodes, seconds) => self.pass(nodes, seconds),
            Step::Live(nodes) => self.go_on(|world, action| world.is_among(action, nodes)),
            _ => {
                let mut choices = Vec::new();
                self.world.choices(Phase::Faults, &mut choices);
                let actions = choices.iter().map(|choice| choice.action);
                let action = actions.into_iter().find(|&action| self.world.is_meant(action, step));
                action.map_or(Ok(false), |action| self.apply(action).map(|()| true))
            }
        }
    }

    fn timers(&mut self, node: usize) -> Result<bool, Violation> {
        let under_way = self.world.messages.len();
        for did in 0..REST_STEPS_MAX {
            let is_over = self.world.messages.len() > under_way;
            if is_over || self.world.nodes[node].next_wake().is_none() {
                return Ok(did > 0);
            }
            self.apply(Action::Timer(node))?;
        }
        Ok(false)
    }

    fn pass(&mut self, nodes: &[usize], seconds: u64) -> Result<bool, Violation> {
        let time = Duration::from_secs(seconds);
        let ends: Vec<Instant> = self.world.nodes.iter().map(|node| node.now + time).collect();
        self.go_on(|world, action| world.is_talk(action, nodes, &ends))
    }

    /// Lets everything happen that is no fault and that `may` happen, the first choice first and
    /// timers last and in turn. Whether an end came.
    fn go_on(&mut self, may: impl Fn(&World, Action) -> bool) -> Result<bool, Violation> {
        let mut choices: Vec<Choice> = Vec::new();
        let mut turn = 0;
        for _ in 0..REST_STEPS_MAX {
            self.world.choices(Phase::Healing, &mut choices);
            let world = &self.world;
            choices.retain(|choice| !choice.is_fault && may(world, choice.action));
            let is_timer = |choice: &&Choice| matches!(choice.action, Action::Timer(_));
            let other = choices.iter().find(|choice| !is_timer(choice));
            let timers: Vec<&Choice> = choices.iter().filter(is_timer).collect();
            let timer = timers.get(turn % timers.len().max(1)).copied();
            turn += usize::from(other.is_none());
            let Some(action) = other.or(timer).map(|choice| choice.action) else {
                return Ok(true);
            };
            self.apply(action)?;
        }
        Ok(false)
    }
}

impl World {
    /// Whether a step that is one action means this one.
    fn is_meant(&self, action: Action, step: Step) -> bool {
        let is = |number: usize, kind: Kind, from: usize, to: usize| {
            let message = &self.messages[number];
            (message.kind(), message.from, message.to) == (kind, from, to)
        };
        match (step, action) {
            (Step::Do(wanted), action) => wanted == action,
            (Step::Deliver(kind, from, to), Action::Deliver(number))
            | (Step::Lose(kind, from, to), Action::Drop(number)) => is(number, kind, from, to),
            (Step::Refuse(from, to), Action::Refuse(number)) => is(number, Kind::Hold, from, to),
            (Step::Sink(node, wanted), Action::Sink(number, says)) => {
                wanted == says && is(number, Kind::Export, node, node)
            }
            _ => false,
        }
    }

    /// Whether only these nodes take part in an action.
    fn is_among(&self, action: Action, nodes: &[usize]) -> bool {
        let has = |node: usize| nodes.contains(&node);
        match action {
            Action::Deliver(number) | Action::Sink(number, _) => {
                has(self.messages[number].from) && has(self.messages[number].to)
            }
            Action::Gossip(node, peer) | Action::Probe(node, peer) => has(node) && has(peer),
            Action::Suspect(node, _) | Action::TakeView(node, _) => has(node),
            Action::Timer(node) | Action::Activate(node) | Action::Exit(node) => has(node),
            Action::Silent(request, _) | Action::Expire(request) => {
                self.requests[request].as_ref().is_some_and(|open| has(open.entry))
            }
            _ => false,
        }
    }

    /// Whether an action among these nodes takes no longer than until these instants, by node.
    fn is_talk(&self, action: Action, nodes: &[usize], ends: &[Instant]) -> bool {
        let is_talk = match action {
            Action::Timer(node) => {
                self.nodes[node].next_wake().is_some_and(|(wake, _)| wake <= ends[node])
            }
            Action::Deliver(_) | Action::Gossip(..) | Action::TakeView(..) => true,
            _ => false,
        };
        is_talk && self.is_among(action, nodes)
    }

    fn sees(&self, sight: Sight) -> bool {
        let known = |node: usize| &self.nodes[node].known[0];
        let has_settled = |node: usize| {
            let node = &self.nodes[node];
            node.settled == node.placement.view().hash()
        };
        match sight {
            Sight::Holds(node, spans) => known(node).held == spans,
            Sight::Done(node, spans) => known(node).done == spans,
            Sight::Unplaced(node) => known(node).unplaced,
            Sight::Placed(node) => !known(node).unplaced,
            Sight::Accepted(spans) => self.witness.accepted[0] == spans,
            Sight::Exports(count) => self.witness.parts[0] == count,
            Sight::Sending(node) => known(node).sending != 0,
            Sight::Settled(node) => has_settled(node),
            Sight::Unsettled(node) => !has_settled(node),
            Sight::Gone(node) => self.nodes[node].life == Life::Gone,
        }
    }
}
