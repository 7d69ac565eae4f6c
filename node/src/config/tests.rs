//! The configuration from a user's side: what is typed, and what comes of it.

use super::keys::{KEYS, NOT_YET};
use super::meant::NEEDS_KEY;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use tempfile::TempDir;
use tracemesh_transport::{ClusterKey, Credentials};

/// Configurations are loaded on a machine of which everything is known.
struct Machine {
    directory: TempDir,
    surroundings: Surroundings,
    flags: Flags,
}

impl Machine {
    fn new() -> Self {
        let surroundings = Surroundings {
            variables: BTreeMap::new(),
            host_name: "host-1".to_owned(),
            memory_bytes: Some(8 << 30),
        };
        let directory = tempfile::tempdir().unwrap();
        Self { directory, surroundings, flags: Flags::default() }
    }

    fn with_file(mut self, text: &str) -> Self {
        self.flags.config = Some(self.file("tracemesh.yaml", text));
        self
    }

    fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.surroundings.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn with_flags(mut self, change: impl FnOnce(&mut Flags)) -> Self {
        change(&mut self.flags);
        self
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        load(&self.flags, &self.surroundings)
    }

    #[track_caller]
    fn config(&self) -> Config {
        self.load().unwrap_or_else(|errors| panic!("it is valid:\n{errors}"))
    }

    /// The errors, a line each, with the file named without its directory.
    #[track_caller]
    fn errors(&self) -> Vec<String> {
        let directory = format!("{}/", self.directory.path().display());
        let errors = self.load().expect_err("it is not valid").to_string();
        errors.lines().map(|line| line.replace(&directory, "")).collect()
    }
}

#[track_caller]
fn assert_errors(file: &str, expected: &[&str]) {
    assert_eq!(Machine::new().with_file(file).errors(), expected);
}

fn key_text(seed: u64) -> String {
    use rand::SeedableRng;
    ClusterKey::generate(&mut rand::rngs::StdRng::seed_from_u64(seed)).to_text()
}

// What is in force.

#[test]
fn nothing_typed_is_one_node_on_loopback() {
    let config = Machine::new().config();
    assert_eq!(config.cluster.name, "tracemesh");
    assert_eq!(config.cluster.seeds, []);
    assert!(config.cluster.is_for_development());
    assert_eq!(config.cluster.hash_key.0, ClusterKey::development().hash_key());
    assert_eq!(config.cluster.alone_after, Duration::from_secs(10));
    assert_eq!(config.cluster.replicas, 1);
    let node = Node {
        id: "host-1".to_owned(),
        advertise: None,
        data_dir: "./tracemesh-data/host-1".into(),
        weight: 1.0,
        zone: String::new(),
        memory_bytes: 2 << 30,
    };
    assert_eq!(config.node, node);
    let listen = Listen {
        grpc: vec!["127.0.0.1:4317".parse().unwrap()],
        http: vec!["127.0.0.1:4318".parse().unwrap()],
        mesh: "127.0.0.1:4319".parse().unwrap(),
        console: vec!["127.0.0.1:4320".parse().unwrap()],
    };
    assert_eq!(config.listen, listen);
    let ingest = Ingest {
        tls: None,
        bearer_tokens_file: None,
        cors_origins: vec![],
        request_bytes_max: 64 << 20,
        in_flight_bytes_max: 256 << 20,
        connections_max: 10_000,
        connection_age_max: Duration::from_secs(300),
    };
    assert_eq!(config.ingest, ingest);
    let traces = Traces {
        root_delay: Duration::from_secs(6),
        age_max: Duration::from_secs(30),
        spans_max: 20_000,
        bytes_max: 32 << 20,
        remember_time: Duration::from_secs(600),
        remember_bytes: (2 << 30) / 100 * 10,
    };
    assert_eq!(config.traces, traces);
    let drain = Drain { announce: Duration::from_secs(5), timeout: Duration::from_secs(60) };
    assert_eq!(config.drain, drain);
    assert_eq!(config.sinks, [file_sink("./tracemesh-traces.jsonl")]);
    assert_eq!(config.log, Log { level: tracing::Level::INFO, format: LogFormat::Text });
}

#[test]
fn empty_files_change_nothing() {
    let defaults = Machine::new().config().effective;
    for text in ["", "# nothing\n", "---\n", "node:\ncluster:\n  tls:\n  key_file:\nsinks:\n", "{}"]
    {
        assert_eq!(Machine::new().with_file(text).config().effective, defaults, "{text:?}");
    }
}

/// Every key has another value than its default.
const FULL: &str = "\
cluster:
  name: blue
  seeds: [10.0.0.1:4319, 'mesh.example:4319', '[2001:db8::1]:4319']
  key_file: ${env:KEY_FILE}
  hash_key_file: ${env:HASH_KEY_FILE}
  alone_after: 1m
  replicas: 0
node:
  id: n1
  bind: 10.0.0.2
  advertise: 10.0.0.3:9319
  data_dir: /var/lib/tracemesh
  weight: 2.5
  zone: rack 7
  memory: 1GiB
listen:
  grpc: [':4317', '127.0.0.1:21890']
  http: []
  mesh: '[::]:4319'
  console: '127.0.0.1:0'
ingest:
  tls:
    cert_file: ${env:CERT_FILE}
    key_file: ${env:TLS_KEY_FILE}
    client_ca_file: ${env:CERT_FILE}
  bearer_tokens_file: ${env:TOKENS_FILE}
  cors_origins: ['https://shop.example', 'http://localhost:3000']
  request_bytes_max: 1MiB
  in_flight_max: 1 MiB
  connections_max: 7
  connection_age_max: 0s
traces:
  root_delay: 250ms
  age_max: 1h
  spans_max: 1
  bytes_max: 2KiB
  remember: {time: 0s, memory: 5MiB}
