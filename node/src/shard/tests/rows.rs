//! What happens when: a test for each row of that table in PROTOCOL.md, by its name.

use super::placing::{offers, three};
use super::*;
use crate::assemble::outgoing;
use crate::frame::HoldReply;

impl Rig {
    /// A node says what it knows of a trace, by this node's view.
    fn named(&mut self, trace: u8, names: &[u8], done: &[u8], verdict: Verdict, marked: bool) {
        let named = named(trace, names, done, verdict);
        let part = HoldPart { marked, ..part(Origin::Entry, self.shard.view_hash()) };
        self.shard.on_names(self.now, id(trace), &named, part);
        self.check_sums();
    }

    /// A member knows all of a trace, or says what of it is done.
    fn told(&mut self, from: &str, trace: u8, done: &[u8]) {
        let version = self.shard.version(id(trace)).unwrap();
        let done = done.iter().map(|&number| key(number)).collect();
        self.reply(from, version, &Reply { done, ..Reply::new(id(trace), None) });
    }
}

fn is_quiet(effects: &[Effect]) -> bool {
    effects.iter().all(|effect| matches!(effect, Effect::Offer { .. }))
}

#[test]
fn only_the_acknowledgement_of_a_stored_batch_was_lost() {
    let (mut rig, trace) = three("c");
    rig.told("a", trace, &[]);
    assert_eq!(rig.held(trace), Some(1), "b has not said anything");
    rig.told("b", trace, &[]);
    assert_eq!(rig.held(trace), None);

    let (mut rig, trace) = three("c");
    rig.told("a", trace, &[1]);
    assert_eq!(rig.held(trace), Some(0), "a has exported it");
    assert!(is_quiet(&rig.pass(seconds(60))));
}

#[test]
fn a_holder_is_slow_for_seconds() {
    let (mut rig, trace) = three("c");
    rig.told("b", trace, &[]);
    assert_eq!(offers(&rig.pass(seconds(5)))[..5], [("a", 1, 0, 0); 5]);
    let version = rig.shard.version(id(trace)).unwrap();
    rig.reply("a", version, &Reply { wanted: vec![key(1)], ..Reply::new(id(trace), None) });
    assert_eq!(offers(&rig.shard.take_effects()), [("a", 1, 1, 0)]);
    rig.told("a", trace, &[]);
    assert_eq!(rig.held(trace), None);
}

#[test]
fn the_re_routed_copy_s_node_dies_next() {
    let (mut rig, trace) = three("b");
    rig.named(trace, &[1], &[], Verdict::None, true);
    rig.view(placement(&["a", "b"]), MemberState::Active);
    assert_eq!(offers(&rig.pass(seconds(1)))[0], ("a", 1, 0, 0));
}

#[test]
fn client_retries_other_entry_node_acknowledged_or_not() {
    let (mut rig, trace) = three("a");
    rig.hold(vec![root(trace, 1)]);
    let (attempt, number) = export(&rig.pass(seconds(6)));
    rig.answer(trace, number, Answer::Acknowledged);
    rig.hold(vec![root(trace, 1)]);
    assert_eq!((attempt.span_count, rig.held(trace)), (1, Some(0)));
    assert_eq!(rig.shard.take_tally().redelivered, 2);
}

#[test]
fn owner_crashes_before_deciding() {
    let (mut rig, trace) = three("b");
    rig.unsettled(&["b", "c"], MemberState::Active);
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("c", 1, 1, 0)]);
    rig.told("c", trace, &[]);
    assert!(is_quiet(&rig.pass(seconds(6))), "nobody has settled");
    rig.view(placement(&["b", "c"]), MemberState::Active);
    assert_eq!(export(&rig.pass(seconds(1))).0.span_count, 1);
    assert_eq!(rig.shard.take_tally().taken_over, 0, "it was not due when its owner crashed");
}

#[test]
fn owner_crashes_between_sink_acknowledgement_and_done() {
    let (mut rig, trace) = three("b");
    assert!(is_quiet(&rig.pass(seconds(7))));
    rig.view(placement(&["b", "c"]), MemberState::Active);
    rig.told("c", trace, &[]);
    let effects = rig.pass(Duration::ZERO);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Export { .. })));
    assert_eq!(rig.shard.take_tally().taken_over, 1);
}

