//! One explored node: the real shards, and what its node around them would know.
//!
//! A node has its own clock, which moves only when its timers do, so that the order of all timers
//! is the explorer's choice. What it knows of the others is a copy of what they said when it last
//! heard of them. It decides nothing: shards and requests do.

use super::setting::{Company, NODES_MAX, Plan, TRACES_MAX};
use std::sync::Arc;
use tokio::time::Instant;
use tracemesh::frame::Sender;
use tracemesh::reach::Reach;
use tracemesh::settling::OpenRequests;
use tracemesh::shard::{Known, Shard};
use tracemesh_membership::{Incarnation, MemberState, Placement};

/// Whether a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// It never ran, or crashed.
    Down,
    /// It runs.
    Up,
    /// Its process stands still.
    Still,
    /// It left and ended in order.
    Gone,
}

/// What a node knows of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rumour {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its state.
    pub state: MemberState,
    /// The hash of the view that it publishes.
    pub view_hash: u64,
    /// The last view in which it said that it has settled.
    pub settled: u64,
    /// It is believed dead.
    pub suspected: bool,
}

/// One shard, with the view that it was told last.
#[derive(Clone)]
pub struct Keeper {
    /// The shard.
    pub shard: Shard,
    /// The placement that it was told.
    pub placement: Arc<Placement>,
    /// What the members were said to be, as it was told.
    pub rumours: [Option<Rumour>; NODES_MAX],
    /// The view in which its node had settled, as it was told.
    pub settled: u64,
    /// The placements since, as it was told, all members were last settled.
    pub since_settled: Vec<Arc<Placement>>,
    /// There is a newer view than it was told.
    pub lags: bool,
    /// Traces and who has confirmed them since they last changed, for the bug by which that counts
    /// for ever.
    pub confirmed: Vec<(usize, usize, u32)>,
}

impl Keeper {
    /// Whether, as it was told, all active and leaving members have settled in its view.
    pub fn all_settled(&self) -> bool {
        let hash = self.placement.view().hash();
        let counts = |rumour: &&Rumour| rumour.state != MemberState::Joining;
        let mut others = self.rumours.iter().flatten().filter(counts);
        let has_settled = |rumour: &Rumour| rumour.settled == hash && rumour.view_hash == hash;
        self.settled == hash && others.all(has_settled)
    }
}

/// One node.
#[derive(Clone)]
pub struct Node {
    /// Whether it runs.
    pub life: Life,
    /// Which life; the generation is 0 before the first.
    pub incarnation: Incarnation,
    /// Its own state.
    pub state: MemberState,
    /// Its clock.
    pub now: Instant,
    /// Its shards; none while it does not run.
    pub keepers: Vec<Keeper>,
    /// What it knows of the others.
    pub rumours: [Option<Rumour>; NODES_MAX],
    /// Who is in its view.
    pub company: Company,
    /// The placement of its view.
    pub placement: Arc<Placement>,
    /// The last view in which it has settled.
    pub settled: u64,
    /// The requests that it serves, by the views since they began.
    pub open_requests: OpenRequests,
    /// Which peers answer it.
    pub reach: Reach,
    /// What its shards know of each trace.
    pub known: [Known; TRACES_MAX],
}

impl Node {
    /// A node that does not run yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            life: Life::Down,
            incarnation: Incarnation::default(),
            state: MemberState::Joining,
            now: plan.base,
            keepers: Vec::new(),
            rumours: [None; NODES_MAX],
            company: [None; NODES_MAX],
            placement: plan.atlas.placement(&[None; NODES_MAX]),
            settled: 0,
            open_requests: OpenRequests::default(),
            reach: Reach::default(),
            known: [Known::default(); TRACES_MAX],
        }
    }

    /// Starts it, with nothing in its hands.
    pub fn start(&mut self, number: usize, plan: &Plan) {
        let generation = self.incarnation.generation + 1;
        let now = self.now;
        *self = Self::new(plan);
        self.life = Life::Up;
        self.incarnation = Incarnation { generation, epoch: 0 };
        self.now = now;
        let keeper = || Keeper {
            shard: plan.shard(number),
            placement: Arc::clone(&self.placement),
            rumours: [None; NODES_MAX],
            settled: 0,
            since_settled: vec![plan.atlas.placement(&[None; NODES_MAX])],
            lags: false,
            confirmed: Vec::new(),
        };
        self.keepers = std::iter::repeat_with(keeper).take(plan.setting.shards).collect();
    }

    /// Ends it; what it held is gone.
    pub fn end(&mut self, life: Life, plan: &Plan) {
        let Self { incarnation, state, now, .. } = *self;
        *self = Self { life, incarnation, state, now, ..Self::new(plan) };
    }

    /// Whether it has a process, running or standing still.
    pub fn exists(&self) -> bool {
        matches!(self.life, Life::Up | Life::Still)
    }

    /// Whether it acts.
    pub fn is_up(&self) -> bool {
        self.life == Life::Up
    }

    /// What its frames say of it.
    pub fn sender(&self) -> Sender {
        Sender {
            view_hash: self.placement.view().hash(),
            generation: self.incarnation.generation,
            epoch: self.incarnation.epoch,
        }
    }

    /// The view that follows from what it knows.
    pub fn believed_company(&self, number: usize) -> Company {
        let mut company: Company = std::array::from_fn(|node| {
            let rumour = self.rumours[node].filter(|rumour| !rumour.suspected)?;
            Some((rumour.incarnation, rumour.state))
        });
        company[number] = Some((self.incarnation, self.state));
        in_view(company)
    }

    /// Spans of a trace that are here, or known to be done.
    pub fn has(&self, trace: usize) -> u8 {
        self.known[trace].held | self.known[trace].done
    }

    /// When its timers have something to do, and which shard's is first. A wake-up that is a day
    /// away does nothing but forget.
    pub fn next_wake(&self) -> Option<(Instant, usize)> {
        let wakes = self.keepers.iter().enumerate();
        let wakes = wakes.filter_map(|(at, keeper)| Some((keeper.shard.next_wake()?, at)));
        let day = std::time::Duration::from_secs(86_400);
        wakes.min().filter(|(wake, _)| *wake <= self.now + day)
    }
}

/// The active ones, or the leaving ones if nobody is active.
pub fn in_view(company: Company) -> Company {
    let any = |state| company.iter().flatten().any(|member| member.1 == state);
    let state = if any(MemberState::Active) { MemberState::Active } else { MemberState::Leaving };
    company.map(|member| member.filter(|member| member.1 == state))
}
