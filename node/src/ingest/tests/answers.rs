//! What clients of both protocols are told.

use super::*;
use crate::ingest::intake::ASIDE_MAX;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::time::Instant;

#[tokio::test]
async fn empty_requests_succeed() {
    let server = Server::start().await;
    for (headers, body) in [
        (vec![], frame(0, b"")),
        (vec![("grpc-encoding", "gzip")], frame(1, b"")),
        (vec![("grpc-encoding", "gzip")], frame(1, &gzip(b""))),
        (vec![("grpc-encoding", "zstd")], frame(1, b"")),
        (vec![("grpc-encoding", "zstd")], frame(1, &zstd(b""))),
    ] {
        assert_eq!(server.export(&headers, body).await.grpc_code(), Code::Ok, "{headers:?}");
    }
    for (headers, body) in [
        (vec![PROTOBUF], vec![]),
        (vec![PROTOBUF, ("content-encoding", "gzip")], vec![]),
        (vec![PROTOBUF, ("content-encoding", "zstd")], zstd(b"")),
        (vec![JSON], vec![]),
        (vec![JSON], b"{}".to_vec()),
    ] {
        assert_eq!(server.post(&headers, body).await.status, StatusCode::OK, "{headers:?}");
    }
    assert_eq!(server.received(), vec![Bytes::new(); 10]);
}

#[tokio::test]
async fn partial_success_names_the_refused_spans() {
    let server = Server::start().await;
    server.answer(Ok(Accepted { refused_span_count: 3, message: "all-zero ids".into() }));

    let reply = server.export(&[], frame(0, b"x")).await;
    assert_eq!(reply.grpc_code(), Code::Ok);
    let response = ExportTraceServiceResponse::decode(&reply.body[5..]).unwrap();
    let partial = response.partial_success.unwrap();
    assert_eq!((partial.rejected_spans, &partial.error_message[..]), (3, "all-zero ids"));

    let reply = server.post(&[PROTOBUF], "x").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(ExportTraceServiceResponse::decode(reply.body).unwrap(), response_of(3));

    let reply = server.post(&[JSON], "{}").await;
    let partial = json!({ "rejectedSpans": "3", "errorMessage": "all-zero ids" });
    assert_eq!(reply.json(), json!({ "partialSuccess": partial }));
}

fn response_of(refused_span_count: u64) -> ExportTraceServiceResponse {
    let accepted = Accepted { refused_span_count, message: "all-zero ids".into() };
    ExportTraceServiceResponse::decode(&answer::accepted_protobuf(&accepted)[..]).unwrap()
}

#[tokio::test]
async fn refusals_for_good_are_told_as_such() {
    let server = Server::start().await;
    for (refusal, status) in [
        (Refusal::Malformed("byte 7 is odd".into()), StatusCode::BAD_REQUEST),
        (Refusal::TooLarge("byte 7 is odd".into()), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        server.answer(Err(refusal));
        let reply = server.export(&[], frame(0, b"x")).await;
        assert_eq!(reply.grpc_code(), Code::InvalidArgument);
        assert_eq!(reply.grpc_message(), "byte 7 is odd");

        let reply = server.post(&[PROTOBUF], "x").await;
        assert_eq!(reply.status, status);
        let RpcStatus { code, message, details } = reply.rpc_status();
        assert_eq!((code, &message[..], details.len()), (3, "byte 7 is odd", 0));

        let reply = server.post(&[JSON], "{}").await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.json(), json!({ "code": 3, "message": "byte 7 is odd" }));
    }
    assert_eq!(server.counter("spans_refused_total{reason=\"syntax\"}"), 3);
    assert_eq!(server.counter("spans_refused_total{reason=\"size\"}"), 3);
}

#[tokio::test]
async fn refusals_for_now_say_when_to_come_back() {
    let server = Server::start().await;
    server.answer(Err(later(1200)));

    let reply = server.export(&[], frame(0, b"x")).await;
    assert_eq!(reply.grpc_code(), Code::Unavailable);
    let status = tonic::Status::from_header_map(&reply.headers).unwrap();
    assert_eq!(retry_seconds(&RpcStatus::decode(status.details()).unwrap()), 2);

    let reply = server.post(&[PROTOBUF], "x").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.header(RETRY_AFTER), "2");
    assert_eq!(reply.rpc_status().code, 14);
    assert_eq!(retry_seconds(&reply.rpc_status()), 2);

    let reply = server.post(&[JSON], "{}").await;
    assert_eq!(reply.header(RETRY_AFTER), "2");
    let retry = json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s" });
    let expected = json!({ "code": 14, "message": "try again", "details": [retry] });
    assert_eq!(reply.json(), expected);
}

