//! Three nodes: every trace meets on one owner, wherever its spans came in.

use crate::host;
use crate::otlp::{encoded, hex, trace, trace_id};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::program::Program;
use tracemesh_tests::wait::wait_until;
use tracemesh_tests::{grpc, http, readme, traces};

/// Traces that are scattered over the nodes.
const TRACE_COUNT: u64 = 3_000;
/// Spans of each, in as many requests to different nodes as there are nodes.
const SPANS_OF_A_TRACE: u64 = 9;
/// Clusters that are started before a view stays the same for the time of a test.
pub(crate) const TRIES_MAX: u32 = 5;
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

/// Runs `test` until the view stayed the same throughout, and returns what it found. A machine so
/// busy that a node stands still changes the view, and what is promised of a stable one does not
/// hold then.
fn with_a_stable_view<T>(settings: &[Settings], mut test: impl FnMut(&[Node]) -> T) -> T {
    for _ in 0..TRIES_MAX {
        for settings in settings {
            // Of the try before; there is none at first.
            let _ = fs::remove_file(settings.trace_file());
        }
        let nodes = start(settings);
        let changes = || sum(&nodes, "tracemesh_view_changes_total");
        // Its own view may be the last that a node hears of.
        wait_until("gauges of the last view", || {
            nodes.iter().all(|node| node.metrics().sum("tracemesh_slots", &[]) > 0.0)
        });
        let before = changes();
        let found = test(&nodes);
        if changes() == before {
            return found;
        }
        eprintln!("the view changed meanwhile: once more");
    }
    panic!("in {TRIES_MAX} tries the view never stayed the same");
}

fn sum(nodes: &[Node], name: &str) -> f64 {
    nodes.iter().map(|node| node.metrics().sum(name, &[])).sum()
}

/// What came of traces whose spans were scattered over all nodes.
struct Found {
    traces: BTreeMap<String, Vec<usize>>,
    accepted: f64,
    without_replica: f64,
}

/// Sends every trace's spans to all nodes, and waits until all came out.
fn scatter(nodes: &[Node]) -> Found {
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
            let request = encoded(part);
            wait_until("a node to take a request", || client.export(request.clone()).is_ok());
        }
    }
    wait_until("all spans", || {
        let found = traces::span_counts(nodes.iter().map(Node::trace_file));
        let all = found
            .values()
            .filter(|counts| counts.iter().sum::<usize>() >= SPANS_OF_A_TRACE as usize);
        all.count() == TRACE_COUNT as usize
    });
    // Replicas forget what the owner exported.
    wait_until("nothing held", || sum(nodes, "tracemesh_spans_held") == 0.0);
    assert!(nodes.iter().all(|node| !node.traces().is_empty()), "every node owns some traces");
    Found {
        traces: traces::span_counts(nodes.iter().map(Node::trace_file)),
        accepted: sum(nodes, "tracemesh_spans_accepted_total"),
        without_replica: sum(nodes, "tracemesh_spans_accepted_without_replica_total"),
    }
}

/// Sends every trace's spans to all nodes, and finds each trace once, whole, on one of them.
fn assert_every_trace_meets_on_one_owner(settings: &[Settings]) {
    let found = with_a_stable_view(settings, scatter);
    let wrong: Vec<_> =
        found.traces.iter().filter(|(_, counts)| **counts != [SPANS_OF_A_TRACE as usize]).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let sent: BTreeSet<_> = (0..TRACE_COUNT).map(|number| hex(&trace_id(number))).collect();
    assert!(found.traces.keys().eq(&sent), "these traces and no others");
    assert_eq!(found.accepted, (TRACE_COUNT * SPANS_OF_A_TRACE) as f64);
    assert_eq!(found.without_replica, 0.0);
}

#[test]
fn every_trace_meets_on_one_owner() {
    let host = host();
    assert_every_trace_meets_on_one_owner(&patient(host.nodes(&["a", "b", "c"])));
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
    assert_every_trace_meets_on_one_owner(&patient(settings));
}

/// The load command of the product: it sends to all nodes, verifies what `arguments` name, and
/// fails when something is lost.
fn load(host: &Host, nodes: &[Node], arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(host.program());
    // A rate that unoptimised nodes keep up with on a busy machine.
    command.args(["load", "--spans", "12000", "--rate", "2000", "--json"]);
    command.args(["--allow-twice", "--allow-parts"]).args(arguments);
    for node in nodes {
        command.args(["--target", &node.grpc_url()]);
    }
    let output = Program::run("load", host.path(), &mut command).succeeded();
    let report = output.lines().rfind(|line| line.starts_with('{')).expect("a report");
    serde_json::from_str(report).expect("the report is JSON")
}

