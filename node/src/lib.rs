//! Tracemesh: any node takes OTLP spans, and every trace meets on one owner.

pub mod console;
pub mod ingest;
pub mod json;
pub mod listen;
pub mod metrics;
pub mod scan;
pub mod sink;
pub mod span_view;
pub mod spans;
pub mod split;
pub mod status;
pub mod wire;
