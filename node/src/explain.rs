//! Where one trace is, and why: asked of every member, for people.
//!
//! Who should hold it follows from the present view of the node that was asked; who does hold it,
//! each member says for itself, because stand-ins and former holders may hold it too. The
//! invariant: a member that did not answer is in the document, with the reason, so what nobody
//! mentions is never taken for absent. All members are asked at once and each has [`ANSWER_MAX`];
//! nothing is changed. The console writes the document and `tracemesh explain` reads it.

use crate::assemble::Shards;
use crate::frame::{self, Told};
use crate::mesh::Peers;
use crate::spans::TraceId;
use crate::status::View;
use futures_util::future::{join, join_all};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tracemesh_membership::{MemberIndex, NodeId, Placement, Slot};

/// How long a member may take to answer: a shard is never busy for so long, and people wait.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What the mesh knows of one trace, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// Whether any node that answered holds or remembers it.
    pub known: bool,
    /// What was decided about it, by any node that answered; keep beats sampled out.
    pub verdict: Verdict,
    /// The node that was asked; what follows is by its view.
    pub asked: String,
    /// That view.
    pub view: View,
    /// The share of all traces that this one belongs to.
    pub slot: u16,
    /// Who decides about it; none in an empty view.
    pub owner: Option<String>,
    /// Who keeps the same; none in a view of one.
    pub replica: Option<String>,
    /// Every member: those of the view by score, the highest first, then the others.
    pub nodes: Vec<Node>,
}

/// What was decided about a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing yet.
    None,
    /// Its spans are not exported.
    SampledOut,
    /// Its spans are exported.
    Keep,
}

/// What one member is to the trace, and what it says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// What it should be to the trace.
    pub role: Role,
    /// What it drew for the slot: the highest is the owner. None when it is not in the view.
    pub score: Option<f64>,
    /// Its rack or site: the replica is in another one than the owner, where there is one.
    pub zone: String,
    /// Why it did not answer.
    pub silent: Option<String>,
    /// Hash of its own view, when it answered.
    pub view_hash: Option<String>,
    /// What it holds or remembers; none when it does neither, or did not answer.
    pub trace: Option<Trace>,
}

/// What a member is to a trace, in the view of the node that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Decides and exports.
    Owner,
    /// Keeps the same.
    Replica,
    /// No holder; it may hold something all the same.
    Other,
}

/// What one node has of the trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Spans held, those in an export attempt included.
    pub held: u32,
    /// Of these: in an export attempt.
    pub sending: u32,
    /// Spans known as done.
    pub done: u32,
    /// The verdict that it knows.
    pub verdict: Verdict,
    /// Until it is due, in ms; negative when it was. None when nothing is held.
    pub due_in_ms: Option<i64>,
    /// For how long something of it is held, in ms. None when nothing is.
    pub held_for_ms: Option<u32>,
    /// Another holder may lack something.
    pub unplaced: bool,
    /// How often its spans or its verdict changed.
    pub version: u32,
    /// How often the owner was asked about it since.
    pub asked: u32,
}

impl From<Told> for Trace {
    fn from(told: Told) -> Self {
        Self {
            held: told.held.saturating_add(told.sending),
            sending: told.sending,
            done: told.done,
            verdict: match told.verdict() {
                frame::Verdict::None => Verdict::None,
                frame::Verdict::SampledOut => Verdict::SampledOut,
                frame::Verdict::Keep => Verdict::Keep,
            },
            due_in_ms: told.due_in_ms,
            held_for_ms: told.held_for_ms,
            unplaced: told.unplaced,
            version: told.version,
            asked: told.asked,
        }
    }
}

/// What a member said: the hash of its view and what it knows, or why there is no answer.
type Answer = Result<(u64, Option<Told>), String>;

/// Asks every member about a trace.
pub async fn explain(shards: &Shards, peers: &Peers, trace_id: TraceId) -> Explanation {
    let members = peers.members();
    let ask = async |id: &NodeId| {
        let reply = peers.explain(id, trace_id, ANSWER_MAX).await;
        let answer = reply.map(|reply| (reply.sender.view_hash, reply.told));
        (id.clone(), answer.map_err(|error| error.to_string()))
    };
    let own = async {
        let told = shards.tell(trace_id).await;
        let answer = told.map(|told| (peers.sender().view_hash, told));
        (peers.me().clone(), answer.map_err(|error| error.to_string()))
    };
    let (own, mut answers) = join(own, join_all(members.keys().map(ask))).await;
    answers.push(own);
    compose(trace_id, shards.slot(trace_id), &peers.placement(), peers.me(), answers)
}

