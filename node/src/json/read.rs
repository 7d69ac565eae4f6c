//! JSON in, protobuf out: a serde visitor that appends each field to the request as it is read.
//!
//! The invariant: while a message is read, everything behind its start in `out` is its own payload.
//! Its length is put before it when it ends, which moves the payload by some bytes, once per level.

use crate::wire::put_varint;
use crate::wire::schema::{self, Count, Kind, Message, Rule};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use std::fmt;

/// Base64 as protobuf's JSON has it: either alphabet, with or without padding.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

pub(super) fn request(json: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    deserializer.deserialize_map(Object { message: &schema::REQUEST, out: &mut out })?;
    deserializer.end()?;
    Ok(out)
}

/// Appends the fields of an object.
struct Object<'o> {
    message: &'static Message,
    out: &'o mut Vec<u8>,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object: {}", self.message.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(rule) = map.next_key_seed(Key { message: self.message })? {
            match rule {
                None => map.next_value::<IgnoredAny>().map(drop)?,
                Some(rule) if rule.count == Count::Many => {
                    map.next_value_seed(Array { rule, out: self.out })?;
                }
                Some(rule) => map.next_value_seed(Element { rule, out: self.out })?,
            }
        }
        Ok(())
    }
}

/// Finds the rule of a key; none if it is unknown.
struct Key {
    message: &'static Message,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static Rule>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static Rule>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.message.rules.iter().find(|rule| rule.name == key))
    }
}

/// Appends a field for each element of an array.
struct Array<'o> {
    rule: &'static Rule,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Array<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array for {}", self.rule.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(()) =
            elements.next_element_seed(Element { rule: self.rule, out: self.out })?
        {}
        Ok(())
    }
}

/// Appends one field, or nothing for `null`.
struct Element<'o> {
    rule: &'static Rule,
    out: &'o mut Vec<u8>,
}

impl Element<'_> {
    fn tag(&mut self, wire_type: usize) {
        put_varint(self.out, self.rule.number as usize * 8 + wire_type);
    }

    fn put_number(&mut self, value: u64) {
        self.tag(0);
        // `put_varint` takes lengths, of 32 bits on some machines.
        prost::encoding::encode_varint(value, self.out);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.tag(2);
        put_varint(self.out, bytes.len());
        self.out.extend_from_slice(bytes);
    }

    fn put_double(&mut self, value: f64) {
        self.tag(1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// An integer of any kind of field, if it is in the field's range. A double takes it too.
    fn put_integer<E: Error>(mut self, value: i128) -> Result<(), E> {
        let out_of_range = |_| E::custom(format_args!("{value} is out of range for {self}"));
        match self.rule.kind {
            Kind::Int32 => {
                let value = i32::try_from(value).map_err(out_of_range)?;
                // Negative numbers of 32 bits are 64 bits wide in protobuf.
                self.put_number(i64::from(value) as u64);
            }
            Kind::Uint32 => {
                let value = u32::try_from(value).map_err(out_of_range)?;
                self.put_number(u64::from(value));
            }
            Kind::Int64 => {
                let value = i64::try_from(value).map_err(out_of_range)?;
                self.put_number(value as u64);
            }
            Kind::Fixed32 => {
                let value = u32::try_from(value).map_err(out_of_range)?;
                self.tag(5);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Kind::Fixed64 => {
                let value = u64::try_from(value).map_err(out_of_range)?;
                self.tag(1);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Kind::Double => self.put_double(value as f64),
            Kind::Bool | Kind::Text | Kind::Id | Kind::Bytes | Kind::Message(_) => {
                return Err(E::invalid_type(Unexpected::Other("number"), &self));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule.name)
    }
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = match self.rule.kind {
            Kind::Bool => "true or false",
            Kind::Int32 | Kind::Uint32 | Kind::Int64 | Kind::Fixed32 | Kind::Fixed64 => {
                "an integer"
            }
            Kind::Double => "a number",
            Kind::Text => "a string",
            Kind::Id => "hexadecimal digits",
            Kind::Bytes => "base64",
            Kind::Message(_) => "an object",
        };
        write!(f, "{expected} for {}", self.rule.name)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        match self.rule.count {
            Count::One | Count::OneOf => Ok(()),
            Count::Many => Err(E::invalid_type(Unexpected::Unit, &self)),
        }
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        match self.rule.kind {
            Kind::Bool => self.put_number(u64::from(value)),
            _ => return Err(E::invalid_type(Unexpected::Bool(value), &self)),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put_integer(i128::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.put_integer(i128::from(value))
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<(), E> {
        match self.rule.kind {
            Kind::Double => {
                self.put_double(value);
                Ok(())
            }
            // The cast saturates, and what it saturates to is out of range.
            _ if value.fract() == 0.0 => self.put_integer(value as i128),
            _ => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        match self.rule.kind {
            Kind::Text => self.put_bytes(text.as_bytes()),
            Kind::Id => match hex::decode(text) {
                Ok(id) => self.put_bytes(&id),
                Err(_) => return Err(E::invalid_value(Unexpected::Str(text), &self)),
            },
            Kind::Bytes => match STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)) {
                Ok(bytes) => self.put_bytes(&bytes),
                Err(_) => return Err(E::invalid_value(Unexpected::Str(text), &self)),
            },
            Kind::Double => match double(text) {
                Some(value) => self.put_double(value),
                None => return Err(E::invalid_value(Unexpected::Str(text), &self)),
            },
            Kind::Int32 | Kind::Uint32 | Kind::Int64 | Kind::Fixed32 | Kind::Fixed64 => {
                return match text.parse() {
                    Ok(value) => self.put_integer(value),
                    Err(_) => Err(E::invalid_value(Unexpected::Str(text), &self)),
                };
            }
            Kind::Bool | Kind::Message(_) => {
                return Err(E::invalid_type(Unexpected::Str(text), &self));
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<(), A::Error> {
        let Kind::Message(message) = self.rule.kind else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        self.tag(2);
        let start = self.out.len();
        // Most messages are shorter than 128 bytes: room for their length, and more is made if
        // needed.
        self.out.push(0);
        Object { message, out: self.out }.visit_map(map)?;
        let mut length = Vec::with_capacity(8);
        put_varint(&mut length, self.out.len() - start - 1);
        self.out.splice(start..=start, length);
        Ok(())
    }
}

/// A double in a string: one of the three names that are no numbers, or a number.
fn double(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}
