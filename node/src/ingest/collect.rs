//! The bytes of one request, collected while they are decompressed.
//!
//! The invariant: memory follows what was really produced, and neither limit can be passed: not the
//! size of one request before or after decompression, nor the bytes in flight. Data is decompressed
//! piece by piece as it arrives, so a bomb stops at the limit and the compressed form is never kept.
//! A zstd frame cannot ask for a window over [`ZSTD_WINDOW_LOG_MAX`].

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
            let capacity = (2 * self.bytes.capacity())
                .max(FIRST_BYTES)
                .min(self.bytes_max);
            self.bytes
                .reserve_exact(capacity.max(length) - self.bytes.len());
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
        let output = Output {
            bytes: Vec::new(),
            bytes_max,
            charge,
            refusal: None,
        };
        let decoder = match encoding {
            Encoding::Identity => Decoder::Identity(output),
            Encoding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(output))),
            Encoding::Zstd => match zstd_decoder() {
                Ok(zstd) => Decoder::Zstd(Box::new(ZstdWriter::new(output, zstd))),
                Err(_) => return Err(output.charge.later("no memory to decompress")),
            },
        };
        Ok(Self {
            decoder,
            encoded_bytes: 0,
            bytes_max,
        })
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
            Decoder::Gzip(gzip) => gzip
                .write_all(data)
                .map_err(|error| gzip.get_mut().failed("gzip", &error)),
            Decoder::Zstd(zstd) => zstd
                .write_all(data)
                .map_err(|error| zstd.writer_mut().failed("zstd", &error)),
        }
    }

    /// The whole request; no bytes at all are an empty request in every encoding.
    pub(super) fn finish(self) -> Result<Received, Refusal> {
        let empty = self.encoded_bytes == 0;
        let output = match self.decoder {
            Decoder::Identity(output) => output,
            Decoder::Gzip(gzip) if empty => {
                let charge = gzip.get_ref().charge.nothing();
                return Ok(Received {
                    bytes: Bytes::new(),
                    charge,
                });
            }
            Decoder::Gzip(mut gzip) => {
                gzip.try_finish()
                    .map_err(|error| gzip.get_mut().failed("gzip", &error))?;
                gzip.finish()
                    .map_err(|error| Refusal::Malformed(error.to_string()))?
            }
            Decoder::Zstd(mut zstd) => {
                if !empty {
                    zstd.finish()
                        .map_err(|error| zstd.writer_mut().failed("zstd", &error))?;
                }
                zstd.into_inner().0
            }
        };
        Ok(Received {
            bytes: output.bytes.into(),
            charge: output.charge,
        })
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
