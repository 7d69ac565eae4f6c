//! What clients should not send: each is refused for good, or taken, and the node goes on.

use crate::host;
use crate::otlp::{self, Noise, PROTOBUF, around_span, encoded, field, hex, span, trace, trace_id};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use tonic::Code;
use tracemesh_tests::grpc::{self, Answer, Server};
use tracemesh_tests::http;
use tracemesh_tests::node::Node;
use tracemesh_tests::traces;
use tracemesh_tests::wait::{wait_for, wait_until};

/// A limit on requests that tests can exceed without much memory.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What a decompressed bomb would take.
const BOMB_BYTES: usize = 256 << 20;

/// Compresses with gzip.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}

/// Both protocols refuse `body` for good, with a message that has `word`.
#[track_caller]
fn assert_refused(node: &Node, body: &[u8], word: &str) {
    let answer = node.post(PROTOBUF, body);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains(word), "{:?} says {word:?}", answer.text());
    let status = grpc::Client::new(node.grpc_url()).export(body.to_vec());
    let status = status.expect_err("gRPC refuses what HTTP refuses");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(word), "{:?} says {word:?}", status.message());
}

/// The node takes a trace and writes it, after whatever was sent to it before.
#[track_caller]
fn assert_goes_on(node: &Node) {
    let id = trace_id(999_999);
    assert_eq!(node.post(PROTOBUF, &encoded(trace(&id, 2))).status, 200);
    assert_eq!(node.wait_for_trace(&hex(&id)).spans.len(), 2);
}

#[test]
fn empty_requests_succeed() {
    let host = host();
    let node = host.node("a").start();
    let answer = node.post(PROTOBUF, &[]);
    assert_eq!((answer.status, answer.header("content-type")), (200, PROTOBUF));
    let answer = node.post("application/json", b"{}");
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert_eq!(node.post(PROTOBUF, &encoded(Vec::new())).status, 200);
    grpc::Client::new(node.grpc_url()).export(Vec::new()).expect("nothing is a valid request");
    assert_eq!(node.metrics().sum("tracemesh_spans_accepted_total", &[]), 0.0);
}

#[test]
fn no_prefix_of_a_request_and_no_noise_harms_the_node() {
    let host = host();
    let node = host.node("a").start();
    let whole = encoded(trace(&trace_id(1), 2));
    let mut client = grpc::Client::new(node.grpc_url());
    let mut refused_count = 0;
    for end in 0..whole.len() {
        let status = node.post(PROTOBUF, &whole[..end]).status;
        assert!([200, 400].contains(&status), "{status} for the first {end} bytes");
        let code = client.export(whole[..end].to_vec()).err().map(|status| status.code());
        assert_eq!(code, (status == 400).then_some(Code::InvalidArgument), "first {end} bytes");
        refused_count += usize::from(status == 400);
    }
    assert!(refused_count > whole.len() / 2, "{refused_count} of {} refused", whole.len());
    let mut noise = Noise(7);
    for length in 0..200 {
        let bytes: Vec<u8> = (0..length).map(|_| noise.byte()).collect();
        let status = node.post(PROTOBUF, &bytes).status;
        assert!([200, 400].contains(&status), "{status} for {bytes:?}");
        let status = node.post("application/json", &bytes).status;
        assert!([200, 400].contains(&status), "{status} for {bytes:?} as JSON");
    }
    assert_goes_on(&node);
}

