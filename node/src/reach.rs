//! Which peers answer *this* node: the fast and private tier of failure.
//!
//! A peer that let a batch wait is routed around at once, by this node alone; the placement does
//! not change for it. One probe at a time finds out when it is back. The invariant: when more than
//! half of at least three peers are silent it is rather this node that is slow, and nobody is
//! routed around. Pure; bounded by the members of the view.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use tracemesh_membership::NodeId;

/// How often a silent peer is probed.
pub const PROBE_AGAIN: Duration = Duration::from_millis(250);

/// With fewer peers than this, silence of most says nothing about this node.
const PEERS_MIN: usize = 3;

/// Peers that did not answer lately.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    silent: BTreeMap<NodeId, Instant>,
}

/// How a request is to be routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Around these peers, possibly none.
    Around(BTreeSet<NodeId>),
    /// Not at all: most peers are silent, so this node is the slow one.
    PushBack,
}

impl Reach {
    /// A peer made no progress; it is probed from [`PROBE_AGAIN`] on.
    pub fn on_silent(&mut self, peer: &NodeId, now: Instant) {
        self.silent.entry(peer.clone()).or_insert(now + PROBE_AGAIN);
    }

    /// A peer answered.
    pub fn on_answer(&mut self, peer: &NodeId) {
        self.silent.remove(peer);
    }

    /// Forgets who is no member any more.
    pub fn on_members(&mut self, is_member: impl Fn(&NodeId) -> bool) {
        self.silent.retain(|peer, _| is_member(peer));
    }

    /// How to route now, with so many peers in the view.
    pub fn routing(&self, peer_count: usize) -> Routing {
        if peer_count >= PEERS_MIN && self.silent.len() * 2 > peer_count {
            return Routing::PushBack;
        }
        Routing::Around(self.silent.keys().cloned().collect())
    }

    /// Peers to probe now; each is due again after [`PROBE_AGAIN`].
    pub fn probes(&mut self, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (peer, at) in self.silent.iter_mut().filter(|(_, at)| **at <= now) {
            *at = now + PROBE_AGAIN;
            due.push(peer.clone());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(peers: &[&str]) -> Routing {
        Routing::Around(peers.iter().map(|&peer| NodeId::from(peer)).collect())
    }

    #[test]
    fn silent_peer_is_avoided_until_it_answers() {
        let now = Instant::now();
        let mut reach = Reach::default();
        reach.on_silent(&"a".into(), now);
        assert_eq!(reach.routing(2), around(&["a"]));
        assert_eq!(reach.probes(now), []);
        assert_eq!(reach.probes(now + PROBE_AGAIN), [NodeId::from("a")]);
        assert_eq!(reach.probes(now + PROBE_AGAIN), []);
        reach.on_answer(&"a".into());
        assert_eq!(reach.routing(2), around(&[]));
    }

    #[test]
    fn node_to_which_most_are_silent_routes_around_nobody() {
        let now = Instant::now();
        let mut reach = Reach::default();
        reach.on_silent(&"a".into(), now);
        assert_eq!(reach.routing(3), around(&["a"]));
        reach.on_silent(&"b".into(), now);
        assert_eq!(reach.routing(3), Routing::PushBack);
        reach.on_members(|peer| peer.as_str() != "b");
        assert_eq!(reach.routing(3), around(&["a"]));
    }
}
