//! What a node is told: the configuration, from file, variables and flags to real types.
//!
//! Two stages. *As typed* lays defaults, file, variables and flags over each other, keeps where
//! each value was typed, and refuses unknown keys and values that do not parse. *As meant* checks
//! values against each other and against the files that they name, and yields a [`Config`].
//!
//! The invariant: a [`Config`] is complete and consistent, so nobody checks it again; and when
//! there is none, [`ConfigErrors`] has every error at once, each with its place, value and what was
//! expected. A configuration is read once, belongs to the one who loaded it, and is never changed.
//! It does not bind, resolve or connect: whether a port is free or a seed answers is found at the
//! start of the node.

mod error;
mod flags;
mod given;
mod keys;
mod meant;
mod secrets;
mod sinks;
mod surroundings;
mod typed;
mod values;
mod yaml;

#[cfg(test)]
mod tests;

pub use error::{ConfigError, ConfigErrors, Origin, Problem};
pub use flags::Flags;
pub use keys::reference_table;
pub use surroundings::Surroundings;

use crate::sink::{Compression, Protocol};
use crate::tls::{ClientFiles, ServerFiles};
use siphasher::sip::SipHasher13;
use std::fmt;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tracemesh_membership::HashKey;
use tracemesh_transport::{ClusterKey, Credentials};

/// A configuration that makes sense.
#[derive(Clone, Debug)]
pub struct Config {
    /// What members have in common, and how they find each other.
    pub cluster: Cluster,
    /// What this node is.
    pub node: Node,
    /// Where it listens.
    pub listen: Listen,
    /// What it takes in.
    pub ingest: Ingest,
    /// When traces are decided.
    pub traces: Traces,
    /// What it takes of hand-over a second, from all other members together.
    pub hand_over_bytes_per_second: u64,
    /// How it stops.
    pub drain: Drain,
    /// Where traces go; one or more.
    pub sinks: Vec<Sink>,
    /// What it says.
    pub log: Log,
    /// Every value in force, for people.
    pub effective: Vec<Effective>,
}

/// `cluster`.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Part of every certificate.
    pub name: String,
    /// Mesh addresses of any members, perhaps of this node too.
    pub seeds: Vec<HostPort>,
    /// How this node proves that it is a member.
    pub credentials: Credentials,
    /// Key of the placement's hash.
    pub hash_key: HashKey,
    /// How long to wait for seeds before working alone.
    pub alone_after: Duration,
    /// Nodes besides the owner that hold a span before it is acknowledged: 0 or 1.
    pub replicas: u8,
}

/// `node`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Letters, digits, `.`, `_` and `-`; fit for a file name and a URI.
    pub id: String,
    /// Mesh address told to others. None: where the mesh listens, or, when that is every address,
    /// the one by which this host reaches its seeds (there are some then).
    pub advertise: Option<SocketAddr>,
    /// This node's own directory, which ends in its id.
    pub data_dir: PathBuf,
    /// 0.001 to 1000.
    pub weight: f64,
    /// Empty when none was named.
    pub zone: String,
    /// Budget from ingest to sink.
    pub memory_bytes: u64,
}

/// `listen`; a port of 0 lets the system choose. Without an address, TCP is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// OTLP over gRPC.
    pub grpc: Vec<SocketAddr>,
    /// OTLP over HTTP.
    pub http: Vec<SocketAddr>,
    /// The mesh, over UDP.
    pub mesh: SocketAddr,
    /// Console and metrics.
    pub console: Vec<SocketAddr>,
}

/// `ingest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// TLS on both OTLP listeners.
    pub tls: Option<ServerFiles>,
    /// Tokens of the clients that may send; none: everybody may.
    pub bearer_tokens_file: Option<PathBuf>,
    /// Origins of the web pages that may send, or `*`.
    pub cors_origins: Vec<http::HeaderValue>,
    /// Largest request, before and after decompression; at most 1 GiB.
    pub request_bytes_max: u64,
    /// Bytes of requests not yet acknowledged; at least `request_bytes_max`.
    pub in_flight_bytes_max: u64,
    /// Connections of both protocols together; 1 to 1,000,000.
    pub connections_max: usize,
    /// Age at which connections are closed; zero for never.
    pub connection_age_max: Duration,
}

/// `traces`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// From the root span to the decision.
    pub root_delay: Duration,
    /// From the first span to the decision at the latest.
    pub age_max: Duration,
    /// Spans at which a trace is decided; 1 to 10,000,000.
    pub spans_max: u32,
    /// Bytes at which a trace is decided; at most 1 GiB.
    pub bytes_max: u64,
    /// How long decided traces are remembered.
    pub remember_time: Duration,
    /// Memory for that, part of the node's budget.
    pub remember_bytes: u64,
}

/// `drain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Not ready, but still accepting, for so long.
    pub announce: Duration,
    /// How long stopping may take after that.
    pub timeout: Duration,
}

/// One of `sinks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// An OTLP server.
    Otlp(OtlpSink),
    /// A file of OTLP JSON, one trace a line.
    File(FileSink),
    /// The same on standard output.
    Stdout,
}

