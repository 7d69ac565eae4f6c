//! The console on a real loopback port, with a document made up for it.

use super::*;
use crate::explain::Verdict;
use crate::metrics::{Metrics, registry};
use crate::status::SpansHeld;
use axum::body::Bytes;
use axum::http::header::ALLOW;
use axum::http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Mutex;
use tokio::task::JoinSet;

struct Server {
    address: SocketAddr,
    status: Arc<Mutex<Status>>,
    drain: CancellationToken,
    task: JoinSet<()>,
    draining: CancellationToken,
    ended: watch::Sender<Option<Ending>>,
}

impl Server {
    async fn start() -> Self {
        let mut registry = registry();
        Metrics::register(&mut registry).route.accepted.inc_by(42);
        let status = Arc::new(Mutex::new(document()));
        let shown = status.clone();
        let (draining, ended) = (CancellationToken::new(), watch::Sender::new(None));
        let source = Source {
            status: Arc::new(move || shown.lock().unwrap().clone()),
            registry: Arc::new(registry),
            explain: Arc::new(|trace_id| Box::pin(ready(explanation(trace_id)))),
            draining: draining.clone(),
            ended: ended.subscribe(),
        };
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind("listen.console", loopback).await.unwrap();
        let (address, drain) = (listener.address(), CancellationToken::new());
        let mut task = JoinSet::new();
        task.spawn(serve(listener, source, drain.clone()));
        Self { address, status, drain, task, draining, ended }
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        self.ask(Method::GET, path, "*/*").await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &str,
    ) -> (StatusCode, HeaderMap, String) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder().method(method).uri(uri).header(ACCEPT, accept);
        let response = client.request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn json(&self, path: &str) -> (StatusCode, Value) {
        let (code, headers, body) = self.get(path).await;
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        (code, serde_json::from_str(&body).unwrap())
    }
}

/// Only the trace `aa…` is known.
fn explanation(trace_id: TraceId) -> Explanation {
    let known = trace_id == TraceId([0xaa; 16]);
    Explanation {
        trace_id: trace_id.to_string(),
        known,
        verdict: if known { Verdict::Keep } else { Verdict::None },
        asked: "node-a".into(),
        view: document().view,
        slot: 3,
        owner: Some("node-a".into()),
        replica: None,
        nodes: Vec::new(),
    }
}

fn document() -> Status {
    let member = |id: &str, owned_slots| Member {
        id: id.into(),
        state: State::Active,
        generation: 7,
        epoch: 0,
        mesh_address: "127.0.0.1:4319".into(),
        console_address: "127.0.0.1:4320".into(),
        zone: "rack-1".into(),
        weight: 1.0,
        owned_slots,
        replica_slots: 65_536 - owned_slots,
        fill_percent: 12,
    };
    Status {
        id: "node-a".into(),
        cluster: "tracemesh".into(),
        started_unix_seconds: 1_700_000_000,
        state: State::Active,
        ready: true,
        degraded: vec!["full".into()],
        view: View { hash: "c0ffee".into(), members: 2 },
        members: vec![member("node-a", 30_000), member("<script>alert('b')</script>", 35_536)],
        spans_held: SpansHeld { owner: 1000, replica: 900, stand_in: 0 },
        traces_held: 120,
        traces_unplaced: 0,
        settled: true,
        memory_bytes: 5_000_000,
        memory_budget_bytes: 1 << 30,
        counters: BTreeMap::from([("spans_accepted_total".into(), 42)]),
    }
}

#[tokio::test]
async fn status_is_the_document_that_the_command_line_reads() {
    let server = Server::start().await;
    let (code, _, body) = server.get("/api/v1/status").await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), document());
    let (_, members) = server.json("/api/v1/members").await;
    assert_eq!(members, json!(document().members));
    let (_, placement) = server.json("/api/v1/placement").await;
    assert_eq!(placement["view"]["hash"], "c0ffee");
    assert_eq!(placement["shares"][1]["owned_slots"], 35_536);
}

