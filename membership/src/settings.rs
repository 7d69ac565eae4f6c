//! What a membership is started with, and why it may not start.
//!
//! The texts that gossip carries are checked here, once: gossip writes lengths as 16 bits and sends
//! every id in every message, so each text has a bound. Everything that touches the outside, the
//! wall clock and the record of starts, is handed in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::keys::{Agreement, Load, Published};
use crate::slot::HashKey;
use crate::starts::StartStore;
use crate::view::{MemberState, NodeId, Weight};

/// As long as a host name may be. Every gossip message carries all ids.
pub(crate) const NODE_ID_BYTES_MAX: usize = 253;

/// For the texts that people choose: cluster name, zone, version.
const TEXT_BYTES_MAX: usize = 256;

/// The wall clock: the system's, or a simulator's.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What a membership is started with.
#[derive(Clone)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// This node's id: 1 to 253 bytes.
    pub node_id: NodeId,
    /// Where others reach this node's mesh listener.
    pub mesh_address: SocketAddr,
    /// Mesh addresses of any members, `IP:port` or `name:port`; this node's own is passed over.
    pub seeds: Vec<String>,
    /// A node that no seed answers for so long works alone.
    pub alone_after: Duration,
    /// Nodes besides the owner that must hold a span before it is acknowledged.
    pub replicas: u8,
    /// The key that spreads trace ids over slots. Only its fingerprint is told.
    pub hash_key: HashKey,
    /// This node's part of the load.
    pub weight: Weight,
    /// Its rack or site; empty for none.
    pub zone: String,
    /// Its release.
    pub version: String,
    /// Where it takes OTLP over gRPC, as told to others.
    pub otlp_grpc: Vec<SocketAddr>,
    /// Where it takes OTLP over HTTP, as told to others.
    pub otlp_http: Vec<SocketAddr>,
    /// Where its console is, as told to others.
    pub console: Option<SocketAddr>,
    /// Of the settings that may differ for a while.
    pub config_hash: u64,
    /// The record of starts; without one the wall clock alone makes generations.
    pub starts: Option<Arc<dyn StartStore>>,
    /// The wall clock.
    pub wall_clock: WallClock,
    /// Of the jitter in pauses.
    pub seed: u64,
}

/// Why a membership did not start. Trying again changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A text is empty that must not be, or too long for gossip.
    #[error("{key} has {bytes} bytes, but must have {least} to {most}")]
    TextLength {
        /// The setting.
        key: &'static str,
        /// Its length.
        bytes: usize,
        /// The least that is allowed.
        least: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// Others could never reach this node.
    #[error("mesh address {address} cannot be told to others")]
    MeshAddress {
        /// The address that was given.
        address: SocketAddr,
    },
    /// The record of starts cannot be read or written, so the generation might go back.
    #[error("cannot {attempt} the record of starts")]
    Starts {
        /// "read" or "write".
        attempt: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let texts = [
            ("node.id", self.node_id.as_str(), 1, NODE_ID_BYTES_MAX),
            ("cluster.name", self.cluster.as_str(), 1, TEXT_BYTES_MAX),
            ("node.zone", self.zone.as_str(), 0, TEXT_BYTES_MAX),
            ("version", self.version.as_str(), 0, TEXT_BYTES_MAX),
        ];
        for (key, text, least, most) in texts {
            let bytes = text.len();
            if bytes < least || bytes > most {
                return Err(StartError::TextLength { key, bytes, least, most });
            }
        }
        let address = self.mesh_address;
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(StartError::MeshAddress { address });
        }
        Ok(())
    }

    /// What this node says of itself to begin with.
    pub(crate) fn published(&self) -> Published {
        Published {
            state: MemberState::Joining,
            epoch: 0,
            view_hash: 0,
            settled: 0,
            weight: self.weight,
            zone: Arc::from(self.zone.as_str()),
            version: self.version.clone(),
            otlp_grpc: self.otlp_grpc.clone(),
            otlp_http: self.otlp_http.clone(),
            console: self.console,
            fill: 0,
            load: Load::default(),
            config_hash: self.config_hash,
            agreement: Agreement {
                cluster: self.cluster.clone(),
                replicas: self.replicas,
                hash_key: self.hash_key.fingerprint(),
            },
        }
    }
}
