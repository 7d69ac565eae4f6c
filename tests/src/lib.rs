//! What the tests of the real binary are made of: processes, parts that others wrote, readers.
//!
//! The invariant: nothing here looks inside a node. A test sees what a user sees: exit codes, what
//! is printed, ports, metrics, files. What goes wrong in here panics with a sentence, because a
//! test is the only caller; a node that a panicking test had started prints its output first.
//!
//! State belongs to the values that tests hold: a [`host::Host`] owns a directory, a [`node::Node`]
//! a process, and both are gone when they are dropped. Every wait has the deadline of [`wait`].

pub mod grpc;
pub mod host;
pub mod http;
pub mod links;
pub mod metrics;
pub mod node;
pub mod parts;
pub mod ports;
pub mod program;
pub mod readme;
pub mod traces;
pub mod wait;
