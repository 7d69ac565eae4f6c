//! `frame` of the properties.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tracemesh_fuzz::frame::check(bytes));
