//! Real nodes in one process, in a world that is held in memory.
//!
//! What a node is given of the world ([`tracemesh::environment::Environment`]) is replaced, part by
//! part: [`network`] is the mesh's UDP, [`clock`] the wall clock, [`entropy`] the system's
//! randomness, [`sink`] where traces go, [`disk`] what outlasts a restart. A node does not notice:
//! everything else of it is the product's own code, and nothing here decides what a node would
//! decide.
//!
//! A seed is drawn into a [`plan`]; a [`cluster`] makes it happen and writes a [`history`]; the
//! [`check`] reads the history and judges. [`explorer`] goes without the process: it drives the
//! pure core of several nodes through every order of events. [`command`] is what people type.

pub mod allocator;
pub mod check;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod dice;
pub mod disk;
pub mod draw;
pub mod entropy;
pub mod events;
pub mod explorer;
pub mod history;
pub mod host;
pub mod link;
pub mod load;
pub mod mutants;
pub mod network;
pub mod plan;
pub mod rebalance;
pub mod report;
pub mod sink;
pub mod spans;
pub mod swarm;
