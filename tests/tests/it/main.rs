//! The real binary, driven from outside: by clients, by others' programs, by intruders, by
//! operators.
//!
//! Each file is one point of view. What a test starts ends with it; what it waits for has a
//! deadline.

mod bad_requests;
mod bad_settings;
mod doors;
mod intruders;
mod members;
mod mesh;
mod one_node;
mod otlp;
mod overload;
mod servers;
mod sinks;
mod telling;

use tracemesh_tests::host::Host;

/// The binary that cargo built for these tests.
const TRACEMESH: &str = env!("CARGO_BIN_EXE_tracemesh-under-test");

/// A place for nodes that run the binary under test.
fn host() -> Host {
    Host::new(TRACEMESH)
}
