//! Views: who believes what of whom, and how nodes come and go.
//!
//! Gossip is a choice for each pair of nodes; a node's view follows at once from what it heard, its
//! requests hear of it at once, its shards too unless the setting lets them lag.

use super::bugs::Bug;
use super::node::{Keeper, Life, Rumour};
use super::setting::NODES_MAX;
use super::witness::Facts;
use super::world::World;
use std::sync::Arc;
use tracemesh::shard::{PeerStanding, Standing};
use tracemesh_membership::{MemberState, NodeId};

impl World {
    pub(super) fn on_gossip(&mut self, node: usize, peer: usize) {
        self.nodes[node].rumours[peer] = Some(self.says(peer));
        self.renew_view(node);
    }

    pub(super) fn on_suspicion(&mut self, node: usize, peer: usize) {
        if self.nodes[peer].exists() {
            self.budget.suspect = self.budget.suspect.saturating_sub(1);
            if self.nodes[peer].is_up() {
                self.witness.facts |= Facts::SUSPECTED;
            }
        }
        if let Some(rumour) = &mut self.nodes[node].rumours[peer] {
            rumour.suspected = true;
        }
        self.renew_view(node);
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.budget.crash = self.budget.crash.saturating_sub(1);
        self.note_untold(node);
        self.witness.facts |= Facts::CRASHED;
        if self.witness.unhealed {
            self.witness.facts |= Facts::CRASHED_UNHEALED;
        }
        self.witness.unhealed = true;
        self.end(node, Life::Down);
    }

    pub(super) fn start(&mut self, node: usize) {
        self.budget.start = self.budget.start.saturating_sub(1);
        let plan = Arc::clone(&self.plan);
        self.nodes[node].start(node, &plan);
        self.renew_view(node);
    }

    pub(super) fn activate(&mut self, node: usize) {
        self.witness.facts |= Facts::JOINED;
        self.nodes[node].state = MemberState::Active;
        self.renew_view(node);
    }

    pub(super) fn leave(&mut self, node: usize) {
        self.budget.leave = self.budget.leave.saturating_sub(1);
        self.witness.facts |= Facts::LEFT;
        self.nodes[node].state = MemberState::Leaving;
        self.renew_view(node);
    }

    pub(super) fn exit(&mut self, node: usize) {
        if self.nodes[node].company[node].is_some() {
            self.witness.facts |= Facts::LAST_LEFT;
        }
        self.end(node, Life::Gone);
    }

    pub(super) fn pause(&mut self, node: usize) {
        self.budget.pause = self.budget.pause.saturating_sub(1);
        self.note_untold(node);
        self.witness.facts |= Facts::STOOD_STILL;
        self.nodes[node].life = Life::Still;
    }

    /// M3: a new incarnation before anything else, and shards know it at once.
    pub(super) fn wake(&mut self, node: usize) {
        self.nodes[node].life = Life::Up;
        if self.has(Bug::NoEpoch) {
            return;
        }
        self.nodes[node].incarnation.epoch += 1;
        self.renew_view(node);
        for shard in 0..self.nodes[node].keepers.len() {
            self.take_view(node, shard);
        }
    }

    fn end(&mut self, node: usize, life: Life) {
        let plan = Arc::clone(&self.plan);
        self.nodes[node].end(life, &plan);
        self.forget_messages_to(node);
        for request in 0..self.requests.len() {
            if self.requests[request].as_ref().is_some_and(|open| open.entry == node) {
                self.witness.facts |= Facts::REROUTED;
                self.close(request);
            }
        }
    }

    /// Computes a node's view anew, and tells everybody in the node.
    pub(super) fn renew_view(&mut self, node: usize) {
        let company = self.nodes[node].believed_company(node);
        let changed = company != self.nodes[node].company;
        if changed {
            self.nodes[node].company = company;
            let placement = self.plan.atlas.placement(&company);
            self.nodes[node].open_requests.on_view(placement.view().hash());
            self.nodes[node].placement = placement;
            self.nodes[node].settled = 0;
        }
        let Self { nodes, plan, .. } = self;
        let rumours = nodes[node].rumours;
        let is_member = |id: &NodeId| rumours.get(plan.node(id)).is_some_and(Option::is_some);
        nodes[node].reach.on_members(is_member);
        for shard in 0..self.nodes[node].keepers.len() {
            if self.plan.setting.lagging {
                self.nodes[node].keepers[shard].lags = true;
            } else {
                self.take_view(node, shard);
            }
        }
        if changed && !self.has(Bug::TargetsOfStart) {
            self.requests_on_view(node);
        }
    }

