//! Each check is made to fail by a history with one planted fault, and passes without it; each
//! licence is seen to apply, and not to apply beside it.

use super::placing::{Zones, needless};
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
        let placement = Placement::new(Arc::new(views::view_of(&plan, &nodes)));
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

#[test]
fn span_lost_without_a_crash_is_found_with_its_story() {
    let mut told = Told::calm();
    told.load(0..100);
    let trace = told.trace(100, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.export(2_100, 1, all_spans(trace)[..3].to_vec());
    let verdict = told.judge();
    assert_only(&verdict, Invariant::NoAcknowledgedSpanLost, 1);
    assert_eq!(verdict.totals.lost, 1);
    let finding = verdict.findings[0].to_string();
    for word in ["none of those", "owner node-1, replica node-2", "seed 1", "span 3 was ack"] {
        assert!(finding.contains(word), "{finding}");
    }
}

#[test]
fn span_lost_with_one_of_two_holders_is_found() {
    for gone in [1, 2] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        let others: Vec<_> = (0..NODES).filter(|node| *node != gone).collect();
        told.crash(1_500, gone, &others);
        // Another crash that has nothing to do with it is no excuse.
        let others: Vec<_> = others.into_iter().filter(|node| *node != 4).collect();
        told.crash(1_600, 4, &others);
        assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);
    }
}

#[test]
fn span_lost_with_both_holders_at_once_is_licensed() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    told.crash(1_900, 2, &[0, 3, 4]);
    assert_licensed(&told.judge(), Licence::BothHoldersGone);
}

#[test]
fn span_lost_with_the_second_holder_is_licensed_until_it_was_copied() {
    for (second, licence) in [(15_000, Some(Licence::BothHoldersGone)), (21_900, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.crash(1_500, 1, &[0, 2, 3, 4]);
        told.crash(second, 2, &[0, 3, 4]);
        assert_lost(told, licence);
    }
}

#[test]
fn what_keeps_nodes_apart_gives_copying_more_time() {
    let pair_cut = |pair| Fault::PairCut { pair, for_ms: Millis(9_000) };
    for (from, fault, licence) in [
        (1_400, pair_cut((2, 4)), Some(Licence::BothHoldersGone)),
        (17_000, pair_cut((2, 4)), None),
        (1_400, Fault::DiskFull { node: 2, for_ms: Millis(9_000) }, None),
        (1_400, Fault::Sink { node: None, for_ms: Millis(9_000), mood: Mood::Dead }, None),
    ] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.crash(1_500, 1, &[0, 2, 3, 4]);
        told.fault(from, from + 9_000, fault);
        told.crash(21_900, 2, &[0, 3, 4]);
        assert_lost(told, licence);
    }
}

#[test]
fn restart_counts_as_the_loss_of_a_holder() {
    for (second, licence) in [(9_000, Some(Licence::BothHoldersGone)), (21_500, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        for (at, node) in [(1_500, 1), (second, 2)] {
            told.life(at, node, Life::Crashed);
            told.life(at + 100, node, Life::Started);
            told.life(at + 900, node, Life::Ready);
            let generation = |other| if other == 1 || (other == 2 && node == 2) { 2 } else { 1 };
            let members: Vec<_> = (0..NODES).map(|other| (other, generation(other), 0)).collect();
            (0..NODES).for_each(|other| told.view_of(at + 1_000, other, &members));
        }
        assert_lost(told, licence);
    }
}

/// The replica of a trace's slot once a node has gone.
fn heir(told: &Told, trace: u32, gone: u16) -> NodeNumber {
    let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
    let holders = told.placement.holders_among(slot, |index| index != gone).unwrap();
    usize::from(holders.replica.unwrap())
}

#[test]
fn span_lost_after_a_leave_is_licensed_only_if_both_present_holders_are_gone_at_once() {
    let both = Some(Licence::BothHoldersGone);
    for (is_heir, second, licence) in
        [(true, 7_000, both), (true, 30_000, None), (false, 7_000, None)]
    {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        let heir = heir(&told, trace, 2);
        let other = [0, 3, 4].into_iter().find(|node| (*node == heir) == is_heir).unwrap();
        told.accept(1_000, 0, all_spans(trace));
        told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Drained);
        told.crash(6_000, 1, &[0, 3, 4]);
        let rest: Vec<_> = [0, 3, 4].into_iter().filter(|node| *node != other).collect();
        told.crash(second, other, &rest);
        assert_lost(told, licence);
    }
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Drained);
    told.crash(6_000, 1, &[0, 3, 4]);
    assert_lost(told, None);
}

#[test]
fn span_lost_with_the_holders_of_long_ago_is_found() {
    let mut told = Told::calm();
    told.history.plan.nodes = 6;
    let all: Vec<_> = (0..6).collect();
    // A slot that moves to the node that joins, and keeps its owner as replica.
    let placement = Placement::new(Arc::new(views::view_of(&told.history.plan, &all)));
    let moves = |trace: &u32| {
        let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, *trace));
        let holders = placement.holders(slot).unwrap();
        (holders.owner, holders.replica) == (5, Some(1))
    };
    let mut trace = told.trace(0, 1, 2);
    while !moves(&trace) {
        trace = told.trace(trace + 1, 1, 2);
    }
    told.accept(1_000, 0, all_spans(trace));
    told.life(1_500, 5, Life::Started);
    told.life(1_600, 5, Life::Ready);
    all.iter().for_each(|node| told.view(1_700, *node, &all));
    told.crash(30_000, 1, &[0, 2, 3, 4, 5]);
    told.crash(31_000, 2, &[0, 3, 4, 5]);
    assert_lost(told, None);
}