#[tokio::test]
async fn readiness_says_why_not_and_what_is_impaired() {
    let server = Server::start().await;
    let ready = json!({ "ready": true, "state": "active", "why": "", "degraded": ["full"] });
    assert_eq!(server.json("/readyz").await, (StatusCode::OK, ready));
    for (state, said) in [(State::Joining, "joining"), (State::Leaving, "draining")] {
        {
            let mut status = server.status.lock().unwrap();
            (status.ready, status.state) = (false, state);
        }
        let (code, body) = server.json("/readyz").await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body["why"].as_str().unwrap().contains(said), "{body}");
    }
    assert_eq!(server.get("/healthz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn metrics_come_in_the_format_that_was_asked_for() {
    let server = Server::start().await;
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1";
    for (accept, content_type, ended) in [("*/*", CLASSIC, false), (prometheus, OPEN_METRICS, true)]
    {
        let (code, headers, body) = server.ask(Method::GET, "/metrics", accept).await;
        assert_eq!(code, StatusCode::OK);
        assert_eq!(headers[CONTENT_TYPE], content_type);
        assert!(body.contains("\ntracemesh_spans_accepted_total 42\n"));
        assert_eq!(body.ends_with("# EOF\n"), ended);
    }
}

#[tokio::test]
async fn page_escapes_what_others_named_themselves() {
    let server = Server::start().await;
    let (code, headers, body) = server.get("/").await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(!body.contains("<script>"));
    assert!(body.contains("&lt;script&gt;alert(&#39;b&#39;)&lt;/script&gt;"));
    for said in ["accepts spans", "Degraded: full", "c0ffee", "href=\"/metrics\"", "35536"] {
        assert!(body.contains(said), "{said} is not on the page");
    }
}

#[test]
fn every_path_is_in_the_readme() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(path).expect("the README is there");
    for (path, _) in PATHS.iter().chain(&QUESTIONS) {
        assert!(readme.contains(&format!("`{path}`")), "README.md: say what is at {path}");
    }
}

#[tokio::test]
async fn every_path_that_is_listed_exists() {
    let server = Server::start().await;
    let (code, _, listed) = server.get("/nowhere").await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    for (path, _) in PATHS {
        assert!(listed.contains(path));
        assert_eq!(server.get(path).await.0, StatusCode::OK, "{path}");
        let (code, headers, _) = server.ask(Method::POST, path, "*/*").await;
        assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(headers[ALLOW], "GET,HEAD");
    }
}

#[tokio::test]
async fn trace_is_explained_and_one_that_nobody_knows_is_not_found() {
    let server = Server::start().await;
    let path = |id: &str| format!("/api/v1/traces/{id}");
    let (code, known) = server.json(&path(&"aA".repeat(16))).await;
    assert_eq!((code, &known["verdict"]), (StatusCode::OK, &json!("keep")));
    let (code, unknown) = server.json(&path(&"ab".repeat(16))).await;
    assert_eq!((code, &unknown["owner"]), (StatusCode::NOT_FOUND, &json!("node-a")));
    for wrong in ["aa", "%00", &"0".repeat(32), &"g".repeat(32)] {
        let (code, _, body) = server.get(&path(wrong)).await;
        assert_eq!(code, StatusCode::BAD_REQUEST, "{wrong}");
        assert!(body.contains("32 hexadecimal digits"), "{body}");
    }
}

#[tokio::test]
async fn whoever_asked_to_drain_hears_how_it_ended() {
    let server = Server::start().await;
    assert_eq!(server.get("/api/v1/drain").await.0, StatusCode::CONFLICT);
    assert!(!server.draining.is_cancelled());
    for _ in 0..2 {
        let (code, _, body) = server.ask(Method::POST, "/api/v1/drain", "*/*").await;
        assert_eq!(code, StatusCode::ACCEPTED, "asking twice is asking once");
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), document());
        assert!(server.draining.is_cancelled());
    }
    let end = async { server.ended.send_replace(Some(Ending::Left { span_count: 7 })) };
    let ((code, ending), _) = tokio::join!(server.json("/api/v1/drain"), end);
    assert_eq!((code, ending), (StatusCode::OK, json!({ "ended": "left", "span_count": 7 })));
}

#[tokio::test]
async fn drain_ends_the_server() {
    let mut server = Server::start().await;
    server.get("/healthz").await;
    server.drain.cancel();
    server.task.join_next().await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}
