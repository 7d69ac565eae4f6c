//! A sink of the test's own: it takes what nodes export, and counts what it has.
//!
//! It shares no code with the nodes or with `tracemesh load`, and knows nothing of what was sent.
//! The invariant: it has every span of a request that it took, whatever it answered. A span is
//! *twice* there when it came again after the sink had acknowledged it.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tonic::Status;
use tracemesh_tests::grpc::{Answer, Server};

/// How a sink answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It says what it has.
    Honest,
    /// It keeps one in so many requests and says that it did not, or says nothing, in turn.
    Lying(u64),
}

/// An OTLP sink that can be down.
pub(crate) struct Sink {
    address: String,
    manner: Manner,
    kept: Arc<Mutex<Kept>>,
    /// None while it is down.
    server: Option<Server>,
}

#[derive(Default)]
struct Kept {
    request_count: u64,
    lie_count: u64,
    traces: HashMap<Vec<u8>, Trace>,
}

/// What is there of a trace.
#[derive(Default)]
struct Trace {
    /// For each span how often its arrival was acknowledged.
    spans: HashMap<Vec<u8>, u32>,
    /// Requests that brought a new span of it.
    parts: u32,
}

/// What a sink has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Traces.
    pub(crate) traces: u64,
    /// Distinct spans.
    pub(crate) spans: u64,
    /// Traces with a span that came again after it had been acknowledged.
    pub(crate) traces_twice: u64,
    /// Traces whose spans came in more than one request.
    pub(crate) traces_in_parts: u64,
    /// Requests that were kept and not acknowledged.
    pub(crate) lies: u64,
}

impl Sink {
    /// Listens at `address`.
    pub(crate) fn start(address: String, manner: Manner) -> Self {
        let mut sink = Self { address, manner, kept: Arc::default(), server: None };
        sink.open();
        sink
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Is down: nobody listens any more.
    pub(crate) fn close(&mut self) {
        self.server = None;
    }

    /// Is back, with all that it had.
    pub(crate) fn open(&mut self) {
        let (kept, manner) = (Arc::clone(&self.kept), self.manner);
        let take = move |request: Bytes| lock(&kept).on_request(request, manner);
        self.server = Some(Server::start(&self.address, take));
    }

    /// What it has now.
    pub(crate) fn found(&self) -> Found {
        lock(&self.kept).found()
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().expect("what nodes export can be read")
}

impl Kept {
    fn on_request(&mut self, request: Bytes, manner: Manner) -> Answer {
        self.request_count += 1;
        let answer = match manner {
            Manner::Lying(every) if self.request_count.is_multiple_of(every) => {
                self.lie_count += 1;
                match self.lie_count.is_multiple_of(2) {
                    true => Answer::None,
                    false => Answer::Refused(Status::unavailable("not now")),
                }
            }
            Manner::Honest | Manner::Lying(_) => Answer::Taken,
        };
        self.keep(request, u32::from(matches!(answer, Answer::Taken)));
        answer
    }

    fn keep(&mut self, request: Bytes, acknowledged: u32) {
        let request = ExportTraceServiceRequest::decode(request).expect("nodes export OTLP");
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let mut came = HashMap::<_, Vec<_>>::new();
        for span in scopes.flat_map(|scope| scope.spans) {
            came.entry(span.trace_id).or_default().push(span.span_id);
        }
        for (trace_id, spans) in came {
            let trace = self.traces.entry(trace_id).or_default();
            let count = trace.spans.len();
            for span_id in spans {
                *trace.spans.entry(span_id).or_default() += acknowledged;
            }
            trace.parts += u32::from(trace.spans.len() > count);
        }
    }

    fn found(&self) -> Found {
        let count = |is: fn(&&Trace) -> bool| self.traces.values().filter(is).count() as u64;
        Found {
            traces: self.traces.len() as u64,
            spans: self.traces.values().map(|trace| trace.spans.len() as u64).sum(),
            traces_twice: count(|trace| trace.spans.values().any(|times| *times > 1)),
            traces_in_parts: count(|trace| trace.parts > 1),
            lies: self.lie_count,
        }
    }
}
