//! The task that moves time and bytes between gossip and the member, and the one that looks up
//! seeds.
//!
//! The loop comes round every [`TURN`], and at once when there is reason: it reads what gossip
//! heard, tells the member, and lets gossip say what the member says. Gossip runs in a task of its
//! library's and is supervised here: when it ends it is started again, as a new generation, after a
//! pause that grows. The invariant: every time the loop comes round it asks first whether this
//! process stood still, before it believes anything that was heard.
//!
//! Owns gossip and the record of starts. Waits for nobody: each turn is bounded by gossip's own
//! lock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::gossip::{Broken, Gossip, News};
use crate::member::Step;
use crate::membership::Shared;
use crate::seeds::{Found, Seeds, TRY_AGAIN, TRY_AGAIN_CALM};
use crate::stand_still::TURN;
use crate::starts::{STEADY_AFTER, StartRecord, StartStore, generation_above};

/// Peers that are told at once of a change that the protocol waits for; gossip reaches the others.
const TELL_AT_ONCE: usize = 16;

/// Before gossip is started again after it ended by itself: doubled each time, up to the second.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the loop owns.
pub(crate) struct Turns {
    shared: Arc<Shared>,
    starts: Option<Arc<dyn StartStore>>,
    record: StartRecord,
    started: Instant,
    gossip: Option<Gossip>,
    /// When gossip is to be started; never, once this node was refused.
    gossip_due: Option<Instant>,
    gossip_since: Instant,
    /// How often in a row gossip ended soon after it was started.
    failures: u32,
    jitter_seed: u64,
    /// Seeds that are to be asked as soon as gossip runs.
    seeds_due: Vec<SocketAddr>,
}

/// Why the loop comes round.
enum Reason {
    Stop,
    GossipEnded(String),
    GossipWith(SocketAddr),
    Seeds(Found),
    Turn,
}

