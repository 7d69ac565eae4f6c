//! Reading the ids of a span, with and without the check of all that is in it.
//!
//! [`usual`] is a shortcut and nothing else: it accepts only spans that [`schema::SPAN`]'s check
//! accepts, and yields what [`ids`] yields, but it knows only tags in their shortest form and gives
//! up (`None`) where anything is unusual or wrong; the check by tables then decides, and says what
//! is wrong where. It is unrolled by hand, a function per message, which makes it three times
//! faster.

use super::{Malformed, Problem, Reader, Value, WireError};
use crate::wire::{schema, usual_pair, varint};
use std::ops::Range;

/// Messages around a span, the request not counted.
pub(super) const DEPTH: u32 = 2;

/// The fields of a span that decide where it goes.
#[derive(Clone, Copy, Default)]
pub(super) struct SpanIds<'a> {
    pub(super) trace_id: &'a [u8],
    pub(super) span_id: &'a [u8],
    pub(super) parent_span_id: &'a [u8],
    pub(super) kind: u64,
    /// What comes after the last of these fields.
    pub(super) after: &'a [u8],
}

/// Walks the span's own fields that begin in its first `ids_end` bytes; what is inside other fields
/// than ids is not looked at.
pub(super) fn ids(
    request: &[u8],
    range: Range<usize>,
    ids_end: usize,
) -> Result<SpanIds<'_>, Malformed> {
    let mut ids = SpanIds { after: &request[range.clone()], ..SpanIds::default() };
    let (mut at, end) = (range.start, range.end);
    let ids_end = at.saturating_add(ids_end);
    let mut fields = Reader::within(request, range);
    while at < ids_end
        && let Some(field) = fields.next()
    {
        let field = field.map_err(|error| error.inside(&schema::SPAN))?;
        at = field.end;
        match (field.number, field.value) {
            (1, Value::Bytes(id)) => ids.trace_id = id,
            (2, Value::Bytes(id)) => ids.span_id = id,
            (4, Value::Bytes(id)) => ids.parent_span_id = id,
            (6, Value::Varint(kind)) => ids.kind = kind,
            (1 | 2 | 4 | 6, _) => {
                let wrong = WireError { problem: Problem::WireType, at: field.start };
                return Err(wrong.inside(&schema::SPAN));
            }
            _ => continue,
        }
        ids.after = &request[field.end..end];
    }
    Ok(ids)
}

/// A whole span, if it is valid and nothing about it is unusual.
#[inline]
pub(super) fn usual(mut span: &[u8]) -> Option<SpanIds<'_>> {
    let mut ids = SpanIds { after: span, ..SpanIds::default() };
    while let Some((&tag, rest)) = span.split_first() {
        span = match tag {
            0x0a => {
                (ids.trace_id, ids.after) = bytes(rest)?;
                ids.after
            }
            0x12 => {
                (ids.span_id, ids.after) = bytes(rest)?;
                ids.after
            }
            0x22 => {
                (ids.parent_span_id, ids.after) = bytes(rest)?;
                ids.after
            }
            0x1a | 0x2a => text(rest)?,
            0x30 => {
                let (kind, length) = varint(rest).ok()?;
                (ids.kind, ids.after) = (kind, &rest[length..]);
                ids.after
            }
            0x39 | 0x41 => rest.get(8..)?,
            0x4a => message(rest, |inner| attribute(inner, DEPTH + 1))?,
            0x50 | 0x60 | 0x70 => number(rest)?,
            0x5a => message(rest, event)?,
            0x6a => message(rest, link)?,
            0x7a => message(rest, status)?,
            // Flags: field 16, the only one with a tag of two bytes.
            0x85 if rest.first() == Some(&1) => rest.get(5..)?,
            _ => return None,
        };
    }
    Some(ids)
}

