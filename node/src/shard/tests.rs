//! Each rule of PROTOCOL.md that a shard keeps, by name.

use super::trace::{SpanKey, Trace};
use super::*;
use crate::cut::{Cut, span_key};
use crate::decide::KeepAll;
use crate::frame::{Origin, trace_id_bytes};
use crate::process;
use crate::scan::scan;
use crate::spans::{Chunk, TraceId};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tracemesh_membership::{
    Incarnation, MemberIndex, MemberState, Placement, View, ViewMember, Weight,
};

mod placing;
mod review;
mod rows;

const KEY: HashKey = HashKey([7; 16]);
const LIMITS: Limits = Limits {
    root_delay: Duration::from_secs(6),
    age_max: Duration::from_secs(30),
    spans_max: 1000,
    bytes_max: 1 << 20,
    remember: Duration::from_secs(600),
    remember_bytes_max: 1 << 20,
    traces_per_turn: 2,
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn member(id: &str, state: MemberState) -> ViewMember {
    ViewMember {
        id: id.into(),
        incarnation: Incarnation { generation: 1, epoch: 0 },
        weight: Weight::new(1.0).unwrap(),
        zone: "".into(),
        state,
    }
}

/// The standing of `me` in a mesh in which everybody has this view and settled in it.
fn settled(me: &str, placement: &Arc<Placement>, state: MemberState) -> Standing {
    let hash = placement.view().hash();
    let others = placement.view().members().iter().filter(|member| member.id.as_str() != me);
    let peers = others.map(|member| {
        let ViewMember { incarnation, state, .. } = member.clone();
        (member.id.clone(), PeerStanding { incarnation, state, view_hash: hash, settled: hash })
    });
    Standing { placement: Arc::clone(placement), state, settled: hash, peers: peers.collect() }
}

fn placement(ids: &[&str]) -> Arc<Placement> {
    let members = ids.iter().map(|id| member(id, MemberState::Active));
    Arc::new(Placement::new(Arc::new(View::new(members))))
}

/// The number of a trace that `owner` owns and `replica` replicates.
fn trace_of(placement: &Placement, owner: &str, replica: Option<&str>) -> u8 {
    let name = |index: MemberIndex| placement.view().members()[index as usize].id.as_str();
    let held = |number: &u8| {
        let holders = placement.holders(KEY.slot(&[*number; 16])).unwrap();
        name(holders.owner) == owner && holders.replica.map(name) == replica
    };
    (1..255).find(held).unwrap()
}

fn id(trace: u8) -> TraceId {
    TraceId([trace; 16])
}

fn span_of(trace: u8, number: u8, parent: &[u8]) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![number; 8],
        parent_span_id: parent.to_vec(),
        name: format!("span {number}"),
        ..Default::default()
    }
}

fn root(trace: u8, number: u8) -> Span {
    span_of(trace, number, &[])
}

fn child(trace: u8, number: u8) -> Span {
    span_of(trace, number, &[200; 8])
}