/// A file sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSink {
    /// Its name; no other sink of this node has the same.
    pub path: PathBuf,
    /// It is put aside before it grows larger; 0: never.
    pub rotate_bytes: u64,
    /// Files that stay besides; 1 or more.
    pub keep: u32,
    /// Whether lines are on the disk before they are acknowledged.
    pub fsync: bool,
}

/// An OTLP sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpSink {
    /// One or more, any of which will do; `http` or `https`, with a path over HTTP only.
    pub endpoints: Vec<http::Uri>,
    /// What they speak.
    pub protocol: Protocol,
    /// How requests are compressed.
    pub compression: Compression,
    /// Headers that go with each request; the values are marked as sensitive.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// How TLS is spoken to `https` endpoints; the files were good when they were read.
    pub tls: ClientFiles,
    /// Largest request.
    pub request_bytes_max: u64,
    /// Bytes that wait.
    pub queue_bytes_max: u64,
    /// How long a trace may be put off.
    pub retry_for: Duration,
    /// Whether the owners of traces wait for it; at least one sink is.
    pub required: bool,
    /// Bound of its dead-letter file.
    pub dead_letter_bytes_max: u64,
}

/// `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: tracing::Level,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Path with dots; sinks are numbered, `sinks[0].file.path`.
    pub path: String,
    /// As one would type it; the values of headers are left out.
    pub value: String,
    /// Where it was typed.
    pub origin: Origin,
}

impl Config {
    /// Bytes in the queues of sinks that are not required; at most half of the node's memory.
    pub fn optional_queue_bytes(&self) -> u64 {
        let queues = self.sinks.iter().map(|sink| match sink {
            Sink::Otlp(otlp) if !otlp.required => otlp.queue_bytes_max,
            Sink::Otlp(_) | Sink::File(_) | Sink::Stdout => 0,
        });
        queues.fold(0, u64::saturating_add)
    }

    /// A hash of what decides the fate of traces (`traces`) and of what must agree in a cluster
    /// (name, replicas, hash key): equal on nodes that were told the same, however it was written.
    pub fn config_hash(&self) -> u64 {
        let mut hasher = SipHasher13::new_with_key(b"tracemesh/config");
        let hashed = |path: &str| {
            path.starts_with("traces.") || ["cluster.name", "cluster.replicas"].contains(&path)
        };
        for Effective { path, value, .. } in &self.effective {
            if hashed(path) {
                hasher.write(format!("{path}={value}\n").as_bytes());
            }
        }
        hasher.write(&self.cluster.hash_key.fingerprint().to_le_bytes());
        hasher.finish()
    }
}

impl Cluster {
    /// Whether neither a key nor certificates were given, so that the built-in key, which protects
    /// nothing, is in use. Everything listens on loopback then.
    pub fn is_for_development(&self) -> bool {
        match &self.credentials {
            Credentials::ClusterKey(keys) => keys.contains(&ClusterKey::development()),
            Credentials::Files { .. } => false,
        }
    }
}

/// An address of another node: a name or an IP, and a port other than 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name, or an IP without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The text is no `HOST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected HOST:PORT")]
pub struct NoHostPort;

impl HostPort {
    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for HostPort {
    type Err = NoHostPort;

    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        let (host, port) = text.rsplit_once(':').ok_or(NoHostPort)?;
        let port: u16 = port.parse().map_err(|_| NoHostPort)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bracketed {
            Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let part = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
                !host.is_empty() && host.chars().all(part)
            }
        };
        match is_host && port != 0 {
            true => Ok(Self { host: bracketed.unwrap_or(host).to_owned(), port }),
            false => Err(NoHostPort),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.port)),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// An amount of memory, absolute or as a part of the node's budget.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Share {
    Percent(u8),
    Bytes(u64),
}

/// Reads the configuration. Nothing but files is touched: those that the configuration names are
/// read and checked, and left to whoever uses them to read again.
///
/// # Errors
/// All that is wrong. Somebody has to change the configuration; the process ends with exit code 2.
pub fn load(flags: &Flags, surroundings: &Surroundings) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let root = flags.config.as_deref().and_then(|path| match read_root(path) {
        Ok(root) => root,
        Err(error) => {
            errors.push(error);
            None
        }
    });
    let typed = typed::read(root.as_ref(), &surroundings.variables, flags, &mut errors);
    let config = meant::config(typed, surroundings, &mut errors);
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors::new(errors)) }
}

fn read_root(path: &Path) -> Result<Option<yaml::Node>, ConfigError> {
    let name: Arc<str> = path.to_string_lossy().into();
    let error = |origin, problem| ConfigError { origin, path: String::new(), problem };
    let text = read_text(path).map_err(|why| {
        let problem = Problem::File { file: name.to_string(), why };
        error(Origin::Flag("--config"), problem)
    })?;
    yaml::parse(&name, &text).map_err(|(origin, problem)| error(origin, problem))
}

/// A whole file as text, or why not in words.
fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    match file.take(yaml::FILE_BYTES_MAX + 1).read_to_string(&mut text) {
        Ok(count) if count as u64 > yaml::FILE_BYTES_MAX => Err("larger than 1 MiB".to_owned()),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("no UTF-8".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
