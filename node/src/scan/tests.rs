//! The scanner against prost: both accept the same requests and find the same spans.

use super::*;
use crate::wire::arbitrary::{CASES, damage, request, unusual_request};
use crate::wire::put_varint;
use crate::wire::schema::NESTING_MAX;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message as _;

/// Scanner and prost both take the bytes, with the same result, or both refuse them. Only groups
/// and deep nesting may be refused by the scanner alone.
fn assert_agrees_with_prost(bytes: &[u8]) {
    match (scan(bytes), ExportTraceServiceRequest::decode(bytes)) {
        (Ok(scan), Ok(decoded)) => {
            assert_eq!(scan_trusted(bytes, 0).as_ref(), Ok(&scan));
            assert_eq!(scan_trusted(bytes, scan.ids_end).as_ref(), Ok(&scan));
            assert_same_contents(bytes, &scan, decoded);
        }
        (Ok(_), Err(error)) => panic!("prost alone refuses it: {error}"),
        (Err(ScanError::Malformed(malformed)), decoded) => {
            assert!(malformed.at <= bytes.len());
            let strict = matches!(malformed.problem, Problem::Group | Problem::Nesting);
            assert!(strict || decoded.is_err(), "the scanner alone refuses it: {malformed}");
            // Any number will do: a peer may say what it likes.
            let _ = (scan_trusted(bytes, 0), scan_trusted(bytes, malformed.at as u32));
        }
        (Err(error), _) => panic!("{error}"),
    }
}

fn payload(framed: &[u8]) -> &[u8] {
    let field = Reader::new(framed).next().unwrap().unwrap();
    assert_eq!((field.number, field.end), (CHILDREN, framed.len()));
    match field.value {
        Value::Bytes(payload) => payload,
        other => panic!("{other:?}"),
    }
}

fn is_acceptable(span: &Span) -> bool {
    let good = |id: &[u8], length| id.len() == length && id.iter().any(|byte| *byte != 0);
    good(&span.trace_id, 16) && good(&span.span_id, 8)
}

fn assert_same_contents(bytes: &[u8], scan: &Scan, decoded: ExportTraceServiceRequest) {
    let (mut resource, mut scope, mut span_index) = (0, 0, 0);
    let mut refused = 0;
    let mut traces: Vec<(TraceId, u32, u32)> = Vec::new();
    for mut resource_spans in decoded.resource_spans {
        let first_scope = scope;
        for mut scope_spans in std::mem::take(&mut resource_spans.scope_spans) {
            let first_span = span_index;
            for span in std::mem::take(&mut scope_spans.spans) {
                if !is_acceptable(&span) {
                    refused += 1;
                    continue;
                }
                let scanned = &scan.spans[span_index];
                assert_eq!(scanned.scope as usize, scope);
                assert_eq!(scanned.span_id.as_slice(), span.span_id);
                assert_eq!(scanned.kind, u8::try_from(span.kind).unwrap_or(u8::MAX));
                assert_eq!(scanned.root, span.parent_span_id.iter().all(|byte| *byte == 0));
                let id = TraceId(span.trace_id.as_slice().try_into().unwrap());
                let trace = traces.iter().position(|trace| trace.0 == id).unwrap_or_else(|| {
                    traces.push((id, 0, 0));
                    traces.len() - 1
                });
                traces[trace].1 += 1;
                traces[trace].2 += scanned.bytes();
                assert_eq!(scanned.trace as usize, trace);
                let raw = Span::decode(payload(&bytes[scanned.range()])).unwrap();
                assert_eq!(raw.encode_to_vec(), span.encode_to_vec());
                span_index += 1;
            }
            if span_index > first_span {
                let scanned = &scan.scopes[scope];
                assert_eq!(scanned.resource as usize, resource);
                let fields = scan.gather(bytes, &scanned.header);
                assert_eq!(fields.len(), scanned.header.bytes as usize);
                let raw = ScopeSpans::decode(&*fields).unwrap();
                assert_eq!(raw.encode_to_vec(), scope_spans.encode_to_vec());
                scope += 1;
            }
        }
        if scope > first_scope {
            let fields = scan.gather(bytes, &scan.resources[resource].header);
            let raw = ResourceSpans::decode(&*fields).unwrap();
            assert_eq!(raw.encode_to_vec(), resource_spans.encode_to_vec());
            resource += 1;
        }
    }
    let counts = (scan.resources.len(), scan.scopes.len(), scan.spans.len());
    assert_eq!(counts, (resource, scope, span_index));
    assert_eq!(scan.refused_span_count, refused);
    let scanned: Vec<_> = scan.traces.iter().map(|t| (t.id, t.span_count, t.bytes)).collect();
    assert_eq!(scanned, traces);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn a_valid_request_is_scanned_as_prost_decodes_it(request in request()) {
        let bytes = request.encode_to_vec();
        prop_assert!(scan(&bytes).is_ok());
        assert_agrees_with_prost(&bytes);
    }

    #[test]
    fn an_unusually_encoded_request_is_scanned_as_prost_decodes_it(bytes in unusual_request()) {
        prop_assert!(scan(&bytes).is_ok());
        assert_agrees_with_prost(&bytes);
    }

    #[test]
    fn a_damaged_request_is_accepted_by_both_or_by_none(
        request in unusual_request(), damages in prop::collection::vec(damage(), 12),
    ) {
        for damage in damages {
            let mut bytes = request.clone();
            damage.iter().for_each(|damage| damage.apply(&mut bytes));
            assert_agrees_with_prost(&bytes);
        }
    }

    #[test]
    fn random_bytes_are_accepted_by_both_or_by_none(bytes in any::<Vec<u8>>()) {
        assert_agrees_with_prost(&bytes);
    }

    #[test]
    fn larger_spans_are_refused_and_the_others_stay(
        bytes in unusual_request(), bytes_max in 30..2000usize,
    ) {
        let before = scan(&bytes).unwrap();
        let mut after = before.clone();
        let refused = after.refuse_larger(&bytes, bytes_max);
        prop_assert_eq!(after.spans.len() + refused as usize, before.spans.len());
        prop_assert_eq!(after.refused_span_count, before.refused_span_count);
        let of = |scan: &Scan, span: &ScannedSpan| {
            let scope = scan.scopes[span.scope as usize].clone();
            let resource = scan.resources[scope.resource as usize].clone();
            (span.range(), scan.traces[span.trace as usize].id, scope.header, resource.header)
        };
        let small = before.spans.iter().filter(|span| before.fits(span, bytes_max));
        let expected: Vec<_> = small.map(|span| of(&before, span)).collect();
        let rest: Vec<_> = after.spans.iter().map(|span| of(&after, span)).collect();
        let headers_fit = bytes.len() <= bytes_max / HEADER_SHARE;
        prop_assert!(headers_fit && refused == 0 || rest == expected);
        for (index, trace) in after.traces.iter().enumerate() {
            let spans = after.spans.iter().filter(|span| span.trace as usize == index);
            prop_assert_eq!(trace.span_count as usize, spans.clone().count());
            prop_assert_eq!(trace.bytes, spans.map(ScannedSpan::bytes).sum::<u32>());
            prop_assert!(trace.span_count > 0);
        }
        let used: std::collections::BTreeSet<_> = after.spans.iter().map(|s| s.scope).collect();
        prop_assert_eq!(used.len(), after.scopes.len());
    }
}

