//! One request of a client, until it is answered (PROTOCOL.md, rules E1 to E5).
//!
//! A pure state machine: it says which spans to send to whom, hears what became of that, and says
//! when the client may be answered. The invariant is E4: success only when every span is held by
//! each of its targets, in the incarnation that the *present* view names. Targets are recomputed
//! from the slots whenever something changed; the common case, in which nothing does, only compares
//! incarnations. It keeps no span bytes: the shell builds batches from the request it has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tracemesh_membership::{Incarnation, MemberIndex, NodeId, Placement, Slot};

/// A target that made no progress for so long is routed around.
pub const ACK_WAIT: Duration = Duration::from_millis(250);
/// A client gets its answer within this time, whatever happens.
pub const REQUEST_MAX: Duration = Duration::from_secs(3);

/// What to send to one target. Its outcome comes back under `batch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Number of the batch within its request.
    pub batch: usize,
    /// Who is to hold the spans; may be this node.
    pub target: NodeId,
    /// Traces of the request, by number, ascending.
    pub traces: Vec<u32>,
    /// The target must know that another holder may lack the spans (E3).
    pub mark: Mark,
    /// Whether the target needs the spans or has them.
    pub content: Content,
}

/// Whether a batch says that a holder was routed around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Every target answers.
    Unmarked,
    /// Some target was routed around.
    Marked,
}

/// How spans are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// As bytes.
    Bytes,
    /// As names, because the target acknowledged the bytes before.
    Names,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target holds all of it.
    Held(Incarnation),
    /// The target wants bytes that it was sent by name.
    Wanted,
    /// The target has no memory for it.
    Full,
    /// The target made no progress for [`ACK_WAIT`], or could not be reached.
    Silent,
}

/// The answer to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every span is held as often as the cluster promises.
    Accepted(Copies),
    /// A holder is full.
    Full,
    /// Not enough nodes answer.
    TooFew,
}

/// How often the spans of an accepted request are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// By owner and replica.
    Replicated,
    /// By one node: the view has no other, or the cluster wants no replicas.
    Single,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these batches (perhaps none) and wait.
    Send(Vec<Send>),
    /// Answer the client; nothing else is wanted from this request.
    Answer(Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Flying,
    Held(Incarnation),
    Void,
}

#[derive(Debug)]
struct Batch {
    target: NodeId,
    traces: Vec<u32>,
    mark: Mark,
    progress: Progress,
}

/// Rules E for one request.
#[derive(Debug)]
pub struct OpenRequest {
    me: NodeId,
    slots: Vec<Slot>,
    replicas: u32,
    placement: Arc<Placement>,
    avoided: BTreeSet<NodeId>,
    batches: Vec<Batch>,
    changed: bool,
}

impl OpenRequest {
    /// A request whose traces have these slots, in a cluster that wants `replicas` besides the
    /// owner (0 or 1). `avoided` are members that this node routes around already.
    pub fn start(
        me: NodeId,
        slots: Vec<Slot>,
        replicas: u32,
        placement: Arc<Placement>,
        avoided: BTreeSet<NodeId>,
    ) -> (Self, Step) {
        let changed = !avoided.is_empty();
        let mut request =
            Self { me, slots, replicas, placement, avoided, batches: Vec::new(), changed };
        let step = request.advance();
        (request, step)
    }

    /// Something became of a batch.
    pub fn on_outcome(&mut self, batch: usize, outcome: Outcome) -> Step {
        let Some(sent) = self.batches.get_mut(batch) else { return Step::Send(Vec::new()) };
        match outcome {
            Outcome::Held(incarnation) => sent.progress = Progress::Held(incarnation),
            Outcome::Full => return Step::Answer(Answer::Full),
            Outcome::Wanted => {
                let target = sent.target.clone();
                self.void(&target);
            }
            Outcome::Silent if sent.target == self.me => return Step::Answer(Answer::TooFew),
            Outcome::Silent => {
                sent.progress = Progress::Void;
                self.avoided.insert(sent.target.clone());
                self.changed = true;
            }
        }
        self.advance()
    }

    /// The view changed.
    pub fn on_view(&mut self, placement: Arc<Placement>) -> Step {
        if placement.view().hash() == self.placement.view().hash() {
            return Step::Send(Vec::new());
        }
        self.placement = placement;
        self.changed = true;
        self.advance()
    }

    /// [`REQUEST_MAX`] is over.
    pub fn on_expired(&self) -> Answer {
        Answer::TooFew
    }

    /// Whether a holder was routed around.
    pub fn is_rerouted(&self) -> bool {
        !self.avoided.is_empty()
    }

    /// Nothing that `target` said counts any more.
    fn void(&mut self, target: &NodeId) {
        self.changed = true;
        for batch in self.batches.iter_mut().filter(|batch| batch.target == *target) {
            batch.progress = Progress::Void;
        }
    }

