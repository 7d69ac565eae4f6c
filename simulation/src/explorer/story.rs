//! Walks told step by step, for people.

use super::bugs::Bug;
use super::setting::Atlas;
use super::walk::{Dice, Ended, draw, walk};
use super::world::{Action, World};
use std::fmt::Write as _;
use std::sync::Arc;

/// What happens in one step, in words.
pub fn tell(world: &World, action: Action) -> String {
    let message = |number: usize| world.messages[number].tell(&world.plan);
    match action {
        Action::Submit(node) => {
            let work = &world.plan.setting.work[world.submitted];
            format!("client sends {work:?} to {node}")
        }
        Action::Retry(work, node) => {
            format!("client sends {:?} again to {node}", world.plan.setting.work[work])
        }
        Action::Silent(request, batch) => format!("batch {batch} of request {request} is silent"),
        Action::Expire(request) => format!("request {request} expires"),
        Action::Deliver(number) => format!("arrives: {}", message(number)),
        Action::Drop(number) => format!("lost: {}", message(number)),
        Action::Duplicate(number) => format!("twice: {}", message(number)),
        Action::Sink(number, says) => format!("sink says {says:?} to {}", message(number)),
        other => format!("{other:?}"),
    }
}

/// One line about a node: what it holds and what it believes.
fn tell_nodes(world: &World) -> String {
    let mut line = String::new();
    for (number, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.exists()) {
        let members = node.company.iter().enumerate();
        let members: String = members
            .filter_map(|(member, known)| {
                known.map(|(incarnation, _)| format!(" {member}({incarnation})"))
            })
            .collect();
        let known: String = (0..world.plan.traces.len())
            .map(|trace| {
                let known = node.known[trace];
                format!(" {:b}/{:b}", known.held, known.done)
            })
            .collect();
        let _ = write!(line, "  [{number} {} view{members}, held/done{known}]", node.state);
    }
    line
}

/// The story of a seed, and how it ended.
pub fn story(seed: u64, bug: Option<Bug>, atlas: &Arc<Atlas>) -> (String, Ended) {
    let mut text = String::new();
    let setting = draw(&mut Dice::new(seed), bug);
    let _ = writeln!(text, "{setting:?}");
    let ended = walk(seed, bug, atlas, |step, world, action| {
        let _ = writeln!(text, "{:>60}", "");
        text.truncate(text.trim_end().len());
        let _ = writeln!(text, "\n{step:4} {}", tell(world, action));
        let _ = writeln!(text, "    {}", tell_nodes(world));
    });
    match &ended.violation {
        Some(violation) => {
            let _ = writeln!(text, "after {} steps: {violation}", ended.steps);
        }
        None => {
            let _ = writeln!(text, "at rest after {} steps", ended.steps);
        }
    }
    (text, ended)
}
