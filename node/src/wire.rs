//! The protobuf wire format: reading fields one by one, writing varints.
//!
//! Spans travel as the bytes in which they came, so most of the node needs no decoded messages but
//! only to see where fields begin and end. [`Reader`] yields the fields of one message and accepts
//! what prost accepts, but for groups, which OTLP never had. What the fields of an OTLP message
//! mean is written down once, in [`schema`].
//!
//! The invariant: whatever the bytes, a reader ends, panics never, and its fields lie within them.
//! It borrows the bytes and owns nothing. It does not look into a field: nested messages are
//! read by another reader, by the caller, who bounds the depth.

pub mod schema;

#[cfg(test)]
pub(crate) mod arbitrary;

use std::fmt;
use std::ops::Range;

/// Why bytes are no protobuf message of the kind expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A field, or a length, reaches over the end of its message.
    Truncated,
    /// A varint of more than 10 bytes or more than 64 bits.
    Varint,
    /// Field number 0, a number over 2^29 - 1, or wire type 6 or 7.
    Tag,
    /// A group: wire types 3 and 4, deprecated before OTLP began.
    Group,
    /// A known field with another wire type than its own.
    WireType,
    /// A text field that is not UTF-8.
    Utf8,
    /// Messages in messages beyond [`schema::NESTING_MAX`].
    Nesting,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "truncated field",
            Self::Varint => "overlong varint",
            Self::Tag => "invalid field tag",
            Self::Group => "group",
            Self::WireType => "wrong wire type",
            Self::Utf8 => "invalid UTF-8",
            Self::Nesting => "too deep nesting",
        })
    }
}

/// A message could not be read on from byte `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {at}")]
pub struct WireError {
    /// What is wrong.
    pub problem: Problem,
    /// Offset in the slice that the reader was made for.
    pub at: usize,
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0: integers, booleans and enums.
    Varint(u64),
    /// Wire type 1: fixed64 and double.
    Fixed64(u64),
    /// Wire type 2: text, bytes, messages.
    Bytes(&'a [u8]),
    /// Wire type 5: fixed32.
    Fixed32(u32),
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Field number, 1 to 2^29 - 1.
    pub number: u32,
    /// Offset of its tag.
    pub start: usize,
    /// Offset behind its last byte.
    pub end: usize,
    /// Its value; [`Value::Bytes`] ends at `end`.
    pub value: Value<'a>,
}

/// Yields the fields of one message in the order in which they stand; ends after the first error.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    /// Up to the end of the message.
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Reads all of `message`; offsets count from its start.
    #[inline]
    pub fn new(message: &'a [u8]) -> Self {
        Self { bytes: message, position: 0 }
    }

    /// Reads the message at `range` of `bytes`; offsets count from the start of `bytes`, in which
    /// `range` must lie.
    #[inline]
    pub fn within(bytes: &'a [u8], range: Range<usize>) -> Self {
        Self { bytes: &bytes[..range.end], position: range.start }
    }

    /// The offset of the next field.
    #[inline]
    pub fn position(&self) -> usize {
        self.position
    }

    #[inline(always)]
    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let start = self.position;
        let tag = self.varint()?;
        let (Ok(tag), true) = (u32::try_from(tag), tag >= 8) else {
            return Err(WireError { problem: Problem::Tag, at: start });
        };
        let truncated = WireError { problem: Problem::Truncated, at: start };
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array().ok_or(truncated)?)),
            2 => {
                let length = self.varint()?;
                let rest = self.bytes.len() - self.position;
                let length = usize::try_from(length).ok().filter(|length| *length <= rest);
                let from = self.position;
                self.position += length.ok_or(truncated)?;
                Value::Bytes(&self.bytes[from..self.position])
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array().ok_or(truncated)?)),
            3 | 4 => {
                return Err(WireError { problem: Problem::Group, at: start });
            }
            _ => {
                return Err(WireError { problem: Problem::Tag, at: start });
            }
        };
        Ok(Field { number: tag >> 3, start, end: self.position, value })
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.bytes[self.position..].first_chunk()?;
        self.position += N;
        Some(array)
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, WireError> {
        let at = self.position;
        match varint(&self.bytes[at..]) {
            Ok((value, length)) => {
                self.position = at + length;
                Ok(value)
            }
            Err(problem) => Err(WireError { problem, at }),
        }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Field<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.position == self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.position = self.bytes.len();
        }
        Some(field)
    }
}

