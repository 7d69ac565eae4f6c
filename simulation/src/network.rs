//! UDP in memory: what the mesh's sockets are bound on in place of the machine's network.
//!
//! A datagram is in the inbox of its target as soon as it is sent, in order. What a real network
//! loses without a word is lost here too: a datagram to an address where nobody is bound, one over
//! [`DATAGRAM_BYTES_MAX`] (nothing is ever fragmented), and one for an inbox that is full
//! ([`INBOX_DATAGRAMS_MAX`]). Sending never waits and never fails.
//!
//! The invariant: an inbox with a waiting receiver is empty. Whoever puts something in takes the
//! receiver out and wakes it, once for a whole batch and never while the lock is held.
//!
//! The network owns the inboxes; a socket only knows its address, and takes its inbox along when it
//! is dropped.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tracemesh_transport::{AsyncUdpSocket, BindError, UdpPoller, udp};

/// What Ethernet carries, less the headers of IPv4 and UDP.
pub const DATAGRAM_BYTES_MAX: usize = 1500 - 20 - 8;

/// 4 MiB of the largest datagrams, the buffer that a node asks the kernel for.
pub const INBOX_DATAGRAMS_MAX: usize = (4 << 20) / DATAGRAM_BYTES_MAX;

/// Datagrams that a socket takes at once, as many as kernels with segmentation offload are given.
const BATCH_SEGMENTS_MAX: usize = 10;

/// A network of sockets in this process; clones are the same network.
#[derive(Clone, Default)]
pub struct Network {
    inboxes: Arc<Mutex<BTreeMap<SocketAddr, Inbox>>>,
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<Datagram>,
    receiver: Option<Waker>,
}

struct Datagram {
    source: SocketAddr,
    ecn: Option<udp::EcnCodepoint>,
    contents: Box<[u8]>,
}

impl Network {
    /// A network to which nobody is bound.
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds exactly `address`; it means nothing outside of this network, and a port of 0 is not
    /// replaced. Dropping the socket frees the address.
    ///
    /// # Errors
    /// Another socket has the address. Nothing was changed.
    pub fn bind(&self, address: SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>, BindError> {
        match self.lock().entry(address) {
            Entry::Occupied(_) => Err(BindError::InUse { address }),
            Entry::Vacant(entry) => {
                entry.insert(Inbox::default());
                Ok(Arc::new(MemorySocket { network: self.clone(), address }))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Inbox>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, source: SocketAddr, batch: &udp::Transmit<'_>) {
        let receiver = {
            let mut inboxes = self.lock();
            let Some(inbox) = inboxes.get_mut(&batch.destination) else {
                return;
            };
            let segment_bytes = batch.segment_size.unwrap_or(batch.contents.len()).max(1);
            for contents in batch.contents.chunks(segment_bytes) {
                inbox.put(Datagram { source, ecn: batch.ecn, contents: contents.into() });
            }
            if inbox.datagrams.is_empty() { None } else { inbox.receiver.take() }
        };
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }
}

impl Inbox {
    fn put(&mut self, datagram: Datagram) {
        let is_lost = datagram.contents.len() > DATAGRAM_BYTES_MAX
            || self.datagrams.len() == INBOX_DATAGRAMS_MAX;
        if !is_lost {
            self.datagrams.push_back(datagram);
        }
    }
}

/// One bound address.
struct MemorySocket {
    network: Network,
    address: SocketAddr,
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, batch: &udp::Transmit<'_>) -> io::Result<()> {
        self.network.send(self.address, batch);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inboxes = self.network.lock();
        let Some(inbox) = inboxes.get_mut(&self.address) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if inbox.datagrams.is_empty() {
            inbox.receiver = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = buffers.len().min(metas.len()).min(inbox.datagrams.len());
        let datagrams = inbox.datagrams.drain(..count);
        for ((datagram, buffer), meta) in datagrams.zip(buffers).zip(metas) {
            let len = datagram.contents.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram.contents[..len]);
            *meta = udp::RecvMeta::default();
            meta.addr = datagram.source;
            meta.len = len;
            meta.stride = len;
            meta.ecn = datagram.ecn;
            meta.dst_ip = Some(self.address.ip());
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        BATCH_SEGMENTS_MAX
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        // Dropped after the lock is free, because a waker may own anything.
        let _inbox = self.network.lock().remove(&self.address);
    }
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemorySocket").field(&self.address).finish()
    }
}

/// A send never finds the network busy.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    const BUFFERS: usize = 4;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn send(socket: &dyn AsyncUdpSocket, target: u16, contents: &[u8], segment: Option<usize>) {
        let batch = udp::Transmit {
            destination: address(target),
            ecn: None,
            contents,
            segment_size: segment,
            src_ip: None,
        };
        socket.try_send(&batch).unwrap();
    }