#[test]
fn done_lost_or_the_replica_has_a_span_the_owner_lacks() {
    let (mut rig, trace) = three("b");
    rig.hold(vec![child(trace, 2)]);
    rig.shard.on_done(rig.now, id(trace), Verdict::Keep, key(1).name());
    assert_eq!(rig.held(trace), Some(2), "the sums differ");
    assert_eq!(offers(&rig.pass(seconds(11))), [("a", 2, 0, 0)]);
    let version = rig.shard.version(id(trace)).unwrap();
    let (wanted, done) = (vec![key(2)], vec![key(1)]);
    rig.reply("a", version, &Reply { wanted, done, ..Reply::new(id(trace), None) });
    assert_eq!(offers(&rig.shard.take_effects()), [("a", 1, 1, 1)]);
    assert_eq!(rig.held(trace), Some(1));
}

#[test]
fn restart_with_the_same_id_and_nothing_held_before_anyone_noticed() {
    let (mut rig, _) = three("a");
    let restarted = ["a", "b", "c"].map(|id| {
        let generation = if id == "b" { 2 } else { 1 };
        let incarnation = Incarnation { generation, epoch: 0 };
        ViewMember { incarnation, ..member(id, MemberState::Active) }
    });
    let placement = Arc::new(Placement::new(Arc::new(View::new(restarted))));
    rig.view(placement, MemberState::Active);
    assert!(!rig.shard.is_settled());
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("b", 1, 1, 0)]);
}

#[test]
fn owner_pauses_3_s_is_replaced_wakes_with_its_old_view() {
    let (mut rig, trace) = three("a");
    let woken = ["a", "b", "c"].map(|id| {
        let incarnation = Incarnation { generation: 1, epoch: u32::from(id == "a") };
        ViewMember { incarnation, ..member(id, MemberState::Active) }
    });
    let woken = Arc::new(Placement::new(Arc::new(View::new(woken))));
    let mut standing = settled("a", &rig.placement, MemberState::Active);
    standing.placement = woken;
    rig.stand(standing);
    assert!(is_quiet(&rig.pass(seconds(9))), "the others are settled in another view");
    rig.named(trace, &[], &[1], Verdict::Keep, false);
    assert_eq!(rig.held(trace), Some(0));
    assert!(is_quiet(&rig.pass(seconds(60))));
}

#[test]
fn partition_both_sides_have_an_owner() {
    let mut rig = Rig::deciding("a", &["a", "c"], Box::new(Panics));
    let (alone, healed) = (Arc::clone(&rig.placement), placement(&["a", "b", "c"]));
    let is_mine = |trace: &u8| {
        let owner = |placement: &Placement| {
            let holders = placement.holders(KEY.slot(&[*trace; 16])).unwrap();
            placement.view().members()[usize::from(holders.owner)].id.clone()
        };
        *trace != 13 && owner(&alone).as_str() == "a" && owner(&healed).as_str() == "a"
    };
    let trace = (1..255).find(is_mine).unwrap();
    rig.hold(vec![root(trace, 1)]);
    rig.pass(seconds(6));
    assert_eq!(rig.shard.take_tally().sampled_out, 1);
    rig.view(healed, MemberState::Active);
    rig.named(trace, &[], &[1, 3], Verdict::Keep, false);
    rig.hold(vec![root(trace, 1), child(trace, 2), child(trace, 3)]);
    let effects = rig.pass(Duration::ZERO);
    let exported = effects.iter().find_map(|effect| match effect {
        Effect::Export { attempt, .. } => Some(attempt.span_count),
        _ => None,
    });
    assert_eq!(exported, Some(1), "keep wins, and only span 2 is not done anywhere");
}

#[test]
fn due_during_a_hand_over() {
    let (mut rig, trace) = three("b");
    rig.unsettled(&["b", "c"], MemberState::Active);
    rig.told("c", trace, &[]);
    assert!(is_quiet(&rig.pass(seconds(15))), "due for nine seconds");
    assert!(!is_quiet(&rig.pass(seconds(1))), "due for SETTLE_MAX");
    assert_eq!(rig.shard.take_tally().uncalm, 1);
}

#[test]
fn export_in_flight_while_ownership_moves() {
    let (mut rig, trace) = three("a");
    let (_, number) = export(&rig.pass(seconds(6)));
    rig.unsettled(&["b", "c"], MemberState::Leaving);
    rig.told("b", trace, &[]);
    rig.told("c", trace, &[]);
    assert_eq!((rig.held(trace), rig.shard.is_settled()), (Some(1), false));
    rig.answer(trace, number, Answer::Acknowledged);
    assert!(!rig.shard.is_settled(), "the others do not know yet what is done");
    let told = rig.pass(seconds(1));
    assert_eq!(offers(&told[told.len() - 2..]), [("b", 0, 0, 1), ("c", 0, 0, 1)]);
    rig.told("b", trace, &[]);
    rig.told("c", trace, &[]);
    assert_eq!((rig.held(trace), rig.shard.is_settled()), (None, true));
}