/// The varint at the start of `bytes`, and how many bytes it takes. Encodings longer than necessary
/// are valid, up to 10 bytes.
#[inline(always)]
pub fn varint(bytes: &[u8]) -> Result<(u64, usize), Problem> {
    match *bytes {
        [byte, ..] if byte < 0x80 => Ok((u64::from(byte), 1)),
        [low, high, ..] if high < 0x80 => Ok((u64::from(low & 0x7f) | u64::from(high) << 7, 2)),
        _ => long_varint(bytes),
    }
}

#[inline(never)]
fn long_varint(bytes: &[u8]) -> Result<(u64, usize), Problem> {
    /// A 64-bit varint has 9 bytes of 7 bits and one of 1 bit.
    const LENGTH_MAX: usize = 10;
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(LENGTH_MAX).enumerate() {
        if index == LENGTH_MAX - 1 && byte > 1 {
            return Err(Problem::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Ok((value, index + 1));
        }
    }
    Err(Problem::Truncated)
}

/// Key and value of a `KeyValue` as nearly all are encoded: the key, then the value, nothing else,
/// each shorter than 128 bytes. `None` says only that it must be read field by field.
#[inline(always)]
pub fn usual_pair(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x0a, length @ ..0x80, rest @ ..] = pair else {
        return None;
    };
    let (key, rest) = rest.split_at_checked(usize::from(*length))?;
    match rest {
        [0x12, length @ ..0x80, value @ ..] if usize::from(*length) == value.len() => {
            Some((key, value))
        }
        _ => None,
    }
}

/// How many bytes [`put_varint`] writes for `value`: 1 to 10.
#[inline]
pub fn varint_length(value: usize) -> usize {
    let bits = (usize::BITS - (value | 1).leading_zeros()) as usize;
    bits.div_ceil(7)
}

/// Appends the shortest encoding of `value`.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of a field with a number below 16, and a payload of `length` bytes.
#[inline]
pub fn framed_length(length: usize) -> usize {
    1 + varint_length(length) + length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_are_read_and_written_as_prost_does(
            value in any::<u64>(), shift in 0..64, rest in any::<Vec<u8>>(),
        ) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value as usize);
            let mut expected = Vec::new();
            prost::encoding::encode_varint(value, &mut expected);
            prop_assert_eq!(&bytes, &expected);
            prop_assert_eq!(bytes.len(), varint_length(value as usize));
            bytes.extend(rest);
            prop_assert_eq!(varint(&bytes), Ok((value, expected.len())));
        }

        #[test]
        fn any_bytes_are_a_varint_for_both_or_for_none(
            bytes in prop::collection::vec(prop_oneof![Just(0xffu8), Just(0x80), 0..4u8], 0..13),
        ) {
            let ours = varint(&bytes).ok().map(|(value, _)| value);
            prop_assert_eq!(ours, prost::encoding::decode_varint(&mut &bytes[..]).ok());
        }

        #[test]
        fn any_bytes_are_read_to_the_end_or_to_an_error(bytes in any::<Vec<u8>>()) {
            let mut end = 0;
            for field in Reader::new(&bytes) {
                let Ok(field) = field else { return Ok(()) };
                prop_assert_eq!(field.start, end);
                prop_assert!(field.end > field.start);
                end = field.end;
            }
            prop_assert_eq!(end, bytes.len());
        }
    }

    #[test]
    fn a_reader_ends_after_an_error() {
        let mut reader = Reader::new(&[0x0b, 0x0c]);
        let group = WireError { problem: Problem::Group, at: 0 };
        assert_eq!(reader.next(), Some(Err(group)));
        assert_eq!(reader.next(), None);
    }
}
