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

use crate::listen::{self, BindError, Limits, Listener};
use crate::metrics::IngestMetrics;
use bytes::Bytes;
use intake::Intake;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use intake::InFlight;

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
        }
    }
}

/// All OTLP ports, taken but not served yet.
#[derive(Debug)]
pub struct Listeners {
    grpc: Vec<Listener>,
    http: Vec<Listener>,
    settings: Settings,
}

impl Listeners {
    /// Takes every port, or none.
    pub async fn bind(settings: Settings) -> Result<Self, BindError> {
        let mut grpc = Vec::new();
        for &address in &settings.grpc {
            grpc.push(Listener::bind("listen.grpc", address).await?);
        }
        let mut http = Vec::new();
        for &address in &settings.http {
            http.push(Listener::bind("listen.http", address).await?);
        }
        Ok(Self { grpc, http, settings })
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
        };
        let bytes_max = self.settings.request_bytes_max;
        let intake = Intake::new(export, admission.clone(), in_flight, bytes_max, metrics);
        let (health, follow_health) = grpc::health(admission, drain.clone()).await;
        let mut servers = JoinSet::new();
        servers.spawn(follow_health);
        for listener in self.grpc {
            let service = grpc::service(intake.clone(), health.clone());
            servers.spawn(listen::serve(listener, service, limits.clone(), drain.clone()));
        }
        for listener in self.http {
            let service = http::service(intake.clone());
            servers.spawn(listen::serve(listener, service, limits.clone(), drain.clone()));
        }
        // A panic in a server is passed on to whoever runs this.
        servers.join_all().await;
    }
}

#[cfg(test)]
mod tests;