fn request(spans: Vec<Span>) -> Bytes {
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn key(number: u8) -> SpanKey {
    span_key(&KEY, [number; 8], 0)
}

/// What a Hold says that nobody marked.
fn part(origin: Origin, view_hash: u64) -> HoldPart {
    HoldPart { origin, marked: false, view_hash, due_in: LIMITS.age_max }
}

/// All that a node says of a trace that it names.
fn named(trace: u8, names: &[u8], done: &[u8], verdict: Verdict) -> HoldTrace {
    let keys = |numbers: &[u8]| numbers.iter().map(|&number| key(number).name()).collect();
    HoldTrace {
        trace_id: trace_id_bytes(id(trace)),
        due_in_ms: 0,
        names: keys(names),
        done: keys(done),
        verdict: verdict.into(),
        vanished: Vec::new(),
    }
}

/// A shard of node `me` and a clock.
struct Rig {
    me: NodeId,
    shard: Shard,
    now: Instant,
    placement: Arc<Placement>,
}

impl Rig {
    fn new(me: &str, members: &[&str]) -> Self {
        Self::deciding(me, members, Box::new(KeepAll))
    }

    fn deciding(me: &str, members: &[&str], decide: Box<dyn Decide>) -> Self {
        let now = Instant::now();
        let placement = placement(members);
        let sinks = SinkSet::first(1);
        let standing = Standing::alone(Arc::default());
        let shard = Shard::new(me.into(), KEY, LIMITS, sinks, decide, standing, now);
        let mut rig = Self { me: me.into(), shard, now, placement: Arc::clone(&placement) };
        rig.view(placement, MemberState::Active);
        rig
    }

    /// A new view that every member publishes, and has settled in.
    fn view(&mut self, placement: Arc<Placement>, state: MemberState) {
        let standing = settled(self.me.as_str(), &placement, state);
        self.stand(standing);
    }

    fn stand(&mut self, standing: Standing) {
        self.placement = Arc::clone(&standing.placement);
        self.shard.on_view(self.now, standing);
        self.check_sums();
    }

    fn hold(&mut self, spans: Vec<Span>) {
        self.hold_from(Origin::Entry, spans);
    }

    fn hold_from(&mut self, origin: Origin, spans: Vec<Span>) {
        let request = request(spans);
        let cut = Cut::new(request.clone(), scan(&request).unwrap(), &KEY);
        let traces: Vec<u32> = (0..cut.slots().len() as u32).collect();
        let part = part(origin, self.shard.view_hash());
        self.shard.on_hold(self.now, &cut, &traces, part);
        self.check_sums();
    }

    /// Lets time pass, waking the shard whenever it asks for it.
    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.now + time;
        let mut effects = Vec::new();
        while let Some(wake) = self.shard.next_wake().filter(|&wake| wake <= end) {
            self.now = self.now.max(wake);
            self.shard.on_time(self.now);
            effects.extend(self.shard.take_effects());
        }
        self.now = end;
        self.shard.on_time(end);
        effects.extend(self.shard.take_effects());
        self.check_sums();
        effects
    }

    fn answer(&mut self, trace: u8, number: u32, answer: Answer) -> Vec<Effect> {
        self.shard.on_answer(self.now, id(trace), number, 0, answer);
        self.check_sums();
        self.shard.take_effects()
    }

    /// A member answers in its present life, by the view that this node has.
    fn reply(&mut self, from: &str, version: u32, reply: &Reply) {
        let (id, view_hash) = (from.into(), self.shard.view_hash());
        let incarnation = Incarnation { generation: 1, epoch: 0 };
        let replier = Replier { id: &id, incarnation, view_hash };
        self.shard.on_reply(self.now, replier, version, reply);
        self.check_sums();
    }

    fn held(&self, trace: u8) -> Option<u32> {
        let index = self.shard.table.find(id(trace))?;
        Some(self.shard.table.get(index)?.held_count)
    }

    /// What is counted along the way is what is there.
    fn check_sums(&self) {
        let traces = || self.shard.table.iter().map(|(_, trace)| trace);
        let bytes: usize = traces().map(Trace::cost_bytes).sum();
        assert_eq!(self.shard.trace_bytes, bytes);
        let remembered = traces().filter(|trace| trace.is_remembered());
        assert_eq!(self.shard.remembered_bytes, remembered.map(Trace::cost_bytes).sum::<usize>());
        let held: u64 = traces().map(|trace| u64::from(trace.held_count)).sum();
        assert_eq!(self.shard.held().iter().sum::<u64>(), held);
        if self.shard.review.is_none() {
            let mut by_role = [0; 3];
            for trace in traces() {
                by_role[self.shard.outlook.role(trace.slot) as usize] +=
                    u64::from(trace.held_count);
            }
            assert_eq!(self.shard.held(), by_role);
        }
        let held = traces().filter(|trace| trace.held_count > 0).count();
        assert_eq!(self.shard.held_trace_count(), held as u64);
        let held = traces().filter(|trace| trace.held_count > 0);
        let since = held.map(|trace| self.shard.started + seconds(trace.held_since.into()));
        assert_eq!(self.shard.held_since().into_iter().flatten().min(), since.min());
    }
}

/// The one export among `effects`.
fn export(effects: &[Effect]) -> (Arc<Attempt>, u32) {
    match effects {
        [Effect::Export { attempt, number, .. }] => (Arc::clone(attempt), *number),
        other => panic!("expected one export, not {other:?}"),
    }
}

fn done_of(effects: &[Effect]) -> (&NodeId, &DoneTrace) {
    match effects {
        [Effect::Done { target, done }] => (target, done),
        other => panic!("expected one Done, not {other:?}"),
    }
}

