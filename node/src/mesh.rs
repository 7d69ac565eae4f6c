//! Where membership meets transport: who the peers are, and what frames between them mean.
//!
//! Membership and transport know nothing of each other; here gossip becomes frames and frames
//! become gossip, Holds and Dones. The invariant: a frame counts as a member's only when the
//! certificate proves that member's id, so nobody answers for somebody else. Bounds: transport's on
//! frames and streams, [`GOSSIP_MAX`] messages either way, of which the newest are dropped.

use crate::assemble::Shards;
use crate::frame::{self, Done, DoneTrace, Explain, ExplainReply, Hold, HoldReply, Sender, kind};
use crate::shard::{PeerStanding, Standing};
use crate::spans::TraceId;
use crate::tasks::Tasks;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracemesh_membership::{Carrier, Membership, NodeId, PeerInfo, Placement, Status};
use tracemesh_transport::{
    CallError, Delivery, Frame, Incoming, Peer, Proved, Received, Responder, Transport,
};

/// Gossip messages that wait in each direction; gossip repeats itself.
pub const GOSSIP_MAX: usize = 256;

/// A peer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Gossip knows no such member; it may come back.
    #[error("{0} is no member")]
    NoMember(NodeId),
    /// Transport has no answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The answer makes no sense.
    #[error("reply of {peer}: {source}")]
    Reply {
        /// Who answered.
        peer: NodeId,
        /// What is wrong with it.
        source: frame::FrameError,
    },
}

/// The other members, as the stages of this node see them; clones share everything.
#[derive(Clone)]
pub struct Peers {
    me: NodeId,
    transport: Transport,
    membership: Arc<Membership>,
    placement: watch::Receiver<Arc<Placement>>,
    members: watch::Receiver<Arc<BTreeMap<NodeId, PeerInfo>>>,
    status: watch::Receiver<Status>,
}

/// Tells when something in the mesh changed.
pub struct Changes {
    placement: watch::Receiver<Arc<Placement>>,
    members: watch::Receiver<Arc<BTreeMap<NodeId, PeerInfo>>>,
    status: watch::Receiver<Status>,
}

impl Changes {
    /// Resolves after the next change; never once membership has ended. Cancel-safe.
    pub async fn changed(&mut self) {
        let changed = tokio::select! {
            biased;
            changed = self.placement.changed() => changed,
            changed = self.status.changed() => changed,
            changed = self.members.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending().await
        }
    }

    /// Whether there was a change since this was last asked or waited for.
    pub fn have_come(&mut self) -> bool {
        let placement = self.placement.has_changed().unwrap_or(false);
        let status = self.status.has_changed().unwrap_or(false);
        let members = self.members.has_changed().unwrap_or(false);
        self.placement.mark_unchanged();
        self.status.mark_unchanged();
        self.members.mark_unchanged();
        placement || status || members
    }
}

impl Peers {
    /// The peers that `membership` knows, reached over `transport`.
    pub fn new(me: NodeId, transport: Transport, membership: Arc<Membership>) -> Self {
        Self {
            me,
            transport,
            placement: membership.placement(),
            members: membership.peers(),
            status: membership.state(),
            membership,
        }
    }

    /// This node.
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// The present placement.
    pub fn placement(&self) -> Arc<Placement> {
        Arc::clone(&self.placement.borrow())
    }

    /// How this node stands in the mesh.
    pub fn standing(&self) -> Standing {
        let (members, status) = (self.members.borrow(), self.status.borrow());
        let peer = |peer: &PeerInfo| PeerStanding {
            incarnation: peer.incarnation,
            state: peer.published.state,
            view_hash: peer.published.view_hash,
            settled: peer.published.settled,
        };
        Standing {
            placement: self.placement(),
            state: status.state,
            settled: status.settled,
            peers: members.iter().map(|(id, info)| (id.clone(), peer(info))).collect(),
        }
    }

    /// Whether this node has settled in its view.
    pub fn has_settled(&self) -> bool {
        self.status.borrow().settled == self.placement.borrow().view().hash()
    }

    /// Whether this process stood still since it last looked; it has a new incarnation then. To be
    /// asked before acting on a view (PROTOCOL.md, M3).
    pub fn stood_still(&self) -> bool {
        self.membership.stood_still()
    }

    /// A way to wait for the next change.
    pub fn changes(&self) -> Changes {
        Changes {
            placement: self.placement.clone(),
            members: self.members.clone(),
            status: self.status.clone(),
        }
    }

