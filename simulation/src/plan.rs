//! What happens in one simulation, as a plain value: cluster, links, load, and the faults with
//! their times.
//!
//! A plan is all that a run depends on besides the code. It is drawn from a seed (`draw`) or
//! written by hand, printed as JSON and parsed again ([`Plan::parse`] refuses what makes no sense,
//! saying what). Every fault stands for itself, its end included: a crash has its restart, a
//! partition its healing. So a plan stays sensible when faults are cut from it, in any combination.
//! Nothing here happens; `cluster` makes it happen.

mod fault;

pub use fault::{Cut, Data, Fault, Generation, Mood, Restart, Seen, Timed};

use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Duration;

/// Nodes that a plan may have; chitchat and QUIC cost the square of it.
pub const NODES_MAX: usize = 50;

/// The longest plan. A day of virtual time at the pace of twenty nodes takes hours.
const PHASE_MAX: Millis = Millis(48 * 3600 * 1000);

/// Milliseconds of virtual time since the simulation began, or between two moments of it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A node of the plan, by number from 0.
pub type NodeNumber = usize;

/// The id of a node.
pub fn node_id(node: NodeNumber) -> String {
    format!("node-{node}")
}

/// One simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Everything random is drawn from it.
    pub seed: u64,
    /// Nodes that start at once.
    pub nodes: usize,
    /// Nodes besides these that a [`Fault::Join`] may start.
    pub spare_nodes: usize,
    /// How long clients send and faults happen.
    pub safety_ms: Millis,
    /// How long the healed cluster may take to finish everything.
    pub liveness_ms: Millis,
    /// How nodes are configured.
    pub cluster: ClusterOptions,
    /// Every directed link, when no fault makes it worse.
    pub link: LinkOptions,
    /// What clients send.
    pub load: LoadOptions,
    /// What goes wrong, by time.
    pub faults: Vec<Timed>,
}

/// How every node is configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterOptions {
    /// `cluster.replicas`.
    pub replicas: u8,
    /// Number of zones that nodes are spread over by turns; 0 for none.
    pub zones: usize,
    /// Shards of a node.
    pub shards: usize,
    /// `node.memory` of each node.
    pub memory_bytes: u64,
    /// `traces.root_delay`.
    pub root_delay_ms: Millis,
    /// `traces.age_max`.
    pub age_max_ms: Millis,
    /// `drain.announce`.
    pub drain_announce_ms: Millis,
    /// `drain.timeout`.
    pub drain_timeout_ms: Millis,
}

impl ClusterOptions {
    /// Settings as a swarm draws them around, and all of them in the middle.
    pub const DEFAULT: Self = Self {
        replicas: 1,
        zones: 0,
        shards: 2,
        memory_bytes: 256 << 20,
        root_delay_ms: Millis(1_000),
        age_max_ms: Millis(5_000),
        drain_announce_ms: Millis(1_000),
        drain_timeout_ms: Millis(20_000),
    };
}

/// One directed link, and what it does to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkOptions {
    /// The least time on the way, in microseconds; at least [`LinkOptions::LATENCY_MIN`].
    pub latency_us: u64,
    /// Up to so much more, evenly spread, in microseconds.
    pub jitter_us: u64,
    /// Share of datagrams that are lost, 0 to 1.
    pub loss: f64,
    /// Share that come twice.
    pub duplication: f64,
    /// Share that are held back by up to four times latency and jitter, so that others overtake.
    pub reordering: f64,
    /// Bytes a second; 0 for no limit. What waits is bounded by the inbox.
    pub bandwidth: u64,
    /// The largest datagram that passes; larger ones are lost.
    pub mtu: usize,
}

impl LinkOptions {
    /// The least latency: the length of a lock step, because nothing may arrive in anybody's past.
    pub const LATENCY_MIN: Duration = Duration::from_millis(1);

    /// A good local network.
    pub const GOOD: Self = Self {
        latency_us: 2000,
        jitter_us: 1000,
        loss: 0.0,
        duplication: 0.0,
        reordering: 0.0,
        bandwidth: 0,
        mtu: 1472,
    };
}

/// What clients send: traces of equal size whose spans are scattered over all clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadOptions {
    /// When the first trace begins.
    pub from_ms: Millis,
    /// Exporters; each begins with another node.
    pub clients: usize,
    /// Requests a second and client.
    pub requests_per_second: f64,
    /// Spans of a request.
    pub spans_per_request: usize,
    /// Bytes of a span, roughly.
    pub span_bytes: usize,
    /// Spans of a trace, the root included.
    pub spans_per_trace: usize,
    /// Share of traces whose spans come from all clients; those of the others come from one.
    pub scattered: f64,
    /// Share of traces whose root is never sent: `age_max` decides them.
    pub rootless: f64,
    /// How far the spans of a trace are apart, at most.
    pub spread_ms: Millis,
    /// A request without an answer for so long is sent again elsewhere.
    pub deadline_ms: Millis,
    /// Sends of one request before its client gives up.
    pub tries_max: u32,
    /// Share of requests that are sent again although they were accepted.
    pub repeats: f64,
}

impl LoadOptions {
    /// 20 requests of 10 KB a second and client, from five clients.
    pub const DEFAULT: Self = Self {
        from_ms: Millis(3_000),
        clients: 5,
        requests_per_second: 20.0,
        spans_per_request: 20,
        span_bytes: 500,
        spans_per_trace: 8,
        scattered: 1.0,
        rootless: 0.0,
        spread_ms: Millis(500),
        deadline_ms: Millis(10_000),
        tries_max: 30,
        repeats: 0.0,
    };
}