#[test]
fn three_view_changes_in_a_second() {
    let (mut rig, trace) = three("a");
    for members in [&["b", "c"][..], &["b", "c", "d"], &["b", "c"]] {
        rig.view(placement(members), MemberState::Leaving);
        assert_eq!(rig.held(trace), Some(1), "b confirmed in the views before");
        rig.told("b", trace, &[]);
    }
    rig.told("c", trace, &[]);
    assert_eq!(rig.held(trace), None);
}

#[test]
fn owner_and_replica_name_different_owners() {
    let (mut rig, trace) = three("a");
    let mut standing = settled("a", &rig.placement, MemberState::Active);
    // It settled in this view, too, and then found out about another one.
    standing.peers.get_mut(&NodeId::from("b")).unwrap().view_hash = 1;
    rig.stand(standing);
    assert!(rig.pass(seconds(15)).is_empty());
    assert_eq!(rig.held(trace), Some(1));
    export(&rig.pass(seconds(1)));
    assert_eq!(rig.shard.take_tally().uncalm, 1);
}

#[test]
fn holder_for_a_slot_that_is_not_its_own() {
    let (mut rig, trace) = three("c");
    assert_eq!((rig.shard.held(), rig.shard.unplaced_count()), ([0, 0, 1], 1));
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("a", 1, 0, 0), ("b", 1, 0, 0)]);
    rig.told("a", trace, &[]);
    rig.told("b", trace, &[]);
    assert_eq!(rig.held(trace), None);
}

#[test]
fn node_drains_while_a_holder_crashes() {
    let (mut rig, trace) = three("a");
    rig.view(placement(&["b", "c"]), MemberState::Leaving);
    rig.told("c", trace, &[]);
    rig.view(placement(&["c", "d"]), MemberState::Leaving);
    rig.told("d", trace, &[]);
    assert_eq!(rig.held(trace), Some(1), "what c confirmed was for another view");
    rig.told("c", trace, &[]);
    assert_eq!(rig.held(trace), None);
}

#[test]
fn all_nodes_drain_at_once() {
    let (mut owner, _) = three("a");
    let (mut other, trace) = three("b");
    let leaving = ["a", "b", "c"].map(|id| member(id, MemberState::Leaving));
    let leaving = Arc::new(Placement::new(Arc::new(View::new(leaving))));
    for rig in [&mut owner, &mut other] {
        rig.view(Arc::clone(&leaving), MemberState::Leaving);
    }
    assert!(!is_quiet(&owner.pass(Duration::ZERO)), "it does not wait for due");
    assert!(is_quiet(&other.pass(seconds(1))));
    other.told("a", trace, &[1]);
    assert_eq!(other.held(trace), Some(0));
}

#[test]
fn entry_node_dies_before_answering() {
    let (mut rig, trace) = three("a");
    rig.view(placement(&["a", "b"]), MemberState::Active);
    rig.hold(vec![root(trace, 1)]);
    assert_eq!((rig.held(trace), rig.shard.take_tally().redelivered), (Some(1), 1));
    assert_eq!(export(&rig.pass(seconds(6))).0.span_count, 1);
}

#[test]
fn hand_over_target_is_out_of_memory() {
    let (mut rig, trace) = three("b");
    rig.unsettled(&["b", "c"], MemberState::Active);
    assert_eq!(offers(&rig.pass(Duration::ZERO)), [("c", 1, 1, 0)]);
    let asked = [(id(trace), rig.shard.version(id(trace)).unwrap())];
    let full = HoldReply { full: true, ..HoldReply::default() };
    outgoing::on_reply(&mut rig.shard, 1, rig.now, &"c".into(), &asked, &full);
    assert_eq!((rig.held(trace), rig.shard.is_settled()), (Some(1), false));
    assert_eq!(offers(&rig.pass(seconds(1))), [("c", 1, 0, 0)]);
}

#[test]
fn one_pair_cannot_talk_gossip_sees_both_alive() {
    let (mut rig, trace) = three("c");
    rig.told("b", trace, &[]);
    for _ in 0..600 {
        let effects = rig.pass(seconds(1));
        assert!(!effects.is_empty(), "it is offered for ever");
        for effect in effects {
            let Effect::Offer { target, bytes, .. } = effect else { panic!("not {effect:?}") };
            rig.shard.on_arrived(&target, bytes, false);
        }
    }
    assert_eq!(rig.held(trace), Some(1));
    assert_eq!(rig.shard.unplaced_by_member(), BTreeMap::from([("a".into(), 1)]));
}
