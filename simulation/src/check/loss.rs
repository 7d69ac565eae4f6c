//! `no_acknowledged_span_lost`: what a client was told is held comes out.
//!
//! For each acknowledged span that no sink has and that is no dead letter, the promises that were
//! made about it are weighed: who had to hold it by the entry node's view, or by views that came
//! later, and whose ends took copies with them. The invariant: where there were two copies, one
//! holder gone is never an excuse, whatever else went wrong in the cluster meanwhile; nor is a
//! second one that was gone when the first one's copy was made again. Spans that somebody may still
//! hold at the end are pending, not lost.

use super::copies::{Copies, Taken};
use super::licence::{self, Licence};
use super::model::{Model, OneSpan, OneTrace, Promise};
use super::views::NodeSet;
use super::{Finding, Invariant, Verdict, clock, story};
use crate::plan::NodeNumber;

/// Why a span may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The protocol does not promise more.
    Licensed(Licence),
    /// It must be there; so many of its holders are gone.
    Kept(usize),
}

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    let totals = &mut verdict.totals;
    totals.offered = model.spans.len() as u64;
    totals.traces = model.traces.len() as u64;
    for span in &model.spans {
        totals.acknowledged += u64::from(span.promised.is_some());
        totals.exported += u64::from(span.kept.is_some());
        totals.refused += u64::from(is_missing(span, true));
    }
    let copies = Copies::new(model);
    let mut held_left = model.held();
    for trace in &model.traces {
        let spans = model.spans_of(trace).iter().filter(|span| is_missing(span, false));
        let fates: Vec<_> = spans.map(|span| (span, fate(model, &copies, span))).collect();
        // What must be there and is held by somebody is late, not lost.
        let is_kept = |(_, fate): &&(&OneSpan, Fate)| matches!(fate, Fate::Kept(_));
        let kept = fates.iter().filter(is_kept).count() as u64;
        let held = kept.min(held_left);
        held_left -= held;
        verdict.totals.held += held;
        verdict.totals.lost += fates.len() as u64 - held;
        let worst = fates.iter().filter(|one| held < kept || !is_kept(one)).max_by_key(|one| one.1);
        if let Some((span, fate)) = worst {
            tell(model, verdict, trace, span, *fate, fates.len() as u64 - held);
        }
    }
}

fn is_missing(span: &OneSpan, refused: bool) -> bool {
    span.promised.is_some() && span.kept.is_none() && span.refused == refused
}

fn tell(
    model: &Model<'_>,
    verdict: &mut Verdict,
    trace: &OneTrace,
    span: &OneSpan,
    fate: Fate,
    count: u64,
) {
    let Some((_, last)) = span.promised else { return };
    let gone = match fate {
        Fate::Licensed(licence) => return verdict.license(model, licence, trace.number, last.at),
        Fate::Kept(0) => "none",
        Fate::Kept(1) => "one",
        Fate::Kept(_) => "not too many at once",
    };
    let invariant = Invariant::NoAcknowledgedSpanLost;
    let is_told = verdict.tells(invariant);
    verdict.add(Finding {
        invariant,
        at: last.at,
        trace: Some(trace.number),
        nodes: candidates(model, trace.number, &last).all(),
        text: format!(
            "{count} spans of trace {} were acknowledged, the last at {} by node-{}, and are in \
             no sink; {gone} of those that had to hold them are gone",
            story::trace(model, trace.number),
            clock(last.at),
            last.entry
        ),
        story: if is_told { story::of_trace(model, trace) } else { Vec::new() },
    });
}

/// The weakest excuse that covers both the first promise and the last: a later promise may have
/// been made by other holders, and each had to keep what it said.
fn fate(model: &Model<'_>, copies: &Copies, span: &OneSpan) -> Fate {
    let Some((first, last)) = span.promised else { return Fate::Kept(0) };
    let of = |promise| fate_of(model, copies, span.number.trace, promise);
    of(&first).max(of(&last))
}

fn fate_of(model: &Model<'_>, copies: &Copies, trace: u32, promise: &Promise) -> Fate {
    let candidates = candidates(model, trace, promise);
    let gone = |node: &NodeNumber| model.lives.gone(*node, promise.sent);
    let is_gone = |node: &&NodeNumber| gone(node).is_some();
    let has_none =
        |node: &NodeNumber| gone(node).is_some_and(|(at, end)| !copies.is_in_spool(*node, at, end));
    let taken = copies.taken_since(promise.sent);
    let licence = of_one(model, (trace, promise), &candidates, taken, has_none)
        .or_else(|| of_two(model, copies, (trace, promise), &candidates, taken));
    match licence {
        Some(licence) => Fate::Licensed(licence),
        None => Fate::Kept(candidates.holders.iter().filter(is_gone).count()),
    }
}

