//! The network between nodes, where a test can cut it: every datagram passes through here.
//!
//! Each node advertises an address that this process owns, and what comes there goes on to the
//! node from a socket that stands for its sender, so answers find their way back. The invariant: a
//! datagram from one node to another is passed on once, unchanged, or, while the two are on
//! different sides, not at all. Sides and sockets belong to [`Links`], whose tasks end with it; a
//! datagram that no socket buffer has room for is lost, as in any network.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};

/// The largest datagram that UDP can carry.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;

/// All links between some nodes.
#[derive(Debug)]
pub struct Links {
    addresses: Vec<SocketAddr>,
    sides: Sides,
    /// All tasks end when this is dropped.
    _runtime: Runtime,
}

/// The side of a cut that each node is on; all are equal where nothing is cut.
type Sides = Arc<Mutex<Vec<usize>>>;

/// One way from a node to another, and what has to be known to go it.
#[derive(Clone)]
struct Way {
    /// Where the other one listens.
    target: SocketAddr,
    /// The socket that stands for the sender.
    socket: Arc<UdpSocket>,
    ends: (usize, usize),
    sides: Sides,
}

impl Links {
    /// Joins nodes that listen at `nodes` and advertise [`Links::address`].
    ///
    /// # Panics
    /// When loopback has no free ports.
    pub fn new(nodes: &[SocketAddr]) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be built");
        let bind = || {
            let socket = runtime.block_on(UdpSocket::bind("127.0.0.1:0"));
            Arc::new(socket.expect("loopback has free ports"))
        };
        let sides: Sides = Arc::new(Mutex::new(vec![0; nodes.len()]));
        let doors: Vec<_> = nodes.iter().map(|_| bind()).collect();
        for (to, door) in doors.iter().enumerate() {
            let ways = nodes.iter().enumerate().map(|(from, _)| Way {
                target: nodes[to],
                socket: bind(),
                ends: (from, to),
                sides: Arc::clone(&sides),
            });
            let ways: Vec<_> = ways.collect();
            for (way, sender) in ways.iter().zip(nodes) {
                // What the node answers leaves by the door that its peer knows it by.
                let back = Way { target: *sender, socket: Arc::clone(door), ..way.clone() };
                runtime.spawn(carry(Arc::clone(&way.socket), vec![(nodes[to], back)]));
            }
            let ways = nodes.iter().copied().zip(ways).collect();
            runtime.spawn(carry(Arc::clone(door), ways));
        }
        let address = |door: &Arc<UdpSocket>| door.local_addr().expect("a socket has an address");
        Self { addresses: doors.iter().map(address).collect(), sides, _runtime: runtime }
    }

    /// What node number `node` advertises.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node]
    }

    /// Cuts all links between nodes of different `sides`, one number for each node.
    pub fn cut(&self, sides: &[usize]) {
        self.sides.lock().expect("nothing panics while it holds the sides").copy_from_slice(sides);
    }

    /// Joins all nodes again.
    pub fn heal(&self) {
        self.cut(&vec![0; self.addresses.len()]);
    }
}

impl Way {
    fn is_open(&self) -> bool {
        let sides = self.sides.lock().expect("nothing panics while it holds the sides");
        sides[self.ends.0] == sides[self.ends.1]
    }
}

/// Passes on what comes to `socket` along the way of its sender.
async fn carry(socket: Arc<UdpSocket>, ways: Vec<(SocketAddr, Way)>) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // A socket of loopback reports what became of an earlier datagram, which is lost.
        let Ok((bytes, sender)) = socket.recv_from(&mut datagram).await else {
            continue;
        };
        let way = ways.iter().find(|(from, _)| *from == sender).map(|(_, way)| way);
        if let Some(way) = way.filter(|way| way.is_open()) {
            let _ = way.socket.send_to(&datagram[..bytes], way.target).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Links;
    use std::net::{SocketAddr, UdpSocket};

    fn node() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut datagram = [0; 16];
        let (bytes, sender) = socket.recv_from(&mut datagram).unwrap();
        (datagram[..bytes].to_vec(), sender)
    }

    #[test]
    fn a_cut_holds_back_what_crosses_it_and_nothing_else() {
        let [(a, at_a), (b, at_b), (c, at_c)] = [node(), node(), node()];
        let links = Links::new(&[at_a, at_b, at_c]);
        a.send_to(b"there", links.address(1)).unwrap();
        let (datagram, sender) = receive(&b);
        assert_eq!(datagram, b"there");
        b.send_to(b"back", sender).unwrap();
        assert_eq!(receive(&a), (b"back".to_vec(), links.address(1)));
        links.cut(&[0, 0, 1]);
        a.send_to(b"cut", links.address(2)).unwrap();
        // One task carries all that comes to a door, in its order.
        c.send_to(b"mark", links.address(2)).unwrap();
        assert_eq!(receive(&c).0, b"mark");
        a.send_to(b"beside", links.address(1)).unwrap();
        assert_eq!(receive(&b).0, b"beside");
        links.heal();
        a.send_to(b"healed", links.address(2)).unwrap();
        assert_eq!(receive(&c).0, b"healed");
    }
}
