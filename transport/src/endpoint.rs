//! The node's one QUIC endpoint: its settings, and how connections begin.
//!
//! A node has one UDP port for everything: it dials from the port that it listens on, which is why
//! the address that a connection comes from is the peer's mesh address. The settings are those of
//! servers beside each other, not of browsers; each constant below says why. The invariant: a
//! [`Link`] leaves this module only after both certificates were checked. What travels on a link,
//! and which links exist, is decided elsewhere.
//!
//! One of the three files that name quinn.

use crate::connection::{Link, Opened};
use crate::counters::{Meters, Refusal};
use crate::identity::{WallClock, derive};
use crate::socket::{CountingSocket, canonical};
use crate::tls::{Clock, Tls, Verifier};
use arc_swap::ArcSwap;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
pub use quinn::{AsyncUdpSocket, UdpPoller, udp};
use quinn::{
    ClientConfig, ConnectionError, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime as _,
    ServerConfig, TimeSource, TokioRuntime, TransportConfig, TransportErrorCode,
    ValidationTokenConfig,
};
pub(crate) use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
pub(crate) use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator};
use quinn_proto::{NoneTokenLog, NoneTokenStore};
use ring::{hkdf, hmac};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A connection on which nothing comes for so long is over. Membership notices a crash within 2 s,
/// and closes connections by itself; this is for what membership does not know.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// Six keep-alives fit into [`IDLE_MAX`], so five may be lost.
const KEEP_ALIVE: Duration = Duration::from_millis(300);

/// The round trip assumed before one was measured: the first lost packet is sent again after three
/// of these, well within the 250 ms for which a sender waits.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(30);

/// Calls that a peer may have open towards us.
pub(crate) const CALL_STREAMS_MAX: u32 = 256;

/// Notices too large for a datagram that a peer may have under way towards us.
const NOTICE_STREAMS_MAX: u32 = 64;

/// Unread bytes of one stream: 10 Gbit/s over a round trip of 3 ms, and nearly a whole frame.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Unread bytes of one connection, and unacknowledged ones in the other direction: four full
/// streams. It is what a peer can make us buffer beside what [`Link`] counts.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Datagrams buffered in each direction: some hundred of gossip.
const DATAGRAM_BUFFER_BYTES: usize = 256 * 1024;

/// The first burst of a connection. The default suits unknown paths; this one is a data centre,
/// and a batch should not need several round trips.
const FIRST_WINDOW_BYTES: u64 = 128 * 1024;

/// A packet is taken for lost when so many later ones were acknowledged, or after so many round
/// trips. RFC 9002 has 3 and 1.125, for paths that keep the order of packets; bonded links and
/// equal-cost routes do not, and there a congestion window that takes every late packet for a lost
/// one stays at its least. Where packets are lost, it is known a millisecond or two later, which is
/// how long three round trips between hosts are.
const REORDERED_PACKETS_MAX: u32 = 100;
const REORDERED_ROUND_TRIPS_MAX: f32 = 3.0;

/// The largest UDP payload tried and accepted: jumbo frames (9,000 bytes) and loopback carry it,
/// and it costs a fifth less CPU per byte than 1,452.
const UDP_PAYLOAD_MAX: u16 = 6_500;

/// A handshake takes two round trips; who needs longer is dialled, or dials, again.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(2);

/// Handshakes of strangers under way at the same time: a tenth of a second of CPU. When half of
/// the places are taken, a newcomer must show first that it receives at the address it sends from,
/// so that forged addresses cannot take the rest.
pub(crate) const HANDSHAKES_MAX: usize = 128;

/// Connections in all, of about 80 KB each. Clusters are designed for 100 nodes.
const CONNECTIONS_MAX: usize = 1024;

/// Bytes that a stranger may send before its handshake was looked at.
const STRANGER_BYTES_MAX: u64 = 64 * 1024;

/// The library wants a host name to expect; who a peer is stands in its URI.
const UNUSED_HOST_NAME: &str = "tracemesh";

/// What the endpoint takes from the credentials and the seed.
pub(crate) struct Secrets {
    /// From the seed: new at each start.
    pub(crate) random: [u8; 32],
    /// From the credentials: the same after a restart, so that peers of the former process learn
    /// at once that it is gone.
    pub(crate) stable: [u8; 32],
}

/// The QUIC endpoint.
pub(crate) struct Endpoint {
    quic: quinn::Endpoint,
    client: ArcSwap<ClientConfig>,
    verifier: ArcSwap<Verifier>,
    settings: Arc<TransportConfig>,
    token_key: Arc<hkdf::Prk>,
    clock: Clock,
    meters: Arc<Meters>,
    handshakes: Arc<Semaphore>,
}

/// Why a peer could not be connected to.
pub(crate) struct DialError(pub(crate) String);

