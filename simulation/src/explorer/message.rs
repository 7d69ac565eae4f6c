//! What is under way: between nodes, and between nodes and sinks.
//!
//! The network is a multiset of messages; which one arrives next is a choice. A message knows what
//! its answer is about, as a call of a real node does. The invariant: messages with equal content
//! are interchangeable, up to versions and the numbers of attempts, of which only counts whether
//! they are still the present ones: the world knows that.

use super::setting::{HASH_KEY, Plan};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use tracemesh::cut::span_key;
use tracemesh::frame::{DoneTrace, Hold, HoldReply};
use tracemesh::scan::scan_trusted;
use tracemesh::shard::Answer;
use tracemesh::spans::TraceId;

/// Something under way.
#[derive(Clone, Debug)]
pub struct Message {
    /// The node that sent it; for what sinks say, the node that is told.
    pub from: usize,
    /// The node that it is for; for what sinks are told, the node that tells.
    pub to: usize,
    /// What it says.
    pub body: Body,
    /// The hash of all that counts of it by itself.
    pub content: u64,
}

/// What a message says.
#[derive(Clone, Debug)]
pub enum Body {
    /// Spans to hold.
    Hold(Arc<Hold>, About),
    /// The answer, with the content of the Hold.
    Reply(Arc<HoldReply>, About, u64),
    /// Spans became done.
    Done(Vec<DoneTrace>),
    /// An attempt for a sink.
    Export(Export),
    /// What the sink said.
    Answer(Export, Answer),
}

/// An attempt for one sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// The trace, by number.
    pub trace: usize,
    /// Its spans, as bits.
    pub spans: u8,
    /// The sink.
    pub sink: u32,
    /// The number of the try.
    pub number: u32,
    /// The generation of the node that sent it.
    pub generation: u64,
}

/// What an answer is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// Nobody waits for it.
    Nobody,
    /// A frame of a batch of a request.
    Batch {
        /// The request.
        request: usize,
        /// Its batch.
        batch: usize,
        /// The frame of the batch.
        frame: usize,
    },
    /// Traces asked about, each with its version then; none when wanted spans were sent.
    Placing(Arc<[(TraceId, u32)]>),
}

/// The kinds of messages, for schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Body::Hold`].
    Hold,
    /// See [`Body::Reply`].
    Reply,
    /// See [`Body::Done`].
    Done,
    /// See [`Body::Export`].
    Export,
    /// See [`Body::Answer`].
    Answer,
}

impl Message {
    /// A message with its content hashed.
    pub fn new(from: usize, to: usize, body: Body) -> Self {
        let mut hasher = DefaultHasher::new();
        (from, to).hash(&mut hasher);
        body.hash(&mut hasher);
        Self { from, to, body, content: hasher.finish() }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::Hold(..) => Kind::Hold,
            Body::Reply(..) => Kind::Reply,
            Body::Done(_) => Kind::Done,
            Body::Export(_) => Kind::Export,
            Body::Answer(..) => Kind::Answer,
        }
    }

    /// What its answer, or it as an answer, is about.
    pub fn about(&self) -> &About {
        match &self.body {
            Body::Hold(_, about) | Body::Reply(_, about, _) => about,
            Body::Done(_) | Body::Export(_) | Body::Answer(..) => &About::Nobody,
        }
    }

    /// Whether it is between two nodes.
    pub fn is_between_nodes(&self) -> bool {
        !matches!(self.kind(), Kind::Export | Kind::Answer)
    }

    /// One line about it.
    pub fn tell(&self, plan: &Plan) -> String {
        let (from, to) = (plan.id(self.from), plan.id(self.to));
        match &self.body {
            Body::Hold(hold, about) => {
                let marked = if hold.marked { " marked" } else { "" };
                let bytes = tell_bytes(hold, plan);
                let names = hold.traces.iter().map(|trace| {
                    let (names, done) =
                        (tell_names(&trace.names, plan), tell_names(&trace.done, plan));
                    format!(" names {names} done {done}")
                });
                let names: String = names.collect();
                format!("Hold{marked} {from}→{to}{bytes}{names}, {}", about.tell())
            }
            Body::Reply(reply, about, _) => {
                let said = reply.traces.iter().map(|trace| {
                    let wanted = tell_names(&trace.wanted, plan);
                    let done = tell_names(&trace.done, plan);
                    format!(" wants {wanted} done {done} {:?}", trace.verdict())
                });
                let said: String = said.collect();
                let whose = reply.sender.incarnation();
                format!("reply {from}({whose})→{to}{said}, {}", about.tell())
            }
            Body::Done(done) => format!("Done {from}→{to} of {} traces", done.len()),
            Body::Export(export) => format!("{} from {from}", export.tell()),
            Body::Answer(export, answer) => format!("{answer:?} to {to} about {}", export.tell()),
        }
    }
}

