//! Which links there are, and when to dial.
//!
//! One slot for each peer address: its links, whether it is being dialled or left alone for a
//! while, and the notices that wait. A link is dialled when something is to be sent and there is
//! none. Two nodes that dial each other at the same moment get two links, and either works for
//! both directions; a slot keeps one that each side opened, and the newest is used, since an older
//! one may be to a process that is gone. The invariant: at most one dial runs for an address, and
//! an address that membership gave up has neither slot nor link.
//!
//! The slots belong to [`Pool`], behind a lock that is never held across a wait. Bounded by
//! [`PEERS_MAX`], [`CALLS_MAX`], [`CALL_BYTES_MAX`] and [`NOTICES_MAX`]. Nothing is sent twice
//! here: whether a call that failed may be repeated is for its sender to say.

use crate::connection::{Close, Datagram, End, Link, LinkError, Opened};
use crate::counters::Meters;
use crate::endpoint::{CALL_STREAMS_MAX, Endpoint};
use crate::frame::{FRAME_BYTES_MAX, Frame};
use crate::incoming::Inbox;
use crate::tasks::Tasks;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Addresses that are kept at once. Clusters are designed for 100 nodes; idle ones make room.
const PEERS_MAX: usize = 1024;

/// Calls that may be under way to one peer: as many as it lets us open streams.
const CALLS_MAX: usize = CALL_STREAMS_MAX as usize;

/// Bytes of calls that may be under way to one peer: nearly four full frames, which is what fills
/// 10 Gbit/s when a peer takes 13 ms to answer.
pub(crate) const CALL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Notices that wait for one peer while it is dialled: some rounds of gossip, which repeats itself.
const NOTICES_MAX: usize = 32;

/// How long a notice may wait for the peer; then it is old news.
const NOTICE_WAIT: Duration = Duration::from_secs(1);

/// The pause after a first failed dial; it doubles up to [`PAUSE_MAX`], and is drawn between half
/// and the whole, so that peers of a node that restarts do not dial it in step.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause. A peer that comes back dials us anyway.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Whom to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its mesh address.
    pub address: SocketAddr,
    /// Which node must answer there; `None` for a seed, of which only the address is known.
    pub node_id: Option<Arc<str>>,
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

/// What may be under way to one peer.
struct Limits {
    calls: Semaphore,
    bytes: Semaphore,
}

enum Dial {
    Idle,
    Running,
    Resting { until: Instant, why: String },
}

/// What is known of one address.
struct Slot {
    /// At most one that each side opened, the newest last.
    links: Vec<Arc<Link>>,
    dial: Dial,
    /// Dials in a row that led to nothing.
    failures: u32,
    /// Wakes who waits for the dial.
    changed: Arc<Notify>,
    limits: Arc<Limits>,
    notices: VecDeque<(Option<Arc<str>>, Frame, Delivery)>,
    /// Whether a task is sending the notices.
    is_flushing: bool,
}

impl Slot {
    fn new() -> Self {
        let limits = Limits {
            calls: Semaphore::new(CALLS_MAX),
            bytes: Semaphore::new(CALL_BYTES_MAX),
        };
        Self {
            links: Vec::new(),
            dial: Dial::Idle,
            failures: 0,
            changed: Arc::default(),
            limits: Arc::new(limits),
            notices: VecDeque::new(),
            is_flushing: false,
        }
    }

    fn link(&self) -> Option<&Arc<Link>> {
        self.links.iter().rev().find(|link| link.is_open())
    }

    fn is_idle(&self) -> bool {
        self.link().is_none() && !self.is_flushing && !matches!(self.dial, Dial::Running)
    }
}

struct Slots {
    by_address: BTreeMap<SocketAddr, Slot>,
    random: StdRng,
    is_closed: bool,
}