pub(super) fn retry_seconds(status: &RpcStatus) -> i64 {
    assert_eq!(status.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    let delay = RetryInfo::decode(&status.details[0].value[..]).unwrap().retry_delay.unwrap();
    assert_eq!(delay.nanos, 0);
    delay.seconds
}

#[tokio::test]
async fn request_over_the_limit_is_refused_for_good_before_and_after_decompression() {
    let server = Server::start().await;
    let zeros = vec![0; LIMIT + 1];
    for (encoding, body) in [
        ("identity", frame(0, &zeros)),
        ("gzip", frame(1, &gzip(&zeros))),
        ("zstd", frame(1, &zstd(&zeros))),
    ] {
        let reply = server.export(&[("grpc-encoding", encoding)], body).await;
        assert_eq!(reply.grpc_code(), Code::InvalidArgument, "{encoding}");
        assert!(reply.grpc_message().contains("more than 1048576 bytes"));
    }
    for (encoding, body) in
        [("identity", zeros.clone()), ("gzip", gzip(&zeros)), ("zstd", zstd(&zeros))]
    {
        let reply = server.post(&[PROTOBUF, ("content-encoding", encoding)], body).await;
        assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE, "{encoding}");
    }
    let fits = vec![0; LIMIT];
    let reply = server.export(&[("grpc-encoding", "gzip")], frame(1, &gzip(&fits))).await;
    assert_eq!(reply.grpc_code(), Code::Ok);
    assert_eq!(server.post(&[PROTOBUF], fits).await.status, StatusCode::OK);
    assert_eq!(server.counter("spans_refused_total{reason=\"size\"}"), 6);
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn zstd_window_over_the_limit_is_refused() {
    let server = Server::start().await;
    let body = zstd_with_large_window(&vec![0; LIMIT]);
    let headers = [("grpc-encoding", "zstd")];
    let reply = server.export(&headers, frame(1, &body)).await;
    assert_eq!(reply.grpc_code(), Code::InvalidArgument);
    let reply = server.post(&[PROTOBUF, ("content-encoding", "zstd")], body).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn joining_node_asks_clients_to_come_back_and_health_follows() {
    let server = Server::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let service = "opentelemetry.proto.collector.trace.v1.TraceService";
    let request = HealthCheckRequest { service: service.into() };
    let mut watched = health.watch(request).await.unwrap().into_inner();
    let serving = 1;
    assert_eq!(watched.message().await.unwrap().unwrap().status, serving);

    server.admission.send_replace(Admission::Joining);
    assert_ne!(watched.message().await.unwrap().unwrap().status, serving);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Unavailable);
    let reply = server.post(&[PROTOBUF], "x").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(["1", "2", "3", "4", "5"].contains(&reply.header(RETRY_AFTER)));
    assert_eq!(server.received(), Vec::<Bytes>::new());

    server.admission.send_replace(Admission::Serving);
    assert_eq!(watched.message().await.unwrap().unwrap().status, serving);
    server.admission.send_replace(Admission::Leaving);
    assert_ne!(watched.message().await.unwrap().unwrap().status, serving);
    let request = HealthCheckRequest::default();
    let overall = health.check(request).await.unwrap().into_inner();
    assert_ne!(overall.status, serving);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Ok);
}

