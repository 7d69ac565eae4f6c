//! What is known of each peer address: its links, whether to dial it, what waits for it.
//!
//! Two nodes that dial each other at the same moment get two links, and either works for both
//! directions; a slot keeps one that each side opened, and the newest is used, since an older one
//! may be to a process that is gone. The invariants: at most one dial runs for an address, and an
//! address that was given up has neither slot nor link. Dials that lead to nothing are followed by
//! pauses that double, with jitter.
//!
//! Decides and does nothing: time is passed in, what is to be done is returned, [`crate::pool`]
//! owns it and does it. Bounded by [`PEERS_MAX`] slots with [`NOTICES_MAX`] notices each.

use crate::connection::{Close, Link, Opened};
use crate::endpoint::CALL_STREAMS_MAX;
use crate::frame::Frame;
use crate::pool::{CALL_BYTES_MAX, CallError, Delivery};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Addresses that are kept at once. Clusters are designed for 100 nodes; idle ones make room.
const PEERS_MAX: usize = 1024;

/// Calls that may be under way to one peer: as many as it lets us open streams.
const CALLS_MAX: usize = CALL_STREAMS_MAX as usize;

/// Notices that wait for one peer while it is dialled: some rounds of gossip, which repeats itself.
const NOTICES_MAX: usize = 32;

/// The pause after a first failed dial; it doubles up to [`PAUSE_MAX`], and is drawn between half
/// and the whole, so that peers of a node that restarts do not dial it in step.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause. A peer that comes back dials us anyway.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What may be under way to one peer.
pub(crate) struct Limits {
    calls: Semaphore,
    bytes: Semaphore,
}

impl Limits {
    fn new() -> Self {
        Self { calls: Semaphore::new(CALLS_MAX), bytes: Semaphore::new(CALL_BYTES_MAX) }
    }

    /// Waits for a call's place and for room for its bytes, which are given back when the result
    /// is dropped. On a path of so many bytes a second that what is let through would take longer
    /// than a second, bytes count as many times more: a call that waits for longer is given up by
    /// its caller and made again, and with enough of those none is ever answered.
    pub(crate) async fn enter(
        &self,
        frame: &Frame,
        bytes_per_second: u64,
    ) -> [Option<SemaphorePermit<'_>>; 2] {
        let all = CALL_BYTES_MAX as u64;
        let bytes = frame.length() as u64 * all / bytes_per_second.clamp(1, all);
        let bytes = u32::try_from(bytes.min(all)).unwrap_or(u32::MAX);
        // Neither semaphore is ever closed, so both are acquired.
        [self.calls.acquire().await.ok(), self.bytes.acquire_many(bytes).await.ok()]
    }
}

/// Whether an address is being dialled.
enum Dial {
    Idle,
    Running,
    Resting { until: Instant, why: String },
}

/// A notice that waits, with the node that it is for.
pub(crate) type Notice = (Option<Arc<str>>, Frame, Delivery);

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
    notices: VecDeque<Notice>,
    /// Whether a task is sending the notices.
    is_flushing: bool,
}

/// What a sender finds.
pub(crate) enum Look {
    /// A link to use.
    Up(Arc<Link>, Arc<Limits>),
    /// Nothing yet: the caller has to dial, then wait.
    Dial(OwnedNotified),
    /// Nothing yet: somebody dials.
    Wait(OwnedNotified),
    /// Nothing now.
    No(CallError),
}

/// What to do after a notice was queued.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Notices that had to go.
    pub(crate) dropped_count: usize,
    /// Whether the caller has to start sending what waits.
    pub(crate) starts_flush: bool,
}

/// All peer addresses.
pub(crate) struct Slots {
    by_address: BTreeMap<SocketAddr, Slot>,
    random: StdRng,
    is_closed: bool,
}