hand_over: {bandwidth: 2MiB}
drain: {announce: 0s, timeout: 1s}
sinks:
  - otlp:
      endpoint: [http://collector:4318/, http://other/otlp]
      protocol: http
      compression: gzip
      headers: {Authorization: Basic abc, x-tenant: blue}
      request_bytes_max: 1MiB
      queue: 8MiB
      retry_for: 1h
      required: false
      dead_letter_max: 1MiB
  - file: {path: /tmp/traces.jsonl, rotate: 1MiB, keep: 3, fsync: true}
  - stdout: {}
  - otlp:
log: {level: debug, format: json}
";

/// A certificate that signed itself, and its key, both as PEM.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// The variables of [`FULL`] that name files for TLS and tokens.
fn with_ingest_files(machine: Machine) -> Machine {
    let (certificate, key) = certificate();
    let files = [
        ("CERT_FILE", machine.file("cert.pem", &certificate)),
        ("TLS_KEY_FILE", machine.file("key.pem", &key)),
        ("TOKENS_FILE", machine.file("tokens", "cart:secret\n")),
    ];
    files.into_iter().fold(machine, |machine, (name, path)| {
        machine.with_variable(name, &path.display().to_string())
    })
}

/// A file sink with all defaults.
fn file_sink(path: &str) -> Sink {
    let (rotate_bytes, keep) = (256 << 20, 8);
    Sink::File(FileSink { path: path.into(), rotate_bytes, keep, fsync: false })
}

fn full() -> Config {
    let machine = with_ingest_files(Machine::new());
    let key = machine.file("cluster.key", &key_text(1)).display().to_string();
    let hash_key = machine.file("hash.key", "000102030405060708090a0b0c0d0e0f\n");
    let machine = machine
        .with_file(FULL)
        .with_variable("KEY_FILE", &key)
        .with_variable("HASH_KEY_FILE", &hash_key.display().to_string());
    machine.config()
}

#[test]
fn every_key_with_a_range_or_default_is_set_in_the_full_file() {
    let config = full();
    for key in KEYS {
        let shown = config.effective.iter().find(|value| {
            value.path.replace("sinks[0]", "sinks").replace("sinks[1]", "sinks") == key.path
        });
        let Some(shown) = shown else { continue };
        assert_ne!(shown.origin, Origin::Default, "{}", key.path);
    }
}

#[test]
fn keys_of_cluster_and_node_mean_what_they_say() {
    let config = full();
    let seeds: Vec<_> = config.cluster.seeds.iter().map(ToString::to_string).collect();
    assert_eq!(seeds, ["10.0.0.1:4319", "mesh.example:4319", "[2001:db8::1]:4319"]);
    assert_eq!(config.cluster.name, "blue");
    let Credentials::ClusterKey(keys) = &config.cluster.credentials else { panic!("a key") };
    assert_eq!(keys, &ClusterKey::parse_file(&key_text(1)).unwrap());
    assert_eq!(config.cluster.hash_key.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(config.cluster.alone_after, Duration::from_secs(60));
    assert_eq!(config.cluster.replicas, 0);
    let node = Node {
        id: "n1".to_owned(),
        advertise: Some("10.0.0.3:9319".parse().unwrap()),
        data_dir: "/var/lib/tracemesh/n1".into(),
        weight: 2.5,
        zone: "rack 7".to_owned(),
        memory_bytes: 1 << 30,
    };
    assert_eq!(config.node, node);
}

#[test]
fn keys_of_listen_ingest_traces_drain_and_log_mean_what_they_say() {
    let config = full();
    let listen = Listen {
        grpc: vec!["10.0.0.2:4317".parse().unwrap(), "127.0.0.1:21890".parse().unwrap()],
        http: vec![],
        mesh: "[::]:4319".parse().unwrap(),
        console: vec!["127.0.0.1:0".parse().unwrap()],
    };
    assert_eq!(config.listen, listen);
    let Ingest { tls: Some(tls), bearer_tokens_file: Some(tokens), .. } = &config.ingest else {
        panic!("both are set: {:?}", config.ingest)
    };
    assert!(tls.cert_file.ends_with("cert.pem") && tls.key_file.ends_with("key.pem"));
    assert_eq!(tls.client_ca_file.as_ref(), Some(&tls.cert_file));
    assert!(tokens.ends_with("tokens"));
    assert_eq!(config.ingest.cors_origins, ["https://shop.example", "http://localhost:3000"]);
    assert_eq!(config.ingest.request_bytes_max, 1 << 20);
    assert_eq!(config.ingest.in_flight_bytes_max, 1 << 20);
    assert_eq!(config.ingest.connections_max, 7);
    assert_eq!(config.ingest.connection_age_max, Duration::ZERO);
    let traces = Traces {
        root_delay: Duration::from_millis(250),
        age_max: Duration::from_secs(3600),
        spans_max: 1,
        bytes_max: 2048,
        remember_time: Duration::ZERO,
        remember_bytes: 5 << 20,
    };
    assert_eq!(config.traces, traces);
    assert_eq!(config.hand_over_bytes_per_second, 2 << 20);
    let drain = Drain { announce: Duration::ZERO, timeout: Duration::from_secs(1) };
    assert_eq!(config.drain, drain);
    assert_eq!(config.log, Log { level: tracing::Level::DEBUG, format: LogFormat::Json });
}

#[test]
fn keys_of_sinks_mean_what_they_say() {
    let config = full();
    let [Sink::Otlp(first), Sink::File(file), Sink::Stdout, Sink::Otlp(last)] =
        config.sinks.as_slice()
    else {
        panic!("four sinks in their order: {:?}", config.sinks)
    };
    assert_eq!(first.endpoints, ["http://collector:4318/", "http://other/otlp"]);
    assert_eq!((first.protocol, first.retry_for), (Protocol::Http, Duration::from_secs(3600)));
    assert_eq!(first.compression, Compression::Gzip);
    let headers = first.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let expected: [(&str, &[u8]); 2] = [("authorization", b"Basic abc"), ("x-tenant", b"blue")];
    assert_eq!(headers.collect::<Vec<_>>(), expected);
    assert_eq!((first.request_bytes_max, first.queue_bytes_max), (1 << 20, 8 << 20));
    assert_eq!((first.required, first.dead_letter_bytes_max), (false, 1 << 20));
    assert_eq!(file.path, Path::new("/tmp/traces.jsonl"));
    assert_eq!((file.rotate_bytes, file.keep, file.fsync), (1 << 20, 3, true));
    assert_eq!(last.endpoints, ["http://127.0.0.1:4327"]);
    assert_eq!((last.protocol, last.retry_for), (Protocol::Grpc, Duration::from_secs(300)));
    assert_eq!(last.compression, Compression::Zstd);
    assert_eq!(last.headers, []);
    assert_eq!((last.request_bytes_max, last.queue_bytes_max), (3 << 20, 256 << 20));
    assert_eq!((last.required, last.dead_letter_bytes_max), (true, 1 << 30));
}

#[test]
fn variables_go_before_the_file_and_flags_before_variables() {
    let file = "node: {id: file, zone: file}\ntraces: {root_delay: 1s}\nlog: {level: warn}\n";
    let machine = Machine::new()
        .with_file(file)
        .with_variable("TRACEMESH_NODE__ID", "variable")
        .with_variable("TRACEMESH_NODE__ZONE", "variable")
        .with_variable("TRACEMESH_LOG__LEVEL", "error")
        .with_variable("TRACEMESH_CLUSTER__SEEDS", "127.0.0.1:4319, localhost:1")
        .with_variable("TRACEMESH_SINKS", "stdout,file=a.jsonl")
        .with_flags(|flags| flags.node_id = Some("flag".to_owned()));
    let config = machine.config();
    assert_eq!(config.node.id, "flag");
    assert_eq!(config.node.zone, "variable");
    assert_eq!(config.log.level, tracing::Level::ERROR);
    assert_eq!(config.traces.root_delay, Duration::from_secs(1));
    assert_eq!(config.cluster.seeds.len(), 2);
    assert_eq!(config.sinks, [Sink::Stdout, file_sink("a.jsonl")]);
    let origin = |path: &str| {
        let value = config.effective.iter().find(|value| value.path == path).unwrap();
        value.origin.to_string().replace(&machine.directory.path().display().to_string(), "")
    };
    assert_eq!(origin("node.id"), "--node-id");
    assert_eq!(origin("node.zone"), "TRACEMESH_NODE__ZONE");
    assert_eq!(origin("traces.root_delay"), "/tracemesh.yaml:2");
    assert_eq!(origin("traces.age_max"), "default");
}

#[test]
fn every_flag_has_its_key() {
    let machine = Machine::new();
    let key = machine.file("cluster.key", &key_text(1)).display().to_string();
    let config = machine
        .with_file("cluster: {seeds: [a:1]}\nsinks: [stdout: {}]\n")
        .with_flags(|flags| {
            *flags = Flags {
                config: flags.config.clone(),
                base_port: Some(4327),
                bind: Some("::1".to_owned()),
                node_id: Some("n2".to_owned()),
                seed: vec!["127.0.0.1:4319".to_owned(), "b:2".to_owned()],
                cluster_key_file: Some(key),
                data_dir: Some("/data".to_owned()),
                sink: vec!["otlp=http://c:4317".to_owned(), "file".to_owned()],
            }
        })
        .config();
    let ports = [config.listen.grpc[0], config.listen.http[0], config.listen.mesh];
    assert_eq!(
        ports.map(|address| address.to_string()),
        ["[::1]:4327", "[::1]:4328", "[::1]:4329"]
    );
    assert_eq!(config.listen.console[0].to_string(), "[::1]:4330");
    assert_eq!(config.cluster.seeds.iter().map(|seed| seed.port).collect::<Vec<_>>(), [4319, 2]);
    assert!(!config.cluster.is_for_development());
    assert_eq!(config.node.data_dir, Path::new("/data/n2"));
    let [Sink::Otlp(otlp), Sink::File(file)] = config.sinks.as_slice() else { panic!("two") };
    assert_eq!(otlp.endpoints, ["http://c:4317"]);
    assert_eq!(file.path, Path::new("./tracemesh-traces-4329.jsonl"));
}

#[test]
fn another_mesh_port_gives_another_id_and_file() {
    let config = Machine::new().with_flags(|flags| flags.base_port = Some(4327)).config();
    assert_eq!(config.node.id, "host-1-4329");
    assert_eq!(config.node.data_dir, Path::new("./tracemesh-data/host-1-4329"));
    assert_eq!(config.sinks, [file_sink("./tracemesh-traces-4329.jsonl")]);
}

#[test]
fn base_port_0_lets_the_system_choose_every_port() {
    let config = Machine::new().with_flags(|flags| flags.base_port = Some(0)).config();
    let listen = config.listen;
    assert!(listen.grpc.iter().chain(&listen.http).all(|address| address.port() == 0));
    assert_eq!((listen.mesh.port(), listen.console[0].port()), (0, 0));
}

#[test]
fn memory_is_a_quarter_of_the_machine_and_at_most_4_gib() {
    let mut machine = Machine::new();
    for (memory_bytes, expected) in
        [(Some(1 << 30), 256 << 20), (Some(64 << 30), 4 << 30), (None, 4 << 30)]
    {
        machine.surroundings.memory_bytes = memory_bytes;
        assert_eq!(machine.config().node.memory_bytes, expected, "{memory_bytes:?}");
    }
}

#[test]
fn variables_inside_the_file_are_replaced() {
    let file = "node: {id: 'n-${env:POD}-${env:ZONE}', zone: '${env:ZONE}'}\n\
                cluster: {seeds: '${env:SEEDS}'}\n\
                sinks: [otlp: {headers: {x-token: '${env:TOKEN}'}}]\n";
    let config = Machine::new()
        .with_file(file)
        .with_variable("POD", "7")
        .with_variable("ZONE", "b")
        .with_variable("SEEDS", "127.0.0.1:1,127.0.0.1:2")
        .with_variable("TOKEN", "secret: {no, yaml}")
        .config();
    assert_eq!(config.node.id, "n-7-b");
    assert_eq!(config.cluster.seeds.len(), 2);
    let Sink::Otlp(otlp) = &config.sinks[0] else { panic!("an OTLP sink") };
    assert_eq!(otlp.headers[0].1, "secret: {no, yaml}");
    let shown = format!("{config:?}");
    assert!(!shown.contains("{no, yaml}"), "no secret is shown: {shown}");
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_left_alone() {
    let machine = Machine::new()
        .with_variable("TRACEMESH_PORT", "tcp://10.0.0.1:4317")
        .with_variable("TRACEMESH_PORT_4317_TCP_ADDR", "10.0.0.1")
        .with_variable("TRACEMESH_SERVICE_HOST", "10.0.0.1")
        .with_variable("TRACEMESH_NODE_SERVICE_PORT", "1");
    assert_eq!(machine.config().effective, Machine::new().config().effective);
}

#[test]
fn every_default_parses_and_lies_in_its_range() {
    for key in KEYS {
        let parse =
            |text: &str| key.kind.parse(text).unwrap_or_else(|| panic!("{}: {text:?}", key.path));
        let default = key.default.map(parse);
        if let Some((least, most)) = key.range {
            assert!(parse(least) < parse(most), "{}", key.path);
            if let Some(default) = default {
                assert!(parse(least) <= default && default <= parse(most), "{}", key.path);
            }
        }
    }
}

#[test]
fn every_key_with_a_default_is_in_force_by_default() {
    let config = Machine::new().with_variable("TRACEMESH_SINKS", "otlp,file").config();
    let shown: BTreeSet<String> = config
        .effective
        .iter()
        .map(|value| value.path.replace("[0]", "").replace("[1]", ""))
        .collect();
    for key in KEYS.iter().filter(|key| key.default.is_some()) {
        assert!(shown.contains(key.path), "{}", key.path);
    }
    for derived in ["node.id", "node.memory", "sinks.file.path"] {
        assert!(shown.contains(derived), "{derived}");
    }
}

// What is refused.

#[test]
fn several_errors_come_at_once_each_with_its_line() {
    let machine = Machine::new()
        .with_file(
            "cluster:\n  nmae: shop\ningest:\n  request_bytes_max: 64 parsecs\ntraces:\n  \
             root_delay: 6\n  spans_max: many\nnode:\n  weight: -1\n  memory: [1GiB]\n",
        )
        .with_variable("TRACEMESH_CLUSTER__REPLICAS", "3")
        .with_flags(|flags| flags.bind = Some("localhost".to_owned()));
    assert_eq!(
        machine.errors(),
        [
            "tracemesh.yaml:2: cluster.nmae: unknown key; did you mean cluster.name?",
            "tracemesh.yaml:4: ingest.request_bytes_max: \"64 parsecs\" is no size; expected a \
             number with B, KiB, MiB or GiB, such as 64MiB",
            "tracemesh.yaml:6: traces.root_delay: \"6\" is no duration; expected a whole number \
             with ms, s, m or h, such as 250ms",
            "tracemesh.yaml:7: traces.spans_max: \"many\" is no whole number; expected digits, \
             such as 20000",
            "tracemesh.yaml:9: node.weight: \"-1\" is no number; expected digits, such as 1.5",
            "tracemesh.yaml:10: node.memory: a list is no size; expected a number with B, KiB, \
             MiB or GiB, such as 64MiB",
            "TRACEMESH_CLUSTER__REPLICAS: cluster.replicas: 3 is out of range; expected 0 to 1",
            "--bind: node.bind: \"localhost\" is no IP address; expected an IPv4 or IPv6 address, \
             such as 127.0.0.1",
        ]
    );
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    assert_errors(
        "clutser: {name: x}\ntraces:\n  rot_delay: 1s\nroot_delay: 1s\nweather: fine\n\
         node.id: x\nsinks:\n  - otpl: {}\n  - file: {paht: x}\n  - stdout: {colour: true}\n",
        &[
            "tracemesh.yaml:1: clutser: unknown key; did you mean cluster?",
            "tracemesh.yaml:3: traces.rot_delay: unknown key; did you mean traces.root_delay?",
            "tracemesh.yaml:4: root_delay: unknown key; did you mean traces.root_delay?",
            "tracemesh.yaml:5: weather: unknown key",
            "tracemesh.yaml:6: node.id: a key with a dot; expected id inside of node",
            "tracemesh.yaml:8: sinks.otpl: unknown key; did you mean sinks.otlp?",
            "tracemesh.yaml:9: sinks.file.paht: unknown key; did you mean sinks.file.path?",
            "tracemesh.yaml:10: sinks.stdout.colour: unknown key",
        ],
    );
}

#[test]
fn an_error_is_one_line_whatever_a_key_or_a_value_holds() {
    assert_errors(
        "\"a\\nb\": 1\nnode: {id: \"${env:A\\nB}\"}\n",
        &[
            "tracemesh.yaml:1: a\\nb: unknown key",
            "tracemesh.yaml:2: node.id: ${env:A\\nB} is not set in the environment",
        ],
    );
}

#[test]
fn unknown_variables_are_refused_and_named_as_variables() {
    let machine = Machine::new()
        .with_variable("TRACEMESH_CLUSTER__NMAE", "x")
        .with_variable("TRACEMESH_CLUSTER_SEEDS", "a:1")
        .with_variable("TRACEMESH_NODE__TLS__MODE", "x")
        .with_variable("TRACEMESH_SINKS__OTLP__ENDPOINT", "http://a:1")
        .with_variable("TRACEMESH_SAMPLING__DRY_RUN", "true");
    assert_eq!(
        machine.errors(),
        [
            "TRACEMESH_CLUSTER_SEEDS: cluster_seeds: unknown key; did you mean \
             TRACEMESH_CLUSTER__SEEDS?",
            "TRACEMESH_CLUSTER__NMAE: cluster.nmae: unknown key; did you mean \
             TRACEMESH_CLUSTER__NAME?",
            "TRACEMESH_NODE__TLS__MODE: node.tls.mode: unknown key",
            "TRACEMESH_SAMPLING__DRY_RUN: sampling.dry_run: not yet: this version does not have \
             it; remove it",
            "TRACEMESH_SINKS__OTLP__ENDPOINT: sinks.otlp.endpoint: all sinks stand in one \
             variable, such as TRACEMESH_SINKS=stdout,otlp=URL",
        ]
    );
}

#[test]
fn what_is_designed_and_not_built_is_refused_by_name() {
    assert_errors(
        "sampling:\n  policies: []\n\
         service_map: {enabled: true}\nsinks:\n  - opensearch: {hosts: []}\n",
        &[
            "tracemesh.yaml:1: sampling: not yet: this version does not have it; remove it",
            "tracemesh.yaml:3: service_map: not yet: this version does not have it; remove it",
            "tracemesh.yaml:5: sinks.opensearch: not yet: this version does not have it; remove it",
        ],
    );
    let machine =
        Machine::new().with_flags(|flags| flags.sink = vec!["opensearch=http://a:1".to_owned()]);
    let expected = "--sink: sinks.opensearch: not yet: this version does not have it; remove it";
    assert_eq!(machine.errors(), [expected]);
}

#[test]
fn nothing_is_both_built_and_not_yet() {
    for path in NOT_YET {
        assert!(KEYS.iter().all(|key| key.path != *path && !keys::is_within(key.path, path)));
    }
}

#[test]
fn keys_given_twice_are_refused() {
    assert_errors(
        "node:\n  id: a\n  id: b\nlog: {}\nnode:\n  zone: c\n\
         sinks: [otlp: {headers: {a: '1', a: '2'}}]\n",
        &[
            "tracemesh.yaml:3: node.id: given twice, first at tracemesh.yaml:2",
            "tracemesh.yaml:5: node: given twice, first at tracemesh.yaml:1",
            "tracemesh.yaml:7: sinks.otlp.headers.a: given twice, first at tracemesh.yaml:7",
        ],
    );
}

#[test]
fn values_of_another_shape_are_refused() {
    assert_errors(
        "node: host\ncluster:\n  seeds: {a: b}\n  name: [x]\nlisten:\n  mesh: [':1']\n\
         sinks: {file: {path: x}}\nlog:\n  - level: info\n",
        &[
            "tracemesh.yaml:1: node: \"host\" is no mapping; expected its keys, one a line and \
             indented",
            "tracemesh.yaml:3: cluster.seeds: a mapping is no list of addresses; expected a list, \
             each HOST:PORT, such as 10.0.0.1:4319",
            "tracemesh.yaml:4: cluster.name: a list is no name; expected lower-case letters, \
             digits, and inside `.`, `_`, `-`, such as blue",
            "tracemesh.yaml:6: listen.mesh: a list is no listener; expected IP:PORT or :PORT, such \
             as \":4317\"",
            "tracemesh.yaml:7: sinks: a mapping is no list; expected lines such as `- stdout: {}`",
            "tracemesh.yaml:9: log: a list is no mapping; expected its keys, one a line and \
             indented",
        ],
    );
    assert_errors(
        "- a\n",
        &["tracemesh.yaml:1: a list is no mapping of keys; expected lines such as `node:`"],
    );
}

#[test]
fn each_item_of_a_list_is_checked() {
    assert_errors(
        "cluster:\n  seeds:\n    - 10.0.0.1\n    - 127.0.0.1:4319\n    - a:0\n    -\n\
         sinks:\n  - {}\n  - stdout: {}\n    file: {}\n",
        &[
            "tracemesh.yaml:3: cluster.seeds: \"10.0.0.1\" is no address; expected HOST:PORT, such \
             as 10.0.0.1:4319",
            "tracemesh.yaml:5: cluster.seeds: \"a:0\" is no address; expected HOST:PORT, such as \
             10.0.0.1:4319",
            "tracemesh.yaml:6: cluster.seeds: nothing is no address; expected HOST:PORT, such as \
             10.0.0.1:4319",
            "tracemesh.yaml:8: sinks: a mapping is no sink; expected one kind, such as \
             `- stdout: {}`",
            "tracemesh.yaml:9: sinks: a mapping is no sink; expected one kind, such as \
             `- stdout: {}`",
        ],
    );
}

#[test]
fn what_is_no_yaml_is_refused_with_its_line() {
    for (text, line) in [
        ("node:\n\tid: a\n", 2),
        ("node: {id: a\n", 2),
        ("node: &x {id: a}\ncluster: *x\n", 2),
        ("node:\n  id: !secret a\n", 2),
        ("? [a]\n: b\n", 1),
        ("node: {}\n---\nnode: {}\n", 3),
        ("a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 1),
    ] {
        let errors = Machine::new().with_file(text).errors();
        assert_eq!(errors.len(), 1, "{text:?}: {errors:?}");
        assert!(errors[0].starts_with(&format!("tracemesh.yaml:{line}: ")), "{text:?}: {errors:?}");
    }
}

#[test]
fn file_that_cannot_be_read_is_refused_with_the_flag() {
    let mut machine = Machine::new().with_variable("TRACEMESH_NODE__BIND", "x");
    let missing = machine.directory.path().join("missing.yaml");
    machine.flags.config = Some(missing);
    let errors = machine.errors();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].starts_with("TRACEMESH_NODE__BIND: "), "{errors:?}");
    assert!(errors[1].starts_with("--config: missing.yaml: No such file"), "{errors:?}");

    let latin = machine.directory.path().join("latin.yaml");
    fs::write(&latin, b"node: {zone: caf\xe9}").unwrap();
    machine.flags.config = Some(latin);
    assert_eq!(machine.errors()[1], "--config: latin.yaml: no UTF-8");

    let long = "#".repeat(usize::try_from(yaml::FILE_BYTES_MAX).unwrap() + 1);
    machine.flags.config = Some(machine.file("long.yaml", &long));
    assert_eq!(machine.errors()[1], "--config: long.yaml: larger than 1 MiB");
}

#[test]
fn variables_that_are_not_set_are_refused() {
    assert_errors(
        "node:\n  id: ${env:POD_NAME}\n  zone: ${env:ZONE\n",
        &[
            "tracemesh.yaml:2: node.id: ${env:POD_NAME} is not set in the environment",
            "tracemesh.yaml:3: node.zone: \"${env:ZONE\" has no `}` after `${env:`",
        ],
    );
}

#[test]
fn listening_to_others_without_a_key_is_refused_with_what_to_do() {
    let machine = Machine::new().with_flags(|flags| flags.bind = Some("0.0.0.0".to_owned()));
    assert_eq!(
        machine.errors(),
        [format!("--bind: node.bind: 0.0.0.0 is not loopback; {NEEDS_KEY}")]
    );

    let machine = Machine::new()
        .with_file("listen:\n  grpc: ['[::]:4317', ':4318']\n  http: ['[::ffff:127.0.0.1]:1']\n");
    let expected = format!("tracemesh.yaml:2: listen.grpc: [::]:4317 is not loopback; {NEEDS_KEY}");
    assert_eq!(machine.errors(), [expected]);

    let machine = Machine::new()
        .with_variable("TRACEMESH_CLUSTER__SEEDS", "10.0.0.1:4319,127.0.0.1:4319,localhost:1");
    let expected = format!(
        "TRACEMESH_CLUSTER__SEEDS: cluster.seeds: 10.0.0.1:4319 is not loopback; {NEEDS_KEY}"
    );
    assert_eq!(machine.errors(), [expected]);
}

/// A configuration with a cluster key, and more.
fn with_key(file: &str) -> Machine {
    let machine = Machine::new();
    let key = machine.file("cluster.key", &key_text(1)).display().to_string();
    machine.with_file(file).with_flags(|flags| flags.cluster_key_file = Some(key))
}

#[test]
fn every_address_needs_one_to_advertise_or_a_seed_to_find_it_by() {
    let errors = with_key("node: {bind: 0.0.0.0}").errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].starts_with("node.advertise: the mesh listens on every address"),
        "{errors:?}"
    );

    let found = with_key("node: {bind: 0.0.0.0}\ncluster: {seeds: [a:1]}").config();
    assert_eq!(found.node.advertise, None);
    let told = with_key("node: {bind: '::', advertise: '10.0.0.1:4319'}").config();
    assert_eq!(told.node.advertise, Some("10.0.0.1:4319".parse().unwrap()));
    for wrong in ["0.0.0.0:4319", "10.0.0.1:0"] {
        let errors = with_key(&format!("node: {{advertise: '{wrong}'}}")).errors();
        let expected = "tracemesh.yaml:1: node.advertise: others cannot reach that; expected an \
                        address of this machine";
        assert_eq!(errors, [expected]);
    }
}

