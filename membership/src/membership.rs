//! The shell: time, bytes and tasks around one [`Member`].
//!
//! What others hold is [`Membership`]; what they and the two tasks (`turns`, `seeds`) have in
//! common is `Shared`, around the one member.
//!
//! The invariant: whoever changes the member publishes what follows (peers, then placement, then
//! status) before it lets go of the lock, so that no reader sees a view older than this node's own
//! state. The lock is held for a table's computation at most, and never across an await.
//!
//! It opens no port: bytes come and go through the [`Carrier`]. What is not sent at once is
//! dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::gossip::Wire;
use crate::member::{Ended, Identity, Member, PeerInfo, Status, Update};
use crate::placement::Placement;
use crate::seeds::Seeds;
use crate::settings::{Settings, StartError, WallClock};
use crate::stand_still::StandStill;
use crate::starts::StartRecord;
use crate::turns::{Turns, look_up_seeds};
use crate::view::NodeId;

/// Gossip with one peer because its view differs: at most so often.
const GOSSIP_WITH_EVERY: Duration = Duration::from_millis(50);

/// Peers that may wait to be gossiped with at once; a mesh of 100 with views that all differ.
const GOSSIP_WITH_QUEUE: usize = 128;

/// How gossip travels. Addresses are mesh addresses of peers; both queues are bounded by whoever
/// makes them, and what does not fit is dropped.
#[derive(Debug)]
pub struct Carrier {
    /// Messages to peers.
    pub outgoing: mpsc::Sender<(SocketAddr, Bytes)>,
    /// Messages from peers, each with the address at which its sender is answered.
    pub incoming: mpsc::Receiver<(SocketAddr, Bytes)>,
}

/// A running member of the mesh. Dropping it is a crash: nobody is told.
pub struct Membership {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.shared.status.borrow();
        formatter.debug_struct("Membership").field("status", &*status).finish_non_exhaustive()
    }
}

/// What the tasks and the holders of a membership have in common.
pub(crate) struct Shared {
    member: Mutex<Member>,
    stand_still: Mutex<StandStill>,
    pub(crate) wall_clock: WallClock,
    pub(crate) wire: Arc<Wire>,
    peers: watch::Sender<Arc<BTreeMap<NodeId, PeerInfo>>>,
    placement: watch::Sender<Arc<Placement>>,
    status: watch::Sender<Status>,
    /// There is something to read or to say.
    pub(crate) wake: Arc<Notify>,
    pub(crate) stop: watch::Sender<bool>,
    gossip_with: mpsc::Sender<SocketAddr>,
    /// When a peer was last asked for because its view differs; pruned as it grows.
    asked: Mutex<BTreeMap<SocketAddr, Instant>>,
}

impl Membership {
    /// Starts to join. Returns at once: [`Membership::state`] tells how it goes.
    ///
    /// # Errors
    /// A setting cannot be gossiped, or the record of starts cannot be kept. Nothing was started.
    pub async fn start(settings: Settings, carrier: Carrier) -> Result<Self, StartError> {
        settings.check()?;
        let record = open_record(&settings)?;
        let (now, wall) = (Instant::now(), (settings.wall_clock)());
        let seeds = Seeds::new(&settings.seeds, settings.mesh_address);
        let identity = Identity {
            id: settings.node_id.clone(),
            mesh_address: settings.mesh_address,
            alone_after: settings.alone_after,
        };
        let says = settings.published();
        let member = Member::new(now, identity, record.generation, seeds.kind(), says);
        let (gossip_with, requests) = mpsc::channel(GOSSIP_WITH_QUEUE);
        let shared = Arc::new(Shared {
            peers: watch::Sender::new(Arc::default()),
            placement: watch::Sender::new(Arc::new(Placement::new(Arc::clone(member.view())))),
            status: watch::Sender::new(member.status()),
            member: Mutex::new(member),
            stand_still: Mutex::new(StandStill::new(now, wall)),
            wall_clock: settings.wall_clock,
            wire: Arc::new(Wire::new(carrier.outgoing, carrier.incoming)),
            wake: Arc::default(),
            stop: watch::Sender::new(false),
            gossip_with,
            asked: Mutex::default(),
        });
        let (found, lookups) = mpsc::channel(1);
        let turns = Turns::new(Arc::clone(&shared), record, settings.starts, settings.seed);
        let mut tasks = JoinSet::new();
        tasks.spawn(turns.run(requests, lookups));
        tasks.spawn(look_up_seeds(seeds, Arc::clone(&shared), found));
        Ok(Self { shared, tasks: Mutex::new(tasks) })
    }

    /// Who holds which slot; a new value for every view.
    #[must_use]
    pub fn placement(&self) -> watch::Receiver<Arc<Placement>> {
        self.shared.placement.subscribe()
    }

