//! What the consoles of a node show, and what they may do to it.
//!
//! All of them show the same. Each ends with the node, as its last task.

use super::{Parts, report};
use crate::console::{Source, serve};
use crate::explain::explain;
use crate::listen::Listener;
use crate::tasks::Tasks;
use std::sync::Arc;

pub(super) fn start(listeners: Vec<Listener>, parts: &Parts, tasks: &Tasks) {
    let (shards, peers) = (parts.shards.clone(), parts.peers.clone());
    let source = Source {
        status: Arc::new(report::reporter(parts)),
        registry: Arc::clone(&parts.registry),
        explain: Arc::new(move |trace_id| {
            let (shards, peers) = (shards.clone(), peers.clone());
            Box::pin(async move { explain(&shards, &peers, trace_id).await })
        }),
        draining: parts.draining.clone(),
        ended: parts.ended.subscribe(),
    };
    for listener in listeners {
        tasks.spawn("console", serve(listener, source.clone(), tasks.stopping()));
    }
}
