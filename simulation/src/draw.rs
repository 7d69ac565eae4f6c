//! From a seed to a plan: every option of a swarm run is drawn here.
//!
//! Each class of faults is off in some seeds and far up in others, so that rare combinations come
//! up and no fault always hides behind another one. In half of the seeds nodes fail one at a time
//! and seldom, because that is what is promised; in the others anything goes. What a seed draws may
//! change with a release; a plan that matters is kept as a plan.

use crate::dice::Dice;
use crate::plan::{
    ClusterOptions, Cut, Data, Fault, Generation, LinkOptions, LoadOptions, Millis, Mood,
    NodeNumber, Plan, Restart, Seen, Timed,
};
use std::ops::Range;

/// How long the healed cluster may take: a trace that waits for its sink's backoff, a question that
/// was asked before, and SETTLE_MAX, each once and none of them quick.
const LIVENESS: Millis = Millis(180_000);

/// Nothing fails before the nodes have met.
const QUIET_MS: u64 = 5_000;

/// Virtual time after which one failure has surely been dealt with before the next one.
const FAILURES_APART_MS: u64 = 40_000;

/// What was held by a node that crashed has surely been copied after so long.
const COPIED_MS: u64 = 25_000;

/// Time in which a node becomes a member again, and after which one that is cut off is not yet
/// taken for dead.
const UNNOTICED_MS: u64 = 1_400;

/// The plan of a seed, with so much time in which anything may fail.
pub fn plan(seed: u64, safety: Millis) -> Plan {
    let mut drawing = Drawing { dice: Dice::new(seed, "plan"), safety, nodes: 0, spare: 0 };
    drawing.plan(seed)
}

struct Drawing {
    dice: Dice,
    safety: Millis,
    nodes: usize,
    spare: usize,
}

/// How much there is of a class of faults.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Amount {
    Off,
    Some,
    Much,
}

impl Drawing {
    fn plan(&mut self, seed: u64) -> Plan {
        self.nodes = [3, 3, 3, 4, 5, 5, 6, 7, 9][self.dice.index(9)];
        self.spare = self.dice.index(3);
        let one_at_a_time = self.dice.chance(0.5);
        let memory = self.amount();
        let link = self.link();
        // What a lossy link cannot carry is no question of memory.
        let is_lossy = link.loss > 0.0 || link.reordering > 0.0;
        let memory = if is_lossy { Amount::Off } else { memory };
        let cluster = self.cluster(memory);
        let load = self.load(memory);
        let mut faults = Vec::new();
        if one_at_a_time {
            self.failures_one_at_a_time(&mut faults);
        } else {
            self.failures(&mut faults);
        }
        self.pauses(&mut faults);
        self.clocks(&mut faults);
        self.network(&mut faults, memory);
        self.sinks_and_disks(&mut faults);
        if memory == Amount::Much {
            self.use_up_memory(&mut faults);
        } else if one_at_a_time && self.dice.chance(0.3) {
            self.hold_long(&mut faults, &cluster);
        } else if one_at_a_time && self.dice.chance(0.3) {
            self.restart_one_by_one(&mut faults);
        }
        faults.sort_by_key(|timed| timed.at_ms);
        Plan {
            seed,
            nodes: self.nodes,
            spare_nodes: self.spare,
            safety_ms: self.safety,
            liveness_ms: LIVENESS,
            cluster,
            link,
            load,
            faults,
        }
    }

    fn cluster(&mut self, memory: Amount) -> ClusterOptions {
        let zones = [0, 0, 2, 3][self.dice.index(4)];
        let megabytes = if memory == Amount::Off { 256 } else { self.dice.within(16..33) };
        ClusterOptions {
            replicas: u8::from(!self.dice.chance(0.05)),
            zones,
            shards: 1 + self.dice.index(4),
            memory_bytes: megabytes << 20,
            root_delay_ms: Millis(self.dice.within(200..3_000)),
            age_max_ms: Millis(self.dice.within(4_000..12_000)),
            drain_announce_ms: Millis(self.dice.within(0..2_000)),
            drain_timeout_ms: Millis(self.dice.within(15_000..60_000)),
        }
    }

    fn link(&mut self) -> LinkOptions {
        let bad = self.amount();
        LinkOptions {
            latency_us: self.dice.within(1_000..8_000),
            jitter_us: self.dice.within(0..4_000),
            loss: self.share(bad, 0.03),
            duplication: self.share(bad, 0.05),
            reordering: self.share(bad, 0.2),
            ..LinkOptions::GOOD
        }
    }

