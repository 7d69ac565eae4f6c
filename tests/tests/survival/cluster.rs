//! Nodes that share their seeds and come and go as a case says.
//!
//! A node that was killed or stopped is started again with the same settings, so with its id, its
//! ports and its data. A paused node is asked nothing, as it would not answer.

use crate::sink::Sink;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracemesh_tests::host::Host;
use tracemesh_tests::http;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::wait::{wait_until, wait_within};

/// Ids of nodes.
const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Longer than any trace is open, with all the time that a busy machine may need besides.
const AGREE_MAX: Duration = Duration::from_secs(180);
/// Held by whoever runs.
static TURN: Mutex<()> = Mutex::new(());

/// Some nodes, of which some run.
pub(crate) struct Cluster {
    settings: Vec<Settings>,
    nodes: BTreeMap<usize, Node>,
    paused: BTreeSet<usize>,
    host: Host,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `count` nodes that do not run yet. Every one has all of them as seeds, as hosts with one
    /// file would, so that any of them can come back.
    pub(crate) fn of(count: usize) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host::new(env!("CARGO_BIN_EXE_tracemesh-under-test"));
        let settings: Vec<_> = IDS[..count].iter().map(|id| host.node(id)).collect();
        let (nodes, paused) = (BTreeMap::new(), BTreeSet::new());
        let mut cluster = Self { settings, nodes, paused, host, _turn: turn };
        let seeds: Vec<_> = cluster.settings.iter().map(Settings::mesh_address).collect();
        cluster.set("cluster.seeds", &json!(seeds));
        // Long beside a request's tries, so that only what is lost for long makes a trace late.
        cluster.set("traces.root_delay", &json!("3s"));
        cluster
    }

    /// Sets a key of every node that is started from now on.
    pub(crate) fn set(&mut self, key: &str, value: &Value) {
        self.settings.iter_mut().for_each(|node| node.set(key, value.clone()));
    }

    /// Sets a key of one node.
    pub(crate) fn set_of(&mut self, node: usize, key: &str, value: Value) {
        self.settings[node].set(key, value);
    }

    /// The mesh addresses of all nodes.
    pub(crate) fn mesh_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.settings.iter().map(Settings::mesh_address);
        addresses.map(|address| address.parse().expect("an address of loopback")).collect()
    }

    /// The OTLP gRPC URLs of all nodes, whether they run or not.
    pub(crate) fn targets(&self) -> Vec<String> {
        let urls = self.settings.iter().map(|node| node.base_port());
        urls.map(|port| format!("http://127.0.0.1:{port}")).collect()
    }

    /// The place of the nodes.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Sends all traces to `sink` and to `load`, then starts the first `count` nodes at once.
    pub(crate) fn start_first(&mut self, count: usize, sink: &Sink, load: &str) {
        let sinks = [sink.url(), format!("http://{load}")];
        let sinks = sinks.map(|endpoint| json!({ "otlp": { "endpoint": endpoint } }));
        self.set("sinks", &json!(sinks));
        (0..count).for_each(|node| self.launch(node));
        self.wait_until_settled();
    }

    /// Starts a node and returns at once.
    pub(crate) fn launch(&mut self, node: usize) {
        self.nodes.insert(node, self.settings[node].launch());
    }

    /// Starts a node and waits until all agree.
    pub(crate) fn start(&mut self, node: usize) {
        self.launch(node);
        self.wait_until_settled();
    }

    /// Ends a node with SIGKILL.
    pub(crate) fn kill(&mut self, node: usize) {
        let mut node = self.nodes.remove(&node).expect("it runs");
        node.program().kill();
    }

    /// Ends a node with SIGTERM, and returns its exit code when it has drained.
    pub(crate) fn stop(&mut self, node: usize) -> Option<i32> {
        let mut node = self.nodes.remove(&node).expect("it runs");
        node.stop().code()
    }

    /// Stops a node where it is.
    pub(crate) fn pause(&mut self, node: usize) {
        self.nodes.get_mut(&node).expect("it runs").program().pause();
        self.paused.insert(node);
    }

    /// Lets a paused node go on.
    pub(crate) fn resume(&mut self, node: usize) {
        self.nodes.get_mut(&node).expect("it runs").program().resume();
        self.paused.remove(&node);
    }

    /// Waits until each running node sees all of them and no others, and has nothing left to hand
    /// over: the next fault comes alone.
    pub(crate) fn wait_until_settled(&mut self) {
        self.wait_until_ready();
        let all: Vec<_> = self.running().map(|(number, _)| number).collect();
        self.wait_for_view(&all);
        let settled = |(_, node): (usize, &Node)| is_settled(node);
        wait_within(AGREE_MAX, "all to have settled", || self.running().all(settled).then_some(()));
        self.wait_for_view(&all);
    }

    /// Waits until all running nodes accept spans.
    pub(crate) fn wait_until_ready(&mut self) {
        let running = self.nodes.iter_mut().filter(|(node, _)| !self.paused.contains(node));
        running.for_each(|(_, node)| node.wait_until_ready());
    }

    /// Waits until `nodes` have one view, with as many members as they are.
    pub(crate) fn wait_for_view(&self, nodes: &[usize]) {
        wait_within(AGREE_MAX, "one view", || {
            let views = nodes.iter().map(|node| view(&self.nodes[node]));
            let views: BTreeSet<_> = views.collect::<Option<_>>()?;
            let is_one = views.len() == 1;
            let (_, members) = views.into_iter().next()?;
            (is_one && members == nodes.len() as u64).then_some(())
        });
    }

    /// Waits until clients had success with so many more spans.
    pub(crate) fn wait_for_acknowledged(&self, spans: u64) {
        let count = || self.sum("tracemesh_spans_accepted_total");
        let enough = count() + spans as f64;
        wait_until("more acknowledged spans", || count() >= enough);
    }

    /// Waits until every node has found the test's own sink down.
    pub(crate) fn wait_until_sink_is_down(&self) {
        wait_until("all nodes to miss the sink", || {
            let is_up = |node: &Node| node.metrics().sum("tracemesh_sink_up", &[("sink", "otlp")]);
            self.running().all(|(_, node)| is_up(node) == 0.0)
        });
    }

    /// Waits until a node takes nothing more from clients.
    pub(crate) fn wait_until_full(&self) {
        wait_within(AGREE_MAX, "a node to be full", || {
            let status = |node: &Node| http::try_get(&node.console_url("/readyz"));
            let says = |node: &Node| status(node).is_some_and(|says| says.text().contains("full"));
            self.running().any(|(_, node)| says(node)).then_some(())
        });
    }

    /// The sum of a metric over all nodes that run.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.running().map(|(_, node)| node.metrics().sum(name, &[])).sum()
    }

    /// How often nodes noticed that the machine let them stand still.
    pub(crate) fn stand_stills(&self) -> usize {
        let logs = self.settings.iter().map(|node| node.log());
        logs.map(|log| log.matches("this process stood still").count()).sum()
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        let nodes = self.nodes.iter().map(|(number, node)| (*number, node));
        nodes.filter(|(number, _)| !self.paused.contains(number))
    }
}

/// Hash and number of members of the view that a node acts by.
fn view(node: &Node) -> Option<(String, u64)> {
    let status = http::try_get(&node.console_url("/api/v1/status"))?.json();
    Some((status["view"]["hash"].to_string(), status["view"]["members"].as_u64()?))
}

/// Whether a node has nothing left to hand over for its view.
fn is_settled(node: &Node) -> bool {
    let status = http::try_get(&node.console_url("/api/v1/status"));
    status.is_some_and(|status| status.json()["settled"] == true)
}