/// A framed field of a number below 16.
fn framed(number: usize, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, number * 8 + 2);
    put_varint(&mut out, payload.len());
    out.extend(payload);
    out
}

fn request_of_spans(spans: &[Vec<u8>]) -> Vec<u8> {
    let spans: Vec<_> = spans.iter().map(|span| framed(2, span)).collect();
    framed(1, &framed(2, &spans.concat()))
}

fn span(trace: u8, id: u8) -> Vec<u8> {
    [framed(1, &[trace; 16]), framed(2, &[id; 8])].concat()
}

fn problem(request: &[u8]) -> String {
    scan(request).unwrap_err().to_string()
}

#[test]
fn a_request_cut_anywhere_is_accepted_by_both_or_by_none() {
    let attribute =
        framed(9, &[framed(1, b"key"), framed(2, &framed(1, "välue".as_bytes()))].concat());
    let span = [span(1, 1), framed(5, b"name"), attribute].concat();
    let request = request_of_spans(&[span.clone(), span]).repeat(2);
    for end in 0..=request.len() {
        assert_agrees_with_prost(&request[..end]);
    }
}

#[test]
fn nesting_is_accepted_up_to_the_limit() {
    // Resource spans, scope spans, span, attribute, value: 5 inside the request. A list adds
    // three, an array two.
    let nested = |lists: u32, arrays: u32| {
        let list = |inner: Vec<u8>, _| framed(6, &framed(1, &framed(2, &inner)));
        let array = |inner: Vec<u8>, _| framed(5, &framed(1, &inner));
        let value = (0..arrays).fold((0..lists).fold(vec![], list), array);
        request_of_spans(&[[span(1, 1), framed(9, &framed(2, &value))].concat()])
    };
    for lists in 0..2 {
        for arrays in 0..60 {
            let request = nested(lists, arrays);
            let accepted = scan(&request).is_ok();
            assert_eq!(accepted, 5 + 3 * lists + 2 * arrays <= NESTING_MAX, "{lists}, {arrays}");
            assert_agrees_with_prost(&request);
        }
    }
    assert!(problem(&nested(0, 60)).starts_with("too deep nesting in attribute value at byte "));
}

