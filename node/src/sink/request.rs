//! Builds OTLP export requests out of raw spans.
//!
//! A request carries the spans of many attempts. Each resource and each scope appears in it once,
//! by identity (equal ones of a node are the same allocation), in order of first appearance, so the
//! same attempts give the same bytes. Nothing is decoded: fields and spans are copied as they came,
//! with exact lengths into one allocation.
//!
//! The invariant: the spans of the requests together are the spans of the attempts. A request has
//! at most `bytes_max` bytes, unless a single span with its resource and scope is larger.

use super::Attempt;
use crate::spans::{Chunk, Resource, Scope};
use crate::wire::{framed_length, put_varint, varint};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use std::sync::Arc;

/// `ExportTraceServiceRequest.resource_spans`, length-delimited.
const RESOURCE_SPANS: u8 = 1 << 3 | 2;
/// `ResourceSpans.scope_spans`, length-delimited.
const SCOPE_SPANS: u8 = 2 << 3 | 2;

/// Most that the tag and length of a nested message take: messages are shorter than 2^35 bytes.
const FRAMING_BYTES_MAX: usize = 1 + 5;

/// What is left of a request while attempts are gathered for it.
///
/// It reckons with the longest framing, so what fits here fits when encoded.
pub(crate) struct Room {
    bytes: usize,
    bytes_max: usize,
    /// Addresses, as in `resources`; never walked.
    scopes: HashSet<usize>,
    resources: HashSet<usize>,
}

impl Room {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max, scopes: HashSet::new(), resources: HashSet::new() }
    }

    /// Takes the room of an attempt. False when the request is over its size with it: then it is
    /// closed, and the attempt belongs into the next.
    pub(crate) fn take(&mut self, attempt: &Attempt) -> bool {
        attempt.chunks.iter().all(|chunk| self.take_spans(&chunk.scope, chunk.spans.len()))
    }

    fn take_spans(&mut self, scope: &Arc<Scope>, span_bytes: usize) -> bool {
        self.bytes += span_bytes;
        if self.scopes.insert(address(scope)) {
            self.bytes += FRAMING_BYTES_MAX + scope.fields.len();
            if self.resources.insert(address(&scope.resource)) {
                self.bytes += FRAMING_BYTES_MAX + scope.resource.fields.len();
            }
        }
        self.bytes <= self.bytes_max
    }
}

/// Encodes attempts: as one request when they fit into it, else as several, cut span by span.
pub(crate) fn encode(attempts: &[Arc<Attempt>], bytes_max: usize) -> Vec<Bytes> {
    encode_into(attempts, bytes_max, Vec::new())
}

/// The same with memory that was used before, because fresh one costs as much as filling it.
pub(super) fn encode_into(
    attempts: &[Arc<Attempt>],
    bytes_max: usize,
    buffer: Vec<u8>,
) -> Vec<Bytes> {
    let plan = Plan::of(attempts);
    if plan.length() <= bytes_max {
        return vec![plan.encode(buffer)];
    }
    split(attempts, bytes_max)
}

/// Encodes attempts as one request, whatever its size.
pub(super) fn encode_whole(attempts: &[Arc<Attempt>]) -> Bytes {
    Plan::of(attempts).encode(Vec::new())
}

fn chunks(attempts: &[Arc<Attempt>]) -> impl Iterator<Item = &Chunk> {
    attempts.iter().flat_map(|attempt| &attempt.chunks)
}

fn split(attempts: &[Arc<Attempt>], bytes_max: usize) -> Vec<Bytes> {
    let mut requests = Vec::new();
    let mut plan = Plan::default();
    let mut room = Room::new(bytes_max);
    for chunk in chunks(attempts) {
        for span in Spans(&chunk.spans) {
            if !room.take_spans(&chunk.scope, span.len()) && !plan.resources.is_empty() {
                requests.push(std::mem::take(&mut plan).encode(Vec::new()));
                room = Room::new(bytes_max);
                room.take_spans(&chunk.scope, span.len());
            }
            plan.add(&chunk.scope, span);
        }
    }
    requests.push(plan.encode(Vec::new()));
    requests
}

/// Encodes one attempt in the simplest way, chunk by chunk: for the dead letter of one that
/// [`encode`] or a server could not take. Looks at nothing, so there is nothing to fail.
pub(super) fn raw(attempt: &Attempt) -> Vec<u8> {
    let mut request = Vec::new();
    for Chunk { scope, spans } in &attempt.chunks {
        let scope_bytes = scope.fields.len() + spans.len();
        let resource_fields = &scope.resource.fields;
        put_header(
            &mut request,
            RESOURCE_SPANS,
            resource_fields.len() + framed_length(scope_bytes),
        );
        request.extend_from_slice(resource_fields);
        put_header(&mut request, SCOPE_SPANS, scope_bytes);
        request.extend_from_slice(&scope.fields);
        request.extend_from_slice(spans);
    }
    request
}

