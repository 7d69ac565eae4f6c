//! Deciding about a trace: the one place where a verdict comes from.
//!
//! Decisions see a whole trace as raw bytes and never wait. A decision that panics is caught by the
//! shard and costs that trace only.

use crate::frame::Verdict;
use crate::sink::Attempt;

/// Decides about traces; called once per trace, by its owner.
pub trait Decide: Send {
    /// The verdict about a trace of which `trace` has all spans held; never [`Verdict::None`].
    fn decide(&mut self, trace: &Attempt) -> Verdict;
}

/// Every trace is kept.
#[derive(Debug)]
pub struct KeepAll;

impl Decide for KeepAll {
    fn decide(&mut self, _trace: &Attempt) -> Verdict {
        Verdict::Keep
    }
}