#[test]
fn key_file_and_certificates_exclude_each_other() {
    let errors = with_key("cluster:\n  tls:\n    ca_file: x\n").errors();
    let expected =
        "--cluster-key-file: cluster.key_file: stands beside cluster.tls; expected one of them";
    assert_eq!(errors, [expected]);
    assert_errors(
        "cluster:\n  tls:\n    cert_file: x\n",
        &["tracemesh.yaml:3: cluster.tls.cert_file: expected ca_file, cert_file and key_file \
           together in cluster.tls"],
    );
}

#[test]
fn key_files_that_cannot_be_used_are_named_without_their_secret() {
    let machine = Machine::new();
    let noise = machine.file("noise.key", "this is no key").display().to_string();
    let missing = machine.directory.path().join("missing.key").display().to_string();
    for (file, expected) in
        [(noise, "noise.key: line 1 is no key"), (missing, "missing.key: cannot")]
    {
        let machine = Machine {
            directory: tempfile::tempdir().unwrap(),
            surroundings: machine.surroundings.clone(),
            // The bind address would be refused, too, if the key had not been the mistake.
            flags: Flags {
                bind: Some("10.0.0.1".to_owned()),
                cluster_key_file: Some(file),
                ..Flags::default()
            },
        };
        let errors = machine.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("--cluster-key-file: cluster.key_file: /"), "{errors:?}");
        assert!(errors[0].contains(expected), "{errors:?}");
        assert!(!errors[0].contains("this is"), "{errors:?}");
    }
}

