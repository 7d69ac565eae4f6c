//! The second stage: configuration as it is meant.
//!
//! Takes values that parse and gives them their real types, fills in what depends on other values
//! or on the machine, reads the files that are named, and holds each rule that spans several keys.
//! A rule is not applied where one of its keys is wrong already, so that one mistake is one error.
//! After an error the result is of no use, and the caller throws it away.

use super::error::{ConfigError, Origin, Problem};
use super::given::Values;
use super::keys::KEYS;
use super::surroundings::Surroundings;
use super::typed::{Typed, TypedSink};
use super::values::{Kind, Value};
use super::{
    Cluster, Config, Drain, Effective, HostPort, Ingest, Listen, Log, LogFormat, Node, Share,
    Traces,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The port of the mesh by which a node needs no port in its name.
pub(super) const MESH_PORT: u16 = 4319;

/// The largest default of `node.memory`, and the default where the machine's memory is unknown.
const MEMORY_BYTES_MAX: u64 = 4 << 30;

/// What to do about a listener that is open to others while the mesh is open to all.
pub(super) const NEEDS_KEY: &str = "without a cluster key or certificates it has to be loopback; \
    print a key with `tracemesh keygen` and name its file in cluster.key_file";

/// Gives values their meaning; what is wrong with them together is added to `errors`.
pub(super) fn config(
    typed: Typed,
    surroundings: &Surroundings,
    errors: &mut Vec<ConfigError>,
) -> Config {
    let Typed { values, sinks } = typed;
    let mut meaning = Meaning { values, surroundings, errors };
    let cluster = meaning.cluster();
    let listen = meaning.listen(&cluster);
    let node = meaning.node(&cluster, &listen);
    let ingest = meaning.ingest();
    let traces = meaning.traces(node.memory_bytes);
    let hand_over_bytes_per_second = meaning.values.size("hand_over.bandwidth");
    let drain = meaning.drain();
    let log = meaning.log();
    let sinks = meaning.with_default_files(sinks, listen.mesh.port());
    let effective = effective(&meaning.values, &sinks);
    let typed_sinks = sinks;
    let sinks = meaning.sinks(&typed_sinks);
    let config = Config {
        cluster,
        node,
        listen,
        ingest,
        traces,
        hand_over_bytes_per_second,
        drain,
        sinks,
        log,
        effective,
    };
    meaning.check_queues(&config, &typed_sinks);
    config
}

/// The values in force, in the order of the table, then the sinks in theirs.
fn effective(values: &Values, sinks: &[TypedSink]) -> Vec<Effective> {
    let in_order = |values: &Values, section: &str| {
        let given = KEYS.iter().filter_map(|key| Some((key.path, values.get(key.path)?)));
        let effective = given.map(|(path, given)| Effective {
            path: path.replacen("sinks", section, 1),
            value: given.value.to_string(),
            origin: given.origin.clone(),
        });
        effective.collect::<Vec<_>>()
    };
    let mut effective = in_order(values, "");
    for (index, sink) in sinks.iter().enumerate() {
        let section = format!("sinks[{index}]");
        effective.push(Effective {
            path: section.clone(),
            value: sink.kind.section().replace("sinks.", ""),
            origin: sink.origin.clone(),
        });
        effective.extend(in_order(&sink.values, &section));
    }
    effective
}

/// The second stage at work.
pub(super) struct Meaning<'a> {
    pub(super) values: Values,
    surroundings: &'a Surroundings,
    errors: &'a mut Vec<ConfigError>,
}