/// Why the endpoint could not start, or could not use a certificate.
#[derive(Debug, Error)]
pub(crate) enum EndpointError {
    #[error("cannot use the socket")]
    Socket(#[source] io::Error),
    #[error("cannot use the certificate: {0}")]
    Tls(String),
}

impl Endpoint {
    /// Starts the endpoint; inside a tokio runtime.
    pub(crate) fn start(
        socket: Arc<dyn AsyncUdpSocket>,
        tls: &Tls,
        secrets: &Secrets,
        wall_clock: WallClock,
        meters: Arc<Meters>,
    ) -> Result<Self, EndpointError> {
        let [a, b, c, d, e, f, g, h, ..] = derive(&secrets.stable, &["connection ids"]);
        let id_key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let token_secret = derive(&secrets.random, &["handshake tokens"]);
        let token_key = Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&token_secret));
        let settings = Arc::new(transport_settings());
        let clock = Clock(wall_clock);
        let server = server_config(tls, &settings, &token_key, &clock)?;
        let client = client_config(tls, &settings)?;
        let ids = HashedConnectionIdGenerator::from_key(id_key);
        let socket = CountingSocket::new(socket, ids, meters.clone());
        let quic = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(secrets, id_key),
            Some(server),
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )
        .map_err(EndpointError::Socket)?;
        Ok(Self {
            quic,
            client: ArcSwap::from_pointee(client),
            verifier: ArcSwap::from(tls.verifier.clone()),
            settings,
            token_key,
            clock,
            meters,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        })
    }

    /// New connections use these certificates from now on; for old ones see
    /// [`Endpoint::still_trusts`].
    pub(crate) fn use_tls(&self, tls: &Tls) -> Result<(), EndpointError> {
        let client = client_config(tls, &self.settings)?;
        let server = server_config(tls, &self.settings, &self.token_key, &self.clock)?;
        self.quic.set_server_config(Some(server));
        self.client.store(Arc::new(client));
        self.verifier.store(tls.verifier.clone());
        Ok(())
    }

    /// Whether the link's certificate would be accepted today.
    pub(crate) fn still_trusts(&self, link: &Link) -> bool {
        link.is_accepted_by(&self.verifier.load(), self.clock.now())
    }

    /// Connects; takes at most [`HANDSHAKE_WAIT`].
    pub(crate) async fn dial(&self, peer: SocketAddr) -> Result<Link, DialError> {
        let client = ClientConfig::clone(&self.client.load());
        let connecting = self
            .quic
            .connect_with(client, peer, UNUSED_HOST_NAME)
            .map_err(|e| DialError(e.to_string()))?;
        match timeout(HANDSHAKE_WAIT, connecting).await {
            Ok(Ok(connection)) => {
                self.meters.let_in(peer);
                Link::new(connection, Opened::ByUs).map_err(DialError)
            }
            Ok(Err(error)) => {
                if let Some(cause) = certificate_refusal(&error) {
                    self.meters.refuse(peer, cause, &error.to_string());
                }
                Err(DialError(error.to_string()))
            }
            Err(_) => Err(DialError("the handshake takes too long".into())),
        }
    }

    /// The next attempt of somebody to connect, or `None` when the endpoint is closed.
    pub(crate) async fn arrival(&self) -> Option<Arrival> {
        loop {
            let incoming = self.quic.accept().await?;
            let peer = canonical(incoming.remote_address());
            let is_crowded = self.handshakes.available_permits() < HANDSHAKES_MAX / 2;
            if is_crowded && incoming.may_retry() && !incoming.remote_address_validated() {
                // An error would mean that it has answered already.
                let _ = incoming.retry();
                continue;
            }
            if self.quic.open_connections() < CONNECTIONS_MAX
                && let Ok(place) = self.handshakes.clone().try_acquire_owned()
            {
                return Some(Arrival { incoming, peer, _place: place });
            }
            self.meters.refuse(peer, Refusal::Full, "too many connections or handshakes");
            incoming.refuse();
        }
    }

    /// Takes places as handshakes under way do.
    #[cfg(test)]
    pub(crate) fn crowd(&self, count: usize) -> OwnedSemaphorePermit {
        let places = u32::try_from(count).unwrap();
        self.handshakes.clone().try_acquire_many_owned(places).unwrap()
    }

    /// Finishes a handshake; who fails is counted. Takes at most [`HANDSHAKE_WAIT`].
    pub(crate) async fn welcome(&self, arrival: Arrival) -> Option<Link> {
        let Arrival { incoming, peer, _place } = arrival;
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => {
                self.refuse_arrival(peer, &error);
                return None;
            }
        };
        match timeout(HANDSHAKE_WAIT, connecting).await {
            Ok(Ok(connection)) => match Link::new(connection, Opened::ByPeer) {
                Ok(link) => {
                    self.meters.let_in(peer);
                    return Some(link);
                }
                Err(why) => self.meters.refuse(peer, Refusal::Certificate, &why),
            },
            Ok(Err(error)) => self.refuse_arrival(peer, &error),
            Err(_) => self.meters.refuse(peer, Refusal::Unfinished, "too slow"),
        }
        None
    }

    fn refuse_arrival(&self, peer: SocketAddr, error: &ConnectionError) {
        let cause = match error {
            // We are closing, which is nobody's fault.
            ConnectionError::LocallyClosed => return,
            ConnectionError::VersionMismatch => Refusal::Protocol,
            error => certificate_refusal(error).unwrap_or(Refusal::Unfinished),
        };
        self.meters.refuse(peer, cause, &error.to_string());
    }

    /// Closes every connection and takes no new ones.
    pub(crate) fn close(&self) {
        self.quic.close(VarInt::from_u32(0), b"shutdown");
    }

    /// Waits until peers were told, as far as they answer.
    pub(crate) async fn wait_idle(&self) {
        self.quic.wait_idle().await;
    }
}

