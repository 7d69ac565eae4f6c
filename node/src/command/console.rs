//! A node's console as the commands ask it.
//!
//! One client for all commands that talk to a node. The invariant: an error names the console and
//! says what to do. Each answer is bounded by [`ANSWER_TIME_MAX`] and [`ANSWER_BYTES_MAX`], but for
//! one that is waited for on purpose.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::timeout;

/// A console answers from memory, or asks others for a second; what takes longer is not there.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// A hundred members need 30 KB.
pub(super) const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Where the commands look unless they are told.
pub(super) const DEFAULT: &str = "http://127.0.0.1:4320";

/// The console of one node.
#[derive(Clone, Debug)]
pub(super) struct Console {
    node: Uri,
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// What a console answered, whatever the code.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: StatusCode,
    pub(super) body: Bytes,
}

impl Console {
    pub(super) fn new(node: Uri) -> Self {
        Self { node, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Gets a path that must be there.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        let answer = self.ask(Method::GET, path).await?;
        self.expect(&answer, answer.code.is_success())?;
        Ok(answer.body)
    }

    /// Asks, and takes any answer.
    pub(super) async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let answer = timeout(ANSWER_TIME_MAX, self.request(method, path)).await;
        let answer = answer.map_err(anyhow::Error::from).flatten();
        answer.with_context(|| format!("cannot ask {} (--node URL names a console)", self.node))
    }

    /// Gets a path whose answer takes as long as it takes.
    pub(super) async fn wait(&self, path: &str) -> anyhow::Result<Answer> {
        let answer = self.request(Method::GET, path).await;
        answer.with_context(|| format!("cannot wait for {}", self.node))
    }

    /// The document in an answer.
    pub(super) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> anyhow::Result<T> {
        let document = serde_json::from_slice(body);
        document.with_context(|| {
            format!("{} is no console of a Tracemesh node, or of a much older one", self.node)
        })
    }

    /// Refuses an answer, saying what it was.
    pub(super) fn expect(&self, answer: &Answer, is_well: bool) -> anyhow::Result<()> {
        let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]);
        let said = said.lines().next().unwrap_or_default();
        ensure!(is_well, "{} answers {}: {said}", self.node, answer.code);
        Ok(())
    }

    async fn request(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let uri = format!("{}{path}", self.node.to_string().trim_end_matches('/'));
        let request = Request::builder().method(method).uri(uri).body(Empty::new())?;
        let response = self.client.request(request).await?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(Answer { code, body: body.map_err(anyhow::Error::from_boxed)?.to_bytes() })
    }
}