    fn load(&mut self, memory: Amount) -> LoadOptions {
        let repeats = self.amount();
        let spans_per_request = 5 + self.dice.index(20);
        LoadOptions {
            from_ms: Millis(if self.dice.chance(0.1) { 0 } else { 3_000 }),
            clients: 2 + self.dice.index(4),
            requests_per_second: self.dice.within(2..12) as f64,
            spans_per_request,
            // Where memory is short, it is to be used.
            span_bytes: if memory == Amount::Much { 8_000 } else { 200 + self.dice.index(600) },
            spans_per_trace: 1 + self.dice.index(12),
            scattered: self.dice.share(),
            rootless: 0.2 * self.dice.share(),
            spread_ms: Millis(self.dice.within(0..2_000)),
            deadline_ms: Millis(self.dice.within(4_000..12_000)),
            tries_max: 40,
            repeats: self.share(repeats, 0.2),
        }
    }

    /// Crashes, drains and restarts with time for the cluster to get over each.
    fn failures_one_at_a_time(&mut self, faults: &mut Vec<Timed>) {
        let mut at = QUIET_MS + self.dice.below(10_000);
        if self.amount() == Amount::Off {
            return;
        }
        while at < self.safety.0 {
            let node = self.dice.index(self.nodes);
            let restart = self.restart(2_000..20_000);
            let crash = self.dice.chance(0.6);
            let fault =
                if crash { Fault::Crash { node, restart } } else { Fault::Drain { node, restart } };
            faults.push(Timed { at_ms: Millis(at), fault });
            at += FAILURES_APART_MS + self.dice.below(20_000);
        }
        self.joins(faults);
    }

    /// Crashes, drains and restarts at any time and in any number.
    fn failures(&mut self, faults: &mut Vec<Timed>) {
        let (crashes, drains) = (self.amount(), self.amount());
        for at_ms in self.times(crashes) {
            let node = self.dice.index(self.nodes);
            let restart = self.restart(0..15_000);
            faults.push(Timed { at_ms, fault: Fault::Crash { node, restart } });
        }
        for at_ms in self.times(drains) {
            let node = self.dice.index(self.nodes);
            let restart = self.restart(0..5_000);
            faults.push(Timed { at_ms, fault: Fault::Drain { node, restart } });
        }
        self.joins(faults);
    }

    fn joins(&mut self, faults: &mut Vec<Timed>) {
        for node in self.nodes..self.nodes + self.spare {
            let at_ms = self.time();
            let disagrees = self.dice.chance(0.2);
            let fault = if disagrees { Fault::Disagree { node } } else { Fault::Join { node } };
            faults.push(Timed { at_ms, fault });
        }
    }

    fn restart(&mut self, after: Range<u64>) -> Option<Restart> {
        let generation = match self.dice.index(10) {
            0 => Generation::Same,
            1 => Generation::Older,
            _ => Generation::New,
        };
        let data = if self.dice.chance(0.3) { Data::Lost } else { Data::Kept };
        let restart = Restart { after_ms: Millis(self.dice.within(after)), generation, data };
        // A cluster that only shrinks is soon none.
        (!self.dice.chance(0.1)).then_some(restart)
    }

    fn pauses(&mut self, faults: &mut Vec<Timed>) {
        let (pauses, slow) = (self.amount(), self.amount());
        for at_ms in self.times(pauses) {
            let node = self.dice.index(self.nodes);
            let longest = [400, 3_000, 20_000][self.dice.index(3)];
            let for_ms = Millis(self.dice.within(50..longest));
            let seen = if self.dice.chance(0.8) { Seen::Jump } else { Seen::StoodStill };
            faults.push(Timed { at_ms, fault: Fault::Pause { node, for_ms, seen } });
        }
        for at_ms in self.times(slow) {
            let node = self.dice.index(self.nodes);
            let for_ms = Millis(self.dice.within(500..10_000));
            let turn_of = 2 + self.dice.index(100) as u32;
            faults.push(Timed { at_ms, fault: Fault::Slow { node, for_ms, turn_of } });
        }
    }

    fn clocks(&mut self, faults: &mut Vec<Timed>) {
        let amount = self.amount();
        for at_ms in self.times(amount) {
            let node = self.dice.index(self.nodes);
            let amount = i64::try_from(self.dice.below(20_000)).unwrap_or(0) - 10_000;
            let fault = if self.dice.chance(0.7) {
                Fault::ClockStep { node, by_ms: amount }
            } else {
                Fault::ClockSkew { node, ppm: amount / 20 }
            };
            faults.push(Timed { at_ms, fault });
        }
    }

