//! Where everything that comes out is noted: the ledger, and a signal that it changed.
//!
//! Several tasks note arrivals, one waits for what is missing. The ledger is locked for one
//! request or line at a time, and never while something is awaited.

use super::ledger::Ledger;
use super::plan::Plan;
use std::sync::Mutex;
use tokio::sync::Notify;

/// The ledger as tasks share it.
#[derive(Debug)]
pub(super) struct Arrivals {
    plan: Plan,
    ledger: Mutex<Ledger>,
    changed: Notify,
}

impl Arrivals {
    /// Nothing arrived yet.
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, ledger: Mutex::new(Ledger::new(plan)), changed: Notify::new() }
    }

    /// Notes one attempt: `scan` hands trace id and span id of each of its spans to the function
    /// that it is given. When it fails, the attempt is noted as unreadable.
    pub(super) fn note<E>(
        &self,
        scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8])) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut spans = Vec::new();
        let scanned = scan(&mut |trace_id, span_id| {
            spans.push(self.plan.span_number(trace_id, span_id));
        });
        self.with(|ledger| match &scanned {
            Ok(()) => ledger.on_attempt(spans.into_iter()),
            Err(_) => ledger.on_unreadable(),
        });
        self.changed.notify_one();
        scanned
    }

    /// Reads or changes the ledger.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut self.ledger.lock().expect("the ledger's own assertions hold"))
    }

    /// Waits until something was noted since this last returned.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
