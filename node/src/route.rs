//! From a client's request to its answer: scan it, send each span to its holders, wait for them.
//!
//! The shell around [`OpenRequest`], which decides. One future per request does everything, so a
//! client that goes away takes its work with it; what is stored by then stays and is finished. The
//! invariant: a batch counts as held by a target only when *all* its parts were answered by one
//! incarnation. Bounds: the caller's on requests in flight, [`REQUEST_MAX`] for an answer,
//! transport's on frames per peer.

pub mod batch;

use crate::assemble::{Own, Shards};
use crate::cut::Cut;
use crate::entry::{ACK_WAIT, Answer, Copies, Mark, OpenRequest, Outcome, REQUEST_MAX, Send, Step};
use crate::frame::{FRAME_SPANS_BYTES_MAX, Hold, Origin};
use crate::ingest::{Accepted, Export, Refusal};
use crate::memory::{CLIENTS_PERCENT, Memory};
use crate::mesh::{PeerError, Peers};
use crate::metrics::{PeerLabels, Reason, ReasonLabels, RouteMetrics};
use crate::reach::{Reach, Routing};
use crate::scan::{HEADER_SHARE, scan};
use crate::settling::Settling;
use crate::tasks::Tasks;
use batch::{Batching, NoReply};
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
use tracemesh_membership::{HashKey, Holders, MemberState, NodeId, ViewMember};
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
    settling: Settling,
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
            settling: Settling::default(),
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

    /// The open requests.
    pub fn settling(&self) -> Settling {
        self.settling.clone()
    }

    async fn route(&self, cut: &Arc<Cut>) -> Result<Copies, Refusal> {
        let _open = self.settling.open();
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
        let is_full = |member: &ViewMember| {
            let peer = members.get(&member.id);
            peer.is_some_and(|peer| usize::from(peer.published.fill) > bound)
        };
        let full: Vec<bool> = placement.view().members().iter().map(is_full).collect();
        let mut holders = cut.slots().iter().filter_map(|&slot| placement.holders(slot));
        if holders.any(|Holders { owner, replica }| {
            full[usize::from(owner)] || replica.is_some_and(|replica| full[usize::from(replica)])
        }) {
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
        let batches = self.batching().holds(cut, &sends);
        for (send, holds) in sends.into_iter().zip(batches) {
            if send.target == *self.peers.me() {
                flying.push(Box::pin(self.hold_here(Arc::clone(cut), send)));
            } else {
                flying.push(Box::pin(self.hold_there(send, holds)));
            }
        }
    }

    fn batching(&self) -> Batching<'_> {
        Batching {
            me: self.peers.me(),
            sender: self.peers.sender(),
            hash_key: &self.settings.hash_key,
            age_max: self.settings.age_max,
            frame_bytes_max: FRAME_SPANS_BYTES_MAX,
        }
    }

    async fn hold_here(&self, cut: Arc<Cut>, send: Send) -> (usize, Outcome) {
        let view_hash = self.peers.sender().view_hash;
        let part = batch::own_part(send.mark, view_hash, self.settings.age_max);
        let outcome = match self.shards.hold_own(&cut, &send.traces, part).await {
            Own::Stored => Outcome::Held(self.peers.sender().incarnation()),
            Own::Full => Outcome::Full,
            Own::Stopping => Outcome::Silent,
        };
        (send.batch, outcome)
    }

    async fn hold_there(&self, send: Send, holds: Vec<Hold>) -> (usize, Outcome) {
        let calls = holds
            .into_iter()
            .map(|hold| self.peers.hold(&send.target, hold, ACK_WAIT, REQUEST_MAX));
        let replies = futures_util::future::join_all(calls).await;
        let has_answered = replies.iter().any(Result::is_ok);
        let outcome = batch::merge(replies.into_iter().map(|reply| reply.map_err(no_reply)));
        if outcome == Outcome::Silent {
            self.reach().on_silent(&send.target, Instant::now());
        } else if has_answered {
            // Not where too much is under way: that is no word of its own.
            self.reach().on_answer(&send.target);
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
                let hold = self.batching().hold(Mark::Unmarked);
                if self.peers.hold(peer, hold, ACK_WAIT, ACK_WAIT).await.is_ok() {
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

fn no_reply(error: PeerError) -> NoReply {
    tracing::debug!(%error, "batch was not taken");
    match error {
        PeerError::Call(CallError::Busy { .. } | CallError::FrameTooLarge { .. }) => NoReply::Busy,
        PeerError::NoMember(_) | PeerError::Call(_) | PeerError::Reply { .. } => NoReply::Silence,
    }
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
        let headers_max = FRAME_SPANS_BYTES_MAX / HEADER_SHARE;
        reasons.push(format!(
            "{large} spans take more than {FRAME_SPANS_BYTES_MAX} bytes with their resource and \
             scope, or those alone more than {headers_max}"
        ));
    }
    reasons.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_that_has_too_much_is_not_silent() {
        let address = ([127, 0, 0, 1], 4319).into();
        let is_busy = |error: CallError| no_reply(error.into()) == NoReply::Busy;
        assert!(is_busy(CallError::Busy { address }));
        assert!(is_busy(CallError::FrameTooLarge { bytes: usize::MAX }));
        let (silence, deadline) = (ACK_WAIT, REQUEST_MAX);
        for error in [
            CallError::Silent { address, silence },
            CallError::Deadline { address, deadline },
            CallError::Unreachable { address, why: String::new() },
            CallError::Closed { address },
        ] {
            assert!(!is_busy(error));
        }
    }
}
