//! The one table of keys.
//!
//! What a key is called, how its value is written, its default and what it means stand here and
//! nowhere else: reading the file, names of variables, the check for unknown keys and the table in
//! the README are all taken from [`KEYS`]. A key that is designed and not built stands in
//! [`NOT_YET`] with nothing but its path. Keys of sinks have the path `sinks.KIND.KEY`.

use super::values::Kind;
use std::fmt::Write;

/// One key.
pub(super) struct Key {
    /// Path with dots.
    pub(super) path: &'static str,
    /// How its value is written.
    pub(super) kind: Kind,
    /// Its default as one would type it; none when it is optional or derived from other values.
    pub(super) default: Option<&'static str>,
    /// The smallest and the largest value, as one would type them.
    pub(super) range: Option<(&'static str, &'static str)>,
    /// What it means, for the reference.
    pub(super) meaning: &'static str,
}

const fn key(
    path: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Key {
    Key { path, kind, default, range: None, meaning }
}

impl Key {
    const fn between(mut self, least: &'static str, most: &'static str) -> Self {
        self.range = Some((least, most));
        self
    }
}

/// Every key, in the order of the reference.
pub(super) const KEYS: &[Key] = &[
    key(
        "cluster.name",
        Kind::LowerName,
        Some("tracemesh"),
        "Part of every certificate; another name is another cluster. Equal on all members.",
    ),
    key(
        "cluster.seeds",
        Kind::List(&Kind::Address),
        Some(""),
        "Mesh addresses of any members. A name is looked up again at every try and all its \
         addresses are used. The node's own address among them is ignored.",
    ),
    key(
        "cluster.key_file",
        Kind::Path,
        None,
        "The cluster key that `tracemesh keygen` printed; two keys during a change of key.",
    ),
    key(
        "cluster.tls.ca_file",
        Kind::Path,
        None,
        "Your own authority, in place of a cluster key: certificates to trust, PEM.",
    ),
    key(
        "cluster.tls.cert_file",
        Kind::Path,
        None,
        "This node's certificate and those between it and the authority, PEM.",
    ),
    key("cluster.tls.key_file", Kind::Path, None, "The private key of that certificate, PEM."),
    key(
        "cluster.hash_key_file",
        Kind::Path,
        None,
        "Secret of the placement's hash, 32 hexadecimal digits. Default: the second half of the \
         cluster key, else derived from the cluster's name. Equal on all members.",
    ),
    key(
        "cluster.alone_after",
        Kind::Duration,
        Some("10s"),
        "When no seed has answered for so long, the node works alone, loudly.",
    )
    .between("1s", "24h"),
    key(
        "cluster.replicas",
        Kind::Count,
        Some("1"),
        "Nodes besides the owner that must hold a span before it is acknowledged. Equal on all \
         members.",
    )
    .between("0", "1"),
    key(
        "node.id",
        Kind::Name,
        None,
        "Stable over restarts. Default: the host name, HOST-PORT when the mesh port is not 4319.",
    ),
    key("node.bind", Kind::Ip, Some("127.0.0.1"), "The IP of every listener that names none."),
    key(
        "node.advertise",
        Kind::Socket,
        None,
        "Mesh address told to others. Default: where the mesh listens, or the address by \
         which this host reaches its seeds when that is every address.",
    ),
    key(
        "node.data_dir",
        Kind::Path,
        Some("./tracemesh-data"),
        "What outlasts a restart, in a directory named by the node's id; locked while in use.",
    ),
    key("node.weight", Kind::Number, Some("1"), "Share of the traces, relative to other nodes.")
        .between("0.001", "1000"),
    key(
        "node.zone",
        Kind::Text,
        Some(""),
        "Rack or site; the replica of a span lives in another one.",
    ),
    key(
        "node.memory",
        Kind::Size,
        None,
        "Budget from ingest to sink. Default: a quarter of the machine or cgroup, at most 4GiB.",
    )
    .between("16MiB", "1024GiB"),
    key("listen.grpc", Kind::List(&Kind::Listener), Some(":4317"), "OTLP over gRPC."),
    key(
        "listen.http",
        Kind::List(&Kind::Listener),
        Some(":4318"),
        "OTLP over HTTP, protobuf and JSON.",
    ),
    key("listen.mesh", Kind::Listener, Some(":4319"), "The mesh, over UDP."),
    key(
        "listen.console",
        Kind::List(&Kind::Listener),
        Some(":4320"),
        "`/metrics`, `/healthz`, `/readyz`, `/api`.",
    ),
    key(
        "ingest.tls.cert_file",
        Kind::Path,
        None,
        "With it, both OTLP listeners speak TLS only: the certificate that clients see and those \
         between it and its authority, PEM. Files are read again when they change.",
    ),
    key("ingest.tls.key_file", Kind::Path, None, "The private key of that certificate, PEM."),
    key(
        "ingest.tls.client_ca_file",
        Kind::Path,
        None,
        "Authorities of which clients have to show a certificate, PEM. Default: clients show none.",
    ),
    key(
        "ingest.bearer_tokens_file",
        Kind::Path,
        None,
        "Who may send spans: a line `NAME:TOKEN` for each client, read again when it changes. \
         Default: everybody may. gRPC health is open in any case.",
    ),
    key(
        "ingest.cors_origins",
        Kind::List(&Kind::Origin),
        Some(""),
        "Origins of the web pages that may send over HTTP, such as `https://shop.example`; `*` \
         for all.",
    ),
    key(
        "ingest.request_bytes_max",
        Kind::Size,
        Some("64MiB"),
        "Largest request, before and after decompression.",
    )
    .between("1KiB", "1GiB"),
    key(
        "ingest.in_flight_max",
        Kind::Size,
        Some("256MiB"),
        "Bytes of requests that are not yet acknowledged.",
    )
    .between("1KiB", "1024GiB"),
    key(
        "ingest.connections_max",
        Kind::Count,
        Some("10000"),
        "Connections of clients at once, of some 40 KiB each; more are closed at once.",
    )
    .between("1", "1000000"),
    key(
        "ingest.connection_age_max",
        Kind::Duration,
        Some("5m"),
        "A connection is closed in an orderly way (GOAWAY) at this age, or up to three tenths \
         later, so that clients find new nodes; `0s` for never.",
    )
    .between("0s", "24h"),
    key(
        "traces.root_delay",
        Kind::Duration,
        Some("6s"),
        "A trace is decided so long after its root span came.",
    )
    .between("0s", "1h"),
    key(
        "traces.age_max",
        Kind::Duration,
        Some("30s"),
        "A trace is decided at this age, with or without a root.",
    )
    .between("100ms", "24h"),
    key(
        "traces.spans_max",
        Kind::Count,
        Some("20000"),
        "A trace is decided when it has so many spans.",
    )
    .between("1", "10000000"),
    key("traces.bytes_max", Kind::Size, Some("32MiB"), "A trace is decided when it is so large.")
        .between("1KiB", "1GiB"),
    key(
        "traces.remember.time",
        Kind::Duration,
        Some("10m"),
        "How long decided traces are remembered, for late and repeated spans.",
    )
    .between("0s", "24h"),
    key(
        "traces.remember.memory",
        Kind::Share,
        Some("10%"),
        "Memory for that, as a size or a share of `node.memory`; the oldest go first. Of one trace \
         with more than 262,144 spans, the newer half is remembered.",
    ),
    key(
        "hand_over.bandwidth",
        Kind::Size,
        Some("256MiB"),
        "What a node takes of hand-over a second, granted to all others in equal shares.",
    )
    .between("64KiB", "1024GiB"),
    key(
        "drain.announce",
        Kind::Duration,
        Some("5s"),
        "On stop: not ready any more, but still accepting, for so long.",
    )
    .between("0s", "1h"),
    key("drain.timeout", Kind::Duration, Some("60s"), "How long a stop may take after that.")
        .between("0s", "24h"),
    key(
        "sinks.otlp.endpoint",
        Kind::List(&Kind::Url),
        Some("http://127.0.0.1:4327"),
        "Where an `otlp` sink sends traces. Of several, one is used until it fails, then the next.",
    ),
    key(
        "sinks.otlp.protocol",
        Kind::Choice(&["grpc", "http"]),
        Some("grpc"),
        "Its protocol; `http` is protobuf, posted to `/v1/traces` when the endpoint has no path.",
    ),
    key(
        "sinks.otlp.compression",
        Kind::Choice(&["zstd", "gzip", "none"]),
        Some("zstd"),
        "How its requests are compressed.",
    ),
    key("sinks.otlp.headers", Kind::Texts, None, "Headers that go with each request."),
    key(
        "sinks.otlp.tls.ca_file",
        Kind::Path,
        None,
        "Authorities to trust at an `https` endpoint, PEM. Default: those of the system.",
    ),
    key(
        "sinks.otlp.tls.cert_file",
        Kind::Path,
        None,
        "The certificate to show there, and those between it and its authority, PEM.",
    ),
    key("sinks.otlp.tls.key_file", Kind::Path, None, "The private key of that certificate, PEM."),
    key(
        "sinks.otlp.tls.server_name",
        Kind::Text,
        None,
        "The name or IP that its certificate has to be for. Default: the one in the endpoint.",
    ),
    key("sinks.otlp.request_bytes_max", Kind::Size, Some("3MiB"), "Its largest request.")
        .between("1KiB", "1GiB"),
    key("sinks.otlp.queue", Kind::Size, Some("256MiB"), "Bytes that wait for it.")
        .between("1KiB", "1024GiB"),
    key(
        "sinks.otlp.retry_for",
        Kind::Duration,
        Some("5m"),
        "From due on, how long a trace is tried again that the sink puts off; then it is a dead \
         letter. Time in which the sink does not answer does not count.",
    )
    .between("0s", "24h"),
    key(
        "sinks.otlp.required",
        Kind::Choice(&["true", "false"]),
        Some("true"),
        "`false`: traces are done without it. It has its `queue` to itself, taken off \
         `node.memory`; what finds no room there becomes a dead letter.",
    ),
    key(
        "sinks.otlp.dead_letter_max",
        Kind::Size,
        Some("1GiB"),
        "Bound of its dead-letter file. What is over it waits with its owner, or is dropped and \
         counted where `required` is `false`.",
    )
    .between("0B", "1024GiB"),
    key(
        "sinks.file.path",
        Kind::Path,
        None,
        "Where a `file` sink writes OTLP JSON, one trace a line; locked while in use. Default: \
         `./tracemesh-traces.jsonl`, `./tracemesh-traces-PORT.jsonl` when the mesh port is not \
         4319.",
    ),
    key(
        "sinks.file.rotate",
        Kind::Size,
        Some("256MiB"),
        "Before it grows larger, the file becomes PATH.1, that one PATH.2, and so on. `0B`: never.",
    )
    .between("0B", "1024GiB"),
    key(
        "sinks.file.keep",
        Kind::Count,
        Some("8"),
        "So many files stay beside it; older ones are removed.",
    )
    .between("1", "10000"),
    key(
        "sinks.file.fsync",
        Kind::Choice(&["true", "false"]),
        Some("false"),
        "`true`: a line is on the disk before it is acknowledged, so it outlasts the machine.",
    ),
    key(
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Some("info"),
        "The least severe level that is written.",
    ),
    key("log.format", Kind::Choice(&["text", "json"]), Some("text"), "For people or machines."),
];

/// Paths, and values of them, that are designed and not built. They are refused by name, so that
/// nobody believes that they work.
pub(super) const NOT_YET: &[&str] = &[
    "trace_group",
    "service_map",
    "red",
    "sampling",
    "tail_sampling",
    "sinks.opensearch",
    "telemetry",
];

/// What kinds of sink there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SinkKind {
    Otlp,
    File,
    Stdout,
}

