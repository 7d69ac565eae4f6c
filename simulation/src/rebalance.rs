//! What a change of the cluster costs: how many slots move, how soon all agree, what clients
//! notice.
//!
//! Each case is a plan with a change or two in the middle of an even load. The figures come from
//! the history alone. What *must* move is one copy of each slot that comes to a newcomer or had
//! been held by whoever is gone; what moved beyond that was moved in vain.

use crate::check::Verdict;
use crate::history::{Answer, History, Life, ViewSeen, What};
use crate::plan::{
    ClusterOptions, Fault, LinkOptions, LoadOptions, Millis, NodeNumber, Plan, Timed, node_id,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use tracemesh_membership::{
    Incarnation, MemberState, Placement, SLOT_COUNT, Slot, View, ViewMember, Weight,
};

/// When the first change comes: the load is even by then.
const FIRST: Millis = Millis(20_000);
/// When the second comes, where there is one.
const SECOND: Millis = Millis(50_000);
/// How long clients are watched before a change, from it on, and after that.
const WINDOW: u64 = 10_000;

/// A change of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many nodes join at once.
    Join(usize),
    /// So many nodes leave, one every two seconds.
    Leave(usize),
    /// One node is gone without a word.
    Crash,
}

/// A cluster and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Nodes at first.
    pub nodes: usize,
    /// The change after 20 s, and the one after 50 s.
    pub changes: Vec<Change>,
}

impl Case {
    /// All that the command shows.
    pub fn all() -> Vec<Self> {
        let case = |nodes, changes: &[Change]| Self { nodes, changes: changes.to_vec() };
        vec![
            case(3, &[Change::Join(1)]),
            case(5, &[Change::Leave(1)]),
            case(5, &[Change::Join(5), Change::Leave(5)]),
            case(3, &[Change::Crash]),
            case(4, &[Change::Crash]),
            case(5, &[Change::Crash]),
            case(10, &[Change::Crash]),
        ]
    }

    /// The plan that makes it happen.
    pub fn plan(&self) -> Plan {
        let joining = |change: &Change| if let Change::Join(count) = change { *count } else { 0 };
        let spare_nodes = self.changes.iter().map(joining).sum();
        let mut faults = Vec::new();
        let mut size = self.nodes;
        for (change, begin) in self.changes.iter().zip([FIRST, SECOND]) {
            let mut add = |after: u64, fault| {
                faults.push(Timed { at_ms: Millis(begin.0 + after), fault });
            };
            match *change {
                Change::Join(count) => {
                    (size..size + count).for_each(|node| add(0, Fault::Join { node }));
                    size += count;
                }
                Change::Leave(count) => {
                    for (number, node) in (size - count..size).enumerate() {
                        add(2_000 * number as u64, Fault::Drain { node, restart: None });
                    }
                    size -= count;
                }
                Change::Crash => add(0, Fault::Crash { node: size - 1, restart: None }),
            }
        }
        Plan {
            seed: 1,
            nodes: self.nodes,
            spare_nodes,
            safety_ms: Millis(FIRST.0 + 30_000 * self.changes.len() as u64),
            liveness_ms: Millis(120_000),
            cluster: ClusterOptions::DEFAULT,
            link: LinkOptions::GOOD,
            load: LoadOptions::DEFAULT,
            faults,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut size = self.nodes;
        write!(f, "{size}")?;
        for change in &self.changes {
            match change {
                Change::Join(count) => size += count,
                Change::Leave(count) => size -= count,
                Change::Crash => return write!(f, " crash {}", size - 1),
            }
            write!(f, " -> {size}")?;
        }
        Ok(())
    }
}

/// What one change cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Copies of slots that came to another node.
    pub moved: u64,
    /// The fewest that can.
    pub least: u64,
    /// From the change until all nodes had the last view, none if they never had.
    pub agreed_after: Option<Millis>,
    /// Spans that clients had acknowledged, a second: before, from the change on, and after that.
    pub acknowledged: [f64; 3],
    /// The longest time in which no client had anything acknowledged, from the change on.
    pub gap: Millis,
}

