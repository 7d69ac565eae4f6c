//! HTTP connections on TCP: accepted, bounded, aged, and closed in an orderly way.
//!
//! All servers of a node (OTLP over gRPC and HTTP, the console) accept here, so what bounds a
//! connection stands in one place, and so does its TLS. A [`Listener`] is bound before anything
//! else of the node starts, and serves later: a busy port is found while there is nothing yet to
//! undo.
//!
//! The invariant: whatever [`serve`] started has ended when it returns. Connections are owned by
//! it, the streams of an HTTP/2 connection by a tracker that it stops. A panic costs the connection
//! that it happened on. Bounded by the semaphore of its [`Limits`], by [`STREAMS_MAX`] a
//! connection, by windows for what was received but not read, and in time by [`OPENING_MAX`],
//! [`HEADERS_MAX`], pings and [`paced`]. It knows no protocol above HTTP, and does not decide when
//! a node drains.

mod paced;

use crate::metrics::{ConnectionRefusal, ConnectionRefusalLabels};
use crate::reload::InUse;
use crate::tls::{ServerTls, TlsAcceptor};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use paced::Paced;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a new connection may take for TLS, and again for the first bytes of a request.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// How long an HTTP/1 client may take for the headers of a request, and may be idle before it: SDKs
/// send every 5 s, collectors seldom less than once a minute.
const HEADERS_MAX: Duration = Duration::from_secs(75);
/// How long requests that were begun may take once their connection is to close. An export is
/// answered within 3 s; what takes longer is dropped, and sent again by its client.
pub const CLOSE_MAX: Duration = Duration::from_secs(5);
/// The same for a connection that is only old, whose client does nothing wrong: a body may take
/// 20 s to arrive, and its answer 3 s.
const GRACE_MAX: Duration = Duration::from_secs(25);
/// HTTP/2 pings find clients that vanished; a connection whose client does not answer for as long
/// again is closed.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection. A collector has ten senders; this leaves room for a
/// proxy that joins the clients of many hosts.
const STREAMS_MAX: u32 = 256;
/// What may arrive on one stream before it is read: four requests of 512 spans.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What may arrive on one connection before it is read. Windows of 64 KiB cost twice the CPU.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// The largest HTTP/2 frame that clients may send. Most send 16 KiB anyway; large ones cost less.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// What is read ahead on an HTTP/1 connection, all headers of a request included, of which HTTP/2
/// takes 16 KiB.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Pause after the system refused a connection, for lack of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Ages at which connections close differ by up to this many tenths of the setting, so that clients
/// which came together do not leave together.
const AGE_SPREAD_TENTHS: u32 = 3;

/// A port that is taken, and not served yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    key: &'static str,
    tls: Option<InUse<ServerTls>>,
}

/// A port could not be taken. Nothing was started; trying again helps once the cause is gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}): {}", hint(source))]
pub struct BindError {
    /// The configuration's key for this listener.
    pub key: &'static str,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "another process has this port; stop it, or choose other ports with --base-port"
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address; see node.bind",
        io::ErrorKind::PermissionDenied => "not allowed; ports below 1024 need privileges",
        _ => "the system refused",
    }
}

impl Listener {
    /// Takes a port; 0 takes a free one. `key` is the configuration's name for this listener.
    pub async fn bind(key: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        let bound = match TcpListener::bind(address).await {
            Ok(socket) => socket.local_addr().map(|address| (socket, address)),
            Err(error) => Err(error),
        };
        let (socket, address) = bound.map_err(|source| BindError { key, address, source })?;
        Ok(Self { socket, address, key, tls: None })
    }

    /// The same, for clients that speak TLS, and nobody else.
    pub fn with_tls(self, tls: Option<InUse<ServerTls>>) -> Self {
        Self { tls, ..self }
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The configuration's name for it, such as `listen.grpc`.
    pub fn key(&self) -> &'static str {
        self.key
    }
}

/// What bounds the connections of one or several listeners.
#[derive(Clone, Debug)]
pub struct Limits {
    /// One permit a connection; new ones are closed at once while there is none.
    pub connections: Arc<Semaphore>,
    /// After about this time a connection is closed in an orderly way, so that clients with long
    /// connections find new nodes; zero for never.
    pub age_max: Duration,
    /// `connections_refused_total{cause}`
    pub refused: Family<ConnectionRefusalLabels, Counter>,
}

impl Limits {
    fn refuse(&self, cause: ConnectionRefusal) {
        self.refused.get_or_create(&ConnectionRefusalLabels { cause }).inc();
    }
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone, Debug)]
struct Streams {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(stream));
    }
}

fn builder(streams: Streams) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

/// Whom a request came from, among its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// This end of it.
    pub reached: IpAddr,
}

impl Client {
    /// Whether this host made the connection: only then can both ends have one address.
    pub fn is_local(&self) -> bool {
        let ip = self.address.ip().to_canonical();
        ip.is_loopback() || ip == self.reached.to_canonical()
    }
}

