//! One frame over one stream.
//!
//! The invariants: a stream that did not carry a whole frame ends in a reset, and never looks like
//! one that did, whatever drops the future that wrote it; and memory for a frame is taken from the
//! connection's budget before it is allocated. When the budget is empty the frame is refused, not
//! kept waiting: it would hold a part of the connection's window, and those in front of it may need
//! that to get on. What the frame means, and how long one waits for it, is the link's business.

use crate::endpoint::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use crate::frame::{Decoder, Frame, FrameError};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Why a stream was cut, as the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The receiver has too much from this peer already.
    Busy = 1,
    /// The node dropped the call without an answer.
    Unanswered = 2,
    /// What came is no frame.
    Malformed = 3,
    /// The sender does not want it any more.
    Cancelled = 4,
}

impl Cut {
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// How a call on a link failed.
#[derive(Debug)]
pub(crate) enum LinkError {
    /// The connection was over before anything was sent.
    Unsent,
    /// The connection ended meanwhile.
    Lost(String),
    /// Nothing moved for as long as the caller allows.
    Silent,
    /// The peer has too much from us already.
    Busy,
    /// The peer's node dropped the call.
    Unanswered,
    /// The peer did not understand the frame, or we not the answer.
    Malformed(String),
}

/// Writes one frame; unless it got to the end, its stream is reset.
pub(crate) struct Writer {
    pub(crate) stream: SendStream,
    is_finished: bool,
}

impl Writer {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, is_finished: false }
    }

    pub(crate) async fn write(
        &mut self,
        frame: &Frame,
        silence_max: Duration,
    ) -> Result<(), LinkError> {
        let header = Bytes::copy_from_slice(&frame.header()?);
        let chunks = [header, frame.payload.clone(), frame.rest.clone()];
        let mut chunks: Vec<_> = chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect();
        let mut left = &mut chunks[..];
        while !left.is_empty() {
            let written = timeout(silence_max, self.stream.write_chunks(left)).await;
            let written = written.map_err(|_| LinkError::Silent)??;
            left = &mut left[written.chunks..];
        }
        // An error means that the peer has stopped the stream, which its answer says as well.
        let _ = self.stream.finish();
        self.is_finished = true;
        Ok(())
    }

    /// From now on, dropping it resets the stream although the whole frame was handed to it: what
    /// was not sent yet never is.
    pub(crate) fn cut_on_drop(&mut self) {
        self.is_finished = false;
    }

    /// Dropping it does nothing any more.
    pub(crate) fn keep(&mut self) {
        self.is_finished = true;
    }

    pub(crate) fn cut(&mut self, why: Cut) {
        self.is_finished = true;
        // An error means that the stream is over already.
        let _ = self.stream.reset(why.code());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            self.cut(Cut::Cancelled);
        }
    }
}

pub(crate) enum Step {
    More,
    End,
}

/// Reads one frame; its memory is accounted before it is allocated.
pub(crate) struct Reader {
    stream: RecvStream,
    decoder: Decoder,
    budget: Arc<Semaphore>,
    memory: Option<OwnedSemaphorePermit>,
    /// Why it was cut, if it was.
    pub(crate) cut: Option<Cut>,
}

impl Reader {
    pub(crate) fn new(stream: RecvStream, budget: Arc<Semaphore>) -> Self {
        Self { stream, decoder: Decoder::default(), budget, memory: None, cut: None }
    }

    pub(crate) async fn read(
        &mut self,
    ) -> Result<(Frame, Option<OwnedSemaphorePermit>), LinkError> {
        while let Step::More = self.step().await? {}
        self.finish()
    }

    /// Takes the next piece of the stream. Cancel-safe.
    pub(crate) async fn step(&mut self) -> Result<Step, LinkError> {
        let Some(chunk) = self.stream.read_chunk(usize::MAX, true).await? else {
            return Ok(Step::End);
        };
        let taken = self.decoder.push_header(&chunk.bytes)?;
        if self.memory.is_none()
            && let Some(length) = self.decoder.length()
        {
            let permits = u32::try_from(length).unwrap_or(u32::MAX);
            let memory = self.budget.clone().try_acquire_many_owned(permits);
            self.memory = Some(memory.map_err(|_| LinkError::Busy)?);
        }
        self.decoder.push_payload(&chunk.bytes[taken..])?;
        Ok(Step::More)
    }

    pub(crate) fn finish(&mut self) -> Result<(Frame, Option<OwnedSemaphorePermit>), LinkError> {
        let frame = std::mem::take(&mut self.decoder).finish()?;
        Ok((frame, self.memory.take()))
    }

    pub(crate) fn cut(&mut self, why: Cut) {
        self.cut = Some(why);
        // An error means that the stream is over already.
        let _ = self.stream.stop(why.code());
    }
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<VarInt> for LinkError {
    fn from(code: VarInt) -> Self {
        match code {
            code if code == Cut::Busy.code() => Self::Busy,
            code if code == Cut::Unanswered.code() => Self::Unanswered,
            code if code == Cut::Malformed.code() => Self::Malformed("the peer says so".into()),
            _ => Self::Lost("the peer gave the call up".into()),
        }
    }
}

impl From<WriteError> for LinkError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => code.into(),
            WriteError::ConnectionLost(why) => Self::Lost(why.to_string()),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<ReadError> for LinkError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => code.into(),
            ReadError::ConnectionLost(why) => Self::Lost(why.to_string()),
            other => Self::Lost(other.to_string()),
        }
    }
}
