//! A sink in memory, with moods.
//!
//! What a real sink keeps or refuses is decided when an attempt reaches it; what the node hears of
//! it comes later, or never. The invariant is that of [`Sink`]: every attempt that was taken is
//! answered once, and within [`ATTEMPT_MAX`]. What came is written down as it came, every
//! repetition too. The sink belongs to the machine of one node and outlives its processes; answers
//! are given at the begin of a turn of the node ([`SimulatedSink::answer`]).
//!
//! Bounded by [`WAITING_MAX`] unanswered attempts: then the queue is full, as a real one is.

use crate::allocator::charge;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::history::{SinkSaid, SpanNumber};
use crate::plan::Mood;
use crate::spans;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracemesh::sink::{ATTEMPT_MAX, Attempt, Outcome, Reply, Sink};

/// What a queue of 256 MiB has room for, at some KB an attempt.
const WAITING_MAX: usize = 50_000;

/// How long a good sink takes.
const ANSWER_AFTER: Duration = Duration::from_millis(4);

/// Something that reached the sink.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// Spans of one trace.
    pub spans: Vec<SpanNumber>,
    /// Whether they are marked as late.
    pub late: bool,
    /// Whether the sink has them now.
    pub kept: bool,
    /// What it says.
    pub said: SinkSaid,
    /// When the node hears it, if it still lives.
    pub heard_at: Duration,
}

/// The sink of one node.
pub struct SimulatedSink {
    seed: u64,
    disk: Arc<Disk>,
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    now: Duration,
    moods: BTreeMap<usize, Mood>,
    arrivals: Vec<Arrival>,
    /// By the time at which they are due, and sequence.
    answers: BTreeMap<(Duration, u64), (Outcome, Reply)>,
    sequence: u64,
    complaint: Option<String>,
}

/// What a sink does with one attempt.
#[derive(Clone, Copy)]
struct Fate {
    kept: bool,
    said: SinkSaid,
    after: Duration,
}

impl SimulatedSink {
    /// The sink of a node, whose dead letters are written to `disk`.
    pub fn new(seed: u64, name: &str, disk: Arc<Disk>) -> Self {
        let state = State {
            dice: Dice::new(seed, name),
            now: Duration::ZERO,
            moods: BTreeMap::new(),
            arrivals: Vec::new(),
            answers: BTreeMap::new(),
            sequence: 0,
            complaint: None,
        };
        Self { seed, disk, state: Mutex::new(state) }
    }

    /// From now on it behaves so, too; `number` tells this mood from others at the same time.
    pub fn set_mood(&self, number: usize, mood: Option<Mood>) {
        let mut state = self.lock();
        match mood {
            Some(mood) => state.moods.insert(number, mood),
            None => state.moods.remove(&number),
        };
    }

    /// Gives the answers that are due, and takes the time. To be called inside the node's runtime.
    pub fn answer(&self, now: Duration) {
        loop {
            let (outcome, reply) = {
                let mut state = self.lock();
                state.now = now;
                let Some(head) = state.answers.first_entry() else { return };
                if head.key().0 > now {
                    return;
                }
                head.remove()
            };
            reply.give(outcome);
        }
    }

    /// The node's process ended: nobody waits for answers any more.
    pub fn hang_up(&self) {
        let _answers = std::mem::take(&mut self.lock().answers);
    }

    /// What came since this was last called.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.lock().arrivals)
    }

    /// Something came that nobody sent: the first such thing.
    pub fn complaint(&self) -> Option<String> {
        self.lock().complaint.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, attempt: &Attempt, reply: Reply) {
        let mut state = self.lock();
        if state.answers.len() >= WAITING_MAX {
            return;
        }
        let fate = state.fate(self.disk.is_full());
        match spans::exported(self.seed, attempt) {
            Ok((spans, late)) => {
                let Fate { kept, said, after } = fate;
                let heard_at = state.now + after;
                state.arrivals.push(Arrival { spans, late, kept, said, heard_at });
            }
            Err(error) => {
                state.complaint.get_or_insert_with(|| error.to_string());
            }
        }
        let outcome = match fate.said {
            SinkSaid::Acknowledged => Outcome::Acknowledged,
            SinkSaid::Refused => Outcome::Refused,
            SinkSaid::Again => Outcome::Again { after: None },
            SinkSaid::Nothing => Outcome::Unanswered,
        };
        state.sequence += 1;
        let key = (state.now + fate.after, state.sequence);
        state.answers.insert(key, (outcome, reply));
    }
}

