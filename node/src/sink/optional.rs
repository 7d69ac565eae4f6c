//! A sink that nobody waits for (`required: false`).
//!
//! For the owner of a trace it owes nothing from the moment at which it took an attempt: it answers
//! at once, and tries on its own until its server has the attempt or refuses it. What it has no
//! room for, and what is left when the node ends, goes to its dead-letter file; what that does not
//! take is dropped, counted and said.
//!
//! The invariant: what was taken is acknowledged, a dead letter, or counted as dropped, unless the
//! process dies: then its queue is gone, which is why the other sinks are asked first. Bounded by
//! the bytes of its queue, and by [`SPILL_BYTES_MAX`] on their way to the disk; when the disk is
//! slower than that, owners wait after all.

use super::dead_letter::DeadLetters;
use super::queue::{ATTEMPTS_MAX, Batching, Inbox, Queue, queue};
use super::reply::submit;
use super::{Attempt, Outcome, Reply, Sink, joined};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Bytes of spans on their way to the dead-letter file: some requests, so that the disk has enough
/// to do, and little beside a queue.
const SPILL_BYTES_MAX: usize = 16 << 20;
/// What is written to the dead-letter file at once.
const SPILLING: Batching = Batching { count_min: 1, linger: Duration::ZERO, bytes_max: 4 << 20 };
/// The first wait before an attempt is made again, and the longest: as owners do.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// The end that owners have.
pub(super) struct Optional {
    name: String,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
    taken: mpsc::Sender<Taken>,
    spill: Arc<Queue>,
}

/// An attempt with its share of the bound.
struct Taken {
    attempt: Arc<Attempt>,
    _permit: OwnedSemaphorePermit,
}

/// The end that keeps what was taken.
pub(super) struct Keeper {
    server: Arc<dyn Sink>,
    taken: mpsc::Receiver<Taken>,
    spilled: Inbox,
    dead_letters: DeadLetters,
}

/// Puts a sink of at most `bytes_max` behind one that nobody waits for.
pub(super) fn optional(
    server: Arc<dyn Sink>,
    bytes_max: usize,
    dead_letters: DeadLetters,
) -> (Arc<Optional>, Keeper) {
    let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX).max(1);
    let (sender, taken) = mpsc::channel(ATTEMPTS_MAX);
    let (spill, spilled) = queue(server.name().to_owned(), SPILL_BYTES_MAX, Gauge::default());
    let name = server.name().to_owned();
    let bytes = Arc::new(Semaphore::new(bytes_max as usize));
    let optional = Optional { name, bytes, bytes_max, taken: sender, spill };
    (Arc::new(optional), Keeper { server, taken, spilled, dead_letters })
}

impl Sink for Optional {
    fn name(&self) -> &str {
        &self.name
    }

    fn submit(&self, attempt: Arc<Attempt>, reply: Reply) {
        let bytes = u32::try_from(attempt.bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        let Ok(permit) = self.bytes.clone().try_acquire_many_owned(bytes) else {
            return self.spill.submit(attempt, reply);
        };
        let taken = Taken { attempt, _permit: permit };
        if let Err(full) = self.taken.try_send(taken) {
            return self.spill.submit(full.into_inner().attempt, reply);
        }
        reply.give(Outcome::Acknowledged);
    }
}

impl Keeper {
    /// Works until nobody submits any more, or `stop`; then writes down what is left.
    pub(super) async fn run(self, stop: CancellationToken) {
        let Self { server, mut taken, spilled, dead_letters } = self;
        let deliver = async {
            let mut trying = FuturesUnordered::new();
            loop {
                select! {
                    biased;
                    () = stop.cancelled() => break,
                    Some(()) = trying.next() => {}
                    next = taken.recv() => match next {
                        Some(next) => trying.push(deliver(&*server, next, &dead_letters, &stop)),
                        None => break,
                    },
                }
            }
            taken.close();
            while let Some(left) = taken.recv().await {
                trying.push(deliver(&*server, left, &dead_letters, &stop));
            }
            while trying.next().await.is_some() {}
        };
        tokio::join!(deliver, spill(spilled, &dead_letters, &stop));
    }
}

/// Tries until the server has the attempt or refuses it; at the end of the node it becomes a dead
/// letter.
async fn deliver(
    server: &dyn Sink,
    taken: Taken,
    dead_letters: &DeadLetters,
    stop: &CancellationToken,
) {
    let mut backoff = BACKOFF_MIN;
    while !stop.is_cancelled() {
        let after = match submit(server, taken.attempt.clone()).await {
            Outcome::Acknowledged | Outcome::Refused => return,
            Outcome::Again { after } => after.unwrap_or_default(),
            Outcome::Unanswered => Duration::ZERO,
        };
        // Whoever stops wants to know no more.
        let _ = stop.run_until_cancelled(sleep(after.max(backoff))).await;
        backoff = (2 * backoff).min(BACKOFF_MAX);
    }
    bury(vec![taken.attempt.clone()], "the node ended first", dead_letters).await;
}

/// Writes down what found no room.
async fn spill(mut spilled: Inbox, dead_letters: &DeadLetters, stop: &CancellationToken) {
    loop {
        let batch = select! {
            biased;
            () = stop.cancelled() => return,
            batch = spilled.next_batch(&SPILLING) => batch,
        };
        let Some(batch) = batch else { return };
        let attempts = batch.iter().map(|pending| pending.attempt.clone()).collect();
        bury(attempts, "the queue of the sink is full", dead_letters).await;
        batch.into_iter().for_each(|pending| pending.answer(Outcome::Refused));
    }
}

async fn bury(attempts: Vec<Arc<Attempt>>, reason: &'static str, dead_letters: &DeadLetters) {
    let letters = dead_letters.clone();
    let written = spawn_blocking(move || {
        attempts.iter().for_each(|attempt| letters.refuse_or_drop(attempt, reason));
    });
    joined(written.await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::WallClock;
    use crate::sink::Metrics;
    use crate::sink::testing::trace;
    use prometheus_client::registry::Registry;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::time::SystemTime;
    use tokio::task::JoinSet;

    /// Answers by script, by the number of attempts that came before.
    struct Server {
        says: fn(usize) -> Outcome,
        came: Mutex<Vec<Arc<Attempt>>>,
    }

    impl Sink for Server {
        fn name(&self) -> &str {
            "otlp"
        }

        fn submit(&self, attempt: Arc<Attempt>, reply: Reply) {
            let mut came = self.came.lock().unwrap();
            reply.give((self.says)(came.len()));
            came.push(attempt);
        }
    }

    struct Rig {
        sink: Arc<Optional>,
        server: Arc<Server>,
        letters: PathBuf,
        stop: CancellationToken,
        keeper: JoinSet<()>,
        _directory: tempfile::TempDir,
    }

    fn rig(says: fn(usize) -> Outcome, bytes_max: usize, letter_bytes_max: u64) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let letters = directory.path().join("otlp.jsonl");
        let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH);
        let metrics = Metrics::register(&mut Registry::default());
        let dead_letters =
            DeadLetters::new(letters.clone(), letter_bytes_max, "otlp".into(), clock, &metrics);
        let server = Arc::new(Server { says, came: Mutex::default() });
        let (sink, keeper) = optional(server.clone(), bytes_max, dead_letters);
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(keeper.run(stop.clone()));
        Rig { sink, server, letters, stop, keeper: tasks, _directory: directory }
    }

