//! What must have become of every span: the model, indexed from the history.
//!
//! The invariant: spans are sorted by number and each stands once, however often it was sent, so a
//! trace is a range of them; an export lists its spans as indices here. Nothing is judged here. It
//! is bounded by the history.

use super::faults::Faults;
use super::licence::STEP_MAX;
use super::lives::Lives;
use super::views::{Dropped, HoldersOf, NodeSet, ViewIndex, Views};
use crate::history::{Answer, Entry, History, RequestNumber, SinkSaid, SpanNumber, What};
use crate::plan::{Millis, NodeNumber};
use std::collections::BTreeMap;
use std::ops::Range;

/// A promise that was made to a client: these spans are held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    /// When the request was sent that was then accepted.
    pub(super) sent: Millis,
    /// When it was made.
    pub(super) at: Millis,
    /// By whom.
    pub(super) entry: NodeNumber,
    /// The hash of its view then.
    view: Option<u64>,
}

/// One span, however often it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneSpan {
    pub(super) number: SpanNumber,
    /// When a client first sent it; never, if none did.
    pub(super) sent: Option<Millis>,
    /// The first promise and the last.
    pub(super) promised: Option<(Promise, Promise)>,
    /// The first export that a sink kept.
    pub(super) kept: Option<usize>,
    /// A sink refused it for good: it is a dead letter.
    pub(super) refused: bool,
}

/// A sink was given spans.
#[derive(Clone, Debug)]
pub(super) struct OneExport {
    pub(super) at: Millis,
    pub(super) node: NodeNumber,
    pub(super) trace: u32,
    pub(super) spans: Vec<u32>,
    pub(super) late: bool,
    pub(super) kept: bool,
    pub(super) said: SinkSaid,
    /// When the node hears that, if it still lives.
    pub(super) heard_at: Millis,
}

/// A request over all times that it was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct OneRequest {
    pub(super) offered: Millis,
    pub(super) span_count: u64,
    /// To whom and when it was sent.
    pub(super) sent: Vec<(Millis, NodeNumber)>,
    pub(super) told: Vec<(Millis, NodeNumber, Answer)>,
    /// In which view it was accepted.
    views: BTreeMap<(Millis, NodeNumber), u64>,
    pub(super) gave_up: Option<Millis>,
}

impl OneRequest {
    pub(super) fn accepted(&self) -> Option<(Millis, NodeNumber)> {
        let told = self.told.iter().find(|told| told.2 == Answer::Accepted);
        told.map(|(at, node, _)| (*at, *node))
    }
}

/// One trace: which spans it has in [`Model::spans`], and its slot's exports.
#[derive(Clone, Debug)]
pub(super) struct OneTrace {
    pub(super) number: u32,
    pub(super) spans: Range<usize>,
    /// Exports of it, in order.
    pub(super) exports: Vec<usize>,
}

/// The history, indexed.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) history: &'a History,
    pub(super) lives: Lives,
    pub(super) views: Views,
    pub(super) faults: Faults<'a>,
    pub(super) requests: BTreeMap<RequestNumber, OneRequest>,
    pub(super) spans: Vec<OneSpan>,
    pub(super) traces: Vec<OneTrace>,
    pub(super) exports: Vec<OneExport>,
    /// What sinks got that no client ever offered: node, when, which.
    pub(super) invented: Vec<(Millis, NodeNumber, SpanNumber)>,
    /// Members that somebody dropped although they lived and, where messages passed, did not leave.
    pub(super) dropped: Vec<Dropped>,
}

impl<'a> Model<'a> {
    pub(super) fn new(history: &'a History) -> Self {
        let (lives, views) = (Lives::new(history), Views::new(history));
        let faults = Faults::new(history);
        let mut model = Self {
            history,
            dropped: views.dropped(&lives, &faults),
            lives,
            views,
            faults,
            requests: BTreeMap::new(),
            spans: Vec::new(),
            traces: Vec::new(),
            exports: Vec::new(),
            invented: Vec::new(),
        };
        model.read_requests();
        model.read_exports();
        model
    }

    fn read_requests(&mut self) {
        let mut contents: BTreeMap<RequestNumber, &[SpanNumber]> = BTreeMap::new();
        for Entry { at, what } in &self.history.entries {
            match what {
                What::Offered { request, spans } => {
                    contents.insert(*request, spans);
                    let span_count = spans.len() as u64;
                    let new = OneRequest { offered: *at, span_count, ..Default::default() };
                    self.requests.insert(*request, new);
                }
                What::Sent { request, node } => {
                    self.requests.entry(*request).or_default().sent.push((*at, *node));
                }
                What::Told { request, node, answer, view } => {
                    let request = self.requests.entry(*request).or_default();
                    request.told.push((*at, *node, *answer));
                    if let (Answer::Accepted, Some(view)) = (answer, view) {
                        request.views.insert((*at, *node), *view);
                    }
                }
                What::GaveUp { request } => {
                    self.requests.entry(*request).or_default().gave_up = Some(*at);
                }
                _ => {}
            }
        }
        let mut numbers: Vec<SpanNumber> = contents.values().copied().flatten().copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let new =
            |number| OneSpan { number, sent: None, promised: None, kept: None, refused: false };
        self.spans = numbers.into_iter().map(new).collect();
        for (request, numbers) in contents {
            self.promise(request, numbers);
        }
        let mut first = 0;
        for spans in self.spans.chunk_by(|one, other| one.number.trace == other.number.trace) {
            let end = first + spans.len();
            let number = spans[0].number.trace;
            self.traces.push(OneTrace { number, spans: first..end, exports: Vec::new() });
            first = end;
        }
    }

