//! Whether the span counters of a mesh add up (PROTOCOL.md, Counters).
//!
//! Pure: two readings of all members in, a finding out. While views are stable, nothing is
//! re-routed and no request fails, accepted = exported + sampled out + dropped + redelivered + held
//! by owners, up to the repaired more on the right. Members are never read at one moment, so each
//! is read twice: at a moment between the two readings every counter was between its two values,
//! which bounds the difference there. The invariant: spans that the bound leaves missing or
//! surplus, beyond what the other terms explain, are never called explained.

use crate::status::Status;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Every member at about one moment, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// What they say.
    pub(super) members: BTreeMap<String, Status>,
    /// Why others say nothing.
    pub(super) silent: BTreeMap<String, String>,
    /// Those that left, and took their counters with them.
    pub(super) gone: BTreeSet<String>,
}

/// Spans over all members at the second reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sums {
    pub(super) accepted: u64,
    pub(super) exported: u64,
    pub(super) sampled_out: u64,
    pub(super) dropped: u64,
    pub(super) redelivered: u64,
    pub(super) held_owner: u64,
    pub(super) held_stand_in: u64,
    pub(super) repaired: u64,
    pub(super) unacknowledged: u64,
    pub(super) rerouted: u64,
    pub(super) exported_again_possible: u64,
}

impl Sums {
    fn of(members: &BTreeMap<String, Status>) -> Self {
        let counter = |name| members.values().map(|status| counter(status, name)).sum();
        Self {
            accepted: counter("spans_accepted_total"),
            exported: counter("spans_exported_total"),
            sampled_out: counter("spans_sampled_out_total"),
            dropped: counter("spans_dropped_total"),
            redelivered: counter("spans_redelivered_total"),
            held_owner: members.values().map(|status| status.spans_held.owner).sum(),
            held_stand_in: members.values().map(|status| status.spans_held.stand_in).sum(),
            repaired: counter("spans_repaired_total"),
            unacknowledged: counter("spans_unacknowledged_total"),
            rerouted: counter("spans_rerouted_total"),
            exported_again_possible: counter("spans_exported_again_possible_total"),
        }
    }

    /// Accepted spans that are accounted for.
    fn right(&self) -> u64 {
        self.exported + self.sampled_out + self.dropped + self.redelivered + self.held_owner
    }

    /// What the difference may be when all is well.
    fn when_stable(&self) -> RangeInclusive<i64> {
        0..=signed(self.repaired)
    }

    /// What it may be after requests failed or were re-routed, or attempts had no answer.
    fn explained(&self) -> RangeInclusive<i64> {
        let surplus =
            self.repaired + self.unacknowledged + self.rerouted + self.exported_again_possible;
        -signed(self.rerouted + self.held_stand_in)..=signed(surplus)
    }
}

/// What is to be thought of the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// There is none, but for what was repaired.
    Balanced,
    /// Failed, re-routed or unanswered requests explain it.
    Explained,
    /// It cannot be told: counters went away with a member.
    MembersGone,
    /// It cannot be told: a member did not answer.
    Incomplete,
    /// Nothing explains it.
    Unexplained,
}

/// A member whose counters began later than those of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Later {
    pub(super) id: String,
    /// By how much, against the first.
    pub(super) seconds: u64,
}

/// What two readings say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    /// Members that were read twice.
    pub(super) members: usize,
    pub(super) sums: Sums,
    /// Accepted spans that are accounted for: the right side, at the second reading.
    pub(super) accounted_for: u64,
    /// Right side minus left side at one moment: at least this.
    pub(super) difference_min: i64,
    /// At most this.
    pub(super) difference_max: i64,
    /// Members that left, crashed, started again or were out of reach, as the one counted that saw
    /// most of it.
    pub(super) members_gone: u64,
    pub(super) started_later: Vec<Later>,
    /// Whether all act by one view.
    pub(super) views_agree: bool,
    /// Members that did not answer, and why.
    pub(super) silent: BTreeMap<String, String>,
}

