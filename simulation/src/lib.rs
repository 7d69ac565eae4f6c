//! Real nodes in one process, in a world that is held in memory.
//!
//! What a node is given of the world ([`tracemesh::environment::Environment`]) is replaced, part by
//! part: [`network`] is the mesh's UDP, [`sink`] is where traces go, [`starts`] is what outlasts a
//! restart. A node does not notice: everything else of it is the product's own code, and nothing
//! here decides what a node would decide. What came of it is written down ([`history`]) and judged
//! ([`check`]) from outside.

pub mod check;
pub mod history;
pub mod network;
pub mod plan;
pub mod sink;
pub mod spans;
pub mod starts;