#[tokio::test]
async fn bytes_in_flight_are_bounded_over_both_protocols() {
    let settings = Settings { request_bytes_max: 1000, in_flight_max: 1000, ..settings() };
    let server = Server::with(settings).await;
    server.fake.open.send_replace(false);
    let first = server.export(&[], frame(0, &[1; 600]));
    let second = async {
        server.wait_received(1).await;
        assert_eq!(server.in_flight.bytes(), 600);
        assert!(!server.in_flight.is_short(Instant::now()));
        let by_http = server.post(&[PROTOBUF], vec![2; 600]).await;
        assert!(server.in_flight.is_short(Instant::now()), "a client was put off");
        let by_grpc = server.export(&[], frame(0, &[3; 600])).await;
        // What expands over the bound is refused as well, with all its bytes given back.
        let grown = frame(1, &gzip(&[4; 900]));
        let expanded = server.export(&[("grpc-encoding", "gzip")], grown).await;
        assert_eq!(server.in_flight.bytes(), 600);
        server.fake.open.send_replace(true);
        (by_http, by_grpc, expanded)
    };
    let (first, (by_http, by_grpc, expanded)) = tokio::join!(first, second);
    assert_eq!(first.grpc_code(), Code::Ok);
    assert_eq!(by_http.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(by_grpc.grpc_code(), Code::Unavailable);
    assert_eq!(expanded.grpc_code(), Code::Unavailable);
    assert_eq!(server.in_flight.bytes(), 0);
    assert_eq!(server.post(&[PROTOBUF], vec![2; 600]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn request_that_is_alone_is_let_in_whatever_its_forms_take_together() {
    let settings = Settings { request_bytes_max: 1000, in_flight_max: 1000, ..settings() };
    let server = Server::with(settings).await;
    // Bytes that do not compress, and JSON that is not much longer than its protobuf.
    let body = frame(1, &gzip(&message()[90_000..90_900]));
    assert!(body.len() > 500);
    assert_eq!(server.export(&[("grpc-encoding", "gzip")], body).await.grpc_code(), Code::Ok);
    let name = "n".repeat(800);
    let json = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [{ "name": name }]}]}]});
    assert_eq!(server.post(&[JSON], json.to_string()).await.status, StatusCode::OK);
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn few_large_requests_are_worked_on_at_once() {
    let in_flight = InFlight::new(LIMIT);
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let counts = Arc::new((running, most));
    let (go, going) = std::sync::mpsc::channel();
    let going = Arc::new(Mutex::new(going));
    let work = || {
        let (counts, going) = (Arc::clone(&counts), Arc::clone(&going));
        in_flight.aside(move || {
            let running = counts.0.fetch_add(1, Relaxed) + 1;
            counts.1.fetch_max(running, Relaxed);
            going.lock().unwrap().recv().unwrap();
            counts.0.fetch_sub(1, Relaxed);
            Ok(())
        })
    };
    let all = futures_util::future::join_all((0..3 * ASIDE_MAX).map(|_| work()));
    let release = async {
        wait_until(|| counts.0.load(Relaxed) >= ASIDE_MAX).await;
        // Whatever was let to a thread before this has one.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        (0..3 * ASIDE_MAX).for_each(|_| go.send(()).unwrap());
    };
    let (done, ()) = tokio::join!(all, release);
    assert!(done.iter().all(Result::is_ok));
    assert_eq!(counts.1.load(Relaxed), ASIDE_MAX);
}

#[tokio::test]
async fn request_that_makes_the_node_panic_costs_that_request_only() {
    let server = Server::start().await;
    assert_eq!(server.export(&[], frame(0, b"panic")).await.grpc_code(), Code::InvalidArgument);
    assert_eq!(server.post(&[PROTOBUF], "panic").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Ok);
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn request_that_is_not_held_in_time_is_put_off() {
    let answer_max = Duration::from_millis(20);
    let server = Server::with(Settings { answer_max, ..settings() }).await;
    server.fake.open.send_replace(false);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Unavailable);
    let reply = server.post(&[PROTOBUF], "x").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!((1..=10).contains(&reply.header(RETRY_AFTER).parse::<u32>().unwrap()));
    assert_eq!(server.in_flight.bytes(), 0);
    assert_eq!(server.counter("requests_total{protocol=\"grpc\",answer=\"later\"}"), 1);
}

#[tokio::test]
async fn clients_that_are_put_off_together_come_back_at_different_times() {
    let server = Server::start().await;
    server.admission.send_replace(Admission::Joining);
    let mut seconds = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let reply = server.post(&[PROTOBUF], "x").await;
        seconds.insert(reply.header(RETRY_AFTER).parse::<u32>().unwrap());
    }
    assert!(seconds.len() > 3 && seconds.iter().all(|seconds| (1..=10).contains(seconds)));
}