#[test]
fn span_lost_by_leaves_alone_is_found() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Drained);
    told.leave(6_000, 1, &[0, 3, 4], Ending::Drained);
    assert_lost(told, None);
}

#[test]
fn span_lost_at_the_drain_limit_is_licensed_only_while_that_disk_is_full() {
    let not_spooled = Some(Licence::NotSpooled);
    for (full, until, crash, licence) in [
        (2, 5_000, Some(6_000), not_spooled),
        (2, 5_000, Some(30_000), None),
        (2, 5_000, None, None),
        (2, 3_000, Some(6_000), None),
        (3, 5_000, Some(6_000), None),
    ] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.fault(1_100, until, Fault::DiskFull { node: full, for_ms: Millis(until - 1_100) });
        told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Left(4));
        if let Some(crash) = crash {
            told.crash(crash, 1, &[0, 3, 4]);
        }
        assert_lost(told, licence);
    }
}

/// Both holders of a trace are gone, one of them with its spans in its spool.
fn spooled(crash: u64) -> Told {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.leave(1_200, 2, &[0, 1, 3, 4], Ending::Spooled(4));
    told.crash(crash, 1, &[0, 3, 4]);
    told
}

/// A node begins again, as so many times before, beside others that live.
fn begin_again(told: &mut Told, at: u64, node: NodeNumber, generation: u64) {
    told.life(at, node, Life::Started);
    told.life(at + 500, node, Life::Ready);
    let members = [(0, 1, 0), (3, 1, 0), (4, 1, 0), (node, generation, 0)];
    members.iter().for_each(|member| told.view_of(at + 600, member.0, &members));
}

#[test]
fn span_lost_in_a_spool_is_licensed_only_if_nobody_could_read_it() {
    let licence = Some(Licence::Spooled);
    assert_lost(spooled(6_000), licence);
    // The other holder had time to copy what it has.
    assert_lost(spooled(30_000), None);

    let mut told = spooled(6_000);
    begin_again(&mut told, 20_000, 2, 2);
    assert_lost(told, None);

    let mut told = spooled(6_000);
    told.life(20_000, 2, Life::DiskLost);
    begin_again(&mut told, 20_000, 2, 2);
    assert_lost(told, licence);

    // What was read is in the spool still until it is placed.
    for (crash, again, licence) in
        [(21_000, false, licence), (21_000, true, None), (50_000, false, None)]
    {
        let mut told = spooled(6_000);
        begin_again(&mut told, 20_000, 2, 2);
        told.crash(crash, 2, &[0, 3, 4]);
        if again {
            begin_again(&mut told, crash + 3_000, 2, 3);
        }
        assert_lost(told, licence);
    }
}

#[test]
fn last_node_to_leave_may_spool_what_it_has() {
    for (again, licence) in [(false, Some(Licence::Spooled)), (true, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.leave(1_200, 0, &[1, 2, 3, 4], Ending::Drained);
        told.leave(1_400, 3, &[1, 2, 4], Ending::Drained);
        told.leave(1_600, 4, &[1, 2], Ending::Drained);
        told.leave(1_800, 1, &[2], Ending::Drained);
        told.leave(30_000, 2, &[2], Ending::Spooled(4));
        if again {
            told.life(40_000, 2, Life::Started);
            told.life(40_500, 2, Life::Ready);
            told.view_of(40_500, 2, &[(2, 2, 0)]);
        }
        assert_lost(told, licence);
    }
}

#[test]
fn spool_that_is_lost_is_no_excuse_while_another_could_be_read() {
    for (again, licence) in [(false, Some(Licence::Spooled)), (true, None)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        for node in 0..NODES {
            told.life(1_200, node, Life::Draining);
            told.view(1_300, node, &[node]);
            told.life(21_000, node, Life::Ended(Ending::Spooled(4)));
            if node != 2 {
                told.life(24_000, node, Life::DiskLost);
            }
        }
        if again {
            told.life(24_000, 2, Life::Started);
            told.life(24_500, 2, Life::Ready);
            told.view_of(24_500, 2, &[(2, 2, 0)]);
        }
        assert_lost(told, licence);
    }
}

#[test]
fn span_lost_with_its_stand_in_is_licensed_until_it_was_brought_home() {
    let both = Some(Licence::BothHoldersGone);
    for (one, two, licence) in [(3_000, 9_000, both), (3_000, 30_000, None), (30_000, 31_000, None)]
    {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.fault(500, 2_000, Fault::PairCut { pair: (0, 1), for_ms: Millis(1_500) });
        told.accept(1_000, 0, all_spans(trace));
        told.crash(one, 2, &[0, 1, 3, 4]);
        told.crash(two, 0, &[1, 3, 4]);
        assert_lost(told, licence);
    }
}

#[test]
fn one_crash_beside_a_stand_in_is_no_excuse() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.fault(500, 2_000, bad_link());
    told.accept(1_000, 0, all_spans(trace));
    told.crash(3_000, 2, &[0, 1, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);
}

#[test]
fn loss_of_the_only_member_or_without_replicas_is_licensed() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.view(900, 0, &[0]);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 0, &[1, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::SingleMember);

    // A view that it left before is no excuse.
    let mut told = Told::calm();
    told.view(700, 0, &[0]);
    told.view(900, 0, &[0, 1, 2, 3, 4]);
    let held = told.trace(0, 0, 1);
    told.accept(1_000, 2, all_spans(held));
    told.crash(1_500, 0, &[1, 2, 3, 4]);
    told.crash(30_000, 1, &[2, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);

    // When it has seen the others for long enough they have it too.
    let mut told = Told::calm();
    told.view(900, 0, &[0]);
    told.accept(1_000, 0, all_spans(trace));
    told.view(2_000, 0, &[0, 1, 2, 3, 4]);
    told.crash(30_000, 0, &[1, 2, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);

    let mut told = Told::calm();
    told.history.plan.cluster.replicas = 0;
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::Unreplicated);

    let mut told = Told::calm();
    told.history.plan.cluster.replicas = 0;
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 2, &[0, 1, 3, 4]);
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);

    // Whoever left in order handed it to another, whose crash excuses it then.
    let heir = usize::from({
        let told = Told::calm();
        let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
        told.placement.holders_among(slot, |index| index != 1).unwrap().owner
    });
    for (crash, licence) in [(heir, Some(Licence::Unreplicated)), (4, None)] {
        assert_ne!(heir, 4);
        let mut told = Told::calm();
        told.history.plan.cluster.replicas = 0;
        told.accept(1_000, 0, all_spans(trace));
        told.leave(1_200, 1, &[0, 2, 3, 4], Ending::Drained);
        let rest: Vec<_> = [0, 2, 3, 4].into_iter().filter(|node| *node != crash).collect();
        told.crash(30_000, crash, &rest);
        assert_lost(told, licence);
    }
}

