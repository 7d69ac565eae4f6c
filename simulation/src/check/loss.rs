//! `no_acknowledged_span_lost`: what a client was told is held comes out.
//!
//! For each acknowledged span that no sink has and that is no dead letter, the promises that were
//! made about it are weighed: who had to hold it by the entry node's view, and who of these is
//! gone.
//! The invariant: at most one holder gone is never an excuse, whatever else went wrong in the
//! cluster meanwhile. Spans that somebody may still hold at the end are pending, not lost.

use super::expected::ExpectedFailure;
use super::licence::{self, COPY_MAX, Licence};
use super::lives::End;
use super::model::{Model, OneSpan, OneTrace, Promise};
use super::views::NodeSet;
use super::{Finding, Invariant, Verdict, clock, story};
use crate::plan::{Millis, NodeNumber};

/// Why a span may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The protocol does not promise more.
    Licensed(Licence),
    /// What is not built yet would have kept it.
    Expected(ExpectedFailure),
    /// It must be there; so many of its holders are gone.
    Kept(usize),
}

/// A holder that is gone, when, and how it ended.
type Gone = (NodeNumber, Millis, End);

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    let totals = &mut verdict.totals;
    totals.offered = model.spans.len() as u64;
    totals.traces = model.traces.len() as u64;
    for span in &model.spans {
        totals.acknowledged += u64::from(span.promised.is_some());
        totals.exported += u64::from(span.kept.is_some());
        totals.refused += u64::from(is_missing(span, true));
    }
    let mut held_left = model.held();
    for trace in &model.traces {
        occasions(model, trace, verdict);
        let spans = model.spans_of(trace).iter().filter(|span| is_missing(span, false));
        let fates: Vec<_> = spans.map(|span| (span, fate(model, span))).collect();
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
    let (expected, gone) = match fate {
        Fate::Licensed(licence) => return verdict.license(model, licence, trace.number, last.at),
        Fate::Expected(expected) => (Some(expected), "too many"),
        Fate::Kept(0) => (None, "none"),
        Fate::Kept(1) => (None, "one"),
        Fate::Kept(_) => (None, "too few"),
    };
    let invariant = Invariant::NoAcknowledgedSpanLost;
    let is_told = verdict.tells(invariant, expected);
    verdict.add(Finding {
        invariant,
        expected,
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
fn fate(model: &Model<'_>, span: &OneSpan) -> Fate {
    let Some((first, last)) = span.promised else { return Fate::Kept(0) };
    let of = |promise| fate_of(model, span.number.trace, promise);
    of(&first).max(of(&last))
}

fn fate_of(model: &Model<'_>, trace: u32, promise: &Promise) -> Fate {
    let candidates = candidates(model, trace, promise);
    let gone_of = |nodes: &[NodeNumber]| {
        let gone = |node: &NodeNumber| {
            let (at, end) = model.lives.gone(*node, promise.sent)?;
            Some((*node, at, end))
        };
        let mut gone: Vec<Gone> = nodes.iter().filter_map(gone).collect();
        gone.sort_by_key(|gone| gone.1);
        gone
    };
    let gone = gone_of(&candidates.holders);
    let all_gone = gone.len() == candidates.holders.len() && !gone.is_empty();
    let (gone, is_rerouted) = match candidates.others.is_empty() || all_gone {
        true => (gone, false),
        false => (gone_of(&candidates.all()), true),
    };
    let copies = candidates.holders.len();
    if gone.len() < copies || gone.is_empty() {
        return Fate::Kept(gone.len());
    }
    if gone.iter().any(|(_, _, end)| end.is_orderly()) {
        return after_leave(model, &gone);
    }
    if copies == 1 {
        let is_unreplicated = model.history.plan.cluster.replicas == 0;
        let single = if is_unreplicated { Licence::Unreplicated } else { Licence::SingleMember };
        return Fate::Licensed(single);
    }
    let is_close = gone.windows(2).any(|pair| pair[1].1.0 - pair[0].1.0 <= COPY_MAX);
    match (is_close, is_rerouted) {
        (true, _) => Fate::Licensed(Licence::BothHoldersGone),
        (false, true) => Fate::Expected(ExpectedFailure::LostWithStandIn),
        (false, false) => Fate::Expected(ExpectedFailure::LostAfterSecondFailure),
    }
}

/// A holder left in an orderly way. Then whoever it handed its copy to was to keep it, so somebody
/// else has to have failed, unless it could not hand over everything.
fn after_leave(model: &Model<'_>, gone: &[Gone]) -> Fate {
    if gone.iter().any(|(_, _, end)| matches!(end, End::Drained(count) if *count > 0)) {
        return Fate::Expected(ExpectedFailure::LostAtDrainLimit);
    }
    let first = gone.first().map_or(Millis(0), |gone| gone.1);
    if model.lives.active(first).count_ones() <= 1 {
        // Handed to the only one left: I1 promises nothing.
        return Fate::Licensed(Licence::SingleMember);
    }
    let mut ends = model.lives.ends(first, model.history.ended_at);
    if ends.any(|(_, _, end)| end != End::Drained(0)) {
        return Fate::Expected(ExpectedFailure::LostAfterLeaveAndCrash);
    }
    Fate::Kept(gone.len())
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

/// Counts what could have been lost for want of what is not built yet: had to be held by nodes that
/// are gone, and was not yet exported when the last of them went.
fn occasions(model: &Model<'_>, trace: &OneTrace, verdict: &mut Verdict) {
    let Some(span) = model.spans_of(trace).iter().find(|span| span.promised.is_some()) else {
        return;
    };
    let Some((_, last)) = span.promised else { return };
    let Fate::Expected(expected) = fate(model, span) else { return };
    let holders = candidates(model, trace.number, &last).all();
    let gone = holders.iter().filter_map(|holder| model.lives.gone(*holder, last.sent));
    let Some(gone) = gone.map(|gone| gone.0).max() else { return };
    let exported = span.kept.map(|export| model.exports[export].at);
    if exported.is_none_or(|exported| gone < exported) {
        *verdict.occasions.entry(expected).or_default() += 1;
    }
}
