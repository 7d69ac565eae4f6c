//! What the transport counts, and the log of refusals that a stranger cannot flood.
//!
//! Counters are plain numbers that only grow; their owner is [`Meters`], shared by all of the
//! crate. A refused sender is counted every time and logged once for each address and cause: at
//! most [`LOGGED_MAX`] lines until somebody at such an address is let in, which forgets its lines.
//! Nothing here decides who is refused.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Refusals remembered as logged: 24 KB. Further ones are counted only.
const LOGGED_MAX: usize = 512;

/// Peers remembered until membership gives them up. Clusters are designed for 100 nodes.
const KNOWN_MAX: usize = 1024;

/// Why a sender at the mesh port was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Its certificate comes from no authority that we trust: another cluster key or authority.
    Authority,
    /// Its certificate is expired, or not valid yet.
    Expired,
    /// Its certificate names no node of this cluster.
    Cluster,
    /// Its certificate is missing or unusable in another way.
    Certificate,
    /// It speaks another version of the mesh's protocol, or none.
    Protocol,
    /// It began a handshake and did not finish it.
    Unfinished,
    /// There were as many handshakes or connections as are allowed.
    Full,
    /// What it sent is no QUIC, or belongs to no connection of ours.
    Garbage,
    /// It does not accept *our* certificate.
    ByPeer,
}

impl Refusal {
    /// Every cause, in a fixed order.
    pub const ALL: [Self; 9] = [
        Self::Authority,
        Self::Expired,
        Self::Cluster,
        Self::Certificate,
        Self::Protocol,
        Self::Unfinished,
        Self::Full,
        Self::Garbage,
        Self::ByPeer,
    ];

    /// The name for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Expired => "expired",
            Self::Cluster => "cluster",
            Self::Certificate => "certificate",
            Self::Protocol => "protocol",
            Self::Unfinished => "unfinished",
            Self::Full => "full",
            Self::Garbage => "garbage",
            Self::ByPeer => "by_peer",
        }
    }
}

/// Totals since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections and datagrams refused, each with its cause, in the order of [`Refusal::ALL`].
    pub refused: Vec<(Refusal, u64)>,
    /// Bytes of UDP payload received.
    pub bytes_in: u64,
    /// Bytes of UDP payload sent.
    pub bytes_out: u64,
    /// Notices not sent, because their queue was full or the peer could not be reached.
    pub notices_dropped: u64,
    /// Notices received and not handed on, because the node did not take them in time.
    pub notices_unread: u64,
    /// Attempts to connect that failed.
    pub dials_failed: u64,
    /// Connections established, by either side.
    pub connections_opened: u64,
    /// Frames refused, because they were malformed, too large, or over the peer's share of memory.
    pub frames_refused: u64,
}

impl Counters {
    /// How often somebody was refused for one cause.
    pub fn refused(&self, cause: Refusal) -> u64 {
        self.refused.iter().find(|(other, _)| *other == cause).map_or(0, |(_, count)| *count)
    }
}

#[derive(Default)]
pub(crate) struct Meters {
    refused: [AtomicU64; Refusal::ALL.len()],
    pub(crate) bytes_in: Count,
    pub(crate) bytes_out: Count,
    pub(crate) notices_dropped: Count,
    pub(crate) notices_unread: Count,
    pub(crate) dials_failed: Count,
    pub(crate) connections_opened: Count,
    pub(crate) frames_refused: Count,
    addresses: Mutex<Addresses>,
}

#[derive(Default)]
struct Addresses {
    logged: BTreeSet<(SocketAddr, Refusal)>,
    /// Peers of ours: a stray packet from one is the end of an old connection, not garbage.
    known: BTreeSet<SocketAddr>,
}

/// One number that only grows.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Meters {
    /// Counts a refusal, and logs it if it is the first of its address and cause.
    pub(crate) fn refuse(&self, peer: SocketAddr, cause: Refusal, why: &str) {
        self.refused[cause as usize].fetch_add(1, Ordering::Relaxed);
        let is_first = {
            let logged = &mut self.lock().logged;
            logged.len() < LOGGED_MAX && logged.insert((peer, cause))
        };
        if is_first {
            tracing::warn!(%peer, reason = cause.label(), why, "refused; logged once");
        }
    }

    /// A datagram that no connection of ours can own.
    pub(crate) fn garbage(&self, from: SocketAddr) {
        if !self.lock().known.contains(&from) {
            self.refuse(from, Refusal::Garbage, "the datagram belongs to no connection");
        }
    }

    /// A handshake succeeded: the address is a peer's, and its next refusal is news again.
    pub(crate) fn let_in(&self, peer: SocketAddr) {
        self.connections_opened.add(1);
        let mut addresses = self.lock();
        addresses.logged.retain(|(address, _)| *address != peer);
        if addresses.known.len() < KNOWN_MAX {
            addresses.known.insert(peer);
        }
    }

    /// The peer is gone.
    pub(crate) fn forget(&self, peer: SocketAddr) {
        self.lock().known.remove(&peer);
    }

    pub(crate) fn counters(&self) -> Counters {
        let refused =
            Refusal::ALL.map(|cause| (cause, self.refused[cause as usize].load(Ordering::Relaxed)));
        Counters {
            refused: refused.to_vec(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            notices_dropped: self.notices_dropped.get(),
            notices_unread: self.notices_unread.get(),
            dials_failed: self.dials_failed.get(),
            connections_opened: self.connections_opened.get(),
            frames_refused: self.frames_refused.get(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn every_cause_has_its_own_counter_and_label() {
        let meters = Meters::default();
        for cause in Refusal::ALL {
            meters.refuse(address(1), cause, "test");
        }
        let counters = meters.counters();
        assert!(Refusal::ALL.iter().all(|cause| counters.refused(*cause) == 1));
        let labels: BTreeSet<_> = Refusal::ALL.iter().map(|cause| cause.label()).collect();
        assert_eq!(labels.len(), Refusal::ALL.len());
    }

    #[test]
    fn refusals_from_many_addresses_take_bounded_memory_and_are_all_counted() {
        let meters = Meters::default();
        for port in 0..2000 {
            meters.garbage(address(port));
            meters.garbage(address(port));
        }
        assert_eq!(meters.counters().refused(Refusal::Garbage), 4000);
        assert_eq!(meters.lock().logged.len(), LOGGED_MAX);
    }

    #[test]
    fn a_known_peer_sends_no_garbage_and_its_next_refusal_is_news() {
        let meters = Meters::default();
        meters.refuse(address(1), Refusal::Expired, "test");
        meters.let_in(address(1));
        meters.garbage(address(1));
        assert!(meters.lock().logged.is_empty());
        assert_eq!(meters.counters().refused(Refusal::Garbage), 0);
        meters.forget(address(1));
        meters.garbage(address(1));
        assert_eq!(meters.counters().refused(Refusal::Garbage), 1);
    }
}
