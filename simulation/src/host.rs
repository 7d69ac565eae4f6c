//! A machine of the simulated cluster, and the node that runs on it.
//!
//! The node is the product's own, in a runtime of its own with a paused clock, so that whatever
//! runs in it, tasks of libraries too, can be crashed, stopped and slowed together. Disk, sink and
//! wall clock belong to the machine and outlive the process. The invariant: a process runs only
//! inside [`Host::turn`] (and when it is started or ended), on its own account of memory, and never
//! past the time that it is told.

use crate::allocator::{self, charge};
use crate::clock::{Clock, WallClock};
use crate::dice::Dice;
use crate::disk::Disk;
use crate::network::{self, Network};
use crate::plan::{Data, Generation, NodeNumber, Plan, Seen, node_id};
use crate::sink::SimulatedSink;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracemesh::config::{self, Config, Flags, Surroundings};
use tracemesh::environment::Environment;
use tracemesh::ingest::{Accepted, Export, Refusal};
use tracemesh::node::{End, Node, Observer};
use tracemesh::route::Router;
use tracemesh::sink::Sink;

/// How far back a clock goes that makes an older generation than the last.
const OLDER_BY: Duration = Duration::from_secs(10);

/// Where a client finds what a node answered.
pub type AnswerSlot = Arc<OnceLock<Said>>;

/// What a node answered, and the hash of the view that it had then.
#[derive(Clone, Debug)]
pub struct Said {
    /// The answer.
    pub answer: Result<Accepted, Refusal>,
    /// The view.
    pub view: u64,
}

/// A machine, with a process on it or without.
pub struct Host {
    number: NodeNumber,
    seed: u64,
    config: Config,
    shard_count: usize,
    network: Network,
    disk: Arc<Disk>,
    sink: Arc<SimulatedSink>,
    wall_clock: WallClock,
    starts: u64,
    started_at: Duration,
    process: Option<Process>,
    former_counters: BTreeMap<String, u64>,
}

struct Process {
    runtime: Runtime,
    clock: Clock,
    router: Router,
    observer: Observer,
    leave: CancellationToken,
    end: JoinHandle<End>,
    /// Until when it has run.
    at: Duration,
    paused: bool,
}

impl Host {
    /// A machine whose node is not started.
    pub fn new(
        plan: &Plan,
        number: NodeNumber,
        network: Network,
        data: &Path,
        replicas: u8,
    ) -> anyhow::Result<Self> {
        let disk = Arc::new(Disk::default());
        let sink = SimulatedSink::new(plan.seed, &format!("sink {number}"), Arc::clone(&disk));
        Ok(Self {
            number,
            seed: plan.seed,
            config: config_of(plan, number, data, replicas)?,
            shard_count: plan.cluster.shards,
            network,
            disk,
            sink: Arc::new(sink),
            wall_clock: WallClock::default(),
            starts: 0,
            started_at: Duration::ZERO,
            process: None,
            former_counters: BTreeMap::new(),
        })
    }

    /// The secret by which its node spreads trace ids over slots.
    pub fn hash_key(&self) -> [u8; 16] {
        self.config.cluster.hash_key.0
    }

    /// Its sink.
    pub fn sink(&self) -> &SimulatedSink {
        &self.sink
    }

    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its wall clock.
    pub fn wall_clock(&self) -> &WallClock {
        &self.wall_clock
    }

