//! A node: every stage started in the order in which data flows, and stopped in the same order.
//!
//! This is the only place that knows all stages. The invariant: everything that can be refused for
//! its configuration or surroundings (ports, data directory, sinks, certificates) is taken before
//! anything is accepted, so a node that starts at all is a node that works. Each datum belongs to
//! the stage that started first; the others hold handles.

mod data_directory;
mod report;

pub use data_directory::DataDirectoryError;

use crate::assemble::{self, Shards};
use crate::config::{self, Config};
use crate::console;
use crate::decide::KeepAll;
use crate::environment::{Environment, WallClock};
use crate::ingest::{self, Admission, InFlight, Listeners};
use crate::listen::{BindError, Listener};
use crate::memory::Memory;
use crate::mesh::{self, Peers};
use crate::metrics::{self, Metrics};
use crate::route::{self, Router};
use crate::shard::{Limits, SinkSet};
use crate::sink::{self, DeadLetters, SinkConfig, Workers};
use crate::status::Status;
use crate::tasks::Tasks;
use data_directory::DataDirectory;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracemesh_membership::{
    Ended, HashKey, MemberState, Membership, NodeId, Weight, WeightError,
};
use tracemesh_transport::{Transport, WallClock as TransportClock};

/// How often a draining node looks whether anything is left.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

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
    /// The UDP port.
    #[error(transparent)]
    Mesh(#[from] tracemesh_transport::BindError),
    /// Certificates or keys.
    #[error(transparent)]
    Transport(#[from] tracemesh_transport::StartError),
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
        "no address of this host reaches the seed {seed}, so it is not known what to tell others; \
         set node.advertise"
    )]
    Advertise {
        /// The first seed.
        seed: String,
        /// Why.
        source: std::io::Error,
    },
}

