//! Finding resources, scopes, spans and traces in the bytes of a request.
//!
//! A request is never decoded. A scan walks it once and says where things are; split and the
//! holders of spans copy those ranges. [`scan`] is for the edge: it accepts only what prost
//! decodes, text included, because one malformed span would make a backend refuse all that it is
//! exported with. [`scan_trusted`] is for frames of peers, which scanned them at their edge: it
//! looks into spans only for their ids.
//!
//! The invariant: all ranges of a [`Scan`] lie within the request; every scope has a span, every
//! resource a scope, every trace a span. What a message has beside its children is kept as it came:
//! fields of newer versions, fields that come twice, fields that come after the children. Only
//! unknown fields of the request itself are dropped, for they belong to no span. Where a field that
//! cannot repeat does, the last one counts, as in protobuf.
//!
//! The caller owns the scan and the request. Beside a request of usual spans a scan is small; for
//! the smallest spans that there can be it takes at most about five times the request's memory.
//! Nothing here knows who holds what.

mod span;

use crate::spans::TraceId;
use crate::wire::schema::{self, Malformed, Message};
use crate::wire::{Field, Problem, Reader, Value, WireError, framed_length};
use hashbrown::{DefaultHashBuilder, HashTable};
use span::SpanIds;
use std::hash::BuildHasher;
use std::ops::Range;

/// Field number of `scope_spans` in `ResourceSpans`, and of `spans` in `ScopeSpans`.
const CHILDREN: u32 = 2;

/// Headers of a span may take this part of the limit for a request. They are repeated in each part
/// of a request that is cut, so without a bound a few large ones would multiply many small spans.
pub const HEADER_SHARE: usize = 4;

/// About what a span takes in a request, and all spans of one trace. A scan has room from the start
/// for as many as fit into the request by that, which costs 7 % of its bytes; more is made as it is
/// needed.
const SPAN_BYTES: usize = 512;
const TRACE_BYTES: usize = 4 * SPAN_BYTES;

/// A request that cannot be scanned; nothing of it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Offsets are 32 bits wide.
    #[error("request of {bytes} bytes is longer than 4 GiB")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is no valid `ExportTraceServiceRequest`.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Where the parts of a request are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// In order of first appearance.
    pub traces: Vec<ScannedTrace>,
    /// In order; only those with a span.
    pub resources: Vec<ScannedResource>,
    /// In order; only those with a span.
    pub scopes: Vec<ScannedScope>,
    /// In order, and so grouped by scope.
    pub spans: Vec<ScannedSpan>,
    /// Spans left out: a trace id or span id of the wrong length, or all zero.
    pub refused_span_count: u32,
    /// The ids and kind of each span, refused ones too, are in the first so many bytes of that
    /// span, its own tag and length not counted. 0 when no span has any.
    pub ids_end: u32,
    /// Ranges of the request, to which [`Header`]s point.
    header_ranges: Vec<(u32, u32)>,
}

/// A trace with at least one span in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedTrace {
    /// Never all zero.
    pub id: TraceId,
    /// At least 1.
    pub span_count: u32,
    /// Sum of its framed spans, in bytes.
    pub bytes: u32,
}

/// The fields of a `ResourceSpans` or `ScopeSpans` other than its children, as ranges of the
/// request; read with [`Scan::header_slices`] or [`Scan::gather`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    ranges: Range<u32>,
    /// Sum of the lengths.
    pub bytes: u32,
}

/// A `ResourceSpans` message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedResource {
    /// `resource`, `schema_url`, unknown fields.
    pub header: Header,
}

/// A `ScopeSpans` message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedScope {
    /// Index in [`Scan::resources`].
    pub resource: u32,
    /// `scope`, `schema_url`, unknown fields.
    pub header: Header,
}

/// A `spans` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedSpan {
    /// Offset of the field's tag.
    pub start: u32,
    /// Offset behind the span's last byte.
    pub end: u32,
    /// Index in [`Scan::traces`].
    pub trace: u32,
    /// Index in [`Scan::scopes`].
    pub scope: u32,
    /// Never all zero.
    pub span_id: [u8; 8],
    /// The OTLP enum; 255 for values that do not fit.
    pub kind: u8,
    /// It has no parent: the parent span id is missing, empty or all zero.
    pub root: bool,
}

