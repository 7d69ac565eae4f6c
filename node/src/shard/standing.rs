//! What a shard is told of the mesh, and what it looks up in it: roles, holders, calm.
//!
//! A value made by the node's shell, or by an explorer. Who is owner is asked here each time, and
//! never stored with a trace. The invariant: everything in it was true at one moment.

use super::{Role, vanished};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use tracemesh_membership::{
    HashKey, Holders, Incarnation, MemberIndex, MemberState, NodeId, Placement, Slot, ViewMember,
};

/// What another member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStanding {
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Where in its life it is.
    pub state: MemberState,
    /// The view that it acts by.
    pub view_hash: u64,
    /// The last view in which it settled.
    pub settled: u64,
}

/// How a node stands in the mesh.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The placement of its view.
    pub placement: Arc<Placement>,
    /// Its own state.
    pub state: MemberState,
    /// The last view in which it settled.
    pub settled: u64,
    /// All other members.
    pub peers: BTreeMap<NodeId, PeerStanding>,
}

impl Standing {
    /// Before anything was heard of anybody.
    pub fn alone(placement: Arc<Placement>) -> Self {
        Self { placement, state: MemberState::Joining, settled: 0, peers: BTreeMap::new() }
    }

    /// The hash of its view.
    pub fn view_hash(&self) -> u64 {
        self.placement.view().hash()
    }

    pub(super) fn owner(&self, slot: Slot) -> Option<&ViewMember> {
        let owner = self.placement.holders(slot)?.owner;
        self.placement.view().members().get(usize::from(owner))
    }

    /// Whether every active and leaving member, itself included, has settled in its view (D1). Who
    /// settled in it and has another view by now has not.
    pub fn all_settled(&self) -> bool {
        let hash = self.view_hash();
        let counts = |peer: &&PeerStanding| peer.state != MemberState::Joining;
        let has_settled = |peer: &PeerStanding| peer.settled == hash && peer.view_hash == hash;
        self.settled == hash && self.peers.values().filter(counts).all(has_settled)
    }
}

/// The mesh as one shard of a node sees it.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    pub(super) standing: Standing,
    pub(super) me: NodeId,
    pub(super) my_index: Option<MemberIndex>,
    /// The placements since all were last settled, that one first, the present one not; each with
    /// who of it is in the present view still. None where there were too many.
    since_settled: Option<Vec<(Arc<Placement>, Stayed)>>,
    all_settled: bool,
}

/// So many views may come and go before all have settled; after that an owner waits until they do.
const VIEWS_UNSETTLED_MAX: usize = 16;

impl Outlook {
    pub(super) fn new(me: NodeId, standing: Standing) -> Self {
        let my_index = index_of(&standing.placement, &me);
        Self { me, my_index, since_settled: None, all_settled: false, standing }
    }

    /// Takes in what the mesh is now, and gives what it was.
    pub(super) fn renew(&mut self, standing: Standing) -> Standing {
        self.my_index = index_of(&standing.placement, &self.me);
        self.all_settled = standing.all_settled();
        if self.all_settled {
            self.since_settled = Some(Vec::new());
        } else if standing.view_hash() != self.standing.view_hash()
            && let Some(since) = &mut self.since_settled
        {
            let left = Arc::clone(&self.standing.placement);
            since.push((left, Stayed::default()));
            since.iter_mut().for_each(|(then, stayed)| {
                *stayed = Stayed::new(then, &standing.placement);
            });
            if since.len() > VIEWS_UNSETTLED_MAX {
                self.since_settled = None;
            }
        }
        std::mem::replace(&mut self.standing, standing)
    }

    pub(super) fn placement(&self) -> &Placement {
        &self.standing.placement
    }

    pub(super) fn view_hash(&self) -> u64 {
        self.standing.view_hash()
    }

    pub(super) fn role(&self, slot: Slot) -> Role {
        role(self.placement(), self.my_index, slot)
    }

    /// Looks up slots that are about to be needed: see [`Table::look`](super::table::Table::look).
    pub(super) fn look(&self, slots: impl Iterator<Item = Slot>) {
        let owner = |slot| self.placement().holders(slot).map_or(0, |holders| holders.owner);
        black_box(slots.fold(0, |seen, slot| seen ^ owner(slot)));
    }

    /// The holders of a slot besides this node, the owner first.
    pub(super) fn others(&self, slot: Slot) -> [Option<MemberIndex>; 2] {
        let holders = self.placement().holders(slot).map(seats).unwrap_or_default();
        holders.map(|holder| holder.filter(|_| holder != self.my_index))
    }

    /// Nobody is active any more: those who leave are the view, and decide at once (M4).
    pub(super) fn is_last_to_leave(&self) -> bool {
        self.standing.state == MemberState::Leaving && self.my_index.is_some()
    }

