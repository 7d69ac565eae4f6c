//! UDP in memory: what the mesh's sockets are bound on in place of the machine's network.
//!
//! A datagram waits in the inbox of its target until it arrives, by the rules of [`Links`]. What a
//! real network loses without a word is lost here too: a datagram to an address where nobody is
//! bound, and one for an inbox that is full ([`INBOX_DATAGRAMS_MAX`]). Sending never waits and
//! never fails.
//!
//! The invariant: arrivals are ordered by (time, sequence), whoever sent them, so the same sends
//! are always received alike. A receiver waits on one timer for the head of its inbox; what comes
//! before that is announced by [`Network::announce`] at the begin of each turn of its host, because
//! the sender is another runtime.
//!
//! The network owns the inboxes; a socket only knows its address, and takes its inbox along when it
//! is dropped. What the network keeps is on the world's account.

use crate::allocator::charge;
use crate::clock::Clock;
use crate::events::Events;
use crate::link::Links;
use crate::plan::NodeNumber;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Sleep;
use tracemesh_transport::{AsyncUdpSocket, BindError, UdpPoller, udp};

/// 4 MiB of what Ethernet carries, the buffer that a node asks the kernel for.
pub const INBOX_DATAGRAMS_MAX: usize = (4 << 20) / 1472;

/// Datagrams that a socket takes at once, as many as kernels with segmentation offload are given.
const BATCH_SEGMENTS_MAX: usize = 10;

/// The port of every node's mesh listener.
const PORT: u16 = 4319;

/// Where a node's mesh listener is.
pub fn address(node: NodeNumber) -> SocketAddr {
    let number = u16::try_from(node + 1).unwrap_or(u16::MAX).to_be_bytes();
    SocketAddr::from(([127, 0, number[0], number[1]], PORT))
}

fn node_at(address: SocketAddr) -> Option<NodeNumber> {
    let SocketAddr::V4(address) = address else { return None };
    let [127, 0, high, low] = address.ip().octets() else { return None };
    usize::from(u16::from_be_bytes([high, low])).checked_sub(1)
}

/// A network of sockets in this process; clones are the same network.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    events: Arc<Mutex<Events>>,
}

struct State {
    links: Links,
    inboxes: Vec<Option<Inbox>>,
    sent: u64,
    binds: u64,
}

struct Inbox {
    /// Tells this socket from an earlier one at the same address.
    bind: u64,
    /// By arrival and sequence.
    datagrams: BTreeMap<(Duration, u64), Datagram>,
    receiver: Option<Waker>,
}

struct Datagram {
    source: SocketAddr,
    ecn: Option<udp::EcnCodepoint>,
    contents: Box<[u8]>,
}

impl Network {
    /// A network to which nobody is bound, for so many nodes.
    pub fn new(node_count: usize, links: Links, events: Arc<Mutex<Events>>) -> Self {
        let mut inboxes = Vec::new();
        inboxes.resize_with(node_count, || None);
        let state = State { links, inboxes, sent: 0, binds: 0 };
        Self { state: Arc::new(Mutex::new(state)), events }
    }

    /// Binds a node's address, of which `clock` tells the time. Dropping the socket frees it.
    ///
    /// # Errors
    /// Another socket has the address, or it is no node's. Nothing was changed.
    pub fn bind(
        &self,
        address: SocketAddr,
        clock: Clock,
    ) -> Result<Arc<dyn AsyncUdpSocket>, BindError> {
        let mut state = self.lock();
        let State { inboxes, binds, .. } = &mut *state;
        let no_node =
            || BindError::Bind { address, source: io::ErrorKind::AddrNotAvailable.into() };
        let node = node_at(address).ok_or_else(no_node)?;
        let inbox = inboxes.get_mut(node).ok_or_else(no_node)?;
        if inbox.is_some() {
            return Err(BindError::InUse { address });
        }
        *binds += 1;
        let bind = *binds;
        *inbox = Some(Inbox { bind, datagrams: BTreeMap::new(), receiver: None });
        let timer = Mutex::new(Box::pin(tokio::time::sleep(Duration::ZERO)));
        Ok(Arc::new(MemorySocket { network: self.clone(), node, bind, clock, timer }))
    }

    /// A node's machine is gone: nothing reaches it, and nothing that it still says is carried.
    pub fn unplug(&self, node: NodeNumber) {
        // Dropped after the lock is free, because a waker may own anything.
        let _inbox = self.lock().inboxes[node].take();
    }