/// What each change of a case cost.
pub fn costs(case: &Case, history: &History) -> Vec<Cost> {
    let begins = [FIRST, SECOND];
    let ends =
        begins.iter().skip(1).take(case.changes.len() - 1).copied().chain([Millis(u64::MAX)]);
    begins.iter().zip(ends).map(|(begin, end)| cost(history, *begin, end)).collect()
}

fn cost(history: &History, begin: Millis, end: Millis) -> Cost {
    let before = views(history, begin);
    let after = views(history, Millis(end.0 - 1));
    let one = |views: &BTreeMap<NodeNumber, (Millis, ViewSeen)>| {
        views.values().next().map(|(_, view)| view.clone())
    };
    let (moved, least) = match (one(&before), one(&after)) {
        (Some(before), Some(after)) => moved(&history.plan, &before, &after),
        _ => (0, 0),
    };
    let agree = after.values().all(|(_, view)| Some(view) == one(&after).as_ref());
    let last = after.values().map(|(at, _)| at.0).max().unwrap_or(0);
    let times: Vec<_> = accepted(history).collect();
    let rate = |from: u64| {
        let spans: usize = times
            .iter()
            .filter(|(at, _)| (from..from + WINDOW).contains(&at.0))
            .map(|(_, spans)| spans)
            .sum();
        spans as f64 * 1000.0 / WINDOW as f64
    };
    let during =
        times.iter().map(|(at, _)| at.0).filter(|at| (begin.0..begin.0 + WINDOW).contains(at));
    let moments: Vec<_> = std::iter::once(begin.0).chain(during).collect();
    let gap = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(WINDOW);
    Cost {
        moved,
        least,
        agreed_after: agree.then(|| Millis(last.saturating_sub(begin.0))),
        acknowledged: [begin.0 - WINDOW, begin.0, begin.0 + WINDOW].map(rate),
        gap: Millis(gap),
    }
}

/// The view of each node that lived then, and since when it had it.
fn views(history: &History, at: Millis) -> BTreeMap<NodeNumber, (Millis, ViewSeen)> {
    let mut views = BTreeMap::new();
    for entry in history.entries.iter().take_while(|entry| entry.at <= at) {
        match &entry.what {
            What::View { node, view } => {
                views.insert(*node, (entry.at, view.clone()));
            }
            What::Life { node, event: Life::Crashed | Life::Ended(_) } => {
                views.remove(node);
            }
            _ => {}
        }
    }
    views
}

/// Requests that were accepted: when, and how many spans.
fn accepted(history: &History) -> impl Iterator<Item = (Millis, usize)> {
    let offers = history.entries.iter().filter_map(|entry| match &entry.what {
        What::Offered { request, spans } => Some((*request, spans.len())),
        _ => None,
    });
    let sizes: BTreeMap<_, _> = offers.collect();
    history.entries.iter().filter_map(move |entry| match &entry.what {
        What::Told { request, answer: Answer::Accepted, .. } => {
            Some((entry.at, sizes.get(request).copied().unwrap_or(0)))
        }
        _ => None,
    })
}

/// Copies of slots that came to another node, and the fewest that can: those of the newcomers, and
/// those that whoever is gone had.
fn moved(plan: &Plan, before: &ViewSeen, after: &ViewSeen) -> (u64, u64) {
    let nodes = |view: &ViewSeen| view.members.iter().map(|one| one.0).collect::<BTreeSet<_>>();
    let (old, new) = (nodes(before), nodes(after));
    let [former, present] = [&old, &new].map(|nodes| placement(plan, nodes));
    let (mut moved, mut least) = (0, 0);
    for slot in (0..SLOT_COUNT).filter_map(|slot| u16::try_from(slot).ok()).map(Slot) {
        let (held, holds) = (holders(&former, slot), holders(&present, slot));
        moved += holds.difference(&held).count() as u64;
        let newcomers = holds.iter().filter(|node| !old.contains(node)).count();
        let gone = held.iter().filter(|node| !new.contains(node)).count();
        least += newcomers.max(gone) as u64;
    }
    (moved, least)
}

