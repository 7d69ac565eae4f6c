//! The network between the nodes of a world: what is under way, lost, or not waited for any more.
//!
//! Messages to a node that has no process vanish, as connections end with it. A question that is
//! under way already is not sent once more: a node's own calls end before it asks again.

use super::message::{About, Body, Kind, Message};
use super::witness::Facts;
use super::world::World;
use std::sync::Arc;
use tracemesh::frame::{self, HoldReply};

impl World {
    pub(super) fn push(&mut self, message: Message) {
        let target = &self.nodes[message.to];
        if message.kind() == Kind::Export || target.exists() {
            self.messages.push(message);
        }
    }

    /// Sends a question or wanted spans, unless the same is under way or being answered.
    pub(super) fn push_once(&mut self, message: Message) {
        let is_under_way = self.messages.iter().any(|other| match &other.body {
            Body::Hold(_, about) => other.content == message.content && about == message.about(),
            Body::Reply(_, about, question) => {
                *question == message.content && about == message.about()
            }
            Body::Done(_) | Body::Export(_) | Body::Answer(..) => false,
        });
        if !is_under_way {
            self.push(message);
        }
    }

    /// The network loses a message.
    pub(super) fn lose(&mut self, message: usize) {
        let message = self.messages.swap_remove(message);
        self.budget.drop = self.budget.drop.saturating_sub(1);
        self.witness.facts |= Facts::LOSSY;
        let Body::Done(done) = message.body else { return };
        for done in done {
            let trace = frame::trace_id(&done.trace_id).ok().and_then(|id| self.plan.trace(id));
            if let Some(trace) = trace {
                self.witness.trace_facts[trace] |= Facts::DONE_LOST;
            }
        }
    }

    /// Whether it takes memory to take it in.
    pub(super) fn is_refusable(&self, message: &Message) -> bool {
        let has_bytes = matches!(&message.body, Body::Hold(hold, _) if !hold.request.is_empty());
        has_bytes && self.nodes[message.to].is_up()
    }

    /// A Hold arrives where there is no memory for it.
    pub(super) fn refuse(&mut self, message: usize) {
        self.budget.full = self.budget.full.saturating_sub(1);
        let Message { from, to, body, content } = self.messages.swap_remove(message);
        let Body::Hold(hold, about) = body else { return };
        let sender = self.nodes[to].sender();
        let reply = HoldReply { sender, full: true, ..HoldReply::default() };
        self.reply(to, from, &hold, Body::Reply(Arc::new(reply), about, content));
    }

    /// Answers a Hold, if who sent it still waits for that.
    pub(super) fn reply(&mut self, from: usize, to: usize, hold: &frame::Hold, reply: Body) {
        let asker = &self.nodes[to];
        let is_waiting = !matches!(reply, Body::Reply(_, About::Nobody, _));
        let is_same = asker.incarnation.generation == hold.sender.generation;
        if is_waiting && asker.exists() && is_same {
            self.push(Message::new(from, to, reply));
        }
    }

    /// Whether a batch, or an answer to it, is under way to somebody who can take it.
    pub(super) fn is_batch_under_way(&self, request: usize, batch: usize) -> bool {
        self.messages.iter().any(|message| {
            let is_about = matches!(
                message.about(),
                About::Batch { request: r, batch: b, .. } if (*r, *b) == (request, batch)
            );
            is_about && self.nodes[message.to].exists()
        })
    }

    pub(super) fn is_done_under_way(&self, from: usize, trace: usize) -> bool {
        let id = self.plan.traces[trace].id.0;
        self.messages.iter().any(|message| {
            let Body::Done(done) = &message.body else { return false };
            message.from == from && done.iter().any(|done| done.trace_id[..] == id)
        })
    }

    /// A node's process ended: what was under way to it goes nowhere.
    pub(super) fn forget_messages_to(&mut self, node: usize) {
        let is_for_a_sink = |message: &Message| message.kind() == Kind::Export;
        self.messages.retain(|message| message.to != node || is_for_a_sink(message));
    }

    /// Nobody waits any more for a batch, or for any of a request: Holds still arrive, answers are
    /// not heard.
    pub(super) fn forget_messages_about(&mut self, request: usize, batch: Option<usize>) {
        let is_about = |about: &About| {
            matches!(about, About::Batch { request: r, batch: b, .. }
                if *r == request && batch.is_none_or(|batch| batch == *b))
        };
        self.messages.retain_mut(|message| match &message.body {
            Body::Hold(hold, about) if is_about(about) => {
                let body = Body::Hold(hold.clone(), About::Nobody);
                *message = Message::new(message.from, message.to, body);
                true
            }
            Body::Reply(_, about, _) => !is_about(about),
            _ => true,
        });
    }
}
