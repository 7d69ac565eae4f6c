//! What could happen next in a world, and how likely a walk takes it.
//!
//! Each choice is a fault or not. Faults are optional and limited by the budget; a world in which
//! only faults could happen is at rest. A node that holds something always has a timer, so rest
//! means that nothing is held.

use super::bugs::Bug;
use super::message::{Kind, Message};
use super::node::Life;
use super::world::{Action, SinkSays, World};
use tracemesh::reach::Routing;
use tracemesh::shard::Known;
use tracemesh_membership::MemberState;

/// One thing that could happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What.
    pub action: Action,
    /// How likely beside the others.
    pub weight: u8,
    /// Whether it is a fault.
    pub is_fault: bool,
}

/// Whether faults may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Anything may fail.
    Faults,
    /// Nothing fails any more.
    Healing,
}

impl World {
    /// All that could happen next, into `choices`.
    pub fn choices(&self, phase: Phase, choices: &mut Vec<Choice>) {
        choices.clear();
        for node in 0..self.nodes.len() {
            match self.nodes[node].life {
                Life::Down | Life::Gone => fault(choices, self.budget.start, Action::Start(node)),
                Life::Still => usual(choices, 2, Action::Wake(node)),
                Life::Up => {
                    self.life_choices(node, choices);
                    self.peer_choices(node, choices);
                }
            }
        }
        for number in 0..self.requests.len() {
            self.request_choices(number, phase, choices);
        }
        for number in 0..self.messages.len() {
            self.message_choices(number, choices);
        }
    }

    /// What a node that runs could do, or what could happen to it.
    fn life_choices(&self, number: usize, choices: &mut Vec<Choice>) {
        let (node, setting) = (&self.nodes[number], &self.plan.setting);
        let serves = node.state == MemberState::Active
            || (node.state == MemberState::Joining && self.has(Bug::ServeWhileJoining));
        let serves = serves && !node.placement.view().members().is_empty();
        if serves && setting.entry.is_none_or(|entry| entry == number) {
            if self.submitted < setting.work.len() {
                usual(choices, 4, Action::Submit(number));
            }
            for work in 0..self.submitted {
                fault(choices, self.budget.retry, Action::Retry(work, number));
            }
        }
        if node.state == MemberState::Joining && self.knows_everybody(number) {
            usual(choices, 3, Action::Activate(number));
        }
        if node.state == MemberState::Leaving && self.has_nothing_left(number) {
            usual(choices, 3, Action::Exit(number));
        }
        if node.next_wake().is_some() {
            usual(choices, 3, Action::Timer(number));
            fault(choices, self.budget.late, Action::Late(number));
        }
        for (shard, keeper) in node.keepers.iter().enumerate() {
            if keeper.lags {
                usual(choices, 6, Action::TakeView(number, shard));
            }
        }
        if self.truth().iter().flatten().count() > 1 {
            fault(choices, self.budget.crash, Action::Crash(number));
        }
        if node.state == MemberState::Active {
            fault(choices, self.budget.leave, Action::Leave(number));
        }
        fault(choices, self.budget.pause, Action::Pause(number));
    }

    /// What a node could hear or believe of the others.
    fn peer_choices(&self, number: usize, choices: &mut Vec<Choice>) {
        let node = &self.nodes[number];
        for peer in (0..self.nodes.len()).filter(|&peer| peer != number) {
            let (other, rumour) = (&self.nodes[peer], node.rumours[peer]);
            if other.is_up() && rumour != Some(self.says(peer)) {
                usual(choices, 6, Action::Gossip(number, peer));
            }
            if rumour.is_none_or(|rumour| rumour.suspected) {
                continue;
            }
            match other.life {
                Life::Down | Life::Gone => usual(choices, 3, Action::Suspect(number, peer)),
                Life::Up => fault(choices, self.budget.suspect, Action::Suspect(number, peer)),
                Life::Still if self.budget.suspect > 0 => {
                    let action = Action::Suspect(number, peer);
                    choices.push(Choice { action, weight: 4, is_fault: true });
                }
                Life::Still => {}
            }
        }
        if let Routing::Around(silent) = node.reach.routing(0) {
            for peer in silent.iter().map(|id| self.plan.node(id)) {
                if self.nodes[peer].is_up() {
                    usual(choices, 2, Action::Probe(number, peer));
                }
            }
        }
    }

    fn request_choices(&self, number: usize, phase: Phase, choices: &mut Vec<Choice>) {
        let Some(open) = &self.requests[number] else { return };
        if !self.nodes[open.entry].is_up() {
            return;
        }
        for batch in open.waiting() {
            let action = Action::Silent(number, batch);
            if self.is_batch_under_way(number, batch) {
                fault(choices, self.budget.silent, action);
            } else {
                usual(choices, 4, action);
            }
        }
        if phase == Phase::Healing && open.waiting().next().is_none() {
            usual(choices, 1, Action::Expire(number));
        } else {
            fault(choices, self.budget.silent, Action::Expire(number));
        }
    }

    fn message_choices(&self, number: usize, choices: &mut Vec<Choice>) {
        let message = &self.messages[number];
        let is_same = |other: &Message| other.content == message.content;
        if self.messages[..number].iter().any(is_same) {
            return;
        }
        if message.kind() == Kind::Export {
            usual(choices, 6, Action::Sink(number, SinkSays::Acknowledged));
            for says in [
                SinkSays::Refused,
                SinkSays::Again,
                SinkSays::TakenUnanswered,
                SinkSays::LostUnanswered,
            ] {
                fault(choices, self.budget.sink, Action::Sink(number, says));
            }
            return;
        }
        if self.nodes[message.to].is_up() {
            usual(choices, 6, Action::Deliver(number));
        }
        if message.is_between_nodes() {
            fault(choices, self.budget.drop, Action::Drop(number));
            if self.is_refusable(message) {
                fault(choices, self.budget.full, Action::Refuse(number));
            }
            fault(choices, self.budget.duplicate, Action::Duplicate(number));
        }
    }

    /// A joining node has heard of all members, as they are.
    fn knows_everybody(&self, number: usize) -> bool {
        (0..self.nodes.len()).filter(|&peer| peer != number).all(|peer| {
            let other = &self.nodes[peer];
            let rumour = self.nodes[number].rumours[peer];
            !other.exists()
                || other.state == MemberState::Joining
                || rumour.is_some_and(|rumour| {
                    !rumour.suspected
                        && rumour.incarnation == other.incarnation
                        && rumour.state == other.state
                })
        })
    }

    /// M4: nothing held, nothing unplaced, no attempt, no open request; and every shard knows so.
    fn has_nothing_left(&self, number: usize) -> bool {
        let is_left = |known: &Known| known.held != 0 || known.unplaced;
        let mut open = self.requests.iter().flatten();
        let node = &self.nodes[number];
        let lags = node.keepers.iter().any(|keeper| keeper.lags);
        !lags && !node.known.iter().any(is_left) && !open.any(|open| open.entry == number)
    }
}

fn usual(choices: &mut Vec<Choice>, weight: u8, action: Action) {
    choices.push(Choice { action, weight, is_fault: false });
}

fn fault(choices: &mut Vec<Choice>, budget: u8, action: Action) {
    if budget > 0 {
        choices.push(Choice { action, weight: 1, is_fault: true });
    }
}
