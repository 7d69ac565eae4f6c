//! Connections to a server, for both protocols.
//!
//! The library pools them: made by the first request, again by the first after one broke. What it
//! is asked for here are names, bounds, and signs of life. A request that never got a connection is
//! told from one that did, since the first was certainly not taken.

use crate::reload::InUse;
use crate::sink::ATTEMPT_MAX;
use crate::tls::ClientTls;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::Uri;
use hyper_rustls::{
    DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, MaybeHttpsStream,
    ResolveServerName,
};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use std::error;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::body::Body;
use tower::Service;

/// What a server's log says.
pub(super) const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tracemesh/", env!("CARGO_PKG_VERSION")));

/// A connection that is not made by then will not be: an attempt has time for two, so that a second
/// address or endpoint can be tried.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(2);

/// While requests are open and nothing comes, ask so often whether the other end is there; servers
/// object to being asked much more often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// An unused connection is closed before servers close it: one that ends while a request is being
/// sent leaves unknown what arrived. They wait for a minute and longer.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Connections to one server.
pub(super) type Connection = Client<Connector, Body>;

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// As many connections as there are requests.
    One,
    /// One connection, from the first byte on, as gRPC wants it.
    Two,
}

impl Version {
    /// What a TLS handshake has to say of it; HTTP/1 goes without saying.
    pub(super) fn in_handshake(self) -> Option<&'static [u8]> {
        match self {
            Self::One => None,
            Self::Two => Some(b"h2"),
        }
    }
}

/// Connects to nothing yet. Without `tls` an `https` URL cannot be reached.
pub(super) fn connection(version: Version, tls: Option<Tls>) -> Connection {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    tcp.enforce_http(tls.is_none());
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .http2_only(version == Version::Two)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(ATTEMPT_MAX)
        .build(Connector { tcp, tls })
}

/// Whether the request never got a connection.
pub(super) fn is_unreached(error: &Error) -> bool {
    error.connect_info().is_none()
}

/// TLS as it is to be spoken at the moment in which a connection is made.
#[derive(Clone)]
pub(super) struct Tls {
    in_use: InUse<ClientTls>,
    names: Arc<dyn ResolveServerName + Send + Sync>,
}

impl Tls {
    /// With the name that a certificate has to be for, where that is not the URL's.
    pub(super) fn new(in_use: InUse<ClientTls>, name: Option<ServerName<'static>>) -> Self {
        let names: Arc<dyn ResolveServerName + Send + Sync> = match name {
            Some(name) => Arc::new(FixedServerNameResolver::new(name)),
            None => Arc::new(DefaultServerNameResolver::default()),
        };
        Self { in_use, names }
    }
}

/// Makes a connection, with TLS where the URL says so.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<Tls>,
}

type BoxError = Box<dyn error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let Self { mut tcp, tls } = self.clone();
        let connecting = async move {
            match tls {
                None => Ok(MaybeHttpsStream::Http(tcp.call(url).await?)),
                Some(Tls { in_use, names }) => {
                    HttpsConnector::new(tcp, in_use.get(), false, names).call(url).await
                }
            }
        };
        // The bound of TCP alone does not hold for a handshake.
        Box::pin(async { timeout(CONNECT_MAX, connecting).await? })
    }
}
