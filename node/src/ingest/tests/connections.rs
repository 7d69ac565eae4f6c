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
    let given_back = async {
        while server.in_flight.bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, given_back).await.unwrap();
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
    let error = Listeners::bind(taken).await.unwrap_err();
    assert_eq!((error.key, error.address), ("listen.http", server.http));
    let said = error.to_string();
    assert!(said.contains(&format!("cannot listen on {} (listen.http)", server.http)), "{said}");
    assert!(said.contains("another process has this port"), "{said}");
}

#[tokio::test]
async fn connections_are_bounded() {
    let settings = Settings { connections_max: 1, ..Settings::default() };
    let server = Server::with(settings).await;
    let mut first = TcpStream::connect(server.http).await.unwrap();
    let request = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    first.write_all(request).await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'H');
    let mut second = TcpStream::connect(server.grpc).await.unwrap();
    let mut nothing = Vec::new();
    let ended = timeout(PATIENCE, second.read_to_end(&mut nothing)).await.unwrap();
    assert!(ended.is_err() || nothing.is_empty());
}

#[tokio::test]
async fn old_connections_are_closed_in_an_orderly_way() {
    let settings = Settings { connection_age_max: Duration::from_millis(1), ..Settings::default() };
    let server = Server::with(settings).await;
    server.fake.open.send_replace(false);
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let request = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\
                   Content-Type: application/x-protobuf\r\n\r\nx";
    stream.write_all(request.as_bytes()).await.unwrap();
    server.wait_received(1).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    server.fake.open.send_replace(true);
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
}

#[tokio::test]
async fn several_addresses_and_ipv6_are_served() {
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
    if tokio::net::TcpListener::bind(v6).await.is_err() {
        return; // This host has no IPv6.
    }
    let v4 = Settings::default().http[0];
    let settings = Settings { http: vec![v6, v4], ..Settings::default() };
    let listeners = Listeners::bind(settings).await.unwrap();
    let [v6, v4] = listeners.http_addresses()[..] else { panic!("two addresses") };
    assert!(v6.is_ipv6() && v4.is_ipv4() && v6.port() != 0);
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
        let admission = watch::Sender::new(Admission::Serving).subscribe();
        let metrics = Metrics::register(&mut registry()).ingest;
        (Intake::new(fake, admission, in_flight.clone(), LIMIT, metrics), in_flight)
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