#[test]
fn certificates_are_looked_at_before_anything_starts() {
    let machine = Machine::new();
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let certificate = machine.file("cert.pem", &pem("CERTIFICATE"));
    let key = machine.file("key.pem", &pem("PRIVATE KEY"));
    let missing = machine.directory.path().join("missing.pem");
    let file = |ca: &Path, cert: &Path, key: &Path| {
        let [ca, cert, key] = [ca, cert, key].map(Path::display);
        format!("cluster:\n  tls:\n    ca_file: {ca}\n    cert_file: {cert}\n    key_file: {key}\n")
    };
    let good = Machine::new().with_file(&file(&certificate, &certificate, &key)).config();
    assert!(matches!(good.cluster.credentials, Credentials::Files { .. }));
    assert!(!good.cluster.is_for_development());

    let bad = machine.with_file(&file(&missing, &key, &certificate)).errors();
    assert_eq!(bad.len(), 3, "{bad:?}");
    for (error, (line, why)) in bad.iter().zip([
        (3, "cannot read it"),
        (4, "expected a certificate in PEM"),
        (5, "expected a private key in PEM"),
    ]) {
        assert!(error.starts_with(&format!("tracemesh.yaml:{line}: cluster.tls.")), "{error}");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn files_of_ingest_are_looked_at_before_anything_starts() {
    let machine = Machine::new();
    let ((certificate, key), (_, other_key)) = (certificate(), certificate());
    let certificate = machine.file("cert.pem", &certificate).display().to_string();
    let key = machine.file("key.pem", &key).display().to_string();
    let other_key = machine.file("other.pem", &other_key).display().to_string();
    let empty = machine.file("empty", "# cart:secret\n").display().to_string();
    let refused = |file: String| Machine::new().with_file(&file).errors();
    let tls = |cert: &str, key: &str, ca: &str| {
        format!("ingest:\n  tls:\n    cert_file: {cert}\n    key_file: {key}\n    {ca}\n")
    };

    let errors = refused(tls(&key, &certificate, &format!("client_ca_file: {key}")));
    assert_eq!(errors.len(), 3, "{errors:?}");
    for (error, (key, why)) in errors.iter().zip([
        ("3: ingest.tls.cert_file", "expected a certificate in PEM"),
        ("4: ingest.tls.key_file", "expected a private key in PEM"),
        ("5: ingest.tls.client_ca_file", "expected a certificate in PEM"),
    ]) {
        assert!(error.starts_with(&format!("tracemesh.yaml:{key}: ")), "{error}");
        assert!(error.contains(why), "{error}");
    }

    let errors = refused(tls(&certificate, &other_key, ""));
    assert!(errors.len() == 1 && errors[0].contains("cert.pem: with /"), "{errors:?}");
    assert_eq!(
        refused(format!("ingest:\n  tls:\n    cert_file: {certificate}\n")),
        ["tracemesh.yaml:3: ingest.tls.cert_file: expected cert_file and key_file together in \
          ingest.tls"]
    );

    let errors = refused(format!("ingest:\n  bearer_tokens_file: {empty}\n"));
    assert!(errors.len() == 1 && errors[0].contains("NAME:TOKEN"), "{errors:?}");
    assert!(!errors[0].contains("secret"), "{errors:?}");
    let errors = refused("ingest:\n  bearer_tokens_file: /no/such/file\n".to_owned());
    assert!(errors[0].contains("/no/such/file: cannot read it: No such file"), "{errors:?}");
}

#[test]
fn limits_and_origins_of_ingest_are_checked() {
    assert_errors(
        "ingest:\n  connections_max: 0\n  connection_age_max: 25h\n  cors_origins:\n    \
         - https://a\n    - shop.example\n",
        &[
            "tracemesh.yaml:2: ingest.connections_max: 0 is out of range; expected 1 to 1000000",
            "tracemesh.yaml:3: ingest.connection_age_max: 25h is out of range; expected 0s to 24h",
            "tracemesh.yaml:6: ingest.cors_origins: \"shop.example\" is no origin; expected * or \
             http(s)://HOST[:PORT] as browsers write it, in lower case and without a port that \
             goes without saying",
        ],
    );
}

#[test]
fn hash_key_comes_from_its_file_else_the_cluster_key_else_the_name() {
    let own = ClusterKey::parse_file(&key_text(1)).unwrap()[0].hash_key();
    assert_eq!(with_key("").config().cluster.hash_key.0, own);

    let machine = Machine::new();
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let certificate = machine.file("cert.pem", &pem("CERTIFICATE")).display().to_string();
    let key = machine.file("key.pem", &pem("PRIVATE KEY")).display().to_string();
    let named = |name: &str| {
        let file = format!(
            "cluster: {{name: {name}, tls: {{ca_file: {certificate}, cert_file: {certificate}, \
             key_file: {key}}}}}"
        );
        Machine::new().with_file(&file).config().cluster.hash_key
    };
    assert!(named("blue") == HashKey::from_cluster_name("blue"));

    let short = machine.file("hash.key", "0001").display().to_string();
    let errors = Machine::new().with_variable("TRACEMESH_CLUSTER__HASH_KEY_FILE", &short).errors();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].ends_with("hash.key: expected 32 hexadecimal digits"), "{errors:?}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    assert_errors(
        "ingest:\n  request_bytes_max: 65MiB\n  in_flight_max: 64MiB\nlisten:\n  \
         http: [':4317', ':4318']\n  console: ':4318'\nsinks:\n  - file: {path: a}\n  \
         - file:\n      path: a\n",
        &[
            "tracemesh.yaml:2: ingest.request_bytes_max: more than ingest.in_flight_max (64MiB), \
             so it could never come in",
            "tracemesh.yaml:5: listen.http: 127.0.0.1:4317 stands in listen.grpc already",
            "tracemesh.yaml:6: listen.console: 127.0.0.1:4318 stands in listen.http already",
            "tracemesh.yaml:10: sinks.file.path: \"a\" is the file of another sink",
        ],
    );
    assert_errors("sinks: []\n", &["sinks: no sink; expected one or more, such as `- stdout: {}`"]);
}

