//! Spans as they are held: raw OTLP bytes, cut by trace and scope.
//!
//! Nothing here decodes a span. The invariant: a [`Chunk`] never pins the request or frame that it
//! was cut from, only spans of its own trace that came in it; what spans have in common (resource
//! and scope) is shared by reference. Bounded by the memory budget, in which the holder of a chunk
//! counts it.

use std::fmt;
use std::ops::{Deref, Range};
use std::str::FromStr;
use std::sync::Arc;

/// What is no trace id is repeated up to so many characters.
const ID_TOLD_MAX: usize = 64;

/// The 16 bytes of an OTLP trace id; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(pub [u8; 16]);

/// A text that is no trace id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trace id has 32 hexadecimal digits, not all of them 0, and {0:?} has not")]
pub struct TraceIdError(String);

impl FromStr for TraceId {
    type Err = TraceIdError;

    fn from_str(text: &str) -> Result<Self, TraceIdError> {
        let mut id = [0; 16];
        match hex::decode_to_slice(text, &mut id) {
            Ok(()) if id != [0; 16] => Ok(Self(id)),
            _ => Err(TraceIdError(text.chars().take(ID_TOLD_MAX).collect())),
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The fields of a `ResourceSpans` message other than `scope_spans`, as they came: resource,
/// `schema_url`, unknown fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Encoded fields, each with its tag.
    pub fields: Box<[u8]>,
}

/// The fields of a `ScopeSpans` message other than `spans`, as they came: scope, `schema_url`,
/// unknown fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Scope {
    /// The resource whose spans these are.
    pub resource: Arc<Resource>,
    /// Encoded fields, each with its tag.
    pub fields: Box<[u8]>,
}

/// Spans of one trace and one scope.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// What the spans have in common; equal scopes of one node are the same allocation.
    pub scope: Arc<Scope>,
    /// One or more `ScopeSpans.spans` fields: tag 0x12, length, span.
    pub spans: SpanBytes,
}

/// A part of one allocation: that of all spans of a trace which came together.
#[derive(Clone, Debug)]
pub struct SpanBytes {
    shared: Arc<[u8]>,
    start: u32,
    end: u32,
}

impl SpanBytes {
    /// A part of these bytes, which are shorter than 4 GiB.
    pub fn part(shared: &Arc<[u8]>, range: Range<u32>) -> Self {
        Self { shared: Arc::clone(shared), start: range.start, end: range.end }
    }

    /// Whether both are parts of the same allocation.
    pub fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl From<Vec<u8>> for SpanBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let end = u32::try_from(bytes.len()).expect("a trace of at most 1 GiB is no 4 GiB");
        Self { shared: bytes.into(), start: 0, end }
    }
}

impl Deref for SpanBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.shared[self.start as usize..self.end as usize]
    }
}

impl Chunk {
    /// The spans, each with its tag and length as they are framed in OTLP.
    pub fn framed_spans(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.spans;
        std::iter::from_fn(move || {
            let end = framed_len(rest)?;
            let (span, after) = rest.split_at_checked(end)?;
            rest = after;
            Some(span)
        })
    }
}

/// Length of the first length-delimited field in `bytes`, with its tag (one byte) and length.
fn framed_len(bytes: &[u8]) -> Option<usize> {
    let mut after_tag = bytes.get(1..)?;
    let available = after_tag.len();
    let length = prost::encoding::decode_varint(&mut after_tag).ok()?;
    Some(1 + (available - after_tag.len()) + usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_id_is_read_as_it_is_written() {
        let id = TraceId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        for text in ["", "12", "xyz", &"0".repeat(32), &"a".repeat(33), &"é".repeat(16)] {
            let error = text.parse::<TraceId>().unwrap_err().to_string();
            assert!(error.contains("32 hexadecimal digits") && error.contains(text), "{error}");
        }
    }
}
