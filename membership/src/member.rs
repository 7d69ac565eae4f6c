//! One member's life: start, join, leave, and its incarnations.
//!
//! The pure core of this crate. It is told what gossip hears and what happened to this node, and
//! keeps what follows: what this node says of itself, whom it believes to be there, and the view.
//! The invariant: the view, the state and the incarnation kept here are always those that follow
//! from what was heard last; nothing is computed later. A node leaves `joining` only once, into
//! `active` or `leaving`, and `leaving` never.
//!
//! Owned by the shell, under one lock; it has no clock, does no I/O, and ends nothing: it says that
//! this node has to end ([`Ended`]), and its owner does it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use crate::belief::PeerInfo;
use crate::belief::{Beliefs, Sighting};
use crate::keys::{Load, Published};
use crate::twin::{Advice, Myself, Twins};
use crate::unnoticed::Unnoticed;
use crate::view::{Incarnation, MemberState, NodeId, View, ViewMember};

/// A view that did not change for so long is stable: three rounds of gossip.
const STABLE: Duration = Duration::from_millis(600);

/// A mesh whose members come and go all the time is joined after so long all the same.
const UNSTABLE_MAX: Duration = Duration::from_secs(10);

/// Why this node cannot be a member. Trying again changes nothing; somebody has to set it right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// A setting that must agree in the cluster differs from that of a member it met.
    #[error("{key} is {mine} here and {theirs} at member {member}; make it equal on all")]
    Disagrees {
        /// The setting.
        key: &'static str,
        /// Its value here.
        mine: String,
        /// Its value there.
        theirs: String,
        /// Who has that one.
        member: NodeId,
    },
    /// Another live node has the same id.
    #[error("node id is in use: {address} answers with it; give this node another one (--node-id)")]
    IdInUse {
        /// The other one's mesh address.
        address: SocketAddr,
    },
}

/// How this node stands in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where in its life it is.
    pub state: MemberState,
    /// Which life.
    pub incarnation: Incarnation,
    /// Active without having met anybody although other seeds are named.
    pub alone: bool,
    /// The view in which it has settled; 0 while it has not in the present one.
    pub settled: u64,
    /// Why it has to end, if it has to.
    pub refused: Option<Ended>,
}

/// News about this node for the others; `None` leaves a figure as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// How full the memory budget is, in thousandths.
    pub fill: Option<u16>,
    /// How much the node does.
    pub load: Option<Load>,
    /// The hash of the view in which it has nothing left to hand over.
    pub settled: Option<u64>,
    /// Of the settings that may differ for a while.
    pub config_hash: Option<u64>,
}

/// Whom the configuration names to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeedKind {
    /// There are others, or names that were not looked up yet.
    Others,
    /// Nobody but this node.
    OnlyMyself,
}

/// What the shell has to do after the core took something in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Continue,
    /// Start gossip again with a generation above this one.
    StartAbove(u64),
    /// Stop gossip: [`Status::refused`] says why.
    End,
}

/// Who a member is, as far as it never changes.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) id: NodeId,
    pub(crate) mesh_address: SocketAddr,
    pub(crate) alone_after: Duration,
}

/// One member, seen from inside.
#[derive(Debug)]
pub(crate) struct Member {
    identity: Identity,
    generation: u64,
    seeds: SeedKind,
    says: Published,
    beliefs: Beliefs,
    twins: Twins,
    unnoticed: Unnoticed,
    joining: Joining,
    view: Arc<View>,
    refused: Option<Ended>,
    /// Active members that differ in a setting that must agree, so that each is told once.
    differing: BTreeSet<NodeId>,
}

/// What a joining node waits for.
#[derive(Debug)]
struct Joining {
    /// When gossip began, or somebody was last heard of.
    silent_since: Instant,
    /// Since when somebody is there.
    answered: Option<Instant>,
    /// The living incarnations, and since when they are the same.
    company: BTreeSet<(NodeId, u64)>,
    stable_since: Instant,
}

