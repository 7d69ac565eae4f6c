//! Whether this node has settled: nothing is left to hand over for its view (PROTOCOL.md, P5).
//!
//! The shards say what was unplaced when the view began and is not placed yet; here are the
//! requests that were open then. The invariant: a request is counted before it looks at the
//! placement, so none that goes by an older view is missed. Bounded by the requests in flight, of
//! which only numbers are kept.

use crate::assemble::Shards;
use crate::mesh::Peers;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracemesh_membership::{Membership, Update};

/// How often a node that ends looks whether a request is open.
const IDLE_LOOK: Duration = Duration::from_millis(20);

/// Open requests, by the views that have begun since they did. The pure part.
#[derive(Clone, Debug, Default)]
pub struct OpenRequests {
    view_hash: u64,
    views: u64,
    open: BTreeMap<u64, usize>,
}

impl OpenRequests {
    /// A view begins, if it is another one.
    pub fn on_view(&mut self, view_hash: u64) {
        if self.view_hash != view_hash {
            self.view_hash = view_hash;
            self.views += 1;
        }
    }

    /// A request begins; what it is called at its end.
    pub fn begin(&mut self) -> u64 {
        *self.open.entry(self.views).or_default() += 1;
        self.views
    }

    /// A request was answered, or its client has gone.
    pub fn end(&mut self, begun: u64) {
        let Some(count) = self.open.get_mut(&begun) else { return };
        *count -= 1;
        if *count == 0 {
            self.open.remove(&begun);
        }
    }

    /// Whether all requests that were open when the view began are answered.
    pub fn are_answered(&self) -> bool {
        self.open.first_key_value().is_none_or(|(&begun, _)| begun >= self.views)
    }
}

/// The open requests of a node; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Settling {
    requests: Arc<Mutex<OpenRequests>>,
    answered: Arc<Notify>,
}

/// An open request; it is answered when this is dropped.
#[derive(Debug)]
pub struct Open {
    settling: Settling,
    begun: u64,
}

impl Settling {
    /// A request begins. To be called before it looks at the placement.
    pub fn open(&self) -> Open {
        let begun = self.requests().begin();
        Open { settling: self.clone(), begun }
    }

    /// Whether no request is open.
    pub fn is_idle(&self) -> bool {
        self.requests().open.is_empty()
    }

    /// Resolves when no request is open.
    pub async fn idle(&self) {
        while !self.is_idle() {
            sleep(IDLE_LOOK).await;
        }
    }

    fn requests(&self) -> MutexGuard<'_, OpenRequests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut requests = self.settling.requests();
        let were_answered = requests.are_answered();
        requests.end(self.begun);
        if !were_answered && requests.are_answered() {
            self.settling.answered.notify_one();
        }
    }
}

/// Publishes the view in which this node has settled, whenever it has. Runs until it is dropped.
pub async fn keep(settling: Settling, shards: Shards, peers: Peers, membership: Arc<Membership>) {
    let mut mesh = peers.changes();
    loop {
        let view_hash = peers.placement().view().hash();
        settling.requests().on_view(view_hash);
        let is_settled = shards.have_settled(view_hash) && settling.requests().are_answered();
        if is_settled && !peers.has_settled() {
            membership.publish(Update { settled: Some(view_hash), ..Update::default() });
        }
        tokio::select! {
            biased;
            () = mesh.changed() => {}
            () = shards.placed() => {}
            () = settling.answered.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_this_view_are_not_waited_for() {
        let mut requests = OpenRequests::default();
        requests.on_view(1);
        let before = requests.begin();
        assert!(requests.are_answered());
        requests.on_view(2);
        let after = requests.begin();
        assert!(!requests.are_answered());
        requests.on_view(2);
        requests.end(after);
        assert!(!requests.are_answered());
        requests.end(before);
        assert!(requests.are_answered());
    }
}
