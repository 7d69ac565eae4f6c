//! Complete search of small worlds: every order of everything that could happen.
//!
//! States are told apart by their fingerprint; each is visited once, and every step into a new or
//! known one is checked. A state is at rest when nothing but faults leads to another state. For
//! each state the step that found it is kept, so that a violation is told from the beginning.
//! Bounded by the number of states.

use super::bugs::Bug;
use super::choices::{Choice, Phase};
use super::setting::{Atlas, Budget, Plan, Setting};
use super::story::tell;
use super::witness::Violation;
use super::world::{Action, World};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::Instant;

/// A small world that can be searched.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    /// What it is called.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    budget: Budget,
    work: &'static [u8],
    nodes: usize,
    started: usize,
    order: [usize; 4],
}

const NO_FAULT: Budget = Budget::NONE;

const CALM: Small = Small {
    name: "calm",
    about: "3 nodes, 1 span, no fault",
    budget: NO_FAULT,
    work: &[1],
    nodes: 3,
    started: 3,
    order: [0, 1, 2, 3],
};

const PAIR: Small = Small { nodes: 2, started: 2, ..CALM };

/// All of them, smallest first.
pub const SMALL: &[Small] = &[
    CALM,
    Small {
        name: "pair-crash",
        about: "2 nodes, 1 span, 1 crash",
        budget: Budget { crash: 1, ..NO_FAULT },
        ..PAIR
    },
    Small {
        name: "pair-loss",
        about: "2 nodes, 1 span, 1 lost message",
        budget: Budget { drop: 1, ..NO_FAULT },
        ..PAIR
    },
    Small {
        name: "pair-sink",
        about: "2 nodes, 1 span, 1 other answer of the sink",
        budget: Budget { sink: 1, ..NO_FAULT },
        ..PAIR
    },
    Small {
        name: "pair-leave",
        about: "2 nodes, 1 span, 1 drain",
        budget: Budget { leave: 1, ..NO_FAULT },
        ..PAIR
    },
    Small {
        name: "pair-pause",
        about: "2 nodes, 1 span, 1 stand-still",
        budget: Budget { pause: 1, ..NO_FAULT },
        ..PAIR
    },
    Small {
        name: "pair-restart",
        about: "2 nodes, 1 span, 1 crash and restart",
        budget: Budget { crash: 1, start: 1, ..NO_FAULT },
        ..PAIR
    },
    Small { name: "two", about: "3 nodes, 2 spans, no fault", work: &[1, 2], ..CALM },
    Small {
        name: "loss",
        about: "3 nodes, 1 span, 1 lost message",
        budget: Budget { drop: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "crash",
        about: "3 nodes, 1 span, 1 crash",
        budget: Budget { crash: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "leave",
        about: "3 nodes, 1 span, 1 drain",
        budget: Budget { leave: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "pause",
        about: "3 nodes, 1 span, 1 stand-still",
        budget: Budget { pause: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "retry",
        about: "3 nodes, 1 span, sent twice",
        budget: Budget { retry: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "reroute",
        about: "3 nodes, 1 span, 1 silent batch",
        budget: Budget { silent: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "join",
        about: "2 nodes and 1 that joins and becomes the owner, 1 span",
        budget: Budget { start: 1, ..NO_FAULT },
        started: 2,
        order: [2, 0, 1, 3],
        ..CALM
    },
    Small {
        name: "restart",
        about: "3 nodes, 1 span, 1 crash and restart",
        budget: Budget { crash: 1, start: 1, ..NO_FAULT },
        ..CALM
    },
    Small {
        name: "reroute-crash",
        about: "3 nodes, 1 span, 1 silent batch, 1 crash",
        budget: Budget { silent: 1, crash: 1, ..NO_FAULT },
        ..CALM
    },
];

impl Small {
    /// The world's setting; requests enter at the first node.
    pub fn setting(&self, bug: Option<Bug>) -> Setting {
        Setting {
            nodes: self.nodes,
            started: self.started,
            orders: vec![self.order],
            work: self.work.iter().map(|&spans| vec![(0, spans)]).collect(),
            entry: Some(0),
            budget: self.budget,
            bug,
            ..Setting::default()
        }
    }
}

/// What a search saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Different states.
    pub states: usize,
    /// Steps from one to another.
    pub steps: usize,
    /// States in which only faults could happen.
    pub rests: usize,
    /// No state was left out.
    pub complete: bool,
    /// The first promise that was broken, and the story of it.
    pub violation: Option<(Violation, String)>,
}

/// Searches a world, at most `states_max` states of it.
pub fn search(setting: Setting, atlas: &Arc<Atlas>, states_max: usize) -> Seen {
    let plan = Arc::new(Plan::new(setting, Arc::clone(atlas), Instant::now()));
    let start = World::new(plan);
    let mut found: HashMap<u64, Option<(u64, Action)>> = HashMap::new();
    let first = start.fingerprint();
    found.insert(first, None);
    let mut stack = vec![(first, start.clone())];
    let mut choices: Vec<Choice> = Vec::new();
    let mut seen = Seen::default();
    while let Some((from, world)) = stack.pop() {
        if found.len() > states_max {
            seen.states = found.len();
            return seen;
        }
        world.choices(Phase::Healing, &mut choices);
        let mut rests = true;
        for choice in &choices {
            let mut next = world.clone();
            next.apply(choice.action);
            seen.steps += 1;
            let to = next.fingerprint();
            rests &= choice.is_fault || to == from;
            if let Err(violation) = next.check() {
                let told = path(&start, &found, from, Some(choice.action));
                seen.violation = Some((violation, told));
                seen.states = found.len();
                return seen;
            }
            if let std::collections::hash_map::Entry::Vacant(entry) = found.entry(to) {
                entry.insert(Some((from, choice.action)));
                stack.push((to, next));
            }
        }
        if rests {
            seen.rests += 1;
            if let Err(violation) = world.check_at_rest() {
                let told = path(&start, &found, from, None);
                seen.violation = Some((violation, told));
                seen.states = found.len();
                return seen;
            }
        }
    }
    seen.states = found.len();
    seen.complete = true;
    seen
}

/// The steps to a state, and one more, in words.
fn path(
    start: &World,
    found: &HashMap<u64, Option<(u64, Action)>>,
    state: u64,
    last: Option<Action>,
) -> String {
    let mut actions: Vec<Action> = last.into_iter().collect();
    let mut state = state;
    while let Some(Some((from, action))) = found.get(&state) {
        actions.push(*action);
        state = *from;
    }
    let mut world = start.clone();
    let mut text = String::new();
    for (step, action) in actions.into_iter().rev().enumerate() {
        text.push_str(&format!("{step:4} {}\n", tell(&world, action)));
        world.apply(action);
    }
    text
}
