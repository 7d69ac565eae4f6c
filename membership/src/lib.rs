//! Who is in the mesh, and who holds what.
//!
//! Two halves. The pure one decides and knows neither clock nor network: [`View`] (who holds
//! slots), [`Placement`] (which slot is whose), the keys that members publish, and the state machine
//! of one member (start, leave, incarnation, whom it believes dead). The thin shell,
//! [`Membership`], moves time and bytes: it drives gossip over a [`Carrier`] that somebody else
//! connects to the network, and shows the outcome in `watch` channels.
//!
//! What is not here: sockets, certificates, spans. Gossip travels through a pair of bounded channels;
//! this crate never opens a port. One file, `gossip.rs`, names the gossip library.

mod placement;
mod rank;
mod slot;
mod view;

pub use placement::{Holders, MemberIndex, Placement};
pub use slot::{HashKey, SLOT_COUNT, Slot};
pub use view::{Incarnation, MemberState, NodeId, View, ViewMember, Weight, WeightError};
