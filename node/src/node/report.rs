//! What a node says about itself: status document, gauges, and what it gossips of its load.
//!
//! Everything is read from where it lives at the moment of asking; nothing is kept but the last
//! view seen, to count its changes.

use super::{End, Parts};
use crate::ingest::Admission;
use crate::metrics::{
    self, Direction, DirectionLabels, MemberLabels, MemberState as StateLabel, MeshRefusalLabels,
    PeerLabels, Role, RoleLabels,
};
use crate::status::{self, Ending, SpansHeld, State, Status, View};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracemesh_membership::{Load, MemberState, NodeId, PeerInfo, Placement, Update};

/// How often gauges are set and load is gossiped. Entry nodes look at the gossiped fill levels, so
/// this is also how stale those may be.
const EVERY: Duration = Duration::from_millis(500);

/// The counters in the status document, each the sum over its labels.
const COUNTERS: [&str; 15] = [
    "members_gone_total",
    "spans_accepted_total",
    "spans_accepted_without_replica_total",
    "spans_dropped_total",
    "spans_exported_again_possible_total",
    "spans_exported_total",
    "spans_late_total",
    "spans_redelivered_total",
    "spans_refused_total",
    "spans_repaired_total",
    "spans_rerouted_total",
    "spans_sampled_out_total",
    "spans_unacknowledged_total",
    "traces_in_parts_total",
    "view_changes_total",
];

/// Makes the status document whenever it is asked to, without the node itself.
pub(super) fn reporter(parts: &Parts) -> impl Fn() -> Status + Send + Sync + use<> {
    let parts = parts.clone();
    move || status(&parts)
}

/// The document at `/api/v1/status`.
pub(super) fn status(parts: &Parts) -> Status {
    let standing = parts.peers.status();
    let placement = parts.peers.placement();
    let members = parts.peers.members();
    let (spans, traces) = parts.shards.held();
    let mut degraded = Vec::new();
    if standing.alone {
        degraded.push("alone".to_owned());
    }
    if is_unreplicated(parts, &placement) {
        degraded.push("unreplicated".to_owned());
    }
    let now = Instant::now();
    if parts.memory.is_short(now) || parts.in_flight.is_short(now) {
        degraded.push("full".to_owned());
    }
    let mut documents: Vec<status::Member> =
        members.values().map(|peer| member(&placement, peer)).collect();
    documents.push(own(parts, &placement));
    documents.sort_by(|one, other| one.id.cmp(&other.id));
    Status {
        id: parts.peers.me().to_string(),
        cluster: parts.cluster.clone(),
        started_unix_seconds: unix_seconds(parts.started),
        state: state(standing.state),
        ready: *parts.admission.borrow() == Admission::Serving && !parts.draining.is_cancelled(),
        degraded,
        view: View::of(&placement),
        members: documents,
        spans_held: SpansHeld { owner: spans[0], replica: spans[1], stand_in: spans[2] },
        traces_held: traces,
        traces_unplaced: parts.shards.unplaced(),
        settled: parts.peers.has_settled(),
        memory_bytes: parts.memory.bytes() as u64,
        memory_budget_bytes: parts.memory.budget_bytes() as u64,
        counters: counters(parts),
    }
}

fn counters(parts: &Parts) -> BTreeMap<String, u64> {
    let mut sums: BTreeMap<String, u64> = COUNTERS.map(|name| (name.to_owned(), 0)).into();
    // Writing to a text fails only where a collector says so, and ours never does.
    for (series, count) in metrics::counters(&parts.registry).unwrap_or_default() {
        if let Some(sum) = series.split('{').next().and_then(|name| sums.get_mut(name)) {
            *sum += count;
        }
    }
    sums
}

/// Whether what this node holds is lost when it crashes, by its present view.
fn is_unreplicated(parts: &Parts, placement: &Placement) -> bool {
    parts.replicas == 0 || placement.view().members().len() < 2
}

/// A console that listens on every address is found where the mesh is.
fn reachable(console: Option<SocketAddr>, mesh: SocketAddr) -> String {
    let Some(mut console) = console else { return String::new() };
    if console.ip().is_unspecified() {
        console.set_ip(mesh.ip());
    }
    console.to_string()
}

/// A clock before 1970 is not set.
fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What those are told who wait for a node's end.
pub(super) fn ending(end: &End) -> Ending {
    match end {
        End::Drained => Ending::Drained,
        End::Left { span_count, .. } => Ending::Left { span_count: *span_count },
        End::Lost { .. } | End::Refused(_) | End::Panicked(_) => Ending::Failed,
    }
}

