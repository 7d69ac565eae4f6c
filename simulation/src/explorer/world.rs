//! The whole world as one value: nodes, requests of clients, what is under way, and the witness.
//!
//! Everything that could happen by chance is an [`Action`]; [`World::apply`] does it and nothing
//! else happens. Two worlds with equal fingerprints differ in nothing that counts, so a complete
//! search ends. Not in the world: how much memory is left (a
//! Hold is answered *full* by chance), bandwidth, panicking deciders, eviction
//! of what is remembered, clocks that run at different speed.

use super::bugs::Bug;
use super::message::{About, Body, Message};
use super::node::{Keeper, Life, Node, Rumour, in_view};
use super::requests::Open;
use super::setting::{Budget, Company, NODES_MAX, Plan};
use super::witness::Witness;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use tracemesh::assemble::part::shard_of;
use tracemesh_membership::MemberState;

/// What a sink says to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkSays {
    /// It has the spans.
    Acknowledged,
    /// It will never take them.
    Refused,
    /// Not now.
    Again,
    /// It took them, but says nothing.
    TakenUnanswered,
    /// Nothing was taken, nothing is said.
    LostUnanswered,
}

/// One thing that happens. Nodes, requests and messages by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client sends the next request to a node.
    Submit(usize),
    /// A client sends a request once more.
    Retry(usize, usize),
    /// A batch of a request made no progress for too long.
    Silent(usize, usize),
    /// A request has waited for as long as a client waits.
    Expire(usize),
    /// A message arrives.
    Deliver(usize),
    /// A message is lost.
    Drop(usize),
    /// A Hold arrives at a node that has no memory for it.
    Refuse(usize),
    /// A message is under way twice.
    Duplicate(usize),
    /// A sink answers an attempt.
    Sink(usize, SinkSays),
    /// The next timer of a node.
    Timer(usize),
    /// The same, too late.
    Late(usize),
    /// A shard is told its node's view.
    TakeView(usize, usize),
    /// A silent peer answers a probe.
    Probe(usize, usize),
    /// A node hears what another one says of itself.
    Gossip(usize, usize),
    /// A node believes that another one is dead.
    Suspect(usize, usize),
    /// A node ends without a word.
    Crash(usize),
    /// A node starts, with nothing in its hands.
    Start(usize),
    /// A joining node becomes active.
    Activate(usize),
    /// A node begins to leave.
    Leave(usize),
    /// A leaving node that has nothing left ends.
    Exit(usize),
    /// A node stands still.
    Pause(usize),
    /// It goes on, and notices that it stood still.
    Wake(usize),
}

/// A world.
#[derive(Clone)]
pub struct World {
    /// What never changes.
    pub plan: Arc<Plan>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The open requests; a slot is used again.
    pub requests: Vec<Option<Open>>,
    /// What is under way.
    pub messages: Vec<Message>,
    /// Faults that may still happen.
    pub budget: Budget,
    /// How many of the plan's requests were sent.
    pub submitted: usize,
    /// The observer.
    pub witness: Witness,
}

impl World {
    /// The world at its beginning: the first nodes are active and know each other.
    pub fn new(plan: Arc<Plan>) -> Self {
        let setting = &plan.setting;
        let mut nodes: Vec<_> = (0..setting.nodes).map(|_| Node::new(&plan)).collect();
        for (number, node) in nodes.iter_mut().enumerate().take(setting.started) {
            node.start(number, &plan);
            node.state = MemberState::Active;
        }
        let budget = setting.budget;
        let mut world = Self {
            nodes,
            requests: Vec::new(),
            messages: Vec::new(),
            budget,
            submitted: 0,
            witness: Witness::default(),
            plan,
        };
        let view = world.plan.atlas.placement(&world.truth()).view().hash();
        for number in 0..world.plan.setting.started {
            for peer in (0..world.plan.setting.started).filter(|&peer| peer != number) {
                let mut rumour = world.says(peer);
                rumour.view_hash = view;
                rumour.settled = view;
                world.nodes[number].rumours[peer] = Some(rumour);
            }
        }
        for number in 0..world.plan.setting.started {
            world.renew_view(number);
            for shard in 0..world.plan.setting.shards {
                world.take_view(number, shard);
            }
        }
        world
    }

    /// Whether this bug is planted.
    pub fn has(&self, bug: Bug) -> bool {
        self.plan.setting.bug == Some(bug)
    }

