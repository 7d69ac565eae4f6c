//! A look at a running node from beside it, without asking it: what it believes and holds.
//!
//! For whoever runs nodes in its own process, such as a simulator. Looking is cheap but for
//! [`Observer::counters`], waits for nothing and changes nothing.

use crate::assemble::Shards;
use crate::metrics;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tracemesh_membership::{Membership, Placement, Status, View};

/// Sees one node, also after it ended.
#[derive(Clone)]
pub struct Observer {
    placement: watch::Receiver<Arc<Placement>>,
    status: watch::Receiver<Status>,
    shards: Shards,
    registry: Arc<Registry>,
}

impl Observer {
    pub(super) fn new(membership: &Membership, shards: Shards, registry: Arc<Registry>) -> Self {
        let (placement, status) = (membership.placement(), membership.state());
        Self { placement, status, shards, registry }
    }

    /// Whether view or state may have changed since [`Self::view`] and [`Self::status`].
    pub fn has_changed(&self) -> bool {
        let changed = |seen: Result<bool, watch::error::RecvError>| seen.unwrap_or(false);
        changed(self.placement.has_changed()) || changed(self.status.has_changed())
    }

    /// The members that hold slots, as the node believes.
    pub fn view(&mut self) -> Arc<View> {
        Arc::clone(self.placement.borrow_and_update().view())
    }

    /// How it stands in the cluster.
    pub fn status(&mut self) -> Status {
        self.status.borrow_and_update().clone()
    }

    /// Spans held as owner, as replica, as stand-in.
    pub fn held(&self) -> [u64; 3] {
        self.shards.held().0
    }

    /// Traces, remembered ones too, of which another holder may lack something.
    pub fn unplaced(&self) -> u64 {
        self.shards.unplaced()
    }

    /// Whether everything is placed that was not when its view began.
    pub fn has_settled(&self) -> bool {
        let view_hash = self.placement.borrow().view().hash();
        self.shards.have_settled(view_hash)
    }

    /// Every counter by the name and labels that it has in `/metrics`, without the prefix.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        // Writing to a text fails only where a collector says so, and there is none.
        metrics::counters(&self.registry).unwrap_or_default()
    }
}
