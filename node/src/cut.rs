//! A frame's spans, sorted by trace: the form in which shards take them.
//!
//! Made once per frame, whether the frame came from a client here or from a peer, and shared by the
//! shards that each take their traces from it. It pins the frame's bytes only while it is alive;
//! shards copy what they keep. Pure; nothing here looks into a span beyond what the scan found.

use crate::scan::{Scan, ScannedSpan};
use crate::shard::trace::SpanKey;
use crate::spans::TraceId;
use bytes::Bytes;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use tracemesh_membership::{HashKey, Slot};

/// `ScopeSpans.spans`, length-delimited.
const SPANS_TAG: u8 = 0x12;

/// Scanned spans with the slot of each trace and an order by trace.
#[derive(Debug)]
pub struct Cut {
    request: Bytes,
    scan: Scan,
    trace_keys: Vec<u64>,
    slots: Vec<Slot>,
    by_trace: Vec<u32>,
    starts: Vec<u32>,
}

impl Cut {
    /// Sorts the spans of `scan`, which was made of `request`.
    pub fn new(request: Bytes, scan: Scan, hash_key: &HashKey) -> Self {
        let trace_keys = scan.traces.iter().map(|trace| hash_key.trace_key(&trace.id.0));
        let trace_keys: Vec<u64> = trace_keys.collect();
        let slots = trace_keys.iter().copied().map(Slot::of_trace_key).collect();
        let mut starts = Vec::with_capacity(scan.traces.len() + 1);
        let mut sum = 0;
        for trace in &scan.traces {
            starts.push(sum);
            sum += trace.span_count;
        }
        starts.push(sum);
        let mut next = starts.clone();
        let mut by_trace = vec![0; scan.spans.len()];
        for (number, span) in (0_u32..).zip(&scan.spans) {
            let place = &mut next[span.trace as usize];
            by_trace[*place as usize] = number;
            *place += 1;
        }
        Self { request, scan, trace_keys, slots, by_trace, starts }
    }

    /// The scanned bytes.
    pub fn request(&self) -> &Bytes {
        &self.request
    }

    /// What the scan found.
    pub fn scan(&self) -> &Scan {
        &self.scan
    }

    /// The slot of each trace.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The id of a trace.
    pub fn trace_id(&self, trace: u32) -> TraceId {
        self.scan.traces[trace as usize].id
    }

    /// The keyed hash of a trace's id.
    pub fn trace_key(&self, trace: u32) -> u64 {
        self.trace_keys[trace as usize]
    }

    /// The spans of a trace, in the order of the request.
    pub fn spans(&self, trace: u32) -> impl ExactSizeIterator<Item = &ScannedSpan> {
        let range = self.starts[trace as usize] as usize..self.starts[trace as usize + 1] as usize;
        self.by_trace[range].iter().map(|&number| &self.scan.spans[number as usize])
    }

    /// The fields of a scope's resource, and those of the scope.
    pub fn scope_fields(&self, scope: u32) -> (Box<[u8]>, Box<[u8]>) {
        let scope = &self.scan.scopes[scope as usize];
        let resource = &self.scan.resources[scope.resource as usize];
        let gather = |header| self.scan.gather(&self.request, header);
        (gather(&resource.header), gather(&scope.header))
    }

    /// Appends a span as it is framed in OTLP, its tag in one byte even where a client took more.
    pub fn append_span(&self, span: &ScannedSpan, target: &mut Vec<u8>) {
        let framed = &self.request[span.range()];
        let tag_len = 1 + framed.iter().take_while(|&&byte| byte >= 0x80).count();
        target.push(SPANS_TAG);
        target.extend_from_slice(&framed[tag_len..]);
    }
}

/// The key of a span: a keyed hash of its id and kind, because the same id may stand for the two
/// sides of one call.
pub fn span_key(hash_key: &HashKey, span_id: [u8; 8], kind: u8) -> SpanKey {
    let mut hasher = SipHasher13::new_with_key(&hash_key.0);
    hasher.write_u64(u64::from_le_bytes(span_id));
    hasher.write_u8(kind);
    SpanKey::new(hasher.finish())
}