impl Export {
    /// What it is.
    pub fn tell(&self) -> String {
        let Self { trace, spans, sink, number, .. } = self;
        format!("trace {trace} spans {spans:b}, try {number} at sink {sink}")
    }
}

impl About {
    fn tell(&self) -> String {
        match self {
            Self::Nobody => "nobody waits".to_owned(),
            Self::Batch { request, batch, frame } => {
                format!("request {request} batch {batch} frame {frame}")
            }
            Self::Placing(asked) => format!("placing, {} traces asked about", asked.len()),
        }
    }
}

impl Hash for About {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match self {
            Self::Nobody => 0_u8.hash(hasher),
            Self::Batch { request, batch, frame } => (1_u8, request, batch, frame).hash(hasher),
            Self::Placing(asked) => {
                2_u8.hash(hasher);
                asked.iter().for_each(|(id, _)| id.hash(hasher));
            }
        }
    }
}

impl Hash for Body {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match self {
            Self::Hold(hold, about) => {
                hash_hold(hold, hasher);
                about.hash(hasher);
            }
            Self::Reply(reply, about, question) => {
                let sender = &reply.sender;
                (1_u8, sender.view_hash, sender.incarnation(), reply.full).hash(hasher);
                for trace in &reply.traces {
                    (&trace.trace_id[..], &trace.wanted, &trace.done, trace.verdict).hash(hasher);
                }
                (about, question).hash(hasher);
            }
            Self::Done(done) => {
                2_u8.hash(hasher);
                for trace in done {
                    (&trace.trace_id[..], trace.verdict, trace.sum).hash(hasher);
                }
            }
            Self::Export(export) => {
                (3_u8, export.trace, export.spans, export.sink, export.generation).hash(hasher);
            }
            Self::Answer(export, answer) => {
                (4_u8, export.trace, export.spans, export.sink, export.generation).hash(hasher);
                match answer {
                    Answer::Acknowledged => 0_u8.hash(hasher),
                    Answer::Refused => 1_u8.hash(hasher),
                    Answer::Again { after } => (2_u8, after).hash(hasher),
                    Answer::Unanswered => 3_u8.hash(hasher),
                }
            }
        }
    }
}

/// Durations count only as over or not: what they are measured against is an order, too.
fn hash_hold(hold: &Hold, hasher: &mut impl Hasher) {
    (0_u8, hold.sender.view_hash, hold.sender.incarnation()).hash(hasher);
    (hold.origin, hold.marked, hold.due_in_ms == 0, &hold.request[..]).hash(hasher);
    for trace in &hold.traces {
        (&trace.trace_id[..], trace.due_in_ms == 0, trace.verdict).hash(hasher);
        (&trace.names, &trace.done).hash(hasher);
    }
}

fn tell_names(names: &[u64], plan: &Plan) -> String {
    let all = plan.traces.first().map_or(&[][..], |trace| &trace.names);
    let bit = |name: &u64| all.iter().position(|known| known == name).map_or(0, |at| 1 << at);
    format!("{:b}", names.iter().map(bit).fold(0, |bits: u8, bit| bits | bit))
}

fn tell_bytes(hold: &Hold, plan: &Plan) -> String {
    let Ok(scan) = scan_trusted(&hold.request, hold.ids_end) else { return " garbage".to_owned() };
    let traces = scan.traces.iter().enumerate().map(|(number, trace)| {
        let spans = scan.spans.iter().filter(|span| span.trace as usize == number);
        let keys = spans.map(|span| span_key(&HASH_KEY, span.span_id, span.kind).name());
        let names = tell_names(&keys.collect::<Vec<_>>(), plan);
        let trace = plan.trace(trace.id).unwrap_or_default();
        format!(" trace {trace} spans {names}")
    });
    traces.collect()
}
