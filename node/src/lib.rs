//! Tracemesh: any node takes OTLP spans, and every trace meets on one owner.

pub mod allocator;
pub mod assemble;
pub mod command;
pub mod config;
pub mod console;
pub mod cut;
pub mod decide;
pub mod entry;
pub mod environment;
pub mod explain;
pub mod frame;
pub mod ingest;
pub mod json;
pub mod listen;
pub mod memory;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod process;
pub mod reach;
pub mod reload;
pub mod route;
pub mod scan;
pub mod settling;
pub mod shard;
pub mod sink;
pub mod span_view;
pub mod spans;
pub mod split;
pub mod spool;
pub mod status;
pub mod tasks;
pub mod tls;
pub mod wire;

pub use allocator::Allocator;
