//! The gossip library, driven over a carrier. The only file that names chitchat.
//!
//! **Version.** chitchat is pinned to 0.11: from 0.12 on the encoding of its messages is private to
//! that crate, so only its own UDP socket could carry them, and gossip in the open is what this
//! project does not do. A public encoding, or a transport trait over bytes, would lift the pin.
//!
//! **Invariant.** Nothing that a peer sends ends this node. What is no message, or names more ids
//! than chitchat survives, is refused before it gets there; and should chitchat's task end, or
//! panic under one of our calls, [`Gossip::ended`] or [`Broken`] says so, and the shell starts it
//! again.
//!
//! **Waiting.** chitchat awaits every send in its loop, so sends never wait: what the carrier has
//! no room for is dropped, which gossip is made for. An error from a receive would end gossip, so a
//! carrier that is gone is one that stays silent. Both ends of the carrier outlive chitchat's task.
//!
//! It does not resolve seeds (chitchat's list of them stays empty), and decides nothing about what
//! it hears.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable,
    FailureDetectorConfig, ListenerHandle, Serializable, spawn_chitchat,
};
use tokio::sync::{Mutex, Notify, mpsc};

use crate::belief::Sighting;
use crate::keys::{Published, VIEW_PREFIX};
use crate::member::Identity;
use crate::settings::NODE_ID_BYTES_MAX;
use crate::view::NodeId;

/// A crash is seen after 1.3 s on average with this; with a second between rounds after 7 s.
const INTERVAL: Duration = Duration::from_millis(200);

/// The failure detector's first guess, with the weight of five rounds: with chitchat's 5 s a node
/// that dies right after it joined is noticed after half a minute.
const FIRST_INTERVAL: Duration = Duration::from_millis(400);

/// Elapsed time over mean interval at which a node counts as dead: no false deaths at 5 % loss and
/// 50 ms of jitter.
const PHI: f64 = 8.0;

/// The dead travel in every message, 50 bytes each, for half of this.
const DEAD_GRACE: Duration = Duration::from_secs(10 * 60);

/// chitchat's own limit for a message is 65,507 bytes.
const MESSAGE_BYTES_MAX: usize = 65_536;

/// chitchat panics when the ids it knows leave fewer than 100 bytes of a message; this is 1,200
/// ids.
const DIGEST_BYTES_MAX: usize = 60_000;

/// The cluster's name is compared key by key (`Agreement`), so that both values can be told.
const CLUSTER_ID: &str = "tracemesh";

/// chitchat failed in a call of ours; its state is not to be used any more.
#[derive(Debug)]
pub(crate) struct Broken;

/// How soon the others should hear what this node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// With the next rounds.
    CanWait,
    /// The protocol waits for it.
    Urgent,
}

/// Both ends of the carrier, for one chitchat after the other.
#[derive(Debug)]
pub(crate) struct Wire {
    outgoing: mpsc::Sender<(SocketAddr, Bytes)>,
    incoming: Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    refused: AtomicU64,
}

impl Wire {
    pub(crate) fn new(
        outgoing: mpsc::Sender<(SocketAddr, Bytes)>,
        incoming: mpsc::Receiver<(SocketAddr, Bytes)>,
    ) -> Self {
        Self { outgoing, incoming: Mutex::new(incoming), refused: AtomicU64::new(0) }
    }

    /// How many messages were no gossip, or more than can be taken.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    async fn receive(&self) -> (SocketAddr, ChitchatMessage) {
        loop {
            let Some((from, bytes)) = self.incoming.lock().await.recv().await else {
                return std::future::pending().await;
            };
            if let Some(message) = decode(&bytes) {
                return (from, message);
            }
            let before = self.refused.fetch_add(1, Ordering::Relaxed);
            let length = bytes.len();
            if before == 0 {
                tracing::warn!(peer = %from, bytes = length, "gossip message refused");
            } else {
                tracing::debug!(peer = %from, bytes = length, "gossip message refused");
            }
        }
    }
}

/// chitchat's task, and how to talk to it.
pub(crate) struct Gossip {
    handle: ChitchatHandle,
    _listener: ListenerHandle,
}

