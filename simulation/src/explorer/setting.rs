//! What a world starts from: its nodes, traces and requests, and how many faults it may have.
//!
//! A [`Setting`] is plain data, drawn from a seed or written by hand; a [`Plan`] is what follows
//! from it once and never changes: trace ids whose slots have the wanted holders, and requests as
//! nodes take them. Placements are computed once for each view and kept in the [`Atlas`], because
//! the table of all slots costs more than thousands of steps. Bounds: [`NODES_MAX`],
//! [`TRACES_MAX`], eight spans a trace.

use super::bugs::Bug;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tracemesh::cut::{Cut, span_key};
use tracemesh::decide::Decide;
use tracemesh::frame::{FRAME_SPANS_BYTES_MAX, Verdict};
use tracemesh::scan::scan;
use tracemesh::shard::{Limits, Shard, SinkSet, Standing};
use tracemesh::sink::Attempt;
use tracemesh::spans::TraceId;
use tracemesh_membership::{
    HashKey, Incarnation, MemberState, NodeId, Placement, Slot, View, ViewMember, Weight,
};

/// The most nodes of a world.
pub const NODES_MAX: usize = 4;
/// The most traces of a world.
pub const TRACES_MAX: usize = 2;

/// The secret of every world's slots and span keys.
pub const HASH_KEY: HashKey = HashKey([7; 16]);

/// A hundred years: what is remembered never expires, because no fault of the protocol does that.
const REMEMBER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Bounds of a trace: those of a node by default, but nothing is ever forgotten.
pub const LIMITS: Limits = Limits {
    root_delay: Duration::from_secs(6),
    age_max: Duration::from_secs(30),
    spans_max: 1000,
    bytes_max: 1 << 20,
    remember: REMEMBER,
    remember_bytes_max: usize::MAX / 2,
    traces_per_turn: TRACES_MAX,
};

/// How often each kind of fault may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// A node ends without a word.
    pub crash: u8,
    /// A node starts, for the first time or again.
    pub start: u8,
    /// A node leaves in order.
    pub leave: u8,
    /// A node stands still.
    pub pause: u8,
    /// A node believes that a live one is dead.
    pub suspect: u8,
    /// A message is lost.
    pub drop: u8,
    /// A message arrives twice.
    pub duplicate: u8,
    /// A sink does not acknowledge.
    pub sink: u8,
    /// A batch waits for too long although its answer is under way.
    pub silent: u8,
    /// A client sends a request once more.
    pub retry: u8,
    /// A node's timers are late by as much as an owner waits for calm.
    pub late: u8,
    /// A node has no memory for a Hold.
    pub full: u8,
}

impl Budget {
    /// Nothing fails.
    pub const NONE: Self = Self::each(0);
    /// Anything may fail, more often than a schedule has steps.
    pub const PLENTY: Self = Self::each(100);

    const fn each(times: u8) -> Self {
        Self {
            crash: times,
            start: times,
            leave: times,
            pause: times,
            suspect: times,
            drop: times,
            duplicate: times,
            sink: times,
            silent: times,
            retry: times,
            late: times,
            full: times,
        }
    }
}

/// What deciders say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verdicts {
    /// Every trace is kept.
    #[default]
    Keep,
    /// Nodes with an even number keep, the others sample out: so that two verdicts are seen.
    ByNode,
}

/// Spans of one request: traces by number, each with its spans as bits.
pub type Work = Vec<(usize, u8)>;

/// What a world starts from.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Nodes, started or not.
    pub nodes: usize,
    /// The first nodes, which are active at the beginning and know each other.
    pub started: usize,
    /// Shards of each node.
    pub shards: usize,
    /// Sinks that every trace goes to.
    pub sinks: u32,
    /// For each trace: the nodes in the order in which they are its holders.
    pub orders: Vec<[usize; NODES_MAX]>,
    /// The requests of clients.
    pub work: Vec<Work>,
    /// What deciders say.
    pub verdicts: Verdicts,
    /// Bytes of spans in one frame; little makes a batch of several frames.
    pub frame_bytes_max: usize,
    /// The node that serves all clients; any, if none is named.
    pub entry: Option<usize>,
    /// Shards learn of a view in steps of their own, as tasks do.
    pub lagging: bool,
    /// Shards look at and offer one trace in a turn, not all.
    pub short_turns: bool,
    /// A planted bug.
    pub bug: Option<Bug>,
    /// An excuse that does not count, by its place in [`LICENCES`](super::check::LICENCES).
    pub withheld: Option<usize>,
    /// How often each kind of fault may happen.
    pub budget: Budget,
}

