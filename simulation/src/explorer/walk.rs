//! Random walks: faults for a while, then none until the world is at rest.
//!
//! A walk is a function of its seed alone. What kind of world it is in is drawn first, a swarm:
//! most kinds have some faults off and others far up, because what goes wrong only with many of one
//! fault is never seen when every fault is equally rare.

use super::bugs::Bug;
use super::choices::{Choice, Phase};
use super::setting::{Atlas, Budget, NODES_MAX, Plan, Setting, Verdicts};
use super::witness::{Invariant, Violation};
use super::world::{Action, World};
use std::sync::Arc;
use tokio::time::Instant;
use tracemesh::frame::FRAME_SPANS_BYTES_MAX;

/// A world without faults is at rest after so many steps, or something goes on for ever. The
/// slowest seen took 500.
const HEALING_STEPS_MAX: usize = 4000;

/// A source of chance that is the same everywhere: SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True once in `one_in`.
    pub fn one_in(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// One to `max` in `percent` of all cases, else none.
    fn some(&mut self, percent: u64, max: u64) -> u8 {
        if self.below(100) < percent { 1 + self.below(max) as u8 } else { 0 }
    }

    /// Dice of their own, so that what they decide changes nothing else.
    fn aside(&self) -> Self {
        Self(self.0 ^ 0x6a09_e667_f3bc_c908)
    }

    fn order(&mut self) -> [usize; NODES_MAX] {
        let mut order = std::array::from_fn(|node| node);
        for at in (1..NODES_MAX).rev() {
            order.swap(at, self.below(at as u64 + 1) as usize);
        }
        order
    }
}

/// What is changed in all worlds of some walks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Twist {
    /// A bug is planted.
    pub bug: Option<Bug>,
    /// An excuse does not count.
    pub withheld: Option<usize>,
}

impl Twist {
    /// A bug is planted.
    pub fn planted(bug: Bug) -> Self {
        Self { bug: Some(bug), withheld: None }
    }

    /// An excuse, by its place in [`LICENCES`](super::check::LICENCES), does not count.
    pub fn withheld(licence: usize) -> Self {
        Self { bug: None, withheld: Some(licence) }
    }
}

/// The world of a seed.
pub fn draw(dice: &mut Dice, twist: Twist) -> Setting {
    let Twist { bug, withheld } = twist;
    let mut setting = Setting { bug, withheld, ..Setting::default() };
    setting.nodes = 3 + dice.below(2) as usize;
    setting.started = setting.nodes - usize::from(dice.one_in(2));
    setting.shards = 1 + usize::from(dice.one_in(4));
    setting.sinks = 1 + u32::from(dice.one_in(5));
    setting.lagging = dice.one_in(4);
    setting.frame_bytes_max = if dice.one_in(4) { 1 } else { FRAME_SPANS_BYTES_MAX };
    setting.verdicts = if dice.one_in(3) { Verdicts::ByNode } else { Verdicts::Keep };
    let traces = 1 + usize::from(dice.one_in(3));
    setting.orders = (0..traces).map(|_| dice.order()).collect();
    setting.work = draw_work(dice, traces);
    setting.budget = draw_budget(dice);
    match dice.below(12) {
        // Pauses among otherwise quiet nodes.
        0 => {
            let (pause, suspect) = (1 + dice.below(2) as u8, dice.below(4) as u8);
            let retry = dice.some(30, 1);
            setting.budget = Budget { pause, suspect, retry, ..Budget::default() };
            setting.work = vec![vec![(0, 1)], vec![(0, 2)]];
        }
        // Views that differ for long.
        1 => {
            let (crash, drop, retry) = (dice.some(50, 1), dice.some(40, 2), dice.some(50, 2));
            let late = dice.some(50, 2);
            setting.budget = Budget { suspect: 8, crash, drop, retry, late, ..Budget::default() };
        }
        // A drain, a crash and a slow peer.
        2 => {
            let silent = 1 + dice.below(2) as u8;
            setting.budget = Budget { leave: 1, crash: 1, silent, ..Budget::default() };
            setting.work = vec![vec![(0, 1)]];
        }
        // Re-routes, losses, one crash among four nodes.
        3 => {
            let (start, silent, drop) = (dice.some(50, 1), dice.some(70, 2), dice.some(70, 2));
            setting.budget = Budget { crash: 1, start, silent, drop, ..Budget::default() };
            (setting.nodes, setting.started) = (4, 4);
        }
        // Nothing but restarts.
        4 => {
            setting.budget = Budget { crash: 1, start: 1, ..Budget::default() };
            setting.started = setting.nodes;
        }
        // Nothing but one crash, and clients that ask again.
        5 => {
            let (retry, duplicate) = (dice.some(70, 2), dice.some(30, 1));
            setting.budget = Budget { crash: 1, retry, duplicate, ..Budget::default() };
            setting.started = setting.nodes;
        }
        // Nothing but drains.
        6 => {
            let retry = dice.some(50, 2);
            setting.budget = Budget { leave: 2, retry, ..Budget::default() };
        }
        // No fault at all, or lost messages only.
        7 => setting.budget = Budget { drop: dice.some(50, 3), ..Budget::default() },
        // Anything, and memory is short at times.
        _ => setting.budget.full = dice.aside().some(25, 3),
    }
    setting.short_turns = dice.aside().one_in(2);
    setting
}