impl Gossip {
    /// Starts a new incarnation. `view_changed` is notified when a peer's `view.` keys change;
    /// whoever comes, goes or says something else is seen by looking.
    pub(crate) async fn start(
        identity: &Identity,
        generation: u64,
        says: &Published,
        wire: Arc<Wire>,
        view_changed: Arc<Notify>,
    ) -> Result<Self, Broken> {
        let address = identity.mesh_address;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(identity.id.as_str(), generation, address),
            cluster_id: CLUSTER_ID.to_owned(),
            gossip_interval: INTERVAL,
            listen_addr: address,
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI,
                initial_interval: FIRST_INTERVAL,
                dead_node_grace_period: DEAD_GRACE,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: DEAD_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let entries = says.entries().map(|(key, value)| (key.to_owned(), value)).to_vec();
        let handle = spawn_chitchat(config, entries, &Carried(wire)).await.map_err(|_| Broken)?;
        let notify = move |_: chitchat::KeyChangeEvent<'_>| view_changed.notify_one();
        let listener = handle
            .with_chitchat(|chitchat| chitchat.subscribe_event(VIEW_PREFIX, notify.clone()))
            .await;
        Ok(Self { handle, _listener: listener })
    }

    /// All incarnations that gossip knows, sorted.
    pub(crate) async fn sightings(&self) -> Result<Vec<Sighting>, Broken> {
        self.with(|chitchat| {
            let alive: BTreeSet<_> = chitchat.live_nodes().cloned().collect();
            let myself = chitchat.self_chitchat_id();
            let others = chitchat.node_states().iter().filter(|(id, _)| *id != myself);
            others
                .map(|(id, state)| Sighting {
                    id: NodeId::from(&*id.node_id),
                    generation: id.generation_id,
                    mesh_address: id.gossip_advertise_addr,
                    alive: alive.contains(id),
                    heartbeat: state.heartbeat().into(),
                    published: Published::parse(|key| state.get(key)),
                })
                .collect()
        })
        .await
    }

    /// Says this from now on; what is the same as before is not said again. Returns what is new.
    pub(crate) async fn say(&self, says: &Published) -> Result<News, Broken> {
        self.with(|chitchat| {
            let mut news = News::CanWait;
            let myself = chitchat.self_node_state();
            for (key, value) in says.entries() {
                if myself.get(key) != Some(&value) {
                    if key.starts_with(VIEW_PREFIX) {
                        news = News::Urgent;
                    }
                    myself.set(key, value);
                }
            }
            news
        })
        .await
    }

    /// Gossips with this address now.
    pub(crate) fn with_address(&self, address: SocketAddr) {
        // It fails only when the task has ended, which `ended` tells.
        let _ = self.handle.gossip(address);
    }

