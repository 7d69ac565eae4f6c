//! Connections and ports: bounds, ages, drain.

use super::*;

#[tokio::test]
async fn request_whose_client_is_gone_gives_its_bytes_back() {
    let server = Server::start().await;
    server.fake.open.send_replace(false);
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let request = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\
                   Content-Type: application/x-protobuf\r\n\r\nabc";
    stream.write_all(request.as_bytes()).await.unwrap();
    server.wait_received(1).await;
    assert_eq!(server.in_flight.bytes(), 3);
    drop(stream);
    wait_until(|| server.in_flight.bytes() == 0).await;
}

#[tokio::test]
async fn drain_finishes_open_requests_and_takes_no_new_ones() {
    let mut server = Server::start().await;
    server.fake.open.send_replace(false);
    let open =
        async { tokio::join!(server.export(&[], frame(0, b"x")), server.post(&[PROTOBUF], "y")) };
    let draining = async {
        server.wait_received(2).await;
        server.drain.cancel();
        let refused = async {
            for address in [server.grpc, server.http] {
                while TcpStream::connect(address).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            }
        };
        timeout(PATIENCE, refused).await.unwrap();
        server.fake.open.send_replace(true);
    };
    let ((by_grpc, by_http), ()) = tokio::join!(open, draining);
    assert_eq!(by_grpc.grpc_code(), Code::Ok);
    assert_eq!(by_http.status, StatusCode::OK);
    timeout(PATIENCE, server.task.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn drain_ends_the_streams_of_those_who_watch_health() {
    let mut server = Server::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let request = HealthCheckRequest::default();
    let mut watched = health.watch(request).await.unwrap().into_inner();
    let serving = 1;
    assert_eq!(watched.message().await.unwrap().unwrap().status, serving);
    server.drain.cancel();
    assert_ne!(watched.message().await.unwrap().unwrap().status, serving);
    assert!(watched.message().await.unwrap().is_none());
    timeout(PATIENCE, server.task.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn drain_drops_what_does_not_finish() {
    let mut server = Server::start().await;
    server.fake.open.send_replace(false);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{}/v1/traces", server.http);
    let request = Request::post(uri).header("content-type", "application/x-protobuf");
    let stuck = client.request(request.body(Full::new(Bytes::from("x"))).unwrap());
    let draining = async {
        server.wait_received(1).await;
        // Nothing happens from here on but the end of waiting.
        tokio::time::pause();
        server.drain.cancel();
        timeout(PATIENCE, server.task.join_next()).await.unwrap().unwrap().unwrap();
    };
    let (stuck, ()) = tokio::join!(stuck, draining);
    assert!(stuck.is_err());
    assert_eq!(server.in_flight.bytes(), 0);
}

#[tokio::test]
async fn port_in_use_is_named() {
    let server = Server::start().await;
    let taken = Settings { http: vec![server.http], ..Settings::default() };
    let error = Listeners::bind(taken, &clock()).await.err().unwrap();
    let said = error.to_string();
    assert!(said.contains(&format!("cannot listen on {} (listen.http)", server.http)), "{said}");
    assert!(said.contains("another process has this port"), "{said}");
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = Server::with(Settings { connections_max: 1, ..settings() }).await;
    let mut first = TcpStream::connect(server.http).await.unwrap();
    let request = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    first.write_all(request).await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'H');
    let mut second = TcpStream::connect(server.grpc).await.unwrap();
    assert_eq!(rest(&mut second).await, b"");
    assert_eq!(server.counter("connections_refused_total{cause=\"full\"}"), 1);
}

/// What still comes until the other side ends the connection, however it does.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // Longer than anything waits, for tests whose clock is paused.
    let _ = timeout(10 * PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    rest
}

#[tokio::test]
async fn headers_are_bounded() {
    let server = Server::start().await;
    let many = "a: b\r\n".repeat(1000);
    let long = format!("a: {}\r\n", "b".repeat(1 << 20));
    for headers in [many, long] {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        let head = format!("POST /v1/traces HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let reply = rest(&mut stream).await;
        let reply = String::from_utf8_lossy(&reply);
        // Who is still sending may see the end of the connection alone.
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431 "), "{reply}");
    }
    assert_eq!(server.post(&[PROTOBUF], "x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn client_that_begins_and_says_no_more_is_left() {
    let server = Server::start().await;
    for begun in [&b""[..], b"PRI * HTTP/2.0\r\n", b"POST /v1/traces HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        stream.write_all(begun).await.unwrap();
        // Nothing happens from here on but the end of waiting.
        tokio::time::pause();
        assert_eq!(rest(&mut stream).await, b"", "{}", String::from_utf8_lossy(begun));
        tokio::time::resume();
    }
}

/// A client of HTTP/2 that sees every frame.
struct Frames(TcpStream);

impl Frames {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;

    async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let settings = [0, 0, 0, Self::SETTINGS, 0, 0, 0, 0, 0];
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&settings).await.unwrap();
        Self(stream)
    }

    /// The payload of the next frame of a kind.
    async fn next(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let mut head = [0; 9];
            timeout(PATIENCE, self.0.read_exact(&mut head)).await.unwrap().unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            timeout(PATIENCE, self.0.read_exact(&mut payload)).await.unwrap().unwrap();
            if head[3] == kind {
                return payload;
            }
        }
    }
}

#[tokio::test]
async fn streams_of_a_connection_are_bounded() {
    let server = Server::start().await;
    let settings = Frames::connect(server.grpc).await.next(Frames::SETTINGS).await;
    let values: Vec<_> = settings.chunks(6).map(|value| value.to_vec()).collect();
    let (concurrent_streams, header_list_bytes) = (3, 6);
    assert!(values.contains(&vec![0, concurrent_streams, 0, 0, 1, 0]), "256: {values:?}");
    assert!(values.contains(&vec![0, header_list_bytes, 0, 0, 64, 0]), "16 KiB: {values:?}");
}

#[tokio::test]
async fn draining_node_takes_requests_while_it_announces_and_then_sends_clients_away() {
    let mut server = Server::start().await;
    let mut idle = Frames::connect(server.grpc).await;
    idle.next(Frames::SETTINGS).await;
    server.admission.send_replace(Admission::Leaving);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Ok);
    assert_eq!(server.post(&[PROTOBUF], "x").await.status, StatusCode::OK);
    server.drain.cancel();
    let goaway = idle.next(Frames::GOAWAY).await;
    assert_eq!(goaway[4..8], [0; 4], "without an error");
    drop(idle);
    timeout(PATIENCE, server.task.join_next()).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(server.grpc).await.is_err());
}

#[tokio::test]
async fn old_connections_are_sent_away() {
    let connection_age_max = Duration::from_millis(1);
    let server = Server::with(Settings { connection_age_max, ..settings() }).await;
    let goaway = Frames::connect(server.grpc).await.next(Frames::GOAWAY).await;
    assert_eq!(goaway[4..8], [0; 4], "without an error");
}

#[tokio::test]
async fn old_connection_is_closed_when_its_request_is_answered() {
    let connection_age_max = PATIENCE / 10;
    let server = Server::with(Settings { connection_age_max, ..settings() }).await;
    server.fake.open.send_replace(false);
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let request = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\
                   Content-Type: application/x-protobuf\r\n\r\nx";
    stream.write_all(request.as_bytes()).await.unwrap();
    server.wait_received(1).await;
    let mut younger = Frames::connect(server.grpc).await;
    younger.next(Frames::SETTINGS).await;
    tokio::time::pause();
    tokio::time::advance(2 * connection_age_max).await;
    tokio::time::resume();
    // What is younger was told, so what is older was, too.
    younger.next(Frames::GOAWAY).await;
    server.fake.open.send_replace(true);
    let reply = String::from_utf8(rest(&mut stream).await).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.contains("connection: close"), "{reply}");
}

