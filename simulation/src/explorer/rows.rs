//! What happens when: a schedule for each row of that table in PROTOCOL.md, by its name.
//!
//! A schedule sees on its way what the row says, breaks no promise, and ends with as many exports
//! as the row allows.

use super::directed::{EXPORTED, REPLACED, RESTARTED, STORED, THREE};
use super::message::Kind;
use super::schedule::{Schedule, Sight, Step};
use super::setting::Verdicts;
use super::world::{Action, SinkSays};
use Kind::{Answer, Done, Hold, Reply};
use Sight::{Accepted, Exports, Gone, Holds, Placed, Sending, Settled, Unplaced, Unsettled};
use Step::{Deliver, Do, Live, Lose, Pass, Refuse, See, Sink, Talk, Timers};

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What happens; its name is the row's.
    pub schedule: Schedule,
    /// Attempts that the sink has at the end.
    pub exports: u8,
}

const fn row(exports: u8, schedule: Schedule) -> Row {
    Row { schedule, exports }
}

const FOUR: Schedule = Schedule { nodes: 4, started: 4, ..THREE };

/// Nodes 0 and 1 are the holders until node 2 joins: then 2 and 0 are.
const JOIN: Schedule = Schedule { started: 2, order: [2, 0, 1, 3], ..THREE };

/// Node 2 starts and is active, as node 2 alone knows.
const JOINED: &[Step] = &[
    Do(Action::Start(2)),
    Do(Action::Gossip(2, 0)),
    Do(Action::Gossip(2, 1)),
    Do(Action::Activate(2)),
];

/// A request at node 1, which is a holder as node 0 is.
const STORED_BY_PAIR: &[Step] = &[
    Do(Action::Submit(1)),
    Deliver(Hold, 1, 0),
    Deliver(Reply, 0, 1),
    See(Accepted(1)),
    See(Holds(0, 1)),
    See(Holds(1, 1)),
];

