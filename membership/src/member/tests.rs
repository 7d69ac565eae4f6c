//! One member's life, told step by step.

use super::*;
use crate::belief::DOUBT;
use crate::belief::tests::{address, sighting};
use crate::keys;
use crate::twin::ASK;

const ALONE_AFTER: Duration = Duration::from_secs(10);
const ROUND: Duration = Duration::from_millis(200);

struct Life {
    member: Member,
    now: Instant,
}

impl Life {
    fn new(seeds: SeedKind) -> Self {
        let identity =
            Identity { id: "me".into(), mesh_address: address(1), alone_after: ALONE_AFTER };
        let now = Instant::now();
        let mut member = Member::new(now, identity, 10, seeds, keys::tests::published());
        member.on_gossip_started(now, 10);
        Self { member, now }
    }

    /// A life in which `me`, `a` and `b` are active, long enough to doubt nothing.
    fn active() -> Self {
        let mut life = Self::new(SeedKind::Others);
        let others = [sighting("a", 1), sighting("b", 1)];
        life.hear_for(DOUBT + ALONE_AFTER, &others);
        assert_eq!(life.state(), MemberState::Active);
        life
    }

    fn hear(&mut self, sightings: &[Sighting]) -> Step {
        self.now += ROUND;
        self.member.on_sightings(self.now, sightings)
    }

    fn hear_for(&mut self, time: Duration, sightings: &[Sighting]) -> Step {
        let until = self.now + time;
        let mut step = Step::Continue;
        while self.now < until && step == Step::Continue {
            step = self.hear(sightings);
        }
        step
    }

    fn state(&self) -> MemberState {
        self.member.status().state
    }

    fn view(&self) -> Vec<&str> {
        let members = self.member.view().members();
        members.iter().map(|member| member.id.as_str()).collect()
    }
}

fn changed(sighting: Sighting, change: impl FnOnce(&mut Published)) -> Sighting {
    let mut published = sighting.published.clone().unwrap();
    change(&mut published);
    Sighting { published: Some(published), ..sighting }
}

fn joining(id: &str, generation: u64) -> Sighting {
    changed(sighting(id, generation), |says| says.state = MemberState::Joining)
}

#[test]
fn a_member_joins_after_three_rounds_with_the_same_company() {
    let mut life = Life::new(SeedKind::Others);
    life.hear(&[sighting("a", 1)]);
    life.hear(&[sighting("a", 1)]);
    for _ in 0..3 {
        assert_eq!(life.state(), MemberState::Joining);
        assert!(!life.view().contains(&"me"), "a joining node is in no view");
        life.hear(&[sighting("a", 1), sighting("b", 1)]);
    }
    assert_eq!(life.state(), MemberState::Joining);
    life.hear(&[sighting("a", 1), sighting("b", 1)]);
    assert_eq!(life.state(), MemberState::Active);
    assert_eq!(life.view(), ["a", "b", "me"]);
}

#[test]
fn a_member_whose_keys_are_not_known_yet_is_waited_for() {
    let mut life = Life::new(SeedKind::Others);
    let silent = Sighting { published: None, ..sighting("b", 1) };
    life.hear_for(STABLE * 3, &[sighting("a", 1), silent.clone()]);
    assert_eq!(life.state(), MemberState::Joining);
    life.hear_for(UNSTABLE_MAX, &[sighting("a", 1), silent]);
    assert_eq!(life.state(), MemberState::Active, "but not for ever");
}

#[test]
fn two_joining_members_are_company_for_each_other() {
    let mut life = Life::new(SeedKind::Others);
    life.hear_for(STABLE + ROUND, &[joining("a", 1)]);
    assert_eq!(life.state(), MemberState::Active);
    assert!(!life.member.status().alone);
}

#[test]
fn a_member_without_an_answer_is_alone_after_a_while_and_not_for_ever() {
    let mut life = Life::new(SeedKind::Others);
    life.hear_for(ALONE_AFTER - ROUND, &[]);
    assert_eq!(life.state(), MemberState::Joining);
    life.hear(&[]);
    assert_eq!(life.state(), MemberState::Active);
    assert!(life.member.status().alone);
    life.hear(&[sighting("a", 1)]);
    assert!(!life.member.status().alone);
    assert_eq!(life.view(), ["a", "me"]);
}