/// What a sender finds in a slot.
enum Look {
    Up(Arc<Link>, Arc<Limits>),
    Dialling(OwnedNotified),
    No(CallError),
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
        let slots = Slots {
            by_address: BTreeMap::new(),
            random: StdRng::from_seed(seed),
            is_closed: false,
        };
        let meters = inbox.meters.clone();
        Arc::new(Self {
            endpoint,
            slots: Mutex::new(slots),
            inbox,
            meters,
            tasks,
        })
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
        if frame.payload.len() > FRAME_BYTES_MAX {
            return Err(CallError::FrameTooLarge {
                bytes: frame.payload.len(),
            });
        }
        let mut attempts_left = 2;
        loop {
            attempts_left -= 1;
            let silent = |_| CallError::Silent {
                address,
                silence: silence_max,
            };
            let (link, limits) = timeout(silence_max, self.link(peer))
                .await
                .map_err(silent)??;
            let _place = timeout(silence_max, limits.enter(frame))
                .await
                .map_err(|_| CallError::Busy { address })?;
            match link.call(frame, silence_max).await {
                Ok(answer) => return Ok(answer),
                // A link may end between being found and being used; nothing was sent.
                Err(LinkError::Unsent) if attempts_left > 0 => {}
                Err(error) => return Err(call_error(address, silence_max, error)),
            }
        }
    }

    /// Sends now if that needs no waiting, or queues and leaves it to a task.
    pub(crate) fn notify(self: &Arc<Self>, peer: &Peer, frame: Frame, delivery: Delivery) {
        let address = peer.address;
        let ready = {
            let mut slots = self.lock();
            let Some(slot) = self.slot(&mut slots, address) else {
                self.meters.notices_dropped.add(1);
                return;
            };
            slot.link()
                .filter(|_| slot.notices.is_empty() && !slot.is_flushing)
                .cloned()
        };
        if let Some(link) = ready
            && delivery == Delivery::Datagram
            && is_expected(&link, peer.node_id.as_ref())
        {
            match link.send_datagram(&frame) {
                Datagram::Sent => return,
                Datagram::Dropped => {
                    self.meters.notices_dropped.add(1);
                    return;
                }
                Datagram::TooLarge => {}
            }
        }
        self.queue(peer, frame, delivery);
    }

    fn queue(self: &Arc<Self>, peer: &Peer, frame: Frame, delivery: Delivery) {
        let mut slots = self.lock();
        let Some(slot) = self.slot(&mut slots, peer.address) else {
            self.meters.notices_dropped.add(1);
            return;
        };
        if slot.notices.len() == NOTICES_MAX {
            slot.notices.pop_front();
            self.meters.notices_dropped.add(1);
        }
        slot.notices
            .push_back((peer.node_id.clone(), frame, delivery));
        if !slot.is_flushing {
            slot.is_flushing = true;
            self.tasks.spawn(self.clone().flush(peer.address));
        }
    }

    /// Sends the notices of one peer, one after the other, until there are none.
    async fn flush(self: Arc<Self>, address: SocketAddr) {
        while let Some((node_id, frame, delivery)) = self.next_notice(address) {
            let peer = Peer { address, node_id };
            let sent = timeout(NOTICE_WAIT, self.send_notice(&peer, &frame, delivery)).await;
            if !matches!(sent, Ok(true)) {
                self.meters.notices_dropped.add(1);
            }
        }
    }

    fn next_notice(&self, address: SocketAddr) -> Option<(Option<Arc<str>>, Frame, Delivery)> {
        let mut slots = self.lock();
        let slot = slots.by_address.get_mut(&address)?;
        let notice = slot.notices.pop_front();
        slot.is_flushing = notice.is_some();
        notice
    }

    async fn send_notice(self: &Arc<Self>, peer: &Peer, frame: &Frame, by: Delivery) -> bool {
        let Ok((link, _)) = self.link(peer).await else {
            return false;
        };
        if by == Delivery::Datagram {
            match link.send_datagram(frame) {
                Datagram::Sent => return true,
                Datagram::Dropped => return false,
                Datagram::TooLarge => {}
            }
        }
        link.send_notice(frame, NOTICE_WAIT).await.is_ok()
    }

    /// A link to the peer, dialled if there is none.
    async fn link(self: &Arc<Self>, peer: &Peer) -> Result<(Arc<Link>, Arc<Limits>), CallError> {
        let address = peer.address;
        let closed = || CallError::Closed { address };
        {
            let mut slots = self.lock();
            self.slot(&mut slots, address).ok_or_else(closed)?;
        }
        loop {
            match self.look(address) {
                Look::Up(link, limits) => {
                    let expected = peer.node_id.as_ref();
                    if let Some(expected) = expected.filter(|_| !is_expected(&link, expected)) {
                        return Err(CallError::WrongNode {
                            address,
                            expected: expected.clone(),
                            proved: link.peer.node_id.clone(),
                        });
                    }
                    return Ok((link, limits));
                }
                Look::Dialling(changed) => changed.await,
                Look::No(error) => return Err(error),
            }
        }
    }

    fn look(self: &Arc<Self>, address: SocketAddr) -> Look {
        let mut slots = self.lock();
        let Some(slot) = slots.by_address.get_mut(&address) else {
            return Look::No(CallError::Closed { address });
        };
        if let Some(link) = slot.link() {
            return Look::Up(link.clone(), slot.limits.clone());
        }
        match &slot.dial {
            Dial::Resting { until, why } if Instant::now() < *until => {
                return Look::No(CallError::Unreachable {
                    address,
                    why: why.clone(),
                });
            }
            Dial::Running => {}
            Dial::Idle | Dial::Resting { .. } => {
                slot.dial = Dial::Running;
                self.tasks.spawn(self.clone().dial(address));
            }
        }
        Look::Dialling(slot.changed.clone().notified_owned())
    }

    async fn dial(self: Arc<Self>, address: SocketAddr) {
        match self.endpoint.dial(address).await {
            Ok(link) => self.admit(link),
            Err(error) => {
                self.meters.dials_failed.add(1);
                tracing::debug!(peer = %address, error = error.0, "dial failed");
                self.rest(address, error.0);
            }
        }
    }

    /// Leaves an address alone for a while.
    fn rest(&self, address: SocketAddr, why: String) {
        let mut guard = self.lock();
        let slots = &mut *guard;
        let Some(slot) = slots.by_address.get_mut(&address) else {
            return;
        };
        let doublings = slot.failures.min(16);
        slot.failures = slot.failures.saturating_add(1);
        let pause = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
        let pause = pause.mul_f64(slots.random.random_range(0.5..1.0));
        slot.dial = Dial::Resting {
            until: Instant::now() + pause,
            why,
        };
        slot.changed.notify_waiters();
    }

    /// Makes a new link the one to use, and starts to serve it.
    fn admit(self: &Arc<Self>, link: Link) {
        let link = Arc::new(link);
        let address = link.peer.address;
        let is_wanted = {
            let mut slots = self.lock();
            // Whoever we dialled may have been given up meanwhile; who dials us is news.
            let slot = match link.opened {
                Opened::ByUs => slots.by_address.get_mut(&address),
                Opened::ByPeer => self.slot(&mut slots, address),
            };
            slot.map(|slot| slot.admit(&link)).is_some()
        };
        if !is_wanted {
            link.close(Close::Gone);
            return;
        }
        tracing::debug!(peer = %address, member = %link.peer.node_id, by = ?link.opened, "connected");
        let pool = self.clone();
        self.tasks.spawn(async move {
            let end = link.clone().serve(pool.inbox.clone()).await;
            pool.retire(&link, end);
        });
    }

    fn retire(&self, link: &Arc<Link>, end: End) {
        let address = link.peer.address;
        tracing::debug!(peer = %address, member = %link.peer.node_id, why = end.why, "connection ended");
        if let Some(cause) = end.refusal {
            self.meters.refuse(address, cause, &end.why);
        }
        if let Some(slot) = self.lock().by_address.get_mut(&address) {
            slot.links.retain(|other| !Arc::ptr_eq(other, link));
            if end.was_accepted {
                slot.failures = 0;
                return;
            }
        }
        if !end.was_accepted {
            self.meters.dials_failed.add(1);
            self.rest(address, end.why);
        }
    }

    /// Closes the links to an address and forgets it. A later call dials it anew.
    pub(crate) fn close(&self, address: SocketAddr) {
        let slot = self.lock().by_address.remove(&address);
        self.meters.forget(address);
        if let Some(slot) = slot {
            self.meters.notices_dropped.add(slot.notices.len());
            slot.changed.notify_waiters();
            slot.links.iter().for_each(|link| link.close(Close::Gone));
        }
    }

    /// Closes links to peers whose certificate would not be accepted any more.
    pub(crate) fn close_distrusted(&self) {
        let links: Vec<_> = self
            .lock()
            .by_address
            .values()
            .flat_map(|slot| slot.links.clone())
            .collect();
        for link in links
            .iter()
            .filter(|link| !self.endpoint.still_trusts(link))
        {
            tracing::info!(peer = %link.peer.address, "certificate not trusted any more");
            link.close(Close::Distrusted);
        }
    }

    pub(crate) fn round_trip(&self, address: SocketAddr) -> Option<Duration> {
        self.lock()
            .by_address
            .get(&address)?
            .link()
            .map(|link| link.round_trip())
    }

    /// Refuses all further calls; returns the longest round trip among the open links.
    pub(crate) fn close_to_new(&self) -> Duration {
        let mut slots = self.lock();
        slots.is_closed = true;
        let links = slots.by_address.values().filter_map(Slot::link);
        links
            .map(|link| link.round_trip())
            .max()
            .unwrap_or_default()
    }

    /// The slot of an address, made if there is none and there is room.
    fn slot<'a>(&self, slots: &'a mut Slots, address: SocketAddr) -> Option<&'a mut Slot> {
        if slots.is_closed {
            return None;
        }
        if slots.by_address.len() >= PEERS_MAX && !slots.by_address.contains_key(&address) {
            slots.by_address.retain(|address, slot| {
                if slot.is_idle() {
                    self.meters.forget(*address);
                }
                !slot.is_idle()
            });
            if slots.by_address.len() >= PEERS_MAX {
                return None;
            }
        }
        self.meters.know(address);
        Some(slots.by_address.entry(address).or_insert_with(Slot::new))
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn admit(&mut self, link: &Arc<Link>) {
        // A peer opens a second link only when it has lost the first: it restarted, or saw it end.
        for old in self.links.iter().filter(|old| old.opened == link.opened) {
            old.close(Close::Replaced);
        }
        self.links.retain(|old| old.opened != link.opened);
        self.links.push(link.clone());
        if link.opened == Opened::ByUs || !matches!(self.dial, Dial::Running) {
            self.dial = Dial::Idle;
        }
        self.changed.notify_waiters();
    }
}

impl Limits {
    /// Waits for a call's place and for room for its bytes, which is given back when the result is
    /// dropped.
    async fn enter(
        &self,
        frame: &Frame,
    ) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
        let bytes = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
        // Neither semaphore is ever closed.
        (
            self.calls.acquire().await.ok(),
            self.bytes.acquire_many(bytes).await.ok(),
        )
    }
}

fn is_expected(link: &Link, expected: Option<&Arc<str>>) -> bool {
    expected.is_none_or(|id| *id == link.peer.node_id)
}

fn call_error(address: SocketAddr, silence: Duration, error: LinkError) -> CallError {
    match error {
        LinkError::Unsent => CallError::Unreachable {
            address,
            why: "the connection ended at once".into(),
        },
        LinkError::Lost(why) => CallError::Lost { address, why },
        LinkError::Silent => CallError::Silent { address, silence },
        LinkError::Busy => CallError::Busy { address },
        LinkError::Unanswered => CallError::Unanswered { address },
        LinkError::Malformed(why) => CallError::Malformed { address, why },
    }
}
