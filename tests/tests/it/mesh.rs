//! Three nodes: every trace meets on one owner, wherever its spans came in.

use crate::otlp::{encoded, hex, trace, trace_id};
use crate::{grpc, host};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;
use tracemesh_tests::{http, traces};

/// Traces that are scattered over the nodes.
const TRACE_COUNT: u64 = 3_000;
/// Spans of each, in as many requests to different nodes as there are nodes.
const SPANS_OF_A_TRACE: u64 = 9;
/// Traces whose spans travel in one request.
const TRACES_OF_A_REQUEST: u64 = 100;

/// Starts `settings` all at once and waits until everybody sees everybody.
pub(crate) fn start(settings: &[Settings]) -> Vec<Node> {
    let mut nodes: Vec<Node> = settings.iter().map(Settings::launch).collect();
    nodes.iter_mut().for_each(Node::wait_until_ready);
    nodes.iter().for_each(|node| node.wait_for_members(settings.len()));
    wait_until("one view", || {
        let hash = |node: &Node| {
            let status = http::get(&node.console_url("/api/v1/status")).json();
            status["view"]["hash"].to_string()
        };
        nodes.iter().all(|node| hash(node) == hash(&nodes[0]))
    });
    nodes
}

/// Waits for the rest of a trace for longer than a request may be tried again on a busy machine.
fn patient(settings: Vec<Settings>) -> Vec<Settings> {
    settings.into_iter().map(|node| node.with("traces.root_delay", json!("15s"))).collect()
}

/// Sends every trace's spans to all nodes, and finds each trace once, whole, on one of them.
fn assert_every_trace_meets_on_one_owner(nodes: &[Node]) {
    let mut clients: Vec<_> = nodes.iter().map(|node| grpc::Client::new(node.grpc_url())).collect();
    for first in (0..TRACE_COUNT).step_by(TRACES_OF_A_REQUEST as usize) {
        let mut parts = vec![Vec::new(); clients.len()];
        for number in first..first + TRACES_OF_A_REQUEST {
            let spans = trace(&trace_id(number), SPANS_OF_A_TRACE);
            for (place, span) in spans.into_iter().enumerate() {
                parts[(number as usize + place) % clients.len()].push(span);
            }
        }
        for (client, part) in clients.iter_mut().zip(parts) {
            client.export(encoded(part)).expect("a healthy mesh takes what fits");
        }
    }
    let sum = |name: &str| nodes.iter().map(|node| node.metrics().sum(name, &[])).sum::<f64>();
    let all = (TRACE_COUNT * SPANS_OF_A_TRACE) as f64;
    wait_until("all spans", || sum("tracemesh_spans_exported_total") >= all);
    let expected: BTreeMap<_, _> = (0..TRACE_COUNT)
        .map(|number| (hex(&trace_id(number)), vec![SPANS_OF_A_TRACE as usize]))
        .collect();
    let found = traces::span_counts(nodes.iter().map(Node::trace_file));
    let wrong: Vec<_> =
        found.iter().filter(|(id, counts)| expected.get(*id) != Some(counts)).collect();
    assert!(wrong.is_empty() && found.len() == expected.len(), "{} traces, {wrong:?}", found.len());
    assert_eq!(sum("tracemesh_spans_accepted_total"), all);
    assert_eq!(sum("tracemesh_spans_accepted_without_replica_total"), 0.0);
    for node in nodes {
        assert!(!node.traces().is_empty(), "every node owns some traces");
        // Replicas forget what the owner exported.
        node.wait_for_metric("tracemesh_spans_held", &[], 0.0);
    }
}

#[test]
fn every_trace_meets_on_one_owner() {
    let host = host();
    let nodes = start(&patient(host.nodes(&["a", "b", "c"])));
    assert_every_trace_meets_on_one_owner(&nodes);
}