#[test]
fn somebody_who_was_met_and_lost_is_no_answer() {
    let mut life = Life::new(SeedKind::Others);
    life.hear_for(DOUBT, &[]);
    life.hear(&[sighting("a", 1)]);
    life.hear_for(ALONE_AFTER - ROUND, &[]);
    assert_eq!(life.state(), MemberState::Joining);
    life.hear(&[]);
    assert!(life.member.status().alone);
}

#[test]
fn a_member_whose_only_seed_is_itself_joins_at_once_and_is_not_alone() {
    let mut life = Life::new(SeedKind::OnlyMyself);
    life.hear(&[]);
    assert_eq!(life.state(), MemberState::Active);
    assert!(!life.member.status().alone);

    let mut life = Life::new(SeedKind::Others);
    life.hear(&[]);
    assert_eq!(life.state(), MemberState::Joining);
    life.member.on_seeds(SeedKind::OnlyMyself);
    life.hear(&[]);
    assert_eq!(life.state(), MemberState::Active);
}

#[test]
fn leaving_changes_the_own_view_before_anything_is_heard() {
    let mut life = Life::active();
    let before = life.member.view().hash();
    assert_eq!(life.member.says().view_hash, before);
    life.member.leave();
    assert_eq!(life.view(), ["a", "b"]);
    assert_eq!(life.member.says().state, MemberState::Leaving);
    assert_ne!(life.member.says().view_hash, before);
    life.hear_for(ALONE_AFTER * 2, &[sighting("a", 1), sighting("b", 1)]);
    assert_eq!(life.state(), MemberState::Leaving, "it does not join again");
}

#[test]
fn a_stand_still_is_a_new_incarnation_in_the_own_view_and_a_reason_to_doubt() {
    let mut life = Life::active();
    let before = (life.member.incarnation(), life.member.view().hash());
    life.member.on_stand_still(life.now);
    let after = (life.member.incarnation(), life.member.view().hash());
    assert_eq!(after.0.epoch, before.0.epoch + 1);
    assert_ne!(after.1, before.1);
    assert_eq!(life.member.says().epoch, after.0.epoch);
    life.hear_for(DOUBT - ROUND, &[]);
    assert_eq!(life.view(), ["a", "b", "me"]);
    life.hear(&[]);
    assert_eq!(life.view(), ["me"]);
}

#[test]
fn gossip_started_again_is_a_new_generation_with_its_first_epoch() {
    let mut life = Life::active();
    life.member.on_stand_still(life.now);
    life.member.on_gossip_started(life.now, 11);
    let expected = Incarnation { generation: 11, epoch: 0 };
    assert_eq!(life.member.incarnation(), expected);
    assert_eq!(life.member.view().get(&"me".into()).unwrap().incarnation, expected);
    assert_eq!(life.state(), MemberState::Active);
    life.hear(&[]);
    assert_eq!(life.view(), ["a", "b", "me"], "it forgets nobody at once");
}

#[test]
fn the_epoch_of_another_member_is_part_of_the_view() {
    let mut life = Life::active();
    let before = life.member.view().hash();
    let risen = changed(sighting("a", 1), |says| says.epoch = 1);
    life.hear(&[risen, sighting("b", 1)]);
    assert_eq!(life.view(), ["a", "b", "me"]);
    assert_ne!(life.member.view().hash(), before);
}

#[test]
fn a_joining_member_that_disagrees_ends_and_an_active_one_stays() {
    let odd = changed(sighting("b", 1), |says| says.agreement.replicas = 0);
    let mut life = Life::new(SeedKind::Others);
    assert_eq!(life.hear_for(ALONE_AFTER, &[sighting("a", 1), odd.clone()]), Step::End);
    let expected = Ended::Disagrees {
        key: "cluster.replicas",
        mine: "1".to_owned(),
        theirs: "0".to_owned(),
        member: "b".into(),
    };
    assert_eq!(life.member.status().refused, Some(expected));
    assert_eq!(life.state(), MemberState::Joining);
    assert_eq!(life.hear(&[sighting("a", 1)]), Step::End, "it does not try again");

    let mut life = Life::active();
    assert_eq!(life.hear_for(ALONE_AFTER, &[sighting("a", 1), odd]), Step::Continue);
    assert_eq!(life.view(), ["a", "b", "me"]);
}