#[test]
fn every_field_is_accepted_with_every_wire_type_by_both_or_by_none() {
    let span_with = |field: Vec<u8>| request_of_spans(&[[span(1, 1), field].concat()]);
    let scope_with =
        |field: Vec<u8>| framed(1, &framed(2, &[framed(2, &span(1, 1)), field].concat()));
    let resource_with =
        |field: Vec<u8>| framed(1, &[framed(2, &framed(2, &span(1, 1))), field].concat());
    let payloads: [(usize, &[u8]); 9] = [
        (0, b"\x01"),
        (0, b"\x80\x80\x01"),
        (1, b"12345678"),
        (2, b"\x00"),
        (2, b"\x02\xc3\x28"),
        (2, b"\x02\x0a\x00"),
        (3, b""),
        (4, b""),
        (5, b"1234"),
    ];
    for number in 1..=18 {
        for (wire_type, payload) in payloads {
            let mut field = Vec::new();
            put_varint(&mut field, number * 8 + wire_type);
            field.extend(payload);
            let any = framed(2, &field);
            for request in [
                field.clone(),
                resource_with(field.clone()),
                resource_with(framed(1, &field)),
                resource_with(framed(1, &framed(3, &field))),
                scope_with(field.clone()),
                scope_with(framed(1, &field)),
                span_with(field.clone()),
                span_with(framed(11, &field)),
                span_with(framed(13, &field)),
                span_with(framed(15, &field)),
                span_with(framed(9, &field)),
                span_with(framed(9, &any)),
                span_with(framed(9, &[framed(1, b"key"), any.clone()].concat())),
                span_with(framed(9, &framed(2, &framed(5, &field)))),
                span_with(framed(9, &framed(2, &framed(6, &field)))),
            ] {
                assert_agrees_with_prost(&request);
            }
        }
    }
}

#[test]
fn an_error_says_what_and_where() {
    let with = |field: Vec<u8>| request_of_spans(&[[span(1, 1), field].concat()]);
    assert_eq!(problem(&with(framed(5, b"caf\xe9!"))), "invalid UTF-8 in name of span at byte 39");
    assert_eq!(problem(&with(vec![0x5b, 0x5c])), "group in span at byte 34");
    assert_eq!(
        problem(&with(vec![0x2d, 0, 0, 0, 0])),
        "wrong wire type in name of span at byte 34"
    );
    assert_eq!(problem(&with(vec![0x2a, 5, b'a'])), "truncated field in span at byte 34");
    assert_eq!(problem(&with(vec![0x30; 1])), "truncated field in span at byte 35");
    assert_eq!(
        problem(&with([&[0x30][..], &[0x80; 10]].concat())),
        "overlong varint in span at byte 35"
    );
    assert_eq!(problem(&[0x00, 0x00]), "invalid field tag in request at byte 0");
    assert_eq!(problem(&[0x08, 0x00]), "wrong wire type in resource spans at byte 0");
}

#[test]
fn an_empty_request_has_nothing_and_is_valid() {
    assert_eq!(scan(&[]), Ok(Scan::default()));
    // Neither have resources and scopes without spans.
    assert_eq!(scan(&framed(1, &framed(2, &framed(1, b"")))), Ok(Scan::default()));
}

#[test]
fn zero_and_wrong_length_ids_are_refused_and_the_rest_is_taken() {
    let request = request_of_spans(&[
        span(0, 1),
        span(1, 0),
        [framed(1, &[1; 15]), framed(2, &[1; 8])].concat(),
        [framed(1, &[1; 16]), framed(2, &[1; 9])].concat(),
        vec![],
        span(1, 1),
    ]);
    let scan = scan(&request).unwrap();
    assert_eq!((scan.refused_span_count, scan.spans.len(), scan.traces.len()), (5, 1, 1));
}

#[test]
fn the_last_of_repeated_ids_counts() {
    let repeated = [span(1, 1), framed(4, &[7; 8]), span(2, 2), framed(4, &[])].concat();
    let scan = scan(&request_of_spans(&[repeated])).unwrap();
    assert_eq!(scan.traces[0].id, TraceId([2; 16]));
    assert_eq!(scan.spans[0].span_id, [2; 8]);
    assert!(scan.spans[0].root);
}

#[test]
fn unknown_fields_stay_with_their_header() {
    let unknown = |text: &[u8]| [&[0xfa, 0x3f][..], &framed(15, text)[1..]].concat();
    let scope = [unknown(b"before"), framed(2, &span(1, 1)), unknown(b"after")].concat();
    let resource = [framed(2, &scope), framed(3, b"url"), unknown(b"last")].concat();
    let request = framed(1, &resource);
    let scan = scan(&request).unwrap();
    let header = scan.gather(&request, &scan.scopes[0].header);
    assert_eq!(*header, [unknown(b"before"), unknown(b"after")].concat());
    let header = scan.gather(&request, &scan.resources[0].header);
    assert_eq!(*header, [framed(3, b"url"), unknown(b"last")].concat());
}

#[test]
fn what_comes_after_the_ids_is_not_looked_at_in_a_frame_that_says_where_they_end() {
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        parent_span_id: vec![3; 8],
        name: "GET".to_owned(),
        kind: 2,
        start_time_unix_nano: 7,
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let mut frame = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let scan = scan(&frame).unwrap();
    // Tags and lengths are a byte each: the ids, the name, the kind.
    assert_eq!(scan.ids_end, 18 + 10 + 10 + 5 + 2);
    // The tag of the start time becomes that of a field that ends behind the frame.
    let tag = frame.len() - 9;
    assert_eq!(frame[tag], 0x39);
    frame[tag..].fill(0xff);
    assert_eq!(scan_trusted(&frame, scan.ids_end), Ok(scan));
    assert!(scan_trusted(&frame, 0).is_err());
}