#[test]
fn one_sink_is_required_and_the_others_leave_memory() {
    assert_errors(
        "sinks:\n  - otlp: {}\n  - otlp:\n      required: maybe\n",
        &["tracemesh.yaml:4: sinks.otlp.required: \"maybe\" is no choice; expected true or false"],
    );
    assert_errors(
        "sinks:\n  - otlp: {required: false}\n",
        &["tracemesh.yaml:2: sinks.otlp.required: no sink is required, so a crash could take \
             what nobody else has; expected one or more with required: true"],
    );
    assert_errors(
        "node: {memory: 1GiB}\nsinks:\n  - stdout: {}\n  \
         - otlp: {required: false, queue: 513MiB}\n",
        &["tracemesh.yaml:4: sinks.otlp.queue: queues of sinks that are not required are taken \
             off node.memory (1GiB), and this is more than half of it"],
    );
    let text =
        "node: {memory: 1GiB}\nsinks: [stdout: {}, otlp: {required: false, queue: 512MiB}]\n";
    assert_eq!(Machine::new().with_file(text).config().optional_queue_bytes(), 512 << 20);
}

#[test]
fn tls_of_a_sink_is_checked_where_it_is_used() {
    let machine = Machine::new();
    let junk = machine.file("junk.pem", "no PEM").display().to_string();
    let machine = machine.with_variable("JUNK", &junk).with_file(
        "sinks:\n  - otlp: {endpoint: 'http://a:1', tls: {ca_file: x}}\n  \
         - otlp: {endpoint: 'https://a:1', tls: {ca_file: '${env:JUNK}', cert_file: x}}\n  \
         - otlp: {endpoint: 'https://a:2', tls: {ca_file: '${env:JUNK}', server_name: 'a b'}}\n",
    );
    let expected = [
        "tracemesh.yaml:2: sinks.otlp.tls.ca_file: no endpoint is https, so nothing would be \
         encrypted",
        "tracemesh.yaml:3: sinks.otlp.tls.cert_file: expected cert_file and key_file together",
        "tracemesh.yaml:3: sinks.otlp.tls.ca_file: junk.pem: expected a certificate in PEM, and it \
         holds none",
        "tracemesh.yaml:4: sinks.otlp.tls.server_name: \"a b\" is no name of a host and no IP \
         address",
        "tracemesh.yaml:4: sinks.otlp.tls.ca_file: junk.pem: expected a certificate in PEM, and it \
         holds none",
    ];
    assert_eq!(machine.errors(), expected);
}