impl Turns {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: StartRecord,
        starts: Option<Arc<dyn StartStore>>,
        jitter_seed: u64,
    ) -> Self {
        let now = Instant::now();
        let wait = record.rejoin_wait();
        if !wait.is_zero() {
            let starts = record.unsteady_starts;
            tracing::warn!(?wait, starts, "this node keeps ending soon after its start: it waits");
        }
        Self {
            shared,
            starts,
            record,
            started: now,
            gossip: None,
            gossip_due: Some(now + wait),
            gossip_since: now,
            failures: 0,
            jitter_seed,
            seeds_due: Vec::new(),
        }
    }

    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<SocketAddr>,
        mut lookups: mpsc::Receiver<Found>,
    ) {
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = self.shared.stop.subscribe();
        let wake = Arc::clone(&self.shared.wake);
        loop {
            let reason = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => Reason::Stop,
                cause = ended(self.gossip.as_ref()) => Reason::GossipEnded(cause),
                Some(address) = requests.recv() => Reason::GossipWith(address),
                Some(found) = lookups.recv() => Reason::Seeds(found),
                () = wake.notified() => Reason::Turn,
                _ = turns.tick() => Reason::Turn,
            };
            self.shared.came_round();
            match reason {
                Reason::Stop => break,
                Reason::GossipEnded(cause) => self.on_gossip_ended(&cause),
                Reason::GossipWith(address) => self.gossip_with(address),
                Reason::Seeds(found) => {
                    self.shared.change(|member| member.on_seeds(found.kind));
                    self.seeds_due = found.addresses;
                    self.turn().await;
                }
                Reason::Turn => self.turn().await,
            }
        }
        if let Some(gossip) = self.gossip.take() {
            gossip.stop().await;
        }
        // A refused node counts as crashed: started again and again it would not be met any better.
        if self.shared.status().refused.is_none() {
            self.note_steady();
        }
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        if self.record.unsteady_starts > 0 && now >= self.started + STEADY_AFTER {
            self.note_steady();
        }
        if self.gossip_due.is_some_and(|due| now >= due) {
            self.start_gossip(now).await;
        }
        if now >= self.gossip_since + STEADY_AFTER {
            self.failures = 0;
        }
        let Some(gossip) = self.gossip.as_ref() else {
            return;
        };
        match self.read_and_say(gossip, now).await {
            Ok(Step::Continue) => {
                for address in std::mem::take(&mut self.seeds_due) {
                    self.gossip_with(address);
                }
            }
            Ok(Step::StartAbove(generation)) => {
                tracing::warn!(
                    generation,
                    "a former self is in the way: gossip starts again as a newer life"
                );
                self.stop_gossip().await;
                self.raise_generation(generation);
                self.start_gossip(now).await;
            }
            Ok(Step::End) => {
                if let Some(reason) = self.shared.status().refused {
                    tracing::error!(%reason, "this node cannot be a member");
                }
                self.stop_gossip().await;
            }
            Err(Broken) => self.on_gossip_ended("it panicked in a call"),
        }
    }

    /// Gossip to member, member to gossip, and to peers at once what the protocol waits for.
    async fn read_and_say(&self, gossip: &Gossip, now: Instant) -> Result<Step, Broken> {
        let sightings = gossip.sightings().await?;
        let (step, says, told_first) = self.shared.change(|member| {
            let step = member.on_sightings(now, &sightings);
            // Those after this node in the order of ids, so that each node tells other ones first.
            let (before, after): (Vec<_>, Vec<_>) =
                member.peers().values().partition(|peer| peer.id < member.identity().id);
            let peers = after.into_iter().chain(before).take(TELL_AT_ONCE);
            let addresses: Vec<_> = peers.map(|peer| peer.mesh_address).collect();
            (step, member.says().clone(), addresses)
        });
        if gossip.say(&says).await? == News::Urgent {
            for address in told_first {
                gossip.with_address(address);
            }
        }
        Ok(step)
    }

    fn gossip_with(&self, address: SocketAddr) {
        if let Some(gossip) = &self.gossip {
            gossip.with_address(address);
        }
    }

    async fn start_gossip(&mut self, now: Instant) {
        let generation = self.record.generation;
        let (identity, says) = self.shared.change(|member| {
            member.on_gossip_started(now, generation);
            (member.identity().clone(), member.says().clone())
        });
        let (wire, wake) = (Arc::clone(&self.shared.wire), Arc::clone(&self.shared.wake));
        self.gossip_due = None;
        self.gossip_since = now;
        match Gossip::start(&identity, generation, &says, wire, wake).await {
            Ok(gossip) => self.gossip = Some(gossip),
            Err(Broken) => self.on_gossip_ended("it did not start"),
        }
    }

    async fn stop_gossip(&mut self) {
        self.gossip_due = None;
        if let Some(gossip) = self.gossip.take() {
            gossip.stop().await;
        }
    }

    /// It is started again, as another generation: with the same one it would stay dead to others.
    fn on_gossip_ended(&mut self, cause: &str) {
        if let Some(gossip) = self.gossip.take() {
            gossip.abandon();
        }
        let pause = restart_pause(self.failures, self.jitter_seed);
        tracing::warn!(cause, ?pause, "gossip ended and is started again");
        self.failures = self.failures.saturating_add(1);
        self.raise_generation(0);
        self.gossip_due = Some(Instant::now() + pause);
    }

    fn raise_generation(&mut self, above: u64) {
        let wall = (self.shared.wall_clock)();
        self.record.generation = generation_above(self.record.generation.max(above), wall);
        self.store_record();
    }

    fn note_steady(&mut self) {
        self.record.unsteady_starts = 0;
        self.store_record();
    }

    /// Where it cannot be written now, gossip goes on: the next start has the clock, and others
    /// know.
    fn store_record(&self) {
        if let Some(Err(error)) = self.starts.as_ref().map(|starts| starts.store(self.record)) {
            tracing::warn!(%error, "cannot write the record of starts");
        }
    }
}

async fn ended(gossip: Option<&Gossip>) -> String {
    match gossip {
        Some(gossip) => gossip.ended().await,
        None => std::future::pending().await,
    }
}

/// Doubled at each failure, and up to a quarter more, so that nodes that failed together do not
/// start together.
fn restart_pause(failures: u32, jitter_seed: u64) -> Duration {
    let pause = RESTART_PAUSE * (1 << failures.min(8));
    let jitter =
        jitter_seed.wrapping_add(failures.into()).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let jitter = u32::try_from(jitter).unwrap_or_default();
    let quarter = pause.min(RESTART_PAUSE_MAX) / 4;
    pause.min(RESTART_PAUSE_MAX) + quarter.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
}

/// Looks seeds up, try after try, until the membership stops.
pub(crate) async fn look_up_seeds(
    mut seeds: Seeds,
    shared: Arc<Shared>,
    found: mpsc::Sender<Found>,
) {
    let mut stop = shared.stop.subscribe();
    let tries = async {
        while found.send(seeds.find().await).await.is_ok() {
            let pause = if shared.knows_nobody() { TRY_AGAIN } else { TRY_AGAIN_CALM };
            sleep(pause).await;
        }
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = tries => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ_between_nodes() {
        let pauses: Vec<_> = (0..40).map(|failures| restart_pause(failures, 7)).collect();
        assert!(pauses[0] >= RESTART_PAUSE && pauses[0] <= RESTART_PAUSE * 5 / 4);
        assert!(pauses[..8].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(pauses.iter().all(|pause| *pause <= RESTART_PAUSE_MAX * 5 / 4));
        assert!(pauses[39] >= RESTART_PAUSE_MAX);
        assert_ne!(restart_pause(0, 7), restart_pause(0, 8));
    }
}
