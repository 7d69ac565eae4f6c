//! One connection to a peer whose certificate was checked: a link.
//!
//! A call is one bidirectional stream: one frame there, one frame back. A notice is a datagram, or
//! one frame on a unidirectional stream. Either end may open either, whoever dialled. The
//! invariant: what a peer has sent and the node has not dealt with yet is bounded, by streams
//! (`CALL_STREAMS_MAX`), by unread bytes (the windows in `endpoint`) and by bytes in frames
//! ([`PEER_BYTES_MAX`]).
//!
//! A link does not dial, choose, retry or remember. One of the three files that name quinn.

use crate::counters::Refusal;
use crate::endpoint::certificate_refusal;
use crate::frame::Frame;
use crate::incoming::{Inbox, Proved, Responder};
use crate::socket::canonical;
use crate::spiffe::SpiffeId;
use crate::stream::{Cut, LinkError, Reader, Step, Writer};
use crate::tls::Verifier;
use bytes::Bytes;
use quinn::{
    Connection, ConnectionError, RecvStream, SendDatagramError, SendStream, StoppedError, VarInt,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Answers and notices go before calls (which have 0): they are small and waited for, and behind
/// megabytes of calls on a slow path they would come too late, so that the same calls were made
/// again, and nodes that live looked dead.
const SMALL_PRIORITY: i32 = 1;

/// Bytes in frames that a peer may have with us: twice what it keeps under way by itself, because
/// calls that it gave up count here until the node has dealt with them.
const PEER_BYTES_MAX: usize = 2 * crate::pool::CALL_BYTES_MAX;

/// How long a frame may take to come, or an answer to be taken. Longer than any deadline of a
/// caller; it only ends what nobody waits for.
const FRAME_WAIT: Duration = Duration::from_secs(10);

/// Why we close a connection, as the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// Membership says that the peer is gone.
    Gone,
    /// The peer opened a newer connection.
    Replaced,
    /// Its certificate is not trusted any more.
    Distrusted,
}

/// Who began a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    ByUs,
    ByPeer,
}

/// What became of a notice that was to be a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datagram {
    Sent,
    /// It needs a stream.
    TooLarge,
    /// The link is over, or its buffer full.
    Dropped,
}

/// How a link ended.
pub(crate) struct End {
    pub(crate) why: String,
    /// Set when the peer did not accept our certificate.
    pub(crate) refusal: Option<Refusal>,
    /// Whether the peer ever accepted us: a client may write before the server has checked it.
    pub(crate) was_accepted: bool,
}

/// An open connection to a peer that proved who it is.
pub(crate) struct Link {
    connection: Connection,
    pub(crate) peer: Proved,
    pub(crate) opened: Opened,
    /// What the peer's frames may still take; see [`PEER_BYTES_MAX`].
    memory: Arc<Semaphore>,
}

impl Link {
    /// Reads the peer's identity, which the handshake has checked, from its certificate.
    pub(crate) fn new(connection: Connection, opened: Opened) -> Result<Self, String> {
        let chain = peer_chain(&connection).ok_or("the peer has no certificate")?;
        let own = chain.first().ok_or("the peer has no certificate")?;
        let node_id = SpiffeId::of_certificate(own)?.node_id;
        let peer = Proved { address: canonical(connection.remote_address()), node_id };
        let memory = Arc::new(Semaphore::new(PEER_BYTES_MAX));
        Ok(Self { connection, peer, opened, memory })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Bytes a second that the path carries, as far as its congestion window tells.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        let path = self.connection.stats().path;
        (path.cwnd as f64 / path.rtt.as_secs_f64()) as u64
    }

    pub(crate) fn is_accepted_by(&self, verifier: &Verifier, now: UnixTime) -> bool {
        peer_chain(&self.connection).is_some_and(|chain| verifier.check(&chain, now).is_ok())
    }

