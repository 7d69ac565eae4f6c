//! Who may send, by both protocols.

use super::*;
use std::fs;

/// A server that knows the token of one client, and the file with it.
async fn server(directory: &tempfile::TempDir) -> (Server, PathBuf) {
    let file = directory.path().join("tokens");
    fs::write(&file, "cart:secret\n").unwrap();
    let bearer_tokens_file = Some(file.clone());
    (Server::with(Settings { bearer_tokens_file, ..settings() }).await, file)
}

#[tokio::test]
async fn who_has_no_token_is_refused_without_detail_and_before_anything_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _) = server(&directory).await;
    for headers in [vec![], vec![("authorization", "Bearer secre")], vec![("authorization", "x")]] {
        let reply = server.export(&headers, frame(0, b"x")).await;
        assert_eq!(reply.grpc_code(), Code::Unauthenticated);
        assert_eq!(reply.grpc_message(), "a bearer token is needed");
        for format in [PROTOBUF, JSON] {
            let headers = [&headers[..], &[format]].concat();
            let reply = server.post(&headers, "{").await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
            assert_eq!(reply.header("www-authenticate"), "Bearer");
            assert_eq!(reply.message(), "a bearer token is needed");
        }
    }
    assert_eq!(server.received(), Vec::<Bytes>::new());
    let refused = |protocol: &str| {
        server.counter(&format!(
            "requests_total{{protocol=\"{protocol}\",answer=\"unauthenticated\"}}"
        ))
    };
    assert_eq!((refused("grpc"), refused("http")), (3, 6));

    let token = ("authorization", "Bearer secret");
    assert_eq!(server.export(&[token], frame(0, b"x")).await.grpc_code(), Code::Ok);
    assert_eq!(server.post(&[token, PROTOBUF], "x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn health_is_open_to_all() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _) = server(&directory).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn tokens_follow_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let (server, file) = server(&directory).await;
    fs::write(file, "cart:new\n").unwrap();
    let status = async |token| server.post(&[("authorization", token), PROTOBUF], "x").await.status;
    let changed = async {
        while status("Bearer new").await == StatusCode::UNAUTHORIZED {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, changed).await.unwrap();
    assert_eq!(status("Bearer secret").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn file_of_tokens_that_lets_nobody_in_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens");
    fs::write(&file, "\n").unwrap();
    let settings = Settings { bearer_tokens_file: Some(file), ..settings() };
    let error = Listeners::bind(settings, &clock()).await.err().unwrap();
    assert!(error.to_string().contains("NAME:TOKEN"), "{error}");
}