fn draw_work(dice: &mut Dice, traces: usize) -> Vec<Vec<(usize, u8)>> {
    let mut work = Vec::new();
    for trace in 0..traces {
        for at in 0..1 + dice.below(3) {
            work.push(vec![(trace, 1_u8 << at)]);
        }
    }
    if dice.one_in(3) {
        // A request that repeats a span, or brings spans of two traces.
        let at = dice.below(work.len() as u64) as usize;
        let trace = dice.below(traces as u64) as usize;
        match work[at].iter_mut().find(|spans| spans.0 == trace) {
            Some(spans) => spans.1 |= 1,
            None => work[at].push((trace, 1)),
        }
    }
    for at in (1..work.len()).rev() {
        work.swap(at, dice.below(at as u64 + 1) as usize);
    }
    work
}

fn draw_budget(dice: &mut Dice) -> Budget {
    // A quarter has no message faults and no suspicion: there the strict promises apply.
    let lossy = !dice.one_in(4);
    let mut faulty = |percent, max| if lossy { dice.some(percent, max) } else { 0 };
    let budget = Budget {
        pause: faulty(25, 2),
        suspect: faulty(30, 3),
        drop: faulty(40, 3),
        duplicate: faulty(30, 3),
        sink: faulty(25, 2),
        silent: faulty(50, 3),
        late: faulty(25, 2),
        ..Budget::default()
    };
    let (crash, start) = (dice.some(60, 2), dice.some(70, 3));
    Budget { crash, start, leave: dice.some(40, 2), retry: dice.some(50, 2), ..budget }
}

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Steps taken.
    pub steps: usize,
    /// Spans that were acknowledged.
    pub accepted: u32,
    /// Of these: exported, sampled out, or refused by the sinks.
    pub finished: u32,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
}

impl Ended {
    fn new(world: &World, steps: usize, violation: Option<Violation>) -> Self {
        let (mut accepted, mut finished) = (0, 0);
        for trace in 0..world.plan.traces.len() {
            let spans = world.witness.accepted[trace];
            accepted += spans.count_ones();
            let done = world.witness.finished(trace, world.plan.setting.sinks);
            finished += (spans & done).count_ones();
        }
        Self { steps, accepted, finished, violation }
    }
}

/// Walks the world of one seed; `watch` sees each action before it is done.
pub fn walk(
    seed: u64,
    twist: Twist,
    atlas: &Arc<Atlas>,
    mut watch: impl FnMut(usize, &World, Action),
) -> Ended {
    let mut dice = Dice::new(seed);
    let setting = draw(&mut dice, twist);
    let plan = Arc::new(Plan::new(setting, Arc::clone(atlas), Instant::now()));
    let mut world = World::new(plan);
    let fault_steps = 20 + dice.below(120) as usize;
    let (mut steps, mut phase) = (0, Phase::Faults);
    let mut healing_from = 0;
    let mut choices: Vec<Choice> = Vec::with_capacity(64);
    loop {
        if phase == Phase::Faults && steps == fault_steps {
            (phase, healing_from) = (Phase::Healing, steps);
            world.budget = Budget::default();
        }
        world.choices(phase, &mut choices);
        if choices.is_empty() && phase == Phase::Faults {
            (phase, healing_from) = (Phase::Healing, steps);
            world.budget = Budget::default();
            world.choices(phase, &mut choices);
        }
        let Some(action) = pick(&mut dice, &choices) else {
            return Ended::new(&world, steps, world.check_at_rest().err());
        };
        watch(steps, &world, action);
        world.apply(action);
        steps += 1;
        if let Err(violation) = world.check() {
            return Ended::new(&world, steps, Some(violation));
        }
        if phase == Phase::Healing && steps - healing_from > HEALING_STEPS_MAX {
            let what = format!("no rest within {HEALING_STEPS_MAX} steps without faults");
            let violation = Some(Violation { invariant: Invariant::Rest, what });
            return Ended::new(&world, steps, violation);
        }
    }
}

fn pick(dice: &mut Dice, choices: &[Choice]) -> Option<Action> {
    let total: u64 = choices.iter().map(|choice| u64::from(choice.weight)).sum();
    let mut left = dice.below(total);
    choices.iter().find_map(|choice| {
        let weight = u64::from(choice.weight);
        if left < weight {
            return Some(choice.action);
        }
        left -= weight;
        None
    })
}