#[test]
fn every_trace_meets_on_one_owner_under_an_authority_of_ones_own() {
    let host = host();
    let authority = Authority::new();
    let nodes = ["a", "b", "c"].map(|id| (id, authority.issue(&host, id, Validity::Now)));
    let mut settings = host.nodes(&["a", "b", "c"]);
    for (settings, (_, files)) in settings.iter_mut().zip(nodes) {
        settings.set("cluster.tls", files);
    }
    let nodes = start(&patient(settings));
    assert_every_trace_meets_on_one_owner(&nodes);
}

/// The load command of the product, which verifies what comes out and fails when something is
/// amiss.
fn load(host: &Host, nodes: &[Node]) -> Command {
    let mut command = Command::new(host.program());
    // A rate that unoptimised nodes keep up with on a busy machine.
    command.args(["load", "--spans", "12000", "--rate", "2000", "--json"]);
    for node in nodes {
        command.args(["--target", &node.grpc_url()]);
    }
    command
}

#[test]
fn load_finds_every_trace_once_and_whole_in_the_files_of_the_nodes() {
    let host = host();
    let nodes = start(&patient(host.nodes(&["a", "b", "c"])));
    let mut command = load(&host, &nodes);
    for node in &nodes {
        command.arg("--verify-file").arg(node.trace_file());
    }
    Program::run("load", host.path(), &mut command).succeeded();
}

#[test]
fn load_finds_every_trace_once_and_whole_at_an_otlp_sink() {
    let host = host();
    let sink = format!("127.0.0.1:{}", claim_base_port());
    let sinks = json!([{ "otlp": { "endpoint": format!("http://{sink}") } }]);
    let settings = patient(host.nodes(&["a", "b", "c"]));
    let settings = settings.into_iter().map(|node| node.with("sinks", sinks.clone()));
    let nodes = start(&settings.collect::<Vec<_>>());
    let mut command = load(&host, &nodes);
    Program::run("load", host.path(), command.args(["--listen", &sink])).succeeded();
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validity {
    /// From long ago until long from now.
    Now,
    /// It expired long ago.
    Expired,
}

/// A certificate authority that an operator runs.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "an operator's authority");
        let certificate = parameters.self_signed(&key).expect("an authority signs itself").pem();
        Self { issuer: rcgen::Issuer::new(parameters, key), certificate }
    }

    /// Writes a certificate for `id` and all that goes with it, and returns the section
    /// `cluster.tls` that names the files.
    pub(crate) fn issue(&self, host: &Host, id: &str, validity: Validity) -> serde_json::Value {
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let mut parameters = rcgen::CertificateParams::default();
        let name = format!("spiffe://tracemesh/node/{id}");
        let name = name.try_into().expect("a SPIFFE id is ASCII");
        parameters.subject_alt_names.push(rcgen::SanType::URI(name));
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = match validity {
            Validity::Now => rcgen::date_time_ymd(2100, 1, 1),
            Validity::Expired => rcgen::date_time_ymd(2020, 2, 1),
        };
        let certificate = parameters.signed_by(&key, &self.issuer).expect("an authority signs");
        let write = |name: &str, text: &str| {
            let path = host.path().join(format!("{id}-{name}"));
            fs::write(&path, text).expect("a file can be written");
            path.to_string_lossy().into_owned()
        };
        json!({
            "ca_file": write("ca.pem", &self.certificate),
            "cert_file": write("cert.pem", &certificate.pem()),
            "key_file": write("key.pem", &key.serialize_pem()),
        })
    }
}

/// What `tracemesh keygen` prints, in a file.
pub(crate) fn key_file(host: &Host, name: &str) -> std::path::PathBuf {
    let mut command = std::process::Command::new(host.program());
    let path = host.path().join(name);
    let output = command.arg("keygen").output().expect("the program starts");
    assert!(output.status.success(), "keygen: {}", String::from_utf8_lossy(&output.stderr));
    fs::write(&path, output.stdout).expect("a file can be written");
    path
}

/// Sets the key file of all `nodes`.
pub(crate) fn with_key(nodes: Vec<Settings>, key: &Path) -> Vec<Settings> {
    nodes.into_iter().map(|node| node.with("cluster.key_file", json!(key))).collect()
}
