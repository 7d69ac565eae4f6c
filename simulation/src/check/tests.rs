//! Each check is made to fail by a history with one planted fault, and passes without it; each
//! licence is seen to apply, and not to apply beside it.

mod exports;
mod figures;
mod lives;
mod loss;
mod timing;
mod views;

use super::views::view_of;
use super::*;
use crate::history::*;
use crate::plan::*;
use std::sync::Arc;
use tracemesh_membership::{HashKey, Placement};

const NODES: usize = 5;
const SPANS: u16 = 4;
const ROOT_DELAY: u64 = 1_000;
const KEY: [u8; 16] = [7; 16];

/// A history in the making; its entries are sorted by time in the end.
struct Told {
    history: History,
    request: RequestNumber,
    placement: Placement,
}

fn plan() -> Plan {
    let cluster = ClusterOptions {
        replicas: 1,
        zones: 0,
        shards: 1,
        memory_bytes: 64 << 20,
        root_delay_ms: Millis(ROOT_DELAY),
        age_max_ms: Millis(10_000),
        drain_announce_ms: Millis(0),
        drain_timeout_ms: Millis(20_000),
    };
    let load = LoadOptions {
        from_ms: Millis(0),
        clients: 1,
        requests_per_second: 1.0,
        spans_per_request: 4,
        span_bytes: 100,
        spans_per_trace: usize::from(SPANS),
        scattered: 1.0,
        rootless: 0.0,
        spread_ms: Millis(100),
        deadline_ms: Millis(3_000),
        tries_max: 5,
        repeats: 0.0,
    };
    Plan {
        seed: 1,
        nodes: NODES,
        spare_nodes: 1,
        safety_ms: Millis(60_000),
        liveness_ms: Millis(60_000),
        cluster,
        link: LinkOptions::GOOD,
        load,
        faults: Vec::new(),
    }
}

fn all_spans(trace: u32) -> Vec<SpanNumber> {
    (0..SPANS).map(|span| SpanNumber { trace, span }).collect()
}

impl Told {
    /// Five nodes that live and know each other.
    fn calm() -> Self {
        Self::of(plan())
    }

    fn of(plan: Plan) -> Self {
        let nodes: Vec<_> = (0..NODES).collect();
        let placement = Placement::new(Arc::new(view_of(&plan, &nodes)));
        let mut told = Self { history: History::new(plan, KEY), request: 0, placement };
        for node in 0..NODES {
            told.life(0, node, Life::Started);
            told.life(0, node, Life::Ready);
            told.view(1, node, &nodes);
        }
        told
    }

    fn add(&mut self, at: u64, what: What) {
        self.history.add(Millis(at), what);
    }

    fn life(&mut self, at: u64, node: NodeNumber, event: Life) {
        self.add(at, What::Life { node, event });
    }

    /// The node has the view of these members, in their first incarnation.
    fn view(&mut self, at: u64, node: NodeNumber, members: &[NodeNumber]) {
        self.view_of(at, node, &members.iter().map(|node| (*node, 1, 0)).collect::<Vec<_>>());
    }

    fn view_of(&mut self, at: u64, node: NodeNumber, members: &[(NodeNumber, u64, u32)]) {
        let hash = members.iter().fold(1_u64, |hash, (node, generation, epoch)| {
            let member = *node as u64 * 31 + generation * 7 + u64::from(*epoch);
            hash.wrapping_mul(1_000_003).wrapping_add(member)
        });
        self.add(at, What::View { node, view: ViewSeen { hash, members: members.to_vec() } });
    }

    fn fault(&mut self, from: u64, until: u64, fault: Fault) {
        let number = self.history.plan.faults.len();
        self.history.plan.faults.push(Timed { at_ms: Millis(from), fault });
        self.add(from, What::FaultBegins(number));
        self.add(until, What::FaultEnds(number));
    }

    /// A trace, from a number on, of a slot with these holders among all nodes.
    fn trace(&self, from: u32, owner: NodeNumber, replica: NodeNumber) -> u32 {
        let (owner, replica) = (owner as u16, replica as u16);
        let is_it = |trace: &u32| {
            let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, *trace));
            let holders = self.placement.holders(slot).unwrap();
            holders.owner == owner && holders.replica == Some(replica)
        };
        (from..).find(is_it).unwrap()
    }

    fn owner(&self, trace: u32) -> NodeNumber {
        let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
        usize::from(self.placement.holders(slot).unwrap().owner)
    }

    /// A request that is answered 10 ms after it was sent.
    fn request(&mut self, at: u64, node: NodeNumber, spans: Vec<SpanNumber>, answer: Answer) {
        let request = self.request;
        self.request += 1;
        self.add(at, What::Offered { request, spans });
        self.add(at, What::Sent { request, node });
        self.add(at + 10, What::Told { request, node, answer, view: None });
    }

    fn accept(&mut self, at: u64, node: NodeNumber, spans: Vec<SpanNumber>) {
        self.request(at, node, spans, Answer::Accepted);
    }

    fn export(&mut self, at: u64, node: NodeNumber, spans: Vec<SpanNumber>) {
        self.answer(at, node, spans, SinkSaid::Acknowledged);
    }

    fn answer(&mut self, at: u64, node: NodeNumber, spans: Vec<SpanNumber>, said: SinkSaid) {
        let kept = said != SinkSaid::Refused;
        self.add(
            at,
            What::Export { node, spans, late: false, kept, said, heard_at: Millis(at + 4) },
        );
    }

    /// So many traces that come in at node 0 and out at their owners.
    fn load(&mut self, traces: std::ops::Range<u32>) {
        for trace in traces {
            let at = 1_000 + u64::from(trace % 50) * 100;
            self.accept(at, 0, all_spans(trace));
            self.export(at + 20 + ROOT_DELAY, self.owner(trace), all_spans(trace));
        }
    }

    fn end(mut self) -> History {
        self.history.entries.sort_by_key(|entry| entry.at);
        let (healed, ended) = (Millis(60_000), Millis(100_000));
        (self.history.healed_at, self.history.ended_at) = (healed, ended);
        let model = Model::new(&self.history);
        let mut looks = BTreeMap::new();
        for node in model.lives.nodes().filter(|node| model.lives.is_active(*node, ended)) {
            let view = model.views.seen(model.views.at(node, ended).unwrap()).clone();
            let (held, counters) = ([0; 3], BTreeMap::new());
            let look = Look { at: ended, view, held, unplaced: 0, settled: true, counters };
            looks.insert(node, look);
        }
        self.history.last_looks = looks;
        self.history
    }

    fn judge(self) -> Verdict {
        check(&self.end())
    }
}

