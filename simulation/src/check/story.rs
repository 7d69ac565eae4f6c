//! The story of a trace: what clients were told, who had to hold it, what became of these nodes,
//! who had which view, and which faults were at work.
//!
//! Written for findings only, because it is long. The invariant: its lines are in order of time,
//! as far as they have one. It is bounded by [`LINES_MAX`].

use super::clock;
use super::model::{Model, OneTrace};
use crate::history::{Entry, Life, What};
use crate::plan::Millis;
use std::fmt::Write;

/// Lines of a story.
const LINES_MAX: usize = 80;

/// How long after the last promise and export a story goes on.
const AFTER: u64 = 30_000;

/// A trace by its number and its id.
pub(super) fn trace(model: &Model<'_>, number: u32) -> String {
    let id = crate::spans::trace_id(model.history.plan.seed, number);
    let mut text = format!("{number} (");
    for byte in id {
        // Writing into a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text + ")"
}

/// Where a licence was used, and what went wrong half a minute before and after.
pub(super) fn of_use(model: &Model<'_>, number: u32, at: Millis) -> Vec<String> {
    let from = Millis(at.0.saturating_sub(AFTER));
    let mut lines = vec![format!("trace {} at {}", trace(model, number), clock(at))];
    let after = Millis(at.0 + AFTER);
    let ends = model.lives.ends(from, after);
    lines.extend(ends.map(|(node, at, end)| format!("{} node-{node} {}", clock(at), end.text())));
    lines.extend(model.faults.story(from, after));
    lines.truncate(LINES_MAX);
    lines
}

/// The story of a trace.
pub(super) fn of_trace(model: &Model<'_>, trace: &OneTrace) -> Vec<String> {
    let mut lines: Vec<(Millis, String)> = Vec::new();
    for span in model.spans_of(trace) {
        if let Some(sent) = span.sent {
            lines.push((sent, format!("span {} was sent first", span.number.span)));
        }
        let Some((first, last)) = span.promised else { continue };
        let both = [first, last];
        for promise in &both[..if first.at == last.at { 1 } else { 2 }] {
            lines.push((promise.at, promised(model, trace, span.number.span, promise)));
        }
    }
    for number in &trace.exports {
        let export = &model.exports[*number];
        let late = if export.late { ", late" } else { "" };
        let kept = if export.kept { "kept it" } else { "did not keep it" };
        let text = format!(
            "node-{} exported {} spans{late}; the sink {kept} and said {:?}",
            export.node,
            export.spans.len(),
            export.said
        );
        lines.push((export.at, text));
    }
    let first = lines.iter().map(|line| line.0).min().unwrap_or_default();
    let last = lines.iter().map(|line| line.0).max().unwrap_or_default();
    surroundings(model, first, Millis(last.0 + AFTER), &mut lines);
    lines.sort_by_key(|line| line.0);
    let mut story = vec![format!("seed {}", model.history.plan.seed)];
    story.extend(lines.into_iter().map(|(at, line)| format!("{} {line}", clock(at))));
    if story.len() > LINES_MAX {
        let more = story.len() - LINES_MAX;
        story.truncate(LINES_MAX);
        story.push(format!("and {more} more lines"));
    }
    story
}

fn promised(
    model: &Model<'_>,
    trace: &OneTrace,
    span: u16,
    promise: &super::model::Promise,
) -> String {
    let view = model.view_of(promise);
    let holders = view.and_then(|view| model.holders(trace.number, model.views.set(view)));
    let holders = match holders {
        Some((owner, Some(replica))) => format!("owner node-{owner}, replica node-{replica}"),
        Some((owner, None)) => format!("owner node-{owner}, no replica"),
        None => "no holders".to_owned(),
    };
    format!(
        "span {span} was acknowledged by node-{} (sent {}): {holders} in its view {}",
        promise.entry,
        clock(promise.sent),
        model.views.text(view)
    )
}

/// What happened to nodes, views and the world meanwhile, and, before, which views there were.
fn surroundings(model: &Model<'_>, first: Millis, last: Millis, lines: &mut Vec<(Millis, String)>) {
    for Entry { at, what } in &model.history.entries {
        if let What::Life { node, event } = what
            && (first..=last).contains(at)
        {
            let event = match event {
                Life::Ended(ending) => format!("ended: {ending:?}"),
                Life::Failed(why) => format!("could not begin: {why}"),
                other => format!("{other:?}").to_lowercase(),
            };
            lines.push((*at, format!("node-{node} {event}")));
        }
    }
    for node in model.lives.nodes().filter(|node| model.lives.at(*node, first).is_some()) {
        let view = model.views.text(model.views.at(node, first));
        lines.push((first, format!("node-{node} had the view {view}")));
    }
    let after = Millis(first.0 + 1);
    for change in model.views.changes_within(after, last) {
        let view = model.views.text(change.after);
        lines.push((change.at, format!("node-{} has now {view}", change.node)));
    }
    for fault in model.faults.story(first, last) {
        lines.push((first, fault));
    }
}
