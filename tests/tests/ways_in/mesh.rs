//! Three nodes that stand for the README's 10.0.0.1 to 10.0.0.3, on 127.0.0.1 to 127.0.0.3.
//!
//! The invariant: all three have the same four ports, and no other test has them on any of these
//! addresses. So a text of the README needs its addresses and ports replaced, and nothing else.

use serde_json::json;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use tracemesh_tests::host::Host;
use tracemesh_tests::node::{Node, Settings};
use tracemesh_tests::ports::claim_base_port;
use tracemesh_tests::traces;
use tracemesh_tests::wait::wait_until;

/// The binary that cargo built for these tests.
pub(crate) const TRACEMESH: &str = env!("CARGO_BIN_EXE_tracemesh-under-test");
/// Longer than the parts of a trace are apart when they come through a program that batches, on a
/// busy machine.
const ROOT_DELAY: &str = "6s";

/// Three nodes, and the ports of the case.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
    pub(crate) host: Host,
    base_port: u16,
    /// Ports of the programs in front of the nodes.
    front: u16,
}

impl Mesh {
    /// Three members.
    pub(crate) fn start() -> Self {
        Self::start_with(|settings, _| settings)
    }

    /// Three members with settings of their own; `set` is given the replacement of README's ports.
    pub(crate) fn start_with(set: impl Fn(Settings, &Self) -> Settings) -> Self {
        let host = Host::new(TRACEMESH);
        let (base_port, front) = (claim_base_port(), claim_base_port());
        let mut mesh = Self { nodes: Vec::new(), host, base_port, front };
        let settings = (1..=3).map(|number| {
            let ip = Ipv4Addr::new(127, 0, 0, number);
            let node = mesh.host.node(&format!("n{number}")).at(ip, base_port);
            let node = node.with("traces.root_delay", json!(ROOT_DELAY));
            set(node.with_seed(&format!("127.0.0.1:{}", base_port + 2)), &mesh)
        });
        let settings: Vec<_> = settings.collect();
        let mut nodes: Vec<_> = settings.iter().map(Settings::launch).collect();
        nodes.iter_mut().for_each(Node::wait_until_ready);
        nodes.iter().for_each(|node| node.wait_for_members(3));
        mesh.nodes = nodes;
        mesh
    }

    /// A text of the README, with the addresses and ports of this case.
    pub(crate) fn here(&self, text: &str) -> String {
        let mut here = text.replace("10.0.0.", "127.0.0.");
        let ports =
            [(4317, self.base_port), (4318, self.base_port + 1), (4320, self.base_port + 3)];
        for (there, port) in ports.into_iter().chain([(21890, self.front)]) {
            here = here.replace(&there.to_string(), &port.to_string());
        }
        here
    }

    /// A port for a program in front of the nodes, such as a collector.
    pub(crate) fn front_port(&self) -> u16 {
        self.front + 1
    }

    /// The sum of a metric over all nodes.
    pub(crate) fn sum(&self, metric: &str) -> f64 {
        self.nodes.iter().map(|node| node.metrics().sum(metric, &[])).sum()
    }

    /// How often each trace came out, and with how many spans each time.
    pub(crate) fn span_counts(&self) -> BTreeMap<String, Vec<usize>> {
        traces::span_counts(self.nodes.iter().map(Node::trace_file))
    }

    /// Waits until `spans` spans came out; they must be whole traces of `spans_of_a_trace`, each
    /// once.
    pub(crate) fn assert_came_out(&self, spans: usize, spans_of_a_trace: usize) {
        let came = || self.span_counts().values().flatten().sum::<usize>();
        wait_until(&format!("{spans} spans"), || came() >= spans);
        let counts = self.span_counts();
        let wrong: Vec<_> =
            counts.iter().filter(|(_, counts)| **counts != [spans_of_a_trace]).collect();
        assert!(wrong.is_empty(), "each trace once, with {spans_of_a_trace} spans: {wrong:?}");
        assert_eq!(counts.len() * spans_of_a_trace, spans);
    }
}