impl Default for Setting {
    /// Three nodes with one shard each, and one request of one span of one trace.
    fn default() -> Self {
        Self {
            nodes: 3,
            started: 3,
            shards: 1,
            sinks: 1,
            orders: vec![[0, 1, 2, 3]],
            work: vec![vec![(0, 1)]],
            verdicts: Verdicts::Keep,
            frame_bytes_max: FRAME_SPANS_BYTES_MAX,
            entry: None,
            lagging: false,
            short_turns: false,
            bug: None,
            withheld: None,
            budget: Budget::default(),
        }
    }
}

/// Who is in a view: each node's incarnation and state.
pub type Company = [Option<(Incarnation, MemberState)>; NODES_MAX];

/// Placements of views, and traces by the order of their holders; shared by all worlds.
pub struct Atlas {
    ids: [NodeId; NODES_MAX],
    traces: HashMap<(usize, [usize; NODES_MAX]), (TraceId, Slot)>,
    tables: Vec<Arc<Placement>>,
    placements: Mutex<HashMap<Company, Arc<Placement>>>,
}

impl Atlas {
    /// Finds traces for all orders of holders.
    pub fn new() -> Self {
        let ids = ["a", "b", "c", "d"].map(NodeId::from);
        let first = Some((Incarnation { generation: 1, epoch: 0 }, MemberState::Active));
        let tables = (0..1_usize << NODES_MAX).map(|mask| {
            let company = std::array::from_fn(|node| first.filter(|_| mask >> node & 1 == 1));
            Arc::new(Placement::new(Arc::new(view(&ids, &company))))
        });
        let tables: Vec<_> = tables.collect();
        let everybody = Arc::clone(&tables[tables.len() - 1]);
        let mut traces = HashMap::new();
        let orders = (1..=NODES_MAX).product::<usize>();
        for number in 1_u64.. {
            if traces.len() == orders * TRACES_MAX {
                break;
            }
            let id = TraceId(u128::from(number).to_be_bytes());
            let slot = HASH_KEY.slot(&id.0);
            let order = order(&everybody, slot);
            if let Some(free) = (0..TRACES_MAX).find(|&at| !traces.contains_key(&(at, order))) {
                traces.insert((free, order), (id, slot));
            }
        }
        Self { ids, traces, tables, placements: Mutex::default() }
    }

    /// The placement of the view of `company`.
    pub fn placement(&self, company: &Company) -> Arc<Placement> {
        let mut placements = self.placements.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(placement) = placements.get(company) {
            return Arc::clone(placement);
        }
        let view = view(&self.ids, company);
        let members = (0..NODES_MAX).filter(|&node| view.get(&self.ids[node]).is_some());
        let mask = members.map(|node| 1 << node).sum::<usize>();
        let placement = Arc::new(self.tables[mask].next(Arc::new(view)));
        placements.insert(*company, Arc::clone(&placement));
        placement
    }
}

impl Default for Atlas {
    fn default() -> Self {
        Self::new()
    }
}

fn view(ids: &[NodeId; NODES_MAX], company: &Company) -> View {
    let members = ids.iter().zip(company).filter_map(|(id, member)| {
        let &(incarnation, state) = member.as_ref()?;
        let (weight, zone) = (Weight::default(), "".into());
        Some(ViewMember { id: id.clone(), incarnation, weight, zone, state })
    });
    View::new(members)
}

/// All nodes, in the order in which they are holders of a slot.
fn order(everybody: &Placement, slot: Slot) -> [usize; NODES_MAX] {
    let mut order = [0; NODES_MAX];
    for at in 0..NODES_MAX {
        let is_left = |node| !order[..at].contains(&usize::from(node));
        let holders = everybody.holders_among(slot, is_left);
        order[at] = holders.map_or(0, |holders| usize::from(holders.owner));
    }
    order
}

