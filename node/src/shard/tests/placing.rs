//! Placing: P1 to P4, calm, and what goes round with a trace, each by name.

use super::*;
use crate::shard::vanished::life;

/// A grant that no test uses up.
const PLENTY: u64 = 1 << 30;

/// To whom something was offered: spans by name, spans as bytes, spans as done.
pub(super) fn offers(effects: &[Effect]) -> Vec<(&str, usize, u32, usize)> {
    fn offer(effect: &Effect) -> (&str, usize, u32, usize) {
        let Effect::Offer { target, trace, spans, .. } = effect else {
            panic!("expected offers only, not {effect:?}");
        };
        let given = spans.as_ref().map_or(0, |spans| spans.span_count);
        (target.as_str(), trace.names.len(), given, trace.done.len())
    }
    effects.iter().map(offer).collect()
}

impl Rig {
    /// What a member holds all of.
    fn confirm(&mut self, from: &str, trace: u8) {
        let version = self.shard.version(id(trace)).unwrap();
        self.reply(from, version, &Reply::new(id(trace), None));
    }

    fn is_unplaced(&self, trace: u8) -> Option<bool> {
        Some(self.shard.known(id(trace), &[])?.unplaced)
    }

    /// A view that this node has just got, and in which nobody has settled.
    pub(super) fn unsettled(&mut self, ids: &[&str], state: MemberState) {
        let mut standing = settled(self.me.as_str(), &placement(ids), state);
        standing.settled = 0;
        standing.peers.values_mut().for_each(|peer| peer.settled = 0);
        self.stand(standing);
    }
}

/// Owner and replica of a trace.
fn holders(placement: &Placement, trace: u8) -> (MemberIndex, Option<MemberIndex>) {
    let holders = placement.holders(KEY.slot(&[trace; 16])).unwrap();
    (holders.owner, holders.replica)
}

/// A rig of `me` in a mesh of a, b and c, and a trace of one span whose holders are, in this order,
/// a, b, c and, should it come, d.
pub(super) fn three(me: &str) -> (Rig, u8) {
    let mut rig = Rig::new(me, &["a", "b", "c"]);
    let (all, later) = (placement(&["a", "b", "c", "d"]), placement(&["b", "c", "d"]));
    let in_order = |trace: &u8| {
        holders(&all, *trace) == (0, Some(1)) && holders(&later, *trace) == (0, Some(1))
    };
    let trace = (1..255).find(in_order).unwrap();
    for member in ["a", "b", "c"] {
        rig.shard.on_grant(&member.into(), PLENTY);
    }
    rig.hold(vec![root(trace, 1)]);
    (rig, trace)
}

#[test]
fn after_a_crash_the_holder_that_is_left_gives_bytes_to_the_next_at_once() {
    let (mut rig, trace) = three("b");
    rig.unsettled(&["b", "c"], MemberState::Active);
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("c", 1, 1, 0)]);
    assert!(!rig.shard.is_settled());
    rig.confirm("c", trace);
    assert!(rig.shard.is_settled());
    assert_eq!((rig.is_unplaced(trace), rig.held(trace)), (Some(false), Some(1)));
    assert!(rig.pass(seconds(5)).is_empty());
}

#[test]
fn what_is_not_confirmed_is_offered_again_by_names() {
    let (mut rig, trace) = three("b");
    rig.unsettled(&["b", "c"], MemberState::Active);
    rig.pass(Duration::ZERO);
    let again = rig.pass(seconds(3));
    assert_eq!(offers(&again), [("c", 1, 0, 0); 3]);
    let Effect::Offer { version, .. } = again[0] else { unreachable!() };
    let reply = Reply { wanted: vec![key(1)], ..Reply::new(id(trace), None) };
    rig.reply("c", version, &reply);
    assert_eq!(offers(&rig.shard.take_effects()), [("c", 1, 1, 0)]);
}

#[test]
fn nothing_goes_as_bytes_before_the_first_grant() {
    let mut rig = Rig::new("b", &["a", "b", "c"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    rig.unsettled(&["b", "c"], MemberState::Active);
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("c", 1, 0, 0)]);
    rig.shard.on_grant(&"c".into(), PLENTY);
    let version = rig.shard.version(id(trace)).unwrap();
    rig.reply("c", version, &Reply { wanted: vec![key(1)], ..Reply::new(id(trace), None) });
    assert_eq!(offers(&rig.shard.take_effects()), [("c", 1, 1, 0)]);
}