/// The spans of one request, by scope and resource.
#[derive(Default)]
struct Plan<'a> {
    resources: Vec<ResourcePart<'a>>,
    scopes: Vec<ScopePart<'a>>,
    /// Address → index into `resources`; only looked up in, never walked.
    resource_index: HashMap<usize, usize>,
    /// Address → index into `scopes`; only looked up in, never walked.
    scope_index: HashMap<usize, usize>,
}

struct ResourcePart<'a> {
    resource: &'a Resource,
    /// Indices into `Plan::scopes`.
    scopes: Vec<usize>,
}

struct ScopePart<'a> {
    scope: &'a Scope,
    spans: Vec<&'a [u8]>,
    /// Length of the `ScopeSpans` message.
    bytes: usize,
}

impl<'a> Plan<'a> {
    fn of(attempts: &'a [Arc<Attempt>]) -> Self {
        let mut plan = Self::default();
        chunks(attempts).for_each(|chunk| plan.add(&chunk.scope, &chunk.spans));
        plan
    }

    fn add(&mut self, scope: &'a Arc<Scope>, spans: &'a [u8]) {
        let index = match self.scope_index.get(&address(scope)) {
            Some(index) => *index,
            None => self.add_scope(scope),
        };
        let part = &mut self.scopes[index];
        part.bytes += spans.len();
        part.spans.push(spans);
    }

    fn add_scope(&mut self, scope: &'a Arc<Scope>) -> usize {
        let index = self.scopes.len();
        self.scopes.push(ScopePart { scope, spans: Vec::new(), bytes: scope.fields.len() });
        self.scope_index.insert(address(scope), index);
        let resources = &mut self.resources;
        let resource = *self.resource_index.entry(address(&scope.resource)).or_insert_with(|| {
            resources.push(ResourcePart { resource: &scope.resource, scopes: Vec::new() });
            resources.len() - 1
        });
        self.resources[resource].scopes.push(index);
        index
    }

    fn encode(&self, buffer: Vec<u8>) -> Bytes {
        let mut request = buffer;
        request.clear();
        request.reserve_exact(self.length());
        for part in &self.resources {
            let length = self.resource_length(part);
            put_header(&mut request, RESOURCE_SPANS, length);
            request.extend_from_slice(&part.resource.fields);
            for scope in part.scopes.iter().map(|index| &self.scopes[*index]) {
                put_header(&mut request, SCOPE_SPANS, scope.bytes);
                request.extend_from_slice(&scope.scope.fields);
                scope.spans.iter().for_each(|spans| request.extend_from_slice(spans));
            }
        }
        Bytes::from(request)
    }

    /// Length of the request.
    fn length(&self) -> usize {
        self.resources.iter().map(|part| framed_length(self.resource_length(part))).sum()
    }

    /// Length of a `ResourceSpans` message.
    fn resource_length(&self, part: &ResourcePart<'_>) -> usize {
        let scopes = part.scopes.iter().map(|index| framed_length(self.scopes[*index].bytes));
        part.resource.fields.len() + scopes.sum::<usize>()
    }
}

/// Walks `ScopeSpans.spans` fields. What cannot be walked is one last piece, so nothing is lost.
struct Spans<'a>(&'a [u8]);

impl<'a> Iterator for Spans<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = varint(&self.0[1..])
            .ok()
            .and_then(|(length, count)| usize::try_from(length).ok()?.checked_add(1 + count))
            .filter(|end| *end <= self.0.len())
            .unwrap_or(self.0.len());
        let (span, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(span)
    }
}

fn address<T>(shared: &Arc<T>) -> usize {
    Arc::as_ptr(shared).addr()
}