impl ScannedSpan {
    /// Bytes of the framed field: tag, length and span.
    #[inline]
    pub fn bytes(&self) -> u32 {
        self.end - self.start
    }

    /// The framed field's place in the request.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Scans a request from a client and validates all of it.
pub fn scan(request: &[u8]) -> Result<Scan, ScanError> {
    Walk::new(request, Validated)?.request()
}

/// Scans a frame that a peer cut from a request that it had validated, with what it says of
/// [`Scan::ids_end`], or 0 when it does not; what comes after that in a span is not looked at. The
/// same scan as [`scan`]'s if the frame is valid and what the peer says is true; if not, an error,
/// or a scan with spans that another decoder would refuse, or of which it would read other ids.
pub fn scan_trusted(frame: &[u8], ids_end: u32) -> Result<Scan, ScanError> {
    let ids_end = if ids_end == 0 { usize::MAX } else { ids_end as usize };
    Walk::new(frame, Trusted { ids_end })?.request()
}

impl Scan {
    /// The header's fields, in order, adjoining ones as one slice.
    pub fn header_slices<'a>(
        &'a self,
        request: &'a [u8],
        header: &Header,
    ) -> impl Iterator<Item = &'a [u8]> {
        let ranges = header.ranges.start as usize..header.ranges.end as usize;
        self.header_ranges[ranges]
            .iter()
            .map(|&(start, end)| &request[start as usize..end as usize])
    }

    /// The header's fields as they are stored in `spans::Resource` and `spans::Scope`.
    pub fn gather(&self, request: &[u8], header: &Header) -> Box<[u8]> {
        let mut fields = Vec::with_capacity(header.bytes as usize);
        self.header_slices(request, header).for_each(|slice| fields.extend_from_slice(slice));
        fields.into_boxed_slice()
    }

    /// Whether the span and the headers that it needs fit into a request of `request_bytes_max`,
    /// with headers small enough to be repeated in every part of a request that is cut.
    fn fits(&self, span: &ScannedSpan, request_bytes_max: usize) -> bool {
        let scope = &self.scopes[span.scope as usize];
        let resource = &self.resources[scope.resource as usize];
        let (outer, inner) = (resource.header.bytes as usize, scope.header.bytes as usize);
        let alone = framed_length(outer + framed_length(inner + span.bytes() as usize));
        alone <= request_bytes_max && outer + inner <= request_bytes_max / HEADER_SHARE
    }

    /// Leaves out the spans that are too large for a request of `request_bytes_max`, alone with
    /// the headers of their resource and scope, and those whose headers alone take more than a
    /// [`HEADER_SHARE`]th of it. Returns how many; they are not added to `refused_span_count`,
    /// because the reason is another.
    pub fn refuse_larger(&mut self, request: &[u8], request_bytes_max: usize) -> u32 {
        let fits = |span: &ScannedSpan| self.fits(span, request_bytes_max);
        if request.len() <= request_bytes_max / HEADER_SHARE || self.spans.iter().all(fits) {
            return 0;
        }
        let mut rest = Self {
            refused_span_count: self.refused_span_count,
            ids_end: self.ids_end,
            header_ranges: std::mem::take(&mut self.header_ranges),
            ..Self::default()
        };
        let mut traces = vec![None; self.traces.len()];
        let mut resource_before = None;
        let mut scope_before = None;
        for span in &self.spans {
            if !self.fits(span, request_bytes_max) {
                continue;
            }
            let scope = &self.scopes[span.scope as usize];
            if resource_before != Some(scope.resource) {
                resource_before = Some(scope.resource);
                rest.resources.push(self.resources[scope.resource as usize].clone());
            }
            if scope_before != Some(span.scope) {
                scope_before = Some(span.scope);
                let resource = rest.resources.len() as u32 - 1;
                rest.scopes.push(ScannedScope { resource, header: scope.header.clone() });
            }
            let trace = *traces[span.trace as usize].get_or_insert_with(|| {
                let id = self.traces[span.trace as usize].id;
                rest.traces.push(ScannedTrace { id, span_count: 0, bytes: 0 });
                rest.traces.len() as u32 - 1
            });
            rest.traces[trace as usize].add(span.bytes());
            rest.spans.push(ScannedSpan { trace, scope: rest.scopes.len() as u32 - 1, ..*span });
        }
        let refused = self.spans.len() - rest.spans.len();
        *self = rest;
        refused as u32
    }
}

