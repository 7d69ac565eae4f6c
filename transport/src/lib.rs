//! How bytes reach a peer: one QUIC endpoint with mutual TLS.
//!
//! A node starts a [`Transport`] on a UDP socket, sends with [`Transport::call`] and
//! [`Transport::notify`], and takes what others send from [`Incoming`]. Frames are opaque here, and
//! so is the cluster: this crate does not know who is a member, what a span is, or what to do when
//! a call fails. What it does know is who sent a frame, because both sides of every connection
//! prove by certificate that they are of the cluster. Without such a proof nothing gets in.
//!
//! In the order in which bytes go: `key` and `identity` say who we are, `tls` whom we believe,
//! `socket` and `endpoint` make connections, `connection` and `stream` carry frames, `slots` decide
//! which connection to use and when to dial, `pool` does it, `incoming` hands over what came.
//!
//! Time is tokio's, the wall clock and all randomness are handed in, nothing depends on the order
//! of a hash map: the same seed on the same socket behaves the same.

mod connection;
mod counters;
mod endpoint;
mod frame;
mod identity;
mod incoming;
mod key;
mod pool;
mod slots;
mod socket;
mod spiffe;
mod stream;
mod tasks;
mod tls;
mod transport;

pub use counters::{Counters, Refusal};
pub use endpoint::{AsyncUdpSocket, UdpPoller, udp};
pub use frame::{FRAME_BYTES_MAX, Frame};
pub use identity::{
    CERTIFICATE_LIFE, CLOCK_SKEW_MAX, Credentials, IdentityError, Reloaded, WallClock,
};
pub use incoming::{Incoming, Proved, Received, Responder};
pub use key::{ClusterKey, KeyError};
pub use pool::{CallError, Delivery, Peer};
pub use socket::{BindError, bind_udp};
pub use transport::{Settings, StartError, Transport};