#[test]
fn after_a_join_the_first_former_holder_gives_and_the_other_waits_and_names() {
    for (me, first) in [("a", true), ("b", false)] {
        let mut rig = Rig::new(me, &["a", "b"]);
        let joined = placement(&["a", "b", "c"]);
        let trace = trace_of(&joined, "c", Some("a"));
        rig.hold(vec![root(trace, 1)]);
        rig.unsettled(&["a", "b", "c"], MemberState::Active);
        rig.shard.on_grant(&"c".into(), PLENTY);
        let at_once = rig.pass(Duration::ZERO);
        if first {
            assert_eq!(offers(&at_once), [("c", 1, 1, 0)], "a stays a holder: itself");
        } else {
            assert!(at_once.is_empty());
            let later = rig.pass(seconds(1));
            assert_eq!(offers(&later), [("a", 1, 0, 0), ("c", 1, 0, 0)]);
        }
    }
}

#[test]
fn node_that_is_no_holder_forgets_only_what_every_holder_confirmed() {
    let (mut rig, trace) = three("a");
    rig.view(placement(&["b", "c"]), MemberState::Leaving);
    let version = rig.shard.version(id(trace)).unwrap();
    assert_eq!(rig.pass(Duration::ZERO).len(), 2);
    let view = rig.shard.view_hash();
    let present = Incarnation { generation: 1, epoch: 0 };
    let former = Incarnation { generation: 0, epoch: 9 };
    let all_held = Reply::new(id(trace), None);
    let mut reply = |from: &str, view_hash, incarnation, version| {
        let from = from.into();
        let replier = Replier { id: &from, incarnation, view_hash };
        rig.shard.on_reply(rig.now, replier, version, &all_held);
        rig.held(trace)
    };
    assert_eq!(reply("b", view + 1, present, version), Some(1), "another view");
    assert_eq!(reply("b", view, former, version), Some(1), "another incarnation");
    assert_eq!(reply("b", view, present, version + 1), Some(1), "another version");
    assert_eq!(reply("b", view, present, version), Some(1), "c has not confirmed");
    assert_eq!(reply("c", view, present, version), None);
    rig.check_sums();
    assert_eq!(rig.shard.unplaced_count(), 0);
}

#[test]
fn confirmations_end_with_the_view_and_with_every_change() {
    let (mut rig, trace) = three("a");
    rig.view(placement(&["b", "c"]), MemberState::Leaving);
    rig.confirm("b", trace);
    rig.hold_from(Origin::Placing, vec![child(trace, 2)]);
    rig.confirm("c", trace);
    assert_eq!(rig.held(trace), Some(2), "b confirmed one span");
    rig.view(placement(&["b", "c", "d"]), MemberState::Leaving);
    rig.confirm("b", trace);
    assert_eq!(rig.held(trace), Some(2), "c confirmed in another view");
    rig.confirm("c", trace);
    assert_eq!(rig.held(trace), None);
}

#[test]
fn confirmations_end_when_an_entry_node_relies_on_this_one_by_another_view() {
    let (mut rig, trace) = three("a");
    rig.view(placement(&["b", "c"]), MemberState::Leaving);
    let version = rig.shard.version(id(trace)).unwrap();
    let request = request(vec![root(trace, 1)]);
    let cut = Cut::new(request.clone(), scan(&request).unwrap(), &KEY);
    rig.confirm("b", trace);
    rig.shard.on_hold(rig.now, &cut, &[0], part(Origin::Entry, 1));
    rig.confirm("c", trace);
    assert_eq!(rig.held(trace), Some(1), "b confirmed before");
    rig.reply("b", version, &Reply::new(id(trace), None));
    assert_eq!(rig.held(trace), Some(1), "b was offered it before");
    rig.confirm("b", trace);
    assert_eq!(rig.held(trace), None);

    let (mut rig, trace) = three("a");
    rig.view(placement(&["b", "c"]), MemberState::Leaving);
    rig.confirm("b", trace);
    let marked = HoldPart { marked: true, ..part(Origin::Entry, 1) };
    rig.shard.on_names(rig.now, id(trace), &named(trace, &[1], &[], Verdict::None), marked);
    rig.confirm("c", trace);
    assert_eq!(rig.held(trace), Some(1), "names are relied on as well");
}

