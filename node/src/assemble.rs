//! The shards of a node as tasks: the shell around [`Shard`].
//!
//! Each shard is owned by one task and has no lock; a frame is cut by slot, handed to the shards
//! that it concerns, and answered once all of them have stored their part. The invariant: a reply
//! names a view only when every shard that took part knows that view, otherwise it names none and
//! confirms nothing. Bounds: [`INPUTS_MAX`] waiting inputs a shard (senders wait), and one future
//! for each attempt or offer in flight. What a shard decides is not here.

pub mod outgoing;
pub mod part;
mod turn;

use crate::cut::Cut;
use crate::decide::Decide;
use crate::frame::{self, DoneTrace, Hold, HoldReply, HoldTrace, Origin, Told, Verdict};
use crate::memory::Memory;
use crate::mesh::Peers;
use crate::metrics::{Direction, DirectionLabels, TraceMetrics};
use crate::scan::{Scan, scan_trusted};
use crate::shard::{HoldPart, Limits, Shard, SinkSet, Standing};
use crate::sink::{Attempt, DeadLetters, Sink};
use crate::spans::TraceId;
use crate::tasks::Tasks;
use part::{Part, PartReply};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tracemesh_membership::{HashKey, NodeId, Slot};

/// Inputs that wait for one shard. Each is a part of a frame that is already counted in the budget;
/// at 64 the shard has work for some milliseconds, and more would only hide that it is slow.
const INPUTS_MAX: usize = 64;

/// What a node needs to hold and finish traces.
pub struct Settings {
    /// Bounds of a trace; `remember_bytes_max` of the whole node.
    pub limits: Limits,
    /// What this node takes of hand-over a second, from all others together.
    pub hand_over_bytes_per_second: u64,
    /// Number of shards; see [`Environment`](crate::environment::Environment::shard_count).
    pub shard_count: usize,
    /// The secret of placement and span keys.
    pub hash_key: HashKey,
    /// Where finished traces go.
    pub sinks: Vec<Arc<dyn Sink>>,
    /// Where traces go that make deciding panic.
    pub dead_letters: Arc<DeadLetters>,
    /// Makes the decider of a shard.
    pub decide: Box<dyn Fn() -> Box<dyn Decide>>,
}

/// All that a shard holds.
type HeldTraces = Vec<(HoldTrace, Attempt)>;

/// Something for one shard.
enum Input {
    Hold { cut: Arc<Cut>, part: Part, hold: HoldPart, reply: oneshot::Sender<PartReply> },
    Done(Vec<(TraceId, Verdict, u64)>),
    HeldTraces(oneshot::Sender<HeldTraces>),
    Tell { trace_id: TraceId, reply: oneshot::Sender<Option<Told>> },
}

/// Spans and traces that the shards hold now.
#[derive(Debug, Default)]
pub struct Held {
    /// Spans held as owner, as replica, as stand-in.
    pub spans: [AtomicU64; 3],
    /// Traces of which something is held.
    pub traces: AtomicU64,
    /// Unplaced traces, remembered ones included.
    pub unplaced: AtomicU64,
    /// Traces that each member of the view has yet to confirm.
    unplaced_by_member: Mutex<BTreeMap<NodeId, u64>>,
    /// The view that the shard knows, while everything is placed that was unplaced when it began.
    settled: Mutex<Option<u64>>,
    /// By role, when the oldest trace that is held began to be: see [`Since`].
    held_since: [Since; 3],
    /// When the oldest trace that is remembered began to be.
    remembered_since: Since,
}

/// A moment in seconds after the shards' start, and one; 0 for none.
#[derive(Debug, Default)]
struct Since(AtomicU64);

impl Since {
    fn set(&self, started: Instant, since: Option<Instant>) {
        let seconds = since.map_or(0, |since| since.duration_since(started).as_secs() + 1);
        self.0.store(seconds, Relaxed);
    }

    fn get(&self, started: Instant) -> Option<Instant> {
        let seconds = self.0.load(Relaxed).checked_sub(1)?;
        started.checked_add(Duration::from_secs(seconds))
    }
}

/// The shards of this node; clones share them.
#[derive(Clone)]
pub struct Shards {
    inputs: Arc<[mpsc::Sender<Input>]>,
    held: Arc<[Held]>,
    placed: Arc<Notify>,
    started: Instant,
    hash_key: HashKey,
    hand_over_bytes_per_second: u64,
    memory: Arc<Memory>,
    peers: Peers,
    metrics: TraceMetrics,
}

