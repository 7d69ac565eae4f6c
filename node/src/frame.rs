//! What nodes say to each other about spans: Hold, its reply, and Done (PROTOCOL.md, Messages), and
//! what they ask each other for people who want to know where a trace is.
//!
//! The messages are protobuf, so that a release can add a field that the one before ignores. The
//! invariant: whatever bytes arrive, decoding ends in a message or in an error, and a trace id or a
//! name of the wrong size is an error, never a guess. Transport sees opaque bytes; nothing here
//! decides anything.

use crate::spans::TraceId;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::time::Duration;
use tracemesh_membership::Incarnation;

/// Frame kinds of this release.
pub mod kind {
    /// A gossip message, opaque to everything but membership.
    pub const GOSSIP: u8 = 1;
    /// A [`Hold`](super::Hold), and its [`HoldReply`](super::HoldReply).
    pub const HOLD: u8 = 2;
    /// A [`Done`](super::Done); it has no reply.
    pub const DONE: u8 = 3;
    /// An [`Explain`](super::Explain), and its [`ExplainReply`](super::ExplainReply).
    pub const EXPLAIN: u8 = 4;
}

/// The most bytes of spans in one Hold (`FRAME_MAX`); a single span over it is refused at the edge.
pub const FRAME_SPANS_BYTES_MAX: usize = 4 << 20;

/// The tag of [`Hold::request`].
const REQUEST_TAG: u32 = 6;

/// Why a frame could not be understood. The sender is of another release or broken; asking again
/// does not help.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No protobuf of the expected message.
    #[error("frame does not decode")]
    Decode(#[from] prost::DecodeError),
    /// A trace id that has not 16 bytes.
    #[error("trace id of {0} bytes in a frame")]
    TraceId(usize),
}

/// Who a Hold comes from: an entry node that has just received the spans, or a holder that brings
/// them home or asks about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Origin {
    /// Straight from a client.
    Entry = 0,
    /// From a node that held them already.
    Placing = 1,
}

/// What was decided about a trace. The order is that of merging: keep beats sampled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Verdict {
    /// Nothing yet.
    None = 0,
    /// Its spans are not exported.
    SampledOut = 1,
    /// Its spans are exported.
    Keep = 2,
}

/// View and incarnation of a frame's sender.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Sender {
    /// Hash of the sender's view; 0 confirms nothing.
    #[prost(fixed64, tag = "1")]
    pub view_hash: u64,
    /// Generation of the sender's incarnation.
    #[prost(fixed64, tag = "2")]
    pub generation: u64,
    /// Epoch of the sender's incarnation.
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
}

impl Sender {
    /// The sender's incarnation.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { generation: self.generation, epoch: self.epoch }
    }
}

/// Spans to hold, as bytes, as names (span keys), or both.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hold {
    /// The sender's view and incarnation.
    #[prost(message, required, tag = "1")]
    pub sender: Sender,
    /// Where the spans come from.
    #[prost(enumeration = "Origin", tag = "2")]
    pub origin: i32,
    /// Another holder of these spans was routed around (PROTOCOL.md, E3).
    #[prost(bool, tag = "3")]
    pub marked: bool,
    /// How long from now until the traces in `request` are due, in ms.
    #[prost(uint32, tag = "4")]
    pub due_in_ms: u32,
    /// What is to be said of single traces beyond their bytes.
    #[prost(message, repeated, tag = "5")]
    pub traces: Vec<HoldTrace>,
    /// One valid `ExportTraceServiceRequest`; may be empty.
    #[prost(bytes = "bytes", tag = "6")]
    pub request: Bytes,
    /// The ids and kind of each span in `request` are in the first so many bytes of that span; 0
    /// when that is not known. See [`Scan::ids_end`](crate::scan::Scan::ids_end).
    #[prost(uint32, tag = "7")]
    pub ids_end: u32,
}