    /// Writes down for the spans of a request when they were sent, and what was promised.
    fn promise(&mut self, request: RequestNumber, numbers: &[SpanNumber]) {
        let Some(request) = self.requests.get(&request) else { return };
        let first_sent = request.sent.first().map(|sent| sent.0);
        let accepted = request.told.iter().filter(|told| told.2 == Answer::Accepted);
        let promises: Vec<Promise> = accepted
            .map(|(at, entry, _)| {
                let sent = request.sent.iter().rev().find(|sent| sent.1 == *entry && sent.0 <= *at);
                let view = request.views.get(&(*at, *entry)).copied();
                Promise { sent: sent.map_or(*at, |sent| sent.0), at: *at, entry: *entry, view }
            })
            .collect();
        for number in numbers {
            let index = self.spans.binary_search_by_key(number, |span| span.number);
            let Ok(index) = index else { continue };
            let span = &mut self.spans[index];
            span.sent = span.sent.into_iter().chain(first_sent).min();
            for promise in &promises {
                let (first, last) = span.promised.unwrap_or((*promise, *promise));
                let first = if promise.at < first.at { *promise } else { first };
                let last = if promise.at > last.at { *promise } else { last };
                span.promised = Some((first, last));
            }
        }
    }

    fn read_exports(&mut self) {
        for Entry { at, what } in &self.history.entries {
            let What::Export { node, spans, late, kept, said, heard_at } = what else { continue };
            let Some(trace) = spans.first().map(|span| span.trace) else { continue };
            let number = self.exports.len();
            let mut indices = Vec::with_capacity(spans.len());
            for span in spans {
                match self.spans.binary_search_by_key(span, |span| span.number) {
                    Ok(index) if span.trace == trace => {
                        let known = &mut self.spans[index];
                        if *kept {
                            known.kept = known.kept.or(Some(number));
                        }
                        known.refused |= *said == SinkSaid::Refused;
                        indices.push(index as u32);
                    }
                    _ => self.invented.push((*at, *node, *span)),
                }
            }
            if let Ok(index) = self.traces.binary_search_by_key(&trace, |trace| trace.number) {
                self.traces[index].exports.push(number);
            }
            self.exports.push(OneExport {
                at: *at,
                node: *node,
                trace,
                spans: indices,
                late: *late,
                kept: *kept,
                said: *said,
                heard_at: *heard_at,
            });
        }
    }

    /// A trace by its number; none if no client ever offered it.
    pub(super) fn trace(&self, number: u32) -> Option<&OneTrace> {
        let index = self.traces.binary_search_by_key(&number, |trace| trace.number).ok()?;
        Some(&self.traces[index])
    }

    /// The spans of a trace.
    pub(super) fn spans_of(&self, trace: &OneTrace) -> &[OneSpan] {
        &self.spans[trace.spans.clone()]
    }

    /// The exports of a trace that a sink kept, in order.
    pub(super) fn kept_of(&self, trace: &OneTrace) -> impl Iterator<Item = usize> {
        trace.exports.iter().copied().filter(|number| self.exports[*number].kept)
    }

    /// The view by which a promise was made.
    pub(super) fn view_of(&self, promise: &Promise) -> Option<ViewIndex> {
        // Several views may have come in the step in which the answer was given.
        let since = Millis(promise.at.0.saturating_sub(STEP_MAX));
        let mut recent = self.views.of_within(promise.entry, since, promise.at);
        let named = recent.find(|view| Some(self.views.seen(*view).hash) == promise.view);
        named.or_else(|| self.views.at(promise.entry, promise.at))
    }

    /// Who had to hold a trace by a view.
    pub(super) fn holders(&self, trace: u32, set: NodeSet) -> Option<HoldersOf> {
        let (owner, replica) = self.views.holders(self.views.slot(trace), set)?;
        Some((owner, replica.filter(|_| self.history.plan.cluster.replicas > 0)))
    }

    /// Spans that the nodes which lived at the end say that they hold.
    pub(super) fn held(&self) -> u64 {
        self.history.last_looks.values().flat_map(|look| look.held).sum()
    }

    /// The sum of a counter over the last looks, over all its labels.
    pub(super) fn counted(&self, name: &str) -> u64 {
        let nodes = self.history.last_looks.keys();
        nodes.map(|node| self.counted_by(*node, name)).sum()
    }

    /// A counter of one node at its last look, over all its labels.
    pub(super) fn counted_by(&self, node: NodeNumber, name: &str) -> u64 {
        let look = self.history.last_looks.get(&node);
        look.map_or(0, |look| sum(&look.counters, name))
    }

    /// The same over all its lives.
    pub(super) fn ever_counted_by(&self, node: NodeNumber, name: &str) -> u64 {
        let former = self.history.former_counters.get(&node);
        self.counted_by(node, name) + former.map_or(0, |former| sum(former, name))
    }
}

/// The sum of a counter over all its labels.
fn sum(counters: &BTreeMap<String, u64>, name: &str) -> u64 {
    let is_it = |key: &str| {
        key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
    };
    counters.iter().filter(|(key, _)| is_it(key)).map(|(_, count)| count).sum()
}
