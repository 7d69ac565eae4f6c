//! JSON against the protobuf it stands for, rule by rule and by property.

use super::*;
use crate::scan::scan;
use crate::wire::arbitrary::{CASES, request, unusual_request};
use crate::wire::schema::NESTING_MAX;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message as _;

/// JSON has only one `NaN`.
fn with_one_nan(mut request: ExportTraceServiceRequest) -> ExportTraceServiceRequest {
    use any_value::Value;
    fn mend(any: &mut AnyValue) {
        match &mut any.value {
            Some(Value::DoubleValue(value)) if value.is_nan() => *value = f64::NAN,
            Some(Value::ArrayValue(array)) => array.values.iter_mut().for_each(mend),
            Some(Value::KvlistValue(list)) => {
                list.values.iter_mut().filter_map(|pair| pair.value.as_mut()).for_each(mend);
            }
            _ => {}
        }
    }
    for resource_spans in &mut request.resource_spans {
        let resource = resource_spans.resource.iter_mut().flat_map(|r| &mut r.attributes);
        resource.filter_map(|pair| pair.value.as_mut()).for_each(mend);
        for scope_spans in &mut resource_spans.scope_spans {
            let scope = scope_spans.scope.iter_mut().flat_map(|s| &mut s.attributes);
            scope.filter_map(|pair| pair.value.as_mut()).for_each(mend);
            for span in &mut scope_spans.spans {
                let inner = span.events.iter_mut().map(|event| &mut event.attributes);
                let links = span.links.iter_mut().map(|link| &mut link.attributes);
                let all = inner.chain(links).chain([&mut span.attributes]).flatten();
                all.filter_map(|pair| pair.value.as_mut()).for_each(mend);
            }
        }
    }
    request
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    with_one_nan(ExportTraceServiceRequest::decode(bytes).unwrap()).encode_to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn a_request_comes_back_from_json_as_it_was(bytes in unusual_request()) {
        let json = to_json(&bytes).unwrap();
        prop_assert!(!json.contains('\n'));
        let back = from_json(json.as_bytes()).unwrap();
        prop_assert!(scan(&back).is_ok());
        prop_assert_eq!(decode(&back), decode(&bytes));
    }

    #[test]
    fn what_opentelemetry_writes_as_json_is_read(request in request()) {
        let json = serde_json::to_string(&request).unwrap();
        // It writes doubles that are no numbers as null.
        prop_assume!(!json.contains("\"doubleValue\":null"));
        let bytes = from_json(json.as_bytes()).unwrap();
        prop_assert_eq!(decode(&bytes), request.encode_to_vec());
    }

    #[test]
    fn any_text_is_read_or_refused(
        request in request(), cut in any::<usize>(), text in "[\\[\\]{}:,\"a0 ]{0,5}",
    ) {
        let mut json = to_json(&request.encode_to_vec()).unwrap().into_bytes();
        let cut = cut % (json.len() + 1);
        json.splice(cut..cut, text.into_bytes());
        if let Ok(bytes) = from_json(&json) {
            prop_assert!(scan(&bytes).is_ok());
        }
        json.truncate(cut);
        prop_assert!(from_json(&json).is_err() || cut == json.len());
    }

    #[test]
    fn any_bytes_are_written_or_refused(bytes in any::<Vec<u8>>()) {
        let written = to_json(&bytes).is_ok();
        prop_assert!(written || ExportTraceServiceRequest::decode(&*bytes).is_err()
            || scan(&bytes).is_err());
    }
}

/// The one span of a request with these keys in its span.
fn span(keys: &str) -> Result<Span, String> {
    let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{keys}}}]}}]}}]}}"#);
    let bytes = from_json(json.as_bytes()).map_err(|error| error.to_string())?;
    let mut request = ExportTraceServiceRequest::decode(&*bytes).unwrap();
    Ok(request.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0))
}