/// One trace of a [`Hold`]: names of spans, and what is known.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HoldTrace {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub trace_id: Bytes,
    /// How long from now until the trace is due, in ms.
    #[prost(uint32, tag = "2")]
    pub due_in_ms: u32,
    /// Span keys held by the sender, also where their bytes are in the frame.
    #[prost(fixed64, repeated, tag = "3")]
    pub names: Vec<u64>,
    /// Span keys that the sender knows as done.
    #[prost(fixed64, repeated, tag = "4")]
    pub done: Vec<u64>,
    /// The verdict that the sender knows.
    #[prost(enumeration = "Verdict", tag = "5")]
    pub verdict: i32,
    /// Hashes of the lives of owners that vanished while the trace was due.
    #[prost(fixed64, repeated, tag = "6")]
    pub vanished: Vec<u64>,
}

impl HoldTrace {
    /// About what it takes in a frame.
    pub fn bytes(&self) -> usize {
        const REST: usize = 40;
        REST + size_of::<u64>() * (self.names.len() + self.done.len())
    }
}

/// The answer to a [`Hold`], sent once everything in it is stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HoldReply {
    /// The receiver's view and incarnation.
    #[prost(message, required, tag = "1")]
    pub sender: Sender,
    /// Nothing was stored: the receiver's memory budget does not allow it.
    #[prost(bool, tag = "2")]
    pub full: bool,
    /// Only traces about which there is something to say.
    #[prost(message, repeated, tag = "3")]
    pub traces: Vec<ReplyTrace>,
    /// Bytes of hand-over a second that the receiver takes from this sender; 0 says nothing.
    #[prost(uint64, tag = "4")]
    pub grant: u64,
}

/// One trace of a [`HoldReply`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplyTrace {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub trace_id: Bytes,
    /// Named span keys that the receiver neither holds nor knows as done.
    #[prost(fixed64, repeated, tag = "2")]
    pub wanted: Vec<u64>,
    /// Span keys that the receiver knows as done.
    #[prost(fixed64, repeated, tag = "3")]
    pub done: Vec<u64>,
    /// The verdict that the receiver knows.
    #[prost(enumeration = "Verdict", tag = "4")]
    pub verdict: i32,
}

/// Traces of which spans became done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {
    /// The sender's view and incarnation.
    #[prost(message, required, tag = "1")]
    pub sender: Sender,
    /// The traces.
    #[prost(message, repeated, tag = "2")]
    pub traces: Vec<DoneTrace>,
}

/// One trace of a [`Done`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DoneTrace {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub trace_id: Bytes,
    /// What was decided.
    #[prost(enumeration = "Verdict", tag = "2")]
    pub verdict: i32,
    /// Wrapping sum of all span keys that are done at the sender.
    #[prost(fixed64, tag = "3")]
    pub sum: u64,
}

/// What do you know of this trace?
#[derive(Clone, PartialEq, prost::Message)]
pub struct Explain {
    /// The sender's view and incarnation.
    #[prost(message, required, tag = "1")]
    pub sender: Sender,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub trace_id: Bytes,
}

/// The answer to an [`Explain`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExplainReply {
    /// The receiver's view and incarnation.
    #[prost(message, required, tag = "1")]
    pub sender: Sender,
    /// Absent when the receiver neither holds nor remembers the trace.
    #[prost(message, optional, tag = "2")]
    pub told: Option<Told>,
}

/// What one node knows of one trace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Told {
    /// Spans held, without those in an export attempt.
    #[prost(uint32, tag = "1")]
    pub held: u32,
    /// Spans held, in an export attempt.
    #[prost(uint32, tag = "2")]
    pub sending: u32,
    /// Spans that are done.
    #[prost(uint32, tag = "3")]
    pub done: u32,
    /// What was decided.
    #[prost(enumeration = "Verdict", tag = "4")]
    pub verdict: i32,
    /// How long from now until the trace is due, in ms; negative when it was. Absent when nothing
    /// is held.
    #[prost(sint64, optional, tag = "5")]
    pub due_in_ms: Option<i64>,
    /// For how long something of the trace is held, in ms, to the second. Absent when nothing is.
    #[prost(uint32, optional, tag = "6")]
    pub held_for_ms: Option<u32>,
    /// Another holder may lack something.
    #[prost(bool, tag = "7")]
    pub unplaced: bool,
    /// How often its spans or its verdict changed.
    #[prost(uint32, tag = "8")]
    pub version: u32,
    /// How often the owner was asked about it since.
    #[prost(uint32, tag = "9")]
    pub asked: u32,
}

