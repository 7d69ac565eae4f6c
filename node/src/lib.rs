//! Tracemesh: any node takes OTLP spans, and every trace meets on one owner.

pub mod command;
pub mod assemble;
pub mod console;
pub mod cut;
pub mod decide;
pub mod entry;
pub mod frame;
pub mod config;
pub mod ingest;
pub mod listen;
pub mod memory;
pub mod mesh;
pub mod metrics;
pub mod process;
pub mod reach;
pub mod route;
pub mod json;
pub mod scan;
pub mod shard;
pub mod sink;
pub mod span_view;
pub mod spans;
pub mod split;
pub mod status;
pub mod tasks;
pub mod wire;
