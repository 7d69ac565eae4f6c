//! The directed schedules: for each bug and each excuse that chance meets rarely, the way to it.
//!
//! Without the bug, or with the excuse, a schedule breaks no promise; else the named one. All begin
//! with the same few parts: three nodes, of which 0 and 1 are the holders of one trace, and a
//! request at node 2.

use super::bugs::Bug;
use super::check::LICENCES;
use super::message::Kind;
use super::schedule::{Schedule, Sight, Step};
use super::setting::Verdicts;
use super::witness::{Facts, Invariant};
use super::world::{Action, SinkSays};
use Kind::{Answer, Done, Hold, Reply};
use Step::{Deliver, Do, Live, Lose, Pass, See, Sink, Talk, Timers};

/// A schedule that some bugs do not survive.
#[derive(Clone, Copy, Debug)]
pub struct Directed {
    /// The bugs.
    pub bugs: &'static [Bug],
    /// The promise that each of them breaks.
    pub broken: Invariant,
    /// What happens.
    pub schedule: Schedule,
}

/// The schedule that catches a bug, if one was written.
pub fn directed(bug: Bug) -> Option<&'static Directed> {
    DIRECTED.iter().find(|directed| directed.bugs.contains(&bug))
}

/// Three nodes; the holders of the trace are 0 and 1, then 2.
pub(super) const THREE: Schedule = Schedule {
    name: "",
    nodes: 3,
    started: 3,
    order: [0, 1, 2, 3],
    work: &[1],
    verdicts: Verdicts::Keep,
    steps: &[],
};

/// A request at node 2, stored by both holders and acknowledged.
pub(super) const STORED: &[Step] = &[
    Do(Action::Submit(2)),
    Deliver(Hold, 2, 0),
    Deliver(Hold, 2, 1),
    Deliver(Reply, 0, 2),
    Deliver(Reply, 1, 2),
];

/// Node 0, the owner, exports, and the sink acknowledges.
pub(super) const EXPORTED: &[Step] =
    &[Timers(0), Sink(0, SinkSays::Acknowledged), Deliver(Answer, 0, 0)];

/// Node 0 crashes, starts and is active again, as node 0 alone knows.
pub(super) const RESTARTED: &[Step] = &[
    Do(Action::Crash(0)),
    Do(Action::Start(0)),
    Do(Action::Gossip(0, 1)),
    Do(Action::Gossip(0, 2)),
    Do(Action::Activate(0)),
];

/// All of them.
pub const DIRECTED: &[Directed] = &[
    Directed {
        bugs: &[Bug::KeepAcknowledgement, Bug::TargetsOfStart],
        broken: Invariant::Acknowledged,
        schedule: Schedule {
            name: "an owner that restarts has to acknowledge again",
            steps: &[
                &[Do(Action::Submit(2)), Deliver(Hold, 2, 0), Deliver(Reply, 0, 2)],
                RESTARTED,
                &[
                    Do(Action::Gossip(1, 0)),
                    Do(Action::Gossip(2, 0)),
                    Deliver(Hold, 2, 1),
                    Deliver(Reply, 1, 2),
                ],
            ],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::KeepOfStandIn],
        broken: Invariant::Acknowledged,
        schedule: Schedule {
            name: "a stand-in that becomes a holder has to acknowledge again",
            steps: &[STOOD_IN, &[Do(Action::Crash(0))], WITHOUT_OWNER],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::NoDone],
        broken: Invariant::ExportedOnce,
        schedule: Schedule {
            name: "a replica takes over what was not exported and nothing else",
            steps: &[STORED, EXPORTED, &[Do(Action::Crash(0))]],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::DoneWithoutSum],
        broken: Invariant::NothingLost,
        schedule: Schedule {
            name: "a Done does not cover what came after it",
            work: &[1, 2],
            steps: &[STORED, EXPORTED, STORED, &[Deliver(Done, 0, 1), Do(Action::Crash(0))]],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::NoAsking],
        broken: Invariant::Rest,
        schedule: Schedule {
            name: "a lost Done is asked for",
            steps: &[STORED, EXPORTED, &[Lose(Done, 0, 1)]],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::TrustSilentSink],
        broken: Invariant::NothingLost,
        schedule: Schedule {
            name: "a sink that says nothing is tried again",
            steps: &[
                STORED,
                &[Timers(0), Sink(0, SinkSays::LostUnanswered), Deliver(Answer, 0, 0)],
            ],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::IgnoreWanted, Bug::ForgetWhileOffering],
        broken: Invariant::GivenUp,
        schedule: Schedule {
            name: "a leaving node keeps what a holder lacks",
            steps: &[&[
                Do(Action::Submit(2)),
                Deliver(Hold, 2, 1),
                Do(Action::Leave(1)),
                Do(Action::Gossip(0, 1)),
                Do(Action::Gossip(2, 1)),
                Timers(1),
                Deliver(Hold, 1, 0),
                Deliver(Hold, 1, 2),
                Deliver(Reply, 0, 1),
                Deliver(Reply, 2, 1),
            ]],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::ConfirmStale],
        broken: Invariant::GivenUp,
        schedule: Schedule {
            name: "a leaving node keeps what came after it offered",
            work: &[1, 2],
            steps: &[STORED, OFFERED_BEFORE_MORE_CAME],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::ConfirmByFormer],
        broken: Invariant::GivenUp,
        schedule: Schedule {
            name: "a leaving node believes the present owner only",
            steps: &[STORED, CONFIRMED_BY_FORMER],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::ConfirmOtherView],
        broken: Invariant::NothingLost,
        schedule: Schedule {
            name: "nodes that leave do not all rely on each other",
            steps: &[STORED, ALL_LEAVE_UNHEARD],
            ..THREE
        },
    },
    Directed {
        bugs: &[Bug::NoEpoch],
        broken: Invariant::ExportedOnce,
        schedule: Schedule {
            name: "an owner that stood still exports nothing by its old view",
            steps: &[
                STORED,
                REPLACED,
                &[See(Sight::Exports(1)), Do(Action::Wake(0)), Do(Action::Timer(0))],
            ],
            ..THREE
        },
    },
];