/// Says with every request of a connection whom it came from.
#[derive(Clone)]
struct FromClient<S> {
    service: S,
    client: Client,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for FromClient<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> S::Future {
        request.extensions_mut().insert(self.client);
        self.service.call(request)
    }
}

/// What answers every request with a body of type `B`.
pub trait Respond<B>:
    Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<B, S> Respond<B> for S where
    S: Service<
            Request<Incoming>,
            Response = Response<B>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// Serves HTTP/1 and HTTP/2 until `drain`; then takes no new connection, tells clients to go
/// elsewhere (GOAWAY, `Connection: close`), gives open requests [`CLOSE_MAX`], and drops the rest.
pub async fn serve<S, B>(listener: Listener, service: S, limits: Limits, drain: CancellationToken)
where
    S: Respond<B>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let streams = Streams { tasks: TaskTracker::new(), stop: CancellationToken::new() };
    let builder = builder(streams.clone());
    let mut connections = JoinSet::new();
    let mut refused_by_system = false;
    let mut accepted_count = 0_u32;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            Some(ended) = connections.join_next() => {
                log_panic(ended);
                continue;
            }
            accepted = listener.socket.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if of_one_connection(&error) => continue,
            Err(error) => {
                // Once for a row of failures: clients must not be able to fill the log.
                if !std::mem::replace(&mut refused_by_system, true) {
                    tracing::error!(%error, address = %listener.address, "cannot accept");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        refused_by_system = false;
        let Ok(permit) = limits.connections.clone().try_acquire_owned() else {
            limits.refuse(ConnectionRefusal::Full);
            tracing::debug!(address = %listener.address, "too many connections");
            continue;
        };
        // Gone already; what it asked for is not answered.
        let Ok(reached) = stream.local_addr() else { continue };
        // Answers are small; waiting for more to send with them only delays a client.
        let _ = stream.set_nodelay(true);
        accepted_count = accepted_count.wrapping_add(1);
        let connection = Connection {
            builder: builder.clone(),
            service: FromClient {
                service: service.clone(),
                client: Client { address: client, reached: reached.ip() },
            },
            age: age(limits.age_max, accepted_count),
            drain: drain.clone(),
            _permit: permit,
        };
        match &listener.tls {
            None => connections.spawn(connection.serve(stream)),
            Some(tls) => connections.spawn(connection.secure(stream, tls.get(), limits.clone())),
        };
    }
    drop(listener);
    let closed = async {
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
    };
    // A connection closes itself in time; the margin is for a runtime that is late.
    if timeout(2 * CLOSE_MAX, closed).await.is_err() {
        connections.shutdown().await;
    }
    streams.stop.cancel();
    streams.tasks.close();
    streams.tasks.wait().await;
}

/// A bug that one client's bytes can reach must not end the node for all others.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection was lost to a panic");
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// When the n-th connection closes: between the setting and [`AGE_SPREAD_TENTHS`] more. Counting
/// spreads as evenly as dice would.
fn age(age_max: Duration, accepted_count: u32) -> Option<Duration> {
    const STEPS: u32 = 10;
    let step = accepted_count.wrapping_mul(7) % STEPS;
    (!age_max.is_zero()).then(|| age_max + age_max * AGE_SPREAD_TENTHS * step / (10 * STEPS))
}

/// One connection, from its first byte to its last.
struct Connection<S> {
    builder: auto::Builder<Streams>,
    service: S,
    age: Option<Duration>,
    drain: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    /// Speaks TLS first.
    async fn secure<B>(self, stream: TcpStream, tls: Arc<ServerTls>, limits: Limits)
    where
        S: Respond<B>,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let handshake = timeout(OPENING_MAX, TlsAcceptor::from(tls).accept(stream));
        match self.drain.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => self.serve(stream).await,
            Some(Ok(Err(error))) => {
                // Who only looks whether the port is open says nothing that could be wrong.
                if error.kind() == io::ErrorKind::InvalidData {
                    limits.refuse(ConnectionRefusal::Tls);
                }
                tracing::debug!(%error, "no TLS with a client");
            }
            Some(Err(_)) | None => {}
        }
    }

    async fn serve<B>(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static)
    where
        S: Respond<B>,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let Self { builder, service, age, drain, _permit } = self;
        let stream = TokioIo::new(Paced::new(stream, OPENING_MAX));
        let mut served = std::pin::pin!(builder.serve_connection(stream, service));
        let old = async {
            match age {
                Some(age) => sleep(age).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            ended = served.as_mut() => return gone(ended),
            () = old => {
                served.as_mut().graceful_shutdown();
                let ended = timeout(GRACE_MAX, served.as_mut());
                match drain.run_until_cancelled(ended).await {
                    Some(Ok(ended)) => return gone(ended),
                    Some(Err(_)) => return,
                    None => {}
                }
            }
        }
        served.as_mut().graceful_shutdown();
        if let Ok(ended) = timeout(CLOSE_MAX, served).await {
            gone(ended);
        }
    }
}

fn gone(ended: Result<(), Box<dyn Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended");
    }
}
