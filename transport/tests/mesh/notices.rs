//! Notices: by datagram, by stream, and not at all.

use crate::harness::{LONG, Plan, eventually, frame, peer};
use tracemesh_transport::{Delivery, Peer, Received};

#[tokio::test]
async fn notices_of_any_size_arrive_either_way_even_before_there_is_a_connection() {
    let (alice, mut bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    let sizes = [0, 100, 1100, 20_000, 1_000_000];
    for delivery in [Delivery::Datagram, Delivery::Stream] {
        for (kind, bytes) in sizes.iter().enumerate() {
            alice.transport.notify(&bob.as_peer(), frame(kind as u8, *bytes), delivery);
        }
        let mut seen = Vec::new();
        for _ in sizes {
            let (from, notice) = bob.notice().await;
            assert_eq!(&*from.node_id, "alice");
            assert_eq!(notice, frame(notice.kind, notice.payload.len()));
            seen.push(notice.payload.len());
        }
        seen.sort_unstable();
        assert_eq!(seen, sizes, "{delivery:?}");
    }
    assert_eq!(alice.transport.counters().notices_dropped, 0);
}

#[tokio::test]
async fn notices_to_a_peer_that_does_not_answer_are_bounded_and_counted() {
    let alice = Plan::new("alice").start();
    let mute = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to_mute = Peer { address: mute.local_addr().unwrap(), node_id: None };
    for _ in 0..100 {
        alice.transport.notify(&to_mute, frame(1, 10), Delivery::Datagram);
    }
    // All but the 32 that may wait, at once; those too when they are old.
    assert_eq!(alice.transport.counters().notices_dropped, 68);
    eventually("all are dropped", || alice.transport.counters().notices_dropped == 100).await;
}

#[tokio::test]
async fn a_notice_is_not_given_to_another_node() {
    let (alice, mut bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    let to_carol = Peer { node_id: Some("carol".into()), ..bob.as_peer() };
    for dropped in 1..3 {
        // The first finds no connection, the second does.
        alice.transport.notify(&to_carol, frame(1, 10), Delivery::Datagram);
        eventually("dropped", || alice.transport.counters().notices_dropped == dropped).await;
    }
    alice.transport.notify(&bob.as_peer(), frame(2, 10), Delivery::Datagram);
    assert_eq!(bob.notice().await.1, frame(2, 10));
}

#[tokio::test]
async fn notices_that_the_node_does_not_take_are_dropped_and_calls_wait() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let to_bob = peer(&bob, Some("bob"));
    let unread = || bob.counters().notices_unread;
    while unread() == 0 {
        alice.notify(&to_bob, frame(1, 10), Delivery::Datagram);
        tokio::task::yield_now().await;
    }
    let call = alice.call(&to_bob, frame(2, 10), LONG, LONG);
    let (answer, ()) = tokio::join!(call, async {
        loop {
            if let Some(Received::Call { frame, respond, .. }) = bob_incoming.next().await {
                break respond.send(frame);
            }
        }
    });
    assert_eq!(answer, Ok(frame(2, 10)));
}
