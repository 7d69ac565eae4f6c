//! Nodes for tests: a transport each, and a task that answers.

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracemesh_transport::{
    CallError, ClusterKey, Credentials, Frame, Incoming, Peer, Proved, Received, Responder,
    Settings, Transport, WallClock, bind_udp,
};

/// Longer than any test should take; only a failing one waits for it.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Some day in 2026.
const TODAY: u64 = 1_780_000_000;

pub(crate) const HOUR: u64 = 3600;

/// A wall clock that tests set.
#[derive(Clone)]
pub(crate) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(crate) fn today() -> Self {
        Self(Arc::new(AtomicU64::new(TODAY)))
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }

    fn as_wall_clock(&self) -> WallClock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

pub(crate) fn key(seed: u64) -> ClusterKey {
    ClusterKey::generate(&mut StdRng::seed_from_u64(seed))
}

/// How a node of a test starts.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) node_id: &'static str,
    pub(crate) cluster: &'static str,
    pub(crate) credentials: Credentials,
    pub(crate) clock: Clock,
    pub(crate) address: SocketAddr,
}

impl Plan {
    pub(crate) fn new(node_id: &'static str) -> Self {
        Self {
            node_id,
            cluster: "test",
            credentials: Credentials::ClusterKey(vec![key(1)]),
            clock: Clock::today(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    pub(crate) fn with_keys(self, keys: &[ClusterKey]) -> Self {
        Self { credentials: Credentials::ClusterKey(keys.to_vec()), ..self }
    }

    pub(crate) fn settings(self) -> Settings {
        // As at any start: another one, also for a node that starts again.
        static STARTS: AtomicU64 = AtomicU64::new(0);
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&STARTS.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        Settings {
            socket: bind_udp(self.address).unwrap(),
            credentials: self.credentials,
            cluster: self.cluster.into(),
            node_id: self.node_id.into(),
            wall_clock: self.clock.as_wall_clock(),
            seed,
        }
    }

    pub(crate) fn start_silent(self) -> (Transport, Incoming) {
        Transport::start(self.settings()).unwrap()
    }

    /// Starts a node that answers each call with its frame, and collects notices.
    pub(crate) fn start(self) -> Node {
        let node_id = self.node_id;
        let (transport, mut incoming) = self.start_silent();
        let (seen, notices) = mpsc::channel(4096);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(received) = incoming.next().await {
                match received {
                    Received::Call { frame, respond, .. } => respond.send(frame),
                    Received::Notice { from, frame } => seen.send((from, frame)).await.unwrap(),
                }
            }
        });
        Node { node_id, transport, notices, tasks }
    }
}

pub(crate) struct Node {
    node_id: &'static str,
    pub(crate) transport: Transport,
    pub(crate) notices: mpsc::Receiver<(Proved, Frame)>,
    /// Ends with the node.
    #[expect(dead_code, reason = "owns the task that answers")]
    tasks: JoinSet<()>,
}

impl Node {
    pub(crate) fn as_peer(&self) -> Peer {
        peer(&self.transport, Some(self.node_id))
    }

    pub(crate) async fn call(&self, to: &Peer, frame: Frame) -> Result<Frame, CallError> {
        self.transport.call(to, frame, LONG, LONG).await
    }

    pub(crate) async fn notice(&mut self) -> (Proved, Frame) {
        tokio::time::timeout(LONG, self.notices.recv()).await.unwrap().unwrap()
    }
}

pub(crate) fn peer(transport: &Transport, node_id: Option<&str>) -> Peer {
    Peer { address: transport.local_address(), node_id: node_id.map(Arc::from) }
}

/// A frame in which no two neighbouring pieces are alike. Made in large pieces, because a test has
/// one thread for all its nodes, and who computes for long is not there for its peers.
pub(crate) fn frame(kind: u8, bytes: usize) -> Frame {
    let piece: Vec<u8> = (0..251).map(|i: u8| i.wrapping_mul(kind | 1)).collect();
    let mut payload = piece.repeat(bytes / piece.len() + 1);
    payload.truncate(bytes);
    Frame { flags: 3, ..Frame::new(kind, payload.into()) }
}

/// The next call that arrives.
pub(crate) async fn next_call(incoming: &mut Incoming) -> (Proved, Frame, Responder) {
    match tokio::time::timeout(LONG, incoming.next()).await.unwrap().unwrap() {
        Received::Call { from, frame, respond } => (from, frame, respond),
        Received::Notice { .. } => panic!("a call was expected"),
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, holds).await.is_ok(), "never: {what}");
}
