//! From a client's request to its answer: scan it, send each span to its holders, wait for them.
//!
//! The shell around [`OpenRequest`], which decides. One future per request does everything, so a
//! client that goes away takes its work with it; what is stored by then stays and is finished. The
//! invariant: a batch counts as held by a target only when *all* its parts were answered by one
//! incarnation. Bounds: the caller's on requests in flight, [`REQUEST_MAX`] for an answer,
//! transport's on frames per peer.

use crate::assemble::{Own, Shards};
use crate::cut::{Cut, span_key};
use crate::entry::{
    ACK_WAIT, Answer, Content, Copies, Mark, OpenRequest, Outcome, REQUEST_MAX, Send, Step,
};
use crate::frame::{
    FRAME_SPANS_BYTES_MAX, Hold, HoldReply, HoldTrace, Origin, milliseconds, trace_id_bytes,
};
use crate::ingest::{Accepted, Export, Refusal};
use crate::memory::{CLIENTS_PERCENT, Memory};
use crate::mesh::{PeerError, Peers};
use crate::metrics::{PeerLabels, Reason, ReasonLabels, RouteMetrics};
use crate::reach::{Reach, Routing};
use crate::scan::scan;
use crate::shard::HoldPart;
use crate::shard::trace::SpanKey;
use crate::split::{Part, Targets, split};
use crate::tasks::Tasks;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracemesh_membership::{HashKey, MemberState, NodeId};
use tracemesh_transport::CallError;

/// The range that clients are asked to wait, so that they do not come back together.
const RETRY_AFTER_SECONDS: std::ops::Range<f64> = 1.0..10.0;

/// What routing needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes besides the owner that must hold a span: 0 or 1.
    pub replicas: u32,
    /// The secret of placement and span keys.
    pub hash_key: HashKey,
    /// Until a trace without a root is due.
    pub age_max: Duration,
}

/// Takes requests of clients; clones share everything.
#[derive(Clone)]
pub struct Router {
    settings: Arc<Settings>,
    shards: Shards,
    peers: Peers,
    memory: Arc<Memory>,
    metrics: RouteMetrics,
    reach: Arc<Mutex<Reach>>,
    random: Arc<Mutex<StdRng>>,
}

type Flying<'a> = FuturesUnordered<BoxFuture<'a, (usize, Outcome)>>;

