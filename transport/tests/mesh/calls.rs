//! Calls: their answers, their limits, and each way to fail.

use crate::harness::{LONG, Plan, eventually, frame, next_call, peer};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracemesh_transport::{
    CallError, Delivery, FRAME_BYTES_MAX, Frame, Incoming, Peer, Received, Transport,
};

/// Long enough for anything on loopback that does answer, short enough to wait for.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_call_is_answered_and_both_sides_know_who_the_other_is() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let to_bob = peer(&bob, Some("bob"));
    let (answer, (from, question)) =
        tokio::join!(alice.call(&to_bob, frame(1, 100), LONG, LONG), async {
            let (from, question, respond) = next_call(&mut bob_incoming).await;
            respond.send(frame(2, 50));
            (from, question)
        });
    assert_eq!(answer, Ok(frame(2, 50)));
    assert_eq!(question, frame(1, 100));
    assert_eq!(from.address, alice.local_address());
    assert_eq!(&*from.node_id, "alice");
    assert!(alice.round_trip(bob.local_address()).is_some());
}

#[tokio::test]
async fn one_connection_serves_calls_in_both_directions() {
    let (alice, bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    alice.call(&bob.as_peer(), frame(1, 1)).await.unwrap();
    bob.call(&alice.as_peer(), frame(2, 1)).await.unwrap();
    alice.call(&bob.as_peer(), frame(3, 1)).await.unwrap();
    assert_eq!(alice.transport.counters().connections_opened, 1);
    assert_eq!(bob.transport.counters().connections_opened, 1);
}

#[tokio::test]
async fn frames_from_empty_to_the_maximum_go_there_and_back() {
    let (alice, bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    for bytes in [0, 1, 1200, 70_000, FRAME_BYTES_MAX] {
        let answer = alice.call(&bob.as_peer(), frame(1, bytes)).await;
        assert_eq!(answer, Ok(frame(1, bytes)), "{bytes} bytes");
    }
    let counters = alice.transport.counters();
    assert!(counters.bytes_out > FRAME_BYTES_MAX as u64);
    assert!(counters.bytes_in > FRAME_BYTES_MAX as u64);
    let error = alice.call(&bob.as_peer(), frame(1, FRAME_BYTES_MAX + 1)).await;
    assert_eq!(error, Err(CallError::FrameTooLarge { bytes: FRAME_BYTES_MAX + 1 }));
}

#[tokio::test]
async fn an_answer_over_the_maximum_ends_the_call() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let to_bob = peer(&bob, Some("bob"));
    let (answer, ()) = tokio::join!(alice.call(&to_bob, frame(1, 1), LONG, LONG), async {
        let (_, _, respond) = next_call(&mut bob_incoming).await;
        respond.send(frame(2, FRAME_BYTES_MAX + 1));
    });
    assert_eq!(answer, Err(CallError::Unanswered { address: bob.local_address() }));
}

#[tokio::test]
async fn hundreds_of_calls_at_once_are_all_answered() {
    let (alice, bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    let mut calls = JoinSet::new();
    for number in 0..600_usize {
        let (transport, to_bob) = (alice.transport.clone(), bob.as_peer());
        calls.spawn(async move {
            let question = frame(number as u8, number % 50 * 1000);
            assert_eq!(transport.call(&to_bob, question.clone(), LONG, LONG).await, Ok(question));
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn another_node_at_the_address_is_named() {
    let (alice, bob) = (Plan::new("alice").start(), Plan::new("bob").start());
    let to_carol = Peer { node_id: Some("carol".into()), ..bob.as_peer() };
    let error = alice.call(&to_carol, frame(1, 1)).await.unwrap_err();
    let (expected, proved) = (Arc::from("carol"), Arc::from("bob"));
    assert_eq!(error, CallError::WrongNode { address: to_carol.address, expected, proved });
    let to_anybody = Peer { node_id: None, ..bob.as_peer() };
    assert_eq!(alice.call(&to_anybody, frame(1, 1)).await, Ok(frame(1, 1)));
}

#[tokio::test]
async fn a_peer_that_never_answers_a_packet_is_silent_and_then_unreachable() {
    let alice = Plan::new("alice").start();
    let mute = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    let to_mute = Peer { address, node_id: None };
    let error = alice.transport.call(&to_mute, frame(1, 1), SHORT, LONG).await;
    assert_eq!(error, Err(CallError::Silent { address, silence: SHORT }));
    // With more patience one learns that the dial failed, of which there was one.
    let error = alice.call(&to_mute, frame(1, 1)).await;
    assert!(matches!(error, Err(CallError::Unreachable { .. })), "{error:?}");
    assert_eq!(alice.transport.counters().dials_failed, 1);
}

/// Lets the two have a connection, so that what follows takes no handshake.
async fn connect(alice: &Transport, to_bob: &Peer, bob_incoming: &mut Incoming) {
    alice.notify(to_bob, frame(1, 1), Delivery::Stream);
    let received = timeout(LONG, bob_incoming.next()).await.unwrap();
    assert!(matches!(received, Some(Received::Notice { .. })));
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_silent_or_past_the_deadline() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let (to_bob, address) = (peer(&bob, Some("bob")), bob.local_address());
    connect(&alice, &to_bob, &mut bob_incoming).await;
    let silent = alice.call(&to_bob, frame(1, 1_000_000), SHORT, LONG).await;
    assert_eq!(silent, Err(CallError::Silent { address, silence: SHORT }));
    let late = alice.call(&to_bob, frame(2, 1), LONG, SHORT).await;
    assert_eq!(late, Err(CallError::Deadline { address, deadline: SHORT }));
    assert_eq!(next_call(&mut bob_incoming).await.1.kind, 1);
    assert_eq!(next_call(&mut bob_incoming).await.1.kind, 2);
}

#[tokio::test]
async fn a_dropped_call_is_told_to_the_caller_at_once() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let to_bob = peer(&bob, Some("bob"));
    let (answer, ()) = tokio::join!(alice.call(&to_bob, frame(1, 1), LONG, LONG), async {
        drop(next_call(&mut bob_incoming).await);
    });
    assert_eq!(answer, Err(CallError::Unanswered { address: bob.local_address() }));
}

#[tokio::test]
async fn calls_under_way_to_one_peer_are_bounded_in_number() {
    // What a peer accepts; one more has to wait.
    const CALLS_MAX: usize = 256;
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let (to_bob, address) = (peer(&bob, Some("bob")), bob.local_address());
    let mut calls = JoinSet::new();
    let mut open = Vec::new();
    for number in 0..CALLS_MAX {
        let (alice, to_bob) = (alice.clone(), to_bob.clone());
        calls.spawn(async move { alice.call(&to_bob, frame(number as u8, 1), LONG, LONG).await });
        open.push(next_call(&mut bob_incoming).await);
    }
    let busy = alice.call(&to_bob, frame(1, 1), SHORT, LONG).await;
    assert_eq!(busy, Err(CallError::Busy { address }));
    for (_, question, respond) in open {
        respond.send(question);
    }
    while let Some(answer) = calls.join_next().await {
        answer.unwrap().unwrap();
    }
    let (answer, ()) = tokio::join!(alice.call(&to_bob, frame(9, 9), LONG, LONG), async {
        let (_, question, respond) = next_call(&mut bob_incoming).await;
        respond.send(question);
    });
    assert_eq!(answer, Ok(frame(9, 9)));
}

#[tokio::test]
async fn bytes_under_way_to_one_peer_are_bounded_and_given_up_calls_count_at_the_receiver() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let (to_bob, address) = (peer(&bob, Some("bob")), bob.local_address());
    let mut calls = JoinSet::new();
    let mut open = Vec::new();
    // 3 frames of 4 MiB and some fit into 16 MiB; seven into the receiver's 32 MiB.
    for round in 0..2 {
        for _ in 0..3 {
            let (alice, to_bob) = (alice.clone(), to_bob.clone());
            calls.spawn(
                async move { alice.call(&to_bob, frame(1, FRAME_BYTES_MAX), LONG, LONG).await },
            );
            open.push(next_call(&mut bob_incoming).await);
        }
        if round == 0 {
            let busy = alice.call(&to_bob, frame(1, FRAME_BYTES_MAX), SHORT, LONG).await;
            assert_eq!(busy, Err(CallError::Busy { address }));
        }
        calls.shutdown().await;
    }
    assert_eq!(bob.counters().frames_refused, 0);
    let open_call = |bytes| alice.call(&to_bob, frame(1, bytes), LONG, LONG);
    let (seventh, eighth) = (open_call(FRAME_BYTES_MAX), open_call(FRAME_BYTES_MAX));
    let mut seventh = std::pin::pin!(seventh);
    tokio::select! {
        biased;
        answer = &mut seventh => panic!("{answer:?}"),
        call = next_call(&mut bob_incoming) => open.push(call),
    }
    assert_eq!(eighth.await, Err(CallError::Busy { address }));
    assert_eq!(bob.counters().frames_refused, 1);
    // Once the node has dealt with them, there is room again.
    for (_, question, respond) in open {
        respond.send(Frame { payload: bytes_of(&question), ..question });
    }
    assert_eq!(seventh.await.map(|answer| answer.payload.len()), Ok(4));
    let (answer, ()) = tokio::join!(open_call(FRAME_BYTES_MAX), async {
        let (_, question, respond) = next_call(&mut bob_incoming).await;
        respond.send(question);
    });
    assert_eq!(answer.map(|answer| answer.payload.len()), Ok(FRAME_BYTES_MAX));
}

fn bytes_of(question: &Frame) -> bytes::Bytes {
    question.payload.slice(..4)
}

#[tokio::test]
async fn shutdown_ends_calls_tells_peers_and_ends_incoming() {
    let (alice, mut alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let (to_bob, address) = (peer(&bob, Some("bob")), bob.local_address());
    let (call, _open) = tokio::join!(alice.call(&to_bob, frame(1, 1), LONG, LONG), async {
        let open = next_call(&mut bob_incoming).await;
        bob.shutdown().await;
        open
    });
    assert!(matches!(call, Err(CallError::Lost { .. })), "{call:?}");
    assert!(bob_incoming.next().await.is_none());
    let to_alice = peer(&alice, Some("alice"));
    let closed = bob.call(&to_alice, frame(1, 1), LONG, LONG).await;
    assert_eq!(closed, Err(CallError::Closed { address: alice.local_address() }));
    eventually("the link is gone", || alice.round_trip(address).is_none()).await;
    alice.shutdown().await;
    assert!(alice_incoming.next().await.is_none());
}

#[tokio::test]
async fn an_answer_given_just_before_shutdown_arrives() {
    let (alice, _alice_incoming) = Plan::new("alice").start_silent();
    let (bob, mut bob_incoming) = Plan::new("bob").start_silent();
    let to_bob = peer(&bob, Some("bob"));
    let (answer, ()) = tokio::join!(alice.call(&to_bob, frame(1, 1), LONG, LONG), async {
        let (_, question, respond) = next_call(&mut bob_incoming).await;
        respond.send(question);
        bob.shutdown().await;
    });
    assert_eq!(answer, Ok(frame(1, 1)));
}