#[test]
fn trace_is_exported_whole_when_its_root_has_been_here_for_root_delay() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![child(1, 1)]);
    rig.pass(seconds(2));
    rig.hold(vec![root(1, 2)]);
    assert!(rig.pass(seconds(5)).is_empty());
    rig.hold(vec![child(1, 3)]);
    let (attempt, number) = export(&rig.pass(seconds(1)));
    assert_eq!(attempt.span_count, 3);
    assert!(rig.answer(1, number, Answer::Acknowledged).is_empty());
    assert_eq!(rig.held(1), Some(0));
    let tally = rig.shard.take_tally();
    assert_eq!((tally.exported, tally.late, tally.in_parts), (3, 0, 0));
    assert_eq!(tally.decided, [(Cause::Root, Verdict::Keep, Duration::ZERO)]);
}

#[test]
fn traces_that_are_due_one_after_the_other_are_looked_at_together() {
    let mut rig = Rig::new("a", &["a"]);
    for trace in 1..=10 {
        rig.now += Duration::from_millis(1);
        rig.hold(vec![root(trace, 1)]);
    }
    let last_due = rig.now + LIMITS.root_delay;
    assert_eq!(rig.shard.next_wake(), Some(last_due));
    rig.shard.on_time(last_due);
    assert_eq!(rig.shard.take_effects().len(), 10);
}

#[test]
fn trace_without_a_root_is_due_at_age_max() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![child(1, 1)]);
    assert!(rig.pass(seconds(29)).is_empty());
    export(&rig.pass(seconds(1)));
    assert_eq!(rig.shard.take_tally().decided[0].0, Cause::Age);
}

#[test]
fn trace_of_spans_max_is_due_at_once() {
    let mut rig = Rig::new("a", &["a"]);
    let spans = (0..1001_u32).map(|number| Span {
        span_id: [&[1; 4][..], &number.to_le_bytes()].concat(),
        ..child(1, 1)
    });
    rig.hold(spans.collect());
    assert_eq!(export(&rig.pass(Duration::ZERO)).0.span_count, 1001);
    assert_eq!(rig.shard.take_tally().decided[0].0, Cause::Spans);
}

#[test]
fn trace_of_bytes_max_is_due_at_once() {
    let mut rig = Rig::new("a", &["a"]);
    let long = |number| Span { name: "x".repeat(LIMITS.bytes_max / 2), ..child(1, number) };
    rig.hold(vec![long(1)]);
    assert!(rig.pass(Duration::ZERO).is_empty(), "there is room for another half");
    rig.hold(vec![long(2)]);
    assert_eq!(export(&rig.pass(Duration::ZERO)).0.span_count, 2);
    assert_eq!(rig.shard.take_tally().decided[0].0, Cause::Bytes);
}

#[test]
fn replica_keeps_its_spans_until_done_covers_them() {
    let mut rig = Rig::new("b", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1), child(trace, 2)]);
    assert!(rig.pass(seconds(7)).is_empty(), "a replica exports nothing");
    rig.shard.on_done(rig.now, id(trace), Verdict::Keep, key(1).name());
    assert_eq!(rig.held(trace), Some(2), "the owner never had span 2");
    let sum = key(1).name().wrapping_add(key(2).name());
    rig.shard.on_done(rig.now, id(trace), Verdict::Keep, sum);
    assert_eq!(rig.held(trace), Some(0));
    rig.check_sums();
}

#[test]
fn owner_tells_its_replica_what_is_done() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    let effects = rig.answer(trace, number, Answer::Acknowledged);
    let (target, done) = done_of(&effects);
    assert_eq!(target.as_str(), "b");
    assert_eq!((done.verdict(), done.sum), (Verdict::Keep, key(1).name()));
}