#[test]
fn of_two_joining_members_that_disagree_the_later_start_ends() {
    for (generation, expected) in [(9, Step::End), (11, Step::Continue)] {
        let odd = changed(joining("a", generation), |says| says.agreement.hash_key = 8);
        let mut life = Life::new(SeedKind::Others);
        assert_eq!(life.hear(std::slice::from_ref(&odd)), expected);
        // Where the cluster is at work, a stranger that waits to be refused refuses nobody.
        let mut life = Life::new(SeedKind::Others);
        assert_eq!(life.hear_for(ALONE_AFTER, &[sighting("b", 1), odd]), Step::Continue);
    }
}

#[test]
fn a_member_does_not_join_while_its_id_may_be_in_use() {
    let former = Sighting { mesh_address: address(2), ..sighting("me", 9) };
    let heard = [sighting("a", 1), former.clone()];
    let mut life = Life::new(SeedKind::Others);
    life.hear_for(ASK - ROUND, &heard);
    assert_eq!(life.state(), MemberState::Joining);
    life.hear_for(ROUND * 2, &heard);
    assert_eq!(life.state(), MemberState::Active);
    assert_eq!(life.view(), ["a", "me"]);

    let mut life = Life::new(SeedKind::Others);
    let mut beating = former;
    let mut step = Step::Continue;
    for _ in 0..20 {
        beating.heartbeat += 1;
        step = life.hear(&[sighting("a", 1), beating.clone()]);
    }
    assert_eq!(step, Step::End);
    let in_use = Ended::IdInUse { address: address(2) };
    assert_eq!(life.member.status().refused, Some(in_use));
}

#[test]
fn a_former_self_that_is_ahead_asks_for_a_higher_generation() {
    let ahead = Sighting { mesh_address: address(1), alive: false, ..sighting("me", 20) };
    let mut life = Life::active();
    let heard = [sighting("a", 1), sighting("b", 1), ahead];
    assert_eq!(life.hear(&heard), Step::StartAbove(20));
    life.member.on_gossip_started(life.now, 21);
    assert_eq!(life.hear(&heard), Step::Continue);
    assert_eq!(life.view(), ["a", "b", "me"]);
}

#[test]
fn news_change_what_is_said_and_nothing_else() {
    let mut life = Life::active();
    let before = life.member.says().clone();
    life.member.publish(Update::default());
    assert_eq!(*life.member.says(), before);
    let load = Load { spans_per_second: 1, spans_held: 2, traces_held: 3 };
    let settled = Some(before.view_hash);
    let update = Update { fill: Some(1), load: Some(load), settled, config_hash: Some(5) };
    life.member.publish(update);
    let settled = before.view_hash;
    let expected = Published { fill: 1, load, settled, config_hash: 5, ..before };
    assert_eq!(*life.member.says(), expected);
}

#[test]
fn a_node_has_settled_in_its_present_view_only() {
    let mut life = Life::active();
    let settle = |member: &mut Member, settled| {
        member.publish(Update { settled: Some(settled), ..Update::default() });
        member.status().settled
    };
    let first = life.member.view().hash();
    assert_eq!(settle(&mut life.member, first + 1), 0, "news of another view is none");
    assert_eq!(settle(&mut life.member, first), first);
    life.member.on_stand_still(life.now);
    assert_eq!(life.member.status().settled, 0);
}

#[test]
fn a_member_that_nobody_has_in_view_starts_gossip_again_as_a_newer_life() {
    let mut life = Life::active();
    let with_view =
        |hash| ["a", "b"].map(|id| changed(sighting(id, 1), |says| says.view_hash = hash));
    let mine = life.member.view().hash();
    assert_eq!(life.hear_for(ALONE_AFTER * 3, &with_view(mine)), Step::Continue);
    assert_eq!(life.hear_for(ALONE_AFTER * 3, &with_view(!mine)), Step::StartAbove(10));
}
