//! Finds the ids of all spans in an encoded `ExportTraceServiceRequest`.
//!
//! The verification must not share the scanner of the system that it checks, and needs much less:
//! it walks down to the spans and reads their first two fields. It does not validate what it walks
//! past.

use bytes::Buf;

/// The bytes are no `ExportTraceServiceRequest`, or a span in it has no ids.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no OTLP trace export request")]
pub(super) struct Malformed;

/// Field numbers: `ExportTraceServiceRequest.resource_spans`, `ResourceSpans.scope_spans`,
/// `ScopeSpans.spans`.
const PATH: [u64; 3] = [1, 2, 2];

/// Hands trace id and span id of every span in `request` to `on_span`, in order.
pub(super) fn each_span(
    request: &[u8],
    mut on_span: impl FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    each_span_below(request, &PATH, &mut on_span)
}

fn each_span_below(
    message: &[u8],
    path: &[u64],
    on_span: &mut impl FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    let Some((wanted, below)) = path.split_first() else {
        let (trace_id, span_id) = ids(message)?;
        on_span(trace_id, span_id);
        return Ok(());
    };
    let mut rest = message;
    while !rest.is_empty() {
        let (number, bytes) = field(&mut rest)?;
        if number == *wanted {
            each_span_below(bytes, below, on_span)?;
        }
    }
    Ok(())
}

/// `Span.trace_id` and `Span.span_id`; encoders write them first, so the rest is rarely read.
fn ids(span: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut trace_id, mut span_id) = (None, None);
    let mut rest = span;
    loop {
        if let (Some(trace_id), Some(span_id)) = (trace_id, span_id) {
            return Ok((trace_id, span_id));
        }
        match field(&mut rest)? {
            (1, bytes) => trace_id = Some(bytes),
            (2, bytes) => span_id = Some(bytes),
            _ => {}
        }
    }
}

/// Takes a field off `rest`: its number, and its bytes when it is delimited by a length.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, &'a [u8]), Malformed> {
    let tag = varint(rest)?;
    let length = match tag & 7 {
        0 => {
            varint(rest)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(rest)?).map_err(|_| Malformed)?,
        5 => 4,
        _ => return Err(Malformed),
    };
    let (bytes, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok((tag >> 3, bytes))
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.try_get_u8().map_err(|_| Malformed)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = each_span(&bytes, |_, _| {});
        }
    }

    #[test]
    fn span_without_ids_is_malformed() {
        let request = [0x0a, 6, 0x12, 4, 0x12, 2, 0x2a, 0];
        assert_eq!(each_span(&request, |_, _| {}), Err(Malformed));
    }
}