fn compose(
    trace_id: TraceId,
    slot: Slot,
    placement: &Placement,
    me: &NodeId,
    answers: Vec<(NodeId, Answer)>,
) -> Explanation {
    let members = placement.view().members();
    let holders = placement.holders(slot);
    let scores = placement.scores(slot);
    let id_of = |member: MemberIndex| members[usize::from(member)].id.to_string();
    let role = |member: MemberIndex| match holders {
        Some(holders) if holders.owner == member => Role::Owner,
        Some(holders) if holders.replica == Some(member) => Role::Replica,
        _ => Role::Other,
    };
    let mut nodes: Vec<(usize, Node)> = answers
        .into_iter()
        .map(|(id, answer)| {
            let place =
                scores.iter().position(|&(member, _)| members[usize::from(member)].id == id);
            let score = place.map(|place| scores[place]);
            let zone = score.map(|(member, _)| members[usize::from(member)].zone.to_string());
            let (silent, view_hash, told) = match answer {
                Ok((view_hash, told)) => (None, Some(format!("{view_hash:016x}")), told),
                Err(why) => (Some(why), None, None),
            };
            let node = Node {
                id: id.to_string(),
                role: score.map_or(Role::Other, |(member, _)| role(member)),
                score: score.map(|(_, score)| score),
                zone: zone.unwrap_or_default(),
                silent,
                view_hash,
                trace: told.map(Trace::from),
            };
            (place.unwrap_or(usize::MAX), node)
        })
        .collect();
    nodes.sort_by(|one, other| (one.0, &one.1.id).cmp(&(other.0, &other.1.id)));
    let nodes: Vec<Node> = nodes.into_iter().map(|(_, node)| node).collect();
    let traces = || nodes.iter().filter_map(|node| node.trace.as_ref());
    Explanation {
        trace_id: trace_id.to_string(),
        known: traces().next().is_some(),
        verdict: traces().map(|trace| trace.verdict).max().unwrap_or(Verdict::None),
        asked: me.to_string(),
        view: View::of(placement),
        slot: slot.0,
        owner: holders.map(|holders| id_of(holders.owner)),
        replica: holders.and_then(|holders| holders.replica).map(id_of),
        nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracemesh_membership::{Incarnation, MemberState, ViewMember, Weight};

    fn placement(ids: &[&str]) -> Placement {
        let member = |id: &&str| ViewMember {
            id: NodeId::from(*id),
            incarnation: Incarnation { generation: 1, epoch: 0 },
            weight: Weight::new(1.0).unwrap(),
            zone: "".into(),
            state: MemberState::Active,
        };
        Placement::new(Arc::new(tracemesh_membership::View::new(ids.iter().map(member))))
    }

    fn told(held: u32, done: u32, verdict: frame::Verdict) -> Told {
        Told { held, sending: 1, done, verdict: verdict.into(), ..Told::default() }
    }

    #[test]
    fn members_are_told_by_score_and_those_outside_of_the_view_last() {
        let (placement, id) = (placement(&["a", "b", "c"]), TraceId([3; 16]));
        let silent = || Err("no answer".to_owned());
        let answers = vec![
            ("joining".into(), Ok((0, Some(told(2, 0, frame::Verdict::None))))),
            ("c".into(), silent()),
            ("b".into(), Ok((7, Some(told(0, 5, frame::Verdict::Keep))))),
            ("a".into(), Ok((placement.view().hash(), None))),
        ];
        let explanation = compose(id, Slot(11), &placement, &"a".into(), answers);
        assert!(explanation.known);
        assert_eq!(explanation.verdict, Verdict::Keep);
        let [first, second, third, last] = explanation.nodes.as_slice() else { panic!("four") };
        assert!(first.score > second.score && second.score > third.score);
        assert_eq!((last.id.as_str(), last.score, last.role), ("joining", None, Role::Other));
        assert_eq!(
            [first.role, second.role, third.role],
            [Role::Owner, Role::Replica, Role::Other]
        );
        assert_eq!(explanation.owner.as_ref(), Some(&first.id));
        assert_eq!(explanation.replica.as_ref(), Some(&second.id));
        let node = |id: &str| explanation.nodes.iter().find(|node| node.id == id).unwrap();
        assert_eq!(node("c").silent.as_deref(), Some("no answer"));
        assert_eq!(node("b").view_hash.as_deref(), Some("0000000000000007"));
        assert_eq!(node("b").trace.as_ref().map(|trace| (trace.held, trace.done)), Some((1, 5)));
        let json = serde_json::to_string(&explanation).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    }

    #[test]
    fn trace_that_nobody_knows_has_an_owner_all_the_same() {
        let placement = placement(&["a"]);
        let answers = vec![("a".into(), Ok((0, None)))];
        let explanation = compose(TraceId([3; 16]), Slot(0), &placement, &"a".into(), answers);
        assert!(!explanation.known);
        assert_eq!((explanation.owner.as_deref(), explanation.replica), (Some("a"), None));
    }
}