    fn advance(&mut self) -> Step {
        if !self.changed && !self.batches.is_empty() {
            return self.advance_unchanged();
        }
        let mut lacking: Vec<(NodeId, Mark, Content, u32)> = Vec::new();
        let mut waiting = false;
        let mut copies = Copies::Replicated;
        for (number, &slot) in (0_u32..).zip(&self.slots) {
            let (targets, mark) = self.targets(slot);
            let wanted = self.wanted_copies();
            if targets.len() < wanted {
                return Step::Answer(Answer::TooFew);
            }
            if wanted == 1 {
                copies = Copies::Single;
            }
            for target in targets {
                match self.standing(&target, number, mark) {
                    Standing::Held => {}
                    Standing::Flying => waiting = true,
                    Standing::Lacking(content) => lacking.push((target, mark, content, number)),
                }
            }
        }
        if lacking.is_empty() && !waiting {
            return Step::Answer(Answer::Accepted(copies));
        }
        Step::Send(self.batch(lacking))
    }

    /// Nothing changed since the split: all batches are all that is wanted.
    fn advance_unchanged(&mut self) -> Step {
        for batch in &self.batches {
            match batch.progress {
                Progress::Flying => return Step::Send(Vec::new()),
                Progress::Held(incarnation) if self.incarnation(&batch.target) == Some(incarnation) => {}
                Progress::Held(_) | Progress::Void => {
                    self.changed = true;
                    return self.advance();
                }
            }
        }
        let copies = if self.wanted_copies() == 1 { Copies::Single } else { Copies::Replicated };
        Step::Answer(Answer::Accepted(copies))
    }

    /// How many nodes must hold each span, by the present view.
    fn wanted_copies(&self) -> usize {
        let members = self.placement.view().members().len();
        (1 + self.replicas as usize).min(members).max(1)
    }

    /// Who must hold the traces of a slot, owner first, and whether one was routed around.
    fn targets(&self, slot: Slot) -> (Vec<NodeId>, Mark) {
        let members = self.placement.view().members();
        let wanted = self.wanted_copies();
        let name = |index: MemberIndex| members[index as usize].id.clone();
        let first = |holders: Option<tracemesh_membership::Holders>| -> Vec<NodeId> {
            let Some(holders) = holders else { return Vec::new() };
            std::iter::once(holders.owner).chain(holders.replica).map(name).take(wanted).collect()
        };
        let holders = first(self.placement.holders(slot));
        if holders.iter().all(|holder| !self.avoided.contains(holder)) {
            return (holders, Mark::Unmarked);
        }
        let answers = |index: MemberIndex| !self.avoided.contains(&members[index as usize].id);
        let mut holders = first(self.placement.holders_among(slot, answers));
        if holders.len() < wanted && !holders.contains(&self.me) {
            holders.push(self.me.clone());
        }
        (holders, Mark::Marked)
    }

    fn standing(&self, target: &NodeId, trace: u32, mark: Mark) -> Standing {
        let present = self.incarnation(target);
        let mut standing = Standing::Lacking(Content::Bytes);
        for batch in &self.batches {
            if batch.target != *target || batch.traces.binary_search(&trace).is_err() {
                continue;
            }
            let here = match batch.progress {
                Progress::Void => continue,
                Progress::Flying if batch.mark >= mark => Standing::Flying,
                Progress::Flying => continue,
                Progress::Held(incarnation) if Some(incarnation) == present => {
                    if batch.mark >= mark {
                        return Standing::Held;
                    }
                    Standing::Lacking(Content::Names)
                }
                // A newer incarnation than the view knows: the view will follow.
                Progress::Held(incarnation) if Some(incarnation) > present => Standing::Flying,
                Progress::Held(_) => continue,
            };
            standing = standing.max(here);
        }
        standing
    }

    fn incarnation(&self, target: &NodeId) -> Option<Incarnation> {
        Some(self.placement.view().get(target)?.incarnation)
    }

    /// Groups what lacks into one batch per target, mark and content.
    fn batch(&mut self, mut lacking: Vec<(NodeId, Mark, Content, u32)>) -> Vec<Send> {
        lacking.sort();
        let mut sends: Vec<Send> = Vec::new();
        for (target, mark, content, trace) in lacking {
            match sends.last_mut() {
                Some(last)
                    if last.target == target && last.mark == mark && last.content == content =>
                {
                    last.traces.push(trace);
                }
                _ => {
                    let batch = self.batches.len() + sends.len();
                    sends.push(Send { batch, target, traces: vec![trace], mark, content });
                }
            }
        }
        for send in &sends {
            self.batches.push(Batch {
                target: send.target.clone(),
                traces: send.traces.clone(),
                mark: send.mark,
                progress: Progress::Flying,
            });
        }
        sends
    }
}

/// How a trace stands with one of its targets; the greater is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Lacking(Content),
    Flying,
    Held,
}