#[test]
fn malformed_requests_are_refused_with_the_place() {
    let host = host();
    let node = host.node("a").start();
    let mut bytes = span(&trace_id(1), 0).encode_to_vec();
    bytes.extend(field(5, b"not \xff UTF-8"));
    assert_refused(&node, &around_span(&bytes), "UTF-8");
    assert_refused(&node, &around_span(&bytes), "byte");
    // Wire type 3 begins a group, which OTLP never had.
    assert_refused(&node, &[0x0b, 0x0c], "byte 0");
    // The length of the first field is beyond the end.
    assert_refused(&node, &[0x0a, 0x7f], "byte");
    let mut value = Vec::new();
    for _ in 0..1000 {
        value = field(5, &field(1, &value));
    }
    let attribute = field(9, &[field(1, b"deep"), field(2, &value)].concat());
    let deep = [span(&trace_id(2), 0).encode_to_vec(), attribute].concat();
    assert_refused(&node, &around_span(&deep), "byte");
    let answer = node.post("application/json", b"{\"resourceSpans\": 7}");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("line 1"), "{}", answer.text());
    assert_eq!(node.metrics().sum("tracemesh_spans_accepted_total", &[]), 0.0);
    assert_goes_on(&node);
}

#[test]
fn spans_with_unusable_ids_are_counted_in_partial_success_and_the_rest_is_kept() {
    let host = host();
    let node = host.node("a").start();
    let good = trace_id(1);
    let mut spans = trace(&good, 3);
    spans.push(span(&[0; 16], 0));
    spans.push(span(&[1; 15], 0));
    spans.push(otlp_span_with_id(&good, vec![0; 8]));
    spans.push(otlp_span_with_id(&good, vec![7; 9]));
    let answer = node.post(PROTOBUF, &encoded(spans.clone()));
    assert_eq!(answer.status, 200);
    let (count, message) = otlp::refused(&answer.body);
    assert_eq!(count, 4, "{message}");
    assert!(!message.is_empty(), "the client is told why");
    assert_eq!(node.wait_for_trace(&hex(&good)).spans.len(), 3);
    let answer = grpc::Client::new(node.grpc_url()).export(encoded(spans));
    assert_eq!(otlp::refused(&answer.expect("a request in parts succeeds")).0, 4);
    let ids = [("reason", "ids")];
    node.wait_for_metric("tracemesh_spans_refused_total", &ids, 8.0);

    let other = hex(&trace_id(2));
    let span = |trace_id: &str, span_id: &str| json!({ "traceId": trace_id, "spanId": span_id });
    let spans = json!([
        span(&other, "00000000000000aa"),
        span("00", "00000000000000aa"),
        span(&other, "aa"),
        span(&"0".repeat(32), "00000000000000aa"),
    ]);
    let request = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": spans }] }] });
    let answer = node.post("application/json", request.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["partialSuccess"]["rejectedSpans"], "3", "{}", answer.text());
    assert_eq!(node.wait_for_trace(&other).spans.len(), 1);
    node.wait_for_metric("tracemesh_spans_refused_total", &ids, 11.0);
}

#[test]
fn span_that_no_frame_can_hold_is_refused_alone() {
    let host = host();
    let node = host.node("a").start();
    let id = trace_id(1);
    let mut spans = trace(&id, 3);
    spans[1].name = "x".repeat(5 << 20);
    let answer = node.post(PROTOBUF, &encoded(spans));
    assert_eq!(answer.status, 200);
    let (count, message) = otlp::refused(&answer.body);
    assert_eq!(count, 1, "{message}");
    assert!(message.contains("take more than 4194304 bytes"), "{message}");
    assert_eq!(node.wait_for_trace(&hex(&id)).spans.len(), 2);

    let mut request = otlp::request(trace(&trace_id(2), 3));
    request.resource_spans[0].schema_url = "x".repeat(1100 << 10);
    let mut with_room = otlp::request(trace(&trace_id(3), 3));
    request.resource_spans.append(&mut with_room.resource_spans);
    let answer = node.post(PROTOBUF, &request.encode_to_vec());
    let (count, message) = otlp::refused(&answer.body);
    assert_eq!((answer.status, count), (200, 3), "{message}");
    assert!(message.contains("more than 1048576"), "{message}");
    assert_eq!(node.wait_for_trace(&hex(&trace_id(3))).spans.len(), 3);
    node.wait_for_metric("tracemesh_spans_refused_total", &[("reason", "size")], 4.0);
}

