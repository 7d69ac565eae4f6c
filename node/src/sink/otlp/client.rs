//! The servers behind one sink, any of which will do.
//!
//! One is used until it fails; then the next is asked at once, in the same attempt, as long as
//! nothing was taken. What may have been taken is never sent to another one from here: that is an
//! attempt without an answer, and its owner's business. Who failed is left, and comes again in
//! turn.

use super::answer::{Answer, Reply};
use super::connect::{CONNECT_MAX, Tls, Version, connection};
use super::over_grpc::Grpc;
use super::over_http::Http;
use crate::environment::WallClock;
use crate::reload::Files;
use crate::sink::health::Pace;
use crate::sink::{Compression, Protocol, StartError};
use crate::tls::{ClientFiles, ClientTls};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use tokio::time::Instant;

/// Where a client sends, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Servers, any of which will do; one or more.
    pub endpoints: Vec<Uri>,
    /// What they speak.
    pub protocol: Protocol,
    /// How requests are compressed.
    pub compression: Compression,
    /// Sent with each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How TLS is spoken, where an endpoint is `https`.
    pub tls: ClientFiles,
}

impl Target {
    fn version(&self) -> Version {
        match self.protocol {
            Protocol::Grpc => Version::Two,
            Protocol::Http => Version::One,
        }
    }

    /// The files of TLS, where it is needed; whoever has them follows them.
    fn open_tls(
        &self,
        sink: &str,
        clock: &WallClock,
    ) -> Result<Option<Files<ClientTls>>, StartError> {
        let is_needed = |endpoint: &Uri| endpoint.scheme() == Some(&http::uri::Scheme::HTTPS);
        if !self.endpoints.iter().any(is_needed) {
            return Ok(None);
        }
        let files = self.tls.open(self.version().in_handshake(), clock);
        files.map(Some).map_err(|source| StartError::Tls { sink: sink.into(), source })
    }
}

/// The servers of one sink.
pub(crate) struct Client {
    sink: String,
    servers: Vec<Server>,
    /// The one that is used.
    current: AtomicUsize,
    departures: Pace,
}

struct Server {
    endpoint: String,
    protocol: Speaks,
    compression: Compression,
    /// It does not know our compression: do without.
    plain: AtomicBool,
}

enum Speaks {
    Grpc(Grpc),
    Http(Http),
}

impl Client {
    /// Connects to nothing yet. The files, where there are some, are to be followed.
    pub(crate) fn new(
        sink: &str,
        target: &Target,
        clock: &WallClock,
    ) -> Result<(Self, Option<Files<ClientTls>>), StartError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &target.headers {
            headers.append(name, value.clone());
        }
        let files = target.open_tls(sink, clock)?;
        let server_name = &target.tls.server_name;
        let tls = files.as_ref().map(|files| Tls::new(files.in_use(), server_name.clone()));
        let server = |endpoint: &Uri| {
            let headers = headers.clone();
            let connection = connection(target.version(), tls.clone());
            let protocol = match target.protocol {
                Protocol::Grpc => Speaks::Grpc(Grpc::new(connection, endpoint, headers)),
                Protocol::Http => {
                    Speaks::Http(Http::new(connection, endpoint, headers, clock.clone()))
                }
            };
            let endpoint = endpoint.to_string();
            let compression = target.compression;
            Server { endpoint, protocol, compression, plain: AtomicBool::new(false) }
        };
        let servers = target.endpoints.iter().map(server).collect();
        let (current, departures) = (AtomicUsize::new(0), Pace::default());
        Ok((Self { sink: sink.to_owned(), servers, current, departures }, files))
    }

    pub(super) fn sink(&self) -> &str {
        &self.sink
    }

    /// The server in use, for people.
    pub(super) fn endpoint(&self) -> &str {
        self.servers.get(self.current.load(Relaxed)).map_or("", |server| &server.endpoint)
    }

    /// Sends one request and waits for its answer, no longer than until `deadline`.
    pub(crate) async fn call(&self, request: Bytes, deadline: Instant) -> Answer {
        let (first, count) = (self.current.load(Relaxed), self.servers.len());
        let mut said = None;
        for number in 0..count {
            // Or an end of the attempt while connecting would look like a lost answer.
            if number > 0 && deadline - Instant::now() < CONNECT_MAX {
                break;
            }
            let index = (first + number) % count;
            let answer = self.servers[index].call(&self.sink, request.clone(), deadline).await;
            match &answer {
                Answer::Taken { .. } | Answer::Never { .. } => return answer,
                Answer::Unanswered { reason } => {
                    self.leave(index, reason);
                    return answer;
                }
                Answer::Later { reason, .. }
                | Answer::Unreached { reason }
                | Answer::Barred { reason } => {
                    self.leave(index, reason);
                    said = Some(match said {
                        Some(said) => Answer::or(said, answer),
                        None => answer,
                    });
                }
            }
        }
        said.unwrap_or(Answer::Unreached { reason: String::new() })
    }

    /// Goes on with the next one, unless another request did already.
    fn leave(&self, index: usize, reason: &str) {
        let next = (index + 1) % self.servers.len();
        let is_left = self.current.compare_exchange(index, next, Relaxed, Relaxed).is_ok();
        if next != index && is_left && self.departures.due() {
            let (sink, endpoint) = (&self.sink, &self.servers[index].endpoint);
            let next = &self.servers[next].endpoint;
            tracing::warn!(sink, endpoint, reason, next, "sink's endpoint is left for the next");
        }
    }
}

impl Answer {
    /// What two servers said together, when neither took anything: a wait is the shorter one, and
    /// the word of one that was reached counts. A sink is barred when all its servers bar it.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Later { after, reason }, Self::Later { after: other, .. }) => {
                Self::Later { after: after.min(other), reason }
            }
            (said, Self::Barred { .. }) => said,
            (Self::Unreached { .. } | Self::Barred { .. }, other) => other,
            (said, _) => said,
        }
    }
}

impl Server {
    async fn call(&self, sink: &str, request: Bytes, deadline: Instant) -> Answer {
        let is_plain = self.plain.load(Relaxed) || self.compression == Compression::None;
        let compression = if is_plain { Compression::None } else { self.compression };
        let reply = self.post(request.clone(), compression, deadline).await;
        if is_plain || !reply.is_compression_unknown {
            return reply.answer;
        }
        let answer = self.post(request, Compression::None, deadline).await.answer;
        if matches!(answer, Answer::Taken { .. }) && !self.plain.swap(true, Relaxed) {
            let endpoint = &self.endpoint;
            tracing::warn!(sink, endpoint, "sink does not know the compression: sending plain");
        }
        answer
    }

    async fn post(&self, request: Bytes, compression: Compression, deadline: Instant) -> Reply {
        match &self.protocol {
            Speaks::Grpc(grpc) => grpc.post(request, compression, deadline).await,
            Speaks::Http(http) => http.post(request, compression, deadline).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn word_of_a_server_that_was_reached_counts_and_the_shorter_wait() {
        let later = |seconds: Option<u64>| Answer::Later {
            after: seconds.map(Duration::from_secs),
            reason: "full".into(),
        };
        let unreached = || Answer::Unreached { reason: "nobody".into() };
        assert_eq!(later(Some(9)).or(later(Some(3))), later(Some(3)));
        assert_eq!(later(Some(9)).or(later(None)), later(None));
        assert_eq!(unreached().or(later(Some(3))), later(Some(3)));
        assert_eq!(later(Some(3)).or(unreached()), later(Some(3)));
    }
}
