//! A new view meets the traces that are there, some in a turn.

use super::*;
use std::collections::BTreeSet;

/// Remembered traces whose slots get other holders, and a held one that came last.
fn rig(remembered: usize) -> (Rig, Vec<u8>, u8, Arc<Placement>) {
    let mut rig = Rig::new("a", &["a", "b"]);
    let present = placement(&["a", "b", "c"]);
    let moves = |number: &u8| {
        let holders = present.holders(KEY.slot(&[*number; 16])).unwrap();
        let name = |index: MemberIndex| present.view().members()[index as usize].id.as_str();
        // This node stays a holder: no other rule makes them unplaced.
        let names = [Some(name(holders.owner)), holders.replica.map(name)];
        [Some("a"), Some("c")].iter().all(|holder| names.contains(holder))
    };
    let mut traces: Vec<u8> = (1..255).filter(moves).take(remembered + 1).collect();
    let held = traces.pop().unwrap();
    for &trace in &traces {
        rig.shard.on_names(
            rig.now,
            id(trace),
            &named(trace, &[], &[1], Verdict::Keep),
            part(Origin::Placing, rig.shard.view_hash()),
        );
    }
    rig.hold(vec![child(held, 1)]);
    (rig, traces, held, present)
}

fn is_unplaced(rig: &Rig, trace: u8) -> bool {
    rig.shard.tell(rig.now, id(trace)).unwrap().unplaced
}

#[test]
fn what_is_held_is_placed_before_what_is_remembered() {
    let (mut rig, remembered, held, present) = rig(9);
    rig.view(present, MemberState::Active);
    while !is_unplaced(&rig, held) {
        rig.now = rig.shard.next_wake().unwrap();
        rig.shard.on_time(rig.now);
    }
    let first = remembered.iter().filter(|&&trace| is_unplaced(&rig, trace)).count();
    assert!(first <= LIMITS.traces_per_turn, "{first} took its turn");
    assert!(!rig.shard.is_settled(), "most traces were not looked at");
    rig.pass(seconds(1));
    assert!(remembered.iter().all(|&trace| is_unplaced(&rig, trace)));
    rig.check_sums();
}

#[test]
fn one_turn_offers_no_more_than_it_may() {
    let (mut rig, remembered, _, present) = rig(9);
    rig.view(present, MemberState::Active);
    let (end, mut offered) = (rig.now + 2 * OFFER_AGAIN, BTreeSet::new());
    while let Some(wake) = rig.shard.next_wake().filter(|&wake| wake <= end) {
        rig.now = rig.now.max(wake);
        rig.shard.on_time(rig.now);
        let effects = rig.shard.take_effects();
        assert!(effects.len() <= LIMITS.traces_per_turn, "{} offers in a turn", effects.len());
        for effect in effects {
            let Effect::Offer { trace, .. } = effect else { panic!("not {effect:?}") };
            offered.insert(trace.trace_id);
        }
    }
    assert_eq!(offered.len(), remembered.len() + 1, "all are offered, one after the other");
}

#[test]
fn trace_is_looked_at_before_a_span_of_it_is_held() {
    let (mut rig, remembered, _, present) = rig(9);
    let last = remembered[8];
    rig.view(present, MemberState::Active);
    assert!(!is_unplaced(&rig, last), "it is not its turn");
    rig.hold(vec![child(last, 2)]);
    assert!(is_unplaced(&rig, last));
    rig.check_sums();
}

#[test]
fn view_that_follows_soon_finds_all_traces_looked_at() {
    let (mut rig, remembered, held, present) = rig(9);
    rig.view(present, MemberState::Active);
    rig.view(placement(&["a", "b", "c", "d"]), MemberState::Active);
    rig.pass(seconds(1));
    assert!(remembered.iter().chain([&held]).all(|&trace| is_unplaced(&rig, trace)));
    rig.check_sums();
}

#[test]
fn node_has_not_settled_before_every_trace_was_looked_at() {
    let (mut rig, remembered, ..) = rig(9);
    // Nothing moves: the same holders, and this node in another state.
    rig.view(Arc::clone(&rig.placement), MemberState::Leaving);
    assert!(!rig.shard.is_settled(), "{} traces take more than a turn", remembered.len());
    rig.pass(Duration::from_millis(100));
    assert!(rig.shard.is_settled());
}
