//! The task of one shard: wait for something, let the shard take it in, carry out what it wants.
//!
//! Everything that another machine or a sink may take its time over is a future of this task,
//! polled beside its inputs; none is waited for. An answer that comes too late finds the attempt's
//! number changed, and is ignored by the shard.

use super::outgoing::{self, Outgoing, Placing};
use super::{Held, Input};
use crate::frame::{HoldReply, Verdict};
use crate::memory::Memory;
use crate::mesh::Peers;
use crate::metrics::{
    self, AgainCause, AgainLabels, DecisionLabels, Direction, DirectionLabels, DueCause, Reason,
    ReasonLabels, TraceMetrics,
};
use crate::shard::{Answer, Cause, Shard, SinkSet, Tally};
use crate::sink::{Attempt, DeadLetters, Outcome, Sink};
use crate::spans::TraceId;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::{coop::unconstrained, yield_now};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracemesh_membership::NodeId;

/// An offer or a question ends after this; it is made again by the shard's own timers.
const PLACING_MAX: Duration = Duration::from_secs(3);
/// With nothing to wake for, a shard still looks at its clock so often.
const IDLE: Duration = Duration::from_secs(60);
/// Inputs, and as many replies of other holders, taken in one turn, so that effects are carried out
/// and sums are published in between.
const INPUTS_PER_TURN: usize = 16;

/// Why a shard has a turn.
enum Wake {
    Mesh,
    Event(Event),
    Input(Input),
    Time,
}

/// Something that was waited for.
enum Event {
    Answered { trace_id: TraceId, number: u32, sink: u32, answer: Answer },
    Replied { from: NodeId, asked: Vec<(TraceId, u32)>, bytes: usize, reply: Option<HoldReply> },
}

pub(super) struct Turn {
    pub(super) number: usize,
    pub(super) shard: Shard,
    pub(super) shard_count: usize,
    pub(super) sinks: Vec<Arc<dyn Sink>>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) peers: Peers,
    pub(super) memory: Arc<Memory>,
    pub(super) held: Arc<[Held]>,
    pub(super) placed: Arc<Notify>,
    pub(super) started: Instant,
    pub(super) metrics: TraceMetrics,
}

type Waiting = FuturesUnordered<BoxFuture<'static, Event>>;

