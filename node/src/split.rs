//! Cutting a request into one batch per target, by trace.
//!
//! Every part of a batch is a valid `ExportTraceServiceRequest` of its own: raw slices of the
//! request, with the headers of resources and scopes repeated in every part that has a span of
//! theirs. The invariant: a target gets exactly the spans of its traces, each once, in the order of
//! the request, and no empty scope or resource; lengths are summed before anything is copied, so
//! that a part is allocated once and to the byte.
//!
//! Parts own their bytes and never pin the request. Memory is bounded by the request times the
//! targets of a span, and by its headers times the parts. Who the targets are is decided elsewhere.

use crate::scan::{Header, Scan, ScannedSpan};
use crate::wire::{framed_length, put_varint};
use bytes::Bytes;

/// Tag of `resource_spans` in the request: field 1.
const TAG_RESOURCE_SPANS: u8 = 0x0a;
/// Tag of `scope_spans` in `ResourceSpans`: field 2.
const TAG_SCOPE_SPANS: u8 = 0x12;

/// Which batches the spans of a trace go into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets(pub [u16; 2]);

impl Targets {
    /// Stands where there is no target.
    pub const NONE: u16 = u16::MAX;

    fn iter(self) -> impl Iterator<Item = usize> {
        let [first, second] = self.0;
        let second = if second == first { Self::NONE } else { second };
        [first, second].into_iter().filter(|target| *target != Self::NONE).map(usize::from)
    }
}

/// One request of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A valid `ExportTraceServiceRequest`.
    pub request: Bytes,
    /// Indexes in [`Scan::traces`] of the traces of its spans, ascending.
    pub traces: Vec<u32>,
}

/// The batch of each of `target_count` targets, in parts of at most `part_bytes_max` bytes; empty
/// for a target of no trace. `targets` has an entry for each trace of the scan, each below
/// `target_count` or [`Targets::NONE`]. A span that does not fit even alone, which
/// [`Scan::refuse_larger`] would have left out, gets a larger part to itself.
pub fn split(
    request: &[u8],
    scan: &Scan,
    target_count: usize,
    targets: &[Targets],
    part_bytes_max: usize,
) -> Vec<Vec<Part>> {
    assert_eq!(targets.len(), scan.traces.len(), "each trace has its targets");
    let spans_of_targets = distribute(scan, target_count, targets);
    let mut cut = Cut { request, scan, part_bytes_max, last_part: vec![0; targets.len()], part: 0 };
    spans_of_targets.iter().map(|spans| cut.batch(spans)).collect()
}

/// The indexes of the spans that go to each target, in order.
fn distribute(scan: &Scan, target_count: usize, targets: &[Targets]) -> Vec<Vec<u32>> {
    let mut counts = vec![0; target_count];
    for (trace, targets) in scan.traces.iter().zip(targets) {
        targets.iter().for_each(|target| counts[target] += trace.span_count as usize);
    }
    let mut spans: Vec<_> = counts.into_iter().map(Vec::with_capacity).collect();
    for (index, span) in scan.spans.iter().enumerate() {
        targets[span.trace as usize].iter().for_each(|target| spans[target].push(index as u32));
    }
    spans
}

struct Cut<'a> {
    request: &'a [u8],
    scan: &'a Scan,
    part_bytes_max: usize,
    /// By trace: the last part that it occurred in.
    last_part: Vec<u32>,
    /// Number of the present part, from 1, over all targets.
    part: u32,
}

