//! What happens at the shards: messages and timers go in, effects become messages.
//!
//! The glue is the node's own: [`part`] deals a Hold to shards and makes the one reply,
//! [`outgoing`] makes frames of effects. After every step at a node the witness compares what its
//! shards know with what they knew before.

use super::bugs::Bug;
use super::message::{About, Body, Export, Message};
use super::setting::HASH_KEY;
use super::witness::{Facts, Invariant};
use super::world::{SinkSays, World};
use std::sync::Arc;
use tracemesh::assemble::outgoing::{self, Outgoing};
use tracemesh::assemble::part::{self, PartReply};
use tracemesh::cut::Cut;
use tracemesh::frame::{self, DoneTrace, Hold, HoldReply, HoldTrace, Sender, Verdict};
use tracemesh::scan::scan_trusted;
use tracemesh::shard::{Answer, HoldPart, SETTLE_MAX};
use tracemesh::spans::TraceId;
use tracemesh_membership::{Incarnation, NodeId, Placement, Slot};

/// The holders of a slot, as (id, incarnation).
fn names(placement: &Placement, slot: Slot) -> Vec<(NodeId, Incarnation)> {
    let holders = placement.holders(slot).into_iter();
    let indexes = holders.flat_map(|holders| [Some(holders.owner), holders.replica]).flatten();
    let members = indexes.map(|index| &placement.view().members()[usize::from(index)]);
    members.map(|member| (member.id.clone(), member.incarnation)).collect()
}

/// What every node grants every other: more than a world can hold, so that allowances decide
/// nothing.
const GRANT: u64 = 1 << 50;

/// What a node's shards were just told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Spans or names to hold.
    Hold,
    /// What an owner said.
    Reply,
    /// That spans are done.
    Done,
    /// What a sink said.
    Answer,
    /// The time.
    Timer,
    /// The view.
    View,
}

impl World {
    /// Holds traces of a request, and says what the shards say.
    pub(super) fn hold(
        &mut self,
        number: usize,
        cut: &Cut,
        traces: impl Iterator<Item = u32>,
        named: Vec<(TraceId, HoldTrace)>,
        hold: HoldPart,
    ) -> PartReply {
        let node = &mut self.nodes[number];
        let parts = part::by_shard(cut, traces, named, &HASH_KEY, node.keepers.len());
        let mut whole = PartReply::new(node.placement.view().hash());
        let now = node.now;
        for (keeper, part) in node.keepers.iter_mut().zip(parts) {
            if !part.is_empty() {
                whole.add(part.hold(&mut keeper.shard, now, cut, hold));
            }
        }
        self.after(number, Cause::Hold);
        whole
    }

    pub(super) fn deliver(&mut self, message: usize) {
        let Message { from, to, body, content } = self.messages.swap_remove(message);
        match body {
            Body::Hold(hold, about) => self.on_hold(from, to, &hold, about, content),
            Body::Reply(reply, About::Batch { request, batch, frame }, _) => {
                self.on_batch_reply((request, batch, frame), self.tampered(reply));
            }
            Body::Reply(reply, About::Placing(asked), _) => {
                let reply = self.tampered(reply);
                self.on_placed(to, from, &asked, &reply);
            }
            Body::Reply(_, About::Nobody, _) => {}
            Body::Done(done) => self.on_done(to, &done),
            Body::Answer(export, answer) => self.on_answer(from, export, answer),
            // Sinks answer by [`Action::Sink`](super::world::Action::Sink).
            Body::Export(_) => {}
        }
    }

