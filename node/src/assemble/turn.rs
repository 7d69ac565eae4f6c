//! The task of one shard: wait for something, let the shard take it in, carry out what it wants.
//!
//! What another machine may take its time over is a future of this task, polled beside its inputs;
//! sinks answer into a channel. None is waited for. An answer that comes too late finds the
//! attempt's number changed, and is ignored by the shard.

use super::outgoing::{self, Export, Outgoing, Placing};
use super::{Held, HeldTraces, Input};
use crate::frame::{HoldReply, Verdict};
use crate::memory::Memory;
use crate::mesh::Peers;
use crate::metrics::{
    self, AgainCause, AgainLabels, DecisionLabels, Direction, DirectionLabels, DueCause, Reason,
    ReasonLabels, TraceMetrics,
};
use crate::shard::{Cause, Shard, Tally};
use crate::sink::{Answered, Attempt, DeadLetters, Outcome, Reply, Sink};
use crate::spans::TraceId;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
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
/// Answers of sinks taken in one turn: those of a usual request.
const ANSWERS_PER_TURN: usize = 256;
/// Attempts of one shard that sinks have, each as often as there are sinks that have it; more are
/// put off. One sink's queue holds as many.
const ATTEMPTS_MAX: usize = 256 << 10;

/// Why a shard has a turn.
enum Wake {
    Mesh,
    Replied(Replied),
    Answered(Answered),
    Input(Input),
    Time,
}

/// What became of an offer or a question.
struct Replied {
    from: NodeId,
    asked: Vec<(TraceId, u32)>,
    bytes: usize,
    reply: Option<HoldReply>,
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

type Placings = FuturesUnordered<BoxFuture<'static, Replied>>;

/// What a shard waits for.
struct Waiting {
    placings: Placings,
    /// Where sinks answer: there is room for all attempts that they have, at most
    /// [`ATTEMPTS_MAX`].
    answers: mpsc::Sender<Answered>,
    attempt_count: usize,
    /// Who wants all that is held, once nothing is left that sinks have answered.
    spool: Option<oneshot::Sender<HeldTraces>>,
}

impl Turn {
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut mesh = self.peers.changes();
        let (sender, mut answers) = mpsc::channel(ATTEMPTS_MAX);
        let placings = Placings::new();
        let mut waiting = Waiting { placings, answers: sender, attempt_count: 0, spool: None };
        self.on_mesh();
        loop {
            let wake = self.shard.next_wake().unwrap_or_else(|| Instant::now() + IDLE);
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = mesh.changed() => Wake::Mesh,
                Some(replied) = next(&mut waiting.placings) => Wake::Replied(replied),
                Some(answered) = answers.recv() => Wake::Answered(answered),
                input = inputs.recv() => match input {
                    Some(input) => Wake::Input(input),
                    None => return,
                },
                () = sleep_until(wake) => Wake::Time,
            };
            // Before anything else is done (M3). Whoever asks first is told that the node stood
            // still; the others find that its incarnation changed.
            let stood_still = self.peers.stood_still();
            if mesh.have_come() || stood_still || matches!(woken, Wake::Mesh) {
                self.on_mesh();
            }
            match woken {
                Wake::Replied(replied) => self.on_replied(replied),
                Wake::Answered(answered) => self.on_answered(answered, &mut waiting),
                Wake::Input(input) => self.on_input(input, &mut waiting),
                Wake::Mesh | Wake::Time => {}
            }
            self.on_inputs(&mut inputs, &mut waiting);
            self.on_replies(&mut waiting);
            self.on_answers(&mut answers, &mut waiting);
            self.shard.on_time(Instant::now());
            if answers.is_empty()
                && let Some(reply) = waiting.spool.take()
            {
                // Before the answer, as ever: who has it reads the counts.
                self.publish_held();
                // Whoever asked has stopped waiting, and the node.
                let _ = reply.send(self.shard.held_traces(Instant::now()));
            }
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

    fn on_inputs(&mut self, inputs: &mut mpsc::Receiver<Input>, waiting: &mut Waiting) {
        for _ in 0..INPUTS_PER_TURN {
            let Ok(input) = inputs.try_recv() else { break };
            self.on_input(input, waiting);
        }
    }

    fn on_replies(&mut self, waiting: &mut Waiting) {
        for _ in 0..INPUTS_PER_TURN {
            let Some(replied) = ready(&mut waiting.placings) else { break };
            self.on_replied(replied);
        }
    }

    fn on_answers(&mut self, answers: &mut mpsc::Receiver<Answered>, waiting: &mut Waiting) {
        let next = || answers.try_recv().ok();
        let answers: Vec<Answered> = iter::from_fn(next).take(ANSWERS_PER_TURN).collect();
        self.shard.prepare(answers.iter().map(|answered| answered.trace_id));
        for answered in answers {
            self.on_answered(answered, waiting);
        }
    }