#[test]
fn later_promise_of_others_is_no_weaker() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    told.crash(1_900, 2, &[0, 3, 4]);
    told.accept(5_000, 0, all_spans(trace));
    assert_only(&told.judge(), Invariant::NoAcknowledgedSpanLost, 1);
}

#[test]
fn what_anybody_keeps_is_found_even_while_it_is_in_a_sink_too() {
    for held in [[4, 0, 0], [0, 4, 0], [0, 0, 4]] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
        told.export(2_100, 1, all_spans(trace));
        let mut history = told.end();
        history.last_looks.get_mut(&3).unwrap().held = held;
        assert_only(&check(&history), Invariant::EverythingEnds, 1);
    }
}

#[test]
fn what_is_unplaced_long_after_healing_is_found() {
    // A node that crashes late leaves no time.
    for (crash, is_found) in [(70_000, true), (80_000, false)] {
        for (unplaced, settled) in [(3, true), (0, false), (3, false)] {
            let mut told = Told::calm();
            told.crash(crash, 4, &[0, 1, 2, 3]);
            let mut history = told.end();
            let look = history.last_looks.get_mut(&3).unwrap();
            (look.unplaced, look.settled) = (unplaced, settled);
            let verdict = check(&history);
            if is_found {
                assert_only(&verdict, Invariant::EverythingEnds, 1);
                assert!(pending(&history)[0].contains("node-3 has"));
            } else {
                assert_green(&verdict);
            }
        }
    }
}

#[test]
fn dead_letter_is_no_loss_and_what_is_held_is_late() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.answer(2_100, 1, all_spans(trace), SinkSaid::Refused);
    let verdict = told.judge();
    assert_green(&verdict);
    assert_eq!(verdict.totals.refused, 4);

    let mut told = Told::calm();
    told.accept(1_000, 0, all_spans(trace));
    let mut history = told.end();
    history.last_looks.get_mut(&1).unwrap().held = [4, 0, 0];
    let verdict = check(&history);
    assert_only(&verdict, Invariant::EverythingEnds, 1);
    assert_eq!((verdict.totals.lost, verdict.totals.held), (0, 4));
    let pending = pending(&history);
    assert_eq!(pending.len(), 2, "{pending:?}");
    assert!(pending[0].contains("node-1 holds 4 spans as owner"));
    assert!(pending[1].contains("to be held by node-1 and node-2"));
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

#[test]
fn trace_in_two_parts_is_found() {
    let mut told = Told::calm();
    parts(&mut told);
    let verdict = told.judge();
    assert_only(&verdict, Invariant::ExportedTogether, 1);
    assert_eq!(verdict.totals.in_parts, 1);
}

#[test]
fn late_span_may_come_out_later() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    let spans = all_spans(trace);
    told.accept(1_000, 0, spans[..2].to_vec());
    told.export(2_100, 1, spans[..2].to_vec());
    told.accept(2_200, 0, spans[2..].to_vec());
    let what = What::Export {
        node: 1,
        spans: spans[2..].to_vec(),
        late: true,
        kept: true,
        said: SinkSaid::Acknowledged,
        heard_at: Millis(2_304),
    };
    told.add(2_300, what);
    let verdict = told.judge();
    assert_green(&verdict);
    assert_eq!(verdict.sometimes["late_span_exported"], 1);
}

#[test]
fn parts_are_licensed_where_a_holder_was_silent_or_datagrams_were_lost() {
    let mut told = Told::calm();
    parts(&mut told);
    told.fault(900, 1_005, Fault::PairCut { pair: (0, 2), for_ms: Millis(100) });
    assert_licensed(&told.judge(), Licence::Rerouted);

    let mut told = Told::calm();
    parts(&mut told);
    told.fault(1_300, 1_400, bad_link());
    assert_licensed(&told.judge(), Licence::LostFrames);

    let mut told = Told::calm();
    parts(&mut told);
    told.fault(30_000, 31_000, bad_link());
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);
}

#[test]
fn parts_around_a_view_change_are_found_though_it_moved_the_slot() {
    let mut told = Told::calm();
    parts(&mut told);
    told.life(900, 5, Life::Started);
    told.life(950, 5, Life::Ready);
    (0..NODES).for_each(|node| told.view_of(1_500, node, &[(0, 1, 0), (1, 1, 0), (2, 1, 1)]));
    let members = [(0, 1, 0), (1, 1, 0), (2, 1, 1), (3, 1, 0), (4, 1, 0), (5, 1, 0)];
    (0..6).for_each(|node| told.view_of(1_600, node, &members));
    // Nodes 3 and 4 were dropped as well, but they hold nothing of it.
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);
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
fn span_in_two_sinks_is_found_once_a_trace() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (2_200, 1));
    let verdict = told.judge();
    let twice = (Invariant::NoSpanTwice, 1);
    let unmarked = (Invariant::OneVerdictPerTrace, 1);
    assert_eq!(verdict.violated, BTreeMap::from([twice, unmarked]));
    assert_eq!(verdict.totals.twice, 4);
}

