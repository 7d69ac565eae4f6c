//! Sends: finds or dials the link, keeps within the limits, and serves the links there are.
//!
//! What to do is decided in [`crate::slots`], behind a lock that is never held across a wait; this
//! is the shell that dials, sends and waits. The invariant: whatever is asked for, no wait is
//! unbounded and no task starts but through [`Tasks`]. Nothing is sent twice: whether a call that
//! failed may be repeated is for its sender to say.

use crate::connection::{Close, Datagram, End, Link};
use crate::counters::Meters;
use crate::endpoint::Endpoint;
use crate::frame::{FRAME_BYTES_MAX, Frame};
use crate::incoming::Inbox;
use crate::slots::{Limits, Look, Notice, Slots};
use crate::socket::canonical;
use crate::stream::LinkError;
use crate::tasks::Tasks;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, timeout};

/// Bytes of calls that may be under way to one peer: nearly four full frames, which is what fills
/// 10 Gbit/s when a peer takes 13 ms to answer.
pub(crate) const CALL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a notice may wait for the peer; then it is old news.
const NOTICE_WAIT: Duration = Duration::from_secs(1);

/// Tries of a call that found a link which ended before anything was sent on it.
const TRIES_MAX: usize = 2;

/// Whom to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its mesh address.
    pub address: SocketAddr,
    /// Which node must answer there; `None` for a seed, of which only the address is known.
    pub node_id: Option<Arc<str>>,
}

impl Peer {
    /// With the address under which its slot is found.
    pub(crate) fn in_canonical_form(&self) -> Self {
        Self { address: canonical(self.address), node_id: self.node_id.clone() }
    }
}

/// How a notice travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// As a datagram, which may be lost, if it fits into one; else as [`Delivery::Stream`].
    Datagram,
    /// On a stream: it arrives unless the connection ends.
    Stream,
}

/// Why a call has no answer. "Sent" says whether the peer may have acted on it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CallError {
    /// No connection, and none to be had now: the dial failed, or one failed a moment ago. Not
    /// sent. Use another peer; try this one again later.
    #[error("cannot reach {address}: {why}")]
    Unreachable {
        /// The peer.
        address: SocketAddr,
        /// What the last dial ended with.
        why: String,
    },
    /// Nothing came from the peer for the time allowed. Perhaps sent. Use another peer.
    #[error("{address} is silent for {silence:?}")]
    Silent {
        /// The peer.
        address: SocketAddr,
        /// The time allowed.
        silence: Duration,
    },
    /// The call as a whole took longer than allowed. Perhaps sent.
    #[error("{address} has not answered within {deadline:?}")]
    Deadline {
        /// The peer.
        address: SocketAddr,
        /// The time allowed.
        deadline: Duration,
    },
    /// Another node answers at the address. Not sent. Ask membership who is where.
    #[error("{address} is node {proved}, not {expected}")]
    WrongNode {
        /// The peer.
        address: SocketAddr,
        /// Who was to be there.
        expected: Arc<str>,
        /// Who is.
        proved: Arc<str>,
    },
    /// As many calls or bytes as are allowed are under way to the peer, or wait there for its
    /// node. Not acted upon. The peer is alive: push back, and try again in a moment.
    #[error("too much is under way to {address}")]
    Busy {
        /// The peer.
        address: SocketAddr,
    },
    /// The frame's payload is over [`FRAME_BYTES_MAX`]. Not sent; never retry.
    #[error("a frame of {bytes} bytes is over the maximum of {FRAME_BYTES_MAX}")]
    FrameTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The connection ended before the answer came. Perhaps sent. A peer that restarted can be
    /// called again at once.
    #[error("the connection to {address} was lost: {why}")]
    Lost {
        /// The peer.
        address: SocketAddr,
        /// How it ended.
        why: String,
    },
    /// The peer's node took the call and gave no answer. Perhaps acted upon.
    #[error("{address} gave no answer")]
    Unanswered {
        /// The peer.
        address: SocketAddr,
    },
    /// One side does not understand the other's frame. Retrying is no use.
    #[error("{address} and this node do not understand each other: {why}")]
    Malformed {
        /// The peer.
        address: SocketAddr,
        /// What is wrong.
        why: String,
    },
    /// The transport was shut down, or the peer given up meanwhile. Do not retry.
    #[error("the connection to {address} was closed here")]
    Closed {
        /// The peer.
        address: SocketAddr,
    },
}

