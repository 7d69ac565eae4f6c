//! What was acknowledged survives: real nodes under load, and what operators and machines do to
//! them.
//!
//! ```sh
//! cargo test -p tracemesh-tests --test survival -- --nocapture
//! TRACEMESH_SURVIVAL=full cargo test --release -p tracemesh-tests --test survival -- --nocapture
//! ```
//!
//! The first is small enough for every change, the second takes minutes: 20,000 spans a second,
//! and faults that last. Each case is judged twice: by `tracemesh load`, which knows what was
//! acknowledged and is one sink of the nodes, and by a sink that the test owns, which knows only
//! that everything has to come. What a case prints are measurements, such as the longest gap
//! between two acknowledgements; none of them is asserted.
//!
//! One case runs at a time, because each wants the whole machine.

mod cluster;
mod crashes;
mod load;
mod orderly;
mod partitions;
mod pauses;
mod run;
mod sink;
mod sinks;

/// How much a case does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// What unoptimised nodes on a busy machine can do.
    Small,
    /// `TRACEMESH_SURVIVAL=full`, for optimised ones.
    Full,
}

impl Size {
    /// The one that was asked for.
    pub(crate) fn asked_for() -> Self {
        match std::env::var_os("TRACEMESH_SURVIVAL") {
            None => Self::Small,
            Some(size) if size == "full" => Self::Full,
            Some(size) => panic!("TRACEMESH_SURVIVAL is {size:?}; expected full, or nothing"),
        }
    }

    /// Spans a second.
    pub(crate) fn rate(self) -> u64 {
        match self {
            Self::Small => 2_000,
            Self::Full => 20_000,
        }
    }
}
