//! A request of a client: the scanner takes what prost takes, and finds the same spans.
//!
//! Only groups and deep nesting may be refused by the scanner alone.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tracemesh::scan::{ScanError, scan, scan_trusted};
use tracemesh::wire::Problem;

/// The property of any bytes.
pub fn check(bytes: &[u8]) {
    match (scan(bytes), ExportTraceServiceRequest::decode(bytes)) {
        (Ok(scan), Ok(decoded)) => {
            assert_eq!(scan_trusted(bytes, 0).as_ref(), Ok(&scan));
            assert_eq!(scan_trusted(bytes, scan.ids_end).as_ref(), Ok(&scan));
            let is_good = |id: &[u8], length| id.len() == length && id.iter().any(|byte| *byte > 0);
            let scopes = decoded.resource_spans.iter().flat_map(|spans| &spans.scope_spans);
            let all: Vec<_> = scopes.flat_map(|spans| &spans.spans).collect();
            let (good, refused): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|span| is_good(&span.trace_id, 16) && is_good(&span.span_id, 8));
            assert_eq!(scan.refused_span_count as usize, refused.len());
            assert_eq!(scan.spans.len(), good.len());
            for (scanned, span) in scan.spans.iter().zip(good) {
                assert_eq!(scan.traces[scanned.trace as usize].id.0[..], span.trace_id);
                assert_eq!(scanned.span_id[..], span.span_id);
            }
        }
        (Ok(_), Err(error)) => panic!("prost alone refuses it: {error}"),
        (Err(ScanError::Malformed(malformed)), decoded) => {
            let is_strict = matches!(malformed.problem, Problem::Group | Problem::Nesting);
            assert!(is_strict || decoded.is_err(), "the scanner alone refuses it: {malformed}");
        }
        (Err(error), _) => panic!("{error}"),
    }
}