    impl Rig {
        fn lines(&self) -> usize {
            fs::read_to_string(&self.letters).unwrap_or_default().lines().count()
        }

        /// Waits until so many attempts came to the server.
        async fn wait_for(&self, count: usize) {
            let wait = async {
                while self.came().len() < count {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), wait).await.expect("they come");
        }

        fn came(&self) -> Vec<u8> {
            self.server.came.lock().unwrap().iter().map(|a| a.trace_id.0[0]).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn owner_is_answered_at_once_and_the_server_gets_it_in_the_end() {
        let rig = rig(|n| if n < 5 { Outcome::AGAIN } else { Outcome::Acknowledged }, 1 << 20, 0);
        let outcome = submit(&*rig.sink, trace(1, 2));
        assert_eq!(outcome.await, Outcome::Acknowledged);
        rig.wait_for(6).await;
        sleep(10 * BACKOFF_MAX).await;
        assert_eq!(rig.came(), [1; 6]);
    }

    #[tokio::test]
    async fn what_finds_no_room_is_a_dead_letter_and_pushes_nobody_back() {
        let attempt = trace(1, 2);
        let rig = rig(|_| Outcome::AGAIN, attempt.bytes, 1 << 20);
        assert_eq!(submit(&*rig.sink, attempt).await, Outcome::Acknowledged);
        for n in 2..=9 {
            assert_eq!(submit(&*rig.sink, trace(n, 2)).await, Outcome::Refused);
        }
        assert_eq!(rig.lines(), 8);
        assert!(rig.came().iter().all(|n| *n == 1));
    }

    #[tokio::test]
    async fn burst_that_has_room_in_the_queue_is_no_dead_letter() {
        let rig = rig(|_| Outcome::Acknowledged, 1 << 30, 1 << 20);
        for _ in 0..5_000 {
            // Nothing else runs until the first await.
            drop(submit(&*rig.sink, trace(1, 1)));
        }
        rig.wait_for(5_000).await;
        assert_eq!(rig.lines(), 0);
    }

    #[tokio::test]
    async fn what_no_file_takes_is_dropped_and_pushes_nobody_back() {
        let rig = rig(|_| Outcome::AGAIN, 1, 10);
        assert_eq!(submit(&*rig.sink, trace(1, 1)).await, Outcome::Acknowledged);
        assert_eq!(submit(&*rig.sink, trace(2, 1)).await, Outcome::Refused);
        assert_eq!(rig.lines(), 0);
    }

    #[tokio::test]
    async fn what_is_left_at_the_end_is_a_dead_letter() {
        let mut rig = rig(|_| Outcome::AGAIN, 1 << 20, 1 << 20);
        for n in 1..=3 {
            assert_eq!(submit(&*rig.sink, trace(n, 1)).await, Outcome::Acknowledged);
        }
        rig.stop.cancel();
        rig.keeper.join_next().await.unwrap().unwrap();
        assert_eq!(rig.lines(), 3);
        assert_eq!(submit(&*rig.sink, trace(4, 1)).await, Outcome::AGAIN);
    }
}
