//! Views: who believes what of whom, and how nodes come and go.
//!
//! Gossip is a choice for each pair of nodes; a node's view follows at once from what it heard, its
//! requests hear of it at once, its shards too unless the setting lets them lag.

use super::bugs::Bug;
use super::node::Life;
use super::setting::NODES_MAX;
use super::witness::Facts;
use super::world::World;
use std::collections::BTreeMap;
use std::sync::Arc;
use tracemesh_membership::{MemberState, NodeId};

impl World {
    pub(super) fn on_gossip(&mut self, node: usize, peer: usize) {
        self.nodes[node].rumours[peer] = Some(self.says(peer));
        self.renew_view(node);
    }

    pub(super) fn on_suspicion(&mut self, node: usize, peer: usize) {
        if self.nodes[peer].exists() {
            self.budget.suspect = self.budget.suspect.saturating_sub(1);
            self.witness.facts |= Facts::SUSPECTED;
        }
        if let Some(rumour) = &mut self.nodes[node].rumours[peer] {
            rumour.suspected = true;
        }
        self.renew_view(node);
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.budget.crash = self.budget.crash.saturating_sub(1);
        let settled = self.is_settled();
        for trace in 0..self.plan.traces.len() {
            if self.is_untold(node, trace) || !settled {
                self.witness.trace_facts[trace] |= Facts::CRASHED_UNTOLD;
            }
        }
        self.witness.on_change(Facts::CRASHED);
        self.end(node, Life::Down);
    }

    pub(super) fn start(&mut self, node: usize) {
        self.budget.start = self.budget.start.saturating_sub(1);
        let plan = Arc::clone(&self.plan);
        self.nodes[node].start(node, &plan);
        self.renew_view(node);
    }

    pub(super) fn activate(&mut self, node: usize) {
        self.note_untold();
        self.witness.on_change(Facts::JOINED);
        self.nodes[node].state = MemberState::Active;
        self.renew_view(node);
    }

    pub(super) fn leave(&mut self, node: usize) {
        self.budget.leave = self.budget.leave.saturating_sub(1);
        self.note_untold();
        self.witness.on_change(Facts::LEFT);
        self.nodes[node].state = MemberState::Leaving;
        self.renew_view(node);
    }

    pub(super) fn exit(&mut self, node: usize) {
        self.end(node, Life::Gone);
    }

    pub(super) fn pause(&mut self, node: usize) {
        self.budget.pause = self.budget.pause.saturating_sub(1);
        self.witness.facts |= Facts::STOOD_STILL;
        self.nodes[node].life = Life::Still;
    }

    /// M3: a new incarnation before anything else, and shards know it at once.
    pub(super) fn wake(&mut self, node: usize) {
        self.nodes[node].life = Life::Up;
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
            self.nodes[node].placement = self.plan.atlas.placement(&company);
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

    /// Tells a shard its node's view.
    pub(super) fn take_view(&mut self, number: usize, shard: usize) {
        let plan = Arc::clone(&self.plan);
        let tampered = match plan.setting.bug {
            Some(Bug::DecideAsNoOwner) => {
                let mut alone = [None; NODES_MAX];
                alone[number] = Some((self.nodes[number].incarnation, MemberState::Active));
                Some(plan.atlas.placement(&alone))
            }
            _ => None,
        };
        let is_always_calm = self.has(Bug::DecideUncalm);
        let node = &mut self.nodes[number];
        let own_hash = node.placement.view().hash();
        let published = node
            .rumours
            .map(|rumour| rumour.filter(|rumour| !rumour.suspected).map(|rumour| rumour.view_hash));
        let named = (0..).zip(published).filter_map(|(peer, hash)| Some((peer, hash?)));
        let named: BTreeMap<NodeId, u64> = named
            .map(|(peer, hash)| {
                (plan.id(peer).clone(), if is_always_calm { own_hash } else { hash })
            })
            .collect();
        let (now, state) = (node.now, node.state);
        let placement = Arc::clone(&node.placement);
        let keeper = &mut node.keepers[shard];
        keeper.lags = false;
        keeper.published = published;
        keeper.placement = Arc::clone(&placement);
        keeper.shard.on_view(now, tampered.unwrap_or(placement), state, named);
        self.after(number, super::holding::Cause::View);
    }

    /// Whether others may not know what a node has finished of a trace: an attempt or its Done is
    /// under way.
    fn is_untold(&self, node: usize, trace: usize) -> bool {
        self.nodes[node].known[trace].sending != 0 || self.is_done_under_way(node, trace)
    }

    /// Notes the traces of which somebody may not know what was finished while the members change.
    fn note_untold(&mut self) {
        for trace in 0..self.plan.traces.len() {
            let finished = self.witness.finished(trace, self.plan.setting.sinks);
            let untold = (0..self.nodes.len()).any(|node| {
                self.is_untold(node, trace) || self.nodes[node].known[trace].held & finished != 0
            });
            if untold {
                self.witness.trace_facts[trace] |= Facts::CHANGED_UNTOLD;
            }
        }
    }
}