fn own(parts: &Parts, placement: &Placement) -> status::Member {
    let me = parts.peers.me();
    let standing = parts.peers.status();
    let (owned_slots, replica_slots) = share(placement, me);
    status::Member {
        id: me.to_string(),
        state: state(standing.state),
        generation: standing.incarnation.generation,
        epoch: u64::from(standing.incarnation.epoch),
        mesh_address: parts.advertised.to_string(),
        console_address: reachable(parts.console, parts.advertised),
        zone: parts.zone.clone(),
        weight: parts.weight,
        owned_slots,
        replica_slots,
        fill_percent: u8::try_from(parts.memory.fill_percent()).unwrap_or(100),
    }
}

fn member(placement: &Placement, peer: &PeerInfo) -> status::Member {
    let (owned_slots, replica_slots) = share(placement, &peer.id);
    status::Member {
        id: peer.id.to_string(),
        state: state(peer.published.state),
        generation: peer.incarnation.generation,
        epoch: u64::from(peer.incarnation.epoch),
        mesh_address: peer.mesh_address.to_string(),
        console_address: reachable(peer.published.console, peer.mesh_address),
        zone: peer.published.zone.to_string(),
        weight: f64::from(peer.published.weight.thousandths()) / 1000.0,
        owned_slots,
        replica_slots,
        fill_percent: u8::try_from(peer.published.fill / 10).unwrap_or(100),
    }
}

fn share(placement: &Placement, id: &NodeId) -> (u32, u32) {
    let index = placement.view().position(id).and_then(|at| at.try_into().ok());
    index.map_or((0, 0), |index| placement.share(index))
}

fn state(state: MemberState) -> State {
    match state {
        MemberState::Joining => State::Joining,
        MemberState::Active => State::Active,
        MemberState::Leaving => State::Leaving,
    }
}

/// Keeps gauges and gossip up to date, and connections to members only.
pub(super) async fn keep(parts: Parts, stop: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Last::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let fill = u16::try_from(parts.memory.fill_percent() * 10).unwrap_or(1000);
        let load = Some(last.load(&parts));
        parts.membership.publish(Update { fill: Some(fill), load, ..Default::default() });
        last.close_gone(&parts);
        last.count_view(&parts);
        last.count_transport(&parts);
        last.set_gauges_of_peers(&parts);
        set_gauges(&parts);
    }
}

#[derive(Default)]
struct Last {
    accepted: u64,
    view_hash: Option<u64>,
    addresses: BTreeSet<SocketAddr>,
    /// Of members, by id and generation.
    lives: BTreeSet<(NodeId, u64)>,
    /// Those of whom gauges tell.
    peers: BTreeSet<NodeId>,
    view_members: usize,
    bytes: [u64; 2],
    refused: BTreeMap<&'static str, u64>,
}

impl Last {
    fn load(&mut self, parts: &Parts) -> Load {
        let (spans, traces_held) = parts.shards.held();
        let accepted = parts.metrics.route.accepted.get();
        let since = accepted - std::mem::replace(&mut self.accepted, accepted);
        let rounds_per_second = (Duration::from_secs(1).as_millis() / EVERY.as_millis()) as u64;
        Load {
            spans_per_second: since * rounds_per_second,
            spans_held: spans.iter().sum(),
            traces_held,
        }
    }

    /// Whoever gossip gave up is not talked to any more.
    fn close_gone(&mut self, parts: &Parts) {
        let members = parts.peers.members();
        let addresses: BTreeSet<_> = members.values().map(|peer| peer.mesh_address).collect();
        for &gone in self.addresses.difference(&addresses) {
            parts.transport.close(gone);
        }
        self.addresses = addresses;
        let lives = members.values().map(|peer| (peer.id.clone(), peer.incarnation.generation));
        let lives: BTreeSet<_> = lives.collect();
        let gone_count = self.lives.difference(&lives).count();
        parts.metrics.cluster.members_gone.inc_by(gone_count as u64);
        self.lives = lives;
    }

    /// Nothing is told any more of a peer that has gone: its last figures would stand for ever.
    fn set_gauges_of_peers(&mut self, parts: &Parts) {
        let unplaced = &parts.metrics.trace.placing.unplaced;
        let round_trips = &parts.metrics.cluster.peer_round_trip_seconds;
        let members = parts.peers.members();
        let peers = members.keys().cloned().collect();
        for gone in std::mem::replace(&mut self.peers, peers).difference(&self.peers) {
            let labels = PeerLabels { peer: gone.to_string() };
            unplaced.remove(&labels);
            round_trips.remove(&labels);
        }
        let counts = parts.shards.unplaced_by_member();
        for (id, peer) in &*members {
            let labels = PeerLabels { peer: id.to_string() };
            let count = counts.get(id).copied().unwrap_or(0);
            unplaced.get_or_create_owned(&labels).set(gauge_of(count));
            if let Some(round_trip) = parts.transport.round_trip(peer.mesh_address) {
                round_trips.get_or_create_owned(&labels).set(round_trip.as_secs_f64());
            }
        }
    }

