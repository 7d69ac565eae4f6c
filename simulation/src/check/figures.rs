//! Sums and bounds: `counters_add_up`, `memory_within_budget`, `goodput_floor`.
//!
//! What a node counts is compared with what was seen from outside, for nodes whose counters cover
//! all of it: those that lived once and to the end. The invariant: a figure of a node is never
//! compared with a figure of the same node, except in the sum of an undisturbed cluster, which is
//! PROTOCOL.md's ("Counters").

use super::model::{Model, OneRequest};
use super::{Finding, Invariant, Verdict};
use crate::history::{Answer, Look, SinkSaid};
use crate::plan::{NodeNumber, Plan};

/// Of a node's budget, in percent, that it may allocate.
const MEMORY_PERCENT: u64 = 125;
/// What is no span: tables of placement, gossip, sockets' and streams' buffers of a node.
const MEMORY_EXTRA: u64 = 16 << 20;
/// The same for each peer: a QUIC connection with its windows.
const MEMORY_PER_PEER: u64 = 2 << 20;
/// Of offered spans, in percent, that must be acknowledged where nothing is overloaded.
const GOODPUT_PERCENT: u64 = 99;
/// Clients take turns among nodes; requests so late in a run have no time for theirs.
const REQUESTS_MIN: u64 = 20;

pub(super) fn check(model: &Model<'_>, verdict: &mut Verdict) {
    memory(model, verdict);
    for (node, look) in &model.history.last_looks {
        counters_of(model, *node, look, verdict);
    }
    sum(model, verdict);
    goodput(model, verdict);
}

fn add(
    model: &Model<'_>,
    verdict: &mut Verdict,
    invariant: Invariant,
    nodes: Vec<NodeNumber>,
    text: String,
) {
    let at = model.history.ended_at;
    let story = nodes.iter().flat_map(|node| model.lives.story(*node)).collect();
    verdict.add(Finding { invariant, at, trace: None, nodes, text, story });
}

/// By the allocator's count, not by the node's own gauge.
fn memory(model: &Model<'_>, verdict: &mut Verdict) {
    let budget = model.history.plan.cluster.memory_bytes;
    let peers = model.lives.nodes().end as u64;
    let allowed = budget / 100 * MEMORY_PERCENT + MEMORY_EXTRA + peers * MEMORY_PER_PEER;
    for (node, peak) in &model.history.memory_peaks {
        if *peak > allowed {
            let text = format!(
                "node-{node} had {peak} bytes allocated at once, more than {allowed}, with a \
                 budget of {budget}"
            );
            add(model, verdict, Invariant::MemoryWithinBudget, vec![*node], text);
        }
    }
}

/// What a node counts beside what clients heard from it and its sink got of it.
fn counters_of(model: &Model<'_>, node: NodeNumber, look: &Look, verdict: &mut Verdict) {
    if model.lives.of(node).len() != 1 {
        return;
    }
    let spans_told = |wanted: &[Answer]| -> u64 {
        let told = model
            .requests
            .values()
            .flat_map(|request| request.told.iter().map(move |told| (request.span_count, told)));
        let mine = told.filter(|(_, (at, teller, answer))| {
            *teller == node && *at <= look.at && wanted.contains(answer)
        });
        mine.map(|(spans, _)| spans).sum()
    };
    let acknowledged = model.exports.iter().filter(|export| {
        export.node == node && export.said == SinkSaid::Acknowledged && export.heard_at <= look.at
    });
    let exported: u64 = acknowledged.map(|export| export.spans.len() as u64).sum();
    let accepted = spans_told(&[Answer::Accepted]);
    // A client that had gone, or did not hear the answer, may have been accepted.
    let unheard = spans_told(&[Answer::Nothing, Answer::Broken]);
    let compare = [
        ("spans_accepted_total", accepted, accepted + unheard),
        ("spans_exported_total", exported, exported),
    ];
    for (name, least, most) in compare {
        if !look.counters.contains_key(name) {
            continue;
        }
        let counted = model.counted_by(node, name);
        if !(least..=most).contains(&counted) {
            let text = format!(
                "node-{node} counts {counted} as {name}, but from outside {least} to {most} were \
                 seen"
            );
            add(model, verdict, Invariant::CountersAddUp, vec![node], text);
        }
    }
}

