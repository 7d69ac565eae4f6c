//! The protocol explored: the real holding core of several nodes, with all chance taken away.
//!
//! What a node decides is decided by its own code: [`Shard`](tracemesh::shard::Shard),
//! [`OpenRequest`](tracemesh::entry::OpenRequest), [`Reach`](tracemesh::reach::Reach) and the pure
//! functions that a node's shell makes frames with. Around them stands a [`world`] in which every
//! message, timer, view change, crash, loss, duplication and answer of a sink is an action; random
//! walks and complete search choose actions, and after each one the promises of PROTOCOL.md are
//! checked as far as the landed rules keep them ([`check::LICENCES`] says what excuses what).
//!
//! Modules in the order in which they build on each other: what a world starts from, its parts,
//! what could happen in it, what must hold, who explores it.

pub mod bugs;
pub mod setting;

pub mod message;
pub mod node;
pub mod requests;
pub mod witness;
pub mod world;

mod holding;
mod members;
mod network;

pub mod check;
pub mod choices;

pub mod directed;
pub mod rows;
pub mod schedule;
pub mod search;
pub mod story;
pub mod walk;

pub mod command;

#[cfg(test)]
mod tests;
