//! Bytes of a peer: the frame around a message, and the messages in it.

// Its own tests use all of it.
#[cfg_attr(not(test), expect(dead_code, reason = "the property needs a part of a private module"))]
#[path = "../../../transport/src/frame.rs"]
mod envelope;

use bytes::Bytes;
use envelope::{Decoder, Frame};
use prost::Message;
use std::fmt::Debug;
use tracemesh::frame::{self, Done, Explain, ExplainReply, Hold, HoldReply};

/// A message that is understood is understood in the same way when it is written again.
fn assert_same_again<M: Message + Default + PartialEq + Debug>(payload: &Bytes) {
    if let Ok(message) = frame::decode::<M>(payload.clone()) {
        assert_eq!(frame::decode::<M>(frame::encode(&message)).expect("it was written"), message);
    }
}

/// The property of any bytes.
pub fn check(bytes: &[u8]) {
    let by_datagram = Frame::decode(Bytes::copy_from_slice(bytes));
    let mut decoder = Decoder::default();
    let pieces = bytes.chunks(7).try_for_each(|piece| {
        let taken = decoder.push_header(piece)?;
        decoder.push_payload(&piece[taken..])
    });
    assert_eq!(pieces.and_then(|()| decoder.finish()), by_datagram);
    let Ok(frame) = by_datagram else { return };
    match frame.kind {
        frame::kind::HOLD => {
            assert_same_again::<Hold>(&frame.payload);
            assert_same_again::<HoldReply>(&frame.payload);
        }
        frame::kind::DONE => assert_same_again::<Done>(&frame.payload),
        frame::kind::EXPLAIN => {
            assert_same_again::<Explain>(&frame.payload);
            assert_same_again::<ExplainReply>(&frame.payload);
        }
        _ => {}
    }
}