impl Cut<'_> {
    fn batch(&mut self, mut spans: &[u32]) -> Vec<Part> {
        let mut parts = Vec::new();
        while !spans.is_empty() {
            let sections = self.sections(spans);
            let span_count = sections.iter().map(|section| section.span_count).sum();
            let (these, rest) = spans.split_at(span_count);
            parts.push(Part { request: self.write(&sections, these), traces: self.traces(these) });
            spans = rest;
        }
        parts
    }

    /// The next part: as many of `spans`, from the first, as fit, but at least one.
    fn sections(&self, spans: &[u32]) -> Vec<Section> {
        let mut sections: Vec<Section> = Vec::new();
        for &index in spans {
            let before = sections.last();
            let section = Section::with(before, self.scan, &self.scan.spans[index as usize]);
            if before.is_some() && section.part_bytes() > self.part_bytes_max {
                break;
            }
            match sections.last_mut() {
                Some(before) if before.scope_index == section.scope_index => *before = section,
                _ => sections.push(section),
            }
        }
        sections
    }

    fn write(&self, sections: &[Section], spans: &[u32]) -> Bytes {
        let bytes = sections.last().map_or(0, Section::part_bytes);
        let mut out = Vec::with_capacity(bytes);
        let mut spans = spans.iter();
        for resource in sections.chunk_by(|a, b| a.resource_index == b.resource_index) {
            let resource_bytes = resource.last().map_or(0, Section::resource_bytes);
            let header = &self.scan.resources[resource[0].resource_index as usize].header;
            self.begin(&mut out, TAG_RESOURCE_SPANS, resource_bytes, header);
            for section in resource {
                let header = &self.scan.scopes[section.scope_index as usize].header;
                self.begin(&mut out, TAG_SCOPE_SPANS, section.scope_bytes, header);
                // What stands together is copied at once.
                let mut together = 0..0;
                for &span in spans.by_ref().take(section.span_count) {
                    let range = self.scan.spans[span as usize].range();
                    if range.start != together.end {
                        out.extend_from_slice(&self.request[together.clone()]);
                        together.start = range.start;
                    }
                    together.end = range.end;
                }
                out.extend_from_slice(&self.request[together]);
            }
        }
        assert_eq!(out.len(), bytes, "a part is as long as was summed");
        out.into()
    }

    /// Begins a message of `bytes` with its header.
    fn begin(&self, out: &mut Vec<u8>, tag: u8, bytes: usize, header: &Header) {
        out.push(tag);
        put_varint(out, bytes);
        for slice in self.scan.header_slices(self.request, header) {
            out.extend_from_slice(slice);
        }
    }

    fn traces(&mut self, spans: &[u32]) -> Vec<u32> {
        self.part += 1;
        let mut traces = Vec::new();
        for &span in spans {
            let trace = self.scan.spans[span as usize].trace;
            if std::mem::replace(&mut self.last_part[trace as usize], self.part) != self.part {
                traces.push(trace);
            }
        }
        traces.sort_unstable();
        traces
    }
}

/// The spans of one scope in a part, and the lengths of all that the part has up to the last of
/// them.
#[derive(Clone, Copy)]
struct Section {
    /// In [`Scan::resources`].
    resource_index: u32,
    /// In [`Scan::scopes`].
    scope_index: u32,
    span_count: usize,
    /// All `ResourceSpans` before, framed.
    bytes_before: usize,
    /// The header of the resource, and its `ScopeSpans` before, framed.
    resource_bytes_before: usize,
    /// The header of the scope, and its spans.
    scope_bytes: usize,
}

impl Section {
    /// What a part that ended with `before` is with one span more: the same section, longer, or
    /// another one.
    #[inline]
    fn with(before: Option<&Self>, scan: &Scan, span: &ScannedSpan) -> Self {
        let scope_index = span.scope;
        let span_bytes = span.bytes() as usize;
        if let Some(section) = before
            && section.scope_index == scope_index
        {
            let span_count = section.span_count + 1;
            return Self { span_count, scope_bytes: section.scope_bytes + span_bytes, ..*section };
        }
        let scope = &scan.scopes[scope_index as usize];
        let resource = &scan.resources[scope.resource as usize];
        let same_resource = before.filter(|before| before.resource_index == scope.resource);
        let (bytes_before, resource_bytes_before) = match same_resource {
            Some(before) => (before.bytes_before, before.resource_bytes()),
            None => (before.map_or(0, Self::part_bytes), resource.header.bytes as usize),
        };
        Self {
            resource_index: scope.resource,
            scope_index,
            span_count: 1,
            bytes_before,
            resource_bytes_before,
            scope_bytes: scope.header.bytes as usize + span_bytes,
        }
    }

    /// The payload of the `ResourceSpans`, if it ended here.
    #[inline]
    fn resource_bytes(&self) -> usize {
        self.resource_bytes_before + framed_length(self.scope_bytes)
    }

    /// The whole part, if it ended here.
    #[inline]
    fn part_bytes(&self) -> usize {
        self.bytes_before + framed_length(self.resource_bytes())
    }
}

#[cfg(test)]
mod tests;