impl Turn {
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut mesh = self.peers.changes();
        let mut waiting = Waiting::new();
        self.on_mesh();
        loop {
            let wake = self.shard.next_wake().unwrap_or_else(|| Instant::now() + IDLE);
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = mesh.changed() => Wake::Mesh,
                Some(event) = next(&mut waiting) => Wake::Event(event),
                input = inputs.recv() => match input {
                    Some(input) => Wake::Input(input),
                    None => return,
                },
                () = sleep_until(wake) => Wake::Time,
            };
            // Before anything else is done (M3).
            if self.peers.stood_still() || matches!(woken, Wake::Mesh) {
                self.on_mesh();
            }
            match woken {
                Wake::Event(event) => self.on_event(event),
                Wake::Input(input) => self.on_input(input),
                Wake::Mesh | Wake::Time => {}
            }
            self.on_inputs(&mut inputs);
            self.on_events(&mut waiting);
            self.shard.on_time(Instant::now());
            self.carry_out(&mut waiting);
            self.publish();
            if self.shard.next_wake().is_some_and(|wake| wake <= Instant::now()) {
                // Clients are to wait for one turn, not for all that there is to be done.
                yield_now().await;
            }
        }
    }

    fn on_mesh(&mut self) {
        self.shard.on_view(Instant::now(), self.peers.standing());
    }

    fn on_inputs(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        for _ in 0..INPUTS_PER_TURN {
            let Ok(input) = inputs.try_recv() else { break };
            self.on_input(input);
        }
    }

    /// What sinks said, and of what other holders said as much as a turn may take.
    fn on_events(&mut self, waiting: &mut Waiting) {
        let mut replies = 0;
        while replies < INPUTS_PER_TURN
            && let Some(event) = ready(waiting)
        {
            replies += usize::from(matches!(event, Event::Replied { .. }));
            self.on_event(event);
        }
    }

    fn on_input(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Hold { cut, part, hold, reply } => {
                let said = part.hold(&mut self.shard, now, &cut, hold);
                // Before the answer, so that nobody who was answered finds the node empty.
                self.publish_held();
                // Whoever asked may have gone away; what is stored stays.
                let _ = reply.send(said);
            }
            Input::HeldTraces(reply) => {
                // Whoever asked has stopped waiting, and the node.
                let _ = reply.send(self.shard.held_traces(now));
            }
            Input::Tell { trace_id, reply } => {
                let _ = reply.send(self.shard.tell(now, trace_id));
            }
            Input::Done(done) => {
                for (trace_id, verdict, sum) in done {
                    self.shard.on_done(now, trace_id, verdict, sum);
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Answered { trace_id, number, sink, answer } => {
                self.shard.on_answer(now, trace_id, number, sink, answer);
            }
            Event::Replied { from, asked, bytes, reply } => {
                self.shard.on_arrived(&from, bytes, reply.is_some());
                if let Some(reply) = reply {
                    let shard = &mut self.shard;
                    outgoing::on_reply(shard, self.shard_count, now, &from, &asked, &reply);
                }
            }
        }
    }

    fn carry_out(&mut self, waiting: &mut Waiting) {
        let effects = self.shard.take_effects();
        if effects.is_empty() {
            return;
        }
        let outgoing = Outgoing::new(effects, self.peers.sender());
        self.count_hand_over(&outgoing);
        for (attempt, number, sinks) in outgoing.exports {
            self.export(&attempt, number, sinks, waiting);
        }
        for (attempt, number, why) in outgoing.dead_letters {
            self.bury(attempt, number, why, waiting);
        }
        for (target, traces) in outgoing.done {
            self.peers.done(&target, traces);
        }
        for placing in outgoing.holds {
            waiting.push(self.place(placing));
        }
    }

    fn count_hand_over(&self, outgoing: &Outgoing) {
        if outgoing.given_spans > 0 {
            let direction = DirectionLabels { direction: Direction::Sent };
            let bytes = outgoing.holds.iter().map(|placing| placing.hold.request.len() as u64);
            let metrics = &self.metrics.placing;
            let spans = outgoing.given_spans;
            metrics.hand_over_spans.get_or_create_owned(&direction).inc_by(spans);
            metrics.hand_over_bytes.get_or_create_owned(&direction).inc_by(bytes.sum());
        }
    }

    fn export(&self, attempt: &Arc<Attempt>, number: u32, sinks: SinkSet, waiting: &mut Waiting) {
        for sink in sinks.iter() {
            let trace_id = attempt.trace_id;
            let submitted = self.sinks[sink as usize].submit(Arc::clone(attempt));
            waiting.push(Box::pin(async move {
                let answer = match submitted {
                    Err(_) => Answer::Again { after: None },
                    Ok(outcome) => match outcome.await {
                        Ok(Outcome::Acknowledged) => Answer::Acknowledged,
                        Ok(Outcome::Refused) => Answer::Refused,
                        Ok(Outcome::Again { after }) => Answer::Again { after },
                        Ok(Outcome::Unanswered) | Err(_) => Answer::Unanswered,
                    },
                };
                Event::Answered { trace_id, number, sink, answer }
            }));
        }
    }

    fn bury(&self, attempt: Arc<Attempt>, number: u32, why: &'static str, waiting: &mut Waiting) {
        let dead_letters = Arc::clone(&self.dead_letters);
        let trace_id = attempt.trace_id;
        // Here, and not in a thread of its own: there are few, and a shard has one at a time.
        let answer = match dead_letters.write(&attempt, why) {
            Ok(()) => Answer::Refused,
            Err(error) => {
                tracing::error!(%error, %trace_id, "cannot write a dead letter");
                Answer::Again { after: None }
            }
        };
        waiting
            .push(Box::pin(async move { Event::Answered { trace_id, number, sink: 0, answer } }));
    }

    fn place(&self, placing: Placing) -> BoxFuture<'static, Event> {
        let Placing { target: from, hold, asked, bytes } = placing;
        let peers = self.peers.clone();
        Box::pin(async move {
            let reply = match peers.hold(&from, hold, PLACING_MAX, PLACING_MAX).await {
                Ok(reply) => Some(reply),
                Err(error) => {
                    tracing::debug!(%error, peer = %from, "holder did not answer");
                    None
                }
            };
            Event::Replied { from, asked, bytes, reply }
        })
    }

    fn publish(&mut self) {
        self.publish_held();
        let held = &self.held[self.number];
        held.set_unplaced_by_member(self.shard.unplaced_by_member());
        for (gauge, since) in held.held_since.iter().zip(self.shard.held_since()) {
            gauge.set(self.started, since);
        }
        let remembered_since = self.shard.remembered_since();
        self.held[self.number].remembered_since.set(self.started, remembered_since);
        count(&self.metrics, &self.shard.take_tally());
    }

    fn publish_held(&self) {
        self.memory.set_shard(self.number, self.shard.bytes());
        let held = &self.held[self.number];
        for (gauge, spans) in held.spans.iter().zip(self.shard.held()) {
            gauge.store(spans, Relaxed);
        }
        held.traces.store(self.shard.held_trace_count(), Relaxed);
        held.unplaced.store(self.shard.unplaced_count(), Relaxed);
        let settled = self.shard.is_settled().then(|| self.shard.view_hash());
        if std::mem::replace(&mut *held.settled(), settled) != settled {
            self.placed.notify_one();
        }
    }
}

