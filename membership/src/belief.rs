//! Whom this node believes to be there.
//!
//! Gossip says which incarnations it heard of lately. That is not yet a reason to move data: a node
//! that stood still hears nobody for a moment, and so does one whose link broke. After such a
//! moment it doubts, for [`DOUBT`], that those are dead whom it no longer hears, and keeps them.
//! The invariant: of each id one incarnation is believed, the newest that gossip hears; a running
//! node is not hidden by a joining process elsewhere that took its id.
//!
//! Owns the list of peers. Bounded by what gossip lists. It decides neither about this node itself
//! (`member`) nor about who may be one (`twin`).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::keys::Published;
use crate::starts::GENERATION_MAX;
use crate::view::{Incarnation, MemberState, NodeId};

/// How long a node that has reason to suspect itself waits before it believes others dead: several
/// times what gossip needs to hear of somebody again.
pub(crate) const DOUBT: Duration = Duration::from_secs(3);

/// Peers lost within so long are lost at once: gossip notices the same cut at one peer up to a
/// second after the other.
const AT_ONCE: Duration = Duration::from_secs(1);

/// With fewer peers than this, half of them is no majority worth a doubt.
const MAJORITY_OF: usize = 3;

/// A peer: a node seen from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Who.
    pub id: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Where the mesh reaches it.
    pub mesh_address: SocketAddr,
    /// Whether gossip hears of it. One that is not alive is kept only while this node doubts
    /// itself.
    pub alive: bool,
    /// What it says of itself.
    pub published: Published,
}

/// One incarnation that gossip knows of.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) id: NodeId,
    pub(crate) generation: u64,
    pub(crate) mesh_address: SocketAddr,
    /// The failure detector's opinion; false also before it has one.
    pub(crate) alive: bool,
    /// Grows as long as it lives.
    pub(crate) heartbeat: u64,
    /// `None` while its keys did not arrive, or when they are not understood.
    pub(crate) published: Option<Published>,
}

impl Sighting {
    fn peer(&self) -> Option<PeerInfo> {
        if !self.alive || self.generation > GENERATION_MAX {
            return None;
        }
        let published = self.published.clone()?;
        let incarnation = Incarnation { generation: self.generation, epoch: published.epoch };
        Some(PeerInfo {
            id: self.id.clone(),
            incarnation,
            mesh_address: self.mesh_address,
            alive: true,
            published,
        })
    }
}

/// The peers that this node believes in.
#[derive(Debug, Default)]
pub(crate) struct Beliefs {
    peers: BTreeMap<NodeId, PeerInfo>,
    doubt_until: Option<Instant>,
    /// When peers were lost, within [`AT_ONCE`].
    lost: VecDeque<Instant>,
}

impl Beliefs {
    pub(crate) fn peers(&self) -> &BTreeMap<NodeId, PeerInfo> {
        &self.peers
    }

    /// There is reason to think that it is this node which hears badly.
    pub(crate) fn doubt(&mut self, now: Instant) {
        self.doubt_until = Some(now + DOUBT);
    }

    /// Takes in what gossip says of the others.
    pub(crate) fn on_sightings<'a>(
        &mut self,
        now: Instant,
        sightings: impl Iterator<Item = &'a Sighting>,
    ) {
        let mut heard = BTreeMap::new();
        for peer in sightings.filter_map(Sighting::peer) {
            match heard.get(&peer.id) {
                Some(known) if !replaces(&peer, known) => {}
                _ => {
                    heard.insert(peer.id.clone(), peer);
                }
            }
        }
        self.notice_losses(now, &heard);
        if self.doubt_until.is_some_and(|until| now < until) {
            for (id, peer) in std::mem::take(&mut self.peers) {
                heard.entry(id).or_insert(PeerInfo { alive: false, ..peer });
            }
        } else {
            self.doubt_until = None;
        }
        self.peers = heard;
    }

    /// More than half of the peers lost at once is reason to doubt. Leaving ones do not count:
    /// their end was announced.
    fn notice_losses(&mut self, now: Instant, heard: &BTreeMap<NodeId, PeerInfo>) {
        while self.lost.front().is_some_and(|when| *when + AT_ONCE < now) {
            self.lost.pop_front();
        }
        let counts = |peer: &&PeerInfo| peer.alive && peer.published.state != MemberState::Leaving;
        let before = self.peers.values().filter(counts).count() + self.lost.len();
        let gone = self.peers.values().filter(counts).filter(|peer| !heard.contains_key(&peer.id));
        let gone = gone.count();
        self.lost.extend(std::iter::repeat_n(now, gone));
        if gone > 0 && before >= MAJORITY_OF && self.lost.len() * 2 > before {
            tracing::warn!(lost = self.lost.len(), peers = before, "lost most peers at once");
            self.doubt(now);
        }
    }
}

