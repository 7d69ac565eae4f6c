//! Protobuf in, JSON out: messages that serialize themselves from their bytes.
//!
//! Fields come in the order of their numbers; those that are missing are left out. A message is
//! walked once to see which fields it has, and once for each of these. The bytes should be valid,
//! but the worst that others do is an error.

use crate::wire::schema::{self, Count, Kind, Message, NESTING_MAX, Rule};
use crate::wire::{Field, Problem, Reader, Value};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use std::borrow::Cow;

/// An encoded message.
pub(super) struct Object<'a> {
    message: &'static Message,
    payload: Cow<'a, [u8]>,
    /// Messages around it.
    depth: u32,
}

impl<'a> Object<'a> {
    pub(super) fn request(request: &'a [u8]) -> Self {
        Self { message: &schema::REQUEST, payload: request.into(), depth: 0 }
    }

    fn fields<E: Error>(&self) -> impl Iterator<Item = Result<Field<'_>, E>> {
        let error = |problem| E::custom(format_args!("{problem} in {}", self.message.name));
        Reader::new(&self.payload).map(move |field| field.map_err(|wire| error(wire.problem)))
    }

    /// The rules of the fields that it has, but for choices that a later field replaced.
    fn present<E: Error>(&self) -> Result<impl Iterator<Item = &'static Rule>, E> {
        let mut numbers = 0_u32;
        for field in self.fields() {
            match self.message.rule(field?.number) {
                Some(rule) if rule.count == Count::OneOf => numbers = 1 << rule.number,
                Some(rule) => numbers |= 1 << rule.number,
                None => {}
            }
        }
        Ok(self.message.rules.iter().filter(move |rule| numbers & (1 << rule.number) != 0))
    }

    /// The message in a field that does not repeat: if it does, all of them, one after the other,
    /// which is how protobuf merges them; for a choice, those since another choice.
    fn merged<E: Error>(&self, rule: &Rule) -> Result<Cow<'_, [u8]>, E> {
        let mut merged = Cow::Borrowed(&[][..]);
        for field in self.fields() {
            match field? {
                Field { number, value: Value::Bytes(payload), .. } if number == rule.number => {
                    if merged.is_empty() {
                        merged = Cow::Borrowed(payload);
                    } else {
                        merged.to_mut().extend_from_slice(payload);
                    }
                }
                field if field.number == rule.number => return Err(wrong_type(rule)),
                field => {
                    if rule.count == Count::OneOf && self.message.rule(field.number).is_some() {
                        merged = Cow::Borrowed(&[]);
                    }
                }
            }
        }
        Ok(merged)
    }

    /// The last value of a field.
    fn last<E: Error>(&self, rule: &Rule) -> Result<Option<Value<'_>>, E> {
        let mut last = None;
        for field in self.fields() {
            let field = field?;
            if field.number == rule.number {
                last = Some(field.value);
            }
        }
        Ok(last)
    }

    fn inner<'i>(
        &self,
        message: &'static Message,
        payload: impl Into<Cow<'i, [u8]>>,
    ) -> Object<'i> {
        Object { message, payload: payload.into(), depth: self.depth + 1 }
    }
}

fn wrong_type<E: Error>(rule: &Rule) -> E {
    E::custom(format_args!("{} in {}", Problem::WireType, rule.name))
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.depth > NESTING_MAX {
            return Err(S::Error::custom(Problem::Nesting));
        }
        let mut map = serializer.serialize_map(None)?;
        for rule in self.present()? {
            map.serialize_entry(rule.name, &Property { object: self, rule })?;
        }
        map.end()
    }
}

/// All that an object has of one field.
struct Property<'a> {
    object: &'a Object<'a>,
    rule: &'static Rule,
}

impl Serialize for Property<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { object, rule } = *self;
        match (rule.count, &rule.kind) {
            (Count::Many, _) => {
                let mut array = serializer.serialize_seq(None)?;
                for field in object.fields() {
                    let Field { number, value, .. } = field?;
                    if number == rule.number {
                        array.serialize_element(&Single { object, rule, value })?;
                    }
                }
                array.end()
            }
            (Count::One | Count::OneOf, Kind::Message(message)) => {
                object.inner(message, object.merged(rule)?).serialize(serializer)
            }
            (Count::One | Count::OneOf, _) => match object.last(rule)? {
                Some(value) => Single { object, rule, value }.serialize(serializer),
                None => serializer.serialize_none(),
            },
        }
    }
}

/// One value of a field.
struct Single<'a> {
    object: &'a Object<'a>,
    rule: &'static Rule,
    value: Value<'a>,
}

impl Serialize for Single<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (&self.rule.kind, self.value) {
            (Kind::Bool, Value::Varint(value)) => serializer.serialize_bool(value != 0),
            // Enums and 32-bit integers are the low bits of a varint.
            (Kind::Int32, Value::Varint(value)) => serializer.serialize_i32(value as i32),
            (Kind::Uint32, Value::Varint(value)) => serializer.serialize_u32(value as u32),
            (Kind::Int64, Value::Varint(value)) => serializer.collect_str(&(value as i64)),
            (Kind::Fixed32, Value::Fixed32(value)) => serializer.serialize_u32(value),
            (Kind::Fixed64, Value::Fixed64(value)) => serializer.collect_str(&value),
            (Kind::Double, Value::Fixed64(bits)) => match f64::from_bits(bits) {
                f64::INFINITY => serializer.serialize_str("Infinity"),
                f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
                value if value.is_nan() => serializer.serialize_str("NaN"),
                value => serializer.serialize_f64(value),
            },
            (Kind::Text, Value::Bytes(text)) => match std::str::from_utf8(text) {
                Ok(text) => serializer.serialize_str(text),
                Err(_) => {
                    let place = self.rule.name;
                    Err(S::Error::custom(format_args!("{} in {place}", Problem::Utf8)))
                }
            },
            (Kind::Id, Value::Bytes(id)) => serializer.serialize_str(&hex::encode(id)),
            (Kind::Bytes, Value::Bytes(bytes)) => serializer.serialize_str(&STANDARD.encode(bytes)),
            (Kind::Message(message), Value::Bytes(payload)) => {
                self.object.inner(message, payload).serialize(serializer)
            }
            _ => Err(wrong_type(self.rule)),
        }
    }
}