fn value(json: &str) -> Result<Option<any_value::Value>, String> {
    let mut span = span(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#))?;
    Ok(span.attributes.remove(0).value.and_then(|any| any.value))
}

#[test]
fn the_example_of_the_specification_is_read() {
    let json = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":
        {"stringValue":"my.service"}}]},"scopeSpans":[{"scope":{"name":"my.library","version":
        "1.0.0","attributes":[{"key":"my.scope.attribute","value":{"stringValue":
        "some scope attribute"}}]},"spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":
        "EEE19B7EC3C1B174","parentSpanId":"EEE19B7EC3C1B173","name":"I'm a server span",
        "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000","kind":2,
        "attributes":[{"key":"my.span.attr","value":{"stringValue":"some value"}}]}]}]}]}"#;
    let bytes = from_json(json.as_bytes()).unwrap();
    let scan = scan(&bytes).unwrap();
    assert_eq!(scan.traces[0].id.to_string(), "5b8efff798038103d269b633813fc60c");
    assert_eq!((scan.spans[0].kind, scan.spans[0].root), (2, false));
    let compact: String = json.split_inclusive('\n').map(str::trim).collect();
    let lower = compact
        .replace("5B8EFFF798038103D269B633813FC60C", "5b8efff798038103d269b633813fc60c")
        .replace("EEE19B7EC3C1B174", "eee19b7ec3c1b174")
        .replace("EEE19B7EC3C1B173", "eee19b7ec3c1b173");
    // Keys in the order of the fields.
    let (before, after) = lower.split_once(r#""startTimeUnixNano""#).unwrap();
    let (start_and_end, rest) = after.split_once(r#","kind":2"#).unwrap();
    let ordered = format!(r#"{before}"kind":2,"startTimeUnixNano"{start_and_end}{rest}"#);
    assert_eq!(to_json(&bytes).unwrap(), ordered);
}

#[test]
fn null_is_as_if_the_key_were_missing() {
    assert!(from_json(br#"{"resourceSpans":null}"#).unwrap().is_empty());
    assert!(from_json(b"{}").unwrap().is_empty());
    let nulls = r#""traceId":null,"name":null,"kind":null,"startTimeUnixNano":null,
        "attributes":null,"droppedAttributesCount":null,"events":null,"status":null,"flags":null"#;
    assert_eq!(span(nulls), Ok(Span::default()));
    assert_eq!(value("null"), Ok(None));
    assert_eq!(value("{}"), Ok(None));
    assert_eq!(value(r#"{"stringValue":null,"intValue":null}"#), Ok(None));
}

#[test]
fn unknown_keys_are_ignored_whatever_they_hold() {
    let unknown = r#""x":{"traceId":[1,{"y":null}]},"trace_id":"zz","TraceId":1,"name":"n""#;
    assert_eq!(span(unknown), Ok(Span { name: "n".to_owned(), ..Span::default() }));
    let known = Some(any_value::Value::BoolValue(true));
    assert_eq!(value(r#"{"newValue":{"a":1},"boolValue":true}"#), Ok(known));
}

#[test]
fn integers_are_numbers_or_strings() {
    let int = |number: i64| Ok(Some(any_value::Value::IntValue(number)));
    assert_eq!(value(r#"{"intValue":"-9223372036854775808"}"#), int(i64::MIN));
    assert_eq!(value(r#"{"intValue":9223372036854775807}"#), int(i64::MAX));
    assert_eq!(value(r#"{"intValue":1e3}"#), int(1000));
    assert_eq!(value(r#"{"intValue":-0.0}"#), int(0));
    let big = span(r#""startTimeUnixNano":18446744073709551615,"endTimeUnixNano":"1""#).unwrap();
    assert_eq!((big.start_time_unix_nano, big.end_time_unix_nano), (u64::MAX, 1));
    let small = span(r#""kind":-1,"flags":"257","droppedEventsCount":4294967295"#).unwrap();
    assert_eq!((small.kind, small.flags, small.dropped_events_count), (-1, 257, u32::MAX));
    for (key, wrong) in [
        ("kind", "2147483648"),
        ("kind", r#""SPAN_KIND_SERVER""#),
        ("kind", "true"),
        ("flags", "-1"),
        ("droppedLinksCount", "4294967296"),
        ("startTimeUnixNano", "18446744073709551616"),
        ("startTimeUnixNano", "-1"),
        ("startTimeUnixNano", "1.5"),
        ("endTimeUnixNano", r#""""#),
        ("endTimeUnixNano", r#""2024-01-01""#),
    ] {
        assert!(span(&format!(r#""{key}":{wrong}"#)).is_err(), "{key} {wrong}");
    }
}

#[test]
fn doubles_are_numbers_or_strings() {
    for (json, expected) in [
        ("1.5", 1.5),
        ("3", 3.0),
        ("-7", -7.0),
        ("18446744073709551615", 18446744073709551615.0),
        (r#""0.1""#, 0.1),
        (r#""Infinity""#, f64::INFINITY),
        (r#""-Infinity""#, f64::NEG_INFINITY),
    ] {
        let double = value(&format!(r#"{{"doubleValue":{json}}}"#));
        assert_eq!(double, Ok(Some(any_value::Value::DoubleValue(expected))));
    }
    let nan = value(r#"{"doubleValue":"NaN"}"#).unwrap();
    assert!(matches!(nan, Some(any_value::Value::DoubleValue(nan)) if nan.is_nan()));
    for wrong in [r#""nan""#, r#""inf""#, r#""""#, "true", "{}", "1e400"] {
        assert!(value(&format!(r#"{{"doubleValue":{wrong}}}"#)).is_err(), "{wrong}");
    }
}

#[test]
fn bytes_are_base64_of_either_alphabet() {
    let bytes = |bytes: &[u8]| Ok(Some(any_value::Value::BytesValue(bytes.to_vec())));
    assert_eq!(value(r#"{"bytesValue":"+/8="}"#), bytes(&[0xfb, 0xff]));
    assert_eq!(value(r#"{"bytesValue":"-_8"}"#), bytes(&[0xfb, 0xff]));
    assert_eq!(value(r#"{"bytesValue":""}"#), bytes(&[]));
    assert!(value(r#"{"bytesValue":"*"}"#).is_err());
}

#[test]
fn ids_are_hexadecimal_and_their_length_is_the_scanners_business() {
    let ids = span(r#""traceId":"0aFF","spanId":"","parentSpanId":"00""#).unwrap();
    assert_eq!((ids.trace_id, ids.span_id, ids.parent_span_id), (vec![10, 255], vec![], vec![0]));
    for wrong in [r#""0""#, r#""0g""#, "17", r#""W47/95gDgQPSabYzgT/GDA==""#] {
        assert!(span(&format!(r#""traceId":{wrong}"#)).is_err(), "{wrong}");
    }
}

#[test]
fn values_nest_and_the_last_of_two_counts() {
    let nested = r#"{"kvlistValue":{"values":[{"key":"a","value":{"arrayValue":{"values":[{},
        {"intValue":1},{"arrayValue":{"values":null}}]}}},{"key":"b"}]}}"#;
    let Some(any_value::Value::KvlistValue(list)) = value(nested).unwrap() else {
        panic!("not a list");
    };
    assert_eq!(list.values.len(), 2);
    assert_eq!(list.values[1].value, None);
    let last = Some(any_value::Value::BoolValue(true));
    assert_eq!(value(r#"{"stringValue":"a","boolValue":true}"#), Ok(last));
}

#[test]
fn an_error_says_where() {
    let error = |json: &str| from_json(json.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        error("{\"resourceSpans\":\n 7}"),
        "invalid OTLP JSON: invalid type: integer `7`, expected an array for resourceSpans at \
         line 2 column 2"
    );
    assert!(error("[]").contains("expected an object: request at line 1"));
    assert!(error("").contains("at line 1 column 0"));
    assert!(error("{} x").contains("trailing characters at line 1 column 4"));
    assert!(from_json(b"{\"resourceSpans\":[{\"schemaUrl\":\"\xff\"}]}").is_err());
    assert!(error(r#"{"resourceSpans":[null]}"#).contains("expected an object"));
}

#[test]
fn deep_nesting_is_refused_and_ignored_where_the_key_is_unknown() {
    let deep = format!("{}1{}", r#"{"arrayValue":{"values":["#.repeat(9_999), "]}}".repeat(9_999));
    assert!(value(&deep).unwrap_err().contains("recursion limit exceeded at line 1"));
    let unknown = format!(r#"{{"x":{}{}}}"#, "[".repeat(99_999), "]".repeat(99_999));
    assert_eq!(value(&unknown), Ok(None));
}

#[test]
fn empty_objects_take_no_more_memory_than_twice_their_text() {
    let attributes = vec!["{}"; 10_000].join(",");
    let json = format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{attributes}]}}}}]}}"#);
    let bytes = from_json(json.as_bytes()).unwrap();
    assert!(bytes.capacity() <= 2 * json.len());
}

#[test]
fn whatever_is_accepted_can_be_written_and_read_again() {
    // Two levels of messages an array, below the five that every attribute value has above it.
    let nested = |arrays: u32| {
        let value = (0..arrays).fold(AnyValue::default(), |inner, _| {
            let values = vec![inner];
            AnyValue { value: Some(any_value::Value::ArrayValue(ArrayValue { values })) }
        });
        let pair = KeyValue { key: "k".to_owned(), value: Some(value) };
        let span = Span { attributes: vec![pair], ..Span::default() };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    };
    let deepest = nested((NESTING_MAX - 5) / 2);
    assert!(scan(&deepest).is_ok());
    assert_eq!(from_json(to_json(&deepest).unwrap().as_bytes()).unwrap(), deepest);
    let deeper = nested((NESTING_MAX - 5) / 2 + 1);
    assert!(scan(&deeper).is_err());
    assert!(to_json(&deeper).unwrap_err().to_string().ends_with("too deep nesting"));
}

#[test]
fn of_two_values_the_last_is_written() {
    let written = |any: &[u8]| {
        let wrap = |tag: u8, payload: &[u8]| [&[tag, payload.len() as u8], payload].concat();
        let span = wrap(0x4a, &wrap(0x12, any));
        let json = to_json(&wrap(0x0a, &wrap(0x12, &wrap(0x12, &span)))).unwrap();
        let value = json.split_once(r#""value":"#).unwrap().1;
        value.strip_suffix("}]}]}]}]}").unwrap().to_owned()
    };
    let (int, text, array) = (b"\x18\x05", b"\x0a\x01a", b"\x2a\x02\x0a\x00");
    assert_eq!(written(&[&int[..], text].concat()), r#"{"stringValue":"a"}"#);
    assert_eq!(written(&[&text[..], int].concat()), r#"{"intValue":"5"}"#);
    let merged = r#"{"arrayValue":{"values":[{},{}]}}"#;
    assert_eq!(written(&[&int[..], array, array].concat()), merged);
    let last = r#"{"arrayValue":{"values":[{}]}}"#;
    assert_eq!(written(&[&array[..], text, array].concat()), last);
}