    /// Whether a process runs on it, paused or not.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Whether its process stands still.
    pub fn is_paused(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.paused)
    }

    /// Starts a process; it must have none.
    ///
    /// # Errors
    /// What the node says of why it does not start. There is no process then.
    pub fn start(&mut self, now: Duration) -> Result<(), String> {
        self.starts += 1;
        self.started_at = now;
        allocator::open(self.number);
        let purpose = format!("node {} start {}", self.number, self.starts);
        let mut dice = Dice::new(self.seed, &purpose);
        let mut seed = [0; 32];
        for part in seed.chunks_mut(8) {
            part.copy_from_slice(&dice.word().to_le_bytes());
        }
        let process = charge(Some(self.number), || self.start_process(now, seed));
        self.process = Some(process?);
        Ok(())
    }

    fn start_process(&self, now: Duration, seed: [u8; 32]) -> Result<Process, String> {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let clock = runtime.block_on(async { Clock::starting_at(now) });
        let environment = self.environment(&clock, seed);
        let node = runtime.block_on(Node::start(&self.config, environment));
        let node = node.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        let (router, observer) = (node.export(), node.observer());
        let leave = CancellationToken::new();
        let asked = leave.clone();
        let end = runtime.spawn(async move { node.run(asked.cancelled()).await });
        Ok(Process { runtime, clock, router, observer, leave, end, at: now, paused: false })
    }

    fn environment(&self, clock: &Clock, seed: [u8; 32]) -> Environment {
        let (network, own_clock) = (self.network.clone(), clock.clone());
        let (wall_clock, own_time) = (self.wall_clock.clone(), clock.clone());
        let (sink, disk) = (Arc::clone(&self.sink), Arc::clone(&self.disk));
        let spool = Arc::clone(&self.disk);
        Environment {
            bind_mesh: Box::new(move |address| network.bind(address, own_clock)),
            wall_clock: Arc::new(move || wall_clock.shows(own_time.now())),
            seed,
            start_sinks: Box::new(|_, _, _, _| Ok((vec![sink as Arc<dyn Sink>], None))),
            open_starts: Box::new(|_| disk),
            open_spool: Box::new(|_| spool),
            shard_count: self.shard_count,
        }
    }

    /// Lets the process run until `until`.
    pub fn turn(&mut self, until: Duration) {
        let Some(process) = self.process.as_mut().filter(|process| !process.paused) else { return };
        let (number, network, sink) = (self.number, &self.network, &self.sink);
        charge(Some(number), || {
            process.runtime.block_on(async {
                network.announce(number, until);
                sink.answer(process.at);
                tokio::time::sleep_until(process.clock.instant(until)).await;
            });
        });
        process.at = until;
    }

    /// Lets the process run until `until`, but only from `from` on: before that it got no turn.
    pub fn late_turn(&mut self, from: Duration, until: Duration) {
        if !self.is_paused() {
            self.skip(from, Seen::Jump);
            self.turn(until);
        }
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        if let Some(process) = &mut self.process {
            process.paused = true;
        }
    }

    /// SIGCONT.
    pub fn resume(&mut self, now: Duration, seen: Seen) {
        if let Some(process) = self.process.as_mut().filter(|process| process.paused) {
            process.paused = false;
            self.skip(now, seen);
        }
    }

    /// Time passes in which the process does not run.
    fn skip(&mut self, until: Duration, seen: Seen) {
        let Some(process) = &mut self.process else { return };
        let missed = until.saturating_sub(process.at);
        match seen {
            Seen::Jump => charge(Some(self.number), || {
                process.runtime.block_on(tokio::time::advance(missed));
            }),
            Seen::StoodStill => {
                let ms = u64::try_from(missed.as_millis()).unwrap_or(u64::MAX);
                process.clock.lose(ms);
                self.wall_clock.step(-i64::try_from(ms).unwrap_or(i64::MAX));
            }
        }
        process.at = until;
    }

    /// The process ends without a word.
    pub fn crash(&mut self) {
        self.network.unplug(self.number);
        self.bury();
    }

    fn bury(&mut self) {
        self.sink.hang_up();
        if let Some(process) = self.process.take() {
            for (name, count) in process.observer.counters() {
                *self.former_counters.entry(name).or_default() += count;
            }
            charge(Some(self.number), || {
                let Process { runtime, clock, router, observer, leave, end, .. } = process;
                drop(runtime);
                drop((clock, router, observer, leave, end));
            });
        }
    }

    /// SIGTERM.
    pub fn drain(&self) {
        if let Some(process) = &self.process {
            process.leave.cancel();
        }
    }

    /// How the process ended, if it did by itself since this was last asked.
    pub fn ended(&mut self) -> Option<Result<End, String>> {
        let process = self.process.as_mut().filter(|process| process.end.is_finished())?;
        let end = process.runtime.block_on(&mut process.end).map_err(|error| error.to_string());
        self.bury();
        Some(end)
    }

    /// A look at the node.
    pub fn observer(&mut self) -> Option<&mut Observer> {
        Some(&mut self.process.as_mut()?.observer)
    }

    /// What the processes that are gone had counted, by the names of [`Observer::counters`].
    pub fn former_counters(&self) -> &BTreeMap<String, u64> {
        &self.former_counters
    }

    /// What becomes of the machine between two processes, and of what is on its disk.
    pub fn prepare_restart(&self, now: Duration, generation: Generation, data: Data) -> Data {
        let since = i64::try_from((now - self.started_at).as_millis()).unwrap_or(i64::MAX);
        let back = match generation {
            Generation::New => 0,
            Generation::Same => since,
            Generation::Older => since + OLDER_BY.as_millis() as i64,
        };
        self.wall_clock.step(-back);
        if data == Data::Kept && back == 0 {
            return Data::Kept;
        }
        self.disk.erase();
        Data::Lost
    }

    /// Hands a request to the node as its protocol servers would; none without a process.
    pub fn send(&self, request: Bytes) -> Option<(AnswerSlot, Exporting)> {
        let process = self.process.as_ref()?;
        let slot = AnswerSlot::default();
        let (said, router) = (Arc::clone(&slot), process.router.clone());
        let mut observer = process.observer.clone();
        let exporting = charge(Some(self.number), || {
            process.runtime.spawn(async move {
                let answer = router.export(request).await;
                let view = observer.view().hash();
                // Each slot is for one answer. The client keeps it, so it is the world's.
                let _ = charge(None, || said.set(Said { answer: answer.clone(), view }));
            })
        });
        let exporting = Exporting { task: Some(exporting.abort_handle()), node: self.number };
        Some((slot, exporting))
    }
}