/// How a node ended.
#[derive(Debug)]
pub enum End {
    /// It was asked to, and nothing is left.
    Drained,
    /// It was asked to, and could not get rid of these spans in time.
    Left {
        /// Spans that were still held.
        span_count: u64,
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
    pub console: SocketAddr,
}

/// What the stages of a running node share.
#[derive(Clone)]
pub(crate) struct Parts {
    cluster: String,
    zone: String,
    weight: f64,
    replicas: u8,
    advertised: SocketAddr,
    wall_clock: WallClock,
    membership: Arc<Membership>,
    transport: Transport,
    peers: Peers,
    shards: Shards,
    memory: Arc<Memory>,
    in_flight: Arc<InFlight>,
    metrics: Metrics,
    draining: CancellationToken,
}

/// A running node.
pub struct Node {
    addresses: Addresses,
    parts: Parts,
    router: Router,
    admission: watch::Sender<Admission>,
    close_ingest: CancellationToken,
    drain: config::Drain,
    tasks: Tasks,
    workers: Option<Workers>,
    _directory: DataDirectory,
}

/// Ports that are taken before anything else.
struct Ports {
    ingest: Listeners,
    console: Listener,
}

impl Node {
    /// Starts every stage, or none.
    pub async fn start(config: &Config, environment: Environment) -> Result<Self, StartError> {
        if config.sinks.len() > SinkSet::SINKS_MAX as usize {
            return Err(StartError::Sinks(config.sinks.len()));
        }
        let directory = DataDirectory::open(&config.node.data_dir)?;
        let ports = Ports {
            ingest: Listeners::bind(ingest_settings(config)).await?,
            console: Listener::bind("listen.console", config.listen.console).await?,
        };
        let socket = (environment.bind_mesh)(config.listen.mesh)?;
        let (transport, incoming) = Transport::start(tracemesh_transport::Settings {
            socket,
            credentials: config.cluster.credentials.clone(),
            cluster: config.cluster.name.clone(),
            node_id: config.node.id.clone(),
            wall_clock: Arc::clone(&environment.wall_clock) as TransportClock,
            seed: environment.seed,
        })?;
        let addresses = Addresses {
            grpc: ports.ingest.grpc_addresses(),
            http: ports.ingest.http_addresses(),
            mesh: transport.local_address(),
            console: ports.console.address(),
        };
        let advertised = advertised(config, addresses.mesh).await?;
        let mut registry = metrics::registry();
        let metrics = Metrics::register(&mut registry);
        metrics::show_hash(&metrics.cluster.config, &format!("{:016x}", config.config_hash()));
        let sink_metrics = sink::Metrics::register(&mut registry);
        let dead_letters = directory.dead_letters();
        let (sinks, workers) = (environment.start_sinks)(
            &config.sinks.iter().map(sink_config).collect::<Vec<_>>(),
            &dead_letters,
            &environment.wall_clock,
            &sink_metrics,
        )?;
        let undecided = DeadLetters::new(
            dead_letters.join("undecided.jsonl"),
            "undecided".to_owned(),
            Arc::clone(&environment.wall_clock),
            &sink_metrics,
        );
        let seed = u64::from_le_bytes(environment.seed[..8].try_into().unwrap_or_default());
        let starts = (environment.open_starts)(directory.path());
        let (carrier, gossip) = mesh::gossip_channels();
        let settings = tracemesh_membership::Settings {
            starts: Some(starts),
            ..membership_settings(config, &addresses, advertised, &environment.wall_clock, seed)?
        };
        let tasks = Tasks::default();
        let (handlers, shards_started) = watch::channel(None);
        mesh::carry(&transport, incoming, gossip, shards_started, &tasks);
        let membership = Arc::new(Membership::start(settings, carrier).await?);
        let me = NodeId::from(config.node.id.as_str());
        let peers = Peers::new(me, transport.clone(), Arc::clone(&membership));
        let budget_bytes = usize::try_from(config.node.memory_bytes).unwrap_or(usize::MAX);
        let memory = Arc::new(Memory::new(budget_bytes, environment.shard_count));
        let shard_settings = assemble::Settings {
            limits: limits(&config.traces),
            shard_count: environment.shard_count,
            hash_key: HashKey(config.cluster.hash_key.0),
            sinks,
            dead_letters: Arc::new(undecided),
            decide: Box::new(|| Box::new(KeepAll)),
        };
        let shards = Shards::start(
            shard_settings,
            Arc::clone(&memory),
            peers.clone(),
            &metrics.trace,
            &tasks,
        );
        handlers.send_replace(Some((shards.clone(), peers.clone())));
        let route_settings = route::Settings {
            replicas: u32::from(config.cluster.replicas),
            hash_key: HashKey(config.cluster.hash_key.0),
            age_max: config.traces.age_max,
        };
        let router = Router::start(
            route_settings,
            shards.clone(),
            peers.clone(),
            Arc::clone(&memory),
            metrics.route.clone(),
            seed,
            &tasks,
        );
        let in_flight_max = usize::try_from(config.ingest.in_flight_bytes_max);
        let parts = Parts {
            cluster: config.cluster.name.clone(),
            zone: config.node.zone.clone(),
            weight: config.node.weight,
            replicas: config.cluster.replicas,
            advertised,
            wall_clock: environment.wall_clock,
            membership,
            transport,
            peers,
            shards,
            memory,
            in_flight: InFlight::new(in_flight_max.unwrap_or(usize::MAX)),
            metrics,
            draining: CancellationToken::new(),
        };
        tasks.spawn("report", report::keep(parts.clone(), tasks.stopping()));
        let admission = watch::Sender::new(Admission::Joining);
        let close_ingest = CancellationToken::new();
        let serve = ports.ingest.serve(
            router.clone(),
            admission.subscribe(),
            Arc::clone(&parts.in_flight),
            parts.metrics.ingest.clone(),
            close_ingest.clone(),
        );
        tasks.spawn("ingest", serve);
        let source = console::Source {
            status: Arc::new(report::reporter(&parts)),
            registry: Arc::new(registry),
        };
        tasks.spawn("console", console::serve(ports.console, source, tasks.stopping()));
        Ok(Self {
            addresses,
            parts,
            router,
            admission,
            close_ingest,
            drain: config.drain.clone(),
            tasks,
            workers,
            _directory: directory,
        })
    }

    /// Where it listens, with real ports.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The way in that both protocol servers use.
    pub fn export(&self) -> impl ingest::Export + use<> {
        self.router.clone()
    }

