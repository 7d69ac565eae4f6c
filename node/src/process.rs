//! What the owner does to the spans of a trace between verdict and export.
//!
//! Spans stay raw bytes: a processor rewrites those that it changes and shares the others. Today
//! that is one: spans that come after a part of their trace was exported say so.

use crate::sink::Attempt;
use crate::span_view::{Marking, framed_with_attribute, unframed};
use crate::spans::Chunk;

/// Added, with the value `true`, to spans that are exported after a part of their trace was done.
pub const LATE_ATTRIBUTE: &str = "tracemesh.late";

/// The attempt as sinks get it.
pub fn process(attempt: Attempt, late: bool) -> Attempt {
    if !late {
        return attempt;
    }
    let chunks: Vec<Chunk> = attempt.chunks.iter().map(mark_late).collect();
    let bytes = chunks.iter().map(|chunk| chunk.spans.len()).sum();
    Attempt { chunks, bytes, ..attempt }
}

fn mark_late(chunk: &Chunk) -> Chunk {
    let marked = unframed(&chunk.spans)
        .flat_map(|span| framed_with_attribute(span, LATE_ATTRIBUTE, Marking::Bool(true)));
    Chunk { scope: chunk.scope.clone(), spans: marked.collect::<Vec<_>>().into() }
}