impl Slots {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        let random = StdRng::from_seed(seed);
        Self { by_address: BTreeMap::new(), random, is_closed: false }
    }

    /// How to reach an address; makes its slot.
    pub(crate) fn look(&mut self, address: SocketAddr, now: Instant) -> Look {
        match self.slot(address) {
            Ok(slot) => slot.look(address, now),
            Err(error) => Look::No(error),
        }
    }

    /// Like [`Slots::look`], but an address that was given up meanwhile stays so.
    pub(crate) fn look_again(&mut self, address: SocketAddr, now: Instant) -> Look {
        match self.by_address.get_mut(&address) {
            Some(slot) if !self.is_closed => slot.look(address, now),
            _ => Look::No(CallError::Closed { address }),
        }
    }

    /// The link to an address, without a wish for one.
    pub(crate) fn link(&self, address: SocketAddr) -> Option<Arc<Link>> {
        self.by_address.get(&address)?.link().cloned()
    }

    /// Every link, in the order of addresses.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.by_address.values().flat_map(|slot| slot.links.iter().cloned()).collect()
    }

    /// Queues a notice; the oldest goes when there are too many.
    pub(crate) fn queue(&mut self, address: SocketAddr, notice: Notice) -> Queued {
        let Ok(slot) = self.slot(address) else {
            return Queued { dropped_count: 1, starts_flush: false };
        };
        let mut queued = Queued::default();
        if slot.notices.len() == NOTICES_MAX {
            slot.notices.pop_front();
            queued.dropped_count = 1;
        }
        slot.notices.push_back(notice);
        queued.starts_flush = !slot.is_flushing;
        slot.is_flushing = true;
        queued
    }

    /// The next notice for who sends them, which ends when there is none.
    pub(crate) fn next_notice(&mut self, address: SocketAddr) -> Option<Notice> {
        let slot = self.by_address.get_mut(&address)?;
        let notice = slot.notices.pop_front();
        slot.is_flushing = notice.is_some();
        notice
    }

    /// Makes a new link the one to use; false when nobody wants it.
    #[must_use]
    pub(crate) fn admit(&mut self, link: &Arc<Link>) -> bool {
        let address = link.peer.address;
        let slot = match link.opened {
            // Whom we dialled may have been given up meanwhile; who dials us is news.
            Opened::ByUs => self.by_address.get_mut(&address),
            Opened::ByPeer => self.slot(address).ok(),
        };
        slot.map(|slot| slot.admit(link)).is_some()
    }

    /// A dial led to nothing: leaves the address alone for a while, unless the peer came to us.
    pub(crate) fn rest(&mut self, address: SocketAddr, why: String, now: Instant) {
        let Some(slot) = self.by_address.get_mut(&address) else {
            return;
        };
        let share = self.random.random_range(0.5..1.0);
        let pause = PAUSE_MIN.saturating_mul(1 << slot.failures.min(16)).min(PAUSE_MAX);
        slot.failures = slot.failures.saturating_add(1);
        slot.dial = match slot.link() {
            Some(_) => Dial::Idle,
            None => Dial::Resting { until: now + pause.mul_f64(share), why },
        };
        slot.changed.notify_waiters();
    }

    /// A link that was in use has ended.
    pub(crate) fn retire(&mut self, link: &Arc<Link>) {
        if let Some(slot) = self.by_address.get_mut(&link.peer.address) {
            slot.links.retain(|other| !Arc::ptr_eq(other, link));
            slot.failures = 0;
        }
    }

    /// A link ended before the peer had accepted it, which is a dial that led to nothing.
    pub(crate) fn retire_refused(&mut self, link: &Arc<Link>, why: String, now: Instant) {
        let address = link.peer.address;
        let Some(slot) = self.by_address.get_mut(&address) else {
            return;
        };
        slot.links.retain(|other| !Arc::ptr_eq(other, link));
        // A dial that runs says by itself how it ends.
        if !matches!(slot.dial, Dial::Running) {
            self.rest(address, why, now);
        }
    }

    /// Forgets an address: its links, to be closed, and how many notices waited.
    pub(crate) fn give_up(&mut self, address: SocketAddr) -> (Vec<Arc<Link>>, usize) {
        let Some(slot) = self.by_address.remove(&address) else {
            return (Vec::new(), 0);
        };
        slot.changed.notify_waiters();
        (slot.links, slot.notices.len())
    }

    /// Leads nowhere from now on, also for those who wait.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        for slot in self.by_address.values() {
            slot.changed.notify_waiters();
        }
    }

    fn slot(&mut self, address: SocketAddr) -> Result<&mut Slot, CallError> {
        if self.is_closed {
            return Err(CallError::Closed { address });
        }
        if self.by_address.len() >= PEERS_MAX && !self.by_address.contains_key(&address) {
            self.by_address.retain(|_, slot| !slot.is_idle());
            if self.by_address.len() >= PEERS_MAX {
                let why = format!("{PEERS_MAX} other peers are in use");
                return Err(CallError::Unreachable { address, why });
            }
        }
        Ok(self.by_address.entry(address).or_insert_with(Slot::new))
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            links: Vec::new(),
            dial: Dial::Idle,
            failures: 0,
            changed: Arc::default(),
            limits: Arc::new(Limits::new()),
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

    fn look(&mut self, address: SocketAddr, now: Instant) -> Look {
        if let Some(link) = self.link() {
            return Look::Up(link.clone(), self.limits.clone());
        }
        let changed = self.changed.clone().notified_owned();
        match &self.dial {
            Dial::Resting { until, why } if now < *until => {
                Look::No(CallError::Unreachable { address, why: why.clone() })
            }
            Dial::Running => Look::Wait(changed),
            Dial::Idle | Dial::Resting { .. } => {
                self.dial = Dial::Running;
                Look::Dial(changed)
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn notice(kind: u8) -> Notice {
        (None, Frame::new(kind, bytes::Bytes::new()), Delivery::Stream)
    }

    #[tokio::test]
    async fn at_most_one_dial_runs_and_pauses_grow_to_a_bound() {
        let mut slots = Slots::new([1; 32]);
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert!(matches!(slots.look(address(1), now), Look::Dial(_)));
            assert!(matches!(slots.look(address(1), now), Look::Wait(_)));
            slots.rest(address(1), "nobody there".into(), now);
            let rested_at = now;
            while let Look::No(error) = slots.look(address(1), now) {
                assert!(matches!(error, CallError::Unreachable { .. }));
                now += Duration::from_millis(1);
            }
            slots.by_address.get_mut(&address(1)).unwrap().dial = Dial::Idle;
            pauses.push(now - rested_at);
        }
        for (round, pause) in pauses.iter().enumerate() {
            let whole = (PAUSE_MIN * (1 << round)).min(PAUSE_MAX);
            let millisecond = Duration::from_millis(1);
            assert!(*pause >= whole / 2 && *pause <= whole + millisecond, "{round}: {pause:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_peer_that_is_given_up_is_woken_and_does_not_dial_it_again() {
        let mut slots = Slots::new([1; 32]);
        let Look::Dial(changed) = slots.look(address(1), Instant::now()) else { panic!() };
        slots.queue(address(1), notice(1));
        assert_eq!(slots.give_up(address(1)).1, 1);
        changed.await;
        let Look::No(error) = slots.look_again(address(1), Instant::now()) else { panic!() };
        assert_eq!(error, CallError::Closed { address: address(1) });
    }

    #[test]
    fn the_oldest_notice_goes_first_and_is_the_one_dropped() {
        let mut slots = Slots::new([1; 32]);
        let first = slots.queue(address(1), notice(0));
        assert_eq!(first, Queued { dropped_count: 0, starts_flush: true });
        for kind in 1..=NOTICES_MAX as u8 {
            let is_full = usize::from(kind) == NOTICES_MAX;
            let queued = slots.queue(address(1), notice(kind));
            assert_eq!(queued, Queued { dropped_count: is_full.into(), starts_flush: false });
        }
        for kind in 1..=NOTICES_MAX as u8 {
            assert_eq!(slots.next_notice(address(1)), Some(notice(kind)));
        }
        assert_eq!(slots.next_notice(address(1)), None);
        assert!(slots.queue(address(1), notice(9)).starts_flush);
    }

    #[tokio::test]
    async fn what_is_let_under_way_is_what_the_path_carries_in_a_second() {
        let frame = Frame::new(1, bytes::Bytes::from(vec![0; 64 * 1024]));
        let entered = async |bytes_per_second: u64| {
            let limits = Limits::new();
            let mut places = Vec::new();
            let enter = || timeout(Duration::ZERO, limits.enter(&frame, bytes_per_second));
            while let Ok(place) = enter().await {
                places.push(place);
            }
            places.len()
        };
        let all = CALL_BYTES_MAX / (64 * 1024);
        assert!((all - 1..=all).contains(&entered(u64::MAX).await));
        assert!((15..=16).contains(&entered(1 << 20).await), "16 frames of 64 KiB are a mebibyte");
        assert_eq!(entered(1000).await, 1, "one may always go");
        assert_eq!(entered(0).await, 1);
    }

    #[test]
    fn idle_addresses_make_room_and_busy_ones_do_not() {
        let mut slots = Slots::new([1; 32]);
        let now = Instant::now();
        for port in 0..PEERS_MAX as u16 {
            slots.look(address(port), now);
        }
        let Look::No(error) = slots.look(address(5000), now) else { panic!() };
        assert!(matches!(error, CallError::Unreachable { .. }));
        slots.rest(address(7), "nobody there".into(), now);
        assert!(matches!(slots.look(address(5000), now), Look::Dial(_)));
        assert!(!slots.by_address.contains_key(&address(7)));
    }
}
