//! What a peer can do that does not keep to the rules: raw streams, strange handshakes, crowds.

use super::*;
use crate::counters::Meters;
use crate::endpoint::{Endpoint, HANDSHAKES_MAX, Secrets};
use crate::identity::{Credentials, Source, WallClock, derive};
use crate::incoming::{Incoming, Received};
use crate::key::ClusterKey;
use crate::slots::Slots;
use crate::socket::bind_udp;
use crate::tasks::Tasks;
use crate::tls::Tls;
use std::net::SocketAddr;
use std::time::SystemTime;

const LONG: Duration = Duration::from_secs(20);

fn tls(node_id: &str) -> Tls {
    let credentials = Credentials::ClusterKey(vec![ClusterKey::development()]);
    let mut source = Source::new(credentials, "test", node_id, wall_clock(), [1; 32]).unwrap();
    let identity = source.load().unwrap();
    Tls::new(&identity, source.id(), &wall_clock()).unwrap()
}

fn wall_clock() -> WallClock {
    Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000))
}

/// An endpoint without the pool above it.
struct Host {
    endpoint: Arc<Endpoint>,
    meters: Arc<Meters>,
    address: SocketAddr,
}

impl Host {
    fn start(node_id: &str, tls: &Tls) -> Self {
        let socket = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let meters = Arc::new(Meters::default());
        let stable = derive(node_id.as_bytes(), &["test"]);
        let secrets = Secrets { random: [2; 32], stable };
        let endpoint = Endpoint::start(socket, tls, &secrets, wall_clock(), meters.clone());
        Self { endpoint: Arc::new(endpoint.unwrap()), meters, address }
    }

    /// Dials; the result is both ends of the link.
    async fn connect(&self, other: &Self) -> (Link, Link) {
        let welcome = async {
            loop {
                // Before it may come what was sent twice for an earlier dial.
                let arrival = other.endpoint.arrival().await.unwrap();
                if let Some(link) = other.endpoint.welcome(arrival).await {
                    break link;
                }
            }
        };
        let (ours, theirs) = tokio::join!(self.endpoint.dial(other.address), welcome);
        (ours.ok().unwrap(), theirs)
    }

    /// Dials somebody who does not let it in.
    async fn knock(&self, other: &Self) {
        let (_, welcomed) = tokio::join!(self.endpoint.dial(other.address), async {
            let arrival = other.endpoint.arrival().await.unwrap();
            other.endpoint.welcome(arrival).await
        });
        assert!(welcomed.is_none());
    }
}

/// A guest with raw access, and a host that serves it.
struct Served {
    guest: Link,
    meters: Arc<Meters>,
    incoming: Incoming,
    /// Keep both ends alive.
    _hosts: [Host; 2],
    _serving: JoinSet<End>,
}

impl Served {
    async fn start() -> Self {
        let hosts = ["guest", "host"].map(|id| Host::start(id, &tls(id)));
        let (guest, link) = hosts[0].connect(&hosts[1]).await;
        let meters = hosts[1].meters.clone();
        let (inbox, incoming) = Inbox::new(meters.clone(), Tasks::default());
        let mut serving = JoinSet::new();
        serving.spawn(Arc::new(link).serve(inbox));
        Self { guest, meters, incoming, _hosts: hosts, _serving: serving }
    }

    /// The answer to raw bytes on a call's stream.
    async fn call_raw(&self, bytes: &[u8]) -> Result<Frame, LinkError> {
        let (mut send, recv) = self.guest.connection.open_bi().await.unwrap();
        // The host may cut it before it has taken all.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let mut reader = Reader::new(recv, self.guest.memory.clone());
        timeout(LONG, reader.read()).await.unwrap().map(|(frame, _)| frame)
    }

    fn refused(&self) -> u64 {
        self.meters.counters().frames_refused
    }
}

#[tokio::test]
async fn what_is_no_frame_is_refused_counted_and_harmless() {
    let mut served = Served::start().await;
    let too_large = [1, 0, 0xff, 0xff, 0xff, 0xff];
    let truncated = [1, 0, 0, 0, 0, 9, 1, 2, 3];
    let trailing = [1, 0, 0, 0, 0, 1, 1, 2];
    let cases: [&[u8]; 5] = [&too_large, &truncated, &trailing, &[1, 2, 3], &[]];
    for (refused, bytes) in (1..).zip(cases) {
        let answer = served.call_raw(bytes).await;
        assert!(matches!(answer, Err(LinkError::Malformed(_))), "{bytes:?}: {answer:?}");
        assert_eq!(served.refused(), refused);
    }
    served.guest.connection.send_datagram(too_large.to_vec().into()).unwrap();
    // The next message is the first that the node sees.
    let frame = Frame::new(7, Bytes::from_static(b"whole"));
    served.guest.send_notice(&frame, LONG).await.unwrap();
    let received = timeout(LONG, served.incoming.next()).await.unwrap().unwrap();
    let Received::Notice { from, frame: notice } = received else { panic!("{received:?}") };
    assert_eq!((&*from.node_id, notice), ("guest", frame));
}

#[tokio::test]
async fn a_small_notice_is_a_datagram_and_a_large_one_needs_a_stream() {
    let mut served = Served::start().await;
    let large = Frame::new(7, vec![1; 20_000].into());
    assert_eq!(served.guest.send_datagram(&large), Datagram::TooLarge);
    let small = Frame::new(7, vec![1; 1_000].into());
    assert_eq!(served.guest.send_datagram(&small), Datagram::Sent);
    let received = timeout(LONG, served.incoming.next()).await.unwrap().unwrap();
    let Received::Notice { frame, .. } = received else { panic!("{received:?}") };
    assert_eq!(frame, small);
    let sent = served.guest.connection.stats().frame_tx;
    assert_eq!((sent.datagram, sent.stream), (1, 0), "a datagram, and no stream");
}

