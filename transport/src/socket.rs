//! The UDP socket: bound with buffers of a server's size, and wrapped to count what passes.
//!
//! The wrapper changes nothing. It counts bytes, and it looks at the first bytes of each datagram,
//! because the QUIC library drops what is not for it in silence while an operator wants to hear of
//! a port scanner or a misdirected sender. The invariant: a datagram is called garbage only if no
//! connection of ours can own it, neither by version nor by connection id. It is handed on all the
//! same: the library is the judge. Nothing is kept here.

use crate::counters::Meters;
use crate::endpoint::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator as _, HashedConnectionIdGenerator,
    UdpPoller, adopt, udp,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use thiserror::Error;

/// Kernel buffers asked for, each way: 34 ms at 1 Gbit/s. Linux grants 208 KiB unless told.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Version 1 of QUIC (RFC 9000), and the zero of version negotiation.
const VERSIONS: [[u8; 4]; 2] = [[0, 0, 0, 1], [0; 4]];

/// Why there is no socket. Nothing stays bound.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process has the address. Stop it, or choose another port.
    #[error("{address}/udp is in use by another process")]
    InUse {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The address cannot be bound. Retrying helps only after something was changed.
    #[error("cannot bind {address}/udp")]
    Bind {
        /// What was to be bound.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// Binds a UDP socket for [`crate::Settings`]; must be called inside a tokio runtime.
///
/// A wildcard IPv6 address takes IPv4 as well. Warns when the kernel gives smaller buffers than
/// asked for.
pub fn bind_udp(address: SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>, BindError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        _ => BindError::Bind { address, source },
    };
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))
        .map_err(failed)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false).map_err(failed)?;
    }
    socket.bind(&address.into()).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    warn_of_small_buffers(&socket);
    adopt(socket.into()).map_err(failed)
}

fn warn_of_small_buffers(socket: &Socket) {
    // Refusing a size is no error on Linux; what counts is what is there afterwards.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    // Linux reports twice the size that may be used: socket(7), SO_RCVBUF.
    let share = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive_bytes = socket.recv_buffer_size().unwrap_or(0) / share;
    let send_bytes = socket.send_buffer_size().unwrap_or(0) / share;
    if let Some(advice) = advice(receive_bytes, send_bytes) {
        tracing::warn!(receive_bytes, send_bytes, asked_bytes = BUFFER_BYTES, "{advice}");
    }
}

/// What to do about buffers that are smaller than asked for.
fn advice(receive_bytes: usize, send_bytes: usize) -> Option<&'static str> {
    match (receive_bytes < BUFFER_BYTES, send_bytes < BUFFER_BYTES) {
        (false, false) => None,
        (true, false) => Some("the kernel clamps UDP buffers; raise net.core.rmem_max"),
        (false, true) => Some("the kernel clamps UDP buffers; raise net.core.wmem_max"),
        (true, true) => {
            Some("the kernel clamps UDP buffers; raise net.core.rmem_max and net.core.wmem_max")
        }
    }
}

/// An address as it is written in configurations: a socket for both families shows IPv4 senders
/// inside IPv6.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // Keeps the scope, without which a link-local address leads nowhere.
        IpAddr::V6(_) => address,
    }
}

/// The socket handed in, with counters.
pub(crate) struct CountingSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    ids: HashedConnectionIdGenerator,
    meters: Arc<Meters>,
}

impl CountingSocket {
    /// `ids` recognizes the connection ids that this node gives out.
    pub(crate) fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        ids: HashedConnectionIdGenerator,
        meters: Arc<Meters>,
    ) -> Self {
        Self { socket, ids, meters }
    }

    /// Whether one of our connections may own it (RFC 8999: the first bit tells long headers, with
    /// a version, from short ones, with an id that we gave out).
    fn may_be_ours(&self, datagram: &[u8]) -> bool {
        let is_long = datagram.first().is_some_and(|byte| byte & 0x80 != 0);
        match datagram.get(1..) {
            Some(rest) if is_long => VERSIONS.iter().any(|version| rest.starts_with(version)),
            Some(rest) => rest
                .get(..self.ids.cid_len())
                .is_some_and(|id| self.ids.validate(&ConnectionId::new(id)).is_ok()),
            None => false,
        }
    }

    fn look_at(&self, buffer: &[u8], meta: &udp::RecvMeta) {
        self.meters.bytes_in.add(meta.len);
        let received = buffer.get(..meta.len).unwrap_or(buffer);
        for datagram in received.chunks(meta.stride.max(1)) {
            if !self.may_be_ours(datagram) {
                self.meters.garbage(canonical(meta.addr));
            }
        }
    }
}

impl AsyncUdpSocket for CountingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)?;
        self.meters.bytes_out.add(transmit.contents.len());
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.socket.poll_recv(context, buffers, metas);
        if let Poll::Ready(Ok(count)) = &polled {
            for (buffer, meta) in buffers.iter().zip(metas.iter()).take(*count) {
                self.look_at(buffer, meta);
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for CountingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_busy_port_is_an_error_that_names_it() {
        let first = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind_udp(address).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }));
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn small_buffers_are_told_with_the_limit_to_raise() {
        assert_eq!(advice(BUFFER_BYTES, BUFFER_BYTES), None);
        let names = |receive, send| {
            let advice = advice(receive, send).unwrap();
            ["net.core.rmem_max", "net.core.wmem_max"].map(|limit| advice.contains(limit))
        };
        assert_eq!(names(BUFFER_BYTES - 1, BUFFER_BYTES), [true, false]);
        assert_eq!(names(BUFFER_BYTES, 0), [false, true]);
        assert_eq!(names(0, 0), [true, true]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn buffers_are_as_large_as_the_kernel_allows() {
        let limit = |name| {
            // Older kernels hide them from containers.
            let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
            text.trim().parse::<usize>().ok()
        };
        let (Some(receive_max), Some(send_max)) = (limit("rmem_max"), limit("wmem_max")) else {
            return eprintln!("SKIPPED: the kernel does not tell its limits");
        };
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        warn_of_small_buffers(&socket);
        // Linux reports twice the size that may be used.
        let receive_bytes = socket.recv_buffer_size().unwrap() / 2;
        assert!(receive_bytes >= BUFFER_BYTES.min(receive_max), "{receive_bytes}");
        let send_bytes = socket.send_buffer_size().unwrap() / 2;
        assert!(send_bytes >= BUFFER_BYTES.min(send_max), "{send_bytes}");
    }

    #[tokio::test]
    async fn only_what_no_connection_can_own_is_garbage() {
        let socket = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut ids = HashedConnectionIdGenerator::from_key(7);
        let id = ids.generate_cid();
        let socket = CountingSocket::new(socket, ids, Arc::default());
        let short = |id: &[u8]| [&[0x41][..], id, &[0; 20]].concat();
        assert!(socket.may_be_ours(&short(&id)));
        assert!(socket.may_be_ours(&[0xc3, 0, 0, 0, 1, 8]));
        assert!(!socket.may_be_ours(&short(b"gossip!!")));
        assert!(!socket.may_be_ours(&[0xc3, 1, 2, 3, 4, 5]));
        assert!(!socket.may_be_ours(&[0x41]));
        assert!(!socket.may_be_ours(&[]));
    }
}