#[inline(never)]
fn event(mut event: &[u8]) -> Option<()> {
    while let Some((&tag, rest)) = event.split_first() {
        event = match tag {
            0x09 => rest.get(8..)?,
            0x12 => text(rest)?,
            0x1a => message(rest, |inner| attribute(inner, DEPTH + 2))?,
            0x20 => number(rest)?,
            _ => return None,
        };
    }
    Some(())
}

#[inline(never)]
fn link(mut link: &[u8]) -> Option<()> {
    while let Some((&tag, rest)) = link.split_first() {
        link = match tag {
            0x0a | 0x12 => bytes(rest)?.1,
            0x1a => text(rest)?,
            0x22 => message(rest, |inner| attribute(inner, DEPTH + 2))?,
            0x28 => number(rest)?,
            0x35 => rest.get(4..)?,
            _ => return None,
        };
    }
    Some(())
}

#[inline]
fn status(mut status: &[u8]) -> Option<()> {
    while let Some((&tag, rest)) = status.split_first() {
        status = match tag {
            0x12 => text(rest)?,
            0x18 => number(rest)?,
            _ => return None,
        };
    }
    Some(())
}

/// A `KeyValue` inside `depth` messages.
#[inline(always)]
fn attribute(mut pair: &[u8], depth: u32) -> Option<()> {
    if let Some((key, any)) = usual_pair(pair) {
        return is_text(key).then(|| value(any, depth + 1))?;
    }
    while let Some((&tag, rest)) = pair.split_first() {
        pair = match tag {
            0x0a => text(rest)?,
            0x12 => message(rest, |inner| value(inner, depth + 1))?,
            _ => return None,
        };
    }
    Some(())
}

/// An `AnyValue` inside `depth` messages.
#[inline(always)]
fn value(mut any: &[u8], depth: u32) -> Option<()> {
    // By far the most are one short string.
    if let [0x0a, length @ ..0x80, string @ ..] = any
        && usize::from(*length) == string.len()
    {
        return is_text(string).then_some(());
    }
    while let Some((&tag, rest)) = any.split_first() {
        any = match tag {
            0x0a => text(rest)?,
            0x10 | 0x18 => number(rest)?,
            0x21 => rest.get(8..)?,
            // Arrays and lists nest; the tables know how deep they may.
            _ => return schema::ANY_VALUE.check(any, 0..any.len(), depth).ok(),
        };
    }
    Some(())
}

/// A length and as many bytes; with what follows.
#[inline(always)]
fn bytes(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, taken) = varint(field).ok()?;
    field[taken..].split_at_checked(usize::try_from(length).ok()?)
}

#[inline(always)]
fn message(field: &[u8], check: impl FnOnce(&[u8]) -> Option<()>) -> Option<&[u8]> {
    let (message, rest) = bytes(field)?;
    check(message)?;
    Some(rest)
}

#[inline(always)]
fn number(field: &[u8]) -> Option<&[u8]> {
    let (_, length) = varint(field).ok()?;
    Some(&field[length..])
}

#[inline(always)]
fn text(field: &[u8]) -> Option<&[u8]> {
    let (text, rest) = bytes(field)?;
    is_text(text).then_some(rest)
}

#[inline(always)]
fn is_text(text: &[u8]) -> bool {
    is_ascii(text) || std::str::from_utf8(text).is_ok()
}

/// The standard library's is made for long texts; these are short ones.
#[inline(always)]
fn is_ascii(text: &[u8]) -> bool {
    let word = |chunk: &[u8; 8]| u64::from_le_bytes(*chunk);
    let half = |chunk: &[u8; 4]| u64::from(u32::from_le_bytes(*chunk));
    let bits = if let Some(last) = text.last_chunk() {
        let (chunks, _) = text.as_chunks();
        chunks.iter().fold(word(last), |bits, chunk| bits | word(chunk))
    } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
        half(first) | half(last)
    } else {
        text.iter().fold(0, |bits, byte| bits | u64::from(*byte))
    };
    bits & 0x8080_8080_8080_8080 == 0
}