#[test]
fn former_owner_gives_up_an_attempt_that_failed() {
    let (mut rig, trace) = three("a");
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.unsettled(&["b", "c"], MemberState::Leaving);
    rig.answer(trace, number, Answer::Again { after: None });
    rig.confirm("b", trace);
    rig.confirm("c", trace);
    assert_eq!(rig.held(trace), None, "whoever is the owner now tries again");
}

#[test]
fn what_came_by_another_view_is_offered_although_a_holder_got_it() {
    let (mut rig, _) = three("a");
    let trace = trace_of(&rig.placement, "a", Some("c"));
    let request = request(vec![root(trace, 1)]);
    let cut = Cut::new(request.clone(), scan(&request).unwrap(), &KEY);
    rig.shard.on_hold(rig.now, &cut, &[0], part(Origin::Entry, 1));
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("c", 1, 0, 0)]);
}

#[test]
fn what_is_remembered_is_handed_over_and_answers_there() {
    let (mut rig, trace) = three("b");
    rig.shard.on_done(rig.now, id(trace), Verdict::Keep, key(1).name());
    rig.unsettled(&["b", "c"], MemberState::Active);
    let effects = rig.pass(Duration::ZERO);
    assert_eq!(offers(&effects), [("c", 0, 0, 1)]);
    let Effect::Offer { trace: told, .. } = &effects[0] else { unreachable!() };

    let mut heir = Rig::new("c", &["b", "c"]);
    let by = part(Origin::Placing, heir.shard.view_hash());
    heir.shard.on_names(heir.now, id(trace), told, by);
    heir.check_sums();
    heir.hold(vec![root(trace, 1)]);
    assert_eq!(heir.held(trace), Some(0), "a repeated span is recognised");
    heir.pass(seconds(600));
    assert_eq!(heir.held(trace), None, "it is remembered no longer than anything else");
}

#[test]
fn owner_is_calm_only_when_all_settled_or_its_holders_are_those_of_then() {
    let (mut rig, trace) = three("b");
    rig.unsettled(&["b", "c"], MemberState::Active);
    rig.confirm("c", trace);
    assert!(rig.pass(seconds(8)).iter().all(|effect| matches!(effect, Effect::Offer { .. })));
    rig.view(placement(&["b", "c"]), MemberState::Active);
    let effects = rig.pass(seconds(1));
    assert!(matches!(&effects[..], [Effect::Export { .. }]), "{effects:?}");
    assert_eq!(rig.shard.take_tally().uncalm, 0);

    // A view change that does not touch the slot disturbs nobody.
    let (mut rig, trace) = three("a");
    rig.unsettled(&["a", "b", "c", "d"], MemberState::Active);
    rig.hold(vec![root(trace, 7)]);
    let effects = rig.pass(seconds(6));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Export { .. })));
}

/// A trace that two others had crashed of, and "a" was to decide.
fn poisoned() -> (Rig, u8) {
    let mut rig = Rig::deciding("d", &["a", "d"], Box::new(Panics));
    let trace = trace_of(&rig.placement, "a", Some("d"));
    let mut crashed = named(trace, &[1], &[], Verdict::None);
    crashed.vanished = vec![7, 8];
    rig.hold(vec![root(trace, 1)]);
    let by = part(Origin::Placing, rig.shard.view_hash());
    rig.shard.on_names(rig.now, id(trace), &crashed, by);
    rig.pass(seconds(1));
    (rig, trace)
}

