//! Real nodes in one process, in a world that is held in memory.
//!
//! What a node is given of the world ([`tracemesh::environment::Environment`]) is replaced, part by
//! part: [`network`] is the mesh's UDP, [`sink`] is where traces go, [`starts`] is what outlasts a
//! restart. A node does not notice: everything else of it is the product's own code, and nothing
//! here decides what a node would decide. [`explorer`] goes without the process: it drives the pure
//! core of several nodes through every order of events.

pub mod explorer;
pub mod network;
pub mod sink;
pub mod starts;
