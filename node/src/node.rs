//! A node: every stage started in the order in which data flows, and stopped in the same order.
//!
//! This is the only place that knows all stages. The invariant: everything that can be refused for
//! its configuration or surroundings (ports, data directory, sinks, certificates) is taken before
//! anything is accepted, so a node that starts at all is a node that works. Each datum belongs to
//! the stage that started first; the others hold handles.

mod advertise;
mod consoles;
mod data_directory;
mod drain;
mod observer;
mod report;
mod settings;

pub use data_directory::DataDirectoryError;
pub use observer::Observer;

use crate::assemble::Shards;
use crate::config::{self, Config};
use crate::environment::{BindMesh, Environment, WallClock};
use crate::ingest::{self, Admission, InFlight, Listeners};
use crate::listen::{BindError, Listener};
use crate::memory::Memory;
use crate::mesh::{self, Peers};
use crate::metrics::{self, Metrics};
use crate::route::{self, Router};
use crate::settling::{self, Settling};
use crate::shard::SinkSet;
use crate::sink::{self, DeadLetters, Workers};
use crate::spool::Spool;
use crate::status::Ending;
use crate::tasks::Tasks;
use advertise::advertised;
use data_directory::DataDirectory;
use prometheus_client::registry::Registry;
pub(crate) use settings::sink_configs;
use settings::{
    Told, ingest_settings, membership_settings, memory_budget, shard_settings, size, small_seed,
};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracemesh_membership::{Ended, MemberState, Membership, WeightError};
use tracemesh_transport::{AsyncUdpSocket, Incoming, Transport};

