//! The one layout that travels between nodes: a frame of `kind`, `flags` and opaque bytes.
//!
//! ```text
//! kind: u8 | flags: u8 | length: u32, big endian | length bytes
//! ```
//!
//! A stream carries exactly one frame each way, a datagram exactly one frame. What the kind means
//! is the caller's business; this module never looks into the payload. The invariant: no byte is
//! allocated for a payload before its announced length was compared with [`FRAME_BYTES_MAX`], so a
//! peer cannot make us reserve more than a frame. Pure: no I/O, no clock.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of a frame's header: kind, flags, length.
pub(crate) const HEADER_BYTES: usize = 6;

/// The largest payload of a frame: 4 MiB of spans (`FRAME_MAX` of the holding protocol) and 64 KiB
/// for what the sender writes around them.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;

/// One message to or from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is; chosen by the caller.
    pub kind: u8,
    /// Chosen by the caller; room for what a later release says without a new kind.
    pub flags: u8,
    /// With `rest` at most [`FRAME_BYTES_MAX`] bytes.
    pub payload: Bytes,
    /// Follows `payload` in the same frame, so that a sender need not copy what is large behind
    /// what it says of it. Empty in a frame that was received.
    pub rest: Bytes,
}

/// Why received bytes are no frame. The peer is of another release or broken; retrying is no use.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// The announced length is over [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is over the maximum of {FRAME_BYTES_MAX}")]
    TooLarge(usize),
    /// The bytes ended inside the header or the payload.
    #[error("the frame ends {0} bytes early")]
    Truncated(usize),
    /// More bytes came than the header announced.
    #[error("bytes follow the end of the frame")]
    Trailing,
}

impl Frame {
    /// A frame without flags.
    pub fn new(kind: u8, payload: Bytes) -> Self {
        Self { kind, flags: 0, payload, rest: Bytes::new() }
    }

    /// Bytes behind the header.
    pub(crate) fn length(&self) -> usize {
        self.payload.len() + self.rest.len()
    }

    /// The header's bytes, or the error that says that the payload is too large to send.
    pub(crate) fn header(&self) -> Result<[u8; HEADER_BYTES], FrameError> {
        let too_large = FrameError::TooLarge(self.length());
        let length = u32::try_from(self.length()).map_err(|_| too_large)?;
        if self.length() > FRAME_BYTES_MAX {
            return Err(too_large);
        }
        let [a, b, c, d] = length.to_be_bytes();
        Ok([self.kind, self.flags, a, b, c, d])
    }

    /// Header and payload in one buffer, for a datagram.
    pub(crate) fn encode(&self) -> Result<Bytes, FrameError> {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.length());
        bytes.put_slice(&self.header()?);
        bytes.put_slice(&self.payload);
        bytes.put_slice(&self.rest);
        Ok(bytes.freeze())
    }

    /// The frame that `datagram` is, sharing its memory.
    pub(crate) fn decode(mut datagram: Bytes) -> Result<Self, FrameError> {
        let mut decoder = Decoder::default();
        let body_at = decoder.push_header(&datagram)?;
        let Some(header) = decoder.header else {
            return Err(FrameError::Truncated(HEADER_BYTES - datagram.len()));
        };
        let payload = datagram.split_off(body_at);
        match payload.len() {
            n if n < header.length => Err(FrameError::Truncated(header.length - n)),
            n if n > header.length => Err(FrameError::Trailing),
            _ => Ok(Self { flags: header.flags, ..Self::new(header.kind, payload) }),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    flags: u8,
    length: usize,
}

/// Collects a frame from the pieces in which a stream delivers it.
///
/// Call [`Decoder::push`] for each piece and [`Decoder::finish`] at the end of the stream. Between
/// the piece that completes the header and the next one, [`Decoder::length`] says what the frame
/// is going to take.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    head: [u8; HEADER_BYTES],
    head_len: usize,
    header: Option<Header>,
    payload: BytesMut,
}

impl Decoder {
    /// The payload's announced length, once the header is complete.
    pub(crate) fn length(&self) -> Option<usize> {
        self.header.map(|header| header.length)
    }

