//! Which paths of recovery a simulation took: what a swarm must have seen at least once.
//!
//! A swarm in which no node ever took over after a crash proves nothing about taking over. The
//! invariant: a name here is in [`PATHS`], so that one that is never counted is noticed. Nothing
//! here is a finding.

use super::lives::{End, OneLife};
use super::model::{Model, OneTrace};
use crate::history::{Answer, Ending, Entry, Life, SinkSaid, What};
use std::collections::BTreeMap;

/// Every path that is looked for.
pub(super) const PATHS: [&str; 20] = [
    "accepted_without_replica",
    "attempt_made_again",
    "drained_with_hand_over",
    "drained_with_spans_left",
    "epoch_raised",
    "exported_again_possible",
    "identity_refused",
    "late_span_exported",
    "live_node_dropped",
    "node_paused",
    "refused_for_good_by_sink",
    "repeat_recognised",
    "request_given_up",
    "rerouted_request",
    "restart_with_same_id",
    "retry_elsewhere_accepted",
    "spool_read_again",
    "taken_over_after_crash",
    "told_to_come_back_later",
    "view_merged_after_partition",
];

/// How often each path was taken.
pub(super) fn count(model: &Model<'_>) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<&str, u64> = PATHS.into_iter().map(|path| (path, 0)).collect();
    let mut add = |path: &'static str, count: u64| *counts.entry(path).or_default() += count;
    add("accepted_without_replica", model.counted("spans_accepted_without_replica_total"));
    add("exported_again_possible", model.counted("spans_exported_again_possible_total"));
    add("rerouted_request", model.counted("spans_rerouted_total"));
    add("live_node_dropped", model.dropped.len() as u64);
    let merged = model.dropped.iter().filter(|dropped| dropped.until <= model.history.ended_at);
    add("view_merged_after_partition", merged.count() as u64);
    let again = |node| model.lives.of(node).len().saturating_sub(1) as u64;
    add("restart_with_same_id", model.lives.nodes().map(again).sum());
    let spooled = |life: &OneLife| matches!(life.ended, Some((_, End::Spooled(_))));
    let reads = |lives: &[OneLife]| spooled(&lives[0]) && !lives[0].disk_lost;
    let read = |node| model.lives.of(node).windows(2).filter(|pair| reads(pair)).count() as u64;
    add("spool_read_again", model.lives.nodes().map(read).sum());
    let raised = model.views.changes().iter().filter_map(|change| change.after);
    let has_epoch = |view: &usize| model.views.seen(*view).members.iter().any(|one| one.2 > 0);
    add("epoch_raised", raised.filter(has_epoch).count() as u64);
    for Entry { what, .. } in &model.history.entries {
        match what {
            What::Told { answer: Answer::Later, .. } => add("told_to_come_back_later", 1),
            What::GaveUp { .. } => add("request_given_up", 1),
            What::Life { event: Life::Paused, .. } => add("node_paused", 1),
            What::Life { event: Life::Ended(Ending::Left(_) | Ending::Spooled(_)), .. } => {
                add("drained_with_spans_left", 1);
            }
            What::Life { event: Life::Ended(Ending::Refused(_)), .. } => add("identity_refused", 1),
            _ => {}
        }
    }
    for request in model.requests.values() {
        let first = request.sent.first().map(|sent| sent.1);
        let elsewhere = request.accepted().is_some_and(|(_, node)| first != Some(node));
        add("retry_elsewhere_accepted", u64::from(elsewhere));
    }
    for trace in &model.traces {
        for (path, is_taken) in of_trace(model, trace) {
            add(path, u64::from(is_taken));
        }
    }
    counts.into_iter().map(|(path, count)| (path.to_owned(), count)).collect()
}

fn of_trace(model: &Model<'_>, trace: &OneTrace) -> [(&'static str, bool); 6] {
    let spans = model.spans_of(trace);
    let exports = || trace.exports.iter().map(|number| &model.exports[*number]);
    let promise = spans.iter().find_map(|span| span.promised.map(|promised| promised.0));
    let owner = promise.and_then(|promise| {
        let view = model.view_of(&promise)?;
        let (owner, _) = model.holders(trace.number, model.views.set(view))?;
        Some((owner, model.lives.gone(owner, promise.sent)))
    });
    let taken_over = |orderly: bool| {
        let Some((owner, Some((gone, end)))) = owner else { return false };
        let mut kept = exports().filter(|export| export.kept);
        end.is_orderly() == orderly && kept.any(|one| one.node != owner && one.at > gone)
    };
    let is_repeated = spans.iter().any(|span| {
        let kept = exports().filter(|export| export.kept);
        let index = model.spans.binary_search_by_key(&span.number, |one| one.number);
        let has_it = |spans: &[u32]| index.is_ok_and(|index| spans.contains(&(index as u32)));
        span.promised.is_some_and(|(first, last)| first.at < last.at)
            && kept.filter(|export| has_it(&export.spans)).count() == 1
    });
    [
        ("attempt_made_again", exports().any(|one| !one.kept) && exports().any(|one| one.kept)),
        ("drained_with_hand_over", taken_over(true)),
        ("late_span_exported", exports().any(|export| export.late)),
        ("refused_for_good_by_sink", exports().any(|one| one.said == SinkSaid::Refused)),
        ("repeat_recognised", is_repeated),
        ("taken_over_after_crash", taken_over(false)),
    ]
}