#[test]
fn endpoints_of_a_sink_fit_its_protocol() {
    assert_errors(
        "sinks:\n  - otlp: {endpoint: []}\n  - otlp:\n      endpoint: ['http://a:1/v1/traces']\n  \
         - otlp:\n      endpoint: 'http://a:1, http://b, http://a:1'\n  \
         - otlp:\n      endpoint: [a:4317]\n",
        &[
            "tracemesh.yaml:2: sinks.otlp.endpoint: it is empty; expected one or more, such as \
             http://127.0.0.1:4327",
            "tracemesh.yaml:4: sinks.otlp.endpoint: \"http://a:1/v1/traces\" has a path, and gRPC \
             has none; expected protocol: http",
            "tracemesh.yaml:6: sinks.otlp.endpoint: \"http://a:1\" stands there twice",
            "tracemesh.yaml:8: sinks.otlp.endpoint: \"a:4317\" is no URL; expected \
             http://HOST:PORT or https://HOST:PORT",
        ],
    );
}

#[test]
fn headers_that_no_request_can_have_are_refused_without_their_value() {
    let machine = Machine::new()
        .with_file("sinks:\n  - otlp:\n      headers:\n        x-token: ${env:TOKEN}\n")
        .with_variable("TOKEN", "secret\nsecret");
    let expected = "tracemesh.yaml:4: sinks.otlp.headers: \"x-token\" or its value has characters \
                    that no header may have";
    assert_eq!(machine.errors(), [expected]);
    assert_errors(
        "sinks:\n  - otlp: {headers: {x-bin: a}}\n  \
         - otlp: {headers: {x-bin: a}, protocol: http}\n",
        &["tracemesh.yaml:2: sinks.otlp.headers: \"x-bin\" would be binary in gRPC; expected \
           another name"],
    );
}

