//! The way in: OTLP over gRPC and HTTP.
//!
//! Both protocols end in one function, [`Export::export`], which takes the raw bytes of an
//! `ExportTraceServiceRequest`. What it answers is the whole contract with a client: accepted,
//! partly refused for good, or come back later.
//!
//! The invariant: a client is told to drop only what can never be accepted; whatever may pass is
//! answered "later", with a time to wait. Listeners are bound before the node starts
//! ([`Listeners::bind`]) and serve until told to drain ([`Listeners::serve`]). Bounded by
//! [`Settings`]: bytes of one request before and after decompression, bytes of all requests that
//! are not answered yet, connections. Nothing here looks into a span.

mod answer;
mod collect;
mod grpc;
mod http;
mod intake;
mod tokens;

use crate::entry::REQUEST_MAX;
use crate::environment::WallClock;
use crate::listen::{self, BindError, Limits, Listener};
use crate::metrics::IngestMetrics;
use crate::reload::{FileError, Files};
use crate::tls::{ServerFiles, ServerTls};
use ::http::HeaderValue;
use bytes::Bytes;
use intake::Intake;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use intake::InFlight;
pub use tokens::Tokens;

/// A request was taken: every span in it is held as often as the cluster promises, but for those
/// refused for good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Spans that can never be accepted (`partial_success.rejected_spans`).
    pub refused_span_count: u64,
    /// Why, for `partial_success.error_message`; empty when none was refused.
    pub message: String,
}

/// A request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no valid request; the client must not send them again
    /// (`INVALID_ARGUMENT`, HTTP 400).
    #[error("{0}")]
    Malformed(String),
    /// Over the size limit; the client must not send it again (`INVALID_ARGUMENT`, HTTP 413).
    #[error("{0}")]
    TooLarge(String),
    /// The client has shown no token by which it may send (`UNAUTHENTICATED`, HTTP 401).
    #[error("a bearer token is needed")]
    Unauthenticated,
    /// Not now; the client should send it again, here or elsewhere, after `after`
    /// (`UNAVAILABLE` with `RetryInfo`, HTTP 503 with `Retry-After`).
    #[error("{why}")]
    Later {
        /// What is in the way.
        why: &'static str,
        /// 1 s to 10 s, jittered.
        after: Duration,
    },
}

/// Takes requests; implemented by the router, and by whatever a test puts in its place.
pub trait Export: Clone + Send + Sync + 'static {
    /// Holds the spans of one encoded `ExportTraceServiceRequest`, or says why not.
    fn export(&self, request: Bytes) -> impl Future<Output = Result<Accepted, Refusal>> + Send;
}

/// Whether requests are taken, and what balancers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not yet: requests are answered "later", health says not serving.
    Joining,
    /// Requests are taken, health says serving.
    Serving,
    /// Requests are still taken, but health says not serving, so that balancers go elsewhere before
    /// the ports close.
    Leaving,
}

/// How the servers are set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses for OTLP over gRPC; port 0 takes a free one.
    pub grpc: Vec<SocketAddr>,
    /// Addresses for OTLP over HTTP.
    pub http: Vec<SocketAddr>,
    /// Bytes of one request, before and after decompression.
    pub request_bytes_max: usize,
    /// Bytes of all requests that are being read or are not acknowledged yet; at least
    /// `request_bytes_max`.
    pub in_flight_max: usize,
    /// Connections at once, both protocols together; more are closed at once.
    pub connections_max: usize,
    /// Age at which a connection is closed in an orderly way; zero for never.
    pub connection_age_max: Duration,
    /// From the last byte of a request to its answer.
    pub answer_max: Duration,
    /// How to speak TLS; none: not at all.
    pub tls: Option<ServerFiles>,
    /// Tokens of the clients that may send; none: everybody may.
    pub bearer_tokens_file: Option<PathBuf>,
    /// Origins of the web pages that may send over HTTP; `*` for all.
    pub cors_origins: Vec<HeaderValue>,
}

impl Default for Settings {
    /// The defaults of the configuration, on free ports of the loopback interface.
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            grpc: vec![loopback],
            http: vec![loopback],
            request_bytes_max: 64 << 20,
            in_flight_max: 256 << 20,
            connections_max: 10_000,
            connection_age_max: Duration::from_secs(300),
            answer_max: REQUEST_MAX,
            tls: None,
            bearer_tokens_file: None,
            cors_origins: Vec::new(),
        }
    }
}

/// The servers cannot start; nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A file of certificates, keys or tokens cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// All OTLP ports, taken but not served yet.
pub struct Listeners {
    grpc: Vec<Listener>,
    http: Vec<Listener>,
    tls: Option<Files<ServerTls>>,
    tokens: Option<Files<Tokens>>,
    settings: Settings,
}

impl Listeners {
    /// Takes every port, or none. Certificates of clients are checked by `wall_clock`.
    pub async fn bind(settings: Settings, wall_clock: &WallClock) -> Result<Self, StartError> {
        let tls = settings.tls.as_ref().map(|files| files.open(wall_clock)).transpose()?;
        let tokens = settings.bearer_tokens_file.as_deref().map(Tokens::open).transpose()?;
        let in_use = || tls.as_ref().map(Files::in_use);
        let mut grpc = Vec::new();
        for &address in &settings.grpc {
            grpc.push(Listener::bind("listen.grpc", address).await?.with_tls(in_use()));
        }
        let mut http = Vec::new();
        for &address in &settings.http {
            http.push(Listener::bind("listen.http", address).await?.with_tls(in_use()));
        }
        Ok(Self { grpc, http, tls, tokens, settings })
    }

    /// Where OTLP over gRPC is served, with real ports.
    pub fn grpc_addresses(&self) -> Vec<SocketAddr> {
        self.grpc.iter().map(Listener::address).collect()
    }

    /// Where OTLP over HTTP is served, with real ports.
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.http.iter().map(Listener::address).collect()
    }

    /// Serves until `drain`, and returns when the last request is answered or dropped, some seconds
    /// later. `in_flight` bounds the bytes of requests, and tells others how many there are.
    pub async fn serve<E: Export>(
        self,
        export: E,
        admission: watch::Receiver<Admission>,
        in_flight: Arc<InFlight>,
        metrics: IngestMetrics,
        drain: CancellationToken,
    ) {
        let limits = Limits {
            connections: Arc::new(Semaphore::new(self.settings.connections_max)),
            age_max: self.settings.connection_age_max,
            refused: metrics.connections_refused.clone(),
        };
        let intake = Intake {
            export,
            tokens: self.tokens.as_ref().map(Files::in_use),
            admission: admission.clone(),
            in_flight,
            request_bytes_max: self.settings.request_bytes_max,
            answer_max: self.settings.answer_max,
            metrics,
        };
        let (health, follow_health) = grpc::health(admission, drain.clone()).await;
        let mut servers = JoinSet::new();
        servers.spawn(follow_health);
        if let Some(tls) = self.tls {
            servers.spawn(tls.keep(drain.clone()));
        }
        if let Some(tokens) = self.tokens {
            servers.spawn(tokens.keep(drain.clone()));
        }
        for listener in self.grpc {
            let service = grpc::service(intake.clone(), health.clone());
            servers.spawn(listen::serve(listener, service, limits.clone(), drain.clone()));
        }
        for listener in self.http {
            let service = http::service(intake.clone(), &self.settings.cors_origins);
            servers.spawn(listen::serve(listener, service, limits.clone(), drain.clone()));
        }
        // A panic in a server is passed on to whoever runs this.
        servers.join_all().await;
    }
}

#[cfg(test)]
mod tests;