impl SinkKind {
    pub(super) const ALL: [Self; 3] = [Self::Otlp, Self::File, Self::Stdout];

    /// The section of its keys.
    pub(super) fn section(self) -> &'static str {
        match self {
            Self::Otlp => "sinks.otlp",
            Self::File => "sinks.file",
            Self::Stdout => "sinks.stdout",
        }
    }
}

/// What a path names; `sinks` itself is not among them.
pub(super) enum Found {
    /// A value.
    Key(&'static Key),
    /// A mapping of keys.
    Section,
    /// Something that is designed and not built.
    NotYet,
    /// Nothing.
    Unknown {
        /// The path that looks most like it, when one does.
        nearest: Option<&'static str>,
    },
}

/// Looks a path up.
pub(super) fn find(path: &str) -> Found {
    if let Some(key) = KEYS.iter().find(|key| key.path == path) {
        return Found::Key(key);
    }
    let is_sink = SinkKind::ALL.iter().any(|kind| kind.section() == path);
    if is_sink || KEYS.iter().any(|key| is_within(key.path, path)) {
        return Found::Section;
    }
    if NOT_YET.iter().any(|name| path == *name || is_within(path, name)) {
        return Found::NotYet;
    }
    Found::Unknown { nearest: nearest(path) }
}

/// Whether `path` lies inside of `section`.
pub(super) fn is_within(path: &str, section: &str) -> bool {
    path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// The known path with the fewest typing errors: in the whole path, or, for keys that stand in the
/// wrong place, in the last part.
fn nearest(path: &str) -> Option<&'static str> {
    let last = |path: &'_ str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let wrong = last(path);
    let misplaced =
        KEYS.iter().map(|key| (1 + strsim::damerau_levenshtein(&wrong, &last(key.path)), key.path));
    let known = KEYS.iter().flat_map(|key| with_sections(key.path)).chain(["sinks"]);
    let mistyped = known.map(|known| (strsim::damerau_levenshtein(path, known), known));
    let (errors, known) = mistyped.chain(misplaced).min()?;
    (errors <= 1 + wrong.len() / 4).then_some(known)
}

/// A path and the sections around it.
fn with_sections(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.match_indices('.').map(|(end, _)| &path[..end]).chain([path])
}

/// The start of every variable that is read.
const VARIABLE_PREFIX: &str = "TRACEMESH_";

/// The path that a variable names, known or not; none when the variable is not for configuration.
///
/// Kubernetes sets variables such as `TRACEMESH_PORT_4317_TCP` for a service of that name, so only
/// those with `__`, and those that would be a known path if they had it, are taken.
pub(super) fn path_of_variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix(VARIABLE_PREFIX)?;
    let path = rest.replace("__", ".").to_ascii_lowercase();
    let flat = path.replace('.', "_");
    let typed_flat = KEYS.iter().any(|key| key.path.replace('.', "_") == flat);
    (path.contains('.') || path == "sinks" || typed_flat).then_some(path)
}

/// The variable that sets a path.
pub(super) fn variable_of_path(path: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}

/// The table of all keys, as Markdown.
pub fn reference_table() -> String {
    let mut table = String::from("| Key | Value | Default | Meaning |\n|---|---|---|---|\n");
    for Key { path, kind, default, range, meaning } in KEYS {
        let mut value = match kind {
            Kind::Choice(_) => kind.expected(),
            _ => kind.name().to_owned(),
        };
        if let Some((least, most)) = range {
            let _ = write!(value, ", {least} to {most}");
        }
        let default = match default {
            None => String::new(),
            Some("") => "empty".to_owned(),
            Some(default) => format!("`{default}`"),
        };
        let _ = writeln!(table, "| `{path}` | {value} | {default} | {meaning} |");
    }
    table
}