#[test]
fn host_name_that_is_no_name_asks_for_an_id() {
    let mut machine = Machine::new();
    for host_name in ["", "büro", "-a"] {
        machine.surroundings.host_name = host_name.to_owned();
        let errors = machine.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("node.id: the host name makes"), "{errors:?}");
    }
    let machine = machine.with_variable("TRACEMESH_NODE__ID", "n1");
    assert_eq!(machine.config().node.id, "n1");
}

// What members compare.

#[test]
fn config_hash_follows_traces_and_what_must_agree_and_nothing_else() {
    let hash = |file: &str| Machine::new().with_file(file).config().config_hash();
    let base = hash("");
    for same in
        ["traces: {remember: {time: 600s}, age_max: 30000ms}", "node: {id: b, memory: 1GiB}"]
    {
        assert_eq!(hash(same), base, "{same}");
    }
    let others = [
        "traces: {age_max: 31s}",
        "traces: {remember: {memory: 9%}}",
        "cluster: {replicas: 0}",
        "cluster: {name: blue}",
    ];
    let hashes: BTreeSet<u64> = others.into_iter().map(hash).chain([base]).collect();
    assert_eq!(hashes.len(), others.len() + 1);
    assert_ne!(with_key("").config().config_hash(), base, "the hash key counts, too");
    // Written out, because nodes of another version have to find the same.
    assert_eq!(base, 5_328_137_768_335_108_081);
}