#[test]
fn replica_that_hears_nothing_asks_and_gives_what_the_owner_wants() {
    let mut rig = Rig::new("b", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1), child(trace, 2)]);
    let effects = rig.pass(seconds(11));
    let [Effect::Offer { target, trace: asked, spans: None, version, .. }] = &effects[..] else {
        panic!("expected one question, not {effects:?}");
    };
    assert_eq!((target.as_str(), asked.names.len()), ("a", 2));
    rig.shard.on_grant(target, 1 << 20);
    let reply = Reply {
        trace_id: id(trace),
        wanted: vec![key(2)],
        done: vec![key(1)],
        verdict: Verdict::Keep,
    };
    rig.reply(target.as_str(), *version, &reply);
    let effects = rig.shard.take_effects();
    let [Effect::Offer { spans: Some(spans), .. }] = &effects[..] else {
        panic!("expected the wanted span, not {effects:?}");
    };
    assert_eq!(spans.chunks.iter().flat_map(Chunk::framed_spans).count(), 1);
    assert_eq!(rig.held(trace), Some(1), "span 1 is done, span 2 is held until it is done too");
    rig.check_sums();
}

#[test]
fn questions_double_their_distance() {
    let mut rig = Rig::new("b", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    assert_eq!(rig.pass(seconds(11)).len(), 1);
    assert_eq!(rig.pass(seconds(9)).len(), 0);
    assert_eq!(rig.pass(seconds(1)).len(), 1);
    assert_eq!(rig.pass(seconds(600)).len(), 11);
}

#[test]
fn replica_decides_when_the_view_makes_it_owner() {
    let mut rig = Rig::new("b", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    assert!(rig.pass(seconds(7)).is_empty());
    rig.view(placement(&["b"]), MemberState::Active);
    assert_eq!(export(&rig.pass(Duration::ZERO)).0.span_count, 1);
    let tally = rig.shard.take_tally();
    assert_eq!((tally.taken_over, tally.decided[0].0), (1, Cause::Takeover));
}

#[test]
fn owner_waits_for_calm_but_not_for_ever() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    let mut standing = settled("a", &rig.placement, MemberState::Active);
    standing.peers.values_mut().for_each(|peer| (peer.view_hash, peer.settled) = (1, 1));
    rig.stand(standing);
    rig.hold(vec![root(trace, 1)]);
    assert!(rig.pass(seconds(15)).is_empty());
    export(&rig.pass(seconds(1)));
    assert_eq!(rig.shard.take_tally().uncalm, 1);
}

#[test]
fn span_that_is_known_is_not_stored_again() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1), root(1, 1)]);
    rig.hold(vec![root(1, 1), child(1, 2)]);
    assert_eq!((rig.held(1), rig.shard.take_tally().redelivered), (Some(2), 2));
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.answer(1, number, Answer::Acknowledged);
    rig.hold(vec![root(1, 1)]);
    assert_eq!((rig.held(1), rig.shard.take_tally().redelivered), (Some(0), 1));
    assert!(rig.pass(seconds(60)).is_empty());
}

#[test]
fn replica_that_gets_again_what_is_done_is_told_again() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    let told = rig.answer(trace, number, Answer::Acknowledged);
    rig.hold(vec![root(trace, 1)]);
    let again = rig.pass(Duration::ZERO);
    assert_eq!(done_of(&again), done_of(&told));
    rig.hold_from(Origin::Placing, vec![root(trace, 1)]);
    assert!(rig.pass(Duration::ZERO).is_empty(), "who places has its answer");
    rig.hold(vec![root(trace, 1), child(trace, 2)]);
    assert!(rig.shard.take_effects().is_empty(), "a part says nothing of the whole");
}

#[test]
fn attempt_is_withdrawn_when_another_node_is_owner_or_all_of_it_is_done_elsewhere() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    let withdrawn = |effects: &[Effect]| match effects {
        [Effect::Export { withdrawn, number, .. }] => (withdrawn.clone(), *number),
        other => panic!("expected one export, not {other:?}"),
    };
    let (waits, number) = withdrawn(&rig.pass(seconds(6)));
    assert!(!waits.is_set());
    let others = placement(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let owner = others.holders(KEY.slot(&[trace; 16])).unwrap().owner;
    assert_ne!(others.view().members()[usize::from(owner)].id.as_str(), "a");
    rig.view(others, MemberState::Active);
    assert!(waits.is_set());
    rig.view(placement(&["a", "b"]), MemberState::Active);
    assert!(!waits.is_set(), "it was not begun, and may begin again");
    rig.shard.on_done(rig.now, id(trace), Verdict::Keep, key(1).name());
    assert!(waits.is_set());
    rig.answer(trace, number, Answer::Again { after: None });
    assert_eq!(rig.held(trace), Some(0));
    assert!(rig.pass(seconds(60)).iter().all(|effect| !matches!(effect, Effect::Export { .. })));
}

