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

    /// The same decider, as it is now: a shard is cloned where the protocol is explored.
    fn boxed(&self) -> Box<dyn Decide>;
}

impl Clone for Box<dyn Decide> {
    fn clone(&self) -> Self {
        self.as_ref().boxed()
    }
}

/// Every trace is kept.
#[derive(Debug)]
pub struct KeepAll;

impl Decide for KeepAll {
    fn decide(&mut self, _trace: &Attempt) -> Verdict {
        Verdict::Keep
    }

    fn boxed(&self) -> Box<dyn Decide> {
        Box::new(Self)
    }
}