#[test]
fn unanswered_attempt_licenses_another() {
    for said in [SinkSaid::Nothing, SinkSaid::Again] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, said, (2_200, 1));
        assert_licensed(&told.judge(), Licence::AttemptUnanswered);
    }
}

#[test]
fn crash_of_the_exporter_licenses_another_only_at_once() {
    for (crash, is_licensed) in [(2_110, true), (9_000, false)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (crash + 3_000, 2));
        told.crash(crash, 1, &[0, 2, 3, 4]);
        let verdict = told.judge();
        if is_licensed {
            assert_licensed(&verdict, Licence::ExporterCrashed);
        } else {
            // The replica had been told long before its owner crashed.
            assert_only(&verdict, Invariant::NoSpanTwice, 1);
        }
    }
}

#[test]
fn new_holder_that_nobody_told_is_found_when_it_exports_again() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (30_000, 2));
    // What it had been told went with its former life.
    told.life(5_000, 2, Life::Crashed);
    told.life(6_000, 2, Life::Started);
    told.life(7_000, 2, Life::Ready);
    let members: Vec<_> = (0..NODES).map(|node| (node, 1 + u64::from(node == 2), 0)).collect();
    (0..NODES).for_each(|node| told.view_of(7_500, node, &members));
    told.life(20_000, 1, Life::Crashed);
    for node in [0, 2, 3, 4] {
        let members: Vec<_> = members.iter().copied().filter(|one| one.0 != 1).collect();
        told.view_of(22_000, node, &members);
    }
    assert_only(&told.judge(), Invariant::NoSpanTwice, 1);
}

#[test]
fn trace_that_comes_out_before_or_long_after_it_is_due_is_found() {
    let due = 1_000 + ROOT_DELAY;
    for (at, is_found) in [(due - 20, true), (due, false), (due + 900, false), (due + 1_100, true)]
    {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(11_000, 0, all_spans(trace));
        told.export(10_000 + at, 1, all_spans(trace));
        let verdict = told.judge();
        if is_found {
            assert_only(&verdict, Invariant::DecidedInTime, 1);
        } else {
            assert_green(&verdict);
        }
    }
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(11_000, 0, all_spans(trace));
    told.export(20_000, 1, all_spans(trace));
    told.crash(8_000, 4, &[0, 1, 2, 3]);
    assert_green(&told.judge());

    for (mood, is_found) in [(Mood::Dead, false), (Mood::Failing { share: 1.0 }, true)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(11_000, 0, all_spans(trace));
        told.export(15_000, 1, all_spans(trace));
        told.fault(5_000, 10_500, Fault::Sink { node: None, for_ms: Millis(5_500), mood });
        let found = told.judge().violated.contains_key(&Invariant::DecidedInTime);
        assert_eq!(found, is_found, "{mood:?}");
    }

    // A new owner waits until all have settled, and no longer.
    for (at, is_found) in [(22_900, false), (23_100, true)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        told.accept(11_000, 0, all_spans(trace));
        told.leave(11_500, 1, &[0, 2, 3, 4], Ending::Drained);
        told.export(at, 2, all_spans(trace));
        let verdict = told.judge();
        if is_found {
            assert_only(&verdict, Invariant::DecidedInTime, 1);
        } else {
            assert_green(&verdict);
        }
    }
}

#[test]
fn life_that_goes_on_as_an_earlier_one_is_found() {
    let others: Vec<_> = (0..NODES).map(|node| (node, 1, 0)).collect();
    for (incarnation, is_found) in [((1, 0), true), ((1, 1), false), ((2, 0), false)] {
        let mut after = others.clone();
        after[3] = (3, incarnation.0, incarnation.1);
        let mut begun = Told::calm();
        begun.life(10_000, 3, Life::Crashed);
        begun.life(11_000, 3, Life::Started);
        begun.life(12_000, 3, Life::Ready);
        let mut woken = Told::calm();
        woken.life(10_000, 3, Life::Paused);
        woken.life(12_000, 3, Life::Woken);
        for mut told in [begun, woken] {
            (0..NODES).for_each(|node| told.view_of(12_500, node, &after));
            let verdict = told.judge();
            if is_found {
                assert_only(&verdict, Invariant::IncarnationsGrow, 1);
            } else {
                assert_green(&verdict);
            }
        }
    }
}