/// Node 2 stands in for node 0, which it believes to be silent, and gives up what it has when both
/// holders have it. Its client still waits for node 1.
const STOOD_IN: &[Step] = &[
    Do(Action::Submit(2)),
    Deliver(Hold, 2, 0),
    Do(Action::Silent(0, 0)),
    See(Sight::Holds(2, 1)),
    Timers(2),
    Deliver(Hold, 2, 1),
    Deliver(Reply, 1, 2),
    Deliver(Hold, 2, 1),
    Deliver(Reply, 1, 2),
    Deliver(Hold, 2, 0),
    Deliver(Reply, 0, 2),
    See(Sight::Holds(2, 0)),
    See(Sight::Accepted(0)),
];

const WITHOUT_OWNER: &[Step] =
    &[Do(Action::Suspect(1, 0)), Do(Action::Suspect(2, 0)), See(Sight::Accepted(1))];

/// Node 1 leaves; both of the others have all of it, and then it gets more.
const OFFERED_BEFORE_MORE_CAME: &[Step] = &[
    Do(Action::Submit(2)),
    Do(Action::Leave(1)),
    Do(Action::Gossip(0, 1)),
    Do(Action::Gossip(2, 1)),
    Timers(1),
    Deliver(Hold, 1, 2),
    Deliver(Reply, 2, 1),
    Deliver(Hold, 1, 2),
    Deliver(Hold, 1, 0),
    Deliver(Hold, 2, 1),
    Deliver(Reply, 0, 1),
    Deliver(Reply, 2, 1),
];

/// Node 1 leaves; node 0 confirms that it has all, and restarts before that is heard.
const CONFIRMED_BY_FORMER: &[Step] = &[
    Do(Action::Leave(1)),
    Do(Action::Gossip(0, 1)),
    Do(Action::Gossip(2, 1)),
    Timers(1),
    Deliver(Hold, 1, 0),
    Do(Action::Crash(0)),
    Do(Action::Start(0)),
    Do(Action::Gossip(0, 1)),
    Do(Action::Gossip(0, 2)),
    Do(Action::Activate(0)),
    Do(Action::Gossip(1, 0)),
    Do(Action::Gossip(2, 0)),
    Deliver(Reply, 0, 1),
    Deliver(Hold, 1, 2),
    Deliver(Reply, 2, 1),
    Deliver(Hold, 1, 2),
    Deliver(Reply, 2, 1),
];

/// All leave and none hears of it, so that each believes that the two others stay. Each has the
/// trace, and says so to the others.
const ALL_LEAVE_UNHEARD: &[Step] = &[
    Do(Action::Leave(0)),
    Do(Action::Leave(1)),
    Do(Action::Leave(2)),
    Timers(0),
    Deliver(Hold, 0, 2),
    Deliver(Reply, 2, 0),
    Deliver(Hold, 0, 2),
    Timers(1),
    Timers(2),
    Deliver(Hold, 0, 1),
    Deliver(Hold, 1, 0),
    Deliver(Hold, 1, 2),
    Deliver(Hold, 2, 0),
    Deliver(Hold, 2, 1),
    Deliver(Reply, 1, 0),
    Deliver(Reply, 2, 0),
    Deliver(Reply, 0, 1),
    Deliver(Reply, 2, 1),
    Deliver(Reply, 0, 2),
    Deliver(Reply, 1, 2),
];

/// Node 0 stands still until it is no member any more, and its successor has done all it has to.
pub(super) const REPLACED: &[Step] = &[
    Do(Action::Pause(0)),
    Do(Action::Suspect(1, 0)),
    Do(Action::Suspect(2, 0)),
    Talk(&[1, 2]),
    Live(&[1, 2]),
];

/// A schedule that needs an excuse.
#[derive(Clone, Copy, Debug)]
pub struct Excused {
    /// What it breaks.
    pub invariant: Invariant,
    /// What excuses that, all together.
    pub facts: Facts,
    /// What happens.
    pub schedule: Schedule,
}