    /// Source port and contents of what one call yields; none when the receiver has to wait.
    fn receive(socket: &dyn AsyncUdpSocket, waker: &Waker) -> Vec<(u16, Vec<u8>)> {
        let mut bytes = [[0; 2048]; BUFFERS];
        let mut buffers: Vec<_> = bytes.iter_mut().map(|bytes| IoSliceMut::new(bytes)).collect();
        let mut metas = [udp::RecvMeta::default(); BUFFERS];
        let mut context = Context::from_waker(waker);
        match socket.poll_recv(&mut context, &mut buffers, &mut metas) {
            Poll::Pending => Vec::new(),
            Poll::Ready(count) => (0..count.unwrap())
                .map(|at| {
                    assert_eq!(metas[at].stride, metas[at].len);
                    (metas[at].addr.port(), bytes[at][..metas[at].len].to_vec())
                })
                .collect(),
        }
    }

    #[test]
    fn batch_arrives_as_its_segments() {
        let network = Network::new();
        let [one, two] = [1, 2].map(|port| network.bind(address(port)).unwrap());
        send(&*one, 2, b"aabbc", Some(2));
        send(&*one, 2, b"whole", None);
        let contents = [&b"aa"[..], b"bb", b"c", b"whole"];
        let expected = contents.map(|contents| (1, contents.to_vec()));
        assert_eq!(receive(&*two, Waker::noop()), expected);
        assert!(receive(&*two, Waker::noop()).is_empty());
    }

    #[test]
    fn waiting_receiver_is_woken_once_a_batch_and_only_by_what_it_can_receive() {
        let network = Network::new();
        let [one, two] = [1, 2].map(|port| network.bind(address(port)).unwrap());
        let wakes = Arc::new(WakeCount::default());
        let (waker, count) = (wakes.clone().into(), || wakes.0.load(Ordering::Relaxed));
        assert!(receive(&*two, &waker).is_empty());
        send(&*one, 2, &[0; DATAGRAM_BYTES_MAX + 1], None);
        assert_eq!(count(), 0);
        send(&*one, 2, b"aabbc", Some(2));
        assert_eq!(count(), 1);
        assert_eq!(receive(&*two, &waker).len(), 3);
        send(&*one, 2, b"not waited for", None);
        assert_eq!(count(), 1);
        assert_eq!(receive(&*two, &waker).len(), 1);
        assert!(receive(&*two, &waker).is_empty());
        send(&*one, 2, b"waited for", None);
        assert_eq!(count(), 2);
    }

    #[test]
    fn full_inbox_loses_what_comes_and_keeps_what_it_has() {
        let network = Network::new();
        let [one, two] = [1, 2].map(|port| network.bind(address(port)).unwrap());
        send(&*one, 2, b"first", None);
        for _ in 0..INBOX_DATAGRAMS_MAX {
            send(&*one, 2, b"more", None);
        }
        assert_eq!(receive(&*two, Waker::noop())[0].1, b"first");
        let rest = std::iter::repeat_with(|| receive(&*two, Waker::noop()).len());
        let rest: usize = rest.take_while(|count| *count > 0).sum();
        assert_eq!(rest, INBOX_DATAGRAMS_MAX - BUFFERS);
    }

    #[test]
    fn address_belongs_to_one_socket_until_that_is_dropped() {
        let network = Network::new();
        let [one, two] = [1, 2].map(|port| network.bind(address(port)).unwrap());
        let busy = network.bind(address(2)).unwrap_err();
        assert!(matches!(busy, BindError::InUse { .. }), "{busy}");
        send(&*one, 2, b"for the first", None);
        drop(two);
        send(&*one, 2, b"for nobody", None);
        let two = network.bind(address(2)).unwrap();
        send(&*one, 2, b"for the second", None);
        assert_eq!(receive(&*two, Waker::noop()), [(1, b"for the second".to_vec())]);
    }
}