/// Of two living incarnations of an id, whether the first is to be believed.
fn replaces(peer: &PeerInfo, other: &PeerInfo) -> bool {
    let age = |peer: &PeerInfo| (peer.incarnation, peer.mesh_address);
    let (newer, older) = if age(peer) > age(other) { (peer, other) } else { (other, peer) };
    // At the same address a newer one can only be a restart. Elsewhere it may be a second process
    // with the same id, which ends by itself before it has joined.
    let may_be_second = newer.mesh_address != older.mesh_address
        && newer.published.state == MemberState::Joining
        && older.published.state != MemberState::Joining;
    let believed = if may_be_second { older } else { newer };
    std::ptr::eq(believed, peer)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::keys;

    pub(crate) fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    /// An active, living node.
    pub(crate) fn sighting(id: &str, generation: u64) -> Sighting {
        let state = MemberState::Active;
        Sighting {
            id: id.into(),
            generation,
            mesh_address: address(u16::from(id.as_bytes()[0])),
            alive: true,
            heartbeat: 1,
            published: Some(Published { state, ..keys::tests::published() }),
        }
    }

    fn in_state(sighting: Sighting, state: MemberState) -> Sighting {
        let published = sighting.published.map(|published| Published { state, ..published });
        Sighting { published, ..sighting }
    }

    fn believed(beliefs: &Beliefs) -> Vec<(&str, u64, bool)> {
        let peers = beliefs.peers().values();
        peers.map(|peer| (peer.id.as_str(), peer.incarnation.generation, peer.alive)).collect()
    }

    fn hear(beliefs: &mut Beliefs, now: Instant, ids: &[&str]) {
        let sightings: Vec<_> = ids.iter().map(|id| sighting(id, 1)).collect();
        beliefs.on_sightings(now, sightings.iter());
    }

    #[test]
    fn the_newest_living_incarnation_is_believed_in_any_order() {
        let dead = Sighting { alive: false, ..sighting("a", 4) };
        let unknown = Sighting { published: None, ..sighting("a", 5) };
        let invented = sighting("a", GENERATION_MAX + 1);
        let mut sightings = [sighting("a", 2), sighting("a", 3), dead, unknown, invented];
        for _ in 0..sightings.len() {
            let mut beliefs = Beliefs::default();
            beliefs.on_sightings(Instant::now(), sightings.iter());
            assert_eq!(believed(&beliefs), [("a", 3, true)]);
            sightings.rotate_left(1);
        }
    }

    #[test]
    fn a_restart_replaces_the_old_incarnation_while_it_still_joins() {
        let restarted = in_state(sighting("a", 2), MemberState::Joining);
        let mut beliefs = Beliefs::default();
        beliefs.on_sightings(Instant::now(), [sighting("a", 1), restarted].iter());
        assert_eq!(believed(&beliefs), [("a", 2, true)]);
    }

    #[test]
    fn a_joining_process_elsewhere_does_not_hide_a_running_node() {
        let elsewhere = Sighting { mesh_address: address(9), ..sighting("a", 2) };
        let joining = in_state(elsewhere.clone(), MemberState::Joining);
        let mut beliefs = Beliefs::default();
        beliefs.on_sightings(Instant::now(), [joining, sighting("a", 1)].iter());
        assert_eq!(believed(&beliefs), [("a", 1, true)]);
        beliefs.on_sightings(Instant::now(), [sighting("a", 1), elsewhere].iter());
        assert_eq!(believed(&beliefs), [("a", 2, true)]);
    }

    #[test]
    fn a_dead_peer_is_dropped_at_once_in_ordinary_times() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        hear(&mut beliefs, now, &["a", "b", "c"]);
        hear(&mut beliefs, now + AT_ONCE, &["a", "b"]);
        assert_eq!(believed(&beliefs), [("a", 1, true), ("b", 1, true)]);
    }

    #[test]
    fn a_node_that_doubts_itself_keeps_the_dead_for_a_while() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        hear(&mut beliefs, now, &["a", "b"]);
        beliefs.doubt(now);
        hear(&mut beliefs, now + DOUBT / 2, &["a"]);
        assert_eq!(believed(&beliefs), [("a", 1, true), ("b", 1, false)]);
        hear(&mut beliefs, now + DOUBT, &["a"]);
        assert_eq!(believed(&beliefs), [("a", 1, true)]);
    }

    #[test]
    fn losing_more_than_half_of_three_peers_at_once_is_reason_to_doubt() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        hear(&mut beliefs, now, &["a", "b", "c"]);
        hear(&mut beliefs, now, &["a"]);
        assert_eq!(believed(&beliefs), [("a", 1, true), ("b", 1, false), ("c", 1, false)]);
        hear(&mut beliefs, now, &["a", "b"]);
        assert_eq!(believed(&beliefs), [("a", 1, true), ("b", 1, true), ("c", 1, false)]);
        hear(&mut beliefs, now + DOUBT, &["a", "b"]);
        assert_eq!(believed(&beliefs), [("a", 1, true), ("b", 1, true)]);
    }

    #[test]
    fn losses_a_moment_apart_count_together_and_losses_far_apart_do_not() {
        for (apart, expected) in [(AT_ONCE / 2, 2), (AT_ONCE * 2, 1)] {
            let (mut beliefs, now) = (Beliefs::default(), Instant::now());
            hear(&mut beliefs, now, &["a", "b", "c"]);
            hear(&mut beliefs, now, &["a", "b"]);
            hear(&mut beliefs, now + apart, &["a"]);
            assert_eq!(believed(&beliefs).len(), expected, "{apart:?}");
        }
    }

    #[test]
    fn half_of_two_peers_and_announced_ends_are_no_reason_to_doubt() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        hear(&mut beliefs, now, &["a", "b"]);
        hear(&mut beliefs, now, &[]);
        assert_eq!(believed(&beliefs), []);
        let all = ["a", "b", "c"].map(|id| in_state(sighting(id, 1), MemberState::Leaving));
        beliefs.on_sightings(now + AT_ONCE * 2, all.iter());
        hear(&mut beliefs, now + AT_ONCE * 2, &[]);
        assert_eq!(believed(&beliefs), []);
    }
}