    /// Returns when chitchat's task has ended, which it never should. Cancel-safe.
    pub(crate) async fn ended(&self) -> String {
        match self.handle.termination_watcher().await {
            Ok(()) => "it stopped".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Ends gossip that is of no use any more, at once.
    pub(crate) fn abandon(self) {
        self.handle.abort();
    }

    /// Ends gossip in order.
    pub(crate) async fn stop(self) {
        if let Err(error) = self.handle.shutdown().await {
            tracing::debug!(%error, "gossip had ended");
        }
    }

    async fn with<T>(&self, call: impl Fn(&mut Chitchat) -> T) -> Result<T, Broken> {
        self.handle
            .with_chitchat(|chitchat| catch_unwind(AssertUnwindSafe(|| call(chitchat))))
            .await
            .map_err(|_| Broken)
    }
}

/// The carrier as chitchat's transport.
struct Carried(Arc<Wire>);

#[async_trait::async_trait]
impl Transport for Carried {
    async fn open(&self, _listen_address: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

#[async_trait::async_trait]
impl Socket for Carried {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if self.0.outgoing.try_send((to, Bytes::from(message.serialize_to_vec()))).is_err() {
            tracing::debug!(peer = %to, "gossip message dropped: the carrier is full or closed");
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        Ok(self.0.receive().await)
    }
}

fn decode(bytes: &[u8]) -> Option<ChitchatMessage> {
    if bytes.len() > MESSAGE_BYTES_MAX || digest_bytes(bytes)? > DIGEST_BYTES_MAX {
        return None;
    }
    let mut rest = bytes;
    let message = ChitchatMessage::deserialize(&mut rest).ok()?;
    rest.is_empty().then_some(message)
}

/// How long the list of ids in a message is, 0 where it has none. `None`: this is no message, or an
/// id in it is longer than any node's.
///
/// A message is magic (2 bytes), version, kind; kinds 0 and 1 begin with the digest: a count (u16,
/// little-endian), and for each node its id (length as u16, then bytes), generation (8), address (4
/// and 4 bytes, or 6 and 16, then the port) and three counters of 8.
fn digest_bytes(message: &[u8]) -> Option<usize> {
    const HEADER: usize = 4;
    if *message.get(HEADER - 1)? > 1 {
        return Some(0);
    }
    let u16_at = |at: usize| {
        let bytes = message.get(at..at + 2)?;
        Some(usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    };
    let mut at = HEADER + 2;
    for _ in 0..u16_at(HEADER)? {
        let id_bytes = u16_at(at)?;
        if id_bytes > NODE_ID_BYTES_MAX {
            return None;
        }
        at += 2 + id_bytes + 8;
        at += match *message.get(at)? {
            4 => 1 + 4 + 2,
            6 => 1 + 16 + 2,
            _ => return None,
        };
        at += 3 * 8;
    }
    (at <= message.len()).then_some(at - HEADER)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The opening message of a gossip round that claims to know these ids.
    pub(crate) fn opening(ids: &[(String, u64, SocketAddr)]) -> Bytes {
        let mut bytes = 45_139_u16.to_le_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend((ids.len() as u16).to_le_bytes());
        for (id, generation, address) in ids {
            ChitchatId::new(id.as_str(), *generation, *address).serialize(&mut bytes);
            bytes.extend([0; 24]);
        }
        CLUSTER_ID.serialize(&mut bytes);
        Bytes::from(bytes)
    }

    pub(crate) fn invented(name: &str, count: usize) -> Vec<(String, u64, SocketAddr)> {
        let address = SocketAddr::from(([10, 9, 9, 9], 9));
        (0..count).map(|number| (format!("{name}-{number}"), 1, address)).collect()
    }

    #[test]
    fn an_opening_is_understood_and_its_digest_measured() {
        let bytes = opening(&invented("a", 3));
        // 4 of header before it, the cluster's id with its length after it.
        assert_eq!(digest_bytes(&bytes), Some(bytes.len() - 4 - 2 - CLUSTER_ID.len()));
        assert!(matches!(decode(&bytes), Some(ChitchatMessage::Syn { .. })));
    }

    #[test]
    fn more_ids_than_gossip_survives_are_refused() {
        assert!(decode(&opening(&invented("a", 1_200))).is_some());
        assert!(decode(&opening(&invented("a", 1_400))).is_none());
        let long = "x".repeat(NODE_ID_BYTES_MAX + 1);
        assert!(decode(&opening(&invented(&long, 1))).is_none());
        assert!(decode(&vec![0; MESSAGE_BYTES_MAX + 1]).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn garbage_is_refused_without_a_panic(
            kind: u8,
            garbage in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(garbage.starts_with(&[0x53, 0xB0]) || decode(&garbage).is_none());
            let mut bytes = 45_139_u16.to_le_bytes().to_vec();
            bytes.extend([0, kind % 5]);
            bytes.extend(garbage);
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_message_is_refused_or_another_one(
            at: prop::sample::Index,
            to: u8,
            cut: prop::sample::Index,
        ) {
            let mut bytes = opening(&invented("node", 4)).to_vec();
            let length = bytes.len();
            prop_assert!(decode(&bytes[..cut.index(length)]).is_none());
            bytes[at.index(length)] = to;
            let _ = decode(&bytes);
        }
    }
}
