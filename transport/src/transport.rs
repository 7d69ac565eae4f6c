//! The handle that a node holds: what it can ask of the transport, and what runs in the background.
//!
//! In the background: the accept loop, and the upkeep of certificates. Everything else is in the
//! module that owns it: links and dialling in `pool`, streams in `connection`, certificates in
//! `identity`. The invariant: after [`Transport::shutdown`] no task of this crate runs.

use crate::counters::{Counters, Meters};
use crate::endpoint::{AsyncUdpSocket, Endpoint, EndpointError, Secrets};
use crate::frame::Frame;
use crate::identity::{Credentials, Identity, IdentityError, Reloaded, Source, WallClock, derive};
use crate::incoming::{Inbox, Incoming};
use crate::key::ClusterKey;
use crate::pool::{CallError, Delivery, Peer, Pool};
use crate::socket::canonical;
use crate::tasks::Tasks;
use crate::tls::Tls;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How often certificates are looked after: files compared, an issued one renewed when it is due.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// How long a shutdown lets answers travel that were just given: more than a round trip, and never
/// long.
const LINGER_MAX: Duration = Duration::from_millis(100);

/// How long a shutdown waits for tasks and for peers to be told.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

/// What a transport needs to start.
pub struct Settings {
    /// From [`crate::bind_udp`], or a simulated one.
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// How to prove who this node is.
    pub credentials: Credentials,
    /// The cluster's name: lower-case letters, digits, `.`, `-`, `_`.
    pub cluster: String,
    /// This node's id: letters, digits, `.`, `-`, `_`.
    pub node_id: String,
    /// The time of day, by which certificates are issued and checked.
    pub wall_clock: WallClock,
    /// From which everything random is drawn, private keys included: secret, and new at each start.
    pub seed: [u8; 32],
}

/// Why a transport did not start. Nothing runs.
#[derive(Debug, Error)]
pub enum StartError {
    /// There is no usable certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The development key is public, and the socket can be reached from other hosts.
    #[error("the built-in development key is for loopback addresses only, not for {address}")]
    DevelopmentKey {
        /// Where the socket is bound.
        address: SocketAddr,
    },
    /// The socket cannot be used.
    #[error("cannot use the socket")]
    Socket(#[source] std::io::Error),
}

impl From<EndpointError> for StartError {
    fn from(error: EndpointError) -> Self {
        match error {
            EndpointError::Socket(source) => Self::Socket(source),
            EndpointError::Tls(why) => Self::Identity(IdentityError::Certificate(why)),
        }
    }
}

/// One node's connections to all others. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Arc<Pool>,
    tasks: Tasks,
    meters: Arc<Meters>,
    address: SocketAddr,
    identity: Mutex<InUse>,
    wall_clock: WallClock,
}

/// The certificate in use and where the next one comes from.
struct InUse {
    source: Source,
    identity: Identity,
    /// What the last failed look at the files said, so that it is logged once.
    complaint: Option<String>,
}

impl Transport {
    /// Starts the endpoint and its background tasks; must be called inside a tokio runtime.
    pub fn start(settings: Settings) -> Result<(Self, Incoming), StartError> {
        let Settings { socket, credentials, cluster, node_id, wall_clock, seed } = settings;
        let address = canonical(socket.local_addr().map_err(StartError::Socket)?);
        if let Credentials::ClusterKey(keys) = &credentials
            && keys.contains(&ClusterKey::development())
            && !address.ip().is_loopback()
        {
            return Err(StartError::DevelopmentKey { address });
        }
        let identity_seed = derive(&seed, &["identity"]);
        let mut source =
            Source::new(credentials, &cluster, &node_id, wall_clock.clone(), identity_seed)?;
        let identity = source.load()?;
        let tls = Tls::new(&identity, source.id(), &wall_clock)?;
        let secrets = Secrets {
            random: derive(&seed, &["connections"]),
            stable: source.stable_secret(&identity, "connections"),
        };
        let meters = Arc::new(Meters::default());
        let endpoint = Endpoint::start(socket, &tls, &secrets, wall_clock.clone(), meters.clone())?;
        let tasks = Tasks::default();
        let (inbox, incoming) = Inbox::new(meters.clone(), tasks.clone());
        let pool = Pool::new(endpoint, inbox, tasks.clone(), derive(&seed, &["pauses"]));
        let in_use = Mutex::new(InUse { source, identity, complaint: None });
        let shared = Shared { pool, tasks, meters, address, identity: in_use, wall_clock };
        let transport = Self { shared: Arc::new(shared) };
        transport.shared.tasks.spawn(transport.shared.pool.clone().accept());
        transport.shared.tasks.spawn(transport.clone().upkeep());
        Ok((transport, incoming))
    }