/// With stable views, no re-route, no failed request and no restart, over the cluster: accepted =
/// exported + sampled out + dropped + redelivered + held as owner, up to repaired more on the
/// right.
fn sum(model: &Model<'_>, verdict: &mut Verdict) {
    let first = model.requests.values().filter_map(|request| request.sent.first()).min();
    let failed = |request: &OneRequest| {
        request.told.iter().any(|told| told.2 != Answer::Accepted)
            || request.told.len() != request.sent.len()
    };
    let is_disturbed = !model.faults.none()
        || model.lives.nodes().any(|node| model.lives.of(node).len() > 1)
        || model.requests.values().any(failed)
        || model.counted("spans_rerouted_total") > 0
        || first.is_some_and(|first| model.views.changes().iter().any(|one| one.at > first.0));
    let looks = &model.history.last_looks;
    if is_disturbed
        || looks.values().any(|look| !look.counters.contains_key("spans_accepted_total"))
    {
        return;
    }
    let held: u64 = looks.values().map(|look| look.held[0]).sum();
    let left = model.counted("spans_accepted_total");
    let names = ["spans_exported_total", "spans_sampled_out_total", "spans_dropped_total"];
    let right = names.map(|name| model.counted(name)).iter().sum::<u64>()
        + model.counted("spans_redelivered_total")
        + held;
    let repaired = model.counted("spans_repaired_total");
    if right < left || right > left + repaired {
        let text = format!(
            "{left} spans were accepted, but {right} are exported, sampled out, dropped, \
             redelivered or held, with {repaired} repaired"
        );
        add(model, verdict, Invariant::CountersAddUp, Vec::new(), text);
    }
}

/// Whether the plan has clients send more than nodes have memory for: what is held at once takes
/// more than half of the budget.
fn is_too_much(model: &Model<'_>) -> bool {
    let (load, cluster) = (&model.history.plan.load, &model.history.plan.cluster);
    let by_root = (load.spread_ms.0 + cluster.root_delay_ms.0) as f64;
    let held_ms = by_root.min(cluster.age_max_ms.0 as f64) * (1.0 - load.rootless)
        + cluster.age_max_ms.0 as f64 * load.rootless;
    held_bytes(&model.history.plan, held_ms) > cluster.memory_bytes as f64 / 2.0
}

/// What a node holds of the spans of so many milliseconds: two copies in the cluster, with twice
/// their bytes for keys and tables.
pub(super) fn held_bytes(plan: &Plan, held_ms: f64) -> f64 {
    let load = &plan.load;
    let spans_a_second =
        load.clients as f64 * load.requests_per_second * load.spans_per_request as f64;
    let bytes = spans_a_second * held_ms / 1000.0 * (load.span_bytes + 100) as f64 * 4.0;
    bytes / plan.nodes as f64
}

/// Refusing everything loses nothing, so a run counts only if most was taken.
fn goodput(model: &Model<'_>, verdict: &mut Verdict) {
    if model.faults.overload() || is_too_much(model) {
        return;
    }
    let last = model.history.ended_at;
    let countable = model.requests.values().filter(|request| {
        // Where nobody was active for a while there was nobody to accept.
        let end = request.accepted().map(|told| told.0).or(request.gave_up).unwrap_or(last);
        request.accepted().is_some() || !model.lives.nobody_active(request.offered, end)
    });
    let (mut requests, mut offered, mut accepted) = (0, 0, 0);
    for request in countable {
        requests += 1;
        offered += request.span_count;
        accepted += if request.accepted().is_some() { request.span_count } else { 0 };
    }
    if requests >= REQUESTS_MIN && accepted * 100 < offered * GOODPUT_PERCENT {
        let text = format!("{accepted} of {offered} spans were accepted, less than 99 %");
        add(model, verdict, Invariant::GoodputFloor, Vec::new(), text);
    }
}