fn assert_once_and_whole(report: &serde_json::Value) {
    let came_out = &report["verification"];
    for what in ["spans_lost", "spans_twice", "traces_in_parts"] {
        assert_eq!(came_out[what], 0, "{what}: {report}");
    }
}

/// Ports that the README uses for its first node, and how far apart they are from node to node.
const README_PORT: u16 = 4317;
const README_STEP: u16 = 10;

/// What the README says of three nodes on one host, as commands with ports that are free.
fn commands_of_readme(name: &str, ports: &[u16]) -> Vec<Vec<String>> {
    let mut text = readme::text(name).replace("\\\n", " ");
    // The first port needs no name in the file; any other does.
    text = text.replace("traces.jsonl", &format!("traces-{}.jsonl", README_PORT + 2));
    let ports = (README_PORT..).step_by(README_STEP.into()).zip(ports);
    let ports = ports.flat_map(|(theirs, ours)| (0..4).map(move |n| (theirs + n, ours + n)));
    let ports: Vec<_> = ports.collect();
    // Marked first: what is free may look like one that is to be replaced.
    for (theirs, _) in &ports {
        text = text.replace(&theirs.to_string(), &format!("<{theirs}>"));
    }
    for (theirs, ours) in &ports {
        text = text.replace(&format!("<{theirs}>"), &ours.to_string());
    }
    let words = |line: &str| line.split_whitespace().skip(1).map(str::to_owned).collect();
    text.lines().map(words).collect()
}

#[test]
fn three_nodes_on_one_host_are_started_and_loaded_as_the_readme_says() {
    let host = host();
    let ports: [u16; 3] = std::array::from_fn(|_| claim_base_port());
    let run = |name: &str, words: &[String]| {
        let mut command = Command::new(host.program());
        command.args(words);
        Program::start(name, host.path(), &mut command)
    };
    let nodes = commands_of_readme("three-nodes", &ports);
    assert_eq!(nodes.len(), ports.len());
    let numbered = nodes.iter().enumerate();
    let _nodes: Vec<_> = numbered.map(|(n, words)| run(&format!("node-{n}"), words)).collect();
    for port in ports {
        let members = format!("http://127.0.0.1:{}/api/v1/members", port + 3);
        wait_until("three members", || {
            let answer = http::try_get(&members).filter(|answer| answer.status == 200);
            answer.is_some_and(|answer| answer.json().as_array().map(Vec::len) == Some(3))
        });
    }
    let [words] = &commands_of_readme("three-nodes-status", &ports)[..] else { panic!("one") };
    let mut status = run("status", words);
    assert!(status.wait().success(), "{}", status.output());
    for port in ports {
        assert!(status.output().contains(&(port + 2).to_string()), "{}", status.output());
    }
    let [words] = &mut commands_of_readme("three-nodes-load", &ports)[..] else { panic!("one") };
    let spans = words.iter_mut().find(|word| *word == "200000").expect("it says how many spans");
    "12000".clone_into(spans);
    // A busy machine may lead to a view that changes meanwhile; nothing is lost even then.
    words.extend(["--rate", "2000", "--allow-twice", "--allow-parts"].map(str::to_owned));
    let mut load = run("load", words);
    assert!(load.wait().success(), "{}", load.output());
}

#[test]
fn load_finds_every_trace_once_and_whole_in_the_files_of_the_nodes() {
    let host = host();
    let settings = patient(host.nodes(&["a", "b", "c"]));
    let report = with_a_stable_view(&settings, |nodes| {
        let files = nodes.iter().map(|node| node.trace_file().display().to_string());
        let files: Vec<_> = files.flat_map(|file| ["--verify-file".to_owned(), file]).collect();
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        load(&host, nodes, &files)
    });
    assert_once_and_whole(&report);
}

#[test]
fn load_finds_every_trace_once_and_whole_at_an_otlp_sink() {
    let host = host();
    let sink = format!("127.0.0.1:{}", claim_base_port());
    let sinks = json!([{ "otlp": { "endpoint": format!("http://{sink}") } }]);
    let settings = patient(host.nodes(&["a", "b", "c"]));
    let settings = settings.into_iter().map(|node| node.with("sinks", sinks.clone()));
    let settings: Vec<_> = settings.collect();
    let report = with_a_stable_view(&settings, |nodes| load(&host, nodes, &["--listen", &sink]));
    assert_once_and_whole(&report);
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
