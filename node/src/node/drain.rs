//! How a node stops in order, and what it finds of that at its next start (PROTOCOL.md, M4).
//!
//! Not ready but accepting, then no new requests, then leave: placing brings what is held to those
//! who stay, and what is left at `drain.timeout` is spooled. The invariant: a node says that it is
//! drained only when nothing that it acknowledged is held here alone.

use super::{End, Node, Parts, StartError};
use crate::entry::REQUEST_MAX;
use crate::ingest::Admission;
use crate::sink::Workers;
use crate::spool::{Spool, SpoolStore};
use crate::tasks::Tasks;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How often a draining node looks whether anything is left.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

impl Node {
    /// PROTOCOL.md, M4: not ready but accepting, then no new requests, then leave and hand on.
    /// `None` when time is over and something is left.
    pub(super) async fn drain(&self) -> Option<End> {
        tracing::info!("draining");
        self.parts.draining.cancel();
        self.parts.admission.send_replace(Admission::Leaving);
        sleep(self.drain.announce).await;
        let begun = Instant::now();
        self.close_ingest.cancel();
        while self.parts.in_flight.bytes() > 0 && begun.elapsed() < REQUEST_MAX {
            sleep(DRAIN_LOOK).await;
        }
        self.parts.membership.leave();
        let empty = async {
            loop {
                while !self.is_empty() {
                    sleep(DRAIN_LOOK).await;
                }
                // A peer whose view is old may still send something.
                self.stop_answering().await;
                if self.is_empty() {
                    return;
                }
                self.handlers.send_replace(Some(self.answering.clone()));
            }
        };
        let left = self.drain.timeout.saturating_sub(begun.elapsed());
        if timeout(left, empty).await.is_ok() {
            self.spool.clear();
            return Some(End::Drained);
        }
        // So nothing that was answered comes after what is spooled.
        self.stop_answering().await;
        let _ = timeout(REQUEST_MAX, self.settling.idle()).await;
        None
    }

    /// Spools what is left. The sinks have stopped, so what they took is done.
    pub(super) async fn spool_rest(&self) -> End {
        let spool = self.spool.place();
        let rest = self.spool.end_reading();
        let held = self.parts.shards.spooled().await;
        let span_count = self.held();
        if span_count == 0 && rest.is_empty() {
            let traces = self.parts.shards.unplaced();
            if traces > 0 {
                tracing::warn!(traces, "not all that is remembered was handed over in time");
            }
            self.spool.discard(&rest);
            return End::Drained;
        }
        match self.spool.write(held, rest) {
            Ok(()) => End::Left { span_count, spool },
            Err(source) => End::Lost { span_count, spool, source },
        }
    }

    /// Nobody is answered any more, and what was answered before that is held. A shard publishes
    /// what it holds before it answers.
    async fn stop_answering(&self) {
        self.handlers.send_replace(None);
        self.answering.answered().await;
    }

    /// Nothing is held or unplaced, and every shard knows the view of a node that leaves.
    fn is_empty(&self) -> bool {
        self.settling.is_idle()
            && self.spool.is_read()
            && is_placed(&self.parts)
            && self.held() == 0
    }

    fn held(&self) -> u64 {
        self.parts.shards.held().0.iter().sum()
    }
}

/// Ends the sinks in order, once.
pub(super) async fn shutdown(workers: &mut Option<Workers>) {
    if let Some(workers) = workers.take() {
        workers.shutdown().await;
    }
}

/// Returns when a sink has failed.
pub(super) async fn failed(workers: &mut Option<Workers>) {
    match workers {
        Some(workers) => workers.failed().await,
        None => std::future::pending().await,
    }
}

/// The spool of the last stop, if there is one.
pub(super) fn spool(store: Arc<dyn SpoolStore>) -> Result<Spool, StartError> {
    let place = store.place();
    Spool::open(store).map_err(|source| StartError::Spool { place, source })
}

/// Holds what the last stop left, and removes it when another node has it too, or nobody needs it.
pub(super) fn read_spool(spool: &Spool, parts: &Parts, tasks: &Tasks) {
    let (spool, parts, stop) = (spool.clone(), parts.clone(), tasks.stopping());
    tasks.spawn("spool", async move {
        let is_placed = |read_at: Instant| {
            let has_peers = parts.peers.placement().view().members().len() > 1;
            let is_done = || parts.shards.held_since().iter().flatten().all(|at| *at > read_at);
            is_placed(&parts) && (has_peers || is_done())
        };
        let _ = stop.run_until_cancelled(spool.read_back(&parts.shards, is_placed)).await;
    });
}

/// Whether nothing is unplaced, as every shard says that knows the present view.
fn is_placed(parts: &Parts) -> bool {
    let view_hash = parts.peers.placement().view().hash();
    parts.shards.have_settled(view_hash) && parts.shards.unplaced() == 0
}
