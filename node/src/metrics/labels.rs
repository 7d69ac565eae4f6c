//! The labels of metrics, as types.
//!
//! The invariant: a label value is a variant of an enum here, or the name of a member. The same
//! enums are fields in logs and what tests compare, so a reason has one spelling everywhere.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use std::fmt::{self, Write};

/// Defines an enum whose variants are label values, log fields, and what tests compare.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The value of the label.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(self.as_str())
            }
        }
    };
}

/// Defines the labels of a family.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $value:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name { $($(#[$field_doc])* pub $field: $value,)* }
    };
}

label! {
    /// Why a span is not exported; every such span is counted under one of these.
    Reason {
        /// Trace or span id is all zero or of a wrong length (refused).
        Ids = "ids",
        /// The request is too large, before or after decompression (refused).
        Size = "size",
        /// The request is no valid protobuf, JSON or compressed data, or made the node fail
        /// (refused).
        Syntax = "syntax",
        /// Every sink refused it for good (dropped).
        Sink = "sink",
        /// Its trace makes whoever opens it panic (dropped).
        Poison = "poison",
    }
}

label! {
    /// What a client spoke.
    Protocol {
        /// OTLP over gRPC.
        Grpc = "grpc",
        /// OTLP over HTTP.
        Http = "http",
    }
}

label! {
    /// What a client was told.
    Answer {
        /// Success, partial success included.
        Accepted = "accepted",
        /// Never to send this again: it is no valid request.
        Malformed = "malformed",
        /// Never to send this again: it is too large.
        TooLarge = "too_large",
        /// To come back later.
        Later = "later",
        /// That it has no token by which it may send.
        Unauthenticated = "unauthenticated",
    }
}

label! {
    /// Why a connection of a client came to nothing.
    ConnectionRefusal {
        /// There are too many.
        Full = "full",
        /// The two sides do not agree upon TLS: one has no certificate, one of another authority,
        /// or speaks no TLS.
        Tls = "tls",
    }
}

label! {
    /// What a node is to a trace, or to a slot.
    Role {
        /// It decides and exports.
        Owner = "owner",
        /// It holds the same, in case the owner fails.
        Replica = "replica",
        /// It is no holder, and holds in the place of one.
        StandIn = "stand_in",
    }
}

label! {
    /// Why a trace was due.
    DueCause {
        /// Its root had come, and time for the rest had passed.
        Root = "root",
        /// It reached the age limit.
        Age = "age",
        /// It reached the limit of spans.
        Spans = "spans",
        /// It reached the limit of bytes.
        Bytes = "bytes",
        /// The node is stopping.
        Drain = "drain",
        /// It was due on an owner that is gone.
        Takeover = "takeover",
    }
}

label! {
    /// What was decided about a trace.
    Verdict {
        /// It is exported.
        Kept = "kept",
        /// Its spans are not exported.
        SampledOut = "sampled_out",
    }
}

label! {
    /// Why spans may have been exported a second time.
    AgainCause {
        /// An attempt had no answer.
        Unanswered = "unanswered",
        /// The trace was taken over when it was due.
        Takeover = "takeover",
        /// It was decided before all members were known to agree.
        Uncalm = "uncalm",
    }
}

label! {
    /// The state of a member.
    MemberState {
        /// Holds no slots yet.
        Joining = "joining",
        /// Holds slots.
        Active = "active",
        /// Hands over and goes.
        Leaving = "leaving",
    }
}

label! {
    /// Which way bytes went between nodes.
    Direction {
        /// From this node.
        Sent = "sent",
        /// To this node.
        Received = "received",
    }
}

labels! {
    /// Labels of what was refused or dropped.
    ReasonLabels {
        /// Why.
        reason: Reason,
    }
}

labels! {
    /// Of connections that came to nothing.
    ConnectionRefusalLabels {
        /// Why.
        cause: ConnectionRefusal,
    }
}

labels! {
    /// Labels of requests.
    RequestLabels {
        /// What the client spoke.
        protocol: Protocol,
        /// What it was told.
        answer: Answer,
    }
}

labels! {
    /// Labels of what differs by role.
    RoleLabels {
        /// What the node is to the trace or slot.
        role: Role,
    }
}

labels! {
    /// Labels of what differs by peer.
    PeerLabels {
        /// Id of the peer.
        peer: String,
    }
}

labels! {
    /// Labels of decisions.
    DecisionLabels {
        /// Why the trace was due.
        cause: DueCause,
        /// What was decided.
        verdict: Verdict,
    }
}

labels! {
    /// Labels of spans that may have been exported twice.
    AgainLabels {
        /// Why.
        cause: AgainCause,
    }
}

labels! {
    /// Labels of members.
    MemberLabels {
        /// Their state.
        state: MemberState,
    }
}

labels! {
    /// Labels of bytes between nodes.
    DirectionLabels {
        /// Which way.
        direction: Direction,
    }
}

labels! {
    /// Labels of who was kept out.
    MeshRefusalLabels {
        /// Why.
        cause: &'static str,
    }
}

labels! {
    /// Labels of a fact that is told by its hash.
    HashLabels {
        /// In hexadecimal.
        hash: String,
    }
}
