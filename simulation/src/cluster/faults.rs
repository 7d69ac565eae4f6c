//! When faults begin and end, and what they do to the cluster.
//!
//! The schedule holds what is still to come, by time and then in the order of the plan. The
//! invariant: every fault that began has ended when the safety phase is over; only a node that was
//! asked to leave may take longer, and is started again after that.

use super::Cluster;
use crate::history::{Life, What};
use crate::plan::{Data, Fault, Generation, Millis, NodeNumber, Plan, Restart, Seen};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// After a process did not start.
const START_AGAIN: Millis = Millis(1_000);

/// What comes next.
pub(super) struct Schedule {
    to_come: BTreeMap<(Duration, u64), Move>,
    sequence: u64,
    healed: Duration,
    /// Faults that slow a node down: when one turn is due in how many steps.
    slow: BTreeMap<NodeNumber, Slow>,
    /// Faults that cut links now.
    cutting: BTreeSet<usize>,
    /// Nodes that were asked to leave, and how they start again.
    leaving: BTreeMap<NodeNumber, Option<Restart>>,
}

struct Slow {
    turn_of: u32,
    steps: u32,
}

#[derive(Clone, Copy)]
enum Move {
    Begin(usize),
    End(usize),
    Flap(usize, Switch),
    Restart(NodeNumber, Restart),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    On,
    Off,
}

/// Whether a node runs in a step.
pub(super) enum Turn {
    Normal,
    /// Not in this one.
    None,
    /// In this one, after it missed some.
    Late,
}

impl Schedule {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut schedule = Self {
            to_come: BTreeMap::new(),
            sequence: 0,
            healed: plan.safety_ms.duration(),
            slow: BTreeMap::new(),
            cutting: BTreeSet::new(),
            leaving: BTreeMap::new(),
        };
        for (number, timed) in plan.faults.iter().enumerate() {
            schedule.add(timed.at_ms.duration(), Move::Begin(number));
        }
        schedule
    }

    /// Nothing comes any more, and nobody is leaving.
    pub(super) fn is_over(&self) -> bool {
        self.to_come.is_empty() && self.leaving.is_empty()
    }

    /// A process that did not start is started again, as whoever supervises processes does.
    pub(super) fn start_again(&mut self, node: NodeNumber, now: Duration) {
        let (generation, data) = (Generation::New, Data::Kept);
        let restart = Restart { after_ms: START_AGAIN, generation, data };
        self.add(now + START_AGAIN.duration(), Move::Restart(node, restart));
    }

    /// A node that was asked to leave has ended.
    pub(super) fn ended(&mut self, node: NodeNumber, now: Duration) {
        if let Some(Some(restart)) = self.leaving.remove(&node) {
            self.add(now + restart.after_ms.duration(), Move::Restart(node, restart));
        }
    }

    pub(super) fn turn_of(&mut self, node: NodeNumber) -> Turn {
        let Some(slow) = self.slow.get_mut(&node) else { return Turn::Normal };
        slow.steps += 1;
        if slow.steps < slow.turn_of {
            return Turn::None;
        }
        slow.steps = 0;
        Turn::Late
    }

    fn add(&mut self, at: Duration, next: Move) {
        self.sequence += 1;
        self.to_come.insert((at, self.sequence), next);
    }

    /// The end of something that lasts for so long, at the latest when everything is healed.
    fn add_end(&mut self, now: Duration, for_ms: Millis, next: Move) {
        self.add((now + for_ms.duration()).min(self.healed), next);
    }

    /// Whether a fault that began has not ended.
    fn goes_on(&self, number: usize) -> bool {
        self.to_come.values().any(|next| matches!(next, Move::End(ending) if *ending == number))
    }

    fn next(&mut self, now: Duration) -> Option<Move> {
        let head = self.to_come.first_entry().filter(|head| head.key().0 <= now)?;
        Some(head.remove())
    }
}

impl Cluster {
    pub(super) fn apply_faults(&mut self) {
        while let Some(next) = self.schedule.next(self.now) {
            match next {
                Move::Begin(number) => self.begin(number),
                Move::End(number) => self.end(number),
                Move::Flap(number, switch) => self.flap(number, switch),
                Move::Restart(node, restart) => self.restart(node, restart),
            }
        }
    }

