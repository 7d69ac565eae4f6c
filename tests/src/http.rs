//! HTTP requests to nodes.
//!
//! Every status is an answer, not an error; no answer at all panics, but for [`try_post`], which is
//! for clients that retry.

use crate::wait::DEADLINE;
use std::sync::LazyLock;
use ureq::Agent;
use ureq::http::{Request, Response};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// One client for all tests; connections are kept by address.
static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let config = Agent::config_builder();
    let config = config.http_status_as_error(false).timeout_global(Some(DEADLINE));
    config.max_idle_connections(0).build().into()
});

/// What a node answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: ureq::http::HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text, whatever it holds.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("the body is no JSON: {error}: {}", self.text()))
    }

    /// The value of a header; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Gets `url`.
///
/// # Panics
/// When there is no answer.
pub fn get(url: &str) -> Answer {
    send("GET", url, &[], &[]).unwrap_or_else(|error| panic!("GET {url}: {error}"))
}

/// Gets `url`, which may not be served.
pub fn try_get(url: &str) -> Option<Answer> {
    send("GET", url, &[], &[]).ok()
}

/// Posts `body` with `headers`.
///
/// # Panics
/// When there is no answer.
pub fn post(url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    try_post(url, headers, body).unwrap_or_else(|error| panic!("POST {url}: {error}"))
}

/// Posts `body` with `headers` to somebody who may not be there.
///
/// # Errors
/// When there is no answer; the request may have arrived.
pub fn try_post(url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, ureq::Error> {
    send("POST", url, headers, body)
}

/// Sends a request with any method.
///
/// # Errors
/// When there is no answer; the request may have arrived.
pub fn send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer, ureq::Error> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = AGENT.configure_request(request.body(body)?);
    read(AGENT.run(request.allow_non_standard_methods(true).build())?)
}

fn read(answer: Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let (parts, mut body) = answer.into_parts();
    let body = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}