#[test]
fn both_copies_in_one_zone_are_found() {
    let zone = |node: NodeNumber| (node % 2).to_string();
    let good = [Some((0, Some(1))), Some((1, Some(2)))];
    assert_eq!(placing::together(0b111, zone, &good), None);
    assert_eq!(placing::together(0b101, zone, &[Some((0, Some(2)))]), None, "one zone is left");
    for (holders, why) in [((0, Some(2)), "in one zone"), ((1, None), "no replica")] {
        let (_, text) = placing::together(0b111, zone, &[good[0], Some(holders)]).unwrap();
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn partition_licenses_two_exporters_of_its_slots_only() {
    for (dropped, is_licensed) in [(1, true), (4, false)] {
        let mut told = Told::calm();
        let others: Vec<_> = (0..NODES).filter(|node| *node != dropped).collect();
        told.view(1_800, 2, &others);
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (2_200, if is_licensed { 2 } else { 1 }));
        told.view(20_000, 2, &[0, 1, 2, 3, 4]);
        let verdict = told.judge();
        if is_licensed {
            assert_licensed(&verdict, Licence::LiveNodeDropped);
        } else {
            assert_eq!(verdict.violated.get(&Invariant::NoSpanTwice), Some(&1));
        }
    }
}

#[test]
fn partition_licenses_nothing_that_came_out_before_and_long_after_it() {
    for (second, is_licensed) in [(15_000, true), (30_000, false)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (second, 2));
        told.view(12_000, 2, &[0, 2, 3, 4]);
        told.view(13_000, 2, &[0, 1, 2, 3, 4]);
        let verdict = told.judge();
        let licences = verdict.licensed.get(&Licence::LiveNodeDropped);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn span_that_no_done_covered_gives_the_exporter_more_time_to_crash() {
    // Acknowledged before the export, after it, long after it.
    for (accepted, is_licensed) in [(1_500, false), (6_000, true), (30_000, true)] {
        let mut told = Told::calm();
        let trace = told.trace(0, 1, 2);
        let mut spans = all_spans(trace);
        let last = vec![spans.pop().unwrap()];
        told.accept(1_000, 0, spans);
        told.request(1_100, 0, last.clone(), Answer::Later);
        told.accept(accepted, 0, last);
        told.export(2_100, 1, all_spans(trace));
        told.crash(9_000, 1, &[0, 2, 3, 4]);
        told.export(12_000, 2, all_spans(trace));
        let verdict = told.judge();
        let licences = verdict.licensed.get(&Licence::ExporterCrashed);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn exporter_that_stood_still_until_it_was_dropped_licenses_another() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (5_000, 2));
    told.life(2_105, 1, Life::Paused);
    told.view(4_500, 2, &[0, 2, 3, 4]);
    told.life(6_000, 1, Life::Woken);
    let members: Vec<_> = (0..NODES).map(|node| (node, 1, u32::from(node == 1))).collect();
    (0..NODES).for_each(|node| told.view_of(7_000, node, &members));
    assert_licensed(&told.judge(), Licence::ExporterCrashed);
}

#[test]
fn crash_in_an_unsettled_view_change_licenses_another() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    // A new epoch of the replica is a change of holders, and an unrelated node crashes in it.
    let members = [(0, 1, 0), (1, 1, 0), (2, 1, 1), (3, 1, 0), (4, 1, 0)];
    (0..NODES).for_each(|node| told.view_of(1_500, node, &members));
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (9_000, 2));
    told.life(3_500, 3, Life::Crashed);
    let members = [(0, 1, 0), (1, 1, 0), (2, 1, 1), (4, 1, 0)];
    [0, 1, 2, 4].iter().for_each(|node| told.view_of(5_500, *node, &members));
    let verdict = told.judge();
    assert_eq!(verdict.licensed.get(&Licence::UnsettledViewChange), Some(&1));
    assert_eq!(verdict.findings[0].invariant, Invariant::OwnerExports);
    assert_eq!(verdict.findings[0].trace, Some(trace));
}

#[test]
fn different_views_for_as_long_as_a_trace_is_due_license_another() {
    let due = 1_000 + ROOT_DELAY;
    let cases = [(1_100, due + 10_100, true), (8_000, due + 10_100, false), (1_100, 11_500, false)];
    for (differ_since, first, is_licensed) in cases {
        let mut told = Told::calm();
        let other = [(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 1)];
        told.view_of(differ_since, 2, &other);
        twice(&mut told, first, SinkSaid::Acknowledged, (first + 900, 2));
        (0..NODES).for_each(|node| told.view_of(20_000, node, &other));
        let verdict = told.judge();
        let licences = verdict.licensed.get(&Licence::SettleMaxRanOut);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn who_decides_uncalm_licenses_another_of_what_was_due_for_long_enough() {
    for (second, is_licensed) in [(11_900, false), (12_000, true)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (second, 1));
        let mut history = told.end();
        let counters = &mut history.last_looks.get_mut(&1).unwrap().counters;
        let name = "spans_exported_again_possible_total{cause=\"uncalm\"}";
        counters.insert(name.to_owned(), 3);
        let verdict = check(&history);
        let licences = verdict.licensed.get(&Licence::SettleMaxRanOut);
        assert_eq!(licences, is_licensed.then_some(&1), "{:#?}", verdict.findings);
        assert_eq!(verdict.violated.contains_key(&Invariant::NoSpanTwice), !is_licensed);
    }
}

#[test]
fn nobody_active_in_between_licenses_another() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (40_000, 1));
    for node in 0..NODES {
        told.life(3_000, node, Life::Draining);
        told.life(4_000, node, Life::Ended(Ending::Drained));
        told.life(10_000, node, Life::Started);
        told.life(11_000, node, Life::Ready);
        let members: Vec<_> = (0..NODES).map(|node| (node, 2, 0)).collect();
        told.view_of(11_000, node, &members);
    }
    assert_licensed(&told.judge(), Licence::LastActiveLeft);
}

#[test]
fn early_forgetting_licenses_another() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (40_000, 1));
    let mut history = told.end();
    let forgotten = BTreeMap::from([("traces_forgotten_early_total".to_owned(), 3)]);
    let former = BTreeMap::from([(1, forgotten.clone())]);
    let mut before = History { former_counters: former, ..history.clone() };
    assert_licensed(&check(&before), Licence::RememberedEvicted);
    before.former_counters.clear();
    assert!(check(&before).violated.contains_key(&Invariant::NoSpanTwice));
    history.last_looks.get_mut(&1).unwrap().counters = forgotten;
    assert_licensed(&check(&history), Licence::RememberedEvicted);
}