/// All peers.
pub(crate) struct Pool {
    endpoint: Endpoint,
    slots: Mutex<Slots>,
    inbox: Inbox,
    meters: Arc<Meters>,
    tasks: Tasks,
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint, inbox: Inbox, tasks: Tasks, seed: [u8; 32]) -> Arc<Self> {
        let meters = inbox.meters.clone();
        let slots = Mutex::new(Slots::new(seed));
        Arc::new(Self { endpoint, slots, inbox, meters, tasks })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Lets strangers in who prove to be members, until the endpoint closes.
    pub(crate) async fn accept(self: Arc<Self>) {
        while let Some(arrival) = self.endpoint.arrival().await {
            let pool = self.clone();
            self.tasks.spawn(async move {
                if let Some(link) = pool.endpoint.welcome(arrival).await {
                    pool.admit(link);
                }
            });
        }
    }

    pub(crate) async fn call(
        self: &Arc<Self>,
        peer: &Peer,
        frame: &Frame,
        silence_max: Duration,
    ) -> Result<Frame, CallError> {
        let address = peer.address;
        if frame.length() > FRAME_BYTES_MAX {
            return Err(CallError::FrameTooLarge { bytes: frame.length() });
        }
        for _ in 0..TRIES_MAX {
            let silent = |_| CallError::Silent { address, silence: silence_max };
            let (link, limits) = timeout(silence_max, self.link(peer)).await.map_err(silent)??;
            let busy = |_| CallError::Busy { address };
            let place = limits.enter(frame, link.bytes_per_second());
            let _place = timeout(silence_max, place).await.map_err(busy)?;
            match link.call(frame, silence_max).await {
                Ok(answer) => return Ok(answer),
                Err(LinkError::Unsent) => {}
                Err(error) => return Err(call_error(address, silence_max, error)),
            }
        }
        Err(call_error(address, silence_max, LinkError::Unsent))
    }

    /// Sends now if that needs no waiting, or queues and leaves it to a task. What fits into
    /// a datagram overtakes what waits: gossip behind streams on a full path would make a live node
    /// look dead.
    pub(crate) fn notify(self: &Arc<Self>, peer: &Peer, frame: Frame, delivery: Delivery) {
        let ready = match delivery {
            Delivery::Datagram => self.lock().link(peer.address),
            Delivery::Stream => None,
        };
        if let Some(link) = ready
            && check_node(&link, peer).is_ok()
        {
            match link.send_datagram(&frame) {
                Datagram::Sent => return,
                Datagram::Dropped => return self.meters.notices_dropped.add(1),
                Datagram::TooLarge => {}
            }
        }
        let notice = (peer.node_id.clone(), frame, delivery);
        let queued = self.lock().queue(peer.address, notice);
        self.meters.notices_dropped.add(queued.dropped_count);
        if queued.starts_flush {
            self.tasks.spawn(self.clone().flush(peer.address));
        }
    }

    /// Sends the notices of one peer, one after the other, until there are none.
    async fn flush(self: Arc<Self>, address: SocketAddr) {
        while let Some(notice) = self.next_notice(address) {
            let sent = timeout(NOTICE_WAIT, self.send_notice(address, notice)).await;
            if !matches!(sent, Ok(Datagram::Sent)) {
                self.meters.notices_dropped.add(1);
            }
        }
    }

    fn next_notice(&self, address: SocketAddr) -> Option<Notice> {
        self.lock().next_notice(address)
    }

    async fn send_notice(self: &Arc<Self>, address: SocketAddr, notice: Notice) -> Datagram {
        let (node_id, frame, delivery) = notice;
        let Ok((link, _)) = self.link(&Peer { address, node_id }).await else {
            return Datagram::Dropped;
        };
        if delivery == Delivery::Datagram {
            let sent = link.send_datagram(&frame);
            if sent != Datagram::TooLarge {
                return sent;
            }
        }
        match link.send_notice(&frame, NOTICE_WAIT).await {
            Ok(()) => Datagram::Sent,
            Err(_) => Datagram::Dropped,
        }
    }

    /// A link to the peer, dialled if there is none; takes as long as a dial.
    async fn link(self: &Arc<Self>, peer: &Peer) -> Result<(Arc<Link>, Arc<Limits>), CallError> {
        let address = peer.address;
        let mut look = self.lock().look(address, Instant::now());
        loop {
            match look {
                Look::Up(link, limits) => {
                    check_node(&link, peer)?;
                    return Ok((link, limits));
                }
                Look::Dial(changed) => {
                    self.tasks.spawn(self.clone().dial(address));
                    changed.await;
                }
                Look::Wait(changed) => changed.await,
                Look::No(error) => return Err(error),
            }
            look = self.lock().look_again(address, Instant::now());
        }
    }

    async fn dial(self: Arc<Self>, address: SocketAddr) {
        match self.endpoint.dial(address).await {
            Ok(link) => self.admit(link),
            Err(error) => {
                tracing::debug!(peer = %address, error = error.0, "dial failed");
                self.meters.dials_failed.add(1);
                self.lock().rest(address, error.0, Instant::now());
            }
        }
    }

    /// Makes a new link the one to use, and serves it until it ends.
    fn admit(self: &Arc<Self>, link: Link) {
        let link = Arc::new(link);
        if !self.lock().admit(&link) {
            link.close(Close::Gone);
            return;
        }
        let (address, member) = (link.peer.address, &link.peer.node_id);
        tracing::debug!(peer = %address, %member, opened = ?link.opened, "connected");
        let pool = self.clone();
        self.tasks.spawn(async move {
            let end = link.clone().serve(pool.inbox.clone()).await;
            pool.retire(&link, end);
        });
    }

    fn retire(&self, link: &Arc<Link>, end: End) {
        let (address, member) = (link.peer.address, &link.peer.node_id);
        tracing::debug!(peer = %address, %member, why = end.why, "connection ended");
        if end.was_accepted {
            self.lock().retire(link);
            return;
        }
        self.meters.dials_failed.add(1);
        if let Some(cause) = end.refusal {
            self.meters.refuse(address, cause, &end.why);
        }
        self.lock().retire_refused(link, end.why, Instant::now());
    }

    /// Closes the links to an address and forgets it. A later call dials it anew.
    pub(crate) fn close(&self, address: SocketAddr) {
        let (links, notice_count) = self.lock().give_up(address);
        self.meters.forget(address);
        self.meters.notices_dropped.add(notice_count);
        for link in links {
            link.close(Close::Gone);
        }
    }

    /// Closes links to peers whose certificate would not be accepted any more.
    pub(crate) fn close_distrusted(&self) {
        let links = self.lock().links();
        for link in links.iter().filter(|link| !self.endpoint.still_trusts(link)) {
            tracing::info!(peer = %link.peer.address, "its certificate is not trusted any more");
            link.close(Close::Distrusted);
        }
    }

    pub(crate) fn round_trip(&self, address: SocketAddr) -> Option<Duration> {
        Some(self.lock().link(address)?.round_trip())
    }

    /// Refuses all further calls; returns the longest round trip among the links.
    pub(crate) fn close_to_new(&self) -> Duration {
        let mut slots = self.lock();
        slots.close();
        slots.links().iter().map(|link| link.round_trip()).max().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the link's peer is the node that is wanted.
fn check_node(link: &Link, wanted: &Peer) -> Result<(), CallError> {
    let proved = &link.peer.node_id;
    match &wanted.node_id {
        Some(expected) if expected != proved => Err(CallError::WrongNode {
            address: wanted.address,
            expected: expected.clone(),
            proved: proved.clone(),
        }),
        _ => Ok(()),
    }
}

fn call_error(address: SocketAddr, silence: Duration, error: LinkError) -> CallError {
    match error {
        LinkError::Unsent => {
            CallError::Unreachable { address, why: "the connection ended at once".into() }
        }
        LinkError::Lost(why) => CallError::Lost { address, why },
        LinkError::Silent => CallError::Silent { address, silence },
        LinkError::Busy => CallError::Busy { address },
        LinkError::Unanswered => CallError::Unanswered { address },
        LinkError::Malformed(why) => CallError::Malformed { address, why },
    }
}