/// One trace of a plan.
#[derive(Clone, Debug)]
pub struct PlannedTrace {
    /// Its id.
    pub id: TraceId,
    /// Its slot.
    pub slot: Slot,
    /// The names of its spans.
    pub names: Vec<u64>,
}

/// What follows from a setting once and never changes.
pub struct Plan {
    /// The setting.
    pub setting: Setting,
    /// Placements.
    pub atlas: Arc<Atlas>,
    /// The traces.
    pub traces: Vec<PlannedTrace>,
    /// The requests, as nodes take them.
    pub cuts: Vec<Arc<Cut>>,
    /// When the world begins.
    pub base: Instant,
}

impl Plan {
    /// The plan of a world that begins at `base`.
    ///
    /// # Panics
    /// The setting names nodes or traces beyond the bounds.
    pub fn new(setting: Setting, atlas: Arc<Atlas>, base: Instant) -> Self {
        assert!(setting.nodes <= NODES_MAX && setting.orders.len() <= TRACES_MAX);
        let traces = setting.orders.iter().enumerate().map(|(number, order)| {
            let (id, slot) = atlas.traces[&(number, *order)];
            let name = |at: u8| span_key(&HASH_KEY, [at + 1; 8], 0).name();
            PlannedTrace { id, slot, names: (0..8).map(name).collect() }
        });
        let traces: Vec<_> = traces.collect();
        let cuts = setting.work.iter().map(|work| Arc::new(cut(work, &traces))).collect();
        Self { setting, atlas, traces, cuts, base }
    }

    /// The names of nodes, by number.
    pub fn id(&self, node: usize) -> &NodeId {
        &self.atlas.ids[node]
    }

    /// The number of a node.
    pub fn node(&self, id: &NodeId) -> usize {
        self.atlas.ids.iter().position(|known| known == id).unwrap_or(NODES_MAX)
    }

    /// The number of a trace.
    pub fn trace(&self, id: TraceId) -> Option<usize> {
        self.traces.iter().position(|trace| trace.id == id)
    }

    /// A shard of a node that has just started.
    pub fn shard(&self, node: usize) -> Shard {
        let decide = Box::new(Decider { verdicts: self.setting.verdicts, node });
        let traces_per_turn = if self.setting.short_turns { 1 } else { LIMITS.traces_per_turn };
        Shard::new(
            self.id(node).clone(),
            HASH_KEY,
            Limits { traces_per_turn, ..LIMITS },
            SinkSet::first(self.setting.sinks),
            decide,
            Standing::alone(self.atlas.placement(&[None; NODES_MAX])),
            self.base,
        )
    }
}

/// A request with these spans. The first span of a trace is its root.
fn cut(work: &Work, traces: &[PlannedTrace]) -> Cut {
    let span = |trace: usize, at: u8| Span {
        trace_id: traces[trace].id.0.to_vec(),
        span_id: vec![at + 1; 8],
        parent_span_id: if at == 0 { Vec::new() } else { vec![1; 8] },
        ..Default::default()
    };
    let bits = |&(trace, spans): &(usize, u8)| {
        (0..8).filter(move |at| spans >> at & 1 == 1).map(move |at| span(trace, at))
    };
    let spans = work.iter().flat_map(bits).collect();
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
    let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let scan = scan(&request).expect("prost encodes what the scan takes");
    Cut::new(request.into(), scan, &HASH_KEY)
}

#[derive(Clone, Copy, Debug)]
struct Decider {
    verdicts: Verdicts,
    node: usize,
}

impl Decide for Decider {
    fn decide(&mut self, _: &Attempt) -> Verdict {
        match self.verdicts {
            Verdicts::ByNode if self.node % 2 == 1 => Verdict::SampledOut,
            Verdicts::Keep | Verdicts::ByNode => Verdict::Keep,
        }
    }

    fn boxed(&self) -> Box<dyn Decide> {
        Box::new(*self)
    }
}