/// Adds what a shard counted to the node's counters.
fn count(metrics: &TraceMetrics, tally: &Tally) {
    metrics.redelivered.inc_by(tally.redelivered);
    metrics.repaired.inc_by(tally.repaired);
    metrics.exported.inc_by(tally.exported);
    metrics.late.inc_by(tally.late);
    metrics.sampled_out.inc_by(tally.sampled_out);
    metrics.in_parts.inc_by(tally.in_parts);
    metrics.forgotten_early.inc_by(tally.forgotten_early);
    for (reason, spans) in [(Reason::Sink, tally.refused), (Reason::Poison, tally.poison)] {
        metrics.dropped.get_or_create_owned(&ReasonLabels { reason }).inc_by(spans);
    }
    for (cause, spans) in [
        (AgainCause::Unanswered, tally.unanswered),
        (AgainCause::Takeover, tally.taken_over),
        (AgainCause::Uncalm, tally.uncalm),
    ] {
        let again = &metrics.exported_again_possible;
        again.get_or_create_owned(&AgainLabels { cause }).inc_by(spans);
    }
    for &(cause, verdict, delay) in &tally.decided {
        let labels = DecisionLabels { cause: due_cause(cause), verdict: label(verdict) };
        metrics.decided.get_or_create_owned(&labels).inc();
        metrics.decide_delay_seconds.observe(delay.as_secs_f64());
    }
}

fn due_cause(cause: Cause) -> DueCause {
    match cause {
        Cause::Root => DueCause::Root,
        Cause::Age => DueCause::Age,
        Cause::Spans => DueCause::Spans,
        Cause::Bytes => DueCause::Bytes,
        Cause::Drain => DueCause::Drain,
        Cause::Takeover => DueCause::Takeover,
    }
}

fn label(verdict: Verdict) -> metrics::Verdict {
    match verdict {
        Verdict::SampledOut => metrics::Verdict::SampledOut,
        Verdict::None | Verdict::Keep => metrics::Verdict::Kept,
    }
}

/// The next event. Outside tokio's budget of a turn: once that is used up, every future that is
/// ready would be put off, and polled again, one by one.
async fn next(waiting: &mut Waiting) -> Option<Event> {
    unconstrained(waiting.next()).await
}

/// An event that is there already.
fn ready(waiting: &mut Waiting) -> Option<Event> {
    next(waiting).now_or_never().flatten()
}