fn put_header(request: &mut Vec<u8>, tag: u8, length: usize) {
    request.push(tag);
    put_varint(request, length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::{attempt, decode, resource, scope, span_ids, spans};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use proptest::prelude::*;
    use prost::Message;

    /// Attempts over few resources and scopes, several chunks each.
    fn attempts() -> impl Strategy<Value = Vec<Arc<Attempt>>> {
        let chunk = (0..3usize, 0..3usize, 1..5usize, 0..200usize);
        let trace = prop::collection::vec(chunk, 1..5);
        prop::collection::vec(trace, 1..12).prop_map(|traces| {
            let resources: Vec<_> = (0..3).map(resource).collect();
            let scopes: Vec<Vec<_>> = resources
                .iter()
                .map(|resource| (0..3).map(|n| scope(resource, n)).collect())
                .collect();
            let build = |(trace, chunks): (usize, Vec<(usize, usize, usize, usize)>)| {
                let chunks = chunks.into_iter().enumerate().map(|(n, (r, s, count, padding))| {
                    let first = 1 + 1000 * trace as u64 + 10 * n as u64;
                    (scopes[r][s].clone(), spans(trace as u8 + 1, first, count, padding))
                });
                attempt(trace as u8 + 1, chunks.collect())
            };
            traces.into_iter().enumerate().map(build).collect()
        })
    }

    proptest! {
        #[test]
        fn requests_together_hold_the_spans_of_their_attempts(
            attempts in attempts(), bytes_max in 1..5000usize,
        ) {
            let wanted = span_ids(&attempts.iter().map(|a| raw(a).into()).collect::<Vec<_>>());
            let requests = encode(&attempts, bytes_max);
            prop_assert_eq!(span_ids(&requests), wanted);
            for request in &requests {
                let decoded = decode(request);
                let one_span = span_ids(std::slice::from_ref(request)).len() == 1;
                prop_assert!(request.len() <= bytes_max || one_span);
                prop_assert_eq!(decoded.encoded_len(), request.len(), "lengths are minimal");
            }
        }

        #[test]
        fn each_resource_and_scope_appears_once(attempts in attempts()) {
            let requests = encode(&attempts, usize::MAX);
            prop_assert_eq!(requests.len(), 1);
            let decoded = decode(&requests[0]);
            let mut resources: Vec<_> = decoded.resource_spans.iter().map(|r| {
                (r.resource.clone().unwrap().encode_to_vec(), r.schema_url.clone())
            }).collect();
            let count = resources.len();
            resources.sort();
            resources.dedup();
            prop_assert_eq!(resources.len(), count);
            for resource in decoded.resource_spans {
                let mut names: Vec<_> = resource.scope_spans.iter()
                    .map(|s| s.scope.clone().unwrap().name).collect();
                let count = names.len();
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), count);
            }
        }

        #[test]
        fn garbage_spans_are_copied_whole(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
            let chunk = (scope(&resource(0), 0), garbage.clone());
            let attempt = attempt(1, vec![chunk]);
            let pieces: Vec<u8> = Spans(&garbage).flatten().copied().collect();
            prop_assert_eq!(pieces, garbage);
            encode(&[attempt], 10);
        }
    }

    #[test]
    fn order_is_that_of_first_appearance_whatever_the_addresses() {
        let resources: Vec<_> = (0..20).map(resource).collect();
        let attempts: Vec<_> = (0..20u8)
            .map(|n| {
                attempt(n + 1, vec![(scope(&resources[usize::from(n)], 0), spans(n + 1, 1, 1, 0))])
            })
            .collect();
        let decoded = decode(&encode(&attempts, usize::MAX)[0]);
        let urls: Vec<_> = decoded.resource_spans.iter().map(|r| r.schema_url.clone()).collect();
        let wanted: Vec<_> = (0..20).map(|n| format!("resource-{n}")).collect();
        assert_eq!(urls, wanted);
    }

    #[test]
    fn unknown_fields_of_resource_and_scope_survive() {
        let unknown = [0xfa, 0x07, 3, b'n', b'e', b'w'];
        let fields = |known: &[u8]| [known, &unknown].concat().into_boxed_slice();
        let resource = Arc::new(Resource { fields: fields(&resource(1).fields) });
        let scope_fields = fields(&scope(&resource, 2).fields);
        let scope = Arc::new(Scope { resource: resource.clone(), fields: scope_fields });
        let attempt = attempt(1, vec![(scope.clone(), spans(1, 1, 2, 0))]);
        let request = &encode(&[attempt], usize::MAX)[0];
        for fields in [&resource.fields, &scope.fields] {
            assert!(request.windows(fields.len()).any(|window| window == &**fields));
        }
        let scope_spans = &decode(request).resource_spans[0].scope_spans[0];
        assert_eq!(scope_spans.schema_url, "scope-2");
    }

    #[test]
    fn trace_over_the_size_is_split_into_full_requests() {
        let scope = scope(&resource(0), 0);
        let attempt = attempt(1, vec![(scope, spans(1, 1, 1000, 100))]);
        let requests = encode(std::slice::from_ref(&attempt), 10_000);
        let total: usize = requests.iter().map(Bytes::len).sum();
        assert!(requests.len() > 10 && requests.len() <= total / 9_000 + 1);
        assert_eq!(span_ids(&requests), span_ids(&[raw(&attempt).into()]));
    }

    #[test]
    fn nothing_encodes_as_an_empty_request() {
        let request = &encode(&[], 100)[0];
        assert_eq!(ExportTraceServiceRequest::decode(&**request).unwrap().resource_spans.len(), 0);
    }
}