    /// All members but this one, by id.
    pub fn members(&self) -> Arc<BTreeMap<NodeId, PeerInfo>> {
        Arc::clone(&self.members.borrow())
    }

    /// Own state and incarnation.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// What frames say of this node.
    pub fn sender(&self) -> Sender {
        let incarnation = self.status.borrow().incarnation;
        Sender {
            view_hash: self.placement.borrow().view().hash(),
            generation: incarnation.generation,
            epoch: incarnation.epoch,
        }
    }

    /// Asks a peer to hold spans; waits for its answer at most `deadline`, and less when it makes
    /// no progress for `silence`.
    pub async fn hold(
        &self,
        target: &NodeId,
        hold: Hold,
        silence: Duration,
        deadline: Duration,
    ) -> Result<HoldReply, PeerError> {
        let peer = self.peer(target).ok_or_else(|| PeerError::NoMember(target.clone()))?;
        let (payload, rest) = frame::encode_hold(hold);
        let frame = Frame { rest, ..Frame::new(kind::HOLD, payload) };
        let reply = self.transport.call(&peer, frame, silence, deadline).await?;
        let reply: HoldReply = frame::decode(reply.payload)
            .map_err(|source| PeerError::Reply { peer: target.clone(), source })?;
        self.compare_views(reply.sender.view_hash, peer.address);
        Ok(reply)
    }

    /// Tells a peer that spans became done; it asks if this gets lost.
    pub fn done(&self, target: &NodeId, traces: Vec<DoneTrace>) {
        let Some(peer) = self.peer(target) else { return };
        let done = Done { sender: self.sender(), traces };
        let frame = Frame::new(kind::DONE, frame::encode(&done));
        self.transport.notify(&peer, frame, Delivery::Stream);
    }

    /// Asks a peer what it knows of a trace; waits for its answer at most `deadline`.
    pub async fn explain(
        &self,
        target: &NodeId,
        trace_id: TraceId,
        deadline: Duration,
    ) -> Result<ExplainReply, PeerError> {
        let peer = self.peer(target).ok_or_else(|| PeerError::NoMember(target.clone()))?;
        let explain = Explain { sender: self.sender(), trace_id: frame::trace_id_bytes(trace_id) };
        let frame = Frame::new(kind::EXPLAIN, frame::encode(&explain));
        let reply = self.transport.call(&peer, frame, deadline, deadline).await?;
        frame::decode(reply.payload)
            .map_err(|source| PeerError::Reply { peer: target.clone(), source })
    }

    fn peer(&self, id: &NodeId) -> Option<Peer> {
        let members = self.members.borrow();
        let address = members.get(id)?.mesh_address;
        Some(Peer { address, node_id: Some(Arc::from(id.as_str())) })
    }

    /// Views that differ are a reason to gossip at once.
    fn compare_views(&self, view_hash: u64, address: SocketAddr) {
        if view_hash != 0 && view_hash != self.placement.borrow().view().hash() {
            self.membership.gossip_with(address);
        }
    }
}

/// The two ends of gossip: membership's, and the one that [`carry`] moves to and from transport.
pub fn gossip_channels() -> (Carrier, Gossip) {
    let (outgoing, to_send) = mpsc::channel(GOSSIP_MAX);
    let (received, incoming) = mpsc::channel(GOSSIP_MAX);
    (Carrier { outgoing, incoming }, Gossip { to_send, received })
}

/// Transport's end of gossip.
pub struct Gossip {
    to_send: mpsc::Receiver<(SocketAddr, Bytes)>,
    received: mpsc::Sender<(SocketAddr, Bytes)>,
}

/// Whom frames about spans are for; clones share everything.
#[derive(Clone)]
pub struct Handlers {
    shards: Shards,
    peers: Peers,
    /// Frames that are being answered.
    answering: TaskTracker,
}

impl Handlers {
    /// What answers frames about spans.
    pub fn new(shards: Shards, peers: Peers) -> Self {
        Self { shards, peers, answering: TaskTracker::new() }
    }

    /// Waits until every frame that was taken is answered, or never will be.
    pub async fn answered(&self) {
        self.answering.close();
        self.answering.wait().await;
        self.answering.reopen();
    }
}