/// All rows.
pub const ROWS: &[Row] = &[
    row(
        1,
        Schedule {
            name: "Only the acknowledgement of a stored batch was lost",
            steps: &[&[
                Do(Action::Submit(2)),
                Deliver(Hold, 2, 0),
                Lose(Reply, 0, 2),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                Do(Action::Silent(0, 0)),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                See(Accepted(1)),
                See(Holds(0, 1)),
                See(Holds(1, 1)),
                See(Holds(2, 1)),
                See(Unplaced(1)),
                See(Unplaced(2)),
                Talk(&[0, 1, 2]),
                See(Holds(2, 0)),
                See(Placed(1)),
            ]],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "A holder is slow for seconds",
            work: &[1, 2],
            steps: &[&[
                Do(Action::Submit(2)),
                Do(Action::Silent(0, 0)),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                See(Accepted(1)),
                Do(Action::Submit(2)),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                See(Accepted(3)),
                See(Holds(0, 0)),
                Talk(&[0, 1, 2]),
                See(Holds(0, 3)),
                See(Holds(2, 0)),
            ]],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "The re-routed copy's node dies next",
            steps: &[&[
                Do(Action::Submit(2)),
                Lose(Hold, 2, 0),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                Do(Action::Silent(0, 0)),
                Deliver(Hold, 2, 1),
                Deliver(Reply, 1, 2),
                See(Accepted(1)),
                Do(Action::Crash(2)),
                See(Unplaced(1)),
                Talk(&[0, 1]),
                See(Holds(0, 1)),
            ]],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "Client retries, other entry node, acknowledged or not",
            steps: &[
                STORED,
                &[
                    Do(Action::Retry(0, 1)),
                    Deliver(Hold, 1, 0),
                    Deliver(Reply, 0, 1),
                    See(Holds(0, 1)),
                    See(Holds(1, 1)),
                ],
                EXPORTED,
                &[Do(Action::Retry(0, 0)), Talk(&[0, 1, 2]), See(Holds(0, 0)), See(Holds(1, 0))],
            ],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "Owner crashes before deciding",
            steps: &[
                STORED,
                &[
                    Do(Action::Crash(0)),
                    Do(Action::Suspect(1, 0)),
                    Do(Action::Suspect(2, 0)),
                    See(Unsettled(1)),
                    Talk(&[1, 2]),
                    See(Holds(2, 1)),
                    See(Settled(1)),
                    See(Exports(0)),
                ],
            ],
            ..THREE
        },
    ),
    row(
        2,
        Schedule {
            name: "Owner crashes between sink acknowledgement and Done",
            steps: &[STORED, &[Timers(0), Sink(0, SinkSays::Acknowledged), Do(Action::Crash(0))]],
            ..THREE
        },
    ),
    row(
        2,
        Schedule {
            name: "Done lost, or the replica has a span the owner lacks",
            work: &[1, 2],
            steps: &[
                STORED,
                &[Do(Action::Submit(2)), Lose(Hold, 2, 0), Deliver(Hold, 2, 1)],
                &[Do(Action::Expire(0)), See(Accepted(1)), See(Holds(1, 3))],
                EXPORTED,
                &[Deliver(Done, 0, 1), See(Holds(1, 3)), Timers(1), Talk(&[0, 1])],
                &[See(Holds(1, 2)), See(Holds(0, 2)), See(Sight::Done(0, 1))],
                &[Sink(0, SinkSays::Acknowledged), Deliver(Answer, 0, 0)],
                &[Lose(Done, 0, 1), See(Holds(1, 2))],
            ],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "Restart with the same id and nothing held, before anyone noticed",
            work: &[1, 2],
            steps: &[
                STORED,
                &[Do(Action::Submit(2)), Deliver(Hold, 2, 0), Deliver(Reply, 0, 2)],
                RESTARTED,
                &[Deliver(Hold, 2, 1), Do(Action::Gossip(2, 0)), Deliver(Reply, 1, 2)],
                &[See(Accepted(1)), See(Holds(0, 0)), Do(Action::Gossip(1, 0))],
                &[See(Unplaced(1)), Talk(&[0, 1, 2]), See(Holds(0, 3)), See(Accepted(3))],
            ],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "Owner pauses 3 s, is replaced, wakes with its old view",
            steps: &[
                STORED,
                REPLACED,
                &[See(Exports(1)), Do(Action::Wake(0)), See(Unsettled(0))],
                &[Do(Action::Timer(0)), Do(Action::Timer(0))],
                &[See(Holds(0, 1)), See(Exports(1)), Talk(&[0, 1, 2]), See(Sight::Done(0, 1))],
            ],
            ..THREE
        },
    ),
    row(
        2,
        Schedule {
            name: "Partition; both sides have an owner",
            work: &[1, 2, 4],
            verdicts: Verdicts::ByNode,
            steps: &[STORED, SPLIT, BOTH_SIDES_GO_ON],
            ..FOUR
        },
    ),
    row(
        1,
        Schedule {
            name: "Due during a hand-over",
            steps: &[
                STORED_BY_PAIR,
                JOINED,
                &[Do(Action::Gossip(0, 2)), Do(Action::Gossip(1, 2)), Timers(0)],
                &[Deliver(Hold, 0, 2), Deliver(Reply, 2, 0), Deliver(Hold, 0, 2)],
                &[Do(Action::Timer(2)), Do(Action::Timer(2)), Do(Action::Timer(2))],
                &[See(Holds(2, 1)), See(Unsettled(0)), See(Unsettled(1)), See(Exports(0))],
                &[Pass(&[0, 1, 2], 1), See(Holds(1, 0)), See(Sending(2))],
                &[See(Settled(0)), See(Settled(1)), See(Settled(2)), See(Exports(0))],
            ],
            ..JOIN
        },
    ),
    row(
        1,
        Schedule {
            name: "Export in flight while ownership moves",
            steps: &[
                STORED_BY_PAIR,
                &[Timers(0), See(Sending(0))],
                JOINED,
                &[Talk(&[0, 1, 2]), See(Unplaced(0)), See(Unsettled(0)), See(Holds(2, 1))],
                &[Do(Action::Timer(2)), Do(Action::Timer(2)), Do(Action::Timer(2))],
                &[Sink(0, SinkSays::Acknowledged), Pass(&[0, 1, 2], 1)],
                &[See(Sight::Done(2, 1)), See(Settled(0)), See(Settled(2))],
            ],
            ..JOIN
        },
    ),
    row(
        1,
        Schedule {
            name: "Three view changes in a second",
            started: 3,
            steps: &[STORED, THREE_CHANGES],
            ..FOUR
        },
    ),
    row(
        1,
        Schedule {
            name: "Owner and replica name different owners",
            steps: &[
                STORED_BY_PAIR,
                JOINED,
                &[Do(Action::Gossip(1, 2)), Do(Action::Gossip(0, 1))],
                &[Do(Action::Timer(0)), Do(Action::Timer(0)), Do(Action::Timer(0))],
                &[See(Exports(0)), See(Holds(0, 1)), See(Holds(1, 1))],
                &[Talk(&[1, 2]), See(Holds(0, 1)), See(Holds(1, 1)), See(Exports(0))],
            ],
            ..JOIN
        },
    ),
    row(
        1,
        Schedule {
            name: "Holder for a slot that is not its own",
            steps: &[
                JOINED,
                &[Do(Action::Gossip(1, 2)), Do(Action::Submit(0))],
                &[Deliver(Hold, 0, 1), See(Unplaced(1)), Deliver(Reply, 1, 0)],
                &[See(Accepted(1)), Talk(&[0, 1, 2]), See(Holds(1, 0))],
                &[See(Holds(0, 1)), See(Holds(2, 1))],
            ],
            ..JOIN
        },
    ),
    row(
        1,
        Schedule {
            name: "Node drains while a holder crashes",
            steps: &[
                STORED,
                &[Do(Action::Leave(1)), Do(Action::Gossip(0, 1)), Do(Action::Gossip(2, 1))],
                &[Do(Action::Gossip(3, 1)), Timers(1), Deliver(Hold, 1, 0), Deliver(Reply, 0, 1)],
                &[See(Holds(1, 1)), Do(Action::Crash(0)), Do(Action::Suspect(1, 0))],
                &[See(Holds(1, 1)), See(Unplaced(1)), Do(Action::Suspect(2, 0))],
                &[Talk(&[1, 2]), See(Holds(2, 1)), See(Holds(1, 1))],
                &[
                    Do(Action::Suspect(3, 0)),
                    Pass(&[1, 2, 3], 1),
                    See(Holds(3, 1)),
                    See(Holds(1, 0)),
                ],
                &[Live(&[1]), See(Gone(1))],
            ],
            ..FOUR
        },
    ),
    row(
        1,
        Schedule {
            name: "All nodes drain at once",
            steps: &[
                STORED,
                &[Do(Action::Leave(0)), Do(Action::Leave(1)), Do(Action::Leave(2))],
                &[Live(&[0, 1, 2]), See(Gone(0)), See(Gone(1)), See(Gone(2)), See(Exports(1))],
            ],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "Entry node dies before answering",
            steps: &[&[
                Do(Action::Submit(2)),
                Deliver(Hold, 2, 0),
                Do(Action::Crash(2)),
                Lose(Hold, 2, 1),
                See(Accepted(0)),
                See(Holds(0, 1)),
                Do(Action::Retry(0, 1)),
                Deliver(Hold, 1, 0),
                Deliver(Reply, 0, 1),
                See(Accepted(1)),
            ]],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "Hand-over target is out of memory",
            work: &[1, 2],
            steps: &[
                STORED,
                &[Do(Action::Leave(1)), Talk(&[0, 1]), Do(Action::Gossip(2, 1)), Timers(1)],
                &[Deliver(Hold, 1, 2), Deliver(Reply, 2, 1), Refuse(1, 2), Deliver(Reply, 2, 1)],
                &[See(Holds(1, 1)), See(Unplaced(1)), See(Holds(2, 0))],
                &[Do(Action::Submit(0)), Refuse(0, 2), Deliver(Reply, 2, 0), See(Accepted(1))],
                &[Pass(&[0, 1, 2], 1), See(Holds(2, 3)), See(Holds(1, 0))],
            ],
            ..THREE
        },
    ),
    row(
        1,
        Schedule {
            name: "One pair cannot talk, gossip sees both alive",
            work: &[1, 2],
            steps: &[
                &[Do(Action::Submit(2)), Lose(Hold, 2, 0), Deliver(Hold, 2, 1)],
                &[Deliver(Reply, 1, 2), Do(Action::Silent(0, 0)), Deliver(Hold, 2, 1)],
                &[Deliver(Reply, 1, 2), See(Accepted(1)), Timers(2), Lose(Hold, 2, 0)],
                &[Timers(2), Lose(Hold, 2, 0), See(Holds(2, 1)), See(Unplaced(2))],
                &[Do(Action::Submit(2)), Talk(&[1, 2]), See(Accepted(3))],
                &[See(Holds(2, 3)), See(Unplaced(2)), Pass(&[0, 1], 1)],
                &[See(Holds(0, 3)), See(Unplaced(2)), See(Holds(2, 3))],
            ],
            ..THREE
        },
    ),
];