    fn network(&mut self, faults: &mut Vec<Timed>, memory: Amount) {
        let (partitions, pairs, links) = (self.amount(), self.amount(), self.amount());
        let links = if memory == Amount::Off { links } else { Amount::Off };
        for at_ms in self.times(partitions) {
            let size = 1 + self.dice.index(self.nodes - 1);
            let side = self.some_nodes(size);
            let for_ms = Millis(self.dice.within(300..15_000));
            let cut = [Cut::Both, Cut::Both, Cut::Out, Cut::In][self.dice.index(4)];
            let flapping = self.dice.chance(0.3);
            let period = self.dice.within(200..2_000);
            let flapping_ms = Millis(if flapping { period } else { 0 });
            let fault = Fault::Partition { side, for_ms, cut, flapping_ms };
            faults.push(Timed { at_ms, fault });
        }
        for at_ms in self.times(pairs) {
            let pair = self.some_nodes(2);
            let for_ms = Millis(self.dice.within(300..15_000));
            faults
                .push(Timed { at_ms, fault: Fault::PairCut { pair: (pair[0], pair[1]), for_ms } });
        }
        for at_ms in self.times(links) {
            let for_ms = Millis(self.dice.within(500..15_000));
            let link = LinkOptions {
                latency_us: self.dice.within(1_000..60_000),
                jitter_us: self.dice.within(0..40_000),
                loss: 0.2 * self.dice.share(),
                duplication: 0.2 * self.dice.share(),
                reordering: 0.5 * self.dice.share(),
                bandwidth: if self.dice.chance(0.2) { 2 << 20 } else { 0 },
                mtu: if self.dice.chance(0.2) { 1_300 } else { LinkOptions::GOOD.mtu },
            };
            faults.push(Timed { at_ms, fault: Fault::Links { for_ms, link } });
        }
    }

    fn sinks_and_disks(&mut self, faults: &mut Vec<Timed>) {
        let (sinks, disks) = (self.amount(), self.amount());
        for at_ms in self.times(sinks) {
            let one = self.dice.index(self.nodes);
            let node = self.dice.chance(0.7).then_some(one);
            let for_ms = Millis(self.dice.within(500..20_000));
            let share = self.dice.share();
            let mood = match self.dice.index(6) {
                0 => Mood::Slow { for_ms: Millis(self.dice.within(10..6_000)) },
                1 => Mood::Failing { share },
                2 => Mood::Lying { share: share * 0.1 },
                3 => Mood::Mute { share: share * 0.1 },
                4 => Mood::Dead,
                _ => Mood::Refusing { share: share * 0.1 },
            };
            faults.push(Timed { at_ms, fault: Fault::Sink { node, for_ms, mood } });
        }
        for at_ms in self.times(disks) {
            let node = self.dice.index(self.nodes);
            let for_ms = Millis(self.dice.within(500..20_000));
            faults.push(Timed { at_ms, fault: Fault::DiskFull { node, for_ms } });
        }
    }

    /// A budget is used up only where sinks take nothing for a while.
    fn use_up_memory(&mut self, faults: &mut Vec<Timed>) {
        let for_ms = Millis(self.dice.within(15_000..30_000));
        let fault = Fault::Sink { node: None, for_ms, mood: Mood::Dead };
        faults.push(Timed { at_ms: Millis(QUIET_MS).min(self.safety), fault });
    }

    /// Only what is held for longer than copying takes is lost where nothing is copied, and only
    /// what no sink takes while everybody stops is spooled.
    fn hold_long(&mut self, faults: &mut Vec<Timed>, cluster: &ClusterOptions) {
        let stops = self.dice.chance(0.5);
        let longer = self.dice.within(5_000..15_000);
        let for_ms = longer + if stops { cluster.drain_timeout_ms.0 } else { 2 * COPIED_MS };
        // Whoever begins meanwhile is handed everything, and what else fails is an excuse.
        faults.retain(|timed| timed.at_ms.0 <= QUIET_MS || timed.at_ms.0 > for_ms);
        let fault = Fault::Sink { node: None, for_ms: Millis(for_ms), mood: Mood::Dead };
        faults.push(Timed { at_ms: Millis(QUIET_MS).min(self.safety), fault });
        let apart_ms = if stops { 0 } else { COPIED_MS };
        let nodes = self.some_nodes(if stops { self.nodes } else { 2 });
        let at_once = !stops && self.dice.chance(0.5);
        if at_once {
            // The other holder hears of it when it is a member again, as if it had never gone.
            let (side, for_ms) = (vec![nodes[1]], Millis(UNNOTICED_MS));
            let (cut, flapping_ms) = (Cut::Both, Millis(0));
            let fault = Fault::Partition { side, for_ms, cut, flapping_ms };
            faults.push(Timed { at_ms: Millis(QUIET_MS + 3_000).min(self.safety), fault });
        }
        for (turn, node) in (0_u64..).zip(nodes) {
            let data = if self.dice.chance(0.1) { Data::Lost } else { Data::Kept };
            let after = match turn {
                _ if stops => 500..5_000,
                0 if at_once => 0..100,
                // Who is back earlier is given it as any newcomer, and is no loss.
                _ => COPIED_MS + 500..COPIED_MS + 5_000,
            };
            let after_ms = Millis(self.dice.within(after));
            let restart = Some(Restart { after_ms, generation: Generation::New, data });
            let crash = Fault::Crash { node, restart };
            let fault = if stops { Fault::Drain { node, restart } } else { crash };
            let at_ms = Millis(QUIET_MS + 3_000 + turn * apart_ms).min(self.safety);
            faults.push(Timed { at_ms, fault });
        }
    }