impl State {
    /// Every mood draws, whatever the others do; the worst one counts.
    fn fate(&mut self, disk_is_full: bool) -> Fate {
        let mut fate = Fate { kept: true, said: SinkSaid::Acknowledged, after: ANSWER_AFTER };
        let Self { moods, dice, .. } = self;
        for mood in moods.values() {
            let drawn = dice.share();
            match *mood {
                Mood::Slow { for_ms } => fate.after = fate.after.max(for_ms.duration()),
                Mood::Failing { share } if drawn < share => {
                    fate.kept = false;
                    fate.said = SinkSaid::Again;
                }
                Mood::Lying { share } if drawn < share => fate.said = SinkSaid::Again,
                Mood::Mute { share } if drawn < share => fate.said = SinkSaid::Nothing,
                Mood::Refusing { share } if drawn < share && disk_is_full => {
                    // Its dead letter cannot be written.
                    fate.kept = false;
                    fate.said = SinkSaid::Again;
                }
                Mood::Refusing { share } if drawn < share => {
                    fate.kept = false;
                    fate.said = SinkSaid::Refused;
                }
                Mood::Dead => {
                    fate.kept = false;
                    fate.said = SinkSaid::Nothing;
                }
                Mood::Failing { .. }
                | Mood::Lying { .. }
                | Mood::Mute { .. }
                | Mood::Refusing { .. } => {}
            }
        }
        if fate.said == SinkSaid::Nothing || fate.after >= ATTEMPT_MAX {
            fate.said = SinkSaid::Nothing;
            fate.after = ATTEMPT_MAX;
        }
        fate
    }
}

impl Sink for SimulatedSink {
    fn name(&self) -> &str {
        "simulated"
    }

    fn submit(&self, attempt: Arc<Attempt>, reply: Reply) {
        charge(None, || self.take(&attempt, reply));
    }
}

impl fmt::Debug for SimulatedSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedSink").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use tracemesh::spans::TraceId;

    fn outcomes(mood: Option<Mood>, disk: &Arc<Disk>) -> (Vec<Outcome>, Vec<bool>) {
        let sink = SimulatedSink::new(7, "sink", Arc::clone(disk));
        sink.set_mood(0, mood);
        let id = TraceId(spans::trace_id(7, 1));
        let attempt =
            Attempt { trace_id: id, chunks: Vec::new(), span_count: 0, bytes: 0, due: None };
        let (to, mut answers) = mpsc::channel(100);
        for number in 0..100 {
            let reply = Reply::new(to.clone(), id, number, 0);
            sink.submit(Arc::new(attempt.clone()), reply);
        }
        sink.answer(Duration::ZERO);
        assert!(answers.try_recv().is_err(), "no answer comes at once");
        sink.answer(ATTEMPT_MAX);
        let mut answered: Vec<_> = std::iter::from_fn(|| answers.try_recv().ok()).collect();
        assert_eq!(answered.len(), 100, "every attempt is answered in time");
        answered.sort_unstable_by_key(|answered| answered.number);
        let answered = answered.iter().map(|answered| answered.outcome).collect();
        (answered, sink.take_arrivals().iter().map(|arrival| arrival.kept).collect())
    }

    #[test]
    fn sink_keeps_and_says_what_its_mood_tells() {
        let disk = Arc::new(Disk::default());
        let again = Outcome::Again { after: None };
        let half = 0.5;
        for (mood, said, kept) in [
            (None, Outcome::Acknowledged, true),
            (Some(Mood::Dead), Outcome::Unanswered, false),
            (Some(Mood::Failing { share: half }), again, false),
            (Some(Mood::Lying { share: half }), again, true),
            (Some(Mood::Mute { share: half }), Outcome::Unanswered, true),
            (Some(Mood::Refusing { share: half }), Outcome::Refused, false),
        ] {
            let (outcomes, keeps) = outcomes(mood, &disk);
            let badly = outcomes.iter().zip(&keeps).filter(|(outcome, _)| **outcome == said);
            let badly: Vec<_> = badly.collect();
            assert!(badly.iter().all(|(_, keep)| **keep == kept), "{mood:?}");
            assert!(badly.len() > 25, "{mood:?}: {}", badly.len());
        }
    }

    #[test]
    fn nothing_is_refused_for_good_while_the_dead_letter_cannot_be_written() {
        let disk = Arc::new(Disk::default());
        disk.fill();
        let (outcomes, _) = outcomes(Some(Mood::Refusing { share: 1.0 }), &disk);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Again { after: None }));
    }
}
