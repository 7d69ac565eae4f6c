//! How connections begin and end.

use crate::harness::{LONG, Node, Plan, eventually, frame, next_call, peer};
use std::net::SocketAddr;
use std::sync::mpsc;
use tokio::sync::oneshot;
use tracemesh_transport::{CallError, Refusal};

#[tokio::test]
async fn two_nodes_that_dial_each_other_at_the_same_moment_both_get_through() {
    for _ in 0..8 {
        let (alice, bob) = (Plan::new("alice").start(), Plan::new("bob").start());
        let (to_alice, to_bob) = (alice.as_peer(), bob.as_peer());
        for kind in 0..3 {
            let (there, back) = tokio::join!(
                alice.call(&to_bob, frame(kind, 1000)),
                bob.call(&to_alice, frame(kind, 2000)),
            );
            assert_eq!(there, Ok(frame(kind, 1000)));
            assert_eq!(back, Ok(frame(kind, 2000)));
        }
        assert!(alice.transport.counters().connections_opened <= 2);
    }
}

/// A node on a thread of its own, so that it can die without a word.
struct Victim {
    address: SocketAddr,
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Victim {
    fn start(plan: Plan) -> Self {
        let (told, address) = mpsc::channel();
        let (kill, killed) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let node = runtime.block_on(async {
                let node: Node = plan.start();
                told.send(node.transport.local_address()).unwrap();
                let _ = killed.await;
                node
            });
            // As by SIGKILL: what would say goodbye is gone before what it would say it for.
            drop(runtime);
            drop(node);
        });
        Self { address: address.recv().unwrap(), kill, thread }
    }

    fn kill(self) {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_on_its_address_ends_the_old_connection_by_a_reset() {
    let alice = Plan::new("alice").start();
    let first = Victim::start(Plan::new("bob"));
    let plan = Plan { address: first.address, ..Plan::new("bob") };
    let to_bob = tracemesh_transport::Peer { address: plan.address, node_id: Some("bob".into()) };
    alice.call(&to_bob, frame(1, 1)).await.unwrap();
    first.kill();
    let second = Victim::start(plan);
    match alice.call(&to_bob, frame(2, 1)).await {
        // Not the time-out of an idle connection: the new process said so.
        Err(CallError::Lost { why, .. }) => assert_eq!(why, "reset by peer"),
        // The reset may have come by a keep-alive before.
        answer => assert_eq!(answer, Ok(frame(2, 1))),
    }
    assert_eq!(alice.call(&to_bob, frame(3, 1)).await, Ok(frame(3, 1)));
    assert_eq!(alice.transport.counters().connections_opened, 2);
    assert_eq!(alice.transport.counters().refused(Refusal::Garbage), 0);
    second.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_and_dials_first_replaces_its_old_connection() {
    let alice = Plan::new("alice").start();
    let first = Victim::start(Plan::new("bob"));
    let plan = Plan { address: first.address, ..Plan::new("bob") };
    let to_bob = tracemesh_transport::Peer { address: plan.address, node_id: Some("bob".into()) };
    alice.call(&to_bob, frame(1, 1)).await.unwrap();
    first.kill();
    let bob = plan.start();
    assert_eq!(bob.call(&alice.as_peer(), frame(2, 1)).await, Ok(frame(2, 1)));
    // The newest connection is used, not the one whose end nobody told.
    assert_eq!(alice.call(&to_bob, frame(3, 1)).await, Ok(frame(3, 1)));
    assert_eq!(alice.transport.counters().connections_opened, 2);
}

#[tokio::test]
async fn a_peer_that_membership_gave_up_is_closed_and_can_come_back() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let (to_bob, address) = (peer(&bob, Some("bob")), bob.local_address());
    let (call, _open) = tokio::join!(alice.call(&to_bob, frame(1, 1), LONG, LONG), async {
        let open = next_call(&mut bob_incoming).await;
        alice.close(address);
        open
    });
    assert!(matches!(call, Err(CallError::Lost { .. })), "{call:?}");
    assert_eq!(alice.round_trip(address), None);
    let there = || bob.round_trip(alice.local_address()).is_none();
    eventually("the peer has heard of it", there).await;
    let (answer, ()) = tokio::join!(alice.call(&to_bob, frame(2, 1), LONG, LONG), async {
        let (_, question, respond) = next_call(&mut bob_incoming).await;
        respond.send(question);
    });
    assert_eq!(answer, Ok(frame(2, 1)));
}

#[tokio::test]
async fn a_peer_given_up_while_it_is_dialled_is_not_waited_for() {
    let alice = Plan::new("alice").start();
    let mute = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    let to_mute = tracemesh_transport::Peer { address, node_id: None };
    let (call, ()) = tokio::join!(alice.call(&to_mute, frame(1, 1)), async {
        let mut packet = [0; 2000];
        mute.recv_from(&mut packet).await.unwrap();
        alice.transport.close(address);
    });
    assert_eq!(call, Err(CallError::Closed { address }));
}

#[tokio::test]
async fn datagrams_that_are_no_quic_are_counted_and_change_nothing() {
    let (alice, bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    alice.call(&bob.as_peer(), frame(1, 1)).await.unwrap();
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = bob.transport.local_address();
    // An empty one, forged gossip, and noise with either kind of first byte.
    let mut sent = 0;
    for first in [0x00, 0x41, 0x80, 0xc3, 0xff] {
        for length in [1_usize, 9, 60, 1300] {
            let noise: Vec<u8> = (0..length).map(|i| first ^ (i * 37 % 251) as u8).collect();
            stranger.send_to(&noise, target).await.unwrap();
            sent += 1;
        }
    }
    let counted = || bob.transport.counters().refused(Refusal::Garbage) == sent;
    eventually("all are counted", counted).await;
    assert_eq!(alice.call(&bob.as_peer(), frame(2, 1)).await, Ok(frame(2, 1)));
    assert_eq!(bob.transport.counters().connections_opened, 1);
}