    /// Changes how links behave.
    pub fn change_links(&self, change: impl FnOnce(&mut Links)) {
        change(&mut self.lock().links);
    }

    /// Wakes the receiver of a node for which something arrives before `until`.
    pub fn announce(&self, node: NodeNumber, until: Duration) {
        let receiver = {
            let mut state = self.lock();
            let Some(inbox) = &mut state.inboxes[node] else { return };
            let arrives = inbox.datagrams.first_key_value().is_some_and(|(key, _)| key.0 <= until);
            if arrives { inbox.receiver.take() } else { None }
        };
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, socket: &MemorySocket, batch: &udp::Transmit<'_>) {
        let now = socket.clock.now();
        let mut state = self.lock();
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.is_bound(socket) {
            return;
        }
        let target = node_at(batch.destination).filter(|target| *target < state.inboxes.len());
        let Some(target) = target else { return };
        let segment_bytes = batch.segment_size.unwrap_or(batch.contents.len()).max(1);
        for contents in batch.contents.chunks(segment_bytes) {
            let (source, bytes) = (socket.node, contents.len());
            let arrivals = state.links.carry(now, source, target, bytes);
            let words = [1, source as u64, target as u64, bytes as u64];
            let fate = if arrivals[0].is_some() { "" } else { ", lost" };
            events.add(now, &words, format_args!("{source} > {target}: {bytes} bytes{fate}"));
            for at in arrivals.into_iter().flatten() {
                state.put(target, at, || Datagram {
                    source: address(source),
                    ecn: batch.ecn,
                    contents: contents.into(),
                });
            }
        }
    }
}

impl State {
    fn is_bound(&self, socket: &MemorySocket) -> bool {
        self.inboxes[socket.node].as_ref().is_some_and(|inbox| inbox.bind == socket.bind)
    }

    fn put(&mut self, target: NodeNumber, at: Duration, datagram: impl FnOnce() -> Datagram) {
        let Some(inbox) = &mut self.inboxes[target] else { return };
        if inbox.datagrams.len() < INBOX_DATAGRAMS_MAX {
            self.sent += 1;
            inbox.datagrams.insert((at, self.sent), datagram());
        }
    }
}

