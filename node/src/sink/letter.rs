//! How a dead letter is written, and read again.
//!
//! A JSON object on a line of its own: `{"sink", "reason", "time_unix_nano", "trace_id",
//! "span_count", "request"}`, where `request` is an encoded `ExportTraceServiceRequest` in base64,
//! its spans as they came. The invariant: what is read has as many spans as were written, all of
//! one trace, or it is an error.

use super::{Attempt, request};
use crate::cut::Cut;
use crate::scan::scan;
use crate::spans::{Chunk, Resource, Scope, TraceId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tracemesh_membership::HashKey;

#[derive(Serialize, Deserialize)]
struct Letter<'a> {
    sink: Cow<'a, str>,
    reason: Cow<'a, str>,
    time_unix_nano: String,
    trace_id: String,
    span_count: u32,
    request: String,
}

/// A letter that was read.
#[derive(Debug)]
pub(crate) struct Read {
    /// Who refused it.
    pub(crate) sink: String,
    /// Its spans.
    pub(crate) attempt: Attempt,
}

/// A line that is no letter, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// It is no JSON object with the fields of a letter.
    #[error("no dead letter: {0}")]
    Json(#[from] serde_json::Error),
    /// What should be base64 is not.
    #[error("its request is no base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// The bytes are no OTLP request.
    #[error("its request is damaged: {0}")]
    Request(#[from] crate::scan::ScanError),
    /// Something is missing, or from elsewhere.
    #[error("it is said to have {said} spans of trace {trace_id}, and has {found}")]
    Spans {
        /// As the letter says.
        said: u32,
        /// As the letter says.
        trace_id: String,
        /// Spans of that trace in it.
        found: usize,
    },
}

/// An attempt as a line.
pub(super) fn write(attempt: &Attempt, sink: &str, reason: &str, time: SystemTime) -> Vec<u8> {
    let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let letter = Letter {
        sink: sink.into(),
        reason: reason.into(),
        time_unix_nano: time.as_nanos().to_string(),
        trace_id: attempt.trace_id.to_string(),
        span_count: attempt.span_count,
        request: STANDARD.encode(request::raw(attempt)),
    };
    let mut line = serde_json::to_vec(&letter).expect("a struct of strings has a JSON form");
    line.push(b'\n');
    line
}

/// The letter of a line.
pub(crate) fn read(line: &[u8]) -> Result<Read, Damage> {
    let Letter { sink, trace_id, span_count, request, .. } = serde_json::from_slice(line)?;
    let request = STANDARD.decode(request)?;
    let cut = Cut::new(request.clone().into(), scan(&request)?, &HashKey([0; 16]));
    let scan = cut.scan();
    let [trace] = &scan.traces[..] else {
        return Err(Damage::Spans { said: span_count, trace_id, found: 0 });
    };
    let TraceId(id) = trace.id;
    let is_whole = trace.span_count == span_count && scan.refused_span_count == 0;
    if !is_whole || hex::encode(id) != trace_id {
        return Err(Damage::Spans { said: span_count, trace_id, found: scan.spans.len() });
    }
    let chunks = scan.spans.chunk_by(|a, b| a.scope == b.scope).map(|spans| {
        let (resource, fields) = cut.scope_fields(spans[0].scope);
        let resource = Arc::new(Resource { fields: resource });
        let mut bytes = Vec::new();
        spans.iter().for_each(|span| cut.append_span(span, &mut bytes));
        Chunk { scope: Arc::new(Scope { resource, fields }), spans: bytes.into() }
    });
    let chunks: Vec<_> = chunks.collect();
    let bytes = chunks.iter().map(|chunk| chunk.spans.len()).sum();
    let attempt = Attempt { trace_id: trace.id, chunks, span_count, bytes, due: None };
    Ok(Read { sink: sink.into_owned(), attempt })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::{attempt, resource, scope, span_ids, spans, trace};

    fn line(attempt: &Attempt) -> String {
        String::from_utf8(write(attempt, "otlp", "no", SystemTime::UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn letter_that_is_read_has_the_spans_that_were_written() {
        let scopes = [scope(&resource(0), 0), scope(&resource(1), 1)];
        let chunks = scopes.iter().zip([1, 100]);
        let chunks = chunks.map(|(scope, first)| (scope.clone(), spans(1, first, 3, 40)));
        let written = attempt(1, chunks.collect());
        let Read { sink, attempt } = read(line(&written).as_bytes()).unwrap();
        assert_eq!((sink.as_str(), attempt.trace_id), ("otlp", written.trace_id));
        assert_eq!((attempt.span_count, attempt.bytes), (written.span_count, written.bytes));
        let raw = |attempt: &Attempt| request::raw(attempt).into();
        assert_eq!(span_ids(&[raw(&attempt)]), span_ids(&[raw(&written)]));
    }

    #[test]
    fn damaged_letter_is_an_error() {
        let good = line(&trace(1, 2));
        read(good.as_bytes()).unwrap();
        let other = trace(2, 2).trace_id.to_string();
        for (damaged, why) in [
            (good[..good.len() / 2].to_owned(), "no dead letter"),
            ("{}\n".to_owned(), "no dead letter"),
            (good.replace("\"request\":\"", "\"request\":\"*"), "no base64"),
            (good.replace("\"request\":\"", "\"request\":\"AAAA"), "request is damaged"),
            (good.replace("\"span_count\":2", "\"span_count\":3"), "said to have 3 spans"),
            (good.replace(&trace(1, 2).trace_id.to_string(), &other), "said to have 2 spans"),
        ] {
            let error = read(damaged.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