#[test]
fn attempt_is_made_again_only_when_it_is_calm() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.answer(trace, number, Answer::Again { after: None });
    let mut standing = settled("a", &rig.placement, MemberState::Active);
    standing.peers.values_mut().for_each(|peer| (peer.view_hash, peer.settled) = (1, 1));
    rig.stand(standing);
    let exports = |effects: Vec<Effect>| {
        effects.iter().filter(|effect| matches!(effect, Effect::Export { .. })).count()
    };
    assert_eq!(exports(rig.pass(seconds(3))), 0, "what others did meanwhile is not known yet");
    assert_eq!(exports(rig.pass(SETTLE_MAX)), 1);
}

#[test]
fn same_span_id_with_another_kind_is_another_span() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1), Span { kind: 3, ..child(1, 1) }]);
    assert_eq!(rig.held(1), Some(2));
}

#[test]
fn late_span_follows_recorded_verdict_and_says_so() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.answer(1, number, Answer::Acknowledged);
    rig.hold(vec![child(1, 2)]);
    let (attempt, number) = export(&rig.pass(Duration::ZERO));
    let framed = attempt.chunks[0].framed_spans().next().unwrap();
    let span = Span::decode_length_delimited(&framed[1..]).unwrap();
    assert_eq!(span.attributes[0].key, process::LATE_ATTRIBUTE);
    rig.answer(1, number, Answer::Acknowledged);
    let tally = rig.shard.take_tally();
    assert_eq!((tally.exported, tally.late, tally.in_parts, tally.decided.len()), (2, 1, 1, 1));
}

#[test]
fn attempt_is_made_again_with_the_same_spans_until_acknowledged() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1)]);
    let (first, number) = export(&rig.pass(seconds(6)));
    rig.hold(vec![child(1, 2)]);
    assert!(rig.answer(1, number, Answer::Unanswered).is_empty());
    let (again, second) = export(&rig.pass(seconds(1)));
    assert!(Arc::ptr_eq(&first, &again) && number != second);
    assert!(rig.answer(1, number, Answer::Acknowledged).is_empty(), "an answer to an old try");
    assert_eq!(rig.held(1), Some(2));
    rig.answer(1, second, Answer::Acknowledged);
    let (late, _) = export(&rig.pass(Duration::ZERO));
    assert_eq!((late.span_count, rig.held(1)), (1, Some(1)));
    assert_eq!(rig.shard.take_tally().unanswered, 1);
}

#[test]
fn trace_that_grew_too_large_goes_out_in_attempts_of_bounded_size() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    for part in 0..4_u32 {
        let spans = (0..600_u32).map(|number| Span {
            span_id: [part.to_le_bytes(), (number + 1).to_le_bytes()].concat(),
            ..child(1, 1)
        });
        rig.hold(spans.collect());
    }
    rig.answer(1, number, Answer::Acknowledged);
    for expected in [1200, 1200] {
        let (attempt, number) = export(&rig.pass(Duration::ZERO));
        assert_eq!(attempt.span_count, expected, "two frames of 600 reach the bound of 1000");
        rig.answer(1, number, Answer::Acknowledged);
    }
    assert_eq!((rig.held(1), rig.shard.take_tally().exported), (Some(0), 2401));
}

struct Panics;

impl Decide for Panics {
    fn decide(&mut self, trace: &Attempt) -> Verdict {
        assert!(trace.trace_id != id(13), "planted");
        Verdict::SampledOut
    }

    fn boxed(&self) -> Box<dyn Decide> {
        Box::new(Self)
    }
}

#[test]
fn trace_that_makes_deciding_panic_costs_that_trace_only() {
    let mut rig = Rig::deciding("a", &["a"], Box::new(Panics));
    rig.hold(vec![root(13, 1), root(14, 1)]);
    let effects = rig.pass(seconds(6));
    let [Effect::DeadLetter { attempt, number, .. }] = &effects[..] else {
        panic!("expected one dead letter, not {effects:?}");
    };
    assert_eq!((attempt.trace_id, attempt.span_count), (id(13), 1));
    rig.answer(13, *number, Answer::Refused);
    let tally = rig.shard.take_tally();
    assert_eq!((tally.poison, tally.sampled_out), (1, 1));
    assert_eq!((rig.held(13), rig.held(14)), (Some(0), Some(0)));
}