#[test]
fn trace_that_was_due_in_three_crashes_goes_to_the_dead_letters_unopened() {
    let (mut rig, trace) = poisoned();
    rig.view(placement(&["d"]), MemberState::Active);
    assert!(rig.pass(seconds(29)).is_empty(), "they may only have been out of reach");
    let effects = rig.pass(seconds(1));
    let [Effect::DeadLetter { attempt, why, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((attempt.span_count, *why), (1, "its owners crashed"));
    assert_eq!(attempt.trace_id, id(trace));
}

#[test]
fn last_to_leave_waits_for_no_owner_to_come_back() {
    let (mut rig, _) = poisoned();
    rig.view(placement(&["d"]), MemberState::Leaving);
    let effects = rig.pass(Duration::ZERO);
    assert!(matches!(effects[..], [Effect::DeadLetter { .. }]), "{effects:?}");
}

#[test]
fn owners_that_come_back_say_first_what_they_did_with_a_trace_in_doubt() {
    let mut rig = Rig::new("d", &["b", "d"]);
    let trace = trace_of(&rig.placement, "d", Some("b"));
    let mut crashed = named(trace, &[1], &[], Verdict::None);
    crashed.vanished = vec![7, 8, life(&KEY, &"b".into(), 1)];
    rig.view(placement(&["d"]), MemberState::Active);
    rig.hold(vec![root(trace, 1)]);
    let by = part(Origin::Placing, rig.shard.view_hash());
    rig.shard.on_names(rig.now, id(trace), &crashed, by);
    let exports = |effects: Vec<Effect>| {
        effects.iter().filter(|effect| matches!(effect, Effect::Export { .. })).count()
    };
    assert_eq!(exports(rig.pass(seconds(25))), 0, "in doubt");
    let back = placement(&["b", "d"]);
    let mut unsettled = settled("d", &back, MemberState::Active);
    unsettled.settled = 0;
    rig.stand(unsettled);
    assert_eq!(exports(rig.pass(seconds(14))), 0, "b has not said yet what it did");
    assert_eq!(exports(rig.pass(seconds(2))), 1, "it had ten seconds after the doubt");
}

#[test]
fn owner_that_leaves_in_order_crashes_no_trace() {
    let mut rig = Rig::new("b", &["a", "b"]);
    let trace = trace_of(&rig.placement, "a", Some("b"));
    rig.hold(vec![root(trace, 1)]);
    rig.pass(seconds(7));
    let crashes = |rig: &Rig| {
        let index = rig.shard.table.find(id(trace)).unwrap();
        rig.shard.table.get(index).unwrap().vanished.lives().len()
    };
    let alone = placement(&["b"]);
    let mut leaving = settled("b", &alone, MemberState::Active);
    let peer = PeerStanding {
        incarnation: Incarnation { generation: 1, epoch: 0 },
        state: MemberState::Leaving,
        view_hash: alone.view().hash(),
        settled: 0,
    };
    leaving.peers.insert("a".into(), peer);
    rig.stand(leaving);
    assert_eq!(crashes(&rig), 0);
    rig.view(placement(&["a", "b"]), MemberState::Active);
    rig.view(alone, MemberState::Active);
    assert_eq!(crashes(&rig), 1);
}

#[test]
fn bytes_keep_within_the_grant_and_the_most_urgent_go_first() {
    let mut rig = Rig::new("b", &["a", "b", "c"]);
    let mine = |trace: &u8| holders(&rig.placement, *trace) == (0, Some(1));
    let traces: Vec<u8> = (1..255).filter(mine).collect();
    for &trace in traces.iter().rev() {
        rig.hold(vec![root(trace, 1)]);
        rig.pass(Duration::from_millis(1));
    }
    rig.unsettled(&["b", "c"], MemberState::Active);
    rig.shard.on_grant(&"c".into(), 10_000);
    let bytes_of = |effects: &[Effect]| -> usize {
        let bytes = |effect: &Effect| match effect {
            Effect::Offer { bytes, .. } => *bytes,
            _ => 0,
        };
        effects.iter().map(bytes).sum()
    };
    let first = rig.pass(Duration::ZERO);
    let Effect::Offer { trace, .. } = &first[0] else { panic!("{first:?}") };
    assert_eq!(trace.trace_id[0], *traces.last().unwrap(), "it is due first");
    let sent = bytes_of(&first) + bytes_of(&rig.pass(seconds(3)));
    let one = bytes_of(&first[..1]);
    assert!((30_000..=30_200 + 2 * one).contains(&sent), "{sent} of 10,000 a second, {one} each");
}