impl Excused {
    /// The excuse's place in [`LICENCES`].
    pub fn licence(&self) -> Option<usize> {
        LICENCES
            .iter()
            .position(|licence| (licence.invariant, licence.facts) == (self.invariant, self.facts))
    }
}

/// The schedule that needs an excuse, if one was written.
pub fn excused(licence: usize) -> Option<&'static Excused> {
    EXCUSED.iter().find(|excused| excused.licence() == Some(licence))
}

const DONE_LOST: &[Step] = &[Lose(Done, 0, 1)];
const CRASHED: &[Step] = &[Do(Action::Crash(0))];

/// Node 1 has more than the Done covers that it gets.
const DONE_UNLIKE: &[Step] = &[Deliver(Done, 0, 1)];

/// Node 1 hears that all is done before it has anything.
const DONE_FIRST: &[Step] = &[
    Do(Action::Submit(2)),
    Deliver(Hold, 2, 0),
    Deliver(Reply, 0, 2),
    Timers(0),
    Sink(0, SinkSays::Acknowledged),
    Deliver(Answer, 0, 0),
    Deliver(Done, 0, 1),
    Deliver(Hold, 2, 1),
    Deliver(Reply, 1, 2),
];

/// Nodes decide differently.
const DISAGREE: Schedule = Schedule { verdicts: Verdicts::ByNode, ..THREE };

const fn excuse(invariant: Invariant, facts: [Facts; 2], schedule: Schedule) -> Excused {
    Excused { invariant, facts: Facts(facts[0].0 | facts[1].0), schedule }
}

/// Node 2 joins and becomes the owner, as nodes 0 and 2 know; it gets the trace from node 0, waits
/// for node 1 in vain, and decides. Node 1, the owner before, decides, too.
const DECIDED_UNCALM: &[Step] = &[
    Do(Action::Submit(0)),
    Deliver(Hold, 0, 1),
    Deliver(Reply, 1, 0),
    Do(Action::Start(2)),
    Do(Action::Gossip(2, 0)),
    Do(Action::Gossip(2, 1)),
    Do(Action::Activate(2)),
    Do(Action::Gossip(0, 2)),
    Pass(&[0, 2], 2),
    See(Sight::Holds(2, 1)),
    Do(Action::Late(2)),
    Do(Action::Timer(1)),
];

/// All that need one.
pub const EXCUSED: &[Excused] = &[
    excuse(
        Invariant::ExportedOnce,
        [Facts::DONE_LOST, Facts::CRASHED],
        Schedule {
            name: "a Done is lost, then the owner",
            steps: &[STORED, EXPORTED, DONE_LOST, CRASHED],
            ..THREE
        },
    ),
    excuse(
        Invariant::ExportedOnce,
        [Facts::DONE_LOST, Facts::STOOD_STILL],
        Schedule {
            name: "a Done is lost, then the owner stands still",
            steps: &[STORED, EXPORTED, DONE_LOST, REPLACED],
            ..THREE
        },
    ),
    excuse(
        Invariant::ExportedOnce,
        [Facts::DONE_UNLIKE, Facts::STOOD_STILL],
        Schedule {
            name: "a Done does not cover all, then the owner stands still",
            work: &[1, 2],
            steps: &[STORED, EXPORTED, STORED, DONE_UNLIKE, REPLACED],
            ..THREE
        },
    ),
    excuse(
        Invariant::OneVerdict,
        [Facts::DONE_LOST, Facts::CRASHED],
        Schedule {
            name: "a verdict is lost with its owner",
            steps: &[STORED, EXPORTED, DONE_LOST, CRASHED],
            ..DISAGREE
        },
    ),
    excuse(
        Invariant::OneVerdict,
        [Facts::DONE_UNLIKE, Facts::CRASHED],
        Schedule {
            name: "a verdict comes before its spans, then the owner crashes",
            steps: &[DONE_FIRST, CRASHED],
            ..DISAGREE
        },
    ),
    excuse(
        Invariant::OneVerdict,
        [Facts::DONE_LOST, Facts::STOOD_STILL],
        Schedule {
            name: "a verdict is lost, then its owner stands still",
            steps: &[STORED, EXPORTED, DONE_LOST, REPLACED],
            ..DISAGREE
        },
    ),
    excuse(
        Invariant::OneVerdict,
        [Facts::DONE_UNLIKE, Facts::STOOD_STILL],
        Schedule {
            name: "a verdict comes before its spans, then the owner stands still",
            steps: &[DONE_FIRST, REPLACED],
            ..DISAGREE
        },
    ),
    excuse(
        Invariant::OneVerdict,
        [Facts::UNCALM, Facts::UNCALM],
        Schedule {
            name: "an owner decides that waited in vain for its predecessor, which decides, too",
            started: 2,
            order: [2, 1, 0, 3],
            steps: &[DECIDED_UNCALM],
            ..DISAGREE
        },
    ),
];