/// 0 and 2 lose sight of 1 and 3.
const SPLIT: &[Step] = &[
    Do(Action::Suspect(0, 1)),
    Do(Action::Suspect(0, 3)),
    Do(Action::Suspect(2, 1)),
    Do(Action::Suspect(2, 3)),
    Do(Action::Suspect(1, 0)),
    Do(Action::Suspect(1, 2)),
    Do(Action::Suspect(3, 0)),
    Do(Action::Suspect(3, 2)),
];

/// Each side accepts a span of its own and decides; then they meet.
const BOTH_SIDES_GO_ON: &[Step] = &[
    Do(Action::Submit(2)),
    Talk(&[0, 2]),
    See(Accepted(3)),
    See(Holds(2, 3)),
    Live(&[0, 2]),
    See(Exports(1)),
    See(Sight::Done(0, 3)),
    Live(&[1, 3]),
    See(Exports(1)),
    See(Sight::Done(1, 1)),
    Do(Action::Submit(3)),
    Deliver(Hold, 3, 1),
    Deliver(Reply, 1, 3),
    See(Accepted(7)),
    See(Holds(1, 4)),
    See(Holds(3, 4)),
    Pass(&[0, 1, 2, 3], 1),
    See(Sight::Done(1, 3)),
    See(Holds(0, 4)),
    See(Holds(1, 4)),
];

/// Node 0 leaves, node 3 joins, node 2 leaves; what was confirmed in the first view counts in none
/// of the others.
const THREE_CHANGES: &[Step] = &[
    Do(Action::Leave(0)),
    Do(Action::Gossip(1, 0)),
    Timers(0),
    Deliver(Hold, 0, 1),
    Deliver(Reply, 1, 0),
    Do(Action::Start(3)),
    Do(Action::Gossip(3, 0)),
    Do(Action::Gossip(3, 1)),
    Do(Action::Gossip(3, 2)),
    Do(Action::Activate(3)),
    Do(Action::Gossip(0, 3)),
    See(Holds(0, 1)),
    See(Unplaced(0)),
    Do(Action::Leave(2)),
    Do(Action::Gossip(0, 2)),
    See(Holds(0, 1)),
    See(Unplaced(0)),
    Pass(&[0, 1, 2, 3], 1),
    See(Holds(0, 0)),
    See(Holds(1, 1)),
    See(Holds(3, 1)),
];
