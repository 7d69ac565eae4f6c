//! OTLP's JSON form, to protobuf and back.
//!
//! JSON requests become the same bytes that protobuf clients send and enter by the same path; the
//! file and stdout sinks write those bytes as JSON, one line a request. Both directions follow the
//! tables of [`crate::wire::schema`] and write while they read: no tree of messages is built, so
//! that a request of many empty objects takes no more memory than its text.
//!
//! The rules are OTLP's, which are protobuf's with three differences: ids are hexadecimal, in
//! either case; enums are integers only; names are in lowerCamelCase only. `null` is as if the key
//! were missing; unknown keys are ignored, and so protobuf's unknown fields cannot survive in JSON.
//! Integers may be numbers or strings; where OTLP has 64 bits they are written as strings. A key
//! that comes twice is what a field that comes twice is in protobuf.
//!
//! What is read is not yet valid: ids of any length pass, to be counted by [`crate::scan`]. Nesting
//! is bounded by serde_json on the way in and by [`crate::wire::schema::NESTING_MAX`] on the way
//! out.

mod read;
mod write;

/// A JSON request could not be read.
#[derive(Debug, thiserror::Error)]
#[error("invalid OTLP JSON: {0}")]
pub struct FromJsonError(serde_json::Error);

/// Bytes could not be written as JSON, because they are no valid request.
#[derive(Debug, thiserror::Error)]
#[error("not to be written as JSON: {0}")]
pub struct ToJsonError(serde_json::Error);

/// The encoded `ExportTraceServiceRequest` that a JSON text stands for. An error says line and
/// column.
pub fn from_json(json: &[u8]) -> Result<Vec<u8>, FromJsonError> {
    read::request(json).map_err(FromJsonError)
}

/// An encoded `ExportTraceServiceRequest` as JSON, in one line and without a line feed at its end.
pub fn to_json(request: &[u8]) -> Result<String, ToJsonError> {
    serde_json::to_string(&write::Object::request(request)).map_err(ToJsonError)
}

#[cfg(test)]
mod tests;