impl ScannedTrace {
    fn add(&mut self, span_bytes: u32) {
        self.span_count += 1;
        self.bytes += span_bytes;
    }
}

/// How deep a scan looks.
trait Depth {
    /// The ids of the span at `range`, and whatever is checked with them.
    fn span<'a>(&self, request: &'a [u8], range: Range<usize>) -> Result<SpanIds<'a>, Malformed>;
    /// A field of `message`, which lies inside `depth` messages, that is not one of its children.
    fn header_field(
        message: &'static Message,
        request: &[u8],
        field: &Field<'_>,
        depth: u32,
    ) -> Result<(), Malformed>;
}

/// Everything is checked.
struct Validated;

impl Depth for Validated {
    #[inline]
    fn span<'a>(&self, request: &'a [u8], range: Range<usize>) -> Result<SpanIds<'a>, Malformed> {
        match span::usual(&request[range.clone()]) {
            Some(ids) => Ok(ids),
            None => {
                schema::SPAN.check(request, range.clone(), span::DEPTH)?;
                span::ids(request, range, usize::MAX)
            }
        }
    }

    fn header_field(
        message: &'static Message,
        request: &[u8],
        field: &Field<'_>,
        depth: u32,
    ) -> Result<(), Malformed> {
        message.check_field(request, field, depth)
    }
}

/// Bounds and ids only.
struct Trusted {
    ids_end: usize,
}

impl Depth for Trusted {
    #[inline]
    fn span<'a>(&self, request: &'a [u8], range: Range<usize>) -> Result<SpanIds<'a>, Malformed> {
        span::ids(request, range, self.ids_end)
    }

    fn header_field(_: &'static Message, _: &[u8], _: &Field<'_>, _: u32) -> Result<(), Malformed> {
        Ok(())
    }
}

/// One pass over a request.
struct Walk<'a, D> {
    request: &'a [u8],
    scan: Scan,
    /// Indexes in `scan.traces` by trace id. Clients choose the ids, so the hash is keyed at
    /// random; the order of the table is never looked at.
    trace_index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    depth: D,
}

impl<'a, D: Depth> Walk<'a, D> {
    fn new(request: &'a [u8], depth: D) -> Result<Self, ScanError> {
        if u32::try_from(request.len()).is_err() {
            return Err(ScanError::TooLong { bytes: request.len() });
        }
        Ok(Self {
            request,
            scan: Scan {
                spans: Vec::with_capacity(request.len() / SPAN_BYTES),
                traces: Vec::with_capacity(request.len() / TRACE_BYTES),
                ..Scan::default()
            },
            trace_index: HashTable::with_capacity(request.len() / TRACE_BYTES),
            hasher: DefaultHashBuilder::default(),
            depth,
        })
    }

    fn request(mut self) -> Result<Scan, ScanError> {
        for field in Reader::new(self.request) {
            let field = field.map_err(|error| error.inside(&schema::REQUEST))?;
            if field.number == 1 {
                let range = message_range(&field, &schema::RESOURCE_SPANS)?;
                self.resource_spans(range)?;
            }
        }
        Ok(self.scan)
    }

    /// Reads the header first, because parts of it may come after the scopes, which point to it.
    fn resource_spans(&mut self, range: Range<usize>) -> Result<(), Malformed> {
        let message = &schema::RESOURCE_SPANS;
        let scope_count = self.scan.scopes.len();
        let range_count = self.scan.header_ranges.len();
        let mut header = HeaderWalk::new(&mut self.scan.header_ranges);
        for field in Reader::within(self.request, range.clone()) {
            let field = field.map_err(|error| error.inside(message))?;
            if field.number != CHILDREN {
                D::header_field(message, self.request, &field, 0)?;
                header.add(&field);
            }
        }
        let header = header.end();
        self.scan.resources.push(ScannedResource { header });
        for field in Reader::within(self.request, range) {
            let field = field.map_err(|error| error.inside(message))?;
            if field.number == CHILDREN {
                self.scope_spans(message_range(&field, &schema::SCOPE_SPANS)?)?;
            }
        }
        if self.scan.scopes.len() == scope_count {
            self.scan.resources.pop();
            self.scan.header_ranges.truncate(range_count);
        }
        Ok(())
    }