    fn on_hold(&mut self, from: usize, to: usize, hold: &Hold, about: About, content: u64) {
        let sender = self.nodes[to].sender();
        let mut hold_part = part::hold_part(hold);
        match self.plan.setting.bug {
            Some(Bug::NoMark) => hold_part.marked = false,
            Some(Bug::NoForeignMark) => hold_part.view_hash = sender.view_hash,
            _ => {}
        }
        let scan =
            scan_trusted(&hold.request, hold.ids_end).expect("the frames of a world are valid");
        let named = part::named(hold.traces.clone()).expect("the frames of a world are valid");
        let cut = Cut::new(hold.request.clone(), scan, &HASH_KEY);
        let all = 0..u32::try_from(cut.slots().len()).unwrap_or(u32::MAX);
        let reply = if self.has(Bug::AcknowledgeUnstored) && !hold.request.is_empty() {
            PartReply::new(sender.view_hash)
        } else {
            self.hold(to, &cut, all, named, hold_part)
        };
        for trace in 0..self.plan.traces.len() {
            let id = self.plan.traces[trace].id;
            let came = cut.scan().traces.iter().any(|traced| traced.id == id);
            let is_named = hold.traces.iter().any(|named| named.trace_id[..] == id.0);
            let known = self.keeper(to, trace).map(|keeper| keeper.placement.view().hash());
            let is_foreign = known != Some(hold.sender.view_hash);
            let is_stray = came && (is_foreign || !self.is_holder(to, trace));
            if is_stray || (hold.marked && (came || is_named)) {
                self.check_unplaced(to, trace);
            }
        }
        let reply = reply.into_reply(self.nodes[to].sender(), GRANT);
        self.reply(to, from, hold, Body::Reply(Arc::new(reply), about, content));
    }

    /// What a node makes of a reply under some bugs.
    fn tampered(&self, reply: Arc<HoldReply>) -> Arc<HoldReply> {
        if !self.has(Bug::IgnoreWanted) {
            return reply;
        }
        let mut reply = HoldReply::clone(&reply);
        reply.traces.iter_mut().for_each(|trace| trace.wanted.clear());
        Arc::new(reply)
    }

    /// An owner answered a question.
    fn on_placed(
        &mut self,
        number: usize,
        from: usize,
        asked: &[(TraceId, u32)],
        reply: &HoldReply,
    ) {
        let plan = Arc::clone(&self.plan);
        let mut reply = reply.clone();
        if self.has(Bug::ConfirmByFormer)
            && let Some(member) = self.nodes[number].placement.view().get(plan.id(from))
            && reply.sender.incarnation() != member.incarnation
        {
            reply.sender = Sender {
                view_hash: self.nodes[number].placement.view().hash(),
                generation: member.incarnation.generation,
                epoch: member.incarnation.epoch,
            };
        }
        if self.has(Bug::ConfirmOtherView) {
            reply.sender.view_hash = self.nodes[number].placement.view().hash();
        }
        if self.has(Bug::ForgetRemembered) {
            reply.traces.iter_mut().for_each(|trace| {
                trace.done.clear();
                trace.verdict = Verdict::None.into();
            });
        }
        for &(id, version) in asked {
            let Some(trace) = plan.trace(id) else { continue };
            self.note_confirmation(number, from, (trace, version), &reply);
            let shards = self.nodes[number].keepers.len();
            let shard = part::shard_of(plan.traces[trace].slot, shards);
            let stale = self.has(Bug::ConfirmStale);
            let node = &mut self.nodes[number];
            let shard = &mut node.keepers[shard].shard;
            let version = shard.version(id).filter(|_| stale).unwrap_or(version);
            outgoing::on_reply(shard, 1, node.now, plan.id(from), &[(id, version)], &reply);
        }
        self.after(number, Cause::Reply);
    }

    fn note_confirmation(
        &mut self,
        number: usize,
        from: usize,
        (trace, version): (usize, u32),
        reply: &HoldReply,
    ) {
        let wants = reply.traces.iter().any(|trace| !trace.wanted.is_empty());
        if self.has(Bug::KeepConfirmations) && !wants {
            let shards = self.nodes[number].keepers.len();
            let shard = part::shard_of(self.plan.traces[trace].slot, shards);
            self.nodes[number].keepers[shard].confirmed.push((trace, from, version));
        }
    }

    /// The bug by which what was confirmed in a view counts in the next one.
    pub(super) fn confirm_again(&mut self, number: usize, shard: usize) {
        let plan = Arc::clone(&self.plan);
        for (trace, from, version) in self.nodes[number].keepers[shard].confirmed.clone() {
            let placement = Arc::clone(&self.nodes[number].keepers[shard].placement);
            let Some(member) = placement.view().get(plan.id(from)) else { continue };
            let sender = Sender {
                view_hash: placement.view().hash(),
                generation: member.incarnation.generation,
                epoch: member.incarnation.epoch,
            };
            let reply = HoldReply { sender, grant: GRANT, ..HoldReply::default() };
            let (node, asked) = (&mut self.nodes[number], [(plan.traces[trace].id, version)]);
            let shard = &mut node.keepers[shard].shard;
            outgoing::on_reply(shard, 1, node.now, plan.id(from), &asked, &reply);
        }
        self.after(number, Cause::Reply);
    }

