//! The frames of a request's batches, and what their replies say together.
//!
//! Pure, so that a node's shell and an explorer of the protocol share it. The invariant: a batch
//! counts as held by a target only when *all* its frames were answered by one incarnation. Who gets
//! which traces is decided by [`entry`](crate::entry).

use crate::assemble::outgoing::NAMES_BYTES_MAX;
use crate::cut::{Cut, span_key};
use crate::entry::{Content, Mark, Outcome, Send};
use crate::frame::{Hold, HoldReply, HoldTrace, Origin, Sender, milliseconds, trace_id_bytes};
use crate::shard::HoldPart;
use crate::shard::trace::SpanKey;
use crate::split::{Part, Targets, split};
use std::time::Duration;
use tracemesh_membership::{HashKey, NodeId};

/// What the frames of a node's batches depend on besides the request.
#[derive(Clone, Copy, Debug)]
pub struct Batching<'a> {
    /// This node.
    pub me: &'a NodeId,
    /// What frames say of it.
    pub sender: Sender,
    /// The secret of span keys.
    pub hash_key: &'a HashKey,
    /// Until a trace without a root is due.
    pub age_max: Duration,
    /// The most bytes of spans in one frame.
    pub frame_bytes_max: usize,
}

/// A frame was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// Too much is under way to that peer: no silence, so nobody goes around it.
    Busy,
    /// It made no progress, or cannot be reached.
    Silence,
}

impl Batching<'_> {
    /// The frames of each of `sends`; none where the target is this node.
    pub fn holds(&self, cut: &Cut, sends: &[Send]) -> Vec<Vec<Hold>> {
        let is_split = |send: &&Send| send.content == Content::Bytes && send.target != *self.me;
        let mut parts = self.split(cut, sends.iter().filter(is_split)).into_iter();
        let frames = |send: &Send| {
            if send.target == *self.me {
                Vec::new()
            } else if send.content == Content::Names {
                let hold = |traces| Hold { traces, ..self.hold(send.mark) };
                self.names(cut, &send.traces).into_iter().map(hold).collect()
            } else {
                let parts = parts.next().unwrap_or_default().into_iter();
                let ids_end = cut.scan().ids_end;
                let hold =
                    |part: Part| Hold { request: part.request, ids_end, ..self.hold(send.mark) };
                parts.map(hold).collect()
            }
        };
        sends.iter().map(frames).collect()
    }

    /// A Hold that says nothing yet.
    pub fn hold(&self, mark: Mark) -> Hold {
        Hold {
            sender: self.sender,
            origin: Origin::Entry.into(),
            marked: mark == Mark::Marked,
            due_in_ms: milliseconds(self.age_max),
            ..Default::default()
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
        split(cut.request(), cut.scan(), usize::from(count), &targets, self.frame_bytes_max)
    }

    /// By frames. Names of one trace stay together: it takes half a million to be too many.
    fn names(&self, cut: &Cut, traces: &[u32]) -> Vec<Vec<HoldTrace>> {
        let name = |trace: u32| HoldTrace {
            trace_id: trace_id_bytes(cut.trace_id(trace)),
            due_in_ms: milliseconds(self.age_max),
            names: cut
                .spans(trace)
                .map(|span| span_key(self.hash_key, span.span_id, span.kind))
                .map(SpanKey::name)
                .collect(),
            ..Default::default()
        };
        let mut frames = vec![Vec::new()];
        let mut bytes = 0;
        for named in traces.iter().copied().map(name) {
            bytes += named.bytes();
            if bytes > NAMES_BYTES_MAX {
                bytes = named.bytes();
                frames.push(Vec::new());
            }
            frames.last_mut().expect("there is one from the start").push(named);
        }
        frames
    }
}

/// What the batch that a node holds itself says of its traces.
pub fn own_part(mark: Mark, view_hash: u64, age_max: Duration) -> HoldPart {
    HoldPart { origin: Origin::Entry, marked: mark == Mark::Marked, view_hash, due_in: age_max }
}

/// What all frames of a batch say together.
pub fn merge(replies: impl IntoIterator<Item = Result<HoldReply, NoReply>>) -> Outcome {
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
            Err(NoReply::Busy) => return Outcome::Full,
            Err(NoReply::Silence) => return Outcome::Silent,
        }
    }
    incarnation.map_or(Outcome::Silent, Outcome::Held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ReplyTrace;
    use crate::scan::scan;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;
    use tracemesh_membership::Incarnation;

    #[test]
    fn what_frames_of_a_batch_say_together() {
        let held = |generation| {
            let sender = Sender { generation, ..Sender::default() };
            Ok(HoldReply { sender, ..HoldReply::default() })
        };
        let full = || Ok(HoldReply { full: true, ..HoldReply::default() });
        let wanted = || {
            let trace = ReplyTrace { wanted: vec![4], ..ReplyTrace::default() };
            Ok(HoldReply { traces: vec![trace], ..HoldReply::default() })
        };
        let incarnation = Incarnation { generation: 1, epoch: 0 };
        let cases = [
            (vec![held(1), held(1)], Outcome::Held(incarnation)),
            // It was started again in between: what the first frame brought is gone.
            (vec![held(1), held(2)], Outcome::Wanted),
            (vec![held(1), wanted()], Outcome::Wanted),
            (vec![held(1), full()], Outcome::Full),
            // The peer lives, and its client comes back; going around it would only move the load.
            (vec![held(1), Err(NoReply::Busy)], Outcome::Full),
            (vec![held(1), Err(NoReply::Silence)], Outcome::Silent),
            (vec![], Outcome::Silent),
        ];
        for (replies, outcome) in cases {
            assert_eq!(merge(replies.clone()), outcome, "{replies:?}");
        }
    }

    #[test]
    fn names_of_many_traces_are_cut_into_frames_and_none_is_missing() {
        let span = |number: u32| Span {
            trace_id: u128::from(number + 1).to_be_bytes().to_vec(),
            span_id: vec![1; 8],
            ..Span::default()
        };
        let scope_spans =
            vec![ScopeSpans { spans: (0..20_000).map(span).collect(), ..Default::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
        let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let key = HashKey([7; 16]);
        let cut = Cut::new(request.clone().into(), scan(&request).unwrap(), &key);
        let batching = Batching {
            me: &"a".into(),
            sender: Sender::default(),
            hash_key: &key,
            age_max: Duration::from_secs(30),
            frame_bytes_max: 4 << 20,
        };
        let send = Send {
            batch: 0,
            target: "b".into(),
            mark: Mark::Marked,
            content: Content::Names,
            traces: (0..20_000).collect(),
        };
        let bytes = Send { content: Content::Bytes, ..send.clone() };
        let ids_end = cut.scan().ids_end;
        let holds = batching.holds(&cut, &[bytes]).remove(0);
        assert!(!holds.is_empty() && holds.iter().all(|hold| hold.ids_end == ids_end));
        assert!(ids_end > 0);
        let holds = batching.holds(&cut, &[send]).remove(0);
        assert!(holds.len() > 1);
        assert!(holds.iter().all(|hold| hold.encoded_len() <= 2 * NAMES_BYTES_MAX && hold.marked));
        let named = holds.iter().flat_map(|hold| &hold.traces);
        let ids: std::collections::BTreeSet<_> = named.map(|trace| &trace.trace_id).collect();
        assert_eq!(ids.len(), 20_000);
    }
}
