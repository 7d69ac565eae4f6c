//! The same over HTTP.

use super::*;
use http::header::HeaderMap;
use http_body_util::{BodyExt, Full};
use std::io::Read;

/// The answer to a request: status, headers, body.
type Said = (u16, Vec<(&'static str, String)>, Body);

struct Seen {
    path: String,
    headers: HeaderMap,
    request: Bytes,
}

/// A server over HTTP that answers by script.
pub(super) struct HttpServer {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: JoinSet<()>,
}

impl HttpServer {
    pub(super) async fn start(script: impl Fn(&HeaderMap) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (script, note) = (Arc::new(script), seen.clone());
        let answer = move |request: axum::extract::Request| {
            let (script, note) = (script.clone(), note.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let request = decompressed(&head.headers, &body);
                let (status, headers, body) = script(&head.headers);
                let path = head.uri.to_string();
                note.lock().unwrap().push(Seen { path, headers: head.headers, request });
                let mut response = http::Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(axum::body::Body::new(body)).unwrap()
            }
        };
        let router = axum::Router::new().fallback(answer);
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, seen, _task: task }
    }

    pub(super) fn requests(&self) -> Vec<Bytes> {
        self.seen.lock().unwrap().iter().map(|seen| seen.request.clone()).collect()
    }

    fn target(&self, path: &str) -> Target {
        target(Protocol::Http, &[format!("http://{}{path}", self.address)])
    }

    fn rig(&self) -> Rig {
        Rig::of(&self.target(""), |_| {})
    }
}

fn decompressed(headers: &HeaderMap, body: &Bytes) -> Bytes {
    match headers.get("content-encoding").map(|encoding| encoding.to_str().unwrap()) {
        Some("zstd") => zstd::decode_all(&**body).unwrap().into(),
        Some("gzip") => {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(&**body).read_to_end(&mut bytes).unwrap();
            bytes.into()
        }
        Some(other) => panic!("{other}"),
        None => body.clone(),
    }
}

pub(super) fn says(status: u16) -> Said {
    (status, Vec::new(), Body::empty())
}

/// 200, with spans that are not taken.
fn rejects(rejected_spans: i64) -> Said {
    let partial = ExportTracePartialSuccess { rejected_spans, error_message: "odd".into() };
    let response = ExportTraceServiceResponse { partial_success: Some(partial) };
    (200, Vec::new(), Body::new(Full::new(Bytes::from(response.encode_to_vec()))))
}

#[tokio::test]
async fn request_is_protobuf_to_the_path_of_traces_in_every_compression() {
    let server = HttpServer::start(|_| says(200)).await;
    for (compression, encoding) in [
        (Compression::None, None),
        (Compression::Gzip, Some("gzip")),
        (Compression::Zstd, Some("zstd")),
    ] {
        for (path, wanted) in [("", "/v1/traces"), ("/a/traces?b=c", "/a/traces?b=c")] {
            let rig = Rig::of(&Target { compression, ..server.target(path) }, |_| {});
            let attempts = traces(5);
            assert_eq!(rig.export(&attempts).await, vec![Outcome::Acknowledged; 5]);
            assert_eq!((rig.metrics.spans.get(), rig.metrics.up.get()), (10, 1));
            let Seen { path, headers, request } = server.seen.lock().unwrap().pop().unwrap();
            assert_eq!(path, wanted);
            assert_eq!(span_ids(&[request]), span_ids(&encoded(&attempts)));
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(
                headers.get("content-encoding").map(|value| value.to_str().unwrap()),
                encoding
            );
            assert_eq!(headers["x-key"], "secret");
            assert!(headers["user-agent"].to_str().unwrap().starts_with("tracemesh/"));
        }
    }
}

#[tokio::test]
async fn statuses_mean_what_otlp_says() {
    for status in [429, 502, 503, 504] {
        let server = HttpServer::start(move |_| says(status)).await;
        let rig = server.rig();
        assert_eq!(rig.export_one().await, Outcome::AGAIN, "{status}");
        assert_eq!((rig.metrics.up.get(), rig.dead().len()), (0, 0), "{status}");
    }
    let barred = [401, 404, 405, 415];
    for status in [400, 403, 408, 413, 500, 501, 505].into_iter().chain(barred) {
        let server = HttpServer::start(move |_| says(status)).await;
        let rig = server.rig();
        assert_eq!(rig.export_one().await, Outcome::Refused, "{status}");
        let up = i64::from(!barred.contains(&status));
        assert_eq!((rig.metrics.up.get(), rig.dead().len()), (up, 1), "{status}");
        let letters = fs::read_to_string(&rig.letters).unwrap();
        assert!(letters.contains(&format!("HTTP {status}")), "{letters}");
    }
}

#[tokio::test]
async fn wait_is_asked_for_in_seconds_or_by_a_date() {
    let date = |seconds| httpdate::fmt_http_date(NOW + Duration::from_secs(seconds));
    for (value, after) in [
        ("7".to_owned(), Some(7)),
        ("86400".to_owned(), Some(300)),
        (date(9), Some(9)),
        (date(86_400), Some(300)),
        (date(0), Some(0)),
        ("soon".to_owned(), None),
        ("-1".to_owned(), None),
    ] {
        let said = value.clone();
        let server =
            HttpServer::start(move |_| (503, vec![("retry-after", said.clone())], Body::empty()))
                .await;
        let rig = server.rig();
        let after = after.map(Duration::from_secs);
        assert_eq!(rig.export_one().await, Outcome::Again { after }, "{value}");
    }
}

#[tokio::test]
async fn partial_success_is_counted_and_not_sent_again() {
    let server = HttpServer::start(|_| rejects(3)).await;
    let rig = server.rig();
    assert_eq!(rig.export(&traces(5)).await, vec![Outcome::Acknowledged; 5]);
    assert_eq!(server.requests().len(), 1);
    assert_eq!((rig.metrics.spans.get(), rig.metrics.spans_rejected.get()), (7, 3));
}

#[tokio::test]
async fn redirect_is_refused_and_not_followed() {
    let other = HttpServer::start(|_| says(200)).await;
    for status in [301, 302, 307, 308] {
        let location = format!("http://{}/v1/traces", other.address);
        let server = HttpServer::start(move |_| {
            (status, vec![("location", location.clone())], Body::empty())
        })
        .await;
        let rig = server.rig();
        assert_eq!(rig.export_one().await, Outcome::Refused);
        assert_eq!(rig.metrics.up.get(), 0);
        let letters = fs::read_to_string(&rig.letters).unwrap();
        assert!(letters.contains("redirects are not followed"), "{letters}");
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn server_that_bars_a_sink_is_asked_once_for_many_traces() {
    let server = HttpServer::start(|_| says(401)).await;
    let rig = server.rig();
    assert_eq!(rig.export(&traces(70)).await, vec![Outcome::Refused; 70]);
    assert_eq!((server.requests().len(), rig.dead().len()), (1, 70));
}

#[tokio::test]
async fn reason_of_an_error_is_in_the_dead_letter() {
    let mut status = answer::RpcStatus::default();
    status.message = "span 3\nis odd".into();
    let message = Bytes::from(status.encode_to_vec());
    let protobuf = "application/x-protobuf".to_owned();
    let server = HttpServer::start(move |_| {
        (400, vec![("content-type", protobuf.clone())], Body::new(Full::new(message.clone())))
    })
    .await;
    let rig = server.rig();
    assert_eq!(rig.export_one().await, Outcome::Refused);
    let letters = fs::read_to_string(&rig.letters).unwrap();
    assert!(letters.contains("HTTP 400 Bad Request: span 3 is odd"), "{letters}");
}

#[tokio::test]
async fn endless_answer_is_not_read_to_its_end() {
    let server = HttpServer::start(|_| {
        let chunk = || Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(vec![0; 9_000])));
        let endless = futures_util::stream::repeat_with(chunk);
        (200, Vec::new(), Body::new(http_body_util::StreamBody::new(endless)))
    })
    .await;
    let rig = server.rig();
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
}

#[tokio::test]
async fn connection_that_dies_in_mid_request_leaves_it_unknown_and_a_closed_port_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let rig = Rig::of(&target(Protocol::Http, &[format!("http://{address}")]), |_| {});
    let outcome = submit(&*rig.sink, trace(1, 100));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut some = [0; 100];
    stream.read_exact(&mut some).await.unwrap();
    drop((stream, listener));
    assert_eq!(outcome.await, Outcome::Unanswered);
    assert_eq!(rig.export_one().await, Outcome::AGAIN);
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn server_without_our_compression_gets_plain_requests() {
    let server = HttpServer::start(|headers| {
        says(if headers.contains_key("content-encoding") { 415 } else { 200 })
    })
    .await;
    let rig = server.rig();
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!(server.requests().len(), 3, "tried compressed once");
    assert!(rig.dead().is_empty());
}

#[tokio::test]
async fn trace_that_is_put_off_for_too_long_becomes_a_dead_letter() {
    let server = HttpServer::start(|_| says(503)).await;
    let rig = server.rig();
    let due =
        |trace: &Arc<Attempt>| Arc::new(Attempt { due: Some(Instant::now()), ..(**trace).clone() });
    let first = due(&trace(1, 1));
    assert_eq!(rig.export(slice::from_ref(&first)).await, [Outcome::AGAIN]);
    tokio::time::pause();
    tokio::time::advance(RETRY_FOR).await;
    tokio::time::resume();
    let outcomes = rig.export(&[first, due(&trace(2, 1)), trace(3, 1)]).await;
    assert_eq!(outcomes, [Outcome::Refused, Outcome::AGAIN, Outcome::AGAIN]);
    assert_eq!(rig.dead(), [TraceId([1; 16]).to_string()]);
    assert!(fs::read_to_string(&rig.letters).unwrap().contains("put off for too long: HTTP 503"));
}

#[tokio::test]
async fn time_in_which_a_sink_does_not_answer_is_not_put_off() {
    let server = Server::start(|_, count| match count {
        1 => Say::Nothing,
        _ => Say::No(full()),
    })
    .await;
    let rig = Rig::new(server.address);
    let overdue = Attempt { due: Some(Instant::now()), ..(*trace(1, 1)).clone() };
    let overdue = [Arc::new(overdue)];
    assert_eq!(rig.export(&overdue).await, [again_in_7_seconds()]);
    server.arrived.notified().await;
    let silence = submit(&*rig.sink, overdue[0].clone());
    server.arrived.notified().await;
    tokio::time::pause();
    assert_eq!(silence.await, Outcome::Unanswered);
    tokio::time::advance(10 * RETRY_FOR).await;
    tokio::time::resume();
    assert_eq!(rig.export(&overdue).await, [again_in_7_seconds()]);
    assert!(rig.dead().is_empty());
}
