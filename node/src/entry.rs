//! One request of a client, until it is answered (PROTOCOL.md, rules E1 to E5).
//!
//! A pure state machine: it says which spans to send to whom, hears what became of that, and says
//! when the client may be answered. The invariant is E4: success only when every span is held by
//! each of its targets, in the incarnation that the *present* view names. Targets are recomputed
//! from the slots whenever something changed; the common case, in which nothing does, only compares
//! incarnations. It keeps no span bytes: the shell builds batches from the request it has.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tracemesh_membership::{Holders, Incarnation, MemberIndex, NodeId, Placement, Slot};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Progress {
    Flying,
    Held(Incarnation),
    Void,
}

#[derive(Clone, Debug, Hash)]
struct Batch {
    target: NodeId,
    traces: Vec<u32>,
    mark: Mark,
    progress: Progress,
}

/// Rules E for one request.
#[derive(Clone, Debug)]
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
        let former = std::mem::replace(&mut self.placement, placement);
        self.void_given_up(&former);
        self.changed = true;
        self.advance()
    }

    /// [`REQUEST_MAX`] is over.
    pub fn on_expired(&self) -> Answer {
        Answer::TooFew
    }

    /// All that the future of this request depends on, for an explorer that compares states.
    pub fn fingerprint(&self, hasher: &mut impl Hasher) {
        (&self.slots, self.replicas, self.placement.view().hash()).hash(hasher);
        (&self.avoided, &self.batches, self.changed).hash(hasher);
    }

    /// Traces that were routed around each peer that was avoided.
    pub fn rerouted(&self) -> BTreeMap<NodeId, Vec<u32>> {
        let mut rerouted = BTreeMap::new();
        if self.avoided.is_empty() {
            return rerouted;
        }
        for (number, &slot) in (0_u32..).zip(&self.slots) {
            let Some(holders) = self.placement.holders(slot) else { continue };
            for index in std::iter::once(holders.owner).chain(holders.replica) {
                let id = &self.placement.view().members()[index as usize].id;
                if self.avoided.contains(id) {
                    rerouted.entry(id.clone()).or_insert_with(Vec::new).push(number);
                }
            }
        }
        rerouted
    }

    /// Nothing that `target` said counts any more.
    fn void(&mut self, target: &NodeId) {
        self.changed = true;
        for batch in self.batches.iter_mut().filter(|batch| batch.target == *target) {
            batch.progress = Progress::Void;
        }
    }

    /// What a node acknowledged, or is about to, counts as long as it is a holder, in one
    /// incarnation: as a stand-in it may have handed the spans over since, and given them up.
    fn void_given_up(&mut self, former: &Placement) {
        let Self { slots, placement, batches, .. } = self;
        let incarnation = |placement: &Placement, id| Some(placement.view().get(id)?.incarnation);
        let name = |index: MemberIndex| &former.view().members()[index as usize].id;
        for Batch { target, traces, .. } in batches {
            let stayed = incarnation(former, target) == incarnation(placement, target);
            let was_holder = |holders: Holders| {
                name(holders.owner) == target || holders.replica.map(name) == Some(target)
            };
            traces.retain(|&trace| {
                stayed && former.holders(slots[trace as usize]).is_some_and(was_holder)
            });
        }
    }

    fn advance(&mut self) -> Step {
        if !self.changed && !self.batches.is_empty() {
            return self.advance_unchanged();
        }
        let (placement, me) = (Arc::clone(&self.placement), self.me.clone());
        let mut lacking = Lacking::new();
        let mut waiting = false;
        let mut copies = Copies::Replicated;
        for (number, &slot) in (0_u32..).zip(&self.slots) {
            let (targets, mark) = self.targets(&placement, &me, slot);
            let wanted = self.wanted_copies();
            if targets.iter().flatten().count() < wanted {
                return Step::Answer(Answer::TooFew);
            }
            if wanted == 1 {
                copies = Copies::Single;
            }
            for target in targets.into_iter().flatten() {
                match self.standing(target, number, mark) {
                    Standing::Held => {}
                    Standing::Flying => waiting = true,
                    Standing::Lacking(content) => {
                        lacking.entry((target, mark, content)).or_default().push(number);
                    }
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
                Progress::Held(incarnation)
                    if self.incarnation(&batch.target) == Some(incarnation) => {}
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

    /// Who must hold the traces of a slot, owner first, and whether one was routed around. The
    /// placement and this node are those of `self`.
    fn targets<'a>(
        &self,
        placement: &'a Placement,
        me: &'a NodeId,
        slot: Slot,
    ) -> ([Option<&'a NodeId>; 2], Mark) {
        let members = placement.view().members();
        let wanted = self.wanted_copies();
        let name = |index: MemberIndex| &members[index as usize].id;
        let first = |holders: Option<Holders>| match holders {
            None => [None; 2],
            Some(Holders { owner, replica }) => {
                [Some(name(owner)), replica.filter(|_| wanted > 1).map(name)]
            }
        };
        let holders = first(placement.holders(slot));
        if holders.iter().flatten().all(|holder| !self.avoided.contains(*holder)) {
            return (holders, Mark::Unmarked);
        }
        let answers = |index: MemberIndex| !self.avoided.contains(name(index));
        let mut holders = first(placement.holders_among(slot, answers));
        if !holders.contains(&Some(me))
            && let Some(free) = holders[..wanted].iter_mut().find(|holder| holder.is_none())
        {
            *free = Some(me);
        }
        (holders, Mark::Marked)
    }

    fn standing(&self, target: &NodeId, trace: u32, mark: Mark) -> Standing {
        let present = || self.incarnation(target);
        let mut standing = Standing::Lacking(Content::Bytes);
        for batch in &self.batches {
            if batch.target != *target || batch.traces.binary_search(&trace).is_err() {
                continue;
            }
            let here = match batch.progress {
                Progress::Void => continue,
                Progress::Flying if batch.mark >= mark => Standing::Flying,
                Progress::Flying => continue,
                Progress::Held(incarnation) if Some(incarnation) == present() => {
                    if batch.mark >= mark {
                        return Standing::Held;
                    }
                    Standing::Lacking(Content::Names)
                }
                // A newer incarnation than the view knows: the view will follow.
                Progress::Held(incarnation) if Some(incarnation) > present() => Standing::Flying,
                Progress::Held(_) => continue,
            };
            standing = standing.max(here);
        }
        standing
    }

    fn incarnation(&self, target: &NodeId) -> Option<Incarnation> {
        Some(self.placement.view().get(target)?.incarnation)
    }

    /// One batch per target, mark and content for what lacks.
    fn batch(&mut self, lacking: Lacking<'_>) -> Vec<Send> {
        let sends = (self.batches.len()..).zip(lacking);
        let sends = sends.map(|(batch, ((target, mark, content), traces))| {
            let target = target.clone();
            Send { batch, target, traces, mark, content }
        });
        let sends: Vec<Send> = sends.collect();
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

/// Traces, ascending, that a target lacks, and how they are to be sent.
type Lacking<'a> = BTreeMap<(&'a NodeId, Mark, Content), Vec<u32>>;

/// How a trace stands with one of its targets; the greater is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Lacking(Content),
    Flying,
    Held,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracemesh_membership::{MemberState, View, ViewMember, Weight};

    fn incarnation(generation: u64) -> Incarnation {
        Incarnation { generation, epoch: 0 }
    }

    fn placement(members: &[(&str, u64)]) -> Arc<Placement> {
        let members = members.iter().map(|&(id, generation)| ViewMember {
            id: id.into(),
            incarnation: incarnation(generation),
            weight: Weight::new(1.0).unwrap(),
            zone: "".into(),
            state: MemberState::Active,
        });
        Arc::new(Placement::new(Arc::new(View::new(members))))
    }

    /// A slot with this owner and replica.
    fn slot(placement: &Placement, owner: &str, replica: &str) -> Slot {
        let name = |index: MemberIndex| placement.view().members()[index as usize].id.as_str();
        let is = |slot: &Slot| {
            let holders = placement.holders(*slot).unwrap();
            name(holders.owner) == owner && holders.replica.map(name) == Some(replica)
        };
        (0..u16::MAX).map(Slot).find(is).unwrap()
    }

    fn start(me: &str, placement: &Arc<Placement>, slots: &[Slot]) -> (OpenRequest, Vec<Send>) {
        let placement = Arc::clone(placement);
        let (request, step) =
            OpenRequest::start(me.into(), slots.to_vec(), 1, placement, BTreeSet::new());
        (request, sent(step))
    }

    fn sent(step: Step) -> Vec<Send> {
        match step {
            Step::Send(sends) => sends,
            Step::Answer(answer) => panic!("expected batches, not {answer:?}"),
        }
    }

    fn batch_to<'a>(sends: &'a [Send], target: &str) -> &'a Send {
        sends.iter().find(|send| send.target.as_str() == target).unwrap()
    }

    const ACCEPTED: Step = Step::Answer(Answer::Accepted(Copies::Replicated));

    #[test]
    fn client_is_answered_when_owner_and_replica_hold_every_span() {
        let placement = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let slots = [slot(&placement, "a", "b"), slot(&placement, "b", "c")];
        let (mut request, sends) = start("a", &placement, &slots);
        assert_eq!(sends.len(), 3, "one batch a holder");
        assert_eq!(batch_to(&sends, "b").traces, [0, 1]);
        let waiting = Step::Send(Vec::new());
        assert_eq!(request.on_outcome(0, Outcome::Held(incarnation(1))), waiting);
        assert_eq!(request.on_outcome(1, Outcome::Held(incarnation(1))), waiting);
        assert_eq!(request.on_outcome(2, Outcome::Held(incarnation(1))), ACCEPTED);
    }

    #[test]
    fn request_without_spans_is_accepted() {
        let placement = placement(&[("a", 1)]);
        let (_, step) = OpenRequest::start("a".into(), Vec::new(), 1, placement, BTreeSet::new());
        assert_eq!(step, ACCEPTED);
    }

    #[test]
    fn alone_in_the_view_one_copy_is_enough_and_said() {
        let placement = placement(&[("a", 1)]);
        let (mut request, sends) = start("a", &placement, &[Slot(1)]);
        assert_eq!(sends.len(), 1);
        let single = Step::Answer(Answer::Accepted(Copies::Single));
        assert_eq!(request.on_outcome(0, Outcome::Held(incarnation(1))), single);
    }

    #[test]
    fn silent_holder_is_routed_around_and_the_others_are_told() {
        let placement = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let (mut request, sends) = start("c", &placement, &[slot(&placement, "a", "b")]);
        let (to_a, to_b) = (batch_to(&sends, "a").batch, batch_to(&sends, "b").batch);
        request.on_outcome(to_b, Outcome::Held(incarnation(1)));
        let sends = sent(request.on_outcome(to_a, Outcome::Silent));
        let (again, instead) = (batch_to(&sends, "b"), batch_to(&sends, "c"));
        assert_eq!((again.mark, again.content), (Mark::Marked, Content::Names));
        assert_eq!((instead.mark, instead.content), (Mark::Marked, Content::Bytes));
        request.on_outcome(instead.batch, Outcome::Held(incarnation(1)));
        assert_eq!(request.on_outcome(again.batch, Outcome::Held(incarnation(1))), ACCEPTED);
    }

    #[test]
    fn with_too_few_answering_nodes_the_client_is_pushed_back() {
        let placement = placement(&[("a", 1), ("b", 1)]);
        let (mut request, sends) = start("a", &placement, &[slot(&placement, "a", "b")]);
        let to_b = batch_to(&sends, "b").batch;
        let step = request.on_outcome(to_b, Outcome::Silent);
        assert_eq!(step, Step::Answer(Answer::TooFew));
    }

    #[test]
    fn full_holder_pushes_the_client_back() {
        let placement = placement(&[("a", 1), ("b", 1)]);
        let (mut request, _) = start("a", &placement, &[Slot(1)]);
        assert_eq!(request.on_outcome(0, Outcome::Full), Step::Answer(Answer::Full));
    }

    #[test]
    fn acknowledgement_of_a_former_incarnation_is_void() {
        let placement1 = placement(&[("a", 1), ("b", 1)]);
        let slot = slot(&placement1, "a", "b");
        let (mut request, sends) = start("a", &placement1, &[slot]);
        let (to_a, to_b) = (batch_to(&sends, "a").batch, batch_to(&sends, "b").batch);
        request.on_outcome(to_b, Outcome::Held(incarnation(1)));
        let sends = sent(request.on_view(placement(&[("a", 1), ("b", 2)])));
        let again = batch_to(&sends, "b");
        assert_eq!((again.content, sends.len()), (Content::Bytes, 1));
        request.on_outcome(to_a, Outcome::Held(incarnation(1)));
        assert_eq!(request.on_outcome(again.batch, Outcome::Held(incarnation(2))), ACCEPTED);
    }

    #[test]
    fn acknowledgement_of_an_incarnation_that_the_view_lacks_is_asked_for_in_its_view() {
        let placement1 = placement(&[("a", 1), ("b", 1)]);
        let (mut request, sends) = start("a", &placement1, &[slot(&placement1, "a", "b")]);
        let (to_a, to_b) = (batch_to(&sends, "a").batch, batch_to(&sends, "b").batch);
        request.on_outcome(to_a, Outcome::Held(incarnation(1)));
        let step = request.on_outcome(to_b, Outcome::Held(incarnation(2)));
        assert_eq!(step, Step::Send(Vec::new()));
        let sends = sent(request.on_view(placement(&[("a", 1), ("b", 2)])));
        let again = batch_to(&sends, "b").batch;
        assert_eq!(request.on_outcome(again, Outcome::Held(incarnation(2))), ACCEPTED);
    }

    #[test]
    fn stand_in_that_becomes_a_holder_has_to_acknowledge_again() {
        let three = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let (mut request, sends) = start("c", &three, &[slot(&three, "a", "b")]);
        let sends = sent(request.on_outcome(batch_to(&sends, "a").batch, Outcome::Silent));
        let (to_b, to_c) = (batch_to(&sends, "b").batch, batch_to(&sends, "c").batch);
        request.on_outcome(to_c, Outcome::Held(incarnation(1)));
        let sends = sent(request.on_view(placement(&[("b", 1), ("c", 1)])));
        let again = batch_to(&sends, "c");
        assert_eq!((again.content, sends.len()), (Content::Bytes, 1));
        assert_eq!(request.on_outcome(to_b, Outcome::Held(incarnation(1))), Step::Send(Vec::new()));
        assert_eq!(request.on_outcome(again.batch, Outcome::Held(incarnation(1))), ACCEPTED);
    }

    #[test]
    fn what_a_holder_acknowledged_is_void_when_it_is_a_holder_again() {
        let two = placement(&[("a", 1), ("b", 1)]);
        let three = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let (mut request, sends) = start("a", &two, &[slot(&three, "c", "a")]);
        let (to_a, to_b) = (batch_to(&sends, "a").batch, batch_to(&sends, "b").batch);
        request.on_outcome(to_a, Outcome::Held(incarnation(1)));
        let to_c = batch_to(&sent(request.on_view(three)), "c").batch;
        let sends = sent(request.on_view(two));
        assert_eq!(sends.len(), 1, "only b was none in between");
        let again = batch_to(&sends, "b").batch;
        for late in [to_b, to_c] {
            let step = request.on_outcome(late, Outcome::Held(incarnation(1)));
            assert_eq!(step, Step::Send(Vec::new()));
        }
        assert_eq!(request.on_outcome(again, Outcome::Held(incarnation(1))), ACCEPTED);
    }

    #[test]
    fn targets_are_those_of_the_present_view() {
        let three = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let slot = slot(&three, "c", "b");
        let (mut request, sends) = start("a", &placement(&[("a", 1), ("b", 1)]), &[slot]);
        for send in &sends {
            if send.target.as_str() == "b" {
                request.on_outcome(send.batch, Outcome::Held(incarnation(1)));
            }
        }
        let sends = sent(request.on_view(three));
        assert_eq!(sends.len(), 1);
        let to_c = batch_to(&sends, "c").batch;
        assert_eq!(request.on_outcome(to_c, Outcome::Held(incarnation(1))), ACCEPTED);
    }

    #[test]
    fn bytes_that_are_wanted_after_all_are_sent() {
        let placement = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let (mut request, sends) = start("c", &placement, &[slot(&placement, "a", "b")]);
        let (to_a, to_b) = (batch_to(&sends, "a").batch, batch_to(&sends, "b").batch);
        request.on_outcome(to_b, Outcome::Held(incarnation(1)));
        let sends = sent(request.on_outcome(to_a, Outcome::Silent));
        let again = batch_to(&sends, "b").batch;
        let sends = sent(request.on_outcome(again, Outcome::Wanted));
        let bytes = batch_to(&sends, "b");
        assert_eq!((bytes.mark, bytes.content), (Mark::Marked, Content::Bytes));
    }

    #[test]
    fn peers_known_as_silent_are_never_tried() {
        let placement = placement(&[("a", 1), ("b", 1), ("c", 1)]);
        let avoided = BTreeSet::from(["a".into()]);
        let slots = vec![slot(&placement, "a", "b")];
        let (_, step) = OpenRequest::start("c".into(), slots, 1, placement, avoided);
        let sends = sent(step);
        assert!(sends.iter().all(|send| send.target.as_str() != "a"));
        assert!(sends.iter().all(|send| send.mark == Mark::Marked));
    }
}
