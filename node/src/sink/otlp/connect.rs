//! Connections to a server, for both protocols.
//!
//! The library pools them: made by the first request, again by the first after one broke. What it
//! is asked for here are names, bounds, and signs of life. A request that never got a connection is
//! told from one that did, since the first was certainly not taken.

use crate::sink::ATTEMPT_MAX;
use http::HeaderValue;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;
use tonic::body::Body;

/// What a server's log says.
pub(super) const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tracemesh/", env!("CARGO_PKG_VERSION")));

/// A connection that is not made by then will not be: half of an attempt, so that a second address
/// or endpoint can be tried.
const CONNECT_MAX: Duration = Duration::from_millis(2_500);

/// While requests are open and nothing comes, ask so often whether the other end is there; servers
/// object to being asked much more often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// An unused connection is closed before servers close it: one that ends while a request is being
/// sent leaves unknown what arrived. They wait for a minute and longer.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Connections to one server.
pub(super) type Connection = Client<HttpConnector, Body>;

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// As many connections as there are requests.
    One,
    /// One connection, from the first byte on, as gRPC wants it.
    Two,
}

/// Connects to nothing yet.
pub(super) fn connection(version: Version) -> Connection {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .http2_only(version == Version::Two)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(ATTEMPT_MAX)
        .build(tcp)
}

/// Whether the request never got a connection.
pub(super) fn is_unreached(error: &Error) -> bool {
    error.connect_info().is_none()
}