#[tokio::test]
async fn a_call_given_up_halfway_never_reaches_the_node_and_is_no_fault() {
    let mut served = Served::start().await;
    let (mut send, _recv) = served.guest.connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0, 0, 0, 9, 1, 2, 3]).await.unwrap();
    // As dropping a call's future does.
    drop(Writer::new(send));
    let frame = Frame::new(7, Bytes::new());
    served.guest.send_notice(&frame, LONG).await.unwrap();
    let received = timeout(LONG, served.incoming.next()).await.unwrap().unwrap();
    assert!(matches!(received, Received::Notice { .. }), "{received:?}");
    assert_eq!(served.refused(), 0);
}

#[tokio::test]
async fn a_peer_with_more_in_frames_than_its_share_is_refused_until_there_is_room() {
    let mut served = Served::start().await;
    let link = Served::start().await;
    assert_eq!(link.guest.memory.available_permits(), PEER_BYTES_MAX);
    // The host's answer counts at the guest.
    let taken = served.guest.memory.clone().try_acquire_many_owned(PEER_BYTES_MAX as u32 - 4);
    let taken = taken.unwrap();
    for (expected_room, bytes) in [(true, 4), (false, 5)] {
        let frame = Frame::new(7, vec![0; bytes].into());
        let (answer, ()) = tokio::join!(served.guest.call(&frame, LONG), async {
            match timeout(LONG, served.incoming.next()).await.unwrap().unwrap() {
                Received::Call { frame, respond, .. } => respond.send(frame),
                Received::Notice { .. } => panic!(),
            }
        });
        match answer {
            Ok(answer) => assert!(expected_room && answer == frame),
            Err(error) => assert!(!expected_room && matches!(error, LinkError::Busy), "{error:?}"),
        }
    }
    drop(taken);
    assert_eq!(served.guest.memory.available_permits(), PEER_BYTES_MAX);
}

#[tokio::test]
async fn a_guest_without_a_certificate_or_with_another_protocol_is_refused() {
    let host = Host::start("host", &tls("host"));
    let mut bare = tls("bare");
    bare.forget_client_certificate();
    let mut foreign = tls("foreign");
    foreign.speak(b"other/1");
    for (tls, cause) in [(bare, Refusal::Certificate), (foreign, Refusal::Protocol)] {
        let guest = Host::start("guest", &tls);
        guest.knock(&host).await;
        assert_eq!(host.meters.counters().refused(cause), 1, "{cause:?}");
    }
    assert_eq!(host.meters.counters().connections_opened, 0);
}

#[tokio::test]
async fn a_guest_that_only_knocks_is_counted_as_unfinished() {
    let (host, stranger) = (Host::start("host", &tls("host")), Host::start("x", &tls("x")));
    // Its first packet is relayed from an address that nobody answers from.
    let relay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut packet = [0; 2000];
    let relayed = async {
        let (length, _) = relay.recv_from(&mut packet).await.unwrap();
        relay.send_to(&packet[..length], host.address).await.unwrap();
        let arrival = host.endpoint.arrival().await.unwrap();
        host.endpoint.welcome(arrival).await
    };
    let (_, welcomed) = tokio::join!(stranger.endpoint.dial(relay.local_addr().unwrap()), relayed);
    assert!(welcomed.is_none());
    assert_eq!(host.meters.counters().refused(Refusal::Unfinished), 1);
}

#[tokio::test]
async fn in_a_crowd_newcomers_show_their_address_first_and_in_a_full_house_they_are_refused() {
    let (host, guest) = (Host::start("host", &tls("host")), Host::start("guest", &tls("guest")));
    let crowd = host.endpoint.crowd(HANDSHAKES_MAX / 2 + 1);
    guest.connect(&host).await;
    let _rest = host.endpoint.crowd(HANDSHAKES_MAX / 2 - 1);
    tokio::select! {
        biased;
        dialled = guest.endpoint.dial(host.address) => assert!(dialled.is_err()),
        _ = host.endpoint.arrival() => panic!("there is no place"),
    }
    assert!(host.meters.counters().refused(Refusal::Full) > 0);
    drop(crowd);
    guest.connect(&host).await;
}

#[tokio::test]
async fn a_slot_keeps_the_newest_link_of_each_side_and_uses_the_newest_of_all() {
    let (host, guest) = (Host::start("host", &tls("host")), Host::start("guest", &tls("guest")));
    let mut slots = Slots::new([1; 32]);
    let mut admit = |link: Link| {
        let link = Arc::new(link);
        assert!(slots.admit(&link));
        assert!(Arc::ptr_eq(&slots.link(guest.address).unwrap(), &link), "the newest is used");
        link
    };
    // As when both dial at the same moment, and then the guest restarts.
    let by_guest = guest.connect(&host).await;
    let by_host = host.connect(&guest).await;
    let by_guest_again = guest.connect(&host).await;
    let first = admit(by_guest.1);
    let second = admit(by_host.0);
    assert!(first.is_open() && second.is_open());
    let third = admit(by_guest_again.1);
    assert!(!first.is_open() && second.is_open() && third.is_open());
    slots.retire(&third);
    assert!(Arc::ptr_eq(&slots.link(guest.address).unwrap(), &second));
    assert_eq!(slots.give_up(guest.address).0.len(), 1);
    assert!(slots.link(guest.address).is_none());
    // A dial that ends after its peer was given up is not wanted any more.
    assert!(!slots.admit(&second));
}