fn otlp_span_with_id(
    trace_id: &[u8],
    span_id: Vec<u8>,
) -> opentelemetry_proto::tonic::trace::v1::Span {
    opentelemetry_proto::tonic::trace::v1::Span { span_id, ..span(trace_id, 9) }
}

#[test]
fn requests_over_the_limit_are_refused_and_bombs_take_no_memory() {
    let host = host();
    let mut node = host.node("a").with("ingest.request_bytes_max", json!("1MiB")).start();
    assert_goes_on(&node);
    let before = node.program().resident_bytes_max();

    let big = vec![0; REQUEST_BYTES_MAX + 1];
    assert_eq!(node.post(PROTOBUF, &big).status, 413);
    let status = grpc::Client::new(node.grpc_url()).export(big);
    assert_eq!(status.expect_err("over the limit").code(), Code::InvalidArgument);

    let zeros = vec![0; BOMB_BYTES];
    let zstd = zstd::encode_all(&zeros[..], 3).expect("memory can be written");
    for (encoding, bomb) in [("gzip", gzip(&zeros)), ("zstd", zstd)] {
        assert!(bomb.len() < REQUEST_BYTES_MAX, "only what comes out is too large");
        let headers = [("content-type", PROTOBUF), ("content-encoding", encoding)];
        let answer = http::post(&node.http_url("/v1/traces"), &headers, &bomb);
        assert_eq!(answer.status, 413, "{encoding}: {}", answer.text());
    }
    use tonic::codec::CompressionEncoding::{Gzip, Zstd};
    for encoding in [Gzip, Zstd] {
        let mut client = grpc::Client::compressing(node.grpc_url(), encoding);
        let status = client.export(zeros.clone()).expect_err("over the limit");
        assert_eq!(status.code(), Code::InvalidArgument, "{encoding:?}: {status}");
    }
    let grown = node.program().resident_bytes_max() - before;
    assert!(grown < 64 << 20, "bombs of {BOMB_BYTES} bytes took {grown} bytes");
    assert_goes_on(&node);
}

#[test]
fn broken_compression_is_refused() {
    let host = host();
    let node = host.node("a").start();
    let mut cut = gzip(&encoded(trace(&trace_id(1), 2)));
    cut.truncate(cut.len() / 2);
    for (encoding, body) in [("gzip", &cut[..]), ("gzip", b"plain"), ("zstd", b"plain")] {
        let headers = [("content-type", PROTOBUF), ("content-encoding", encoding)];
        let answer = http::post(&node.http_url("/v1/traces"), &headers, body);
        assert_eq!(answer.status, 400, "{encoding}: {}", answer.text());
    }
    let headers = [("content-type", PROTOBUF), ("content-encoding", "br")];
    assert_eq!(http::post(&node.http_url("/v1/traces"), &headers, b"x").status, 415);
    assert_goes_on(&node);
}

#[test]
fn strange_types_paths_and_methods_have_their_own_answers() {
    let host = host();
    let node = host.node("a").start();
    assert_eq!(node.post("text/plain", b"x").status, 415);
    let headers = [("content-type", PROTOBUF)];
    assert_eq!(http::post(&node.http_url("/v1/spans"), &headers, &[]).status, 404);
    for method in ["GET", "PUT", "DELETE"] {
        let answer = http::send(method, &node.http_url("/v1/traces"), &headers, &[]);
        assert_eq!(answer.expect("there is an answer").status, 405, "{method}");
    }
}