/// Somebody who wants to connect and holds one of [`HANDSHAKES_MAX`] places.
pub(crate) struct Arrival {
    incoming: quinn::Incoming,
    peer: SocketAddr,
    _place: OwnedSemaphorePermit,
}

/// Hands a bound, non-blocking socket to the library; inside a tokio runtime.
pub(crate) fn adopt(socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    TokioRuntime.wrap_udp_socket(socket)
}

/// Who does not accept whose certificate, if that is what the error says. The numbers are TLS
/// alerts (RFC 8446, section 6), which travel as QUIC error codes (RFC 9001, section 4.8).
pub(crate) fn certificate_refusal(error: &ConnectionError) -> Option<Refusal> {
    let alert = |code: TransportErrorCode| u64::from(code).checked_sub(0x100).filter(|a| *a < 256);
    match error {
        ConnectionError::ConnectionClosed(close) => {
            alert(close.error_code).map(|_| Refusal::ByPeer)
        }
        ConnectionError::TransportError(error) => alert(error.code).map(|alert| match alert {
            // certificate_expired; unknown_ca and decrypt_error (same name, another key);
            // certificate_unknown, which is how a name is refused; protocol_version and
            // no_application_protocol.
            45 => Refusal::Expired,
            48 | 51 => Refusal::Authority,
            46 => Refusal::Cluster,
            70 | 120 => Refusal::Protocol,
            _ => Refusal::Certificate,
        }),
        _ => None,
    }
}

fn endpoint_config(secrets: &Secrets, id_key: u64) -> EndpointConfig {
    let reset_key = derive(&secrets.stable, &["reset key"]);
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &reset_key);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config.rng_seed(Some(derive(&secrets.random, &["endpoint"])));
    config.max_udp_payload_size(UDP_PAYLOAD_MAX).expect("6,500 is between 1,200 and 65,527");
    config
}

fn transport_settings() -> TransportConfig {
    let mut settings = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_MAX).expect("2 s fit into 62 bits of milliseconds");
    let mut congestion = CubicConfig::default();
    congestion.initial_window(FIRST_WINDOW_BYTES);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(UDP_PAYLOAD_MAX);
    settings
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(ROUND_TRIP_GUESS)
        .max_concurrent_bidi_streams(VarInt::from_u32(CALL_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(NOTICE_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(CONNECTION_WINDOW_BYTES.into())
        // Frames go out one after the other. Were they to share a full path, all would be under
        // way for as long as the last one, past every deadline, and be sent again in vain.
        .send_fairness(false)
        .packet_threshold(REORDERED_PACKETS_MAX)
        .time_threshold(REORDERED_ROUND_TRIPS_MAX)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .congestion_controller_factory(Arc::new(congestion))
        .mtu_discovery_config(Some(discovery));
    settings
}

fn server_config(
    tls: &Tls,
    settings: &Arc<TransportConfig>,
    token_key: &Arc<hkdf::Prk>,
    clock: &Clock,
) -> Result<ServerConfig, EndpointError> {
    let crypto = QuicServerConfig::try_from(tls.server.clone())
        .map_err(|e| EndpointError::Tls(e.to_string()))?;
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0).log(Arc::new(NoneTokenLog));
    let mut config = ServerConfig::new(Arc::new(crypto), token_key.clone());
    config
        .transport_config(settings.clone())
        .migration(false)
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(STRANGER_BYTES_MAX)
        .incoming_buffer_size_total(STRANGER_BYTES_MAX * HANDSHAKES_MAX as u64)
        .validation_token_config(tokens)
        .time_source(Arc::new(Clock(clock.0.clone())));
    Ok(config)
}

fn client_config(
    tls: &Tls,
    settings: &Arc<TransportConfig>,
) -> Result<ClientConfig, EndpointError> {
    let crypto = QuicClientConfig::try_from(tls.client.clone())
        .map_err(|e| EndpointError::Tls(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(settings.clone()).token_store(Arc::new(NoneTokenStore));
    Ok(config)
}

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        (self.0)()
    }
}