#[tokio::test]
async fn several_addresses_and_ipv6_are_served() {
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
    if tokio::net::TcpListener::bind(v6).await.is_err() {
        return; // This host has no IPv6.
    }
    let v4 = Settings::default().http[0];
    let both = Settings { http: vec![v6, v4], grpc: vec![v4, v6], ..settings() };
    let mut server = Server::with(both).await;
    assert!(server.http.is_ipv6() && server.grpc.is_ipv4());
    assert_eq!(server.post(&[PROTOBUF], "x").await.status, StatusCode::OK);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Ok);
    [server.grpc, server.http] = [server.grpcs[1], server.https[1]];
    assert!(server.http.is_ipv4() && server.grpc.is_ipv6());
    assert_eq!(server.post(&[PROTOBUF], "x").await.status, StatusCode::OK);
    assert_eq!(server.export(&[], frame(0, b"x")).await.grpc_code(), Code::Ok);
}

/// Bodies in memory, so that the clock can be paused.
mod slow {
    use super::*;
    use crate::ingest::intake::{Intake, READ_MAX};
    use tokio::time::Instant;

    /// One piece a second, without end.
    fn body() -> impl hyper::body::Body<Data = Bytes, Error = std::io::Error> + Unpin {
        let pieces = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok(Frame::data(Bytes::from_static(b"\0\0\x0f\0"))), ()))
        });
        StreamBody::new(Box::pin(pieces))
    }

    fn intake() -> (Intake<Fake>, Arc<InFlight>) {
        let in_flight = InFlight::new(LIMIT);
        let fake = Fake {
            received: Arc::default(),
            answer: Arc::new(Mutex::new(Ok(Accepted::default()))),
            open: watch::Sender::new(true),
        };
        let intake = Intake {
            export: fake,
            tokens: None,
            admission: watch::Sender::new(Admission::Serving).subscribe(),
            in_flight: in_flight.clone(),
            request_bytes_max: LIMIT,
            answer_max: PATIENCE,
            metrics: Metrics::register(&mut registry()).ingest,
        };
        (intake, in_flight)
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_behind_the_client_is_answered_in_time() {
        let (intake, _) = intake();
        let begun = Instant::now();
        let answer = intake.in_time(std::future::pending()).await;
        assert!(matches!(answer, Err(Refusal::Later { .. })), "{answer:?}");
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn grpc_request_that_comes_too_slowly_is_put_off() {
        let (intake, in_flight) = intake();
        let begun = Instant::now();
        let response = crate::ingest::grpc::export(&intake, Request::new(body())).await;
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(begun.elapsed(), READ_MAX);
        assert_eq!(in_flight.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn http_request_that_comes_too_slowly_is_put_off() {
        let (intake, in_flight) = intake();
        let begun = Instant::now();
        let request = Request::post("/v1/traces").header(CONTENT_TYPE, "application/x-protobuf");
        let request = request.body(body()).unwrap();
        let response = crate::ingest::http::respond(&intake, request).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(begun.elapsed() < 2 * READ_MAX);
        assert_eq!(in_flight.bytes(), 0);
    }
}
