//! The bytes of one request: collected as they come, and then decompressed in one go.
//!
//! The invariant: memory follows what really came or was really produced, and neither limit can be
//! passed: not the size of one request before or after decompression, so a bomb stops there, nor
//! the bytes in flight, which count the compressed form until it is not needed any more. A decoder
//! and its window exist while a thread decompresses, never while a client is waited for: whatever
//! clients say of windows and however slowly they send, there are no more of them than threads that
//! serve and [`super::intake::ASIDE_MAX`]. That is why they are not counted.

use super::Refusal;
use super::intake::{Charge, Received};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use libdeflater::Decompressor;
use memchr::memmem;
use std::io::{self, Read};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// 16 MiB, what RFC 8878 asks decoders to support at least twice over.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;
/// How each member of gzip data begins.
const GZIP_MEMBER: &[u8] = b"\x1f\x8b\x08";
/// A byte of deflated data tells of 1032 at most.
const DEFLATE_MAX: usize = 1032;
/// First allocation for a request whose length is not known.
const FIRST_BYTES: usize = 64 << 10;
/// First allocation at most, whatever length was announced: four requests of 512 spans.
const BELIEVED_BYTES_MAX: usize = 1 << 20;
/// A first piece from this size on is not copied when it is all: it may keep a buffer of the HTTP
/// library alive that is larger than itself, but not by much.
const WHOLE_MIN: usize = 64 << 10;
/// First allocation for what zstd decompresses, in times of what came: spans are that repetitive.
const EXPANSION: usize = 8;
/// Compressed requests up to this size are decompressed on the spot, in a millisecond or two.
const INLINE_MAX: usize = 256 << 10;

