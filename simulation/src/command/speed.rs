//! `speed`: how much virtual time passes in a second of real time.

use super::{Failure, Finding, print};
use crate::cluster::{self, Watching};
use crate::plan::{ClusterOptions, LinkOptions, LoadOptions, Millis, NODES_MAX, Plan};
use tokio::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Nodes of the cluster
    #[arg(long, value_name = "N", default_value = "5", value_parser = nodes)]
    nodes: usize,
    /// Virtual seconds under load
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    seconds: u32,
}

pub(super) fn run(arguments: &Arguments) -> Result<Finding, Failure> {
    let plan = plan(arguments.nodes, arguments.seconds);
    // Of no runtime, so it is real time.
    let begun = Instant::now();
    let outcome = cluster::run(plan, Watching::default())?;
    let real = begun.elapsed().as_secs_f64();
    let passed = outcome.history.ended_at.duration().as_secs_f64();
    let nodes = arguments.nodes;
    let events = outcome.hash.1;
    print(format_args!(
        "{nodes} nodes, 20 batches of 10 KB a second and node, mutual TLS, gossip every 200 ms: \
         {passed:.0} virtual s in {real:.2} s, {:.0} virtual s per s, {events} events\n",
        passed / real
    ))?;
    Ok(Finding::Green)
}

fn nodes(text: &str) -> Result<usize, String> {
    let nodes = text.parse().ok().filter(|nodes| (1..=NODES_MAX).contains(nodes));
    nodes.ok_or_else(|| format!("expected 1 to {NODES_MAX}"))
}

fn plan(nodes: usize, seconds: u32) -> Plan {
    Plan {
        seed: 1,
        nodes,
        spare_nodes: 0,
        safety_ms: Millis(u64::from(seconds) * 1000),
        liveness_ms: Millis(60_000),
        cluster: ClusterOptions::DEFAULT,
        link: LinkOptions::GOOD,
        // Each request is one trace, which is a batch for its owner and one for its replica.
        load: LoadOptions {
            clients: nodes,
            requests_per_second: 10.0,
            spans_per_request: 20,
            spans_per_trace: 20,
            scattered: 0.0,
            spread_ms: Millis(0),
            ..LoadOptions::DEFAULT
        },
        faults: Vec::new(),
    }
}
