//! When each node lived, stood still, served and left, as seen from outside.
//!
//! The invariant: the lives of a node stand in order and do not overlap. What a node believes of
//! itself or of others is not here; that is `views`.

use super::clock;
use crate::history::{Ending, Entry, History, Life, What};
use crate::plan::{Millis, NodeNumber};

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Without a word.
    Crashed,
    /// It drained, and this many spans were left and are nowhere.
    Drained(u64),
    /// It drained, and this many spans were left and are in its spool.
    Spooled(u64),
    /// It gave up: another has its identity, or a task panicked.
    Gave,
}

/// One process of a node, from its start to its end.
#[derive(Clone, Debug)]
pub(super) struct OneLife {
    /// When its process began.
    pub(super) started: Millis,
    /// When it began to take spans.
    pub(super) ready: Option<Millis>,
    /// When it was asked to leave.
    pub(super) draining: Option<Millis>,
    /// When and how it ended.
    pub(super) ended: Option<(Millis, End)>,
    /// When it stood still.
    pub(super) pauses: Vec<(Millis, Millis)>,
    /// What was on its disk was lost after its end.
    pub(super) disk_lost: bool,
}

impl OneLife {
    fn lives_at(&self, at: Millis) -> bool {
        self.started <= at && self.ended.is_none_or(|(ended, _)| at < ended)
    }

    fn active_at(&self, at: Millis) -> bool {
        self.lives_at(at)
            && self.ready.is_some_and(|ready| ready <= at)
            && self.draining.is_none_or(|draining| at < draining)
    }
}

/// The lives of all nodes.
#[derive(Debug)]
pub(super) struct Lives(Vec<Vec<OneLife>>);

impl Lives {
    pub(super) fn new(history: &History) -> Self {
        let mut lives = Self(vec![Vec::new(); history.plan.all_nodes().end]);
        for Entry { at, what } in &history.entries {
            if let What::Life { node, event } = what {
                lives.on_event(*at, *node, event);
            }
        }
        for pause in lives.0.iter_mut().flatten().flat_map(|life| &mut life.pauses) {
            pause.1 = pause.1.min(history.ended_at);
        }
        lives
    }

    fn on_event(&mut self, at: Millis, node: NodeNumber, event: &Life) {
        let Some(lives) = self.0.get_mut(node) else { return };
        if *event == Life::Started {
            let (ready, draining, ended) = (None, None, None);
            let (pauses, disk_lost) = (Vec::new(), false);
            lives.push(OneLife { started: at, ready, draining, ended, pauses, disk_lost });
            return;
        }
        let Some(life) = lives.last_mut() else { return };
        match event {
            Life::Started => {}
            Life::Ready => life.ready = life.ready.or(Some(at)),
            Life::Draining => life.draining = life.draining.or(Some(at)),
            Life::Paused => life.pauses.push((at, Millis(u64::MAX))),
            Life::Woken => life.end_pause(at),
            Life::DiskLost => life.disk_lost = true,
            Life::Crashed => life.end(at, End::Crashed),
            Life::Failed(_) => life.end(at, End::Gave),
            Life::Ended(Ending::Drained) => life.end(at, End::Drained(0)),
            Life::Ended(Ending::Left(count)) => life.end(at, End::Drained(*count)),
            Life::Ended(Ending::Spooled(count)) => life.end(at, End::Spooled(*count)),
            Life::Ended(Ending::Refused(_) | Ending::Panicked(_)) => life.end(at, End::Gave),
        }
    }

    /// The lives of a node, in order.
    pub(super) fn of(&self, node: NodeNumber) -> &[OneLife] {
        self.0.get(node).map_or(&[], Vec::as_slice)
    }

    /// Nodes that the plan knows.
    pub(super) fn nodes(&self) -> std::ops::Range<NodeNumber> {
        0..self.0.len()
    }

    /// The life that a node has at a moment.
    pub(super) fn at(&self, node: NodeNumber, at: Millis) -> Option<&OneLife> {
        self.of(node).iter().find(|life| life.lives_at(at))
    }

    /// Whether it serves clients and holds slots: ready, and not asked to leave.
    pub(super) fn is_active(&self, node: NodeNumber, at: Millis) -> bool {
        self.of(node).iter().any(|life| life.active_at(at))
    }