    /// All other members and what they say, the joining and leaving ones too; the dead are gone. A
    /// member of the placement is here before it is there.
    #[must_use]
    pub fn peers(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, PeerInfo>>> {
        self.shared.peers.subscribe()
    }

    /// How this node stands.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Tells the others news about this node, within a round of gossip or a few.
    pub fn publish(&self, update: Update) {
        self.shared.change(|member| member.publish(update));
        if update.settled.is_some() {
            self.shared.wake.notify_one();
        }
    }

    /// Leaves: this node's own view changes before this returns, the others are told at once. It
    /// goes on to gossip until [`Membership::shutdown`].
    pub fn leave(&self) {
        self.shared.change(Member::leave);
        self.shared.wake.notify_one();
    }

    /// Gossips with a peer at once, because it showed another view; at most every 50 ms and peer.
    pub fn gossip_with(&self, address: SocketAddr) {
        let now = Instant::now();
        let recent = |asked: &Instant| now < *asked + GOSSIP_WITH_EVERY;
        let mut asked = lock(&self.shared.asked);
        if asked.get(&address).is_some_and(recent) {
            return;
        }
        if asked.len() >= GOSSIP_WITH_QUEUE {
            asked.retain(|_, asked| recent(asked));
        }
        if self.shared.gossip_with.try_send(address).is_ok() {
            asked.insert(address, now);
        }
    }

    /// To be called at the beginning of every turn of a loop that acts on a view: if this process
    /// stood still since membership's own loop came round, the incarnation is a new one, in
    /// [`Membership::state`] and [`Membership::placement`] too, before this returns true.
    #[must_use]
    pub fn stood_still(&self) -> bool {
        self.shared.stood_still()
    }

    /// Gossip messages that were refused before they were read.
    #[must_use]
    pub fn gossip_refused(&self) -> u64 {
        self.shared.wire.refused()
    }

    /// Returns when this node cannot be a member, and why: its owner ends the node. Cancel-safe.
    pub async fn ended(&self) -> Ended {
        let mut status = self.state();
        let refused = status.wait_for(|status| status.refused.is_some()).await;
        match refused.ok().and_then(|status| status.refused.clone()) {
            Some(ended) => ended,
            // The sender lives as long as this does.
            None => std::future::pending().await,
        }
    }

    /// Ends gossip and both tasks, in order: the next start does not count this one as crashed.
    pub async fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
    }
}

impl Shared {
    /// Changes the member and publishes what follows.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Member) -> T) -> T {
        let mut member = lock(&self.member);
        let outcome = change(&mut member);
        let peers = member.peers();
        self.peers.send_if_modified(|known| {
            let changed = **known != *peers;
            if changed {
                *known = Arc::new(peers.clone());
            }
            changed
        });
        let view = member.view();
        self.placement.send_if_modified(|placement| {
            let changed = placement.view().hash() != view.hash();
            if changed {
                *placement = Arc::new(placement.next(Arc::clone(view)));
            }
            changed
        });
        let status = member.status();
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            if changed {
                *known = status;
            }
            changed
        });
        outcome
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(crate) fn knows_nobody(&self) -> bool {
        self.peers.borrow().is_empty()
    }

    /// Raises the incarnation if this process stood still since the loop came round.
    pub(crate) fn stood_still(&self) -> bool {
        self.look_at_clocks(false)
    }

    /// The loop has come round.
    pub(crate) fn came_round(&self) {
        self.look_at_clocks(true);
    }

    fn look_at_clocks(&self, comes_round: bool) -> bool {
        let (now, wall) = (Instant::now(), (self.wall_clock)());
        // Held until the incarnation is raised: nobody else may pass before.
        let mut stand_still = lock(&self.stand_still);
        let Some(jump) = stand_still.noticed(now, wall) else {
            if comes_round {
                stand_still.turn(now, wall);
            }
            return false;
        };
        self.change(|member| member.on_stand_still(now));
        tracing::warn!(?jump, "this process stood still, or its clock was set");
        self.wake.notify_one();
        true
    }
}

/// The record of this start, written before its generation is used.
fn open_record(settings: &Settings) -> Result<StartRecord, StartError> {
    let wall = (settings.wall_clock)();
    let Some(store) = &settings.starts else {
        return Ok(StartRecord::default().next_start(wall));
    };
    let last = store.load().map_err(|source| StartError::Starts { attempt: "read", source })?;
    let record = last.unwrap_or_default().next_start(wall);
    store.store(record).map_err(|source| StartError::Starts { attempt: "write", source })?;
    Ok(record)
}

/// A panic while a lock was held leaves whole values behind: each section changes one thing at a
/// time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