fn placement(plan: &Plan, nodes: &BTreeSet<NodeNumber>) -> Placement {
    let members = nodes.iter().map(|node| ViewMember {
        id: node_id(*node).into(),
        incarnation: Incarnation::default(),
        weight: Weight::default(),
        zone: plan.zone(*node).into(),
        state: MemberState::Active,
    });
    Placement::new(std::sync::Arc::new(View::new(members)))
}

fn holders(placement: &Placement, slot: Slot) -> BTreeSet<NodeNumber> {
    let Some(holders) = placement.holders(slot) else { return BTreeSet::new() };
    let members = placement.view().members();
    let number = |index| {
        let id: &tracemesh_membership::NodeId = &members[usize::from(index)].id;
        id.as_str().strip_prefix("node-")?.parse().ok()
    };
    std::iter::once(holders.owner).chain(holders.replica).filter_map(number).collect()
}

/// Spans that were brought from one node to another by anybody but a client's entry node.
pub fn repaired(history: &History) -> u64 {
    let counters = history.last_looks.values();
    counters.filter_map(|look| look.counters.get("spans_repaired_total")).sum()
}

/// One case as lines of a table for people.
pub fn table(case: &Case, history: &History, verdict: &Verdict) -> String {
    let mut text = String::new();
    for (number, cost) in costs(case, history).into_iter().enumerate() {
        let name = if number == 0 { case.to_string() } else { "  then".to_owned() };
        let agreed = cost.agreed_after.map_or("never".to_owned(), seconds);
        let [before, during, after] = cost.acknowledged;
        text += &format!(
            "{name:<14} {:>7} {:>7} {agreed:>8} {before:>7.0} {during:>7.0} {after:>7.0} {:>8}",
            cost.moved,
            cost.least,
            seconds(cost.gap)
        );
        if number == 0 {
            let totals = verdict.totals;
            text += &format!(" {:>8} {:>6} {:>7}", repaired(history), totals.lost, totals.in_parts);
        }
        text.push('\n');
    }
    text
}

/// The head of the table.
pub const HEAD: &str = "\
case             moved   least   agreed  before  during   after      gap   spans            in
                slots'  slots'    after    acknowledged spans/s            moved   lost   parts
                copies  copies\n";

fn seconds(time: Millis) -> String {
    format!("{}.{:03} s", time.0 / 1000, time.0 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::SpanNumber;

    fn view(nodes: &[NodeNumber]) -> ViewSeen {
        ViewSeen { hash: 0, members: nodes.iter().map(|node| (*node, 1, 0)).collect() }
    }

    #[test]
    fn no_copy_moves_in_vain_between_any_two_clusters() {
        let plan = Case::all()[0].plan();
        for (before, after) in [
            (&[0, 1, 2][..], &[0, 1, 2, 3][..]),
            (&[0, 1, 2, 3, 4], &[0, 1, 2, 3]),
            (&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ] {
            let (moved, least) = super::moved(&plan, &view(before), &view(after));
            assert!(least > 0 && moved == least, "{before:?} {after:?}: {moved} {least}");
        }
    }

    #[test]
    fn cases_are_possible_plans_with_names() {
        let names: Vec<_> = Case::all().iter().map(ToString::to_string).collect();
        assert!(names.contains(&"5 -> 10 -> 5".to_owned()), "{names:?}");
        assert!(names.contains(&"10 crash 9".to_owned()), "{names:?}");
        for case in Case::all() {
            case.plan().check().unwrap();
        }
    }

    #[test]
    fn what_clients_notice_is_told_apart_by_time() {
        let case = &Case::all()[0];
        let mut history = History::new(case.plan(), [0; 16]);
        let spans = vec![SpanNumber { trace: 0, span: 0 }; 10];
        history.add(Millis(0), What::View { node: 0, view: view(&[0]) });
        history.add(Millis(0), What::Offered { request: 0, spans });
        let (answer, view) = (Answer::Accepted, None);
        let told = What::Told { request: 0, node: 0, answer, view };
        for at in [15_000, 20_100, 20_400, 23_400, 31_000, 32_000, 33_000] {
            history.add(Millis(at), told.clone());
        }
        let cost = &costs(case, &history)[0];
        assert_eq!(cost.acknowledged, [1.0, 3.0, 3.0]);
        assert_eq!(cost.gap, Millis(3_000));
    }
}