/// Where there was one copy, one end excuses its loss: without replicas, and of what the only
/// member had, because it was acknowledged so or because the others are gone.
fn of_one(
    model: &Model<'_>,
    (trace, promise): (u32, &Promise),
    candidates: &Candidates,
    taken: &[Taken],
    has_none: impl Fn(&NodeNumber) -> bool,
) -> Option<Licence> {
    let is_unreplicated = model.history.plan.cluster.replicas == 0;
    let had_the_only = |taken: &&Taken| {
        let holds = |set: NodeSet| nodes(model, trace, set) == [taken.node];
        let others = || candidates.holders.iter().filter(|holder| **holder != taken.node);
        let was_the_only = taken.alone.is_some_and(|until| until >= promise.sent)
            || is_unreplicated && views_since(taken, promise).any(holds);
        // Whoever else was to hold it and lives has it, or gave it to others than this one; the
        // same if it read its spool again.
        was_the_only && others().all(&has_none)
    };
    let taken = taken.iter().find(had_the_only)?;
    let one = if is_unreplicated { Licence::Unreplicated } else { Licence::SingleMember };
    Some(if taken.licence == Licence::BothHoldersGone { one } else { taken.licence })
}

/// Views that somebody had since a promise, by which spans may have been held at an end.
fn views_since(taken: &Taken, promise: &Promise) -> impl Iterator<Item = NodeSet> {
    let (views, sent) = (taken.views.iter(), promise.sent);
    views.filter(move |(_, until)| **until >= sent).map(|(set, _)| *set)
}

/// Two ends excuse the loss of what both nodes were to hold, by a view or by the promise itself, if
/// the second came before what the first had was placed again.
fn of_two(
    model: &Model<'_>,
    copies: &Copies,
    (trace, promise): (u32, &Promise),
    candidates: &Candidates,
    taken: &[Taken],
) -> Option<Licence> {
    // Until then whoever stood in for a holder may not have brought home what it has.
    let home_by = copies.placed_by(promise.at);
    let all = candidates.all();
    taken.iter().enumerate().find_map(|(number, one)| {
        let placed_by = copies.placed_by(one.at);
        let mut later = taken[number + 1..].iter().take_while(|two| two.at <= placed_by);
        let held_both = |two: &&Taken| {
            let are_in =
                |holders: &[NodeNumber]| holders.contains(&one.node) && holders.contains(&two.node);
            // A life that began later got what it had from somebody who had it then.
            let is_other = one.node != two.node && two.began <= one.at;
            is_other
                && (one.at <= home_by && are_in(&all)
                    || views_since(one, promise).any(|set| are_in(&nodes(model, trace, set))))
        };
        let two = later.find(held_both)?;
        let licences = [one.licence, two.licence];
        let worst = [Licence::NotSpooled, Licence::Spooled, Licence::BothHoldersGone];
        worst.into_iter().find(|licence| licences.contains(licence))
    })
}

/// Who can hold what was promised.
struct Candidates {
    /// The holders by placement.
    holders: Vec<NodeNumber>,
    /// Where one of these may not have answered: who may have stood in.
    others: Vec<NodeNumber>,
}

impl Candidates {
    fn all(&self) -> Vec<NodeNumber> {
        self.holders.iter().chain(&self.others).copied().collect()
    }
}

/// Who may have stood in is the entry node, and the next by placement, up to the second that was
/// not silent to it.
fn candidates(model: &Model<'_>, trace: u32, promise: &Promise) -> Candidates {
    let Some(view) = model.view_of(promise) else {
        return Candidates { holders: Vec::new(), others: Vec::new() };
    };
    let set = model.views.set(view);
    let holders = nodes(model, trace, set);
    let mut others = Vec::new();
    if licence::rerouted(model, trace, promise) {
        let mut rest = holders.iter().fold(set, |set, node| set & !(1 << node));
        let mut answering = 0;
        while answering < 2 && rest != 0 {
            for node in nodes(model, trace, rest) {
                rest &= !(1 << node);
                let is_silent = node != promise.entry && licence::silent(model, promise, node);
                answering += u32::from(!is_silent);
                others.push(node);
            }
        }
        if !holders.contains(&promise.entry) && !others.contains(&promise.entry) {
            others.push(promise.entry);
        }
    }
    Candidates { holders, others }
}

fn nodes(model: &Model<'_>, trace: u32, set: NodeSet) -> Vec<NodeNumber> {
    let holders = model.holders(trace, set);
    holders
        .map_or_else(Vec::new, |(owner, replica)| std::iter::once(owner).chain(replica).collect())
}