/// Compares both sides over two readings.
pub(super) fn find(before: Reading, after: Reading) -> Finding {
    let Reading { members, mut silent, mut gone } = after;
    let (before, silent_before) = (before.members, before.silent);
    // Of whom the first reading is missing, what moved is not known.
    silent.extend(silent_before.into_iter().filter(|(id, _)| members.contains_key(id)));
    let began_anew = |id: &&String| match (before.get(*id), members.get(*id)) {
        (Some(before), Some(after)) => before.started_unix_seconds != after.started_unix_seconds,
        (Some(_), None) => !silent.contains_key(*id),
        (None, _) => false,
    };
    gone.extend(before.keys().filter(began_anew).cloned());
    let gone_before = members.values().map(|status| counter(status, "members_gone_total")).max();
    let members_gone = gone_before.unwrap_or(0).max(gone.len() as u64);
    let sums = Sums::of(&members);
    let (difference_min, difference_max) = difference(&before, &members);
    let meets = |allowed: RangeInclusive<i64>| {
        difference_min <= *allowed.end() && difference_max >= *allowed.start()
    };
    let verdict = if !silent.is_empty() {
        Verdict::Incomplete
    } else if meets(sums.when_stable()) {
        Verdict::Balanced
    } else if meets(sums.explained()) {
        Verdict::Explained
    } else if members_gone > 0 {
        Verdict::MembersGone
    } else {
        Verdict::Unexplained
    };
    let first = members.values().map(|status| status.started_unix_seconds).min().unwrap_or(0);
    let later = members.iter().map(|(id, status)| {
        let seconds = status.started_unix_seconds - first;
        Later { id: id.clone(), seconds }
    });
    let mut views = members.values().map(|status| &status.view);
    let view = views.next();
    Finding {
        verdict,
        members: members.len(),
        difference_min,
        difference_max,
        members_gone,
        started_later: later.filter(|later| later.seconds > 0).collect(),
        views_agree: views.all(|other| Some(other) == view),
        silent,
        accounted_for: sums.right(),
        sums,
    }
}

/// The least and the most that right minus left can have been at a moment between the readings.
///
/// A counter was between its two values. What owners held was at least what they held first without
/// what became done since, and at most that with what came since.
fn difference(before: &BTreeMap<String, Status>, after: &BTreeMap<String, Status>) -> (i64, i64) {
    let (first, second) = (Sums::of(before), Sums::of(after));
    let done = |sums: &Sums| sums.exported + sums.sampled_out + sums.dropped;
    let counted = |sums: &Sums| signed(done(sums) + sums.redelivered);
    let done_since = signed(done(&second).saturating_sub(done(&first)));
    let held_before = signed(first.held_owner);
    let came_since = (signed(second.held_owner) - held_before + done_since).max(0);
    let held_min = (held_before - done_since).max(0);
    let min = counted(&first) + held_min - signed(second.accepted);
    let max = counted(&second) + held_before + came_since - signed(first.accepted);
    (min.min(max), max.max(min))
}

