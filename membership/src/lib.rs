//! Who is in the mesh, and who holds what.
//!
//! Two halves. The pure one decides and knows neither clock nor network: [`View`] (who holds
//! slots), [`Placement`] (which slot is whose), the keys that members publish, and the state
//! machine of one member (start, leave, incarnation, whom it believes dead). The thin shell,
//! [`Membership`], moves time and bytes: it drives gossip over a [`Carrier`] that somebody else
//! connects to the network, and shows the outcome in `watch` channels.
//!
//! What is not here: sockets, certificates, spans. Gossip travels through a pair of bounded
//! channels; this crate never opens a port. One file, `gossip.rs`, names the gossip library.

mod belief;
mod gossip;
mod keys;
mod member;
mod membership;
mod placement;
mod rank;
mod seeds;
mod settings;
mod slot;
mod stand_still;
mod starts;
mod turns;
mod twin;
mod unnoticed;
mod view;

pub use keys::{Agreement, Load, Published};
pub use member::{Ended, PeerInfo, Status, Update};
pub use membership::{Carrier, Membership};
pub use placement::{Holders, MemberIndex, Placement};
pub use settings::{Settings, StartError, WallClock};
pub use slot::{HashKey, SLOT_COUNT, Slot};
pub use starts::{StartRecord, StartStore, StartsFile};
pub use view::{Incarnation, MemberState, NodeId, View, ViewMember, Weight, WeightError};