/// How the bytes of a request are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// What servers announce that they understand.
    pub(super) const ACCEPTED: &'static str = "gzip, zstd, identity";

    /// Parses `grpc-encoding` or `content-encoding`.
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        let is = |other: &str| name.trim_ascii().eq_ignore_ascii_case(other.as_bytes());
        if is("identity") || is("") {
            Some(Self::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("zstd") {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// Bytes of a request, as they came or decompressed.
struct Output {
    bytes: Vec<u8>,
    bytes_max: usize,
    /// What they are, for messages.
    what: &'static str,
    charge: Charge,
}

impl Output {
    /// Makes room for `length` bytes, as far as that can be believed.
    fn expect(&mut self, length: usize) {
        self.bytes.reserve_exact(length.min(BELIEVED_BYTES_MAX).min(self.bytes_max));
    }

    /// Makes room for at least `length` bytes more.
    fn make_room(&mut self, length: usize) {
        let needed = self.bytes.len() + length;
        if needed > self.bytes.capacity() {
            // Doubling, but never to more than a byte over what a request may have, by which it is
            // known to be too large.
            let most = self.bytes_max.saturating_add(1);
            let capacity = (2 * self.bytes.capacity()).max(FIRST_BYTES).min(most).max(needed);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
    }

    /// Whether so many more bytes are within all limits; if so, they are charged.
    fn allow(&mut self, length: usize, all: usize) -> Result<(), Refusal> {
        if all > self.bytes_max {
            return Err(too_large(self.bytes_max, self.what));
        }
        self.charge.add(length)
    }

    fn push(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.allow(data.len(), self.bytes.len() + data.len())?;
        self.make_room(data.len());
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Has a decoder append to the bytes; what it appended is charged. That is no more than there
    /// were before, or what [`Self::expect`] made room for.
    fn fill<T>(
        &mut self,
        decode: impl FnOnce(&mut Vec<u8>) -> Result<T, Refusal>,
    ) -> Result<(T, usize), Refusal> {
        self.make_room(1);
        let before = self.bytes.len();
        let decoded = decode(&mut self.bytes)?;
        let added = self.bytes.len() - before;
        self.allow(added, self.bytes.len())?;
        Ok((decoded, added))
    }
}

/// Collects one request.
pub(super) struct Collector {
    encoding: Encoding,
    announced: usize,
    /// A large first piece, as long as it may be all there is: that is not copied.
    whole: Bytes,
    /// Where pieces come together.
    encoded: Output,
}

impl Collector {
    pub(super) fn new(encoding: Encoding, bytes_max: usize, charge: Charge) -> Self {
        let encoded = Output { bytes: Vec::new(), bytes_max, what: "bytes", charge };
        Self { encoding, announced: 0, whole: Bytes::new(), encoded }
    }

    /// Announces how many bytes will be pushed: checks the limit, and sees to it that there is room
    /// for what one may believe before it came.
    pub(super) fn expect(&mut self, length: usize) -> Result<(), Refusal> {
        if length > self.encoded.bytes_max {
            return Err(too_large(self.encoded.bytes_max, self.encoded.what));
        }
        self.announced = length;
        Ok(())
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, data: Bytes) -> Result<(), Refusal> {
        if !self.encoded.bytes.is_empty() {
            return self.encoded.push(&data);
        }
        if self.whole.is_empty() && data.len() >= WHOLE_MIN {
            self.encoded.allow(data.len(), data.len())?;
            self.whole = data;
            return Ok(());
        }
        self.encoded.expect(self.announced);
        self.encoded.make_room(self.whole.len());
        self.encoded.bytes.extend_from_slice(&std::mem::take(&mut self.whole));
        self.encoded.push(&data)
    }

    /// The whole request; no bytes at all are an empty request in every encoding.
    pub(super) async fn finish(self) -> Result<Received, Refusal> {
        let Self { encoding, whole, encoded, .. } = self;
        let Output { bytes, bytes_max, charge, .. } = encoded;
        let bytes = if whole.is_empty() { Bytes::from(bytes) } else { whole };
        let decompress = match encoding {
            _ if bytes.is_empty() => return Ok(Received { bytes, charge }),
            Encoding::Identity => return Ok(Received { bytes, charge }),
            Encoding::Gzip => gunzip,
            Encoding::Zstd => unzstd,
        };
        let what = "bytes after decompression";
        let output = Output { bytes: Vec::new(), bytes_max, what, charge };
        if bytes.len() <= INLINE_MAX {
            return decompressed(&bytes, output, decompress);
        }
        let in_flight = output.charge.in_flight();
        in_flight.aside(move || decompressed(&bytes, output, decompress)).await
    }
}

fn decompressed(
    encoded: &[u8],
    mut output: Output,
    decompress: fn(&[u8], &mut Output) -> Result<(), Refusal>,
) -> Result<Received, Refusal> {
    decompress(encoded, &mut output)?;
    output.charge.give_back(encoded.len());
    Ok(Received { bytes: Bytes::from(output.bytes), charge: output.charge })
}

fn gunzip(encoded: &[u8], output: &mut Output) -> Result<(), Refusal> {
    match gunzip_at_once(encoded, output)? {
        true => Ok(()),
        false => gunzip_in_steps(encoded, output),
    }
}

/// Decompresses what clients send, one member that says its length, in half the time. `false`: it
/// is anything else, and nothing was done.
fn gunzip_at_once(encoded: &[u8], output: &mut Output) -> Result<bool, Refusal> {
    let Some(length) = encoded.last_chunk().map(|last| u32::from_le_bytes(*last) as usize) else {
        return Ok(false);
    };
    let is_believed = length <= output.bytes_max.min(encoded.len().saturating_mul(DEFLATE_MAX));
    // It would stop after the first of several members, without a word.
    if !is_believed || memmem::find(encoded, GZIP_MEMBER) != memmem::rfind(encoded, GZIP_MEMBER) {
        return Ok(false);
    }
    output.charge.add(length)?;
    output.bytes.resize(length, 0);
    let done = Decompressor::new().gzip_decompress(encoded, &mut output.bytes) == Ok(length);
    if !done {
        output.charge.give_back(length);
        output.bytes.clear();
    }
    Ok(done)
}

/// Decompresses any number of members of any length, or tells what is wrong with them.
fn gunzip_in_steps(encoded: &[u8], output: &mut Output) -> Result<(), Refusal> {
    let mut decoder = MultiGzDecoder::new(encoded);
    loop {
        let step = |target: &mut Vec<u8>| {
            let room = (target.capacity() - target.len()) as u64;
            let step = decoder.by_ref().take(room).read_to_end(target);
            step.map_err(|error| damaged("gzip", &error))
        };
        if output.fill(step)?.1 == 0 {
            return Ok(());
        }
    }
}

/// One frame after the other.
fn unzstd(encoded: &[u8], output: &mut Output) -> Result<(), Refusal> {
    let decoder = ZstdDecoder::new().and_then(|mut decoder| {
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
        Ok(decoder)
    });
    let Ok(mut decoder) = decoder else {
        return Err(output.charge.later("no memory to decompress"));
    };
    output.expect(encoded.len().saturating_mul(EXPANSION).max(FIRST_BYTES));
    let mut input = InBuffer::around(encoded);
    loop {
        let read = input.pos();
        let step = |target: &mut Vec<u8>| {
            let length = target.len();
            let step = decoder.run(&mut input, &mut OutBuffer::around_pos(target, length));
            step.map_err(|error| damaged("zstd", &error))
        };
        // Zero between two frames.
        let (missing, added) = output.fill(step)?;
        if input.pos() == encoded.len() && missing == 0 {
            return Ok(());
        }
        if added == 0 && input.pos() == read {
            return Err(damaged("zstd", &io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn damaged(encoding: &str, error: &io::Error) -> Refusal {
    Refusal::Malformed(format!("the {encoding} data is damaged: {error}"))
}

fn too_large(bytes_max: usize, what: &str) -> Refusal {
    Refusal::TooLarge(format!("the request has more than {bytes_max} {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::intake::InFlight;
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};
    use std::io::Write;
    use tokio::task::spawn_blocking;

    const LIMIT: usize = 1 << 20;
    const ENCODINGS: [Encoding; 3] = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd];

    fn collector(encoding: Encoding) -> Collector {
        Collector::new(encoding, LIMIT, InFlight::new(2 * LIMIT).charge())
    }

    /// The end of a request that is decompressed on the spot.
    fn finish(collector: Collector) -> Result<Received, Refusal> {
        collector.finish().now_or_never().expect("nothing is waited for")
    }

    fn encode(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => bytes.to_vec(),
            Encoding::Gzip => {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(bytes).unwrap();
                gzip.finish().unwrap()
            }
            Encoding::Zstd => zstd::encode_all(bytes, 0).unwrap(),
        }
    }

    #[test]
    fn bomb_stops_at_the_limit_with_flat_memory() {
        let bomb = vec![0; 8 * LIMIT];
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let mut output = collector(Encoding::Identity).encoded;
            let decompress = if encoding == Encoding::Gzip { gunzip } else { unzstd };
            let refused = decompress(&encode(encoding, &bomb), &mut output);
            assert!(matches!(refused, Err(Refusal::TooLarge(_))), "{encoding:?}");
            assert!(output.bytes.capacity() <= LIMIT + 1, "{}", output.bytes.capacity());
        }
    }

    #[test]
    fn several_members_and_frames_are_one_request() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let mut collector = collector(encoding);
            collector.push(encode(encoding, b"one ").into()).unwrap();
            collector.push(encode(encoding, b"two").into()).unwrap();
            assert_eq!(finish(collector).unwrap().bytes, "one two");
        }
    }

    #[test]
    fn bytes_that_look_like_another_member_are_bytes() {
        let bytes = GZIP_MEMBER.repeat(100);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        gzip.write_all(&bytes).unwrap();
        let mut collector = collector(Encoding::Gzip);
        collector.push(gzip.finish().unwrap().into()).unwrap();
        assert_eq!(finish(collector).unwrap().bytes, bytes);
    }

    #[test]
    fn large_piece_is_copied_only_when_another_one_comes() {
        let first = Bytes::from(vec![1; WHOLE_MIN]);
        for last in [&b""[..], b"end"] {
            let in_flight = InFlight::new(LIMIT);
            let mut collector = Collector::new(Encoding::Identity, LIMIT, in_flight.charge());
            collector.push(first.clone()).unwrap();
            if !last.is_empty() {
                collector.push(last.into()).unwrap();
            }
            assert_eq!(in_flight.bytes(), WHOLE_MIN + last.len());
            let received = finish(collector).unwrap();
            assert_eq!(received.bytes, [&first, last].concat());
            assert_eq!(received.bytes.as_ptr() == first.as_ptr(), last.is_empty());
        }
        let mut small = Collector::new(Encoding::Identity, LIMIT, InFlight::new(LIMIT).charge());
        small.push(first.clone()).unwrap();
        assert!(small.push(vec![2; LIMIT - WHOLE_MIN + 1].into()).is_err());
    }

    #[test]
    fn compressed_request_is_charged_as_it_came_until_it_is_complete() {
        let bytes = b"span".repeat(10_000);
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let encoded = encode(encoding, &bytes);
            let in_flight = InFlight::new(LIMIT);
            let mut collector = Collector::new(encoding, LIMIT, in_flight.charge());
            let (first, last) = encoded.split_at(encoded.len() - 1);
            collector.push(Bytes::copy_from_slice(first)).unwrap();
            assert_eq!(in_flight.bytes(), first.len());
            collector.push(Bytes::copy_from_slice(last)).unwrap();
            let received = finish(collector).unwrap();
            assert_eq!(in_flight.bytes(), bytes.len());
            drop(received);
            assert_eq!(in_flight.bytes(), 0);
        }
    }

    #[test]
    fn large_request_is_decompressed_aside() {
        let mut bytes = vec![0; 2 * INLINE_MAX];
        StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().unwrap();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let mut collector = collector(encoding);
            collector.push(encode(encoding, &bytes).into()).unwrap();
            let (free, wait) = std::sync::mpsc::channel::<()>();
            let received = runtime.block_on(async {
                // Or it might be done before anybody looks.
                let busy = spawn_blocking(move || wait.recv());
                let mut finished = Box::pin(collector.finish());
                assert!((&mut finished).now_or_never().is_none(), "another thread does it");
                drop(free);
                busy.await.unwrap().unwrap_err();
                finished.await
            });
            assert_eq!(received.unwrap().bytes, bytes);
        }
    }

    #[test]
    fn announced_length_is_not_believed_beyond_a_bound() {
        for encoding in ENCODINGS {
            let charge = InFlight::new(LIMIT).charge();
            let mut collector = Collector::new(encoding, usize::MAX, charge);
            collector.expect(usize::MAX).unwrap();
            collector.push(Bytes::from_static(b"1")).unwrap();
            assert!(collector.encoded.bytes.capacity() <= BELIEVED_BYTES_MAX);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_of_any_size_give_the_same_bytes(
            bytes in prop::collection::vec(any::<u8>(), 0..1000),
            repeated in 1..20_usize,
            piece in 1..700_usize,
        ) {
            let bytes = bytes.repeat(repeated);
            for encoding in ENCODINGS {
                let in_flight = InFlight::new(LIMIT);
                let mut collector = Collector::new(encoding, LIMIT, in_flight.charge());
                for data in encode(encoding, &bytes).chunks(piece) {
                    collector.push(Bytes::copy_from_slice(data)).unwrap();
                }
                let received = finish(collector).unwrap();
                prop_assert_eq!(&received.bytes, &bytes);
                prop_assert_eq!(in_flight.bytes(), bytes.len());
                drop(received);
                prop_assert_eq!(in_flight.bytes(), 0);
            }
        }

        #[test]
        fn damaged_data_is_refused_and_never_taken_for_another_request(
            bytes in prop::collection::vec(any::<u8>(), 100..1000),
            at in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
            cut in any::<prop::sample::Index>(),
        ) {
            for encoding in [Encoding::Gzip, Encoding::Zstd] {
                let mut encoded = encode(encoding, &bytes);
                encoded.truncate(cut.index(encoded.len()));
                let mut short = collector(encoding);
                let taken = short
                    .push(Bytes::copy_from_slice(&encoded))
                    .and_then(|()| finish(short));
                prop_assert!(taken.is_err() || encoded.is_empty());

                let mut encoded = encode(encoding, &bytes);
                let at = at.index(encoded.len());
                encoded[at] ^= flip;
                let mut odd = collector(encoding);
                let _ = odd.push(encoded.into()).and_then(|()| finish(odd));
            }
        }
    }
}