#[test]
fn licence_that_is_used_too_often_is_found() {
    let mut told = Told::calm();
    let mut trace = 0;
    for _ in 0..20 {
        trace = told.trace(trace + 1, 1, 2);
        told.accept(1_000, 0, all_spans(trace));
    }
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    told.crash(1_900, 2, &[0, 3, 4]);
    let verdict = told.judge();
    assert_eq!(verdict.licensed, BTreeMap::from([(Licence::BothHoldersGone, 20)]));
    assert_only(&verdict, Invariant::NoAcknowledgedSpanLost, 1);
    assert!(verdict.findings[0].text.contains("excuses 20 of 20 traces, more than 16"));
}

#[test]
fn late_mark_without_an_earlier_part_is_found() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    let (spans, said) = (all_spans(trace), SinkSaid::Acknowledged);
    told.add(
        2_100,
        What::Export { node: 1, spans, late: true, kept: true, said, heard_at: Millis(2_104) },
    );
    assert_only(&told.judge(), Invariant::OneVerdictPerTrace, 1);
}

#[test]
fn sampling_that_nobody_asked_for_is_found() {
    let mut told = Told::calm();
    told.load(0..50);
    let mut history = told.end();
    let counters = &mut history.last_looks.get_mut(&1).unwrap().counters;
    counters.insert("spans_sampled_out_total".to_owned(), 1);
    assert_only(&check(&history), Invariant::OneVerdictPerTrace, 1);
}

#[test]
fn export_by_a_node_that_is_no_owner_is_found() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.export(2_100, 2, all_spans(trace));
    assert_only(&told.judge(), Invariant::OwnerExports, 1);
}

#[test]
fn views_that_differ_at_the_end_are_found() {
    let mut told = Told::calm();
    told.view(70_000, 3, &[0, 1, 2, 3]);
    let history = told.end();
    assert_only(&check(&history), Invariant::ViewsConverge, 1);
    assert!(pending(&history)[0].contains("node-3 lacks node-4"));

    let mut told = Told::calm();
    told.life(70_000, 4, Life::Crashed);
    let verdict = told.judge();
    assert_only(&verdict, Invariant::ViewsConverge, 4);
    assert!(verdict.findings[0].text.contains("node-4, which is not active"));

    let mut told = Told::calm();
    told.view_of(70_000, 3, &[(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0)]);
    let verdict = told.judge();
    assert_only(&verdict, Invariant::ViewsConverge, 2);
    assert!(verdict.findings[0].text.contains("have different views"));
}

#[test]
fn view_that_changes_in_a_calm_cluster_is_found() {
    let mut told = Told::calm();
    told.view(90_000, 3, &[0, 1, 2, 3]);
    told.view(91_000, 3, &[0, 1, 2, 3, 4]);
    assert_only(&told.judge(), Invariant::ViewsConverge, 2);
}

#[test]
fn peak_over_the_budget_is_found() {
    let mut history = Told::calm().end();
    history.memory_peaks.insert(2, 70 << 20);
    assert_green(&check(&history));
    history.memory_peaks.insert(2, (96 << 20) + (24 << 20));
    assert_only(&check(&history), Invariant::MemoryWithinBudget, 1);
}

/// A clean history whose nodes count what they did.
fn counted() -> History {
    let mut told = Told::calm();
    told.load(0..50);
    let mut history = told.end();
    for (node, look) in &mut history.last_looks {
        let exports = history.entries.iter().filter(
            |entry| matches!(&entry.what, What::Export { node: exporter, .. } if exporter == node),
        );
        let exported = exports.count() as u64 * u64::from(SPANS);
        let accepted = if *node == 0 { 50 * u64::from(SPANS) } else { 0 };
        look.counters.insert("spans_exported_total".to_owned(), exported);
        look.counters.insert("spans_accepted_total".to_owned(), accepted);
    }
    history
}

#[test]
fn counters_that_do_not_add_up_are_found() {
    let history = counted();
    assert_green(&check(&history));
    for name in ["spans_exported_total", "spans_accepted_total"] {
        let mut wrong = history.clone();
        *wrong.last_looks.get_mut(&0).unwrap().counters.get_mut(name).unwrap() += 1;
        // The node's own figure, and the sum.
        assert_only(&check(&wrong), Invariant::CountersAddUp, 2);
    }
    let mut wrong = history.clone();
    let dropped = "spans_dropped_total{reason=\"sink\"}".to_owned();
    wrong.last_looks.get_mut(&2).unwrap().counters.insert(dropped, 1);
    assert_only(&check(&wrong), Invariant::CountersAddUp, 1);
    let repaired = "spans_repaired_total".to_owned();
    wrong.last_looks.get_mut(&3).unwrap().counters.insert(repaired, 1);
    assert_green(&check(&wrong));
}

#[test]
fn request_that_nobody_answers_is_pending() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    let request = 7;
    told.add(1_000, What::Offered { request, spans: all_spans(trace) });
    told.add(1_000, What::Sent { request, node: 0 });
    let history = told.end();
    assert_only(&check(&history), Invariant::EverythingEnds, 1);
    assert!(pending(&history)[0].contains("request 7"));
}

#[test]
fn slot_that_moves_in_vain_is_found() {
    let with = [Some((0, Some(1))), Some((2, Some(0))), Some((1, Some(2)))];
    let good = [Some((0, Some(1))), Some((0, Some(1))), Some((1, Some(0)))];
    assert_eq!(needless(2, Zones::None, &with, &good), None);
    let wrong = [
        (0, Some((1, Some(0))), "in vain"),
        (1, Some((1, Some(0))), "is not the owner"),
        (1, Some((1, Some(3))), "is not the owner"),
        (2, Some((0, Some(1))), "the owner of"),
        (2, None, "has no holders"),
    ];
    for (slot, holders, why) in wrong {
        let mut without = good;
        without[slot] = holders;
        let (_, text) = needless(2, Zones::None, &with, &without).unwrap();
        assert!(text.contains(why), "{text}");
    }
    let mut without = good;
    without[1] = Some((1, Some(0)));
    assert_eq!(needless(2, Zones::Named, &with, &without), None, "an heir in the same zone");
}

