//! OTLP over HTTP alone.

use super::*;
use std::io::Read;

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
async fn what_is_no_export_over_http_is_told_what_would_be_in_the_format_of_the_request() {
    let server = Server::start().await;
    let none = Empty::<Bytes>::new;
    for (path, said) in [
        ("/v1/metrics", "traces only"),
        ("/v1/logs", "traces only"),
        ("/", "POST /v1/traces"),
        ("/v1/traces/", LONG_PATH),
    ] {
        for content_type in ["application/x-protobuf", "application/json", "text/plain"] {
            let headers = [("content-type", content_type)];
            let reply = server.http(Method::POST, path, &headers, none()).await;
            assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
            assert!(reply.header(CONTENT_TYPE).starts_with(content_type), "{reply:?}");
            assert!(reply.message().contains(said), "{path}: {reply:?}");
        }
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let reply = server.http(method, "/v1/traces", &[PROTOBUF], none()).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(reply.header(ALLOW), "POST");
        assert_eq!(reply.rpc_status().code, 12);
    }
    for content_type in ["text/plain", "application/grpc", ""] {
        let reply = server.post(&[("content-type", content_type)], "x").await;
        assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
        assert!(reply.text().contains("application/x-protobuf"));
    }
    assert_eq!(server.post(&[], "x").await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let reply = server.post(&[JSON, (CONTENT_ENCODING.as_str(), "br")], "x").await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(reply.header("accept-encoding"), "gzip, zstd, identity");
    assert_eq!(reply.json()["code"], 3);
    assert_eq!(server.received(), Vec::<Bytes>::new());
}

#[tokio::test]
async fn answer_is_short_whatever_a_client_sent() {
    let server = Server::start().await;
    let span = json!({ "traceId": "x".repeat(LIMIT / 2) });
    let json = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [span] }] }] });
    let reply = server.post(&[JSON], json.to_string()).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.message().contains("xxx") && reply.body.len() < 1024, "{}", reply.body.len());
    let path = format!("/{}", "y".repeat(4000));
    let reply = server.call(&path, &[], frame(0, b"")).await;
    assert!(reply.grpc_message().contains("yyy") && reply.grpc_message().len() < 1024);
}

#[tokio::test]
async fn answer_is_compressed_as_the_client_takes_it_where_that_makes_it_shorter() {
    let server = Server::start().await;
    let message = "10 spans have a trace id or span id that is zero; ".repeat(8);
    let partial = Ok(Accepted { refused_span_count: 10, message: message.clone() });
    for (accepted, encoding) in [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=0.9, zstd;q=0.1", "gzip"),
        ("br, gzip;q=0", ""),
        ("identity", ""),
        ("gzip;q=0.5, identity", ""),
        ("*;q=0", ""),
    ] {
        for answer in [partial.clone(), Err(Refusal::Malformed(message.clone()))] {
            server.answer(answer);
            for (format, body) in [(PROTOBUF, "x"), (JSON, "{}")] {
                let plain = server.post(&[format], body).await;
                assert_eq!(plain.header(CONTENT_ENCODING), "", "nobody asked");
                let mut reply = server.post(&[format, ("accept-encoding", accepted)], body).await;
                assert_eq!(reply.header(CONTENT_ENCODING), encoding, "{accepted}");
                assert_eq!(reply.header("vary"), "accept-encoding");
                assert_eq!(reply.status, plain.status);
                assert_eq!(reply.header(CONTENT_TYPE), plain.header(CONTENT_TYPE));
                if !encoding.is_empty() {
                    assert!(reply.body.len() < plain.body.len() / 2, "{reply:?}");
                    reply.body = decompressed(encoding, &reply.body);
                }
                assert_eq!(reply.body, plain.body);
                assert!(String::from_utf8_lossy(&reply.body).contains(&message));
            }
        }
    }
}

fn decompressed(encoding: &str, bytes: &[u8]) -> Bytes {
    let mut plain = Vec::new();
    match encoding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap(),
        _ => ::zstd::Decoder::new(bytes).unwrap().read_to_end(&mut plain).unwrap(),
    };
    plain.into()
}

#[tokio::test]
async fn short_answer_is_never_compressed() {
    let server = Server::start().await;
    for answer in [Ok(Accepted::default()), Err(later(1200))] {
        server.answer(answer);
        for (format, body) in [(PROTOBUF, "x"), (JSON, "{}")] {
            let reply = server.post(&[format, ("accept-encoding", "gzip, zstd")], body).await;
            assert_eq!(reply.header(CONTENT_ENCODING), "");
            assert_eq!(reply.header("content-length"), reply.body.len().to_string());
            assert_eq!(reply.body, server.post(&[format], body).await.body);
        }
    }
}

#[tokio::test]
async fn web_pages_of_the_origins_may_send_and_others_may_not() {
    let cors_origins = vec![HeaderValue::from_static("https://shop.example")];
    let server = Server::with(Settings { cors_origins, ..settings() }).await;
    let ask = async |origin| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-tenant"),
        ];
        server.http(Method::OPTIONS, "/v1/traces", &headers, Empty::<Bytes>::new()).await
    };
    let allowed = ask("https://shop.example").await;
    assert_eq!(allowed.status, StatusCode::OK);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://shop.example");
    assert_eq!(allowed.header("access-control-allow-methods"), "POST");
    assert_eq!(allowed.header("access-control-allow-headers"), "content-type,x-tenant");
    assert_eq!(ask("https://evil.example").await.header("access-control-allow-origin"), "");
    assert_eq!(server.received(), Vec::<Bytes>::new());

    server.answer(Err(later(1200)));
    let reply = server.post(&[PROTOBUF, ("origin", "https://shop.example")], "x").await;
    assert_eq!(reply.header("access-control-allow-origin"), "https://shop.example");
    assert_eq!(reply.header("access-control-expose-headers"), "retry-after");
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let reply = server.post(&[PROTOBUF], "x").await;
    assert_eq!(reply.header("access-control-allow-origin"), "", "no page, no permission");
}

#[tokio::test]
async fn any_web_page_may_send_where_that_was_configured() {
    let cors_origins = vec![HeaderValue::from_static("*")];
    let server = Server::with(Settings { cors_origins, ..settings() }).await;
    let reply = server.post(&[PROTOBUF, ("origin", "https://any.example")], "x").await;
    assert_eq!(reply.header("access-control-allow-origin"), "*");
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
    let settings = Settings { request_bytes_max: 8 << 20, ..settings() };
    let server = Server::with(settings).await;
    let name = "n".repeat(4 << 20);
    let json = json!({ "resourceSpans": [{ "scopeSpans": [{ "spans": [{ "name": name }]}]}]});
    assert_eq!(server.post(&[JSON], json.to_string()).await.status, StatusCode::OK);
    assert!(server.received()[0].len() > name.len());
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn client_that_asks_first_sends_when_it_is_told_to_and_goes_on_with_the_connection() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n\
         {EXPECT}: 100-continue\r\nContent-Length: 3\r\n\r\n"
    );
    for body in [b"one", b"two"] {
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 100 "));
        stream.write_all(body).await.unwrap();
        let reply = head_of(&mut stream).await;
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("content-length: 0"));
    }
    assert_eq!(server.received(), ["one", "two"]);
}

/// An answer without a body, to its end.
async fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(head).unwrap()
}