/// One bound address.
struct MemorySocket {
    network: Network,
    node: NodeNumber,
    bind: u64,
    clock: Clock,
    timer: Mutex<Pin<Box<Sleep>>>,
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, batch: &udp::Transmit<'_>) -> io::Result<()> {
        charge(None, || self.network.send(self, batch));
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let now = self.clock.now();
            let head = {
                let mut state = self.network.lock();
                if !state.is_bound(self) {
                    // Unplugged: silent for ever.
                    return Poll::Pending;
                }
                let Some(inbox) = &mut state.inboxes[self.node] else { return Poll::Pending };
                let count = charge(None, || inbox.take(now, self.node, buffers, metas));
                if count > 0 {
                    return Poll::Ready(Ok(count));
                }
                inbox.receiver = Some(context.waker().clone());
                inbox.datagrams.first_key_value().map(|(key, _)| key.0)
            };
            let Some(at) = head else { return Poll::Pending };
            let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
            timer.as_mut().reset(self.clock.instant(at));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(self.node))
    }

    fn max_transmit_segments(&self) -> usize {
        BATCH_SEGMENTS_MAX
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Inbox {
    /// Moves what has arrived into the buffers.
    fn take(
        &mut self,
        now: Duration,
        node: NodeNumber,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [udp::RecvMeta],
    ) -> usize {
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some(head) = self.datagrams.first_entry().filter(|head| head.key().0 <= now) else {
                break;
            };
            let datagram = head.remove();
            let len = datagram.contents.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram.contents[..len]);
            *meta = udp::RecvMeta::default();
            meta.addr = datagram.source;
            meta.len = len;
            meta.stride = len;
            meta.ecn = datagram.ecn;
            meta.dst_ip = Some(address(node).ip());
            count += 1;
        }
        count
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        // Dropped after the lock is free, because a waker may own anything.
        let _inbox = {
            let mut state = self.network.lock();
            if state.is_bound(self) { state.inboxes[self.node].take() } else { None }
        };
    }
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemorySocket").field(&self.node).finish()
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
    use crate::plan::LinkOptions;

    const BUFFERS: usize = 4;

    struct World {
        network: Network,
        clock: Clock,
    }

    impl World {
        fn new() -> Self {
            let links = Links::new(7, 3, LinkOptions { jitter_us: 0, ..LinkOptions::GOOD });
            let network = Network::new(3, links, Arc::new(Mutex::new(Events::new(None))));
            Self { network, clock: Clock::starting_at(Duration::ZERO) }
        }

        fn bind(&self, node: NodeNumber) -> Arc<dyn AsyncUdpSocket> {
            self.network.bind(address(node), self.clock.clone()).unwrap()
        }
    }

    fn send(socket: &dyn AsyncUdpSocket, target: usize, contents: &[u8], segment: Option<usize>) {
        let batch = udp::Transmit {
            destination: address(target),
            ecn: None,
            contents,
            segment_size: segment,
            src_ip: None,
        };
        socket.try_send(&batch).unwrap();
    }

    /// Source and contents of what one call yields; none when the receiver has to wait.
    async fn receive(socket: &dyn AsyncUdpSocket) -> Vec<(NodeNumber, Vec<u8>)> {
        let mut bytes = [[0; 2048]; BUFFERS];
        let mut buffers: Vec<_> = bytes.iter_mut().map(|bytes| IoSliceMut::new(bytes)).collect();
        let mut metas = [udp::RecvMeta::default(); BUFFERS];
        let polled = std::future::poll_fn(|context| {
            Poll::Ready(socket.poll_recv(context, &mut buffers, &mut metas))
        });
        match polled.await {
            Poll::Pending => Vec::new(),
            Poll::Ready(count) => (0..count.unwrap())
                .map(|at| {
                    assert_eq!(metas[at].stride, metas[at].len);
                    let source = node_at(metas[at].addr).unwrap();
                    (source, bytes[at][..metas[at].len].to_vec())
                })
                .collect(),
        }
    }

    async fn pass(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn batch_arrives_as_its_segments_and_in_time() {
        let world = World::new();
        let [one, two] = [0, 1].map(|node| world.bind(node));
        send(&*one, 1, b"aabbc", Some(2));
        send(&*one, 1, b"whole", None);
        pass(1).await;
        assert!(receive(&*two).await.is_empty());
        pass(1).await;
        let contents = [&b"aa"[..], b"bb", b"c", b"whole"];
        let expected = contents.map(|contents| (0, contents.to_vec()));
        assert_eq!(receive(&*two).await, expected);
        assert!(receive(&*two).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_receiver_is_woken_by_what_is_announced() {
        let world = World::new();
        let [one, two] = [0, 1].map(|node| world.bind(node));
        let mut bytes = [0; 100];
        let mut metas = [udp::RecvMeta::default()];
        let receiving = std::future::poll_fn(|context| {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            two.poll_recv(context, &mut buffers, &mut metas)
        });
        let sending = async {
            send(&*one, 1, b"waited for", None);
            world.network.announce(1, Duration::from_millis(2));
        };
        let (received, ()) = tokio::join!(receiving, sending);
        assert_eq!(received.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn full_inbox_loses_what_comes_and_keeps_what_it_has() {
        let world = World::new();
        let [one, two] = [0, 1].map(|node| world.bind(node));
        send(&*one, 1, b"first", None);
        for _ in 0..INBOX_DATAGRAMS_MAX {
            send(&*one, 1, b"more", None);
        }
        pass(2).await;
        assert_eq!(receive(&*two).await[0].1, b"first");
        let mut rest = 0;
        loop {
            match receive(&*two).await.len() {
                0 => break,
                count => rest += count,
            }
        }
        assert_eq!(rest, INBOX_DATAGRAMS_MAX - BUFFERS);
    }

    #[tokio::test(start_paused = true)]
    async fn address_belongs_to_one_socket_until_that_is_dropped_or_unplugged() {
        let world = World::new();
        let [one, two] = [0, 1].map(|node| world.bind(node));
        let busy = world.network.bind(address(1), world.clock.clone()).unwrap_err();
        assert!(matches!(busy, BindError::InUse { .. }), "{busy}");
        send(&*one, 1, b"for the first", None);
        drop(two);
        send(&*one, 1, b"for nobody", None);
        let two = world.bind(1);
        send(&*one, 1, b"for the second", None);
        pass(2).await;
        assert_eq!(receive(&*two).await, [(0, b"for the second".to_vec())]);
        world.network.unplug(1);
        let third = world.bind(1);
        send(&*two, 0, b"from the grave", None);
        pass(2).await;
        assert!(receive(&*one).await.is_empty());
        drop(two);
        send(&*one, 1, b"for the third", None);
        pass(2).await;
        assert_eq!(receive(&*third).await, [(0, b"for the third".to_vec())]);
    }
}
