//! Every part is a valid request, and together they are what was split.

use super::*;
use crate::scan::{scan, scan_trusted};
use crate::wire::arbitrary::{CASES, unusual_request};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message as _;

/// A span with what stands above it, encoded, because `NaN`s differ from themselves.
fn flat(request: &ExportTraceServiceRequest) -> Vec<Vec<u8>> {
    let mut spans = Vec::new();
    for resource_spans in &request.resource_spans {
        for scope_spans in &resource_spans.scope_spans {
            for span in &scope_spans.spans {
                let scope_spans =
                    vec![ScopeSpans { spans: vec![span.clone()], ..scope_spans.clone() }];
                let resource_spans = ResourceSpans { scope_spans, ..resource_spans.clone() };
                spans.push(resource_spans.encode_to_vec());
            }
        }
    }
    spans
}

/// The request with some of its spans, without empty scopes and resources.
fn subset(
    request: &ExportTraceServiceRequest,
    wanted: impl Fn(&Span) -> bool,
) -> ExportTraceServiceRequest {
    let mut request = request.clone();
    for resource_spans in &mut request.resource_spans {
        for scope_spans in &mut resource_spans.scope_spans {
            scope_spans.spans.retain(&wanted);
        }
        resource_spans.scope_spans.retain(|scope_spans| !scope_spans.spans.is_empty());
    }
    request.resource_spans.retain(|resource_spans| !resource_spans.scope_spans.is_empty());
    request
}

fn targets() -> impl Strategy<Value = Targets> {
    let target = prop_oneof![0..TARGET_COUNT as u16, Just(Targets::NONE)];
    [target.clone(), target].prop_map(Targets)
}

const TARGET_COUNT: usize = 4;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn every_target_gets_the_spans_of_its_traces(
        bytes in unusual_request(),
        choices in prop::collection::vec(targets(), 60),
        part_bytes_max in prop_oneof![Just(usize::MAX), 0..3000usize],
    ) {
        let scan = scan(&bytes).unwrap();
        let targets: Vec<_> =
            (0..scan.traces.len()).map(|trace| choices[trace % choices.len()]).collect();
        let batches = split(&bytes, &scan, TARGET_COUNT, &targets, part_bytes_max);
        prop_assert_eq!(batches.len(), TARGET_COUNT);
        let decoded = ExportTraceServiceRequest::decode(&*bytes).unwrap();
        for (target, batch) in batches.iter().enumerate() {
            let expected = subset(&decoded, |span| {
                scan.traces.iter().zip(&targets).any(|(trace, targets)| {
                    trace.id.0[..] == span.trace_id
                        && span.span_id.len() == 8
                        && span.span_id.iter().any(|byte| *byte != 0)
                        && targets.0.contains(&(target as u16))
                })
            });
            let mut spans = Vec::new();
            for part in batch {
                let decoded = ExportTraceServiceRequest::decode(&*part.request).unwrap();
                spans.extend(flat(&decoded));
                let rescan = scan_trusted(&part.request, scan.ids_end).unwrap();
                prop_assert_eq!(&scan_trusted(&part.request, 0).unwrap(), &rescan);
                prop_assert_eq!(rescan.refused_span_count, 0);
                prop_assert!(part.request.len() <= part_bytes_max || rescan.spans.len() == 1);
                let mut traces: Vec<_> = rescan.traces.iter().map(|trace| trace.id).collect();
                let mut listed: Vec<_> =
                    part.traces.iter().map(|trace| scan.traces[*trace as usize].id).collect();
                prop_assert!(part.traces.is_sorted_by(|a, b| a < b));
                traces.sort_unstable();
                listed.sort_unstable();
                prop_assert_eq!(traces, listed);
                if batch.len() == 1 {
                    prop_assert_eq!(decoded.encode_to_vec(), expected.encode_to_vec());
                }
            }
            prop_assert_eq!(spans, flat(&expected));
            if part_bytes_max == usize::MAX {
                prop_assert!(batch.len() <= 1);
            }
        }
    }
}

#[test]
fn parts_are_as_full_as_the_limit_allows() {
    let span = |trace: u8| Span {
        trace_id: vec![trace; 16],
        span_id: vec![1; 8],
        name: "x".repeat(64),
        ..Span::default()
    };
    let scope_spans =
        vec![ScopeSpans { spans: (1..=100).map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let scan = scan(&request).unwrap();
    let targets = vec![Targets([0, Targets::NONE]); 100];
    // A span is 96 bytes with its frame; two frames of 3 bytes around them.
    let batches = split(&request, &scan, 1, &targets, 96 * 10 + 6);
    let counts: Vec<_> = batches[0].iter().map(|part| part.traces.len()).collect();
    assert_eq!(counts, [10; 10]);
    let batches = split(&request, &scan, 1, &targets, 96 * 10 + 5);
    assert_eq!(batches[0].len(), 12);
    assert_eq!(batches[0][11].traces, [99]);
}

#[test]
fn a_span_with_the_same_target_twice_goes_there_once() {
    let span = Span { trace_id: vec![1; 16], span_id: vec![1; 8], ..Span::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let batches = split(&request, &scan(&request).unwrap(), 2, &[Targets([1, 1])], usize::MAX);
    assert!(batches[0].is_empty());
    assert_eq!(batches[1].len(), 1);
    assert_eq!(*batches[1][0].request, *request);
}