impl Held {
    fn set_unplaced_by_member(&self, counts: BTreeMap<NodeId, u64>) {
        *self.unplaced_by_member.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    fn settled(&self) -> MutexGuard<'_, Option<u64>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A Hold that was not stored.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The frame makes no sense; the sender is of another release, or broken.
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    /// The spans in the frame make no sense.
    #[error("spans of a frame: {0}")]
    Spans(#[from] crate::scan::ScanError),
    /// Nobody sends these; to confirm them would be to lose them.
    #[error("{0} spans of a frame have no trace id or span id")]
    Ids(u32),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

impl Shards {
    /// Starts the shards' tasks.
    pub fn start(
        settings: Settings,
        memory: Arc<Memory>,
        peers: Peers,
        metrics: &TraceMetrics,
        tasks: &Tasks,
    ) -> Self {
        let (count, started) = (settings.shard_count.max(1), Instant::now());
        let held: Arc<[Held]> = std::iter::repeat_with(Held::default).take(count).collect();
        let placed = Arc::default();
        let limits = Limits {
            remember_bytes_max: settings.limits.remember_bytes_max / count,
            ..settings.limits
        };
        let sink_set = SinkSet::first(u32::try_from(settings.sinks.len()).unwrap_or(u32::MAX));
        let inputs = (0..count).map(|number| {
            let (sender, inputs) = mpsc::channel(INPUTS_MAX);
            let shard = Shard::new(
                peers.me().clone(),
                settings.hash_key,
                limits,
                sink_set,
                (settings.decide)(),
                Standing::alone(Arc::default()),
                started,
            );
            let turn = turn::Turn {
                number,
                shard,
                shard_count: count,
                sinks: settings.sinks.clone(),
                dead_letters: Arc::clone(&settings.dead_letters),
                peers: peers.clone(),
                memory: Arc::clone(&memory),
                held: Arc::clone(&held),
                placed: Arc::clone(&placed),
                started,
                metrics: metrics.clone(),
            };
            tasks.spawn("shard", turn.run(inputs, tasks.stopping()));
            sender
        });
        let inputs = inputs.collect();
        let Settings { hash_key, hand_over_bytes_per_second, .. } = settings;
        Self {
            inputs,
            held,
            placed,
            started,
            hash_key,
            hand_over_bytes_per_second,
            memory,
            peers,
            metrics: metrics.clone(),
        }
    }

    /// Unplaced traces, remembered ones included.
    pub fn unplaced(&self) -> u64 {
        self.held.iter().map(|held| held.unplaced.load(Relaxed)).sum()
    }

    /// Traces that each member of the view has yet to confirm.
    pub fn unplaced_by_member(&self) -> BTreeMap<NodeId, u64> {
        let mut sums = BTreeMap::new();
        for held in self.held.iter() {
            let counts = held.unplaced_by_member.lock().unwrap_or_else(PoisonError::into_inner);
            counts.iter().for_each(|(id, count)| *sums.entry(id.clone()).or_default() += count);
        }
        sums
    }

    /// Whether all shards know this view, and everything is placed that was unplaced when it began.
    pub fn have_settled(&self, view_hash: u64) -> bool {
        self.held.iter().all(|held| *held.settled() == Some(view_hash))
    }

    /// Resolves when [`Self::have_settled`] may have changed. For one task.
    pub async fn placed(&self) {
        self.placed.notified().await;
    }

    /// Spans held as owner, as replica, as stand-in, and traces, over all shards.
    pub fn held(&self) -> ([u64; 3], u64) {
        let mut spans = [0; 3];
        for (role, sum) in spans.iter_mut().enumerate() {
            *sum = self.held.iter().map(|held| held.spans[role].load(Relaxed)).sum();
        }
        (spans, self.held.iter().map(|held| held.traces.load(Relaxed)).sum())
    }

    /// By role, since when the oldest trace that is held is; to the second.
    pub fn held_since(&self) -> [Option<Instant>; 3] {
        std::array::from_fn(|role| {
            let since = |held: &Held| held.held_since[role].get(self.started);
            self.held.iter().filter_map(since).min()
        })
    }

    /// Since when the oldest trace that is remembered is; to the second.
    pub fn remembered_since(&self) -> Option<Instant> {
        self.held.iter().filter_map(|held| held.remembered_since.get(self.started)).min()
    }

    /// The slot of a trace.
    pub fn slot(&self, trace_id: TraceId) -> Slot {
        self.hash_key.slot(&trace_id.0)
    }

    /// What this node holds or remembers of a trace.
    ///
    /// # Errors
    /// The node is stopping.
    pub async fn tell(&self, trace_id: TraceId) -> Result<Option<Told>, HoldError> {
        let (reply, replied) = oneshot::channel();
        let shard = self.shard_of(self.slot(trace_id));
        let sent = self.inputs[shard].send(Input::Tell { trace_id, reply }).await;
        sent.map_err(|_| HoldError::Stopping)?;
        replied.await.map_err(|_| HoldError::Stopping)
    }

    /// Holds what a peer sent, and says what to answer.
    pub async fn on_hold(&self, hold: Hold) -> Result<HoldReply, HoldError> {
        let origin = hold.origin();
        let has_bytes = !hold.request.is_empty();
        if has_bytes && self.memory.is_full(origin) {
            let sender = self.peers.sender();
            return Ok(HoldReply { sender, full: true, ..HoldReply::default() });
        }
        let _counted = self.memory.in_flight(hold.request.len());
        let scan = scanned(&hold)?;
        if has_bytes && origin == Origin::Placing {
            let direction = DirectionLabels { direction: Direction::Received };
            let (spans, bytes) = (scan.spans.len() as u64, hold.request.len() as u64);
            self.metrics.placing.hand_over_spans.get_or_create_owned(&direction).inc_by(spans);
            self.metrics.placing.hand_over_bytes.get_or_create_owned(&direction).inc_by(bytes);
        }
        let part = part::hold_part(&hold);
        let named = part::named(hold.traces)?;
        let cut = Arc::new(Cut::new(hold.request, scan, &self.hash_key));
        let all = 0..u32::try_from(cut.slots().len()).unwrap_or(u32::MAX);
        let reply = self.hold(&cut, all, named, part).await?;
        let grant = if origin == Origin::Placing { self.grant() } else { 0 };
        Ok(reply.into_reply(self.peers.sender(), grant))
    }

    /// What each other member may hand over a second: an equal share.
    fn grant(&self) -> u64 {
        let senders = self.peers.members().len().max(1) as u64;
        (self.hand_over_bytes_per_second / senders).max(1)
    }

    /// Holds traces of a request that a client sent to this node.
    pub async fn hold_own(&self, cut: &Arc<Cut>, traces: &[u32], part: HoldPart) -> Own {
        if self.memory.is_full(Origin::Entry) {
            return Own::Full;
        }
        match self.hold(cut, traces.iter().copied(), Vec::new(), part).await {
            Ok(_) => Own::Stored,
            Err(_) => Own::Stopping,
        }
    }

    /// Spans became done elsewhere.
    ///
    /// Nobody waits for it: what does not fit into a shard's inputs is dropped, and asked about
    /// later (A1).
    pub fn on_done(&self, done: &[DoneTrace]) -> Result<(), HoldError> {
        let mut parts: Vec<Vec<_>> = vec![Vec::new(); self.inputs.len()];
        for trace in done {
            let id = frame::trace_id(&trace.trace_id)?;
            parts[self.shard_of(self.slot(id))].push((id, trace.verdict(), trace.sum));
        }
        for (shard, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            if self.inputs[shard].try_send(Input::Done(part)).is_err() {
                tracing::debug!(shard, "a Done was dropped");
            }
        }
        Ok(())
    }

    /// The frames of all that is held here, for the spool.
    pub async fn spooled(&self) -> impl Iterator<Item = Hold> {
        let mut held = Vec::new();
        for input in self.inputs.iter() {
            let (reply, replied) = oneshot::channel();
            if input.send(Input::HeldTraces(reply)).await.is_ok() {
                held.extend(replied.await.unwrap_or_default());
            }
        }
        outgoing::spooled(held)
    }

    async fn hold(
        &self,
        cut: &Arc<Cut>,
        traces: impl Iterator<Item = u32>,
        named: Vec<(TraceId, HoldTrace)>,
        hold: HoldPart,
    ) -> Result<PartReply, HoldError> {
        let parts = part::by_shard(cut, traces, named, &self.hash_key, self.inputs.len());
        let mut replies = Vec::with_capacity(parts.len());
        for (shard, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            let (reply, replied) = oneshot::channel();
            let input = Input::Hold { cut: Arc::clone(cut), part, hold, reply };
            self.inputs[shard].send(input).await.map_err(|_| HoldError::Stopping)?;
            replies.push(replied);
        }
        let mut whole = PartReply::new(self.peers.sender().view_hash);
        for reply in replies {
            whole.add(reply.await.map_err(|_| HoldError::Stopping)?);
        }
        Ok(whole)
    }

    fn shard_of(&self, slot: Slot) -> usize {
        part::shard_of(slot, self.inputs.len())
    }
}

/// What became of spans that this node is to hold itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// They are held.
    Stored,
    /// The memory budget does not allow it.
    Full,
    /// The node is stopping.
    Stopping,
}

/// The spans of a frame, which all have ids.
fn scanned(hold: &Hold) -> Result<Scan, HoldError> {
    let scan = scan_trusted(&hold.request, hold.ids_end)?;
    match scan.refused_span_count {
        0 => Ok(scan),
        count => Err(HoldError::Ids(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    fn refusal(ids: &[([u8; 16], [u8; 8])]) -> Option<String> {
        let span = |(trace_id, span_id): &([u8; 16], [u8; 8])| Span {
            trace_id: trace_id.into(),
            span_id: span_id.into(),
            ..Span::default()
        };
        let scope = ScopeSpans { spans: ids.iter().map(span).collect(), ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let request = ExportTraceServiceRequest { resource_spans: vec![resource] };
        let hold = Hold { request: request.encode_to_vec().into(), ..Hold::default() };
        scanned(&hold).err().map(|error| error.to_string())
    }

    #[test]
    fn frame_with_spans_that_have_no_ids_is_refused() {
        assert_eq!(refusal(&[]), None);
        assert_eq!(refusal(&[([1; 16], [1; 8]), ([1; 16], [2; 8])]), None);
        let two_lack_one = [([1; 16], [0; 8]), ([0; 16], [1; 8]), ([1; 16], [1; 8])];
        let said = "2 spans of a frame have no trace id or span id";
        assert_eq!(refusal(&two_lack_one).as_deref(), Some(said));
    }
}
