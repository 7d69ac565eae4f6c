//! Transports that talk to each other over real sockets on loopback.
//!
//! Every test binds port 0, takes time of day from a clock of its own, and waits for conditions.

#![cfg(test)]

mod calls;
mod certificates;
mod connections;
mod harness;
mod notices;