impl Told {
    /// A node crashes for good; the others notice after two seconds.
    fn crash(&mut self, at: u64, node: NodeNumber, others: &[NodeNumber]) {
        self.life(at, node, Life::Crashed);
        others.iter().for_each(|other| self.view(at + 2_000, *other, others));
    }

    /// A node leaves in an orderly way; the others are told at once.
    fn leave(&mut self, at: u64, node: NodeNumber, others: &[NodeNumber], ending: Ending) {
        self.life(at, node, Life::Draining);
        others.iter().for_each(|other| self.view(at + 200, *other, others));
        self.life(at + 3_000, node, Life::Ended(ending));
    }
}

#[track_caller]
fn assert_only(verdict: &Verdict, invariant: Invariant, count: u64) {
    assert_eq!(verdict.violated, BTreeMap::from([(invariant, count)]), "{:#?}", verdict.findings);
}

#[track_caller]
fn assert_green(verdict: &Verdict) {
    assert!(verdict.is_green(), "{:#?}", verdict.findings);
}

#[track_caller]
fn assert_licensed(verdict: &Verdict, licence: Licence) {
    assert_green(verdict);
    assert_eq!(verdict.licensed, BTreeMap::from([(licence, 1)]));
    assert!(verdict.first_uses[&licence][0].starts_with("trace "));
}

/// A span is lost, by a licence or without.
#[track_caller]
fn assert_lost(told: Told, licence: Option<Licence>) {
    let verdict = told.judge();
    match licence {
        Some(licence) => assert_licensed(&verdict, licence),
        None => assert_only(&verdict, Invariant::NoAcknowledgedSpanLost, 1),
    }
}

fn bad_link() -> Fault {
    Fault::Links { for_ms: Millis(0), link: LinkOptions { loss: 0.2, ..LinkOptions::GOOD } }
}

#[test]
fn clean_history_is_green() {
    let mut told = Told::calm();
    told.load(0..100);
    let verdict = told.judge();
    assert_green(&verdict);
    assert!(verdict.findings.is_empty() && verdict.licensed.is_empty());
    let Totals { offered, acknowledged, exported, lost, traces, .. } = verdict.totals;
    assert_eq!((offered, acknowledged, exported, lost, traces), (400, 400, 400, 0, 100));
}

#[test]
fn verdict_is_read_back_from_json() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.export(2_100, 1, all_spans(trace));
    told.answer(2_200, 1, all_spans(trace), SinkSaid::Nothing);
    let lost = told.trace(trace + 1, 1, 2);
    told.accept(1_000, 0, all_spans(lost));
    let verdict = told.judge();
    assert_eq!(verdict.findings.len(), 3, "{:#?}", verdict.findings);
    let text = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
    assert!(text.contains("no_acknowledged_span_lost"));
}

/// A trace that was accepted, and came out in two parts.
fn parts(told: &mut Told) -> u32 {
    let trace = told.trace(0, 1, 2);
    let spans = all_spans(trace);
    told.accept(1_000, 0, spans.clone());
    told.export(2_100, 1, spans[..2].to_vec());
    let what = What::Export {
        node: 1,
        spans: spans[2..].to_vec(),
        late: true,
        kept: true,
        said: SinkSaid::Acknowledged,
        heard_at: Millis(2_304),
    };
    told.add(2_300, what);
    trace
}

/// A trace that comes out of two nodes.
fn twice(told: &mut Told, first: u64, said: SinkSaid, second: (u64, NodeNumber)) -> u32 {
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.answer(first, 1, all_spans(trace), said);
    told.export(second.0, second.1, all_spans(trace));
    trace
}

#[test]
fn swarm_is_red_for_whatever_failed_in_one_simulation() {
    let mut swarm = Swarm::default();
    swarm.add(&Verdict { licensed: BTreeMap::from([(Licence::Spooled, 3)]), ..Default::default() });
    assert_eq!(swarm.complaints(), Vec::<String>::new());
    let violated = BTreeMap::from([(Invariant::NoSpanTwice, 2)]);
    swarm.add(&Verdict { seed: 77, violated, ..Default::default() });
    assert_eq!(swarm.complaints(), ["seed 77: no_span_twice"]);
    assert_eq!((swarm.runs, swarm.licensed[&Licence::Spooled]), (2, 3));
    assert!(swarm.never().contains(&"late_span_exported"));
}

#[test]
fn names_are_those_that_json_has() {
    fn json(value: impl Serialize) -> String {
        serde_json::to_string(&value).unwrap()
    }
    for invariant in Invariant::ALL {
        assert_eq!(json(invariant), format!("{:?}", invariant.name()));
    }
    for licence in [Licence::BothHoldersGone, Licence::Spooled, Licence::NotSpooled] {
        assert_eq!(json(licence), format!("{:?}", licence.name()));
    }
}
