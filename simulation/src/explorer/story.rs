//! Walks told step by step, for people.

use super::setting::Atlas;
use super::walk::{Dice, Ended, Twist, draw, walk};
use super::world::{Action, World};
use std::fmt::Write as _;
use std::sync::Arc;

/// What happens in one step, in words.
pub fn tell(world: &World, action: Action) -> String {
    let message = |number: usize| world.messages[number].tell(&world.plan);
    let node = |number: usize| world.plan.id(number);
    let work = |number: usize| {
        let spans = world.plan.setting.work[number].iter();
        let spans: Vec<_> =
            spans.map(|(trace, spans)| format!("trace {trace} spans {spans:b}")).collect();
        spans.join(", ")
    };
    match action {
        Action::Submit(entry) => format!("client → {}: {}", node(entry), work(world.submitted)),
        Action::Retry(number, entry) => format!("client → {} again: {}", node(entry), work(number)),
        Action::Silent(request, batch) => format!("batch {batch} of request {request} is silent"),
        Action::Expire(request) => format!("request {request} expires"),
        Action::Deliver(number) => format!("arrives: {}", message(number)),
        Action::Drop(number) => format!("lost: {}", message(number)),
        Action::Refuse(number) => format!("finds no memory: {}", message(number)),
        Action::Duplicate(number) => format!("twice: {}", message(number)),
        Action::Sink(number, says) => format!("sink says {says:?}: {}", message(number)),
        Action::Timer(number) => format!("timer of {}", node(number)),
        Action::Late(number) => format!("timers of {}, much too late", node(number)),
        Action::TakeView(number, shard) => {
            format!("shard {shard} of {} told its view", node(number))
        }
        Action::Probe(number, peer) => format!("{} answers {} again", node(peer), node(number)),
        Action::Gossip(number, peer) => format!("{} hears of {}", node(number), node(peer)),
        Action::Suspect(number, peer) => format!("{} believes {} dead", node(number), node(peer)),
        Action::Crash(number) => format!("{} crashes", node(number)),
        Action::Start(number) => format!("{} starts", node(number)),
        Action::Activate(number) => format!("{} becomes active", node(number)),
        Action::Leave(number) => format!("{} begins to leave", node(number)),
        Action::Exit(number) => format!("{} ends", node(number)),
        Action::Pause(number) => format!("{} stands still", node(number)),
        Action::Wake(number) => format!("{} goes on", node(number)),
    }
}

/// One line about the nodes: what they believe and what they hold and know as done.
pub fn tell_nodes(world: &World) -> String {
    let mut line = String::new();
    for (number, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.exists()) {
        let _ = write!(line, "  {} {} sees", world.plan.id(number), node.state);
        for member in node.placement.view().members() {
            let _ = write!(line, " {}({})", member.id, member.incarnation);
        }
        for known in &node.known[..world.plan.traces.len()] {
            let _ = write!(line, ", holds {:b} done {:b}", known.held, known.done);
        }
        line.push(';');
    }
    line
}

/// The story of a seed, and how it ended.
pub fn story(seed: u64, twist: Twist, atlas: &Arc<Atlas>) -> (String, Ended) {
    let mut text = String::new();
    let setting = draw(&mut Dice::new(seed), twist);
    let _ = writeln!(text, "{setting:?}");
    let ended = walk(seed, twist, atlas, |step, world, action| {
        let _ = writeln!(text, "      {}", tell_nodes(world));
        let _ = writeln!(text, "{step:4}  {}", tell(world, action));
    });
    let _ = match &ended.violation {
        Some(violation) => writeln!(text, "after {} steps: {violation}", ended.steps),
        None => writeln!(text, "at rest after {} steps", ended.steps),
    };
    (text, ended)
}