impl Router {
    /// A router in front of the shards; `seed` spreads the waits that clients are asked for.
    pub fn start(
        settings: Settings,
        shards: Shards,
        peers: Peers,
        memory: Arc<Memory>,
        metrics: RouteMetrics,
        seed: u64,
        tasks: &Tasks,
    ) -> Self {
        let router = Self {
            settings: Arc::new(settings),
            shards,
            peers,
            memory,
            metrics,
            reach: Arc::default(),
            random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        };
        let (prober, stop) = (router.clone(), tasks.stopping());
        tasks.spawn("probe", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = prober.probe_silent_peers() => {}
            }
        });
        router
    }

    async fn route(&self, cut: &Arc<Cut>) -> Result<Copies, Refusal> {
        let avoided = self.admit(cut)?;
        let mut view = self.peers.changes();
        let (mut request, step) = OpenRequest::start(
            self.peers.me().clone(),
            cut.slots().to_vec(),
            self.settings.replicas,
            self.peers.placement(),
            avoided,
        );
        let expires = Instant::now() + REQUEST_MAX;
        let mut flying = Flying::new();
        let mut step = step;
        loop {
            match step {
                Step::Answer(answer) => return self.conclude(cut, &request, answer),
                Step::Send(sends) => self.send(cut, sends, &mut flying),
            }
            step = tokio::select! {
                biased;
                () = sleep_until(expires) => Step::Answer(request.on_expired()),
                () = view.changed() => request.on_view(self.peers.placement()),
                Some((batch, outcome)) = flying.next() => request.on_outcome(batch, outcome),
            };
        }
    }

    /// Whether to take a request at all, and around whom to route it.
    fn admit(&self, cut: &Cut) -> Result<BTreeSet<NodeId>, Refusal> {
        if self.peers.status().state != MemberState::Active {
            return Err(self.later("the node is not an active member"));
        }
        if self.memory.is_full(Origin::Entry) {
            return Err(self.later("the memory budget is used up"));
        }
        let placement = self.peers.placement();
        let peers = placement.view().members().len().saturating_sub(1);
        let members = self.peers.members();
        let bound = CLIENTS_PERCENT * 10;
        let holders = cut.slots().iter().filter_map(|&slot| placement.holders(slot));
        let mut targets: Vec<_> =
            holders.flat_map(|holders| [Some(holders.owner), holders.replica]).flatten().collect();
        targets.sort_unstable();
        targets.dedup();
        let full = targets.into_iter().any(|target| {
            let id = &placement.view().members()[target as usize].id;
            members.get(id).is_some_and(|peer| usize::from(peer.published.fill) > bound)
        });
        if full {
            return Err(self.later("the memory budget of a holder is used up"));
        }
        match self.reach().routing(peers) {
            Routing::Around(peers) => Ok(peers),
            Routing::PushBack => Err(self.later("most peers do not answer this node")),
        }
    }

    fn conclude(
        &self,
        cut: &Cut,
        request: &OpenRequest,
        answer: Answer,
    ) -> Result<Copies, Refusal> {
        match answer {
            Answer::Accepted(copies) => {
                for (peer, traces) in request.rerouted() {
                    let spans = traces.into_iter().map(|trace| cut.spans(trace).len() as u64);
                    let labels = PeerLabels { peer: peer.to_string() };
                    self.metrics.rerouted.get_or_create_owned(&labels).inc_by(spans.sum());
                }
                Ok(copies)
            }
            Answer::Full => Err(self.later("the memory budget of a holder is used up")),
            Answer::TooFew => Err(self.later("not enough nodes answer to hold the spans")),
        }
    }

    /// Cuts the request into the batches that are wanted now, and sends them.
    fn send<'a>(&'a self, cut: &Arc<Cut>, sends: Vec<Send>, flying: &mut Flying<'a>) {
        let remote =
            |send: &&Send| send.content == Content::Bytes && send.target != *self.peers.me();
        let mut parts = self.split(cut, sends.iter().filter(remote)).into_iter();
        for send in sends {
            if send.target == *self.peers.me() {
                flying.push(Box::pin(self.hold_here(Arc::clone(cut), send)));
            } else if send.content == Content::Names {
                let hold = Hold { traces: self.names(cut, &send.traces), ..self.hold(send.mark) };
                flying.push(Box::pin(self.hold_there(send, vec![hold])));
            } else {
                let parts = parts.next().unwrap_or_default().into_iter();
                let holds =
                    parts.map(|part: Part| Hold { request: part.request, ..self.hold(send.mark) });
                let holds = holds.collect();
                flying.push(Box::pin(self.hold_there(send, holds)));
            }
        }
    }

    /// One batch of bytes for each of `sends`. A trace has at most two targets in one step.
    fn split<'b>(&self, cut: &Cut, sends: impl Iterator<Item = &'b Send>) -> Vec<Vec<Part>> {
        let mut targets = vec![Targets([Targets::NONE; 2]); cut.slots().len()];
        let mut count: u16 = 0;
        for send in sends {
            for &trace in &send.traces {
                let [first, second] = &mut targets[trace as usize].0;
                *(if *first == Targets::NONE { first } else { second }) = count;
            }
            count += 1;
        }
        if count == 0 {
            return Vec::new();
        }
        split(cut.request(), cut.scan(), usize::from(count), &targets, FRAME_SPANS_BYTES_MAX)
    }

    fn hold(&self, mark: Mark) -> Hold {
        Hold {
            sender: self.peers.sender(),
            origin: Origin::Entry.into(),
            marked: mark == Mark::Marked,
            due_in_ms: milliseconds(self.settings.age_max),
            ..Default::default()
        }
    }

    fn names(&self, cut: &Cut, traces: &[u32]) -> Vec<HoldTrace> {
        let name = |trace: u32| HoldTrace {
            trace_id: trace_id_bytes(cut.trace_id(trace)),
            due_in_ms: milliseconds(self.settings.age_max),
            names: cut
                .spans(trace)
                .map(|span| span_key(&self.settings.hash_key, span.span_id, span.kind))
                .map(SpanKey::name)
                .collect(),
            ..Default::default()
        };
        traces.iter().copied().map(name).collect()
    }

    async fn hold_here(&self, cut: Arc<Cut>, send: Send) -> (usize, Outcome) {
        let part = HoldPart {
            origin: Origin::Entry,
            unplaced: send.mark == Mark::Marked,
            due_in: self.settings.age_max,
        };
        let outcome = match self.shards.hold_own(&cut, &send.traces, part).await {
            Own::Stored => Outcome::Held(self.peers.sender().incarnation()),
            Own::Full => Outcome::Full,
            Own::Stopping => Outcome::Silent,
        };
        (send.batch, outcome)
    }

    async fn hold_there(&self, send: Send, holds: Vec<Hold>) -> (usize, Outcome) {
        let calls = holds.iter().map(|hold| self.peers.hold(&send.target, hold, REQUEST_MAX));
        let replies = futures_util::future::join_all(calls).await;
        let outcome = merge(replies);
        match outcome {
            Outcome::Silent => self.reach().on_silent(&send.target, Instant::now()),
            Outcome::Held(_) | Outcome::Wanted | Outcome::Full => {
                self.reach().on_answer(&send.target);
            }
        }
        (send.batch, outcome)
    }

    async fn probe_silent_peers(&self) {
        let mut ticks = interval(ACK_WAIT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let members = self.peers.members();
            let probes = {
                let mut reach = self.reach();
                reach.on_members(|peer| members.contains_key(peer));
                reach.probes(Instant::now())
            };
            let probe = async |peer: &NodeId| {
                let hold = self.hold(Mark::Unmarked);
                if self.peers.hold(peer, &hold, ACK_WAIT).await.is_ok() {
                    tracing::info!(%peer, "peer answers again");
                    self.reach().on_answer(peer);
                }
            };
            futures_util::future::join_all(probes.iter().map(probe)).await;
        }
    }

    fn later(&self, why: &'static str) -> Refusal {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let after = Duration::from_secs_f64(random.random_range(RETRY_AFTER_SECONDS));
        Refusal::Later { why, after }
    }

    fn reach(&self) -> std::sync::MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all parts of a batch say together.
