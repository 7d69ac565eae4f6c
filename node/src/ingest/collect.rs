//! The bytes of one request, collected while they are decompressed.
//!
//! The invariant: memory follows what was really produced, and neither limit can be passed: not the
//! size of one request before or after decompression, nor the bytes in flight. Data is decompressed
//! piece by piece as it arrives, so a bomb stops at the limit and the compressed form is never
//! kept. A zstd frame cannot ask for a window over [`ZSTD_WINDOW_LOG_MAX`].

use super::Refusal;
use super::intake::{Charge, Received};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use std::io::{self, Write};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder};
use zstd::stream::zio::Writer as ZstdWriter;

/// 16 MiB, what RFC 8878 asks decoders to support at least twice over.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;
/// First allocation for a request whose length is not known.
const FIRST_BYTES: usize = 64 << 10;
/// First allocation at most, whatever length was announced: four requests of 512 spans.
const BELIEVED_BYTES_MAX: usize = 1 << 20;

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

/// Where decompressed bytes go.
struct Output {
    bytes: Vec<u8>,
    bytes_max: usize,
    charge: Charge,
    /// Why no more is taken; set when a limit was met inside a decoder.
    refusal: Option<Refusal>,
}

impl Output {
    fn push(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let length = self.bytes.len() + data.len();
        if length > self.bytes_max {
            return Err(too_large(self.bytes_max, "bytes after decompression"));
        }
        self.charge.add(data.len())?;
        if length > self.bytes.capacity() {
            // Doubling, but never to more than a request may have.
            let capacity = (2 * self.bytes.capacity()).max(FIRST_BYTES).min(self.bytes_max);
            self.bytes.reserve_exact(capacity.max(length) - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl Output {
    /// Why a decoder stopped: a limit that it met here, or data that it cannot read.
    fn failed(&mut self, encoding: &str, error: &io::Error) -> Refusal {
        let damaged = || Refusal::Malformed(format!("the {encoding} data is damaged: {error}"));
        self.refusal.take().unwrap_or_else(damaged)
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.refusal.is_none() {
            self.refusal = self.push(data).err();
        }
        match self.refusal {
            None => Ok(data.len()),
            Some(_) => Err(io::ErrorKind::QuotaExceeded.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Decoder {
    Identity(Output),
    Gzip(Box<MultiGzDecoder<Output>>),
    Zstd(Box<ZstdWriter<Output, ZstdDecoder<'static>>>),
}

/// Collects one request.
pub(super) struct Collector {
    decoder: Decoder,
    /// Bytes that came, as they came.
    encoded_bytes: usize,
    bytes_max: usize,
}

impl Collector {
    pub(super) fn new(
        encoding: Encoding,
        bytes_max: usize,
        charge: Charge,
    ) -> Result<Self, Refusal> {
        let output = Output { bytes: Vec::new(), bytes_max, charge, refusal: None };
        let decoder = match encoding {
            Encoding::Identity => Decoder::Identity(output),
            Encoding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(output))),
            Encoding::Zstd => match zstd_decoder() {
                Ok(zstd) => Decoder::Zstd(Box::new(ZstdWriter::new(output, zstd))),
                Err(_) => return Err(output.charge.later("no memory to decompress")),
            },
        };
        Ok(Self { decoder, encoded_bytes: 0, bytes_max })
    }

    /// Announces how many bytes will be pushed: checks the limit, and makes room for what one may
    /// believe before it came.
    pub(super) fn expect(&mut self, length: usize) -> Result<(), Refusal> {
        if length > self.bytes_max {
            return Err(too_large(self.bytes_max, "bytes"));
        }
        if let Decoder::Identity(output) = &mut self.decoder {
            output.bytes.reserve_exact(length.min(BELIEVED_BYTES_MAX));
        }
        Ok(())
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.encoded_bytes += data.len();
        if self.encoded_bytes > self.bytes_max {
            return Err(too_large(self.bytes_max, "bytes"));
        }
        match &mut self.decoder {
            Decoder::Identity(output) => output.push(data),
            Decoder::Gzip(gzip) => {
                gzip.write_all(data).map_err(|error| gzip.get_mut().failed("gzip", &error))
            }
            Decoder::Zstd(zstd) => {
                zstd.write_all(data).map_err(|error| zstd.writer_mut().failed("zstd", &error))
            }
        }
    }

    /// The whole request; no bytes at all are an empty request in every encoding.
    pub(super) fn finish(self) -> Result<Received, Refusal> {
        let empty = self.encoded_bytes == 0;
        let output = match self.decoder {
            Decoder::Identity(output) => output,
            Decoder::Gzip(gzip) if empty => {
                let charge = gzip.get_ref().charge.nothing();
                return Ok(Received { bytes: Bytes::new(), charge });
            }
            Decoder::Gzip(mut gzip) => {
                gzip.try_finish().map_err(|error| gzip.get_mut().failed("gzip", &error))?;
                gzip.finish().map_err(|error| Refusal::Malformed(error.to_string()))?
            }
            Decoder::Zstd(mut zstd) => {
                if !empty {
                    zstd.finish().map_err(|error| zstd.writer_mut().failed("zstd", &error))?;
                }
                zstd.into_inner().0
            }
        };
        Ok(Received { bytes: output.bytes.into(), charge: output.charge })
    }
}

fn zstd_decoder() -> io::Result<ZstdDecoder<'static>> {
    let mut decoder = ZstdDecoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
    Ok(decoder)
}

fn too_large(bytes_max: usize, what: &str) -> Refusal {
    Refusal::TooLarge(format!("the request has more than {bytes_max} {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::intake::InFlight;
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;
    const ENCODINGS: [Encoding; 3] = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd];

    fn collector(encoding: Encoding) -> Collector {
        Collector::new(encoding, LIMIT, InFlight::new(2 * LIMIT).charge()).unwrap()
    }

    fn encode(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => bytes.to_vec(),
            Encoding::Gzip => {
                let level = flate2::Compression::fast();
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
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
            let mut collector = collector(encoding);
            let encoded = encode(encoding, &bomb);
            let refused = encoded.chunks(1000).find_map(|piece| collector.push(piece).err());
            assert!(matches!(refused, Some(Refusal::TooLarge(_))), "{encoding:?}");
            let output = match &collector.decoder {
                Decoder::Identity(output) => output,
                Decoder::Gzip(gzip) => gzip.get_ref(),
                Decoder::Zstd(zstd) => zstd.writer(),
            };
            assert!(output.bytes.capacity() <= LIMIT, "{}", output.bytes.capacity());
        }
    }

    #[test]
    fn several_members_and_frames_are_one_request() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let mut collector = collector(encoding);
            collector.push(&encode(encoding, b"one ")).unwrap();
            collector.push(&encode(encoding, b"two")).unwrap();
            assert_eq!(collector.finish().unwrap().bytes, "one two");
        }
    }

    #[test]
    fn announced_length_is_not_believed_beyond_a_bound() {
        let mut collector =
            Collector::new(Encoding::Identity, usize::MAX, InFlight::new(LIMIT).charge()).unwrap();
        collector.expect(usize::MAX).unwrap();
        let Decoder::Identity(output) = &collector.decoder else { panic!("not compressed") };
        assert!(output.bytes.capacity() <= BELIEVED_BYTES_MAX);
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
                let mut collector =
                    Collector::new(encoding, LIMIT, in_flight.charge()).unwrap();
                for data in encode(encoding, &bytes).chunks(piece) {
                    collector.push(data).unwrap();
                }
                let received = collector.finish().unwrap();
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
                let taken = short.push(&encoded).and_then(|()| short.finish());
                prop_assert!(taken.is_err() || encoded.is_empty());

                let mut encoded = encode(encoding, &bytes);
                let at = at.index(encoded.len());
                encoded[at] ^= flip;
                let mut odd = collector(encoding);
                let _ = odd.push(&encoded).and_then(|()| odd.finish());
            }
        }
    }
}
