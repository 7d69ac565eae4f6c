//! The tasks of a node: each has a name, is refused after closing, and is awaited.
//!
//! Tasks that belong to one owner, such as a listener's connections or a sink's attempts, are in a
//! set of its own and end with it.
//!
//! A panic in a task ends the node: what the task owned is gone, and limping on would hide it.
//! (A panic over one trace is caught where the trace is handled and never gets here.)

use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owner of the tasks of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    panicked: watch::Sender<Option<&'static str>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            panicked: watch::Sender::new(None),
        }
    }
}

impl Tasks {
    /// Runs `task` until it ends; refused, and dropped, once [`Self::stop`] was called.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        if self.tracker.is_closed() {
            tracing::debug!(task = name, "refused after stop");
            return;
        }
        let panicked = self.panicked.clone();
        self.tracker.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked");
                panicked.send_replace(Some(name));
            }
        });
    }

    /// Cancelled when tasks should end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Resolves with the name of the first task that panicked; never otherwise.
    pub async fn panicked(&self) -> &'static str {
        let mut panicked = self.panicked.subscribe();
        match panicked.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Asks all tasks to end and waits until they did.
    pub async fn stop(&self) {
        self.tracker.close();
        self.stop.cancel();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_waits_for_tasks_and_refuses_new_ones() {
        let tasks = Tasks::default();
        let (ended, mut end) = watch::channel(false);
        let stopping = tasks.stopping();
        tasks.spawn("first", async move {
            stopping.cancelled().await;
            ended.send_replace(true);
        });
        tasks.stop().await;
        assert!(*end.borrow_and_update());
        let late = end.clone();
        tasks.spawn("late", async move { drop(late) });
        tasks.stop().await;
    }

    #[tokio::test]
    async fn panic_is_told_with_the_name_of_its_task() {
        let tasks = Tasks::default();
        tasks.spawn("clumsy", async { panic!("planted") });
        assert_eq!(tasks.panicked().await, "clumsy");
    }
}