    /// Does one thing.
    pub fn apply(&mut self, action: Action) {
        match action {
            Action::Submit(node) => {
                let work = self.submitted;
                self.submitted += 1;
                self.submit(node, work);
            }
            Action::Retry(work, node) => {
                self.budget.retry = self.budget.retry.saturating_sub(1);
                self.submit(node, work);
            }
            Action::Silent(request, batch) => self.on_silent(request, batch),
            Action::Expire(request) => self.on_expired(request),
            Action::Deliver(message) => self.deliver(message),
            Action::Drop(message) => self.lose(message),
            Action::Refuse(message) => self.refuse(message),
            Action::Duplicate(message) => {
                self.budget.duplicate = self.budget.duplicate.saturating_sub(1);
                self.witness.facts |= super::witness::Facts::LOSSY;
                self.messages.push(self.messages[message].clone());
            }
            Action::Sink(message, says) => self.on_sink(message, says),
            Action::Timer(node) => self.on_timer(node),
            Action::Late(node) => self.on_late(node),
            Action::TakeView(node, shard) => self.take_view(node, shard),
            Action::Probe(node, peer) => {
                let id = self.plan.id(peer).clone();
                self.nodes[node].reach.on_answer(&id);
            }
            Action::Gossip(node, peer) => self.on_gossip(node, peer),
            Action::Suspect(node, peer) => self.on_suspicion(node, peer),
            Action::Crash(node) => self.crash(node),
            Action::Start(node) => self.start(node),
            Action::Activate(node) => self.activate(node),
            Action::Leave(node) => self.leave(node),
            Action::Exit(node) => self.exit(node),
            Action::Pause(node) => self.pause(node),
            Action::Wake(node) => self.wake(node),
        }
        self.note_healing();
    }

    /// What a node says of itself.
    pub fn says(&self, node: usize) -> Rumour {
        let node = &self.nodes[node];
        Rumour {
            incarnation: node.incarnation,
            state: node.state,
            view_hash: node.placement.view().hash(),
            settled: node.settled,
            suspected: false,
        }
    }

    /// The view that everybody should have.
    pub fn truth(&self) -> Company {
        let mut company = [None; NODES_MAX];
        for (member, node) in company.iter_mut().zip(&self.nodes) {
            *member = node.exists().then_some((node.incarnation, node.state));
        }
        in_view(company)
    }

    /// Whether every node that runs has the true view, nobody is on the way out, and everything is
    /// where it belongs, twice.
    pub fn is_healed(&self) -> bool {
        let truth = self.truth();
        let is_placed = |node: &Node| {
            node.known.iter().all(|known| !known.unplaced)
                && node.keepers.iter().all(|keeper| !keeper.lags)
        };
        let is_healed = |node: &Node| match (node.life, node.state) {
            (Life::Up, MemberState::Active) => node.company == truth && is_placed(node),
            (Life::Up, MemberState::Joining) => is_placed(node),
            (Life::Up, MemberState::Leaving) | (Life::Still, _) => false,
            (Life::Down | Life::Gone, _) => true,
        };
        truth.iter().flatten().count() > 1 && self.nodes.iter().all(is_healed)
    }

    /// The shard of a node that has a trace.
    pub fn keeper(&self, node: usize, trace: usize) -> Option<&Keeper> {
        let keepers = &self.nodes[node].keepers;
        if keepers.is_empty() {
            return None;
        }
        keepers.get(shard_of(self.plan.traces[trace].slot, keepers.len()))
    }

    /// A number that is equal for worlds that differ in nothing that counts: instants only in
    /// their order, versions and attempts only in whether they are the present ones, messages in
    /// no order.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for node in &self.nodes {
            (node.life, node.incarnation, node.state, node.rumours).hash(&mut hasher);
            (node.settled == node.placement.view().hash()).hash(&mut hasher);
            node.open_requests.are_answered().hash(&mut hasher);
            if let tracemesh::reach::Routing::Around(silent) = node.reach.routing(0) {
                silent.hash(&mut hasher);
            }
            for keeper in &node.keepers {
                keeper.shard.fingerprint(node.now, &mut hasher);
                (keeper.lags, keeper.settled == node.settled).hash(&mut hasher);
            }
        }
        for request in &self.requests {
            match request {
                Some(open) => open.fingerprint(&mut hasher),
                None => hasher.write_u8(0),
            }
        }
        let messages = self.messages.iter().map(|message| self.message_fingerprint(message));
        messages.fold(0_u64, u64::wrapping_add).hash(&mut hasher);
        (self.budget, self.submitted).hash(&mut hasher);
        self.witness.fingerprint(&mut hasher);
        hasher.finish()
    }

    fn message_fingerprint(&self, message: &Message) -> u64 {
        let mut hasher = DefaultHasher::new();
        message.content.hash(&mut hasher);
        match &message.body {
            Body::Hold(_, About::Placing(asked)) => {
                self.hash_versions(message.from, asked, &mut hasher);
            }
            Body::Reply(_, About::Placing(asked), _) => {
                self.hash_versions(message.to, asked, &mut hasher);
            }
            Body::Export(export) | Body::Answer(export, _) => {
                let keeper = self.keeper(message.from, export.trace);
                let id = self.plan.traces[export.trace].id;
                let awaited = keeper.is_some_and(|keeper| keeper.shard.awaits(id, export.number));
                awaited.hash(&mut hasher);
            }
            Body::Hold(..) | Body::Reply(..) | Body::Done(_) => {}
        }
        hasher.finish()
    }

    fn hash_versions(
        &self,
        node: usize,
        asked: &[(tracemesh::spans::TraceId, u32)],
        hasher: &mut impl Hasher,
    ) {
        for &(id, version) in asked {
            let trace = self.plan.trace(id).unwrap_or_default();
            let keeper = self.keeper(node, trace);
            (keeper.and_then(|keeper| keeper.shard.version(id)) == Some(version)).hash(hasher);
        }
    }
}