    fn on_done(&mut self, number: usize, done: &[DoneTrace]) {
        for done in done {
            let Ok(id) = frame::trace_id(&done.trace_id) else { continue };
            let Some(trace) = self.plan.trace(id) else { continue };
            let ignores_sum = self.has(Bug::DoneWithoutSum);
            let shard =
                part::shard_of(self.plan.traces[trace].slot, self.nodes[number].keepers.len());
            let node = &mut self.nodes[number];
            let shard = &mut node.keepers[shard].shard;
            let sum = shard.sum(id).filter(|_| ignores_sum).unwrap_or(done.sum);
            shard.on_done(node.now, id, done.verdict(), sum);
            self.after(number, Cause::Done);
            let covered = self.keeper(number, trace).and_then(|keeper| keeper.shard.sum(id));
            let is_all = covered == Some(sum) && self.nodes[number].known[trace].held == 0;
            if !is_all {
                self.witness.trace_facts[trace] |= Facts::DONE_UNLIKE;
            }
        }
    }

    pub(super) fn on_sink(&mut self, message: usize, says: SinkSays) {
        let Message { from, to, body, .. } = self.messages.swap_remove(message);
        let Body::Export(export) = body else { return };
        let Export { trace, spans, sink, .. } = export;
        let answer = match says {
            SinkSays::Acknowledged => Answer::Acknowledged,
            SinkSays::Refused => Answer::Refused,
            SinkSays::Again => Answer::Again { after: None },
            SinkSays::TakenUnanswered | SinkSays::LostUnanswered => Answer::Unanswered,
        };
        match says {
            SinkSays::Acknowledged | SinkSays::TakenUnanswered => {
                self.witness.on_export(sink, trace, spans);
                self.check_export(trace);
            }
            SinkSays::Refused => self.witness.refused[sink as usize][trace] |= spans,
            SinkSays::Again | SinkSays::LostUnanswered => {}
        }
        if says != SinkSays::Acknowledged {
            self.budget.sink = self.budget.sink.saturating_sub(1);
            self.witness.trace_facts[trace] |= Facts::UNANSWERED;
        }
        let trusting = answer == Answer::Unanswered && self.has(Bug::TrustSilentSink);
        let answer = if trusting { Answer::Acknowledged } else { answer };
        let node = &self.nodes[from];
        if node.exists() && node.incarnation.generation == export.generation {
            self.push(Message::new(from, to, Body::Answer(export, answer)));
        }
    }

    fn on_answer(&mut self, number: usize, export: Export, answer: Answer) {
        let id = self.plan.traces[export.trace].id;
        let shard =
            part::shard_of(self.plan.traces[export.trace].slot, self.nodes[number].keepers.len());
        let node = &mut self.nodes[number];
        let shard = &mut node.keepers[shard].shard;
        shard.on_answer(node.now, id, export.number, export.sink, answer);
        self.after(number, Cause::Answer);
    }

    pub(super) fn on_timer(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Some((wake, shard)) = node.next_wake() else { return };
        node.now = node.now.max(wake);
        node.keepers[shard].shard.on_time(node.now);
        self.after(number, Cause::Timer);
    }

    pub(super) fn on_late(&mut self, number: usize) {
        self.budget.late = self.budget.late.saturating_sub(1);
        let node = &mut self.nodes[number];
        let Some((wake, _)) = node.next_wake() else { return };
        node.now = node.now.max(wake) + SETTLE_MAX;
        for keeper in &mut node.keepers {
            keeper.shard.on_time(node.now);
        }
        self.after(number, Cause::Timer);
    }