    pub(crate) fn close(&self, why: Close) {
        let (code, reason): (u32, &[u8]) = match why {
            Close::Gone => (1, b"gone"),
            Close::Replaced => (2, b"replaced"),
            Close::Distrusted => (3, b"distrusted"),
        };
        self.connection.close(VarInt::from_u32(code), reason);
    }

    /// Sends a frame and waits for the one that answers it. Dropping the future cuts the stream.
    ///
    /// `silence_max` counts from the last byte that the peer took: from the last progress while the
    /// frame is written, from its full acknowledgement after that.
    pub(crate) async fn call(
        &self,
        frame: &Frame,
        silence_max: Duration,
    ) -> Result<Frame, LinkError> {
        let (send, recv) = timeout(silence_max, self.connection.open_bi())
            .await
            .map_err(|_| LinkError::Busy)?
            .map_err(|_| LinkError::Unsent)?;
        let mut writer = Writer::new(send);
        writer.write(frame, silence_max).await?;
        // Until it is answered: what nobody waits for any more must not take the path from the
        // rest.
        writer.cut_on_drop();
        let mut reader = Reader::new(recv, self.memory.clone());
        let mut taken = pin!(writer.stream.stopped());
        let mut is_taken = false;
        let mut heard_at = Instant::now();
        let mut acknowledgements = self.acknowledgements();
        loop {
            tokio::select! {
                biased;
                step = reader.step() => match step? {
                    Step::More => heard_at = Instant::now(),
                    Step::End => {
                        writer.keep();
                        return Ok(reader.finish()?.0);
                    }
                },
                cut = &mut taken, if !is_taken => {
                    is_taken = true;
                    heard_at = Instant::now();
                    // A cut is told on the stream that we read as well, and an end of the
                    // connection too; here it only means that nobody reads on.
                    let _: Result<Option<VarInt>, StoppedError> = cut;
                }
                () = sleep_until(heard_at + silence_max) => {
                    let seen = self.acknowledgements();
                    if is_taken || seen == acknowledgements {
                        return Err(LinkError::Silent);
                    }
                    acknowledgements = seen;
                    heard_at = Instant::now();
                }
            }
        }
    }

    /// Acknowledgements that came: while a large frame is under way, the sign that it moves.
    fn acknowledgements(&self) -> u64 {
        self.connection.stats().frame_rx.acks
    }

    /// Sends a notice as a datagram, if it fits at this moment; never waits.
    pub(crate) fn send_datagram(&self, frame: &Frame) -> Datagram {
        let Ok(bytes) = frame.encode() else {
            return Datagram::Dropped;
        };
        // Asked each time, because the path's size grows and shrinks.
        if self.connection.max_datagram_size().is_none_or(|max| bytes.len() > max) {
            return Datagram::TooLarge;
        }
        if self.connection.datagram_send_buffer_space() < bytes.len() {
            return Datagram::Dropped;
        }
        match self.connection.send_datagram(bytes) {
            Ok(()) => Datagram::Sent,
            Err(SendDatagramError::TooLarge) => Datagram::TooLarge,
            Err(_) => Datagram::Dropped,
        }
    }

    /// Sends a notice on a stream of its own.
    pub(crate) async fn send_notice(
        &self,
        frame: &Frame,
        silence_max: Duration,
    ) -> Result<(), LinkError> {
        let stream = timeout(silence_max, self.connection.open_uni())
            .await
            .map_err(|_| LinkError::Busy)?
            .map_err(|_| LinkError::Unsent)?;
        // An error means that the connection is over, which writing says as well.
        let _ = stream.set_priority(SMALL_PRIORITY);
        Writer::new(stream).write(frame, silence_max).await
    }

