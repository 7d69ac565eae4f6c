//! Tracemesh: any node takes OTLP spans, and every trace meets on one owner.

pub mod command;
pub mod config;
pub mod ingest;
pub mod sink;
pub mod spans;
pub mod status;