    /// Carries out what a node's shards want, after the witness has looked at them.
    pub(super) fn after(&mut self, number: usize, cause: Cause) {
        let mut uncalm = false;
        for keeper in 0..self.nodes[number].keepers.len() {
            let tally = self.nodes[number].keepers[keeper].shard.take_tally();
            uncalm |= tally.uncalm > 0;
            self.witness.count(&tally);
        }
        self.observe(number, cause, uncalm);
        for keeper in 0..self.nodes[number].keepers.len() {
            let effects = self.nodes[number].keepers[keeper].shard.take_effects();
            if !effects.is_empty() {
                let outgoing = Outgoing::new(effects, self.nodes[number].sender());
                self.send_out(number, outgoing);
            }
        }
        self.settle(number);
    }

    fn send_out(&mut self, number: usize, outgoing: Outgoing) {
        let plan = Arc::clone(&self.plan);
        let generation = self.nodes[number].incarnation.generation;
        for outgoing::Export { attempt, number: try_number, sinks, .. } in outgoing.exports {
            let Some(trace) = plan.trace(attempt.trace_id) else { continue };
            let spans = self.nodes[number].known[trace].sending;
            for sink in sinks.iter() {
                let export = Export { trace, spans, sink, number: try_number, generation };
                self.push(Message::new(number, number, Body::Export(export)));
            }
        }
        for (attempt, try_number, _) in outgoing.dead_letters {
            self.bury(number, attempt.trace_id, try_number);
        }
        for (target, done) in outgoing.done {
            if !self.has(Bug::NoDone) {
                let target = plan.node(&target);
                self.push(Message::new(number, target, Body::Done(done)));
            }
        }
        for mut placing in outgoing.holds {
            if self.has(Bug::ForgetRemembered) {
                placing.hold.traces.iter_mut().for_each(|trace| {
                    trace.done.clear();
                    trace.verdict = Verdict::None.into();
                });
            }
            if self.has(Bug::NoAsking) && !placing.asked.is_empty() {
                continue;
            }
            let target = plan.node(&placing.target);
            if self.has(Bug::ForgetWhileOffering)
                && let Some(member) = self.nodes[number].placement.view().get(&placing.target)
            {
                let mut sender = self.nodes[number].sender();
                sender.generation = member.incarnation.generation;
                sender.epoch = member.incarnation.epoch;
                let reply = HoldReply { sender, grant: GRANT, ..HoldReply::default() };
                self.on_placed(number, target, &placing.asked, &reply);
            }
            for keeper in &mut self.nodes[number].keepers {
                // Bandwidth is not explored.
                keeper.shard.on_arrived(&placing.target, placing.bytes, true);
            }
            let about = About::Placing(placing.asked.into());
            let body = Body::Hold(Arc::new(placing.hold), about);
            self.push_once(Message::new(number, target, body));
        }
    }

    /// A dead letter is written at once; its spans are finished.
    fn bury(&mut self, number: usize, id: TraceId, try_number: u32) {
        let Some(trace) = self.plan.trace(id) else { return };
        let spans = self.nodes[number].known[trace].sending;
        for sink in 0..self.plan.setting.sinks {
            self.witness.refused[sink as usize][trace] |= spans;
        }
        self.witness.trace_facts[trace] |= Facts::UNANSWERED;
        let export = Export { trace, spans, sink: 0, number: try_number, generation: 0 };
        self.on_answer(number, export, Answer::Refused);
    }

    /// What changed at a node, as the witness sees it.
    fn observe(&mut self, number: usize, cause: Cause, uncalm: bool) {
        for trace in 0..self.plan.traces.len() {
            let planned = &self.plan.traces[trace];
            let known = self
                .keeper(number, trace)
                .and_then(|keeper| keeper.shard.known(planned.id, &planned.names))
                .unwrap_or_default();
            let before = std::mem::replace(&mut self.nodes[number].known[trace], known);
            if before == known {
                continue;
            }
            let gone = before.held & !(known.held | known.done);
            if gone != 0 {
                self.check_given_up(number, trace, gone);
            }
            if cause != Cause::Timer {
                continue;
            }
            let decided = before.verdict == Verdict::None && known.verdict != Verdict::None;
            if decided {
                self.witness.verdicts[trace] |= 1 << (known.verdict as u8);
            }
            if known.verdict == Verdict::SampledOut {
                self.witness.sampled_out[trace] |= before.held & known.done;
            }
            if decided || (before.sending == 0 && known.sending != 0) {
                self.witness.decided[trace] = true;
                if self.nodes[number].state == tracemesh_membership::MemberState::Leaving {
                    self.witness.facts |= Facts::LAST_LEFT;
                }
                self.check_decided(number, trace, uncalm);
            }
        }
    }