    fn begin(&mut self, number: usize) {
        self.note(What::FaultBegins(number));
        let fault = self.history.plan.faults[number].fault.clone();
        let (now, schedule) = (self.now, &mut self.schedule);
        match fault {
            Fault::Crash { node, restart } => {
                if let Some(restart) = restart {
                    schedule.add_end(now, restart.after_ms, Move::Restart(node, restart));
                }
                schedule.leaving.remove(&node);
                self.crash(node);
            }
            Fault::Drain { node, restart } if self.hosts[node].is_up() => {
                schedule.leaving.insert(node, restart);
                self.hosts[node].drain();
                self.lives[node].draining = true;
                self.note(What::Life { node, event: Life::Draining });
            }
            Fault::Drain { .. } => {}
            Fault::Join { node } | Fault::Disagree { node } => self.start(node),
            Fault::Pause { node, for_ms, .. } => {
                schedule.add_end(now, for_ms, Move::End(number));
                if self.hosts[node].is_up() && !self.hosts[node].is_paused() {
                    self.hosts[node].pause();
                    self.note(What::Life { node, event: Life::Paused });
                }
            }
            Fault::Slow { node, for_ms, turn_of } => {
                schedule.add_end(now, for_ms, Move::End(number));
                schedule.slow.insert(node, Slow { turn_of, steps: 0 });
            }
            Fault::ClockStep { node, by_ms } => self.hosts[node].wall_clock().step(by_ms),
            Fault::ClockSkew { node, ppm } => self.hosts[node].wall_clock().skew(ppm),
            Fault::Partition { for_ms, flapping_ms, .. } => {
                schedule.add_end(now, for_ms, Move::End(number));
                if flapping_ms.0 > 0 {
                    let mend = Move::Flap(number, Switch::Off);
                    schedule.add(now + flapping_ms.duration(), mend);
                }
                self.cut(number, Switch::On);
            }
            Fault::PairCut { for_ms, .. } => {
                schedule.add_end(now, for_ms, Move::End(number));
                self.cut(number, Switch::On);
            }
            Fault::Links { for_ms, link } => {
                schedule.add_end(now, for_ms, Move::End(number));
                self.network.change_links(|links| links.set_options(link));
            }
            Fault::Sink { for_ms, .. } => {
                schedule.add_end(now, for_ms, Move::End(number));
                self.set_mood(number, Switch::On);
            }
            Fault::DiskFull { node, for_ms } => {
                schedule.add_end(now, for_ms, Move::End(number));
                self.hosts[node].disk().fill();
            }
        }
    }

    fn end(&mut self, number: usize) {
        let plan = &self.history.plan;
        match plan.faults[number].fault.clone() {
            Fault::Pause { node, seen, .. } => self.resume(node, seen),
            Fault::Slow { node, .. } => {
                self.schedule.slow.remove(&node);
                // The steps that it missed are over; what it does next, it does now.
                self.hosts[node].late_turn(self.now, self.now);
            }
            Fault::Partition { .. } | Fault::PairCut { .. } => self.cut(number, Switch::Off),
            Fault::Links { .. } => {
                let link = plan.link;
                self.network.change_links(|links| links.set_options(link));
            }
            Fault::Sink { .. } => self.set_mood(number, Switch::Off),
            Fault::DiskFull { node, .. } => self.hosts[node].disk().make_room(),
            Fault::Crash { .. }
            | Fault::Drain { .. }
            | Fault::Join { .. }
            | Fault::ClockStep { .. }
            | Fault::ClockSkew { .. }
            | Fault::Disagree { .. } => {}
        }
        self.note(What::FaultEnds(number));
    }

    fn resume(&mut self, node: NodeNumber, seen: Seen) {
        if self.hosts[node].is_paused() {
            self.hosts[node].resume(self.now, seen);
            self.note(What::Life { node, event: Life::Woken });
        }
    }

    fn restart(&mut self, node: NodeNumber, restart: Restart) {
        if !self.hosts[node].is_up() {
            let Restart { generation, data, .. } = restart;
            if self.hosts[node].prepare_restart(self.now, generation, data) == Data::Lost {
                self.note(What::Life { node, event: Life::DiskLost });
            }
            self.start(node);
        }
    }

    /// The cut of a partition that comes and goes.
    fn flap(&mut self, number: usize, switch: Switch) {
        let Fault::Partition { flapping_ms, .. } = self.history.plan.faults[number].fault else {
            return;
        };
        if self.schedule.goes_on(number) {
            self.cut(number, switch);
            let other = if switch == Switch::On { Switch::Off } else { Switch::On };
            let next = Move::Flap(number, other);
            self.schedule.add(self.now + flapping_ms.duration(), next);
        }
    }

    fn cut(&mut self, number: usize, switch: Switch) {
        let changes = match switch {
            Switch::On => self.schedule.cutting.insert(number),
            Switch::Off => self.schedule.cutting.remove(&number),
        };
        if !changes {
            return;
        }
        let cut = self.history.plan.links_cut_by(number);
        self.network.change_links(|links| {
            for (source, target) in cut {
                match switch {
                    Switch::On => links.cut(source, target),
                    Switch::Off => links.mend(source, target),
                }
            }
        });
    }

    fn set_mood(&mut self, number: usize, switch: Switch) {
        let Fault::Sink { node, mood, .. } = self.history.plan.faults[number].fault else { return };
        let mood = (switch == Switch::On).then_some(mood);
        for (own, host) in self.hosts.iter().enumerate() {
            if node.is_none_or(|node| node == own) {
                host.sink().set_mood(number, mood);
            }
        }
    }
}
