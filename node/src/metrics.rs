//! What a node counts and measures, as Prometheus sees it.
//!
//! One struct per stage, created in one place ([`Metrics::register`]) and passed in; there are no
//! globals. The invariant: labels are enums of ours or names of members, never what a client sent,
//! so the number of series is bounded by the size of the cluster. Counters are shared by cloning:
//! every stage holds its own struct, the registry sees the same numbers.
//!
//! Which node counts which span, and how the sums add up, is the contract of the span counters;
//! their documentation here repeats it in one sentence each. Sinks register their own.

mod labels;
mod process;
mod text;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, AtomicU64};

pub use labels::*;
pub use text::{classic, counters, open_metrics};

/// A gauge of whole numbers.
pub type Count = Gauge<i64, AtomicI64>;
/// A gauge of fractions.
pub type Level = Gauge<f64, AtomicU64>;

/// Registers and returns, so that name, help and field stand together.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn new<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    add(registry, name, help, M::default())
}

/// A family whose labels are known beforehand: each begins at zero, so that the first event is a
/// change that an alert sees, and not a new series.
fn each<S, M>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: impl IntoIterator<Item = S>,
) -> Family<S, M>
where
    S: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static,
    M: Metric + TypedMetric + Default,
{
    let family = Family::default();
    for label in labels {
        drop(family.get_or_create(&label));
    }
    add(registry, name, help, family)
}

fn reasons(reasons: &[Reason]) -> impl Iterator<Item = ReasonLabels> {
    reasons.iter().map(|&reason| ReasonLabels { reason })
}

fn roles(roles: &[Role]) -> impl Iterator<Item = RoleLabels> {
    roles.iter().map(|&role| RoleLabels { role })
}

/// 1 ms to 16 s: an acknowledgement takes milliseconds, and 3 s at most.
fn acknowledge_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.001, 2.0, 15)
}

/// 10 ms to 80 s: a trace should be decided when it is due; agreeing may take 10 s.
fn delay_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.01, 2.0, 14)
}

/// A new registry, with the prefix of every name in it.
pub fn registry() -> Registry {
    Registry::with_prefix("tracemesh")
}

/// Everything a node measures but its sinks.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests of clients.
    pub ingest: IngestMetrics,
    /// From a request to its holders.
    pub route: RouteMetrics,
    /// Traces that are held, decided, done.
    pub trace: TraceMetrics,
    /// Members, view, mesh.
    pub cluster: ClusterMetrics,
    /// Memory and other bounds.
    pub memory: MemoryMetrics,
}

impl Metrics {
    /// Registers everything, the process's own figures included.
    pub fn register(registry: &mut Registry) -> Self {
        let refused: Family<ReasonLabels, Counter> = each(
            registry,
            "spans_refused",
            "Spans that clients must never send again; one for a request refused as a whole",
            reasons(&[Reason::Ids, Reason::Size, Reason::Syntax]),
        );
        registry.register_collector(Box::new(process::Collector));
        Self {
            ingest: IngestMetrics::register(registry, refused.clone()),
            route: RouteMetrics::register(registry, refused),
            trace: TraceMetrics::register(registry),
            cluster: ClusterMetrics::register(registry),
            memory: MemoryMetrics::register(registry),
        }
    }
}

/// Requests of clients, counted by both protocol servers.
#[derive(Clone, Debug)]
pub struct IngestMetrics {
    /// `requests_total{protocol,answer}`
    pub requests: Family<RequestLabels, Counter>,
    /// `spans_refused_total{reason}`; requests refused for their `size` or `syntax` are counted
    /// here, each as one, for how many spans are in them is not known.
    pub refused: Family<ReasonLabels, Counter>,
    /// `connections_refused_total{cause}`
    pub connections_refused: Family<ConnectionRefusalLabels, Counter>,
    /// `acknowledge_seconds`: from the last byte of an accepted request to its answer.
    pub acknowledge_seconds: Histogram,
}

impl IngestMetrics {
    fn register(registry: &mut Registry, refused: Family<ReasonLabels, Counter>) -> Self {
        let of_protocol =
            |&protocol| Answer::ALL.iter().map(move |&answer| RequestLabels { protocol, answer });
        let answers = Protocol::ALL.iter().flat_map(of_protocol);
        Self {
            requests: each(
                registry,
                "requests",
                "Export requests by what clients were told",
                answers,
            ),
            refused,
            connections_refused: each(
                registry,
                "connections_refused",
                "Connections of clients that came to nothing",
                ConnectionRefusal::ALL.iter().map(|&cause| ConnectionRefusalLabels { cause }),
            ),
            acknowledge_seconds: add(
                registry,
                "acknowledge_seconds",
                "Time from the last byte of an accepted request to its answer",
                Histogram::new(acknowledge_buckets()),
            ),
        }
    }

    /// Counts one answered request, and the reason when it was refused for good.
    pub fn count(&self, protocol: Protocol, answer: Answer, reason: Option<Reason>) {
        self.requests.get_or_create(&RequestLabels { protocol, answer }).inc();
        if let Some(reason) = reason {
            self.refused.get_or_create(&ReasonLabels { reason }).inc();
        }
    }
}