    /// Tells a shard its node's view, and what its node knows of the others.
    pub(super) fn take_view(&mut self, number: usize, shard: usize) {
        let plan = Arc::clone(&self.plan);
        let node = &self.nodes[number];
        let mut placement = Arc::clone(&node.placement);
        if self.has(Bug::DecideAsNoOwner) {
            let mut alone = [None; NODES_MAX];
            alone[number] = Some((node.incarnation, MemberState::Active));
            placement = plan.atlas.placement(&alone);
        }
        let own_hash = placement.view().hash();
        let rumours = node.rumours.map(|rumour| rumour.filter(|rumour| !rumour.suspected));
        let is_always_calm = self.has(Bug::DecideUncalm);
        let ignores_views = is_always_calm || self.has(Bug::CalmWithoutReplica);
        let standing = |rumour: Rumour| PeerStanding {
            incarnation: rumour.incarnation,
            state: rumour.state,
            view_hash: if ignores_views { own_hash } else { rumour.view_hash },
            settled: if is_always_calm { own_hash } else { rumour.settled },
        };
        let peers = rumours.iter().enumerate();
        let peers =
            peers.filter_map(|(peer, said)| Some((plan.id(peer).clone(), standing((*said)?))));
        let settled = if is_always_calm { own_hash } else { node.settled };
        let peers = peers.collect();
        let standing = Standing { placement, state: node.state, settled, peers };
        let node = &mut self.nodes[number];
        let keeper = &mut node.keepers[shard];
        keeper.lags = false;
        keeper.rumours = rumours;
        keeper.settled = node.settled;
        keeper.placement = Arc::clone(&node.placement);
        if keeper.all_settled() {
            keeper.since_settled.clear();
        }
        keeper.since_settled.push(Arc::clone(&keeper.placement));
        keeper.shard.on_view(node.now, standing);
        self.after(number, super::holding::Cause::View);
        if self.has(Bug::KeepConfirmations) {
            self.confirm_again(number, shard);
        }
    }

    /// P5: whether a node has settled in its view by now; its shards hear of it at once.
    pub(super) fn settle(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let view_hash = node.placement.view().hash();
        if !node.exists() || node.settled == view_hash {
            return;
        }
        let knows = |keeper: &Keeper| keeper.placement.view().hash() == view_hash;
        let settled = |keeper: &Keeper| knows(keeper) && keeper.shard.is_settled();
        if node.open_requests.are_answered() && node.keepers.iter().all(settled) {
            node.settled = view_hash;
            for shard in 0..node.keepers.len() {
                self.take_view(number, shard);
            }
        }
    }

    /// Whether others may not know what a node has finished of a trace: an attempt or its Done is
    /// under way.
    fn is_untold(&self, node: usize, trace: usize) -> bool {
        self.nodes[node].known[trace].sending != 0 || self.is_done_under_way(node, trace)
    }

    /// A node falls silent: notes the traces of which others do not know what it has finished, and
    /// all when it falls silent in the middle of a change.
    fn note_untold(&mut self, node: usize) {
        let healed = self.is_healed();
        for trace in 0..self.plan.traces.len() {
            if self.is_untold(node, trace) || !healed {
                self.witness.trace_facts[trace] |= Facts::CRASHED_UNTOLD;
            }
        }
    }

    /// Notes whether a crash could cost the last copy of something.
    pub(super) fn note_healing(&mut self) {
        if self.truth().iter().flatten().count() < 2 {
            self.witness.unhealed = true;
        } else if self.witness.unhealed && self.is_healed() {
            self.witness.unhealed = false;
        }
    }
}