#[test]
fn placement_of_every_view_that_occurred_is_minimal() {
    for zones in [0, 2, 3] {
        let mut told =
            Told::of(Plan { cluster: ClusterOptions { zones, ..plan().cluster }, ..plan() });
        told.crash(10_000, 1, &[0, 2, 3, 4]);
        told.crash(20_000, 2, &[0, 3, 4]);
        told.life(25_000, 5, Life::Started);
        told.life(26_000, 5, Life::Ready);
        [0, 3, 4, 5].iter().for_each(|node| told.view(26_000, *node, &[0, 3, 4, 5]));
        assert_green(&told.judge());
    }
}

#[test]
fn refusing_is_no_way_to_lose_nothing() {
    let refuse = |told: &mut Told| {
        told.load(0..98);
        for trace in 200..202 {
            let request = told.request;
            told.request(1_000, 0, all_spans(trace), Answer::Later);
            told.add(4_000, What::GaveUp { request });
        }
    };
    let mut told = Told::calm();
    refuse(&mut told);
    assert_only(&told.judge(), Invariant::GoodputFloor, 1);
    let mut told = Told::calm();
    refuse(&mut told);
    told.fault(500, 9_000, Fault::Sink { node: None, for_ms: Millis(8_500), mood: Mood::Dead });
    assert_green(&told.judge());
}

#[test]
fn what_must_never_be_seen_is_found() {
    let impossible = |plant: &dyn Fn(&mut Told)| {
        let mut told = Told::calm();
        plant(&mut told);
        assert_only(&told.judge(), Invariant::NothingImpossible, 1);
    };
    impossible(&|told| told.request(1_000, 0, all_spans(3), Answer::Refused));
    impossible(&|told| told.life(1_000, 5, Life::Failed("no port".to_owned())));
    impossible(&|told| {
        told.life(1_000, 5, Life::Started);
        told.life(1_000, 5, Life::Ended(Ending::Panicked("index".to_owned())));
    });
    impossible(&|told| {
        told.life(1_000, 5, Life::Started);
        told.life(1_000, 5, Life::Ended(Ending::Refused("twice".to_owned())));
    });
    impossible(&|told| {
        let trace = told.trace(0, 1, 2);
        told.export(2_000, 1, all_spans(trace)[..1].to_vec());
    });
    let mut told = Told::calm();
    told.fault(900, 900, Fault::Disagree { node: 5 });
    told.life(1_000, 5, Life::Started);
    told.life(1_000, 5, Life::Ended(Ending::Refused("settings".to_owned())));
    assert_green(&told.judge());
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

#[test]
fn paths_of_recovery_are_counted() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.accept(1_300, 0, all_spans(trace));
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    let slot = HashKey(KEY).slot(&crate::spans::trace_id(1, trace));
    let among = |index| index != 1;
    let heir = usize::from(told.placement.holders_among(slot, among).unwrap().owner);
    told.export(4_000, heir, all_spans(trace));
    let verdict = told.judge();
    assert_green(&verdict);
    assert_eq!(heir, 2);
    for path in ["taken_over_after_crash", "repeat_recognised"] {
        assert_eq!(verdict.sometimes[path], 1, "{path}");
    }
    assert_eq!(verdict.sometimes.len(), sometimes::PATHS.len());
}

#[test]
fn unanswered_attempt_is_no_excuse_for_what_it_left_out() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    let spans = all_spans(trace);
    told.accept(1_000, 0, spans.clone());
    told.answer(2_100, 1, spans[..2].to_vec(), SinkSaid::Nothing);
    told.export(2_300, 1, spans[2..].to_vec());
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);

    // Whoever is owner next makes an attempt of its own.
    let mut told = Told::calm();
    told.accept(1_000, 0, spans.clone());
    told.leave(1_900, 1, &[0, 2, 3, 4], Ending::Drained);
    told.answer(2_100, 1, spans[..2].to_vec(), SinkSaid::Nothing);
    told.export(2_300, 2, spans[2..].to_vec());
    assert_licensed(&told.judge(), Licence::AttemptUnanswered);
}

#[test]
fn orderly_leave_of_the_exporter_licenses_nothing() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (5_000, 2));
    told.leave(1_900, 1, &[0, 2, 3, 4], Ending::Drained);
    told.life(2_500, 1, Life::Ended(Ending::Drained));
    assert_only(&told.judge(), Invariant::NoSpanTwice, 1);
}

/// Nodes 1 and 2 hold a trace, and are alone; then 2 leaves.
fn left_to_one() -> Told {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    for node in [0, 3, 4] {
        told.life(500, node, Life::Crashed);
    }
    [1, 2].iter().for_each(|node| told.view(700, *node, &[1, 2]));
    told.accept(1_000, 1, all_spans(trace));
    told.leave(1_200, 2, &[1], Ending::Drained);
    told
}

#[test]
fn loss_after_a_leave_to_the_only_one_left_is_licensed_until_another_joined() {
    let mut told = left_to_one();
    told.crash(40_000, 1, &[]);
    assert_lost(told, Some(Licence::SingleMember));
    for (crash, licence) in [(9_000, Some(Licence::SingleMember)), (40_000, None)] {
        let mut told = left_to_one();
        told.life(3_000, 5, Life::Started);
        told.life(4_000, 5, Life::Ready);
        [1, 5].iter().for_each(|node| told.view(4_000, *node, &[1, 5]));
        told.crash(crash, 1, &[5]);
        assert_lost(told, licence);
    }
}