    fn count_view(&mut self, parts: &Parts) {
        let metrics = &parts.metrics.cluster;
        let placement = parts.peers.placement();
        let hash = placement.view().hash();
        if self.view_hash.replace(hash) == Some(hash) {
            return;
        }
        metrics.view_changes.inc();
        metrics::show_hash(&metrics.view, &format!("{hash:016x}"));
        let (owned, replicated) = share(&placement, parts.peers.me());
        for (role, slots) in [(Role::Owner, owned), (Role::Replica, replicated)] {
            metrics.slots.get_or_create(&RoleLabels { role }).set(i64::from(slots));
        }
        let members = placement.view().members();
        let ids: Vec<_> = members.iter().map(|member| member.id.as_str()).collect();
        tracing::info!(view = %format_args!("{hash:016x}"), members = ?ids, owned, "view changed");
        let before = std::mem::replace(&mut self.view_members, members.len());
        let is_active = parts.peers.status().state == MemberState::Active;
        if is_active && before > 1 && members.len() == 1 {
            tracing::warn!("all other nodes are gone: each span is held once, until one comes");
        }
    }

    fn count_transport(&mut self, parts: &Parts) {
        let metrics = &parts.metrics.cluster;
        let counters = parts.transport.counters();
        let now = [counters.bytes_out, counters.bytes_in];
        let directions = [Direction::Sent, Direction::Received];
        for ((direction, now), last) in directions.into_iter().zip(now).zip(&mut self.bytes) {
            let counter = metrics.hop_bytes.get_or_create_owned(&DirectionLabels { direction });
            counter.inc_by(now - std::mem::replace(last, now));
        }
        for (cause, count) in &counters.refused {
            let last = self.refused.entry(cause.label()).or_default();
            let cause = MeshRefusalLabels { cause: cause.label() };
            let counter = metrics.mesh_refused.get_or_create_owned(&cause);
            counter.inc_by(count - std::mem::replace(last, *count));
        }
    }
}

fn set_gauges(parts: &Parts) {
    let (spans, _) = parts.shards.held();
    for (role, spans) in [Role::Owner, Role::Replica, Role::StandIn].into_iter().zip(spans) {
        let gauge = parts.metrics.trace.held.get_or_create_owned(&RoleLabels { role });
        gauge.set(gauge_of(spans));
    }
    let trace = &parts.metrics.trace;
    let unreplicated = is_unreplicated(parts, &parts.peers.placement());
    trace.unreplicated.set(gauge_of(if unreplicated { spans.iter().sum() } else { 0 }));
    let ages = parts.shards.held_since().map(age);
    for (role, age) in [Role::Owner, Role::Replica, Role::StandIn].into_iter().zip(ages) {
        trace.oldest_held_seconds.get_or_create_owned(&RoleLabels { role }).set(age);
    }
    trace.remembered_seconds.set(age(parts.shards.remembered_since()));
    trace.placing.settled.set(i64::from(parts.peers.has_settled()));
    let memory = &parts.metrics.memory;
    memory.memory_bytes.set(gauge_of(parts.memory.bytes() as u64));
    memory.memory_budget_bytes.set(gauge_of(parts.memory.budget_bytes() as u64));
    let cluster = &parts.metrics.cluster;
    let members = parts.peers.members();
    let own = parts.peers.status().state;
    let states = members.values().map(|peer| peer.published.state).chain([own]);
    let states: Vec<MemberState> = states.collect();
    for (label, state) in [
        (StateLabel::Joining, MemberState::Joining),
        (StateLabel::Active, MemberState::Active),
        (StateLabel::Leaving, MemberState::Leaving),
    ] {
        let count = states.iter().filter(|other| **other == state).count();
        let gauge = cluster.members.get_or_create_owned(&MemberLabels { state: label });
        gauge.set(gauge_of(count as u64));
    }
    let expires = parts.transport.certificate_expires();
    let left = match expires.duration_since((parts.wall_clock)()) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    };
    cluster.certificate_expires_seconds.set(left);
}

/// In seconds; 0 for nothing.
fn age(since: Option<Instant>) -> f64 {
    since.map_or(0.0, |since| since.elapsed().as_secs_f64())
}

fn gauge_of(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