    fn on_input(&mut self, input: Input, waiting: &mut Waiting) {
        let now = Instant::now();
        match input {
            Input::Hold { cut, part, hold, reply } => {
                let said = part.hold(&mut self.shard, now, &cut, hold);
                // Before the answer, so that nobody who was answered finds the node empty.
                self.publish_held();
                // Whoever asked may have gone away; what is stored stays.
                let _ = reply.send(said);
            }
            Input::HeldTraces(reply) => waiting.spool = Some(reply),
            Input::Tell { trace_id, reply } => {
                let _ = reply.send(self.shard.tell(now, trace_id));
            }
            Input::Done(done) => {
                self.shard.prepare(done.iter().map(|&(trace_id, ..)| trace_id));
                for (trace_id, verdict, sum) in done {
                    self.shard.on_done(now, trace_id, verdict, sum);
                }
            }
        }
    }

    fn on_answered(&mut self, answered: Answered, waiting: &mut Waiting) {
        waiting.attempt_count -= 1;
        let Answered { trace_id, number, sink, outcome } = answered;
        self.shard.on_answer(Instant::now(), trace_id, number, sink, outcome.into());
    }

    fn on_replied(&mut self, replied: Replied) {
        let Replied { from, asked, bytes, reply } = replied;
        self.shard.on_arrived(&from, bytes, reply.is_some());
        if let Some(reply) = reply {
            let (shard, now) = (&mut self.shard, Instant::now());
            outgoing::on_reply(shard, self.shard_count, now, &from, &asked, &reply);
        }
    }

    fn carry_out(&mut self, waiting: &mut Waiting) {
        let effects = self.shard.take_effects();
        if effects.is_empty() {
            return;
        }
        let outgoing = Outgoing::new(effects, self.peers.sender());
        self.count_hand_over(&outgoing);
        for export in outgoing.exports {
            self.export(&export, waiting);
        }
        for (attempt, number, why) in outgoing.dead_letters {
            self.bury(&attempt, number, why, waiting);
        }
        for (target, traces) in outgoing.done {
            self.peers.done(&target, traces);
        }
        for placing in outgoing.holds {
            waiting.placings.push(self.place(placing));
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

    fn export(&mut self, export: &Export, waiting: &mut Waiting) {
        let Export { attempt, number, sinks, withdrawn } = export;
        for sink in sinks.iter() {
            if let Some(reply) = self.reply(attempt, *number, sink, waiting) {
                let reply = reply.until(withdrawn.clone());
                self.sinks[sink as usize].submit(Arc::clone(attempt), reply);
            }
        }
    }

    /// Here, and not in a thread of its own: there are few, and a shard has one at a time.
    fn bury(&mut self, attempt: &Attempt, number: u32, why: &'static str, waiting: &mut Waiting) {
        let Some(reply) = self.reply(attempt, number, 0, waiting) else { return };
        reply.give(match self.dead_letters.write(attempt, why) {
            Ok(()) => Outcome::Refused,
            Err(error) => {
                tracing::error!(%error, trace_id = %attempt.trace_id, "cannot write a dead letter");
                Outcome::AGAIN
            }
        });
    }

    /// Where a sink answers to an attempt. When too many are under way, it is put off.
    fn reply(
        &mut self,
        attempt: &Attempt,
        number: u32,
        sink: u32,
        waiting: &mut Waiting,
    ) -> Option<Reply> {
        if waiting.attempt_count == ATTEMPTS_MAX {
            let (now, answer) = (Instant::now(), Outcome::AGAIN.into());
            self.shard.on_answer(now, attempt.trace_id, number, sink, answer);
            return None;
        }
        waiting.attempt_count += 1;
        Some(Reply::new(waiting.answers.clone(), attempt.trace_id, number, sink))
    }

    fn place(&self, placing: Placing) -> BoxFuture<'static, Replied> {
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
            Replied { from, asked, bytes, reply }
        })
    }

    fn publish(&mut self) {
        // First: whoever finds nothing held, and waits for no more, finds it counted.
        count(&self.metrics, &self.shard.take_tally());
        self.publish_held();
        let held = &self.held[self.number];
        held.set_unplaced_by_member(self.shard.unplaced_by_member());
        for (gauge, since) in held.held_since.iter().zip(self.shard.held_since()) {
            gauge.set(self.started, since);
        }
        let remembered_since = self.shard.remembered_since();
        self.held[self.number].remembered_since.set(self.started, remembered_since);
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

/// The next reply. Outside tokio's budget of a turn: once that is used up, every future that is
/// ready would be put off, and polled again, one by one.
async fn next(placings: &mut Placings) -> Option<Replied> {
    unconstrained(placings.next()).await
}

/// A reply that is there already.
fn ready(placings: &mut Placings) -> Option<Replied> {
    next(placings).now_or_never().flatten()
}
