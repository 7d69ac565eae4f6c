//! What peers send us, on its way to the node.
//!
//! All connections feed one queue of [`QUEUE_MAX`] messages. When it is full, calls wait (their
//! streams stay open, of which a peer has a bounded number, so it is the sender that waits), while
//! notices are dropped and counted: gossip repeats itself. The invariant: the payload bytes that a
//! connection has delivered and the node has not yet answered are counted against that
//! connection, by a permit that travels with the message. Nothing here looks into a payload.

use crate::counters::Meters;
use crate::frame::Frame;
use crate::tasks::Tasks;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Messages between the connections and the node: four full peers' worth of open calls.
const QUEUE_MAX: usize = 1024;

/// A peer whose certificate was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    /// Where it sends from; its mesh address, since a node has one socket for everything.
    pub address: SocketAddr,
    /// The node id in its certificate.
    pub node_id: Arc<str>,
}

/// One message from a peer.
#[derive(Debug)]
pub enum Received {
    /// The peer waits for an answer.
    Call {
        /// Who asks.
        from: Proved,
        /// What it says.
        frame: Frame,
        /// Where the answer goes.
        respond: Responder,
    },
    /// The peer expects nothing back.
    Notice {
        /// Who says it.
        from: Proved,
        /// What it says.
        frame: Frame,
    },
}

/// Answers one call. Dropped without an answer, it ends the call at the peer at once.
pub struct Responder {
    answer: oneshot::Sender<Frame>,
    /// Held until the call is answered: the request's bytes are likely in memory until then.
    memory: Option<OwnedSemaphorePermit>,
}

impl Responder {
    pub(crate) fn new(memory: Option<OwnedSemaphorePermit>) -> (Self, oneshot::Receiver<Frame>) {
        let (answer, answered) = oneshot::channel();
        (Self { answer, memory }, answered)
    }

    /// Sends the answer. Whether it arrives is not known; the peer may have given up.
    pub fn send(self, frame: Frame) {
        drop(self.memory);
        // An error means that the connection is gone, which the peer knows as well.
        let _ = self.answer.send(frame);
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder")
    }
}

/// A notice's bytes are counted until the node takes it.
type Queued = (Received, Option<OwnedSemaphorePermit>);

/// The messages of all peers.
pub struct Incoming {
    queue: mpsc::Receiver<Queued>,
    tasks: Tasks,
}

impl Incoming {
    /// The next message, or `None` when the transport was shut down (or one of its tasks panicked,
    /// which was logged). Cancel-safe.
    pub async fn next(&mut self) -> Option<Received> {
        tokio::select! {
            biased;
            () = self.tasks.stopped() => None,
            queued = self.queue.recv() => queued.map(|(received, _)| received),
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Incoming")
    }
}

/// Where connections put what they received.
#[derive(Clone)]
pub(crate) struct Inbox {
    queue: mpsc::Sender<Queued>,
    pub(crate) meters: Arc<Meters>,
}

impl Inbox {
    pub(crate) fn new(meters: Arc<Meters>, tasks: Tasks) -> (Self, Incoming) {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        (Self { queue: sender, meters }, Incoming { queue, tasks })
    }

    /// Waits for room. When the node takes no calls any more, the responder is dropped.
    pub(crate) async fn call(&self, from: Proved, frame: Frame, respond: Responder) {
        let _ = self.queue.send((Received::Call { from, frame, respond }, None)).await;
    }

    /// Never waits.
    pub(crate) fn notice(&self, from: Proved, frame: Frame, memory: Option<OwnedSemaphorePermit>) {
        if self.queue.try_send((Received::Notice { from, frame }, memory)).is_err() {
            self.meters.notices_unread.add(1);
        }
    }
}
