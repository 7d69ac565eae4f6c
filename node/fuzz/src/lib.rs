//! What is to hold of bytes from outside, whatever they are.
//!
//! Each property is a function that panics where it does not hold. The fuzzer's targets call them,
//! and so does `tests/src/bin/fuzz.rs`, which needs no fuzzer.

pub mod config;
pub mod frame;
pub mod json;
pub mod scan;