fn counter(status: &Status, name: &str) -> u64 {
    status.counters.get(name).copied().unwrap_or_default()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::status;
    use crate::status::SpansHeld;

    /// A member with these counters, without prefix and suffix, that holds so much as owner.
    fn node(id: &str, held_owner: u64, counters: &[(&str, u64)]) -> (String, Status) {
        let counters = counters.iter().map(|(name, count)| match *name {
            "members_gone" => (format!("{name}_total"), *count),
            name => (format!("spans_{name}_total"), *count),
        });
        let spans_held = SpansHeld { owner: held_owner, replica: 0, stand_in: 0 };
        (id.to_owned(), Status { counters: counters.collect(), spans_held, ..status(id) })
    }

    fn reading(nodes: &[(String, Status)]) -> Reading {
        Reading { members: nodes.iter().cloned().collect(), ..Reading::default() }
    }

    fn at_rest(nodes: &[(String, Status)]) -> Finding {
        find(reading(nodes), reading(nodes))
    }

    #[test]
    fn both_sides_are_summed_over_all_members() {
        let finding = at_rest(&[
            node("a", 5, &[("accepted", 100), ("exported", 20), ("redelivered", 3)]),
            node("b", 2, &[("accepted", 10), ("exported", 70), ("sampled_out", 6), ("dropped", 4)]),
        ]);
        assert_eq!(finding.verdict, Verdict::Balanced);
        assert_eq!((finding.sums.accepted, finding.sums.right()), (110, 110));
        assert_eq!((finding.difference_min, finding.difference_max), (0, 0));
    }

    #[test]
    fn missing_or_surplus_span_at_rest_is_unexplained() {
        let lost = at_rest(&[node("a", 0, &[("accepted", 100), ("exported", 99)])]);
        assert_eq!((lost.verdict, lost.difference_max), (Verdict::Unexplained, -1));
        let twice = at_rest(&[node("a", 0, &[("accepted", 100), ("exported", 101)])]);
        assert_eq!((twice.verdict, twice.difference_min), (Verdict::Unexplained, 1));
    }

    #[test]
    fn each_term_explains_as_many_spans_as_it_counts() {
        let surplus = [("accepted", 100), ("exported", 104)];
        for (term, verdict) in [
            ("repaired", Verdict::Balanced),
            ("unacknowledged", Verdict::Explained),
            ("rerouted", Verdict::Explained),
            ("exported_again_possible", Verdict::Explained),
            ("redelivered", Verdict::Unexplained),
        ] {
            let counters = [&surplus[..], &[(term, 4)]].concat();
            assert_eq!(at_rest(&[node("a", 0, &counters)]).verdict, verdict, "{term}");
            let counters = [&surplus[..], &[(term, 3)]].concat();
            let finding = at_rest(&[node("a", 0, &counters)]);
            assert_eq!(finding.verdict, Verdict::Unexplained, "{term}");
        }
        let missing = [("accepted", 100), ("exported", 96), ("rerouted", 4)];
        assert_eq!(at_rest(&[node("a", 0, &missing)]).verdict, Verdict::Explained);
        let mut elsewhere = node("a", 0, &[("accepted", 100), ("exported", 96)]);
        elsewhere.1.spans_held.stand_in = 4;
        assert_eq!(at_rest(&[elsewhere]).verdict, Verdict::Explained);
    }

    #[test]
    fn what_moved_between_the_readings_bounds_the_difference() {
        let before = reading(&[
            node("a", 30, &[("accepted", 100), ("exported", 60)]),
            node("b", 0, &[("accepted", 0)]),
        ]);
        let after = reading(&[
            node("a", 10, &[("accepted", 150), ("exported", 120)]),
            node("b", 0, &[("accepted", 5)]),
        ]);
        let finding = find(before, after);
        // At rest these would be 10 and 25 missing spans; 55 were accepted meanwhile.
        assert_eq!(finding.verdict, Verdict::Balanced);
        assert!(finding.difference_min <= 0 && finding.difference_max >= 0, "{finding:?}");

        let lost = reading(&[node("a", 10, &[("accepted", 1150), ("exported", 120)])]);
        let before = reading(&[node("a", 30, &[("accepted", 1100), ("exported", 60)])]);
        let finding = find(before, lost);
        assert_eq!(finding.verdict, Verdict::Unexplained, "1,000 are more than what moved");
        assert!(finding.difference_max < -900, "{finding:?}");
    }

    #[test]
    fn member_that_went_makes_the_sum_untellable_and_is_named_when_it_is_back() {
        let counters = [("accepted", 100), ("exported", 50), ("members_gone", 1)];
        let mut back = node("b", 0, &[]);
        back.1.started_unix_seconds += 60;
        let finding = at_rest(&[node("a", 0, &counters), back]);
        assert_eq!((finding.verdict, finding.members_gone), (Verdict::MembersGone, 1));
        assert_eq!(finding.started_later, [Later { id: "b".to_owned(), seconds: 60 }]);

        let [before, mut after] = [0, 1].map(|_| [node("a", 0, &[("exported", 9)])]);
        after[0].1.started_unix_seconds += 1;
        let finding = find(reading(&before), reading(&after));
        assert_eq!((finding.verdict, finding.members_gone), (Verdict::MembersGone, 1));
        let both = [before[0].clone(), node("b", 0, &[])];
        let finding = find(reading(&both), reading(&before));
        assert_eq!((finding.verdict, finding.members_gone), (Verdict::MembersGone, 1));
    }

    #[test]
    fn silent_member_and_other_view_are_told() {
        let (id, mut other) = node("b", 0, &[]);
        other.view.hash = "0001".to_owned();
        let mut first = reading(&[node("a", 0, &[]), (id, other)]);
        first.silent.insert("c".to_owned(), "no way".to_owned());
        let finding = find(first.clone(), first.clone());
        assert_eq!((finding.verdict, finding.views_agree), (Verdict::Incomplete, false));
        let mut second = first.clone();
        second.silent.clear();
        assert_eq!(find(first.clone(), second.clone()).verdict, Verdict::Balanced, "c is no more");
        second.members.extend([node("c", 0, &[])]);
        assert_eq!(find(first, second).verdict, Verdict::Incomplete, "c came back");
    }
}