#[test]
fn request_of_a_hundred_thousand_spans_is_taken_whole() {
    let host = host();
    let node = host.node("a").start();
    let traces = 0..12_500;
    let spans = traces.clone().flat_map(|number| trace(&trace_id(number), 8)).collect();
    let request = encoded(spans);
    let mut tries = 0;
    let answer = wait_for("the request to be taken", || {
        tries += 1;
        let answer = node.post(PROTOBUF, &request);
        (answer.status != 503).then_some(answer)
    });
    assert_eq!((answer.status, otlp::refused(&answer.body).0), (200, 0));
    wait_until("all traces", || node.metrics().sum("tracemesh_spans_exported_total", &[]) >= 1e5);
    let found = traces::span_counts([node.trace_file()]);
    let ids: BTreeSet<_> = traces.map(|number| hex(&trace_id(number))).collect();
    assert!(found.keys().eq(&ids), "all traces and no others");
    // What was held before the node had to put the client off may be due alone, and a write that
    // outlasts an attempt is tried again, which is counted.
    let again = node.metrics().sum("tracemesh_spans_exported_again_possible_total", &[]);
    if (tries, again) == (1, 0.0) {
        assert!(found.values().all(|counts| *counts == [8]), "each trace once and whole");
    }
    assert!(found.values().all(|counts| counts.iter().sum::<usize>() >= 8), "no span is lost");
}

#[test]
fn trace_of_a_hundred_thousand_spans_is_decided_early_and_loses_nothing() {
    let host = host();
    let node = host.node("a").start();
    let id = trace_id(1);
    for part in 0..10 {
        let spans = (part * 10_000..(part + 1) * 10_000).map(|number| span(&id, number)).collect();
        assert_eq!(node.post(PROTOBUF, &encoded(spans)).status, 200);
    }
    wait_until("all spans", || node.metrics().sum("tracemesh_spans_exported_total", &[]) >= 1e5);
    let lines = node.traces();
    let spans: Vec<_> = lines.iter().flat_map(|line| &line.spans).collect();
    let distinct: BTreeSet<_> = spans.iter().map(|span| span["spanId"].to_string()).collect();
    assert_eq!(distinct.len(), 100_000);
    // A write that outlasts an attempt is tried again, which is counted.
    let again = node.metrics().sum("tracemesh_spans_exported_again_possible_total", &[]);
    assert!(spans.len() - distinct.len() <= again as usize, "{} spans, {again}", spans.len());
    assert!(lines.len() > 1, "it was decided before it was complete");
}

#[test]
fn times_at_both_ends_of_the_range_are_kept() {
    let host = host();
    let node = host.node("a").start();
    let year_2500 = 16_725_225_600_000_000_000;
    for (number, nanos) in [(1, 0), (2, year_2500), (3, u64::MAX)] {
        let id = trace_id(number);
        let mut span = span(&id, 0);
        (span.start_time_unix_nano, span.end_time_unix_nano) = (nanos, nanos);
        assert_eq!(node.post(PROTOBUF, &encoded(vec![span])).status, 200);
        let line = node.wait_for_trace(&hex(&id));
        // A field with its default value may be absent.
        let written = line.spans[0]["endTimeUnixNano"].as_str().unwrap_or("0");
        assert_eq!(written, nanos.to_string());
    }
}

#[test]
fn fields_and_values_from_the_future_reach_an_otlp_sink_unchanged() {
    let host = host();
    let messages = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&messages);
    let sink = Server::start("127.0.0.1:0", move |message| {
        keep.lock().expect("nothing panics while it keeps a message").push(message);
        Answer::Taken
    });
    let sinks = json!([{ "otlp": { "endpoint": sink.url() } }]);
    let node = host.node("a").with("sinks", sinks).start();
    let mut bytes = span(&trace_id(1), 0).encode_to_vec();
    bytes.extend(field(1000, b"a field from the future"));
    // `kind` again, with a value that is in no enum yet; the last one counts.
    bytes.extend([6 << 3, 99]);
    grpc::Client::new(node.grpc_url()).export(around_span(&bytes)).expect("a span is taken");
    let has_span = |message: &[u8]| message.windows(bytes.len()).any(|window| window == bytes);
    wait_until("the sink to have the span's bytes", || {
        let messages = messages.lock().expect("nothing panics while it keeps a message");
        messages.iter().any(|message| has_span(message))
    });
}