    /// D1: whether the owner of a slot may decide before [`SETTLE_MAX`](super::SETTLE_MAX) is over.
    pub(super) fn is_calm(&self, slot: Slot) -> bool {
        let unchanged = |(then, stayed): &(Arc<Placement>, Stayed)| {
            stayed.holders(then, self.placement(), slot)
        };
        let since = self.since_settled.as_ref();
        self.all_settled
            || (self.replica_agrees(slot) && since.is_some_and(|since| since.iter().all(unchanged)))
    }

    /// The replica, if any, publishes this node's view.
    fn replica_agrees(&self, slot: Slot) -> bool {
        let replica = self.placement().holders(slot).and_then(|holders| holders.replica);
        let members = self.placement().view().members();
        let agrees = |peer: &PeerStanding| peer.view_hash == self.view_hash();
        replica.is_none_or(|replica| {
            let peer = self.standing.peers.get(&members[usize::from(replica)].id);
            peer.is_some_and(agrees)
        })
    }

    /// The part of the outlook that an explorer compares.
    pub(super) fn hash(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (self.view_hash(), self.standing.state, self.all_settled).hash(hasher);
        for then in self.since_settled.iter().flatten() {
            then.0.view().hash().hash(hasher);
        }
        self.since_settled.is_some().hash(hasher);
        for peer in self.standing.peers.values() {
            (peer.incarnation, peer.state, peer.view_hash == self.view_hash()).hash(hasher);
        }
    }

    /// A member of the view.
    pub(super) fn member(&self, index: MemberIndex) -> (NodeId, Incarnation) {
        let member = &self.placement().view().members()[usize::from(index)];
        (member.id.clone(), member.incarnation)
    }

    pub(super) fn index_of(&self, id: &NodeId) -> Option<MemberIndex> {
        index_of(self.placement(), id)
    }

    /// Whether a member of the view, or one that leaves, has this life.
    pub(super) fn has_life(&self, hash_key: &HashKey, life: u64) -> bool {
        let members = self.placement().view().members().iter();
        let peers = self.standing.peers.iter().map(|(id, peer)| (id, peer.incarnation));
        let mut lives = members.map(|member| (&member.id, member.incarnation)).chain(peers);
        lives.any(|(id, incarnation)| vanished::life(hash_key, id, incarnation.generation) == life)
    }

    /// Whether this life of a node is still there, in the view or leaving.
    pub(super) fn is_alive(&self, id: &NodeId, generation: u64) -> bool {
        if *id == self.me {
            return true;
        }
        let in_view = self.placement().view().get(id).map(|member| member.incarnation);
        let leaving = |peer: &&PeerStanding| peer.state == MemberState::Leaving;
        let peer = || self.standing.peers.get(id).filter(leaving).map(|peer| peer.incarnation);
        in_view.or_else(peer).is_some_and(|incarnation| incarnation.generation == generation)
    }
}

/// The role of a member of a placement, or of a node that is none.
pub(super) fn role(placement: &Placement, me: Option<MemberIndex>, slot: Slot) -> Role {
    match (placement.holders(slot), me) {
        (Some(holders), Some(me)) if holders.owner == me => Role::Owner,
        (Some(holders), Some(me)) if holders.replica == Some(me) => Role::Replica,
        _ => Role::StandIn,
    }
}

/// Owner and replica.
pub(super) fn seats(holders: Holders) -> [Option<MemberIndex>; 2] {
    [Some(holders.owner), holders.replica]
}

/// Which members of a placement are in another one too, in the same life.
#[derive(Clone, Debug, Default)]
pub(super) struct Stayed(Vec<Option<MemberIndex>>);

impl Stayed {
    /// By member of `former`: where it is in `present`.
    pub(super) fn new(former: &Placement, present: &Placement) -> Self {
        let stayed = former.view().members().iter().map(|member| {
            let index = index_of(present, &member.id)?;
            let now = &present.view().members()[usize::from(index)];
            (now.incarnation == member.incarnation).then_some(index)
        });
        Self(stayed.collect())
    }

    /// Whether a slot has the same holders, as (id, incarnation), in both placements (P1).
    pub(super) fn holders(&self, former: &Placement, present: &Placement, slot: Slot) -> bool {
        match (former.holders(slot), present.holders(slot)) {
            (None, None) => true,
            (Some(former), Some(present)) => {
                let stayed = |index: MemberIndex| self.0[usize::from(index)];
                stayed(former.owner) == Some(present.owner)
                    && match former.replica {
                        Some(replica) => {
                            present.replica.is_some() && stayed(replica) == present.replica
                        }
                        None => present.replica.is_none(),
                    }
            }
            _ => false,
        }
    }
}

pub(super) fn index_of(placement: &Placement, id: &NodeId) -> Option<MemberIndex> {
    MemberIndex::try_from(placement.view().position(id)?).ok()
}