/// What an entry node counts: from a request to its holders.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    /// `spans_accepted_total`: spans of successful requests.
    pub accepted: Counter,
    /// `spans_accepted_without_replica_total`: of these, on one node only.
    pub accepted_without_replica: Counter,
    /// `spans_unacknowledged_total`: spans of failed requests, which may still be held somewhere.
    pub unacknowledged: Counter,
    /// `spans_refused_total{reason}`: spans refused for their `ids` or their `size`.
    pub refused: Family<ReasonLabels, Counter>,
    /// `spans_rerouted_total{peer}`: sent to others because this peer did not answer in time.
    pub rerouted: Family<PeerLabels, Counter>,
}

impl RouteMetrics {
    fn register(registry: &mut Registry, refused: Family<ReasonLabels, Counter>) -> Self {
        Self {
            accepted: new(registry, "spans_accepted", "Spans of requests that succeeded"),
            accepted_without_replica: new(
                registry,
                "spans_accepted_without_replica",
                "Accepted spans that only one node holds",
            ),
            unacknowledged: new(
                registry,
                "spans_unacknowledged",
                "Spans of requests that failed, which may be held nevertheless",
            ),
            refused,
            rerouted: new(
                registry,
                "spans_rerouted",
                "Spans sent to other nodes because this peer did not answer in time",
            ),
        }
    }
}

/// Traces that are held, decided and done.
#[derive(Clone, Debug)]
pub struct TraceMetrics {
    /// `spans_redelivered_total`: held already; counted by the owner.
    pub redelivered: Counter,
    /// `spans_repaired_total`: stored because a holder, not an entry node, sent them; counted by
    /// the owner.
    pub repaired: Counter,
    /// `spans_exported_total`: counted by the node whose attempt a sink acknowledged, once a span.
    pub exported: Counter,
    /// `spans_late_total`: of these, in an attempt that began when a part of the trace was done.
    pub late: Counter,
    /// `spans_sampled_out_total`: done because of their trace's verdict.
    pub sampled_out: Counter,
    /// `spans_dropped_total{reason}`: done without being exported.
    pub dropped: Family<ReasonLabels, Counter>,
    /// `spans_exported_again_possible_total{cause}`
    pub exported_again_possible: Family<AgainLabels, Counter>,
    /// `spans_held{role}`
    pub held: Family<RoleLabels, Count>,
    /// What placing does.
    pub placing: PlacingMetrics,
    /// `unreplicated_spans`: held, with no second holder in the present view.
    pub unreplicated: Count,
    /// `oldest_held_seconds{role}`: since the first span came that is still held; 0 for none.
    pub oldest_held_seconds: Family<RoleLabels, Level>,
    /// `remembered_seconds`: how far back remembered traces reach; 0 for none.
    pub remembered_seconds: Level,
    /// `traces_decided_total{cause,verdict}`
    pub decided: Family<DecisionLabels, Counter>,
    /// `traces_in_parts_total`: traces of which a second part was exported.
    pub in_parts: Counter,
    /// `traces_forgotten_early_total`: remembered traces forgotten for lack of memory, and
    /// traces of so many spans that the oldest of them were.
    pub forgotten_early: Counter,
    /// `decide_delay_seconds`: from due to decided.
    pub decide_delay_seconds: Histogram,
}

/// Of hand-over between holders.
#[derive(Clone, Debug)]
pub struct PlacingMetrics {
    /// `traces_unplaced{peer}`: traces that a peer has yet to confirm.
    pub unplaced: Family<PeerLabels, Count>,
    /// `settled`: 1 while nothing is left to hand over for the present view.
    pub settled: Count,
    /// `hand_over_spans_total{direction}`
    pub hand_over_spans: Family<DirectionLabels, Counter>,
    /// `hand_over_bytes_total{direction}`: bytes of those spans.
    pub hand_over_bytes: Family<DirectionLabels, Counter>,
}

impl PlacingMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            unplaced: new(
                registry,
                "traces_unplaced",
                "Traces of which a peer may lack something, remembered ones too",
            ),
            settled: new(
                registry,
                "settled",
                "1 while nothing is left to hand over for the present view",
            ),
            hand_over_spans: each(
                registry,
                "hand_over_spans",
                "Spans handed over to holders as bytes",
                Direction::ALL.iter().map(|&direction| DirectionLabels { direction }),
            ),
            hand_over_bytes: each(
                registry,
                "hand_over_bytes",
                "Bytes of the spans handed over to holders",
                Direction::ALL.iter().map(|&direction| DirectionLabels { direction }),
            ),
        }
    }
}