    fn scope_spans(&mut self, range: Range<usize>) -> Result<(), Malformed> {
        let message = &schema::SCOPE_SPANS;
        let span_count = self.scan.spans.len();
        let range_count = self.scan.header_ranges.len();
        let mut ranges = std::mem::take(&mut self.scan.header_ranges);
        let mut header = HeaderWalk::new(&mut ranges);
        for field in Reader::within(self.request, range) {
            let field = field.map_err(|error| error.inside(message))?;
            if field.number == CHILDREN {
                self.span(&field)?;
            } else {
                D::header_field(message, self.request, &field, 1)?;
                header.add(&field);
            }
        }
        let header = header.end();
        self.scan.header_ranges = ranges;
        if self.scan.spans.len() == span_count {
            self.scan.header_ranges.truncate(range_count);
        } else {
            let resource = self.scan.resources.len() as u32 - 1;
            self.scan.scopes.push(ScannedScope { resource, header });
        }
        Ok(())
    }

    /// The span belongs to the scope that will be pushed next.
    #[inline]
    fn span(&mut self, field: &Field<'_>) -> Result<(), Malformed> {
        let range = message_range(field, &schema::SPAN)?;
        let span_bytes = range.len();
        let ids = self.depth.span(self.request, range)?;
        self.scan.ids_end = self.scan.ids_end.max((span_bytes - ids.after.len()) as u32);
        let (Some(trace_id), Some(span_id)) = (nonzero(ids.trace_id), nonzero(ids.span_id)) else {
            self.scan.refused_span_count += 1;
            return Ok(());
        };
        let trace = self.trace(TraceId(trace_id));
        let span = ScannedSpan {
            start: field.start as u32,
            end: field.end as u32,
            trace,
            scope: self.scan.scopes.len() as u32,
            span_id,
            // The enum is the low 32 bits of the varint.
            kind: u8::try_from(ids.kind as u32).unwrap_or(u8::MAX),
            root: ids.parent_span_id.iter().all(|byte| *byte == 0),
        };
        self.scan.traces[trace as usize].add(span.bytes());
        self.scan.spans.push(span);
        Ok(())
    }

    /// The index of a trace, new if it was not seen before.
    #[inline]
    fn trace(&mut self, id: TraceId) -> u32 {
        let traces = &mut self.scan.traces;
        if let Some(before) = self.scan.spans.last()
            && traces[before.trace as usize].id == id
        {
            return before.trace;
        }
        let hash = |id: TraceId| self.hasher.hash_one(u128::from_le_bytes(id.0));
        let hash_here = hash(id);
        let same = |index: &u32| traces[*index as usize].id == id;
        if let Some(index) = self.trace_index.find(hash_here, same) {
            return *index;
        }
        let index = traces.len() as u32;
        traces.push(ScannedTrace { id, span_count: 0, bytes: 0 });
        let hash_again = |index: &u32| hash(traces[*index as usize].id);
        self.trace_index.insert_unique(hash_here, index, hash_again);
        index
    }
}

/// Collects the ranges of one header.
struct HeaderWalk<'a> {
    ranges: &'a mut Vec<(u32, u32)>,
    first: usize,
    bytes: u32,
}

impl<'a> HeaderWalk<'a> {
    fn new(ranges: &'a mut Vec<(u32, u32)>) -> Self {
        Self { first: ranges.len(), ranges, bytes: 0 }
    }

    fn add(&mut self, field: &Field<'_>) {
        let (start, end) = (field.start as u32, field.end as u32);
        self.bytes += end - start;
        match self.ranges[self.first..].last_mut() {
            Some(before) if before.1 == start => before.1 = end,
            _ => self.ranges.push((start, end)),
        }
    }

    fn end(self) -> Header {
        Header { ranges: self.first as u32..self.ranges.len() as u32, bytes: self.bytes }
    }
}

/// Where the message in a field that must be one is.
#[inline]
fn message_range(field: &Field<'_>, message: &'static Message) -> Result<Range<usize>, Malformed> {
    match field.value {
        Value::Bytes(payload) => Ok(field.end - payload.len()..field.end),
        _ => Err(WireError { problem: Problem::WireType, at: field.start }.inside(message)),
    }
}

/// An id of the right length that is not all zero.
#[inline]
fn nonzero<const N: usize>(id: &[u8]) -> Option<[u8; N]> {
    let id: [u8; N] = id.try_into().ok()?;
    (id != [0; N]).then_some(id)
}

#[cfg(test)]
mod tests;
