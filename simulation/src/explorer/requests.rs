//! Requests of clients at their entry node: the real [`OpenRequest`], its batches as messages.
//!
//! The batches that it wants become messages by the same functions as in a node; what comes back
//! is merged by the same function, too. Time is a choice: a batch may be silent, and a request may
//! expire, whenever its answer could be late. Admission by memory is not explored.

use super::bugs::Bug;
use super::message::{About, Body, Message};
use super::setting::{HASH_KEY, LIMITS};
use super::witness::{Facts, Invariant, Violation};
use super::world::World;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use tracemesh::entry::{Answer, Content, Copies, Mark, OpenRequest, Outcome, Send, Step};
use tracemesh::frame::HoldReply;
use tracemesh::reach::Routing;
use tracemesh::route::batch::{Batching, merge, own_part};
use tracemesh_membership::{Incarnation, MemberState};

/// One request.
#[derive(Clone)]
pub struct Open {
    /// The node that serves it.
    pub entry: usize,
    /// Which of the plan's requests.
    pub work: usize,
    /// Its rules.
    pub request: OpenRequest,
    /// Its batches, by number.
    pub batches: Vec<Sent>,
    /// What its node calls it among the open ones.
    pub begun: u64,
}

/// One batch.
#[derive(Clone)]
pub struct Sent {
    /// Who is to hold it.
    pub target: usize,
    /// What each frame was answered; empty for the entry node itself.
    pub replies: Vec<Option<Arc<HoldReply>>>,
    /// Its outcome is known.
    pub ended: bool,
    held: Option<Incarnation>,
}

impl Open {
    pub(super) fn fingerprint(&self, hasher: &mut impl Hasher) {
        (self.entry, self.work).hash(hasher);
        self.request.fingerprint(hasher);
        for sent in &self.batches {
            (sent.ended, sent.held).hash(hasher);
            for reply in sent.replies.iter().filter(|_| !sent.ended) {
                let said = reply.as_ref().map(|reply| {
                    let wanted = reply.traces.iter().any(|trace| !trace.wanted.is_empty());
                    (wanted, reply.sender.incarnation())
                });
                said.hash(hasher);
            }
        }
    }

    /// Batches that wait for an answer.
    pub fn waiting(&self) -> impl Iterator<Item = usize> {
        let waiting = self.batches.iter().enumerate().filter(|(_, sent)| !sent.ended);
        waiting.map(|(batch, _)| batch)
    }
}

