//! The one way in which this crate starts tasks.
//!
//! Every task belongs to a [`Tasks`], ends when it stops, and is awaited. The invariant: a panic in
//! one of them is a bug of ours and stops all of them, so that the node sees [`crate::Incoming`]
//! end instead of living on with half a transport.

use std::future::Future;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs `task` until it ends or everything stops; after that it is not run at all.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let _guard = StopOnPanic(stop.clone());
            stop.run_until_cancelled(task).await;
        });
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
    }

    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Waits until every task has ended; only after [`Tasks::stop`].
    pub(crate) async fn ended(&self) {
        self.tracker.wait().await;
    }
}

struct StopOnPanic(CancellationToken);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a task of the transport panicked; the transport stops");
            self.0.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_one_task_stops_the_others() {
        let tasks = Tasks::default();
        tasks.spawn(std::future::pending());
        tasks.spawn(async { panic!("planted") });
        tasks.stopped().await;
        tasks.stop();
        tasks.ended().await;
    }
}