#[test]
fn node_that_believes_to_be_alone_is_no_excuse_while_the_other_holder_lives() {
    let mut told = Told::calm();
    let trace = told.trace(0, 1, 2);
    told.accept(1_000, 0, all_spans(trace));
    told.view(1_200, 1, &[1]);
    told.crash(1_500, 1, &[0, 2, 3, 4]);
    assert_lost(told, None);
}

#[test]
fn lost_done_gives_the_exporter_more_time_to_crash() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (9_000, 2));
    told.fault(2_050, 2_500, bad_link());
    told.crash(6_000, 1, &[0, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::ExporterCrashed);
}

#[test]
fn what_was_done_long_ago_may_be_forgotten() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (602_200, 1));
    let verdict = told.judge();
    assert_eq!(verdict.licensed, BTreeMap::from([(Licence::RememberedEvicted, 1)]));
}

#[test]
fn batch_for_a_dead_or_still_holder_is_rerouted() {
    let mut told = Told::calm();
    parts(&mut told);
    told.life(500, 2, Life::Paused);
    told.life(995, 2, Life::Woken);
    assert_licensed(&told.judge(), Licence::Rerouted);

    let mut told = Told::calm();
    parts(&mut told);
    told.crash(995, 2, &[0, 1, 3, 4]);
    assert_licensed(&told.judge(), Licence::Rerouted);

    // Not the batch: who stands still afterwards has it.
    let mut told = Told::calm();
    parts(&mut told);
    told.life(1_100, 2, Life::Paused);
    told.life(1_300, 2, Life::Woken);
    assert_only(&told.judge(), Invariant::ExportedTogether, 1);
}

#[test]
fn member_that_began_again_is_not_dropped_alive() {
    // The others drop the former life of node 1 when the new one has just begun.
    for (restart, is_licensed) in [(Some(1_000), false), (None, true)] {
        let mut told = Told::calm();
        twice(&mut told, 2_100, SinkSaid::Acknowledged, (2_300, 1));
        if let Some(restart) = restart {
            told.life(restart - 500, 1, Life::Crashed);
            told.life(restart, 1, Life::Started);
            told.view(restart, 1, &[0, 1, 2, 3, 4]);
            told.life(restart, 1, Life::Ready);
        }
        told.view(2_200, 0, &[0, 2, 3, 4]);
        told.view(2_900, 0, &[0, 1, 2, 3, 4]);
        let licensed = told.judge().licensed.contains_key(&Licence::LiveNodeDropped);
        assert_eq!(licensed, is_licensed, "{restart:?}");
    }
}

#[test]
fn member_that_was_dropped_and_ended_licenses_nothing_later() {
    for (crash, is_licensed) in [(3_000, false), (29_000, true)] {
        let mut told = Told::calm();
        told.view(2_000, 0, &[0, 2, 3, 4]);
        told.life(crash, 1, Life::Crashed);
        let trace = told.trace(0, 1, 2);
        told.accept(29_500, 0, all_spans(trace));
        told.export(31_000, 2, all_spans(trace));
        told.export(31_100, 2, all_spans(trace));
        [2, 3, 4].iter().for_each(|node| told.view(crash + 500, *node, &[0, 2, 3, 4]));
        let licensed = told.judge().licensed.contains_key(&Licence::LiveNodeDropped);
        assert_eq!(licensed, is_licensed, "{crash}");
    }
}

#[test]
fn span_in_an_export_of_another_trace_is_found() {
    let mut told = Told::calm();
    let one = told.trace(0, 1, 2);
    let other = told.trace(one + 1, 1, 2);
    told.accept(1_000, 0, all_spans(one));
    told.accept(1_000, 0, all_spans(other));
    let mixed = [all_spans(one), all_spans(other)].concat();
    told.export(2_100, 1, mixed);
    told.export(2_100, 1, all_spans(other));
    let verdict = told.judge();
    assert_only(&verdict, Invariant::NothingImpossible, 4);
}

#[test]
fn leaving_node_is_in_no_view() {
    let mut told = Told::calm();
    told.life(70_000, 4, Life::Draining);
    (0..NODES).for_each(|node| told.view(70_200, node, &[0, 1, 2, 3]));
    assert_green(&told.judge());
}

#[test]
fn where_nobody_was_active_nobody_could_accept() {
    for (restart, is_green) in [(5_000, true), (900, false)] {
        let mut told = Told::calm();
        for node in 0..NODES {
            told.life(500, node, Life::Crashed);
            told.life(800, node, Life::Started);
            told.life(restart, node, Life::Ready);
            let members: Vec<_> = (0..NODES).map(|node| (node, 2, 0)).collect();
            told.view_of(restart, node, &members);
        }
        for trace in 0..20 {
            let request = told.request;
            told.request(1_000, 0, all_spans(trace), Answer::Later);
            told.add(6_000, What::GaveUp { request });
        }
        assert_eq!(told.judge().is_green(), is_green);
    }
}

#[test]
fn view_that_is_seen_at_the_end_of_its_step_counts_from_the_beginning() {
    let mut told = Told::calm();
    twice(&mut told, 2_100, SinkSaid::Acknowledged, (30_000, 2));
    told.view(30_008, 2, &[0, 2, 3, 4]);
    told.view(40_000, 2, &[0, 1, 2, 3, 4]);
    assert_licensed(&told.judge(), Licence::LiveNodeDropped);
}