impl World {
    pub(super) fn submit(&mut self, entry: usize, work: usize) {
        let placement = Arc::clone(&self.nodes[entry].placement);
        let peers = placement.view().members().len().saturating_sub(1);
        let Routing::Around(avoided) = self.nodes[entry].reach.routing(peers) else {
            self.witness.facts |= Facts::REROUTED;
            return;
        };
        if !avoided.is_empty() {
            self.witness.facts |= Facts::REROUTED;
        }
        let slots = self.plan.cuts[work].slots().to_vec();
        let me = self.plan.id(entry).clone();
        let (request, step) = OpenRequest::start(me, slots, 1, placement, avoided);
        let begun = self.nodes[entry].open_requests.begin();
        let open = Open { entry, work, request, batches: Vec::new(), begun };
        let number = self.requests.iter().position(Option::is_none).unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() - 1
        });
        self.requests[number] = Some(open);
        self.advance(number, step);
    }

    pub(super) fn requests_on_view(&mut self, node: usize) {
        for request in 0..self.requests.len() {
            let placement = Arc::clone(&self.nodes[node].placement);
            let Some(open) = &mut self.requests[request] else { continue };
            if open.entry == node {
                let step = open.request.on_view(placement);
                self.advance(request, step);
            }
        }
    }

    /// The time of a batch is over: whatever comes now is not heard any more.
    pub(super) fn on_silent(&mut self, request: usize, batch: usize) {
        if self.is_batch_under_way(request, batch) {
            self.budget.silent = self.budget.silent.saturating_sub(1);
        }
        self.witness.facts |= Facts::REROUTED;
        self.forget_messages_about(request, Some(batch));
        let Some(open) = &self.requests[request] else { return };
        let (entry, target) = (open.entry, open.batches[batch].target);
        let id = self.plan.id(target).clone();
        let node = &mut self.nodes[entry];
        node.reach.on_silent(&id, node.now);
        self.on_outcome(request, batch, Outcome::Silent);
    }

    pub(super) fn on_expired(&mut self, request: usize) {
        self.budget.silent = self.budget.silent.saturating_sub(1);
        let Some(open) = &self.requests[request] else { return };
        let answer = open.request.on_expired();
        self.conclude(request, answer);
    }

    /// A frame of a batch was answered.
    pub(super) fn on_batch_reply(
        &mut self,
        (request, batch, frame): (usize, usize, usize),
        reply: Arc<HoldReply>,
    ) {
        let Some(open) = self.requests[request].as_mut() else { return };
        let sent = &mut open.batches[batch];
        let (entry, target) = (open.entry, sent.target);
        sent.replies[frame] = Some(reply);
        if sent.ended || sent.replies.iter().any(Option::is_none) {
            return;
        }
        let replies = sent.replies.iter().flatten().map(|reply| Ok(HoldReply::clone(reply)));
        let outcome = merge(replies);
        let id = self.plan.id(target).clone();
        self.nodes[entry].reach.on_answer(&id);
        self.on_outcome(request, batch, outcome);
    }

    fn on_outcome(&mut self, request: usize, batch: usize, outcome: Outcome) {
        let Some(open) = self.requests[request].as_mut() else { return };
        let sent = &mut open.batches[batch];
        sent.ended = true;
        sent.held = incarnation(outcome);
        let step = open.request.on_outcome(batch, outcome);
        self.advance(request, step);
    }

    /// Carries out what a request wants, and what follows from that at once.
    fn advance(&mut self, request: usize, step: Step) {
        let mut steps = VecDeque::from([step]);
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Answer(answer) => {
                    self.conclude(request, answer);
                    return;
                }
                Step::Send(sends) => {
                    for (batch, outcome) in self.send(request, sends) {
                        let Some(open) = self.requests[request].as_mut() else { return };
                        open.batches[batch].ended = true;
                        open.batches[batch].held = incarnation(outcome);
                        steps.push_back(open.request.on_outcome(batch, outcome));
                    }
                }
            }
        }
        if self.has(Bug::AcknowledgeOwnerAlone) && self.owner_holds(request) {
            self.conclude(request, Answer::Accepted(Copies::Replicated));
        }
    }

    /// Sends batches; returns the outcomes that are known at once.
    fn send(&mut self, request: usize, sends: Vec<Send>) -> Vec<(usize, Outcome)> {
        let plan = Arc::clone(&self.plan);
        let Some(open) = &self.requests[request] else { return Vec::new() };
        let (entry, work) = (open.entry, open.work);
        let batching = Batching {
            me: plan.id(entry),
            sender: self.nodes[entry].sender(),
            hash_key: &HASH_KEY,
            age_max: LIMITS.age_max,
            frame_bytes_max: plan.setting.frame_bytes_max,
        };
        let cut = &plan.cuts[work];
        let batches = batching.holds(cut, &sends);
        let mut outcomes = Vec::new();
        for (send, holds) in sends.into_iter().zip(batches) {
            let target = plan.node(&send.target);
            let kept = self.acknowledgement_kept(request, target, send.content);
            let replies = vec![None; holds.len()];
            let sent = Sent { target, replies, ended: false, held: None };
            let Some(open) = self.requests[request].as_mut() else { break };
            open.batches.push(sent);
            if let Some(outcome) = kept {
                outcomes.push((send.batch, outcome));
            } else if target == entry {
                let mark = if self.has(Bug::NoMark) { Mark::Unmarked } else { send.mark };
                let view_hash = self.nodes[entry].placement.view().hash();
                let part = own_part(mark, view_hash, LIMITS.age_max);
                let traces = send.traces.iter().copied();
                self.hold(entry, cut, traces, Vec::new(), part);
                for &number in send.traces.iter().filter(|_| send.mark == Mark::Marked) {
                    if let Some(trace) = plan.trace(cut.trace_id(number)) {
                        self.check_unplaced(entry, trace);
                    }
                }
                let incarnation = self.nodes[entry].incarnation;
                outcomes.push((send.batch, Outcome::Held(incarnation)));
            } else {
                for (frame, hold) in holds.into_iter().enumerate() {
                    let about = About::Batch { request, batch: send.batch, frame };
                    self.push(Message::new(entry, target, Body::Hold(Arc::new(hold), about)));
                }
            }
        }
        outcomes
    }

    /// The bugs by which a target need not acknowledge again: what an earlier incarnation of it
    /// did counts, or what it did as a stand-in.
    fn acknowledgement_kept(
        &self,
        request: usize,
        target: usize,
        content: Content,
    ) -> Option<Outcome> {
        let open = self.requests[request].as_ref()?;
        let mut held = open.batches.iter().filter(|sent| sent.target == target);
        let view = self.nodes[open.entry].placement.view();
        let present = view.get(self.plan.id(target))?.incarnation;
        let kept = held.any(|sent| match sent.held {
            Some(former) if former == present => {
                self.has(Bug::KeepOfStandIn) && content == Content::Bytes
            }
            Some(_) => self.has(Bug::KeepAcknowledgement) && target != open.entry,
            None => false,
        });
        kept.then_some(Outcome::Held(present))
    }

    fn owner_holds(&self, request: usize) -> bool {
        let Some(open) = &self.requests[request] else { return false };
        let placement = &self.nodes[open.entry].placement;
        self.plan.cuts[open.work].slots().iter().all(|&slot| {
            let owner = placement.holders(slot).map(|holders| holders.owner);
            let id = owner.map(|owner| &placement.view().members()[usize::from(owner)].id);
            let holds = |sent: &Sent| sent.held.is_some() && Some(self.plan.id(sent.target)) == id;
            open.batches.iter().any(holds)
        })
    }

    fn conclude(&mut self, request: usize, answer: Answer) {
        let Some(open) = &self.requests[request] else { return };
        let (entry, work) = (open.entry, open.work);
        match answer {
            Answer::Accepted(copies) => self.accept(entry, work, copies),
            Answer::Full | Answer::TooFew => self.witness.facts |= Facts::REROUTED,
        }
        self.close(request);
    }

    pub(super) fn close(&mut self, request: usize) {
        let Some(open) = self.requests[request].take() else { return };
        self.forget_messages_about(request, None);
        self.nodes[open.entry].open_requests.end(open.begun);
        self.settle(open.entry);
    }

    fn accept(&mut self, entry: usize, work: usize, copies: Copies) {
        let plan = Arc::clone(&self.plan);
        for &(trace, spans) in &plan.setting.work[work] {
            self.check_acknowledged(entry, trace, spans);
            let witness = &mut self.witness;
            witness.accepted[trace] |= spans;
            witness.counters.accepted += u64::from(spans.count_ones());
            if copies == Copies::Single {
                witness.accepted_single[trace] |= spans;
            }
            if !witness.decided[trace] {
                witness.accepted_early[trace] |= spans;
            }
        }
    }

    /// E4, seen from outside: as many nodes have the spans as the entry node's view asks for, where
    /// those who have them go by that view. Members that ended, are leaving or
    /// another incarnation by now are believed: they may have lost or handed over what they had.
    fn check_acknowledged(&mut self, entry: usize, trace: usize, spans: u8) {
        let company = self.nodes[entry].company;
        let members = company.iter().flatten().count();
        let wanted = members.clamp(1, 2);
        let open = spans & !self.witness.finished(trace, self.plan.setting.sinks);
        for span in (0..8).map(|at| 1_u8 << at).filter(|span| open & span != 0) {
            let has = |member: usize| {
                let node = &self.nodes[member];
                let Some((incarnation, _)) = company[member] else {
                    return node.exists() && node.has(trace) & span != 0;
                };
                let is_same = node.exists()
                    && node.incarnation.generation == incarnation.generation
                    && node.state == MemberState::Active;
                !is_same || node.has(trace) & span != 0
            };
            let having = (0..self.nodes.len()).filter(|&member| has(member)).count();
            // Who has them and goes by another view offers them as soon as it learns of this one.
            let view_hash = self.nodes[entry].placement.view().hash();
            let is_behind = (0..self.nodes.len()).any(|node| {
                let keeper = self.keeper(node, trace).filter(|_| self.nodes[node].exists());
                self.nodes[node].known[trace].held & span != 0
                    && keeper.is_some_and(|keeper| keeper.placement.view().hash() != view_hash)
            });
            let alone = members < 2 && self.truth().iter().flatten().count() > 1;
            let views_change = [Facts::CRASHED, Facts::LEFT, Facts::JOINED, Facts::STOOD_STILL];
            let doubted = views_change.into_iter().fold(Facts::SUSPECTED, |all, fact| all | fact);
            if having < wanted && !is_behind {
                let what = format!(
                    "trace {trace} span {span:b} acknowledged by {having} of {wanted} holders"
                );
                self.violate(Invariant::Acknowledged, what);
            } else if alone && self.witness.facts.0 & doubted.0 == 0 {
                let what = format!("trace {trace} acknowledged by one node, which has peers");
                self.violate(Invariant::Acknowledged, what);
            }
        }
    }

    pub(super) fn violate(&mut self, invariant: Invariant, what: String) {
        self.witness.violation.get_or_insert(Violation { invariant, what });
    }
}

fn incarnation(outcome: Outcome) -> Option<Incarnation> {
    match outcome {
        Outcome::Held(incarnation) => Some(incarnation),
        Outcome::Wanted | Outcome::Full | Outcome::Silent => None,
    }
}