    /// Says what it says of itself, at any time while it runs.
    pub fn reporter(&self) -> impl Fn() -> Status + Send + Sync + use<> {
        report::reporter(&self.parts)
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
            () = failed(&mut workers) => Some(End::Panicked("sink")),
            () = &mut asked => None,
            () = self.follow_state() => None,
        };
        let end = match end {
            Some(end) => end,
            None => tokio::select! {
                biased;
                name = tasks.panicked() => End::Panicked(name),
                () = failed(&mut workers) => End::Panicked("sink"),
                end = self.drain() => end,
            },
        };
        self.workers = workers;
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
            let was = self.admission.send_replace(admission);
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
        }
        if self.parts.replicas == 0 {
            tracing::warn!("cluster.replicas is 0: what a node holds is lost when it crashes");
        }
    }

    /// PROTOCOL.md, M4: not ready but accepting, then no new requests, then leave and hand on.
    async fn drain(&self) -> End {
        tracing::info!("draining");
        self.parts.draining.cancel();
        self.admission.send_replace(Admission::Leaving);
        sleep(self.drain.announce).await;
        let begun = Instant::now();
        self.close_ingest.cancel();
        while self.parts.in_flight.bytes() > 0 && begun.elapsed() < crate::entry::REQUEST_MAX {
            sleep(DRAIN_LOOK).await;
        }
        self.parts.membership.leave();
        let empty = async {
            while self.held() > 0 {
                sleep(DRAIN_LOOK).await;
            }
        };
        let left = self.drain.timeout.saturating_sub(begun.elapsed());
        match timeout(left, empty).await {
            Ok(()) => End::Drained,
            Err(_) => End::Left { span_count: self.held() },
        }
    }

    fn held(&self) -> u64 {
        self.parts.shards.held().0.iter().sum()
    }

    async fn stop(mut self) {
        self.close_ingest.cancel();
        self.parts.membership.shutdown().await;
        if let Some(workers) = self.workers.take() {
            workers.shutdown().await;
        }
        self.parts.transport.shutdown().await;
        self.tasks.stop().await;
    }
}

async fn failed(workers: &mut Option<Workers>) {
    match workers {
        Some(workers) => workers.failed().await,
        None => std::future::pending().await,
    }
}

/// The address that others reach this node at.
async fn advertised(config: &Config, bound: SocketAddr) -> Result<SocketAddr, StartError> {
    if let Some(advertise) = config.node.advertise {
        return Ok(advertise);
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let Some(seed) = config.cluster.seeds.first() else {
        return Ok(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), bound.port()));
    };
    let found = async {
        // Connecting a UDP socket sends nothing; it asks the kernel for the route.
        let probe = tokio::net::UdpSocket::bind((bound.ip(), 0)).await?;
        probe.connect(seed.to_string()).await?;
        probe.local_addr()
    };
    let seed = seed.to_string();
    let local = found.await.map_err(|source| StartError::Advertise { seed, source })?;
    Ok(SocketAddr::new(local.ip(), bound.port()))
}

fn ingest_settings(config: &Config) -> ingest::Settings {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    ingest::Settings {
        grpc: config.listen.grpc.clone(),
        http: config.listen.http.clone(),
        request_bytes_max: bytes(config.ingest.request_bytes_max),
        in_flight_max: bytes(config.ingest.in_flight_bytes_max),
        ..Default::default()
    }
}

fn membership_settings(
    config: &Config,
    addresses: &Addresses,
    advertised: SocketAddr,
    wall_clock: &WallClock,
    seed: u64,
) -> Result<tracemesh_membership::Settings, StartError> {
    Ok(tracemesh_membership::Settings {
        cluster: config.cluster.name.clone(),
        node_id: NodeId::from(config.node.id.as_str()),
        mesh_address: advertised,
        seeds: config.cluster.seeds.iter().map(ToString::to_string).collect(),
        alone_after: config.cluster.alone_after,
        replicas: config.cluster.replicas,
        hash_key: HashKey(config.cluster.hash_key.0),
        weight: Weight::new(config.node.weight)?,
        zone: config.node.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        otlp_grpc: addresses.grpc.clone(),
        otlp_http: addresses.http.clone(),
        console: Some(addresses.console),
        config_hash: config.config_hash(),
        starts: None,
        wall_clock: Arc::clone(wall_clock),
        seed,
    })
}

fn limits(traces: &config::Traces) -> Limits {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Limits {
        root_delay: traces.root_delay,
        age_max: traces.age_max,
        spans_max: traces.spans_max,
        bytes_max: bytes(traces.bytes_max),
        remember: traces.remember_time,
        remember_bytes_max: bytes(traces.remember_bytes),
    }
}

fn sink_config(sink: &config::Sink) -> SinkConfig {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    match sink {
        config::Sink::Otlp(otlp) => SinkConfig::Otlp {
            endpoint: otlp.endpoint.to_string(),
            compression: match otlp.compression {
                config::Compression::Zstd => sink::Compression::Zstd,
                config::Compression::Gzip => sink::Compression::Gzip,
                config::Compression::None => sink::Compression::None,
            },
            headers: otlp
                .headers
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect(),
            request_bytes_max: bytes(otlp.request_bytes_max),
            queue_bytes_max: bytes(otlp.queue_bytes_max),
        },
        config::Sink::File { path } => SinkConfig::File { path: path.clone() },
        config::Sink::Stdout => SinkConfig::Stdout,
    }
}