    /// Takes what the peer sends until the connection ends.
    pub(crate) async fn serve(self: Arc<Self>, inbox: Inbox) -> End {
        let mut streams = JoinSet::new();
        let error = loop {
            tokio::select! {
                biased;
                Some(ended) = streams.join_next() => {
                    if let Err(error) = ended
                        && error.is_panic()
                    {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
                datagram = self.connection.read_datagram() => match datagram {
                    Ok(bytes) => self.take_datagram(bytes, &inbox),
                    Err(error) => break error,
                },
                stream = self.connection.accept_uni() => match stream {
                    Ok(recv) => {
                        streams.spawn(self.clone().take_notice(recv, inbox.clone()));
                    }
                    Err(error) => break error,
                },
                stream = self.connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        streams.spawn(self.clone().take_call(send, recv, inbox.clone()));
                    }
                    Err(error) => break error,
                },
            }
        };
        self.end(&error)
    }

    fn end(&self, error: &ConnectionError) -> End {
        let was_accepted =
            self.opened == Opened::ByPeer || self.connection.stats().frame_rx.handshake_done > 0;
        let refusal = if was_accepted { None } else { certificate_refusal(error) };
        End { why: error.to_string(), refusal, was_accepted }
    }

    fn take_datagram(&self, bytes: Bytes, inbox: &Inbox) {
        match Frame::decode(bytes) {
            Ok(frame) => inbox.notice(self.peer.clone(), frame, None),
            Err(error) => {
                inbox.meters.frames_refused.add(1);
                tracing::debug!(peer = %self.peer.address, %error, "datagram refused");
            }
        }
    }

    async fn take_notice(self: Arc<Self>, recv: RecvStream, inbox: Inbox) {
        let mut reader = Reader::new(recv, self.memory.clone());
        if let Some((frame, memory)) = self.take_frame(&mut reader, &inbox).await {
            inbox.notice(self.peer.clone(), frame, memory);
        }
    }

    async fn take_call(self: Arc<Self>, send: SendStream, recv: RecvStream, inbox: Inbox) {
        // An error means that the peer gave the call up, which reading says as well.
        let _ = send.set_priority(SMALL_PRIORITY);
        let mut writer = Writer::new(send);
        let mut reader = Reader::new(recv, self.memory.clone());
        let Some((frame, memory)) = self.take_frame(&mut reader, &inbox).await else {
            writer.cut(reader.cut.unwrap_or(Cut::Cancelled));
            return;
        };
        let (responder, answered) = Responder::new(memory);
        inbox.call(self.peer.clone(), frame, responder).await;
        let Ok(answer) = answered.await else {
            writer.cut(Cut::Unanswered);
            return;
        };
        match writer.write(&answer, FRAME_WAIT).await {
            Ok(()) => {}
            Err(LinkError::Malformed(why)) => {
                tracing::error!(peer = %self.peer.address, why, "the node's answer is no frame");
                writer.cut(Cut::Unanswered);
            }
            // The caller has given up, which cut the stream.
            Err(_) => {}
        }
    }

    /// The frame of a stream, or nothing after having cut it.
    async fn take_frame(
        &self,
        reader: &mut Reader,
        inbox: &Inbox,
    ) -> Option<(Frame, Option<OwnedSemaphorePermit>)> {
        let error = match timeout(FRAME_WAIT, reader.read()).await {
            Ok(Ok(received)) => return Some(received),
            Ok(Err(error)) => error,
            Err(_) => LinkError::Silent,
        };
        let cut = match &error {
            LinkError::Busy => Cut::Busy,
            LinkError::Malformed(_) => Cut::Malformed,
            // Not the frame's fault: the sender gave it up, or is gone.
            LinkError::Unsent | LinkError::Lost(_) | LinkError::Silent | LinkError::Unanswered => {
                Cut::Cancelled
            }
        };
        if cut != Cut::Cancelled {
            inbox.meters.frames_refused.add(1);
            tracing::debug!(peer = %self.peer.address, ?error, "frame refused");
        }
        reader.cut(cut);
        None
    }
}

fn peer_chain(connection: &Connection) -> Option<Vec<CertificateDer<'static>>> {
    connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok().map(|c| *c)
}

#[cfg(test)]
mod tests;