/// A node did not start. Nothing was accepted and nothing runs; all of these want somebody to
/// change the configuration or the machine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDirectory(#[from] DataDirectoryError),
    /// A TCP port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The way in.
    #[error(transparent)]
    Ingest(#[from] ingest::StartError),
    /// The UDP port.
    #[error("cannot take the mesh port; choose another with listen.mesh, or all with --base-port")]
    Mesh(#[from] tracemesh_transport::BindError),
    /// Certificates or keys.
    #[error(transparent)]
    Transport(#[from] tracemesh_transport::StartError),
    /// The spool.
    #[error(
        "cannot read the spool {place}, which the last stop left; move it away to start without"
    )]
    Spool {
        /// Where it is.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// What is told to other members.
    #[error(transparent)]
    Membership(#[from] tracemesh_membership::StartError),
    /// The weight.
    #[error("node.weight: {0}")]
    Weight(#[from] WeightError),
    /// A sink.
    #[error(transparent)]
    Sink(#[from] sink::StartError),
    /// More sinks than attempts can be tracked for.
    #[error("{0} sinks are configured; at most {max} are possible", max = SinkSet::SINKS_MAX)]
    Sinks(usize),
    /// The address to tell others.
    #[error(
        "no address of this host reaches others, so it is not known what to tell them; set \
         node.advertise"
    )]
    Advertise(#[source] io::Error),
}

/// How a node ended.
#[derive(Debug)]
pub enum End {
    /// It was asked to, and nothing is left.
    Drained,
    /// It was asked to, and could not get rid of these spans in time; they are spooled.
    Left {
        /// Spans that were still held.
        span_count: u64,
        /// Where the spool is.
        spool: String,
    },
    /// It was asked to, and could neither get rid of these spans nor spool them.
    Lost {
        /// Spans that were still held.
        span_count: u64,
        /// Where the spool would be.
        spool: String,
        /// Why it could not be written.
        source: io::Error,
    },
    /// It must not be a member.
    Refused(Ended),
    /// A task of it panicked.
    Panicked(&'static str),
}

/// Where a node listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// OTLP over gRPC.
    pub grpc: Vec<SocketAddr>,
    /// OTLP over HTTP.
    pub http: Vec<SocketAddr>,
    /// The mesh, over UDP.
    pub mesh: SocketAddr,
    /// Console and metrics.
    pub console: Vec<SocketAddr>,
}

impl Addresses {
    fn of(taken: &Taken, mesh: SocketAddr) -> Self {
        Self {
            grpc: taken.ingest.grpc_addresses(),
            http: taken.ingest.http_addresses(),
            mesh,
            console: taken.consoles.iter().map(Listener::address).collect(),
        }
    }
}

/// What the stages of a running node share.
#[derive(Clone)]
pub(crate) struct Parts {
    cluster: String,
    zone: String,
    weight: f64,
    replicas: u8,
    advertised: SocketAddr,
    console: Option<SocketAddr>,
    wall_clock: WallClock,
    membership: Arc<Membership>,
    transport: Transport,
    peers: Peers,
    shards: Shards,
    memory: Arc<Memory>,
    in_flight: Arc<InFlight>,
    metrics: Metrics,
    registry: Arc<Registry>,
    started: SystemTime,
    admission: watch::Sender<Admission>,
    draining: CancellationToken,
    ended: watch::Sender<Option<Ending>>,
}

/// A running node.
pub struct Node {
    addresses: Addresses,
    parts: Parts,
    router: Router,
    close_ingest: CancellationToken,
    handlers: watch::Sender<Option<mesh::Handlers>>,
    answering: mesh::Handlers,
    drain: config::Drain,
    spool: Spool,
    settling: Settling,
    tasks: Tasks,
    workers: Option<Workers>,
    _directory: DataDirectory,
}

/// What is taken of the machine before anything else.
struct Taken {
    directory: DataDirectory,
    ingest: Listeners,
    consoles: Vec<Listener>,
    socket: Arc<dyn AsyncUdpSocket>,
}

/// Counters and gauges, and where they are shown from.
struct Meters {
    registry: Arc<Registry>,
    stages: Metrics,
    sinks: sink::Metrics,
}

impl Node {
    /// Starts every stage, or none.
    pub async fn start(config: &Config, environment: Environment) -> Result<Self, StartError> {
        let Environment { bind_mesh, wall_clock, seed, start_sinks, .. } = environment;
        let Environment { open_starts, open_spool, shard_count, .. } = environment;
        let tasks = Tasks::default();
        let taken = take(config, bind_mesh, &wall_clock).await?;
        let meters = meters(config);
        let (transport, incoming) =
            start_transport(config, Arc::clone(&taken.socket), &wall_clock, seed)?;
        let addresses = Addresses::of(&taken, transport.local_address());
        let advertised = advertised(config, addresses.mesh).await?;
        let dead_letters = taken.directory.dead_letters();
        let configs = sink_configs(config);
        let (sinks, workers) = start_sinks(&configs, &dead_letters, &wall_clock, &meters.sinks)?;
        let (carrier, gossip) = mesh::gossip_channels();
        let handlers = mesh::carry(&transport, incoming, gossip, &tasks);
        let told = Told { addresses: &addresses, advertised, wall_clock: &wall_clock };
        let starts = open_starts(taken.directory.path());
        let spool = drain::spool(open_spool(taken.directory.path()))?;
        let settings = membership_settings(config, &told, starts, small_seed(seed))?;
        let membership = Arc::new(Membership::start(settings, carrier).await?);
        let me = config.node.id.as_str().into();
        let peers = Peers::new(me, transport.clone(), Arc::clone(&membership));
        let memory = Arc::new(Memory::new(memory_budget(config), shard_count));
        let undecided = undecided(&dead_letters, &wall_clock, &meters.sinks);
        let settings = shard_settings(config, shard_count, sinks, undecided);
        let (counted, trace) = (Arc::clone(&memory), &meters.stages.trace);
        let shards = Shards::start(settings, counted, peers.clone(), trace, &tasks);
        let answering = answer(&handlers, &shards, &peers);
        let parts = Parts {
            cluster: config.cluster.name.clone(),
            zone: config.node.zone.clone(),
            weight: config.node.weight,
            replicas: config.cluster.replicas,
            advertised,
            console: addresses.console.first().copied(),
            started: wall_clock(),
            wall_clock,
            membership,
            transport,
            peers,
            shards,
            memory,
            in_flight: InFlight::new(size(config.ingest.in_flight_bytes_max)),
            metrics: meters.stages,
            registry: meters.registry,
            admission: watch::Sender::new(Admission::Joining),
            draining: CancellationToken::new(),
            ended: watch::Sender::new(None),
        };
        let router = start_router(config, &parts, small_seed(seed), &tasks);
        keep_settling(&router, &parts, &tasks);
        drain::read_spool(&spool, &parts, &tasks);
        let close_ingest = start_ingest(taken.ingest, router.clone(), &parts, &tasks);
        consoles::start(taken.consoles, &parts, &tasks);
        tasks.spawn("report", report::keep(parts.clone(), tasks.stopping()));
        Ok(Self {
            addresses,
            parts,
            settling: router.settling(),
            router,
            close_ingest,
            handlers,
            answering,
            drain: config.drain.clone(),
            spool,
            tasks,
            workers,
            _directory: taken.directory,
        })
    }

    /// Where it listens, with real ports.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The way in that both protocol servers use.
    pub fn export(&self) -> Router {
        self.router.clone()
    }

    /// A look at it from beside.
    pub fn observer(&self) -> Observer {
        let Parts { membership, shards, registry, .. } = &self.parts;
        Observer::new(membership, shards.clone(), Arc::clone(registry))
    }

    /// Serves until `asked` resolves, then drains; or until it cannot go on.
    pub async fn run(mut self, asked: impl Future<Output = ()>) -> End {
        tokio::pin!(asked);
        let membership = Arc::clone(&self.parts.membership);
        let tasks = self.tasks.clone();
        let mut workers = self.workers.take();
        let end = tokio::select! {
            biased;
            ended = membership.ended() => Some(End::Refused(ended)),
            name = tasks.panicked() => Some(End::Panicked(name)),
            () = drain::failed(&mut workers) => Some(End::Panicked("sink")),
            () = &mut asked => None,
            () = self.parts.draining.cancelled() => None,
            () = self.follow_state() => None,
        };
        let end = match end {
            Some(end) => Some(end),
            None => tokio::select! {
                biased;
                name = tasks.panicked() => Some(End::Panicked(name)),
                () = drain::failed(&mut workers) => Some(End::Panicked("sink")),
                end = self.drain() => end,
            },
        };
        let end = match end {
            Some(end) => end,
            None => {
                drain::shutdown(&mut workers).await;
                self.spool_rest().await
            }
        };
        self.workers = workers;
        self.parts.ended.send_replace(Some(report::ending(&end)));
        self.stop().await;
        end
    }

    /// Opens and closes the way in as this node's state changes.
    async fn follow_state(&self) {
        let mut changes = self.parts.peers.changes();
        loop {
            let admission = match self.parts.peers.status().state {
                MemberState::Joining => Admission::Joining,
                MemberState::Active => Admission::Serving,
                MemberState::Leaving => Admission::Leaving,
            };
            let was = self.parts.admission.send_replace(admission);
            if was != Admission::Serving && admission == Admission::Serving {
                self.say_ready();
            }
            changes.changed().await;
        }
    }

    fn say_ready(&self) {
        let status = report::status(&self.parts);
        let owned = status.members.iter().find(|member| member.id == status.id);
        let owned_slots = owned.map_or(0, |member| member.owned_slots);
        let (id, members) = (&status.id, status.view.members);
        tracing::info!(%id, members, owned_slots, "ready");
        if status.degraded.iter().any(|what| what == "alone") {
            tracing::warn!("no seed answers: this node works alone, and holds each span once");
        } else if members < 2 {
            tracing::warn!("no other node is here: each span is held once, until one comes");
        }
        if self.parts.replicas == 0 {
            tracing::warn!("cluster.replicas is 0: what a node holds is lost when it crashes");
        }
    }

    async fn stop(mut self) {
        self.close_ingest.cancel();
        self.parts.membership.shutdown().await;
        drain::shutdown(&mut self.workers).await;
        self.parts.transport.shutdown().await;
        self.tasks.stop().await;
    }
}

async fn take(
    config: &Config,
    bind_mesh: Box<BindMesh>,
    wall_clock: &WallClock,
) -> Result<Taken, StartError> {
    if config.sinks.len() > SinkSet::SINKS_MAX as usize {
        return Err(StartError::Sinks(config.sinks.len()));
    }
    let mut consoles = Vec::new();
    for &address in &config.listen.console {
        consoles.push(Listener::bind("listen.console", address).await?);
    }
    Ok(Taken {
        directory: DataDirectory::open(&config.node.data_dir)?,
        ingest: Listeners::bind(ingest_settings(config), wall_clock).await?,
        consoles,
        socket: bind_mesh(config.listen.mesh)?,
    })
}

fn meters(config: &Config) -> Meters {
    let mut registry = metrics::registry();
    let stages = Metrics::register(&mut registry);
    let sinks = sink::Metrics::register(&mut registry);
    metrics::show_hash(&stages.cluster.config, &format!("{:016x}", config.config_hash()));
    Meters { registry: Arc::new(registry), stages, sinks }
}

fn start_transport(
    config: &Config,
    socket: Arc<dyn AsyncUdpSocket>,
    wall_clock: &WallClock,
    seed: [u8; 32],
) -> Result<(Transport, Incoming), tracemesh_transport::StartError> {
    Transport::start(tracemesh_transport::Settings {
        socket,
        credentials: config.cluster.credentials.clone(),
        cluster: config.cluster.name.clone(),
        node_id: config.node.id.clone(),
        wall_clock: Arc::clone(wall_clock),
        seed,
    })
}

/// Where traces go that make deciding panic.
fn undecided(
    directory: &Path,
    wall_clock: &WallClock,
    metrics: &sink::Metrics,
) -> Arc<DeadLetters> {
    let path = directory.join("undecided.jsonl");
    let clock = Arc::clone(wall_clock);
    let bytes_max = sink::DEAD_LETTER_BYTES_MAX;
    Arc::new(DeadLetters::new(path, bytes_max, "undecided".to_owned(), clock, metrics))
}

/// From now on frames about spans are answered.
fn answer(
    handlers: &watch::Sender<Option<mesh::Handlers>>,
    shards: &Shards,
    peers: &Peers,
) -> mesh::Handlers {
    let answering = mesh::Handlers::new(shards.clone(), peers.clone());
    handlers.send_replace(Some(answering.clone()));
    answering
}

fn keep_settling(router: &Router, parts: &Parts, tasks: &Tasks) {
    let (shards, peers) = (parts.shards.clone(), parts.peers.clone());
    let keep = settling::keep(router.settling(), shards, peers, Arc::clone(&parts.membership));
    let stop = tasks.stopping();
    tasks.spawn("settling", async move {
        let _ = stop.run_until_cancelled(keep).await;
    });
}

fn start_router(config: &Config, parts: &Parts, seed: u64, tasks: &Tasks) -> Router {
    let settings = route::Settings {
        replicas: u32::from(config.cluster.replicas),
        hash_key: config.cluster.hash_key,
        age_max: config.traces.age_max,
    };
    let (shards, peers) = (parts.shards.clone(), parts.peers.clone());
    let (memory, metrics) = (Arc::clone(&parts.memory), parts.metrics.route.clone());
    Router::start(settings, shards, peers, memory, metrics, seed, tasks)
}

fn start_ingest(
    listeners: Listeners,
    router: Router,
    parts: &Parts,
    tasks: &Tasks,
) -> CancellationToken {
    let close = CancellationToken::new();
    let (in_flight, metrics) = (Arc::clone(&parts.in_flight), parts.metrics.ingest.clone());
    let admission = parts.admission.subscribe();
    tasks.spawn("ingest", listeners.serve(router, admission, in_flight, metrics, close.clone()));
    close
}