    /// Where this node listens and dials from.
    pub fn local_address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Sends a frame and waits for its answer, dialling the peer if need be.
    ///
    /// `silence_max` bounds each wait without any progress: for a connection, for the peer to take
    /// the next part of the frame, and for the answer, counted from when the peer had the whole
    /// frame. `deadline` bounds all of it. Dropping the future gives the call up.
    pub async fn call(
        &self,
        peer: &Peer,
        frame: Frame,
        silence_max: Duration,
        deadline: Duration,
    ) -> Result<Frame, CallError> {
        let late = |_| CallError::Deadline { address: peer.address, deadline };
        timeout(deadline, self.shared.pool.call(peer, &frame, silence_max)).await.map_err(late)?
    }

    /// Sends a frame that needs no answer. Never waits: a few wait for each peer while it is
    /// dialled, of which the oldest is dropped first, and counted. Must be called inside a tokio
    /// runtime.
    pub fn notify(&self, peer: &Peer, frame: Frame, delivery: Delivery) {
        self.shared.pool.notify(&peer.in_canonical_form(), frame, delivery);
    }

    /// Closes the connections to a peer that membership gave up, and forgets it. Calls under way
    /// to it fail at once.
    pub fn close(&self, address: SocketAddr) {
        self.shared.pool.close(canonical(address));
    }

    /// The measured round trip to a peer, if it is connected.
    pub fn round_trip(&self, address: SocketAddr) -> Option<Duration> {
        self.shared.pool.round_trip(canonical(address))
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.shared.meters.counters()
    }

    /// Reads the credential files again, or issues a new certificate. On an error the old one
    /// stays in use. Blocks while it reads. Connections to peers that are not trusted any more are
    /// closed.
    pub fn reload(&self) -> Result<Reloaded, IdentityError> {
        let mut in_use = self.lock();
        let identity = in_use.source.load()?;
        if identity == in_use.identity {
            return Ok(Reloaded::Unchanged);
        }
        let tls = Tls::new(&identity, in_use.source.id(), &self.shared.wall_clock)?;
        let endpoint = self.shared.pool.endpoint();
        endpoint.use_tls(&tls).map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let is_trust_changed = identity.anchors != in_use.identity.anchors;
        in_use.identity = identity;
        drop(in_use);
        if is_trust_changed {
            self.shared.pool.close_distrusted();
        }
        tracing::info!("certificate replaced");
        Ok(Reloaded::Replaced)
    }

    /// When this node's certificate ends.
    pub fn certificate_expires(&self) -> SystemTime {
        self.lock().identity.expires
    }

    /// Ends everything: calls under way fail, peers are told, [`Incoming`] ends. Takes about a
    /// second at most.
    pub async fn shutdown(&self) {
        let Shared { pool, tasks, .. } = &*self.shared;
        let round_trip = pool.close_to_new();
        sleep((2 * round_trip).min(LINGER_MAX)).await;
        pool.endpoint().close();
        tasks.stop();
        let ended = async {
            tasks.ended().await;
            pool.endpoint().wait_idle().await;
        };
        if timeout(SHUTDOWN_WAIT, ended).await.is_err() {
            tracing::debug!("not all peers have confirmed the end");
        }
    }

    /// Keeps the certificate fresh.
    async fn upkeep(self) {
        let mut ticks = interval(UPKEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let reads_files = self.lock().source.reads_files();
            if reads_files {
                let transport = self.clone();
                // Files may be on a disk that is slow.
                let done = tokio::task::spawn_blocking(move || transport.look_after()).await;
                if let Err(error) = done
                    && error.is_panic()
                {
                    std::panic::resume_unwind(error.into_panic());
                }
            } else if self.lock().source.is_renewal_due() {
                self.look_after();
            }
        }
    }

    fn look_after(&self) {
        let complaint = self.reload().err().map(|error| chain(&error));
        let mut in_use = self.lock();
        if let Some(complaint) = &complaint
            && in_use.complaint.as_ref() != Some(complaint)
        {
            tracing::warn!(error = complaint, "the old certificate stays in use");
        }
        in_use.complaint = complaint;
    }

    fn lock(&self) -> MutexGuard<'_, InUse> {
        self.shared.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.shared.address)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
