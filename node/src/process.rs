//! What the owner does to the spans of a trace between verdict and export.
//!
//! Spans stay raw bytes: a processor rewrites those that it changes and shares the others. Today
//! that is one: spans that come after a part of their trace was exported say so.

use crate::sink::Attempt;
use crate::span_view::{AttributeValue, with_attribute};
use crate::spans::Chunk;

/// Added, with the value `true`, to spans that are exported after a part of their trace was done.
pub const LATE_ATTRIBUTE: &str = "tracemesh.late";

/// The attempt as sinks get it.
pub fn process(attempt: &Attempt, late: bool) -> Attempt {
    let chunks = if late {
        attempt.chunks.iter().map(mark_late).collect()
    } else {
        attempt.chunks.clone()
    };
    let bytes = chunks.iter().map(|chunk: &Chunk| chunk.spans.len()).sum();
    Attempt { trace_id: attempt.trace_id, chunks, span_count: attempt.span_count, bytes }
}

fn mark_late(chunk: &Chunk) -> Chunk {
    let mut spans = Vec::with_capacity(chunk.spans.len() + 32);
    for framed in chunk.framed_spans() {
        spans.extend_from_slice(&with_attribute(
            framed,
            LATE_ATTRIBUTE,
            AttributeValue::Bool(true),
        ));
    }
    Chunk { scope: chunk.scope.clone(), spans: spans.into() }
}
