//! The five seams: everything through which a node touches a world that cannot be replayed.
//!
//! UDP socket, wall clock, randomness, sinks, data directory. [`Environment::real`] is the machine;
//! a simulator hands in its own and runs the same node. Nothing else of a running node opens a mesh
//! socket, reads the wall clock or draws random numbers; commands, which are never simulated, may.

use crate::sink::{self, Sink, SinkConfig, Workers};
use crate::spool::{SpoolFile, SpoolStore};
use rand::rngs::OsRng;
use rand::{RngCore, TryRngCore};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tracemesh_membership::{StartStore, StartsFile};
use tracemesh_transport::{AsyncUdpSocket, BindError, bind_udp};

/// Tells the wall-clock time.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The sinks of a node and the tasks behind them.
pub type StartedSinks = (Vec<Arc<dyn Sink>>, Option<Workers>);

/// Binds a UDP socket for the mesh.
pub type BindMesh = dyn FnOnce(SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>, BindError> + Send;
/// Opens sinks; the path is the directory of dead letters.
pub type StartSinks = dyn FnOnce(
        &[SinkConfig],
        &Path,
        &WallClock,
        &sink::Metrics,
    ) -> Result<StartedSinks, sink::StartError>
    + Send;
/// Opens the record of starts in a data directory.
pub type OpenStarts = dyn FnOnce(&Path) -> Arc<dyn StartStore> + Send;
/// Opens the spool in a data directory.
pub type OpenSpool = dyn FnOnce(&Path) -> Arc<dyn SpoolStore> + Send;

/// What a node is given of the world.
pub struct Environment {
    /// Binds the UDP socket of the mesh.
    pub bind_mesh: Box<BindMesh>,
    /// Tells the time of day, for certificates and generations.
    pub wall_clock: WallClock,
    /// Everything random is drawn from this.
    pub seed: [u8; 32],
    /// Opens the sinks; the path is the directory of dead letters.
    pub start_sinks: Box<StartSinks>,
    /// The record of starts in the data directory at this path.
    pub open_starts: Box<OpenStarts>,
    /// The spool in the data directory at this path.
    pub open_spool: Box<OpenSpool>,
    /// Shards to spread traces over. They are a third of a node's work, and every one is woken for
    /// each frame.
    pub shard_count: usize,
}

impl Environment {
    /// The machine.
    #[expect(clippy::disallowed_methods, reason = "this is the seam for the wall clock")]
    pub fn real() -> Self {
        Self {
            bind_mesh: Box::new(bind_udp),
            wall_clock: Arc::new(SystemTime::now),
            seed: random_seed(),
            start_sinks: Box::new(|configs, dead_letters, clock, metrics| {
                let (sinks, workers) = sink::start(configs, dead_letters, clock, metrics)?;
                Ok((sinks, Some(workers)))
            }),
            open_starts: Box::new(|directory| Arc::new(StartsFile::new(directory.join("starts")))),
            open_spool: Box::new(|directory| Arc::new(SpoolFile::new(directory.join("spool")))),
            shard_count: serving_threads(),
        }
    }
}

/// Threads that serve, and shards: one for two cores. What is passed on from thread to thread costs
/// a tenth more; and what would hold up others is done aside, for which the other cores are.
pub fn serving_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2)
}

/// Random bytes of the machine, for keys and seeds.
pub fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    OsRng.unwrap_err().fill_bytes(&mut seed);
    seed
}