impl Meaning<'_> {
    pub(super) fn error(&mut self, origin: Origin, path: &str, problem: Problem) {
        self.errors.push(ConfigError { origin, path: path.to_owned(), problem });
    }

    pub(super) fn conflict(&mut self, path: &str, why: impl Into<String>) {
        let origin = self.values.origin(path);
        self.error(origin, path, Problem::Conflict(why.into()));
    }

    /// Whether nothing is wrong yet with the values of these keys, or of those inside of them.
    pub(super) fn is_clean(&self, paths: &[&str]) -> bool {
        let is_at = |error: &ConfigError| paths.iter().any(|path| error.path.starts_with(path));
        !self.errors.iter().any(is_at)
    }

    fn cluster(&mut self) -> Cluster {
        let credentials = self.credentials();
        let cluster = Cluster {
            name: self.values.text("cluster.name").to_owned(),
            seeds: self.values.addresses("cluster.seeds"),
            hash_key: self.hash_key(&credentials),
            credentials,
            alone_after: self.values.duration("cluster.alone_after"),
            replicas: if self.values.count("cluster.replicas") == 0 { 0 } else { 1 },
        };
        if self.is_open(&cluster) {
            let is_other = |seed: &&HostPort| seed.ip().is_some_and(|ip| !is_loopback(ip));
            for seed in cluster.seeds.iter().filter(is_other) {
                self.conflict("cluster.seeds", format!("{seed} is not loopback; {NEEDS_KEY}"));
            }
        }
        cluster
    }

    /// Whether anybody who reaches the mesh may join it, and that is not for a mistyped key.
    fn is_open(&self, cluster: &Cluster) -> bool {
        cluster.is_for_development() && self.is_clean(&["cluster.key_file", "cluster.tls"])
    }

    fn listen(&mut self, cluster: &Cluster) -> Listen {
        let bind = self.values.ip("node.bind");
        let is_open = self.is_open(cluster);
        if is_open && !is_loopback(bind) {
            self.conflict("node.bind", format!("{bind} is not loopback; {NEEDS_KEY}"));
        }
        let [grpc, http, mesh, console] =
            ["listen.grpc", "listen.http", "listen.mesh", "listen.console"].map(|path| {
                let addresses = self.addresses(path, bind);
                let is_other =
                    |address: &&SocketAddr| address.ip() != bind && !is_loopback(address.ip());
                for address in addresses.iter().filter(is_other).filter(|_| is_open) {
                    self.conflict(path, format!("{address} is not loopback; {NEEDS_KEY}"));
                }
                addresses
            });
        let listen = Listen { grpc, http, mesh: mesh[0], console };
        self.check_ports(&listen);
        listen
    }

    /// Where to listen, with every IP filled in; so it stands among the values in force, too.
    fn addresses(&mut self, path: &'static str, bind: IpAddr) -> Vec<SocketAddr> {
        let addresses = self.values.listeners(path, bind);
        let values = addresses.iter().map(|address| Value::Socket(*address));
        self.values.insert(path, self.values.origin(path), Value::List(values.collect()));
        addresses
    }

    /// Only what is certain already: whether a port is free is found when it is bound.
    fn check_ports(&mut self, listen: &Listen) {
        let grpc = listen.grpc.iter().map(|address| ("listen.grpc", *address));
        let http = listen.http.iter().map(|address| ("listen.http", *address));
        let console = listen.console.iter().map(|address| ("listen.console", *address));
        let mut taken = BTreeMap::new();
        for (path, address) in grpc.chain(http).chain(console) {
            if address.port() == 0 {
                continue;
            }
            if let Some(other) = taken.insert(address, path) {
                self.conflict(path, format!("{address} stands in {other} already"));
            }
        }
    }

    fn node(&mut self, cluster: &Cluster, listen: &Listen) -> Node {
        let id = self.node_id(listen.mesh.port());
        let quarter = self.surroundings.memory_bytes.map_or(MEMORY_BYTES_MAX, |bytes| bytes / 4);
        self.values.set_default("node.memory", Value::Size(quarter.min(MEMORY_BYTES_MAX)));
        Node {
            advertise: self.advertise(cluster, listen),
            data_dir: PathBuf::from(self.values.text("node.data_dir")).join(&id),
            id,
            weight: self.values.number("node.weight"),
            zone: self.values.text("node.zone").to_owned(),
            memory_bytes: self.values.size("node.memory"),
        }
    }

    fn node_id(&mut self, mesh_port: u16) -> String {
        let host = &self.surroundings.host_name;
        let id = match mesh_port {
            MESH_PORT => host.clone(),
            port => format!("{host}-{port}"),
        };
        if self.values.get("node.id").is_none() && Kind::Name.parse(&id).is_none() {
            let expected = Kind::Name.expected();
            let why = format!("the host name makes {id:?}, which is no name; set it: {expected}");
            self.conflict("node.id", why);
        }
        self.values.set_default("node.id", Value::Text(id));
        self.values.text("node.id").to_owned()
    }

    fn advertise(&mut self, cluster: &Cluster, listen: &Listen) -> Option<SocketAddr> {
        const PATH: &str = "node.advertise";
        let given = self.values.optional_socket(PATH);
        if given.is_some_and(|address| address.ip().is_unspecified() || address.port() == 0) {
            self.conflict(PATH, "others cannot reach that; expected an address of this machine");
        }
        let is_found = !listen.mesh.ip().is_unspecified() || !cluster.seeds.is_empty();
        if given.is_none()
            && !is_found
            && self.is_clean(&[PATH, "cluster.seeds", "node.bind", "listen.mesh"])
        {
            let mesh = listen.mesh;
            let why = format!(
                "the mesh listens on every address ({mesh}), and there is no seed by which to \
                 find the one that others reach; expected IP:PORT of this machine"
            );
            self.conflict(PATH, why);
        }
        given
    }

    fn ingest(&mut self) -> Ingest {
        let ingest = Ingest {
            tls: self.ingest_tls(),
            bearer_tokens_file: self.bearer_tokens_file(),
            cors_origins: self.cors_origins(),
            request_bytes_max: self.values.size("ingest.request_bytes_max"),
            in_flight_bytes_max: self.values.size("ingest.in_flight_max"),
            connections_max: usize::try_from(self.values.count("ingest.connections_max"))
                .unwrap_or(usize::MAX),
            connection_age_max: self.values.duration("ingest.connection_age_max"),
        };
        let limits = ["ingest.request_bytes_max", "ingest.in_flight_max"];
        if ingest.request_bytes_max > ingest.in_flight_bytes_max && self.is_clean(&limits) {
            let most = self.values.typed("ingest.in_flight_max");
            let why = format!("more than ingest.in_flight_max ({most}), so it could never come in");
            self.conflict("ingest.request_bytes_max", why);
        }
        ingest
    }

    /// In the form of a header; what is no origin was found before.
    fn cors_origins(&self) -> Vec<http::HeaderValue> {
        let origins = self.values.list_of_texts("ingest.cors_origins");
        origins.into_iter().filter_map(|origin| origin.parse().ok()).collect()
    }

    fn traces(&self, memory_bytes: u64) -> Traces {
        let remember_bytes = match self.values.share("traces.remember.memory") {
            Share::Percent(percent) => memory_bytes / 100 * u64::from(percent),
            Share::Bytes(bytes) => bytes,
        };
        Traces {
            root_delay: self.values.duration("traces.root_delay"),
            age_max: self.values.duration("traces.age_max"),
            spans_max: u32::try_from(self.values.count("traces.spans_max")).unwrap_or(u32::MAX),
            bytes_max: self.values.size("traces.bytes_max"),
            remember_time: self.values.duration("traces.remember.time"),
            remember_bytes,
        }
    }

    fn drain(&self) -> Drain {
        Drain {
            announce: self.values.duration("drain.announce"),
            timeout: self.values.duration("drain.timeout"),
        }
    }

    fn log(&self) -> Log {
        let level = self.values.text("log.level").parse().unwrap_or(tracing::Level::INFO);
        let format = match self.values.text("log.format") {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        };
        Log { level, format }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
