//! Several servers behind one sink.

use super::over_http::{HttpServer, says};
use super::*;

fn both(protocol: Protocol, addresses: [SocketAddr; 2]) -> Rig {
    let endpoints = addresses.map(|address| format!("http://{address}"));
    Rig::of(&target(protocol, &endpoints), |_| {})
}

/// An address at which nobody listens; it is taken as long as the socket lives.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn server_that_is_not_there_is_left_for_the_next_in_the_same_attempt() {
    let (_socket, nowhere) = nobody();
    let server = Server::start(|_, _| Say::Yes).await;
    let rig = both(Protocol::Grpc, [nowhere, server.address]);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!((rig.metrics.up.get(), server.requests().len()), (1, 1));
}

#[tokio::test]
async fn server_that_takes_nothing_is_left_for_the_next_and_asked_again_in_turn() {
    let full = HttpServer::start(|_| says(503)).await;
    let good = HttpServer::start(|_| says(200)).await;
    let rig = both(Protocol::Http, [full.address, good.address]);
    for _ in 0..3 {
        assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    }
    assert_eq!((full.requests().len(), good.requests().len()), (1, 3));
    drop(good);
    rig.wait_for(&[trace(1, 1)], Outcome::AGAIN).await;
    assert_eq!(rig.metrics.up.get(), 0);
    assert!(full.requests().len() > 1);
}

#[tokio::test]
async fn what_one_server_may_have_is_not_sent_to_the_next_in_the_same_attempt() {
    let mute = Server::start(|_, _| Say::Nothing).await;
    let good = Server::start(|_, _| Say::Yes).await;
    let rig = both(Protocol::Grpc, [mute.address, good.address]);
    let outcome = submit(&*rig.sink, trace(1, 2));
    mute.arrived.notified().await;
    tokio::time::pause();
    assert_eq!(outcome.await, Outcome::Unanswered);
    tokio::time::resume();
    assert!(good.requests().is_empty());
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!((mute.requests().len(), good.requests().len()), (1, 1));
}

#[tokio::test]
async fn nobody_takes_when_none_does() {
    let (_socket, nowhere) = nobody();
    let busy = Server::start(|_, _| Say::No(full())).await;
    let rig = both(Protocol::Grpc, [busy.address, nowhere]);
    for _ in 0..3 {
        assert_eq!(rig.export_one().await, again_in_7_seconds());
    }
    assert_eq!(busy.requests().len(), 3);
}

#[tokio::test]
async fn server_that_bars_the_sink_is_left_for_the_next() {
    let barring = HttpServer::start(|_| says(401)).await;
    let good = HttpServer::start(|_| says(200)).await;
    let rig = both(Protocol::Http, [barring.address, good.address]);
    assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    assert_eq!((barring.requests().len(), good.requests().len()), (1, 1));
    drop(good);
    rig.wait_for(&[trace(1, 1)], Outcome::AGAIN).await;
    assert!(rig.dead().is_empty(), "the other may come back");
}
