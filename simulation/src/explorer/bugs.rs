//! Bugs that can be planted, to see the checks catch them.
//!
//! None is in the product's code: the world tampers with what goes into the real core or comes out
//! of it. Of the mutants that PROTOCOL.md lists, two are inside the core and need source patches:
//! *compare holders without incarnations* and *settle with an attempt in flight*.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Bug {
    /// The client is answered when the owner alone holds its spans.
    AcknowledgeOwnerAlone,
    /// A Hold is answered as stored and is not.
    AcknowledgeUnstored,
    /// What an earlier incarnation acknowledged counts for the present one.
    KeepAcknowledgement,
    /// What a stand-in acknowledged counts when it has become a holder.
    KeepOfStandIn,
    /// Targets are those of the view at the request's start.
    TargetsOfStart,
    /// A node serves clients while it joins.
    ServeWhileJoining,
    /// Nobody is told that a holder was routed around.
    NoMark,
    /// That the sender has another view says nothing to the receiver.
    NoForeignMark,
    /// Nobody is told what is done.
    NoDone,
    /// A Done counts for all spans of its trace, whatever its sum.
    DoneWithoutSum,
    /// Nobody asks what became of a trace.
    NoAsking,
    /// What the owner wants is not read.
    IgnoreWanted,
    /// A node decides whatever it holds.
    DecideAsNoOwner,
    /// An owner never waits for its replica's view.
    DecideUncalm,
    /// A node that is no holder forgets while it offers.
    ForgetWhileOffering,
    /// A confirmation that is older than the last change counts.
    ConfirmStale,
    /// What another incarnation confirmed counts, although its view, which lists itself, cannot be
    /// the present one.
    ConfirmByFormer,
    /// What was confirmed by another view counts.
    ConfirmOtherView,
    /// What was confirmed in a view counts in the next one.
    KeepConfirmations,
    /// What is remembered is not handed over.
    ForgetRemembered,
    /// Calm does not ask which view the replica publishes.
    CalmWithoutReplica,
    /// A node that stood still goes on as if it had not.
    NoEpoch,
    /// A sink that says nothing counts as one that acknowledged.
    TrustSilentSink,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::AcknowledgeOwnerAlone,
        Self::AcknowledgeUnstored,
        Self::KeepAcknowledgement,
        Self::KeepOfStandIn,
        Self::TargetsOfStart,
        Self::ServeWhileJoining,
        Self::NoMark,
        Self::NoForeignMark,
        Self::NoDone,
        Self::DoneWithoutSum,
        Self::NoAsking,
        Self::IgnoreWanted,
        Self::DecideAsNoOwner,
        Self::DecideUncalm,
        Self::ForgetWhileOffering,
        Self::ConfirmStale,
        Self::ConfirmByFormer,
        Self::ConfirmOtherView,
        Self::KeepConfirmations,
        Self::ForgetRemembered,
        Self::CalmWithoutReplica,
        Self::NoEpoch,
        Self::TrustSilentSink,
    ];
}