    /// Takes what belongs to the header; returns how many bytes of `piece` that were.
    pub(crate) fn push_header(&mut self, piece: &[u8]) -> Result<usize, FrameError> {
        if self.header.is_some() {
            return Ok(0);
        }
        let taken = piece.len().min(HEADER_BYTES - self.head_len);
        self.head[self.head_len..self.head_len + taken].copy_from_slice(&piece[..taken]);
        self.head_len += taken;
        if self.head_len == HEADER_BYTES {
            let [kind, flags, a, b, c, d] = self.head;
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            if length > FRAME_BYTES_MAX {
                return Err(FrameError::TooLarge(length));
            }
            self.header = Some(Header { kind, flags, length });
        }
        Ok(taken)
    }

    /// Takes the bytes of `piece` that follow the header.
    pub(crate) fn push_payload(&mut self, piece: &[u8]) -> Result<(), FrameError> {
        let length = self.length().unwrap_or(0);
        if piece.len() > length - self.payload.len() {
            return Err(FrameError::Trailing);
        }
        if self.payload.capacity() == 0 {
            self.payload.reserve(length);
        }
        self.payload.put_slice(piece);
        Ok(())
    }

    /// The frame, at the end of the stream.
    pub(crate) fn finish(self) -> Result<Frame, FrameError> {
        let Some(header) = self.header else {
            return Err(FrameError::Truncated(HEADER_BYTES - self.head_len));
        };
        match header.length - self.payload.len() {
            0 => {
                let frame = Frame::new(header.kind, self.payload.freeze());
                Ok(Frame { flags: header.flags, ..frame })
            }
            missing => Err(FrameError::Truncated(missing)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn decode_stream<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Frame, FrameError> {
        let mut decoder = Decoder::default();
        for piece in pieces {
            let taken = decoder.push_header(piece)?;
            decoder.push_payload(&piece[taken..])?;
        }
        decoder.finish()
    }

    proptest! {
        #[test]
        fn a_frame_survives_datagram_and_stream_in_any_pieces(
            kind: u8, flags: u8, payload in vec(any::<u8>(), 0..2000), piece in 1usize..300,
        ) {
            let frame = Frame { flags, ..Frame::new(kind, payload.into()) };
            let bytes = frame.encode().unwrap();
            let at = frame.length() / 3;
            let (payload, rest) = (frame.payload.slice(..at), frame.payload.slice(at..));
            let in_parts = Frame { kind, flags, payload, rest };
            prop_assert_eq!(in_parts.encode().unwrap(), &bytes);
            prop_assert_eq!(&decode_stream(bytes.chunks(piece)).unwrap(), &frame);
            prop_assert_eq!(Frame::decode(bytes).unwrap(), frame);
        }

        #[test]
        fn garbage_never_panics_and_both_decoders_agree(
            bytes in vec(any::<u8>(), 0..40), small_length: bool, piece in 1usize..9,
        ) {
            let mut bytes = bytes;
            if small_length && bytes.len() >= HEADER_BYTES {
                bytes[2..5].fill(0);
            }
            let by_stream = decode_stream(bytes.chunks(piece));
            prop_assert_eq!(by_stream, Frame::decode(bytes.into()));
        }

        #[test]
        fn a_truncated_frame_says_how_much_is_missing(
            payload in vec(any::<u8>(), 0..100), cut in 1usize..106,
        ) {
            let bytes = Frame::new(1, payload.into()).encode().unwrap();
            let cut = cut.min(bytes.len());
            let kept = bytes.len() - cut;
            let missing = if kept < HEADER_BYTES { HEADER_BYTES - kept } else { cut };
            let error = Frame::decode(bytes.slice(..kept));
            prop_assert_eq!(error, Err(FrameError::Truncated(missing)));
        }
    }

    #[test]
    fn a_length_over_the_maximum_is_refused_before_anything_is_allocated() {
        let mut decoder = Decoder::default();
        let result = decoder.push_header(&[1, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(result, Err(FrameError::TooLarge(u32::MAX as usize)));
        assert_eq!(decoder.payload.capacity(), 0);
        let frame = Frame::new(1, vec![0; FRAME_BYTES_MAX + 1].into());
        assert_eq!(frame.encode(), Err(FrameError::TooLarge(FRAME_BYTES_MAX + 1)));
    }
}