/// Moves what arrives to where it belongs.
pub fn carry(
    transport: &Transport,
    incoming: Incoming,
    gossip: Gossip,
    tasks: &Tasks,
) -> watch::Sender<Option<Handlers>> {
    let Gossip { to_send, received } = gossip;
    let (transport, stop) = (transport.clone(), tasks.stopping());
    tasks.spawn("gossip out", async move {
        let _ = stop.run_until_cancelled(send_gossip(transport, to_send)).await;
    });
    let (handlers, taken) = watch::channel(None);
    tasks.spawn("frames in", receive(incoming, received, taken, tasks.clone()));
    handlers
}

async fn send_gossip(transport: Transport, mut to_send: mpsc::Receiver<(SocketAddr, Bytes)>) {
    while let Some((address, payload)) = to_send.recv().await {
        let peer = Peer { address, node_id: None };
        let frame = Frame::new(kind::GOSSIP, payload);
        transport.notify(&peer, frame, Delivery::Datagram);
    }
}

async fn receive(
    mut incoming: Incoming,
    gossip: mpsc::Sender<(SocketAddr, Bytes)>,
    handlers: watch::Receiver<Option<Handlers>>,
    tasks: Tasks,
) {
    let stop = tasks.stopping();
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = incoming.next() => received,
        };
        // Counted while nobody can take the handlers away: see [`Handlers::answered`].
        let count = |handlers: &Handlers| (handlers.clone(), handlers.answering.token());
        let handlers = handlers.borrow().as_ref().map(count);
        match (received, handlers) {
            (None, _) => return,
            (Some(Received::Notice { from, frame }), _) if frame.kind == kind::GOSSIP => {
                // A full queue drops the message: the next round says the same.
                let _ = gossip.try_send((from.address, frame.payload));
            }
            (Some(Received::Notice { from, frame }), Some((Handlers { shards, peers, .. }, _)))
                if frame.kind == kind::DONE =>
            {
                on_done(&shards, &peers, &from, frame);
            }
            (
                Some(Received::Call { from, frame, respond }),
                Some((Handlers { shards, peers, .. }, counted)),
            ) if frame.kind == kind::HOLD => {
                tasks.spawn("hold", async move {
                    on_hold(shards, peers, from, frame, respond).await;
                    drop(counted);
                });
            }
            (
                Some(Received::Call { from, frame, respond }),
                Some((Handlers { shards, peers, .. }, _)),
            ) if frame.kind == kind::EXPLAIN => {
                tasks.spawn("explain", on_explain(shards, peers, from, frame, respond));
            }
            (Some(Received::Notice { from, frame } | Received::Call { from, frame, .. }), _) => {
                tracing::debug!(peer = %from.address, kind = frame.kind, "frame not understood");
            }
        }
    }
}

fn on_done(shards: &Shards, peers: &Peers, from: &Proved, frame: Frame) {
    let done: Done = match frame::decode(frame.payload) {
        Ok(done) => done,
        Err(error) => {
            tracing::debug!(peer = %from.node_id, %error, "refused a Done");
            return;
        }
    };
    peers.compare_views(done.sender.view_hash, from.address);
    if let Err(error) = shards.on_done(&done.traces) {
        tracing::debug!(peer = %from.node_id, %error, "refused a Done");
    }
}

async fn on_hold(shards: Shards, peers: Peers, from: Proved, frame: Frame, respond: Responder) {
    let held = match frame::decode::<Hold>(frame.payload) {
        Ok(hold) => {
            peers.compare_views(hold.sender.view_hash, from.address);
            shards.on_hold(hold).await
        }
        Err(error) => Err(error.into()),
    };
    match held {
        Ok(reply) => {
            respond.send(Frame::new(kind::HOLD, frame::encode(&reply)));
        }
        // No answer is the safe answer: the sender routes around this node.
        Err(error) => tracing::debug!(peer = %from.node_id, %error, "refused a Hold"),
    }
}

async fn on_explain(shards: Shards, peers: Peers, from: Proved, frame: Frame, respond: Responder) {
    let told = async {
        let explain: Explain = frame::decode(frame.payload)?;
        peers.compare_views(explain.sender.view_hash, from.address);
        shards.tell(frame::trace_id(&explain.trace_id)?).await
    };
    match told.await {
        Ok(told) => {
            let reply = ExplainReply { sender: peers.sender(), told };
            respond.send(Frame::new(kind::EXPLAIN, frame::encode(&reply)));
        }
        Err(error) => tracing::debug!(peer = %from.node_id, %error, "refused a question"),
    }
}