    /// D1, seen from outside: the node is the owner in the view that its shard was told, and all
    /// members settled in that view, or it has the holders of when all last did and the replica
    /// published that view, or the waiting was counted as over.
    fn check_decided(&mut self, number: usize, trace: usize, uncalm: bool) {
        let Some(keeper) = self.keeper(number, trace) else { return };
        let placement = &keeper.placement;
        let member =
            |index: u16| self.plan.node(&placement.view().members()[usize::from(index)].id);
        let holders = placement.holders(self.plan.traces[trace].slot);
        let is_owner = holders.is_some_and(|holders| member(holders.owner) == number);
        let replica = holders.and_then(|holders| holders.replica).map(member);
        let view_hash = placement.view().hash();
        let published = |peer: usize| keeper.rumours[peer].map(|rumour| rumour.view_hash);
        let replica_agrees = replica.is_none_or(|replica| published(replica) == Some(view_hash));
        let slot = self.plan.traces[trace].slot;
        let now = names(placement, slot);
        let same_holders = keeper.since_settled.iter().all(|then| names(then, slot) == now);
        let is_calm = keeper.all_settled() || (replica_agrees && same_holders);
        if !is_owner {
            let what = format!("node {number} decides trace {trace} and is not its owner");
            self.violate(Invariant::Decided, what);
        } else if !is_calm && !uncalm {
            let what = format!("node {number} decides trace {trace} and is not calm");
            self.violate(Invariant::Decided, what);
        }
    }

    fn is_holder(&self, number: usize, trace: usize) -> bool {
        let Some(keeper) = self.keeper(number, trace) else { return false };
        let holders = keeper.placement.holders(self.plan.traces[trace].slot);
        let index = keeper.placement.view().position(self.plan.id(number));
        let index = index.and_then(|index| u16::try_from(index).ok());
        holders.zip(index).is_some_and(|(holders, index)| holders.contain(index))
    }

    /// E3 and H3, seen from outside: a node that holds something which another holder may lack
    /// knows it, if there is another one in its view.
    pub(super) fn check_unplaced(&mut self, number: usize, trace: usize) {
        let known = self.nodes[number].known[trace];
        let Some(keeper) = self.keeper(number, trace) else { return };
        let view = keeper.placement.view();
        let others = view.members().iter().any(|member| member.id != *self.plan.id(number));
        if known.held != 0 && !known.unplaced && others {
            let what = format!("node {number} believes that trace {trace} is held elsewhere");
            self.violate(Invariant::Unplaced, what);
        }
    }

    /// P3 and P4, seen from outside: every holder of the node's view has what the node forgets, as
    /// far as it is alive in that life and still goes by that view.
    fn check_given_up(&mut self, number: usize, trace: usize, spans: u8) {
        let Some(keeper) = self.keeper(number, trace) else { return };
        let placement = &keeper.placement;
        let spans = spans & !self.witness.finished(trace, self.plan.setting.sinks);
        let holders = names(placement, self.plan.traces[trace].slot);
        let lacks = |(id, incarnation): &(NodeId, Incarnation)| {
            let holder = self.plan.node(id);
            let node = &self.nodes[holder];
            let confirms = self.keeper(holder, trace).is_some_and(|keeper| {
                node.incarnation.generation == incarnation.generation
                    && keeper.placement.view().hash() == placement.view().hash()
            });
            confirms && spans & !node.has(trace) != 0
        };
        let lacking = holders.iter().any(lacks);
        if placement.view().members().len() < 2 {
            // Whoever is left has no replica: I1 does not reach further.
            self.witness.accepted_single[trace] |= spans;
        }
        if lacking {
            let what = format!("node {number} forgets trace {trace}, which a holder lacks");
            self.violate(Invariant::GivenUp, what);
        }
    }
}