    /// Slots move many times while a trace is open, and while attempts are under way, only where
    /// nodes restart one by one and sinks answer late.
    fn restart_one_by_one(&mut self, faults: &mut Vec<Timed>) {
        let apart_ms = self.dice.within(6_000..9_000);
        let for_ms = Millis(apart_ms * (self.nodes as u64 + 1));
        // What else fails is an excuse.
        let end_ms = QUIET_MS + for_ms.0;
        faults.retain(|timed| timed.at_ms.0 <= QUIET_MS || timed.at_ms.0 > end_ms);
        let mood = Mood::Slow { for_ms: Millis(self.dice.within(1_000..4_000)) };
        let fault = Fault::Sink { node: None, for_ms, mood };
        faults.push(Timed { at_ms: Millis(QUIET_MS).min(self.safety), fault });
        for (turn, node) in (0_u64..).zip(self.some_nodes(self.nodes)) {
            let at_ms = Millis(QUIET_MS + 3_000 + turn * apart_ms);
            if at_ms > self.safety {
                // In a run that is too short for all of them they would leave together.
                break;
            }
            let (after_ms, generation) = (Millis(self.dice.within(500..3_000)), Generation::New);
            let restart = Some(Restart { after_ms, generation, data: Data::Kept });
            faults.push(Timed { at_ms, fault: Fault::Drain { node, restart } });
        }
    }

    fn amount(&mut self) -> Amount {
        match self.dice.index(10) {
            0..=5 => Amount::Off,
            6..=8 => Amount::Some,
            _ => Amount::Much,
        }
    }

    fn share(&mut self, amount: Amount, most: f64) -> f64 {
        let share = self.dice.share() * most;
        match amount {
            Amount::Off => 0.0,
            Amount::Some => share * 0.3,
            Amount::Much => share,
        }
    }

    /// When the faults of a class happen.
    fn times(&mut self, amount: Amount) -> Vec<Millis> {
        let count = match amount {
            Amount::Off => 0,
            Amount::Some => self.dice.within(1..3),
            Amount::Much => self.dice.within(3..9),
        };
        (0..count).map(|_| self.time()).collect()
    }

    fn time(&mut self) -> Millis {
        let end = (self.safety.0 * 9 / 10).max(QUIET_MS + 1);
        Millis(self.dice.within(QUIET_MS..end).min(self.safety.0))
    }

    fn some_nodes(&mut self, count: usize) -> Vec<NodeNumber> {
        let mut all: Vec<NodeNumber> = (0..self.nodes).collect();
        for place in 0..count.min(all.len()) {
            let other = place + self.dice.index(all.len() - place);
            all.swap(place, other);
        }
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_draws_a_possible_plan_that_survives_being_printed() {
        for seed in 0..500 {
            let plan = plan(seed, Millis(60_000));
            plan.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(Plan::parse(&plan.text()).unwrap(), plan);
        }
    }

    #[test]
    fn every_class_of_faults_is_off_in_some_seeds_and_on_in_others() {
        let plans: Vec<_> = (0..500).map(|seed| plan(seed, Millis(60_000))).collect();
        let classes = plans.iter().flat_map(|plan| plan.faults.iter().map(|f| f.fault.class()));
        let classes: std::collections::BTreeSet<_> = classes.collect();
        for class in classes {
            let has = |plan: &&Plan| plan.faults.iter().any(|timed| timed.fault.class() == class);
            let count = plans.iter().filter(has).count();
            assert!((20..480).contains(&count), "{class}: {count}");
        }
    }

    #[test]
    fn plan_without_time_is_possible_too() {
        for seed in 0..50 {
            assert!(plan(seed, Millis(0)).check().is_ok());
        }
    }
}