#[test]
fn dead_letter_that_could_not_be_written_is_tried_again() {
    let mut rig = Rig::deciding("a", &["a"], Box::new(Panics));
    rig.hold(vec![root(13, 1)]);
    let effects = rig.pass(seconds(6));
    let [Effect::DeadLetter { number, .. }] = &effects[..] else { panic!("{effects:?}") };
    rig.answer(13, *number, Answer::Again { after: None });
    assert_eq!(rig.held(13), Some(1));
    assert!(matches!(&rig.pass(seconds(1))[..], [Effect::DeadLetter { .. }]));
}

#[test]
fn done_traces_are_forgotten_when_their_time_is_over() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.answer(1, number, Answer::Acknowledged);
    rig.pass(seconds(599));
    assert_eq!(rig.shard.table.len(), 1);
    rig.pass(seconds(1));
    assert_eq!((rig.shard.table.len(), rig.shard.trace_bytes), (0, 0));
    assert_eq!(rig.shard.take_tally().forgotten_early, 0);
}

#[test]
fn oldest_remembered_trace_goes_first_when_memory_is_short() {
    let mut rig = Rig::new("a", &["a"]);
    rig.shard.limits.remember_bytes_max = 800;
    for trace in 1..10 {
        rig.hold(vec![root(trace, 1)]);
        let (_, number) = export(&rig.pass(seconds(6)));
        rig.answer(trace, number, Answer::Acknowledged);
    }
    assert!(rig.shard.take_tally().forgotten_early > 0);
    assert_eq!((rig.held(1), rig.held(9)), (None, Some(0)));
}

#[test]
fn trace_that_was_held_again_is_no_reason_to_forget_the_next_one_early() {
    let mut rig = Rig::new("a", &["a"]);
    for trace in [1, 2] {
        rig.hold(vec![root(trace, 1)]);
        let (_, number) = export(&rig.pass(seconds(6)));
        rig.answer(trace, number, Answer::Acknowledged);
    }
    rig.hold(vec![child(1, 2)]);
    let (_, number) = export(&rig.pass(Duration::ZERO));
    rig.answer(1, number, Answer::Acknowledged);
    rig.pass(LIMITS.remember - seconds(6));
    assert_eq!((rig.held(1), rig.held(2)), (Some(0), Some(0)));
    rig.pass(seconds(6));
    assert_eq!((rig.held(1), rig.held(2)), (None, None));
}

#[test]
fn last_node_to_leave_decides_at_once() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![child(1, 1)]);
    let leaving = View::new([member("a", MemberState::Leaving)]);
    rig.view(Arc::new(Placement::new(Arc::new(leaving))), MemberState::Leaving);
    export(&rig.pass(Duration::ZERO));
    assert_eq!(rig.shard.take_tally().decided[0].0, Cause::Drain);
    rig.hold_from(Origin::Placing, vec![child(2, 1)]);
    export(&rig.pass(Duration::ZERO));
}

#[test]
fn names_are_compared_with_what_is_held_and_done() {
    let mut rig = Rig::new("a", &["a"]);
    rig.hold(vec![root(1, 1)]);
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.answer(1, number, Answer::Acknowledged);
    rig.hold(vec![child(1, 2)]);
    let named = named(1, &[1, 2, 3], &[], Verdict::None);
    let part = part(Origin::Placing, rig.shard.view_hash());
    let reply = rig.shard.on_names(rig.now, id(1), &named, part).unwrap();
    assert_eq!((reply.wanted, reply.done), (vec![key(3).name()], vec![key(1).name()]));
    let unknown = rig.shard.on_names(rig.now, id(2), &named, part).unwrap();
    assert_eq!(unknown.wanted, named.names);
    assert_eq!(rig.held(2), None, "names alone hold nothing");
}