    /// The active nodes as a set.
    pub(super) fn active(&self, at: Millis) -> u64 {
        let active = self.nodes().filter(|node| self.is_active(*node, at));
        active.fold(0, |set, node| set | 1 << node)
    }

    /// Whether there was a moment from `from` to `until` without an active node.
    pub(super) fn nobody_active(&self, from: Millis, until: Millis) -> bool {
        let all = self.0.iter().flatten();
        let ends = all.flat_map(|life| [life.ended.map(|(at, _)| at), life.draining]);
        let moments = ends.flatten().filter(|at| (from..=until).contains(at));
        std::iter::once(from).chain(moments).any(|at| self.active(at) == 0)
    }

    /// What a node held at `from` is gone with the life that it had then, or, if it had none, was
    /// gone before.
    pub(super) fn gone(&self, node: NodeNumber, from: Millis) -> Option<(Millis, End)> {
        match self.at(node, from) {
            Some(life) => life.ended,
            None => self.of(node).iter().rev().find(|life| life.started <= from)?.ended,
        }
    }

    /// Ends of any node's life in a stretch of time.
    pub(super) fn ends(
        &self,
        from: Millis,
        until: Millis,
    ) -> impl Iterator<Item = (NodeNumber, Millis, End)> {
        let all = self.0.iter().enumerate();
        let ends = all.flat_map(|(node, lives)| lives.iter().map(move |life| (node, life.ended)));
        let ends = ends.filter_map(|(node, ended)| ended.map(|(at, end)| (node, at, end)));
        ends.filter(move |(_, at, _)| (from..=until).contains(at))
    }

    /// Whether it stood still at some moment of a stretch of time.
    pub(super) fn paused_within(&self, node: NodeNumber, from: Millis, until: Millis) -> bool {
        let pauses = self.of(node).iter().flat_map(|life| &life.pauses);
        pauses.into_iter().any(|(paused, woken)| *paused <= until && from <= *woken)
    }

    /// When it was last the case that a node began, became ready, left, ended, paused or woke.
    pub(super) fn last_change(&self) -> Millis {
        let moments = self.0.iter().flatten().flat_map(|life| {
            let ended = life.ended.map(|(at, _)| at);
            let woken = life.pauses.iter().map(|pause| pause.1).max();
            [Some(life.started), life.ready, life.draining, ended, woken]
        });
        moments.flatten().max().unwrap_or_default()
    }

    /// What happened to a node, in words.
    pub(super) fn story(&self, node: NodeNumber) -> Vec<String> {
        let mut story = Vec::new();
        for life in self.of(node) {
            let mut events = vec![(life.started, "began".to_owned())];
            events.extend(life.ready.map(|at| (at, "took spans".to_owned())));
            for (paused, woken) in &life.pauses {
                events.push((*paused, format!("stood still until {}", clock(*woken))));
            }
            events.extend(life.draining.map(|at| (at, "was asked to leave".to_owned())));
            events.extend(life.ended.map(|(at, end)| (at, end.text())));
            events.sort_by_key(|event| event.0);
            let line = |(at, what): &(Millis, String)| format!("{} node-{node} {what}", clock(*at));
            story.extend(events.iter().map(line));
        }
        story
    }
}

impl OneLife {
    fn end(&mut self, at: Millis, end: End) {
        self.end_pause(at);
        self.ended = self.ended.or(Some((at, end)));
    }

    fn end_pause(&mut self, at: Millis) {
        if let Some(pause) = self.pauses.last_mut() {
            pause.1 = pause.1.min(at);
        }
    }
}

impl End {
    /// Whether it handed over what it held, as far as it could.
    pub(super) fn is_orderly(self) -> bool {
        matches!(self, Self::Drained(_) | Self::Spooled(_))
    }

    /// In words.
    pub(super) fn text(self) -> String {
        match self {
            Self::Crashed => "crashed".to_owned(),
            Self::Drained(0) => "drained, and nothing was left".to_owned(),
            Self::Drained(count) => format!("drained, and {count} spans were left over"),
            Self::Spooled(count) => format!("drained, and spooled {count} spans"),
            Self::Gave => "gave up".to_owned(),
        }
    }
}