impl TraceMetrics {
    fn register(registry: &mut Registry) -> Self {
        let of_cause =
            |&cause| Verdict::ALL.iter().map(move |&verdict| DecisionLabels { cause, verdict });
        let decisions = DueCause::ALL.iter().flat_map(of_cause);
        Self {
            redelivered: new(registry, "spans_redelivered", "Spans that were held already"),
            repaired: new(registry, "spans_repaired", "Spans stored because a holder sent them"),
            exported: new(registry, "spans_exported", "Spans that a sink acknowledged"),
            late: new(
                registry,
                "spans_late",
                "Exported spans that came when a part of their trace was done",
            ),
            sampled_out: new(
                registry,
                "spans_sampled_out",
                "Spans that were not exported because of their trace's verdict",
            ),
            dropped: each(
                registry,
                "spans_dropped",
                "Spans that were given up",
                reasons(&[Reason::Sink, Reason::Poison]),
            ),
            exported_again_possible: each(
                registry,
                "spans_exported_again_possible",
                "Spans that may have been exported twice",
                AgainCause::ALL.iter().map(|&cause| AgainLabels { cause }),
            ),
            held: each(registry, "spans_held", "Spans held now", roles(Role::ALL)),
            placing: PlacingMetrics::register(registry),
            unreplicated: new(
                registry,
                "unreplicated_spans",
                "Held spans that no other node has to hold in the present view",
            ),
            oldest_held_seconds: each(
                registry,
                "oldest_held_seconds",
                "Time since the oldest trace that is held began to be",
                roles(Role::ALL),
            ),
            remembered_seconds: new(
                registry,
                "remembered_seconds",
                "Time since the oldest trace that is remembered was done",
            ),
            decided: each(registry, "traces_decided", "Traces decided", decisions),
            in_parts: new(registry, "traces_in_parts", "Traces exported in more than one part"),
            forgotten_early: new(
                registry,
                "traces_forgotten_early",
                "Remembered traces forgotten for lack of memory, and long ones of which a part was",
            ),
            decide_delay_seconds: add(
                registry,
                "decide_delay_seconds",
                "Time from when a trace was due to its decision",
                Histogram::new(delay_buckets()),
            ),
        }
    }
}

/// Members, view and mesh.
#[derive(Clone, Debug)]
pub struct ClusterMetrics {
    /// `members{state}`
    pub members: Family<MemberLabels, Count>,
    /// `view_info{hash}`; set through [`show_hash`].
    pub view: Family<HashLabels, Count>,
    /// `config_info{hash}`; set through [`show_hash`].
    pub config: Family<HashLabels, Count>,
    /// `slots{role}`: of which this node is a holder.
    pub slots: Family<RoleLabels, Count>,
    /// `view_changes_total`
    pub view_changes: Counter,
    /// `members_gone_total`: lives of members that ended, or were out of reach.
    pub members_gone: Counter,
    /// `hop_bytes_total{direction}`: UDP payloads of the mesh port.
    pub hop_bytes: Family<DirectionLabels, Counter>,
    /// `peer_round_trip_seconds{peer}`: the last one measured.
    pub peer_round_trip_seconds: Family<PeerLabels, Level>,
    /// `mesh_refused_total{cause}`
    pub mesh_refused: Family<MeshRefusalLabels, Counter>,
    /// `certificate_expires_seconds`: from now; negative when it has expired.
    pub certificate_expires_seconds: Level,
}

impl ClusterMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            members: each(
                registry,
                "members",
                "Members by state, as this node sees them",
                MemberState::ALL.iter().map(|&state| MemberLabels { state }),
            ),
            view: new(registry, "view_info", "Hash of the view; equal on nodes that agree"),
            config: new(registry, "config_info", "Hash of the configuration in use"),
            slots: each(
                registry,
                "slots",
                "Slots that this node holds",
                roles(&[Role::Owner, Role::Replica]),
            ),
            view_changes: new(registry, "view_changes", "Changes of the view"),
            members_gone: new(
                registry,
                "members_gone",
                "Members that left, crashed, started again or were out of reach",
            ),
            hop_bytes: each(
                registry,
                "hop_bytes",
                "Bytes between nodes: UDP payloads, what QUIC adds and gossip among them",
                Direction::ALL.iter().map(|&direction| DirectionLabels { direction }),
            ),
            peer_round_trip_seconds: new(
                registry,
                "peer_round_trip_seconds",
                "Round trip to a peer, the last one measured",
            ),
            mesh_refused: each(
                registry,
                "mesh_refused",
                "Attempts to enter the mesh that failed",
                tracemesh_transport::Refusal::ALL
                    .iter()
                    .map(|cause| MeshRefusalLabels { cause: cause.label() }),
            ),
            certificate_expires_seconds: new(
                registry,
                "certificate_expires_seconds",
                "Time until the certificate of this node expires",
            ),
        }
    }
}

/// Makes `hash` the only one that a family shows.
pub fn show_hash(family: &Family<HashLabels, Count>, hash: &str) {
    family.clear();
    family.get_or_create(&HashLabels { hash: hash.to_owned() }).set(1);
}

/// Memory and other bounds.
#[derive(Clone, Debug)]
pub struct MemoryMetrics {
    /// `memory_bytes`: of the budget, in use.
    pub memory_bytes: Count,
    /// `memory_budget_bytes`
    pub memory_budget_bytes: Count,
}

impl MemoryMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            memory_bytes: new(registry, "memory_bytes", "Bytes of the memory budget in use"),
            memory_budget_bytes: new(registry, "memory_budget_bytes", "The memory budget"),
        }
    }
}