// The reference.

#[test]
fn reference_has_every_key_once() {
    let table = reference_table();
    for key in KEYS {
        let rows = table.lines().filter(|line| line.starts_with(&format!("| `{}` |", key.path)));
        assert_eq!(rows.count(), 1, "{}", key.path);
    }
    let mut rows = table.lines().skip(2);
    assert!(rows.all(|row| row.matches(" | ").count() == 3), "four columns:\n{table}");
    assert!(table.contains("| `traces.root_delay` | duration, 0s to 1h | `6s` |"), "{table}");
}

// Garbage.

/// Letters, digits and what means something to YAML.
const GARBAGE: &str = "[a-z:{}\\[\\]\\-&*!|>'\"#%@`,?~$ \\t\\n0-9]{0,200}";

proptest! {
    #[test]
    fn garbage_never_panics(text in GARBAGE) {
        let _ = Machine::new().with_file(&text).load();
    }

    #[test]
    fn mutilated_files_never_panic(
        start in 0usize..400,
        length in 0usize..40,
        noise in "\\PC{0,8}",
    ) {
        let mut text = "cluster: {name: a, seeds: [127.0.0.1:4319]}\nnode:\n  id: b\n  weight: 1\n\
                        sinks:\n  - otlp: {headers: {a: b}}\n  - file: {path: c}\n".to_owned();
        let start = start.min(text.len());
        let end = (start + length).min(text.len());
        text.replace_range(start..end, &noise);
        let _ = Machine::new().with_file(&text).load();
    }
}