impl Member {
    pub(crate) fn new(
        now: Instant,
        identity: Identity,
        generation: u64,
        seeds: SeedKind,
        says: Published,
    ) -> Self {
        let joining = Joining {
            silent_since: now,
            answered: None,
            company: BTreeSet::new(),
            stable_since: now,
        };
        let mut member = Self {
            identity,
            generation,
            seeds,
            says,
            beliefs: Beliefs::default(),
            twins: Twins::default(),
            unnoticed: Unnoticed::default(),
            joining,
            view: Arc::default(),
            refused: None,
            differing: BTreeSet::new(),
        };
        member.renew_view();
        member
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation { generation: self.generation, epoch: self.says.epoch }
    }

    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub(crate) fn peers(&self) -> &BTreeMap<NodeId, PeerInfo> {
        self.beliefs.peers()
    }

    /// What this node says of itself now.
    pub(crate) fn says(&self) -> &Published {
        &self.says
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            state: self.says.state,
            incarnation: self.incarnation(),
            alone: self.says.state == MemberState::Active
                && self.seeds == SeedKind::Others
                && self.peers().is_empty(),
            settled: self.says.settled,
            refused: self.refused.clone(),
        }
    }

    /// The seeds were looked up.
    pub(crate) fn on_seeds(&mut self, seeds: SeedKind) {
        self.seeds = seeds;
    }

    /// Gossip starts, for the first time or again, as this generation.
    pub(crate) fn on_gossip_started(&mut self, now: Instant, generation: u64) {
        if generation != self.generation {
            self.generation = generation;
            self.says.epoch = 0;
        }
        // It has forgotten whom it heard.
        self.beliefs.doubt(now);
        self.joining.silent_since = now;
        self.joining.stable_since = now;
        self.renew_view();
    }

    /// This process stood still: it is a new incarnation, and has to hear again who is there.
    pub(crate) fn on_stand_still(&mut self, now: Instant) {
        self.says.epoch = self.says.epoch.saturating_add(1);
        self.beliefs.doubt(now);
        self.renew_view();
    }

    /// This node is to leave. Its own view changes first.
    pub(crate) fn leave(&mut self) {
        self.says.state = MemberState::Leaving;
        self.renew_view();
    }

    pub(crate) fn publish(&mut self, update: Update) {
        let says = &mut self.says;
        says.fill = update.fill.unwrap_or(says.fill);
        says.load = update.load.unwrap_or(says.load);
        // News of a view that has changed meanwhile is none.
        let settled = update.settled.filter(|settled| *settled == says.view_hash);
        says.settled = settled.unwrap_or(says.settled);
        says.config_hash = update.config_hash.unwrap_or(says.config_hash);
    }

    /// Takes in all that gossip knows.
    pub(crate) fn on_sightings(&mut self, now: Instant, sightings: &[Sighting]) -> Step {
        if self.refused.is_some() {
            return Step::End;
        }
        let own = |sighting: &&Sighting| sighting.id == self.identity.id;
        let me = Myself {
            generation: self.generation,
            mesh_address: self.identity.mesh_address,
            state: self.says.state,
        };
        let advice = self.twins.on_sightings(now, me, sightings.iter().filter(own));
        self.beliefs.on_sightings(now, sightings.iter().filter(|sighting| !own(sighting)));
        self.refused = match advice {
            Advice::InUse(address) => Some(Ended::IdInUse { address }),
            Advice::None | Advice::Wait | Advice::StartAbove(_) => self.disagreement(),
        };
        if self.refused.is_some() {
            return Step::End;
        }
        if let Advice::StartAbove(generation) = advice {
            return Step::StartAbove(generation);
        }
        if self.says.state == MemberState::Joining {
            let company = self.company(now, sightings);
            if advice != Advice::Wait {
                self.join_if_time(company);
            }
        }
        self.renew_view();
        if self.says.state == MemberState::Active && self.is_unnoticed(now) {
            return Step::StartAbove(self.generation);
        }
        Step::Continue
    }

    /// Whether no active member has had this node's view for so long that it takes it for dead.
    fn is_unnoticed(&mut self, now: Instant) -> bool {
        let peers = self.beliefs.peers().values().filter(|peer| peer.alive);
        let published = peers.map(|peer| &peer.published);
        let active = published.filter(|says| says.state == MemberState::Active);
        // Who has just come has published no view yet.
        let views = active.map(|says| says.view_hash).filter(|hash| *hash != 0);
        self.unnoticed.on_views(now, self.says.view_hash, views)
    }

    /// The first member that this node, while joining, disagrees with. Of two joining ones the
    /// later start yields where nobody is active, who would say which of them is wrong. Members
    /// never eject each other for it: they only say so.
    fn disagreement(&mut self) -> Option<Ended> {
        let mut differing = BTreeSet::new();
        let mut refused = None;
        let is_active = |peer: &PeerInfo| peer.alive && peer.published.state == MemberState::Active;
        let judges = self.beliefs.peers().values().any(is_active);
        for peer in self.beliefs.peers().values() {
            let difference = self.says.agreement.difference(&peer.published.agreement);
            let Some((key, mine, theirs)) = difference else {
                continue;
            };
            let was_first = peer.published.state != MemberState::Joining
                || (!judges && peer.incarnation.generation < self.generation);
            if self.says.state == MemberState::Joining {
                if was_first && refused.is_none() {
                    refused = Some(Ended::Disagrees { key, mine, theirs, member: peer.id.clone() });
                }
            } else {
                if !self.differing.contains(&peer.id) {
                    tracing::warn!(member = %peer.id, key, mine, theirs, "member disagrees");
                }
                differing.insert(peer.id.clone());
            }
        }
        self.differing = differing;
        refused
    }

    /// Whom this joining node has found so far.
    fn company(&mut self, now: Instant, sightings: &[Sighting]) -> Company {
        let joining = &mut self.joining;
        let living =
            sightings.iter().filter(|sighting| sighting.alive && sighting.id != self.identity.id);
        let company = living.clone().map(|s| (s.id.clone(), s.generation)).collect();
        let all_spoke = living.clone().all(|sighting| sighting.published.is_some());
        if joining.company != company || !all_spoke {
            joining.company = company;
            joining.stable_since = now;
        }
        if self.beliefs.peers().is_empty() {
            joining.answered = None;
            return if now >= joining.silent_since + self.identity.alone_after {
                Company::Nobody
            } else {
                Company::Unknown
            };
        }
        joining.silent_since = now;
        let answered = *joining.answered.get_or_insert(now);
        if now >= joining.stable_since + STABLE || now >= answered + UNSTABLE_MAX {
            Company::Stable
        } else {
            Company::Unknown
        }
    }

    fn join_if_time(&mut self, company: Company) {
        let members = self.peers().len();
        match (self.seeds, company) {
            (SeedKind::OnlyMyself, _) => tracing::info!("active: the only seed is this node"),
            (SeedKind::Others, Company::Stable) => tracing::info!(members, "active: joined"),
            (SeedKind::Others, Company::Nobody) => {
                let waited = self.identity.alone_after;
                tracing::warn!(
                    ?waited,
                    "active, but alone: no seed answers, nothing is replicated"
                );
            }
            (SeedKind::Others, Company::Unknown) => return,
        }
        self.says.state = MemberState::Active;
    }

    fn renew_view(&mut self) {
        let me = ViewMember {
            id: self.identity.id.clone(),
            incarnation: self.incarnation(),
            weight: self.says.weight,
            zone: Arc::clone(&self.says.zone),
            state: self.says.state,
        };
        let others = self.beliefs.peers().values().map(|peer| ViewMember {
            id: peer.id.clone(),
            incarnation: peer.incarnation,
            weight: peer.published.weight,
            zone: Arc::clone(&peer.published.zone),
            state: peer.published.state,
        });
        let view = View::new(std::iter::once(me).chain(others));
        if view != *self.view {
            self.view = Arc::new(view);
            // Also where a view comes back: what moved in between is not known to be placed.
            self.says.settled = 0;
        }
        self.says.view_hash = self.view.hash();
    }
}

/// Whom a joining node has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    /// It has to wait.
    Unknown,
    /// Nobody, for long enough.
    Nobody,
    /// The same members for long enough.
    Stable,
}

#[cfg(test)]
mod tests;