/// A plan cannot be read or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is no JSON, or not of this shape.
    #[error("not a plan of a simulation")]
    Json(#[from] serde_json::Error),
    /// A value is out of range.
    #[error("{what} is {value}, but must be {expected}")]
    Value {
        /// Where it stands.
        what: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        expected: String,
    },
}

impl Plan {
    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// The text is cut short, of another shape, or says something impossible.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let plan: Self = serde_json::from_str(text)?;
        plan.check()?;
        Ok(plan)
    }

    /// The plan as JSON, to be read by people and by [`Self::parse`].
    pub fn text(&self) -> String {
        // Only maps with keys that are no texts cannot be written, and a plan has no maps.
        serde_json::to_string_pretty(self).expect("a plan is JSON") + "\n"
    }

    /// The zone of a node; empty without zones.
    pub fn zone(&self, node: NodeNumber) -> String {
        match self.cluster.zones {
            0 => String::new(),
            zones => format!("zone-{}", node % zones),
        }
    }

    /// All nodes, the spare ones too.
    pub fn all_nodes(&self) -> Range<NodeNumber> {
        0..self.nodes + self.spare_nodes
    }

    /// The directed links that a partition or a cut pair cuts; none for another fault.
    pub fn links_cut_by(&self, fault: usize) -> Vec<(NodeNumber, NodeNumber)> {
        match &self.faults[fault].fault {
            Fault::Partition { side, cut, .. } => {
                let others = || self.all_nodes().filter(|node| !side.contains(node));
                let out =
                    side.iter().flat_map(|&inside| others().map(move |other| (inside, other)));
                let into = out.clone().map(|(inside, other)| (other, inside));
                match cut {
                    Cut::Both => out.chain(into).collect(),
                    Cut::Out => out.collect(),
                    Cut::In => into.collect(),
                }
            }
            &Fault::PairCut { pair: (one, other), .. } => vec![(one, other), (other, one)],
            _ => Vec::new(),
        }
    }

    /// Whether every value is possible.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), PlanError> {
        within("nodes", self.nodes, 1..=NODES_MAX)?;
        within("spare_nodes", self.spare_nodes, 0..=NODES_MAX - self.nodes)?;
        within("safety_ms", self.safety_ms.0, 0..=PHASE_MAX.0)?;
        within("liveness_ms", self.liveness_ms.0, 0..=PHASE_MAX.0)?;
        within("cluster.replicas", self.cluster.replicas, 0..=1)?;
        within("cluster.shards", self.cluster.shards, 1..=64)?;
        within("cluster.memory_bytes", self.cluster.memory_bytes, 16 << 20..=1 << 40)?;
        self.link.check("link")?;
        let load = &self.load;
        within("load.clients", load.clients, 0..=1000)?;
        within("load.requests_per_second", load.requests_per_second, 0.0..=10_000.0)?;
        within("load.spans_per_request", load.spans_per_request, 1..=10_000)?;
        within("load.spans_per_trace", load.spans_per_trace, 1..=10_000)?;
        within("load.span_bytes", load.span_bytes, 0..=1 << 20)?;
        within("load.tries_max", load.tries_max, 1..=1000)?;
        within("load.scattered", load.scattered, 0.0..=1.0)?;
        within("load.rootless", load.rootless, 0.0..=1.0)?;
        within("load.repeats", load.repeats, 0.0..=1.0)?;
        self.faults.iter().enumerate().try_for_each(|(number, timed)| {
            let place = format!("faults[{number}]");
            within(&format!("{place}.at_ms"), timed.at_ms.0, 0..=self.safety_ms.0)?;
            self.check_fault(&place, &timed.fault)
        })
    }

    fn check_fault(&self, place: &str, fault: &Fault) -> Result<(), PlanError> {
        let node = |number: NodeNumber| {
            within(&format!("{place}.node"), number, 0..=self.all_nodes().end - 1)
        };
        match fault {
            Fault::Slow { node: number, turn_of, .. } => {
                within(&format!("{place}.turn_of"), *turn_of, 1..=10_000)?;
                node(*number)
            }
            Fault::Crash { node: number, .. }
            | Fault::Drain { node: number, .. }
            | Fault::Pause { node: number, .. }
            | Fault::ClockStep { node: number, .. }
            | Fault::ClockSkew { node: number, .. }
            | Fault::DiskFull { node: number, .. } => node(*number),
            Fault::Join { node: number } | Fault::Disagree { node: number } => {
                let spare = self.nodes..=(self.nodes + self.spare_nodes).max(1) - 1;
                within(&format!("{place}.node"), *number, spare)
            }
            Fault::Partition { side, .. } => side.iter().try_for_each(|number| node(*number)),
            Fault::PairCut { pair, .. } => node(pair.0).and(node(pair.1)),
            Fault::Links { link, .. } => link.check(place),
            Fault::Sink { node: number, .. } => number.map_or(Ok(()), node),
        }
    }
}

impl LinkOptions {
    fn check(&self, place: &str) -> Result<(), PlanError> {
        let least = u64::try_from(Self::LATENCY_MIN.as_micros()).unwrap_or(u64::MAX);
        within(&format!("{place}.latency_us"), self.latency_us, least..=60_000_000)?;
        within(&format!("{place}.jitter_us"), self.jitter_us, 0..=60_000_000)?;
        within(&format!("{place}.loss"), self.loss, 0.0..=1.0)?;
        within(&format!("{place}.duplication"), self.duplication, 0.0..=1.0)?;
        within(&format!("{place}.reordering"), self.reordering, 0.0..=1.0)?;
        within(&format!("{place}.mtu"), self.mtu, 1200..=65_507)
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    what: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<(), PlanError> {
    if range.contains(&value) {
        return Ok(());
    }
    let expected = format!("from {} to {}", range.start(), range.end());
    Err(PlanError::Value { what: what.to_owned(), value: value.to_string(), expected })
}
