//! One OTLP call over HTTP: raw protobuf out, and what the answer means.
//!
//! A proxy's answer cannot be told from the server's own here: a status counts as OTLP says,
//! whoever sent it. Redirects are not followed, since a client that posts elsewhere than it was
//! told gives its headers away; one says that the endpoint is not where it was told to be.

use super::answer::{AFTER_MAX, ANSWER_BYTES_MAX, Answer, Reply, RpcStatus, chain};
use super::connect::{Connection, is_unreached};
use crate::environment::WallClock;
use crate::sink::Compression;
use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use prost::Message;
use std::io::{self, Write};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Where traces go when the URL has no path.
const TRACES: &str = "/v1/traces";

/// What an error's body may add to the log.
const WHY_CHARS_MAX: usize = 200;

/// One server over HTTP.
pub(super) struct Http {
    connection: Connection,
    url: Uri,
    headers: HeaderMap,
    clock: WallClock,
}

impl Http {
    pub(super) fn new(
        connection: Connection,
        endpoint: &Uri,
        mut headers: HeaderMap,
        clock: WallClock,
    ) -> Self {
        headers.insert(CONTENT_TYPE, PROTOBUF);
        headers.insert(USER_AGENT, super::connect::USER_AGENT);
        Self { connection, url: traces_url(endpoint), headers, clock }
    }

    pub(super) async fn post(
        &self,
        body: Bytes,
        compression: Compression,
        deadline: Instant,
    ) -> Reply {
        let mut headers = self.headers.clone();
        let body = match compressed(&body, compression) {
            Ok(Some((compressed, encoding))) => {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
                compressed
            }
            Ok(None) => body,
            Err(error) => {
                let reason = format!("cannot compress: {error}");
                return Answer::Never { reason }.into();
            }
        };
        let mut request = Request::new(Body::new(Full::new(body)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        let exchange = async {
            let (head, body) = self.connection.request(request).await?.into_parts();
            // What is too long, or breaks off, does not change what the status said.
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            Ok((head, body.map_or_else(|_| Bytes::new(), |body| body.to_bytes())))
        };
        match timeout_at(deadline, exchange).await {
            Ok(Ok((head, body))) => self.reply(head.status, &head.headers, &body),
            Ok(Err(error)) if is_unreached(&error) => {
                Answer::Unreached { reason: chain(&error) }.into()
            }
            Ok(Err(error)) => Answer::Unanswered { reason: chain(&error) }.into(),
            Err(_) => Answer::Unanswered { reason: "no answer in time".to_owned() }.into(),
        }
    }

    fn reply(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Reply {
        if status.is_success() {
            return Answer::taken(body).into();
        }
        let reason = why(status, headers, body);
        let answer = match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                Answer::Later { after: self.retry_after(headers), reason }
            }
            StatusCode::UNAUTHORIZED
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::UNSUPPORTED_MEDIA_TYPE => Answer::Barred { reason },
            _ if status.is_redirection() => Answer::Barred { reason },
            _ => Answer::Never { reason },
        };
        Reply { answer, is_compression_unknown: status == StatusCode::UNSUPPORTED_MEDIA_TYPE }
    }

    /// `Retry-After`, in seconds or as a date.
    fn retry_after(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let after = match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let date = httpdate::parse_http_date(text).ok()?;
                date.duration_since((self.clock)()).unwrap_or_default()
            }
        };
        Some(after.min(AFTER_MAX))
    }
}

/// The endpoint with OTLP's own path where it has none.
fn traces_url(endpoint: &Uri) -> Uri {
    let mut parts = endpoint.clone().into_parts();
    let has_path = endpoint.path() != "/" || endpoint.query().is_some();
    if !has_path {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static(TRACES));
    }
    Uri::from_parts(parts).unwrap_or_else(|_| endpoint.clone())
}

/// A body with the name of its encoding; none where nothing is to be compressed.
fn compressed(body: &[u8], compression: Compression) -> io::Result<Option<(Bytes, &'static str)>> {
    let (bytes, encoding) = match compression {
        Compression::None => return Ok(None),
        Compression::Zstd => (zstd::bulk::compress(body, zstd::DEFAULT_COMPRESSION_LEVEL)?, "zstd"),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(body)?;
            (encoder.finish()?, "gzip")
        }
    };
    Ok(Some((bytes.into(), encoding)))
}

/// The status and what the server says about it: a protobuf message, as OTLP wants it, or a text.
fn why(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    let mut why = format!("HTTP {status}");
    if status.is_redirection() {
        let target = headers.get(LOCATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let target = String::from_utf8_lossy(target);
        why += &format!(" to {target:?}: redirects are not followed");
        return why;
    }
    let said = match headers.get(CONTENT_TYPE) {
        Some(kind) if kind == PROTOBUF => RpcStatus::decode(body).unwrap_or_default().message,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    let said = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let said: String = said.take(WHY_CHARS_MAX).collect();
    if said.is_empty() { why } else { format!("{why}: {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_traces_stands_in_for_none_alone() {
        for (endpoint, url) in [
            ("http://a:4318", "http://a:4318/v1/traces"),
            ("http://a:4318/", "http://a:4318/v1/traces"),
            ("http://a:4318/otlp", "http://a:4318/otlp"),
            ("http://a/otlp/v1/traces?tenant=b", "http://a/otlp/v1/traces?tenant=b"),
            ("http://[::1]:4318/?tenant=b", "http://[::1]:4318/?tenant=b"),
        ] {
            assert_eq!(traces_url(&endpoint.parse().unwrap()).to_string(), url);
        }
    }
}
