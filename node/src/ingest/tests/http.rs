//! OTLP over HTTP alone.

use super::*;

#[tokio::test]
async fn http_hands_on_the_bytes_of_a_body_in_any_encoding() {
    let server = Server::start().await;
    let message = message();
    let requests = [
        (vec![PROTOBUF], message.clone()),
        (vec![PROTOBUF, ("content-encoding", "identity")], message.clone()),
        (vec![PROTOBUF, ("content-encoding", "GZIP")], gzip(&message)),
        (vec![PROTOBUF, ("content-encoding", "zstd")], zstd(&message)),
    ];
    for (headers, body) in requests {
        let reply = server.post(&headers, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{headers:?}");
        assert_eq!(reply.header(CONTENT_TYPE), "application/x-protobuf");
        assert!(reply.body.is_empty());
    }
    let long = Full::new(Bytes::from(message.clone()));
    let reply = server.http(Method::POST, LONG_PATH, &[PROTOBUF], long).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(server.received(), vec![Bytes::from(message); 5]);
    assert_eq!(server.counter("requests_total{protocol=\"http\",answer=\"accepted\"}"), 5);
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn chunked_body_is_put_together() {
    let server = Server::start().await;
    let pieces = ["one ", "two ", "three"].map(|text| Ok(Frame::data(Bytes::from(text))));
    let body = StreamBody::new(tokio_stream::iter(pieces));
    let body = BodyExt::map_err(body, |error: std::io::Error| error);
    let reply = server.http(Method::POST, "/v1/traces", &[PROTOBUF], body).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(server.received(), ["one two three"]);
}

#[tokio::test]
async fn json_becomes_protobuf_and_is_answered_as_json() {
    let server = Server::start().await;
    let json = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [{
        "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "EEE19B7EC3C1B174",
        "name": "curl", "kind": 2, "startTimeUnixNano": "1544712660000000000",
    }]}]}]});
    let reply = server.post(&[JSON], json.to_string()).await;
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({})));
    let text = server.received()[0].clone();
    assert!(text.windows(4).any(|window| window == b"curl"));

    let reply = server.post(&[JSON], "{\"resourceSpans\": 1}").await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.json()["code"], 3);
    assert!(!reply.json()["message"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_export_over_http_is_told_what_would_be() {
    let server = Server::start().await;
    let none = Empty::<Bytes>::new;
    for (path, said) in [
        ("/v1/metrics", "traces only"),
        ("/v1/logs", "traces only"),
        ("/", "POST /v1/traces"),
        ("/v1/traces/", LONG_PATH),
    ] {
        let reply = server.http(Method::POST, path, &[PROTOBUF], none()).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
        assert!(reply.text().contains(said), "{path}: {}", reply.text());
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let reply = server.http(method, "/v1/traces", &[PROTOBUF], none()).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(reply.header(ALLOW), "POST");
    }
    for content_type in ["text/plain", "application/grpc", ""] {
        let reply = server.post(&[("content-type", content_type)], "x").await;
        assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
        assert!(reply.text().contains("application/x-protobuf"));
    }
    assert_eq!(server.post(&[], "x").await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let reply = server.post(&[PROTOBUF, (CONTENT_ENCODING.as_str(), "br")], "x").await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(reply.header("accept-encoding"), "gzip, zstd, identity");
    assert_eq!(server.received(), Vec::<Bytes>::new());
}

/// As a client that writes everything before it reads does it; many do.
#[tokio::test]
async fn client_that_sends_everything_first_still_reads_its_refusal() {
    let server = Server::start().await;
    // More than the buffers of two sockets hold.
    let bytes = 16 * LIMIT;
    for head in ["Content-Length: 16777216", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        let (path, host) = ("/v1/traces", server.http);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-protobuf\r\n\
             {head}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        if head.contains("chunked") {
            stream.write_all(b"1000000\r\n").await.unwrap();
        }
        stream.write_all(&vec![0; bytes]).await.unwrap();
        if head.contains("chunked") {
            stream.write_all(b"\r\n0\r\n\r\n").await.unwrap();
        }
        let mut reply = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut reply)).await.unwrap().unwrap();
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    }
}

#[tokio::test]
async fn client_that_asks_first_is_refused_before_it_sends() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         {EXPECT}: 100-continue\r\nContent-Length: {}\r\n\r\n",
        LIMIT + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut reply)).await.unwrap().unwrap();
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
}

#[tokio::test]
async fn large_json_is_converted_without_holding_up_others() {
    let settings = Settings { request_bytes_max: 8 << 20, ..Settings::default() };
    let server = Server::with(settings).await;
    let name = "n".repeat(4 << 20);
    let json = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [{ "name": name }]}]}]});
    assert_eq!(server.post(&[JSON], json.to_string()).await.status, StatusCode::OK);
    assert!(server.received()[0].len() > name.len());
    assert_eq!(server.in_flight.bytes(), 0);
}