/// A request that a node works on. What the node needed for that is its own, whoever is the last to
/// let go of it.
pub struct Exporting {
    task: Option<AbortHandle>,
    node: NodeNumber,
}

impl Exporting {
    /// The client went away.
    pub fn abort(&self) {
        if let Some(task) = &self.task {
            charge(Some(self.node), || task.abort());
        }
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        charge(Some(self.node), || drop(self.task.take()));
    }
}

fn config_of(plan: &Plan, number: NodeNumber, data: &Path, replicas: u8) -> anyhow::Result<Config> {
    let seeds = 0..plan.nodes.min(3);
    let flags = Flags {
        node_id: Some(node_id(number)),
        seed: seeds.map(|seed| network::address(seed).to_string()).collect(),
        data_dir: Some(data.display().to_string()),
        sink: vec!["stdout".to_owned()],
        ..Default::default()
    };
    let options = &plan.cluster;
    let ms = |ms: crate::plan::Millis| format!("{}ms", ms.0);
    let variables = [
        ("TRACEMESH_LISTEN__MESH", network::address(number).to_string()),
        ("TRACEMESH_CLUSTER__REPLICAS", replicas.to_string()),
        ("TRACEMESH_NODE__ZONE", plan.zone(number)),
        ("TRACEMESH_NODE__MEMORY", format!("{}B", options.memory_bytes)),
        ("TRACEMESH_TRACES__ROOT_DELAY", ms(options.root_delay_ms)),
        ("TRACEMESH_TRACES__AGE_MAX", ms(options.age_max_ms)),
        ("TRACEMESH_DRAIN__ANNOUNCE", ms(options.drain_announce_ms)),
        ("TRACEMESH_DRAIN__TIMEOUT", ms(options.drain_timeout_ms)),
    ];
    let surroundings = Surroundings {
        variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
        host_name: "simulated".to_owned(),
        memory_bytes: Some(1 << 30),
    };
    let mut config = config::load(&flags, &surroundings)
        .map_err(|errors| anyhow::anyhow!("no node can be configured like this: {errors}"))?;
    // Requests come by the function that both protocol servers call, and nobody looks at a console.
    config.listen.grpc.clear();
    config.listen.http.clear();
    config.listen.console.clear();
    Ok(config)
}