#[test]
fn attempt_whose_spans_became_done_elsewhere_does_not_hold_up_later_ones() {
    for answered_first in [true, false] {
        let mut rig = Rig::new("a", &["a"]);
        rig.hold(vec![root(1, 1)]);
        let (_, number) = export(&rig.pass(seconds(6)));
        let reply = Reply {
            trace_id: id(1),
            wanted: Vec::new(),
            done: vec![key(1)],
            verdict: Verdict::None,
        };
        if answered_first {
            rig.answer(1, number, Answer::Unanswered);
        }
        rig.reply("b", 0, &reply);
        if !answered_first {
            rig.answer(1, number, Answer::Unanswered);
        }
        assert!(rig.pass(seconds(60)).is_empty(), "nothing is left to be tried");
        rig.hold(vec![child(1, 2)]);
        assert_eq!(export(&rig.pass(seconds(30))).0.span_count, 1);
    }
}

#[test]
fn names_that_are_marked_make_what_is_held_unplaced() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    let named = named(trace, &[1], &[], Verdict::None);
    let mut part = part(Origin::Entry, rig.shard.view_hash());
    for marked in [false, true] {
        part.marked = marked;
        assert_eq!(rig.shard.on_names(rig.now, id(trace), &named, part), None);
        let known = rig.shard.known(id(trace), &[key(1).name()]).unwrap();
        assert_eq!((known.held, known.unplaced), (1, marked));
    }
}

#[test]
fn span_said_to_be_done_elsewhere_is_done_here() {
    let mut rig = Rig::new("b", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1), child(trace, 2)]);
    let named = named(trace, &[], &[1, 9], Verdict::Keep);
    let part = part(Origin::Placing, rig.shard.view_hash());
    rig.shard.on_names(rig.now, id(trace), &named, part);
    rig.check_sums();
    assert_eq!(rig.held(trace), Some(1));
    rig.hold(vec![child(trace, 9)]);
    assert_eq!(rig.held(trace), Some(1), "span 9 is known as done");
}

#[test]
fn what_is_told_of_a_trace_follows_its_life() {
    let mut rig = Rig::new("a", &["a"]);
    let tell = |rig: &Rig| rig.shard.tell(rig.now, id(1));
    assert_eq!(tell(&rig), None);
    rig.pass(seconds(3));
    rig.hold(vec![root(1, 1), child(1, 2)]);
    rig.pass(seconds(2));
    let told = tell(&rig).unwrap();
    assert_eq!((told.held, told.sending, told.done), (2, 0, 0));
    assert_eq!((told.due_in_ms, told.held_for_ms), (Some(4000), Some(2000)));
    let (_, number) = export(&rig.pass(seconds(5)));
    let told = tell(&rig).unwrap();
    assert_eq!((told.held, told.sending, told.due_in_ms), (0, 2, Some(-1000)));
    rig.answer(1, number, Answer::Acknowledged);
    let told = tell(&rig).unwrap();
    assert_eq!((told.held, told.sending, told.done, told.verdict()), (0, 0, 2, Verdict::Keep));
    assert_eq!((told.due_in_ms, told.held_for_ms), (None, None));
    rig.pass(LIMITS.remember);
    assert_eq!(tell(&rig), None);
}

#[test]
fn oldest_held_trace_is_known_by_role_and_a_late_span_begins_anew() {
    let mut rig = Rig::new("a", &["a", "b"]);
    let [owned, kept] = ["a", "b"].map(|owner| {
        let replica = if owner == "a" { "b" } else { "a" };
        trace_of(&rig.placement, owner, Some(replica))
    });
    let start = rig.now;
    rig.hold(vec![root(owned, 1)]);
    rig.pass(seconds(4));
    rig.hold(vec![child(owned, 2), root(kept, 1)]);
    assert_eq!(rig.shard.held_since(), [Some(start), Some(start + seconds(4)), None]);
    let (_, number) = export(&rig.pass(seconds(2)));
    rig.answer(owned, number, Answer::Acknowledged);
    assert_eq!(rig.shard.held_since(), [None, Some(start + seconds(4)), None]);
    assert_eq!(rig.shard.remembered_since(), Some(start + seconds(6)));
    rig.pass(seconds(4));
    rig.hold(vec![child(owned, 3)]);
    assert_eq!(rig.shard.held_since()[0], Some(start + seconds(10)));
    assert_eq!(rig.shard.remembered_since(), None, "a trace that is held again is not remembered");
    rig.view(placement(&["b"]), MemberState::Leaving);
    assert_eq!(rig.shard.held_since(), [None, None, Some(start + seconds(4))]);
}