fn merge(replies: Vec<Result<HoldReply, PeerError>>) -> Outcome {
    let mut incarnation = None;
    for reply in replies {
        match reply {
            Ok(reply) if reply.full => return Outcome::Full,
            Ok(reply) if reply.traces.iter().any(|trace| !trace.wanted.is_empty()) => {
                return Outcome::Wanted;
            }
            Ok(reply) => {
                let its = reply.sender.incarnation();
                if incarnation.is_some_and(|known| known != its) {
                    return Outcome::Wanted;
                }
                incarnation = Some(its);
            }
            // Too much is under way to that peer: an answer, not silence.
            Err(PeerError::Call(CallError::Busy { .. })) => return Outcome::Full,
            Err(error) => {
                tracing::debug!(%error, "batch was not taken");
                return Outcome::Silent;
            }
        }
    }
    incarnation.map_or(Outcome::Silent, Outcome::Held)
}

impl Export for Router {
    async fn export(&self, request: Bytes) -> Result<Accepted, Refusal> {
        let _counted = self.memory.in_flight(request.len());
        let mut scanned = scan(&request).map_err(|error| Refusal::Malformed(error.to_string()))?;
        let large = scanned.refuse_larger(&request, FRAME_SPANS_BYTES_MAX);
        let without_id = scanned.refused_span_count;
        for (reason, spans) in [(Reason::Ids, without_id), (Reason::Size, large)] {
            let counter = self.metrics.refused.get_or_create_owned(&ReasonLabels { reason });
            counter.inc_by(u64::from(spans));
        }
        let accepted = Accepted {
            refused_span_count: u64::from(without_id) + u64::from(large),
            message: complaint(without_id, large),
        };
        let mut unacknowledged =
            Unacknowledged { metrics: &self.metrics, span_count: scanned.spans.len() as u64 };
        if scanned.spans.is_empty() {
            return Ok(accepted);
        }
        let cut = Arc::new(Cut::new(request, scanned, &self.settings.hash_key));
        let copies = self.route(&cut).await?;
        let span_count = std::mem::take(&mut unacknowledged.span_count);
        self.metrics.accepted.inc_by(span_count);
        if copies == Copies::Single {
            self.metrics.accepted_without_replica.inc_by(span_count);
        }
        Ok(accepted)
    }
}

/// Counts spans as unacknowledged when it is dropped, as it is when a client goes away.
struct Unacknowledged<'a> {
    metrics: &'a RouteMetrics,
    span_count: u64,
}

impl Drop for Unacknowledged<'_> {
    fn drop(&mut self) {
        self.metrics.unacknowledged.inc_by(self.span_count);
    }
}

fn complaint(without_id: u32, large: u32) -> String {
    let mut reasons = Vec::new();
    if without_id > 0 {
        reasons.push(format!(
            "{without_id} spans have a trace id or span id that is zero or has the wrong length"
        ));
    }
    if large > 0 {
        reasons.push(format!("{large} spans are larger than {FRAME_SPANS_BYTES_MAX} bytes"));
    }
    reasons.join("; ")
}