/// Reads a trace id of a frame.
pub fn trace_id(bytes: &Bytes) -> Result<TraceId, FrameError> {
    let id = <[u8; 16]>::try_from(bytes.as_ref()).map_err(|_| FrameError::TraceId(bytes.len()))?;
    Ok(TraceId(id))
}

/// A trace id as a frame carries it.
pub fn trace_id_bytes(id: TraceId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

/// A duration as frames carry it: whole milliseconds, saturating at 49 days.
pub fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Decodes a message of this module.
pub fn decode<M: Message + Default>(payload: Bytes) -> Result<M, FrameError> {
    Ok(M::decode(payload)?)
}

/// Encodes a Hold as what comes before the bytes of its request, and these, which are not copied.
pub fn encode_hold(mut hold: Hold) -> (Bytes, Bytes) {
    let request = std::mem::take(&mut hold.request);
    let mut head = hold.encode_to_vec();
    if !request.is_empty() {
        encode_key(REQUEST_TAG, WireType::LengthDelimited, &mut head);
        encode_varint(request.len() as u64, &mut head);
    }
    (head.into(), request)
}

/// Encodes a message of this module.
pub fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::fmt::Debug;

    #[test]
    fn hold_in_two_pieces_is_the_same_message() {
        let trace = HoldTrace { names: vec![7, 8], ..HoldTrace::default() };
        let hold = Hold { due_in_ms: 5, traces: vec![trace], ids_end: 60, ..Hold::default() };
        for request in [Bytes::new(), Bytes::from(vec![9; 1000])] {
            let hold = Hold { request: request.clone(), ..hold.clone() };
            let (head, rest) = encode_hold(hold.clone());
            assert_eq!(rest, request);
            assert_eq!(decode::<Hold>([head, rest].concat().into()).unwrap(), hold);
        }
    }

    /// What is understood is understood in the same way when it is written again.
    #[track_caller]
    fn assert_same_again<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
        if let Ok(message) = decode::<M>(Bytes::copy_from_slice(bytes)) {
            assert_eq!(decode::<M>(encode(&message)).unwrap(), message);
        }
    }

    fn assert_all_same_again(bytes: &[u8]) {
        assert_same_again::<Hold>(bytes);
        assert_same_again::<HoldReply>(bytes);
        assert_same_again::<Done>(bytes);
        assert_same_again::<Explain>(bytes);
        assert_same_again::<ExplainReply>(bytes);
    }

    fn hold(keys: Vec<u64>, request: Vec<u8>) -> Bytes {
        let traces = vec![HoldTrace { names: keys.clone(), done: keys, ..HoldTrace::default() }];
        encode(&Hold { traces, request: request.into(), due_in_ms: 6000, ..Hold::default() })
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            assert_all_same_again(&bytes);
        }

        #[test]
        fn damaged_message_is_another_one_or_an_error(
            keys in vec(any::<u64>(), 0..4),
            request in vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = hold(keys, request).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            assert_all_same_again(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            assert_all_same_again(&bytes);
        }

        #[test]
        fn trace_id_of_another_size_is_an_error(bytes in vec(any::<u8>(), 0..40)) {
            let bytes = Bytes::from(bytes);
            match trace_id(&bytes) {
                Ok(id) => prop_assert_eq!(trace_id_bytes(id), bytes),
                Err(_) => prop_assert!(bytes.len() != 16),
            }
        }
    }
}
