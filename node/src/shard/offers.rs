//! What is unplaced in a shard: to whom it is still to be offered, when, and how much a second
//! (PROTOCOL.md, P2 and P3).
//!
//! A trace has at most two other holders, its *seats*: the owner's and the replica's in the present
//! placement. Each seat of an unplaced trace is confirmed, or waits for an instant, or stands in
//! the queue of its member until that member's allowance lets it go. The invariant: a seat is in
//! exactly one of these places, so nothing here is ever stale. Open traces go first, the most
//! urgent one of them, then what is remembered, the newest first. Bounded by the traces of the
//! shard; all that is under way to one member by a window of at most
//! [`WINDOW_BYTES_MAX`], which halves when an offer is lost and grows when one arrives.

use std::collections::{BTreeMap, BTreeSet};
use tracemesh_membership::MemberIndex;

/// What an offer counts beside its bytes. Most traces are only remembered, all names, and cost time
/// and not bandwidth: it is what some microseconds are worth, by the default of what is granted,
/// so that whoever is given many has a good half of its time for clients.
pub(super) const OFFER_BYTES: usize = 1 << 10;

/// What may be sent to a member before its first grant: names only. A mebibyte a second is less
/// than a thousand traces, and too little to be noticed beside live traffic.
const NAMES_BYTES_PER_SECOND: u64 = 1 << 20;

/// An allowance that was not used is kept for so long, in milliseconds: more at once would be a
/// burst behind which clients wait.
const BURST_MS: u64 = 20;

/// An allowance that is used up rests for so long, in milliseconds: a frame with little in it costs
/// nearly as much as one with much.
const REST_MS: u64 = 5;

/// The most bytes under way from one shard to one member, and one trace. They are copies that no
/// memory budget counts, and clients' batches travel beside them: with eight shards half of what
/// transport lets through to one peer at a time.
const WINDOW_BYTES_MAX: usize = 1 << 20;

/// The least: what the worst path that is worth calling one carries before it is given up.
const WINDOW_BYTES_MIN: usize = 64 << 10;

/// Which of the other holders: the owner is 0, the replica 1.
pub(super) type Seat = usize;

/// In which order traces are offered; the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Rank {
    /// Something is held: by when it is due.
    Open { due_ms: u64 },
    /// Only remembered: by how long ago, in a way.
    Remembered { age_ms: u64 },
}

/// Where a seat stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nobody sits there: this node itself is that holder, or there is none.
    Nobody,
    /// Its member has all that is here.
    Confirmed,
    /// It is to be offered at this instant.
    Waiting(u64),
    /// It is to be offered when its member's allowance lets it.
    Queued(Rank),
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    member: MemberIndex,
    place: Place,
    /// Its member is likely to lack the bytes.
    bytes: bool,
}

/// One other holder of a trace that becomes unplaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) member: MemberIndex,
    /// It is likely to lack the bytes: it has just become a holder.
    pub(super) bytes: bool,
}

#[derive(Clone, Copy, Debug)]
struct Unplaced {
    seats: [Taken; 2],
    /// It was unplaced when the view began: the node has not settled before it is placed.
    pending: bool,
}

/// How much may be sent to one member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// What the member granted last; none before its first reply.
    granted: Option<u64>,
    /// May be below zero: the last offer is let go whole.
    left: i64,
    at_ms: u64,
    under_way: usize,
    window: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        let (granted, window) = (None, 4 * WINDOW_BYTES_MIN);
        let mut unused = Self { granted, left: 0, at_ms: 0, under_way: 0, window };
        unused.refill(BURST_MS);
        Self { at_ms: 0, ..unused }
    }
}

impl Allowance {
    fn bytes_per_second(&self) -> u64 {
        self.granted.unwrap_or(NAMES_BYTES_PER_SECOND)
    }

    fn refill(&mut self, now_ms: u64) {
        let earned = |ms: u64| {
            let bytes = u128::from(self.bytes_per_second()) * u128::from(ms) / 1000;
            i64::try_from(bytes).unwrap_or(i64::MAX)
        };
        let burst = earned(BURST_MS).max(1);
        let more = earned(now_ms.saturating_sub(self.at_ms));
        // Time that earned nothing yet counts on.
        if more > 0 || self.left >= burst {
            self.left = self.left.saturating_add(more).min(burst);
            self.at_ms = now_ms;
        }
    }

    fn lets_go(&mut self, now_ms: u64) -> bool {
        self.refill(now_ms);
        self.left > 0 && self.under_way < self.window
    }

    /// When there will be something left; never as long as too much is under way.
    fn next_ms(&self) -> u64 {
        if self.under_way >= self.window {
            return u64::MAX;
        }
        let debt = u128::from(u64::try_from(-self.left).unwrap_or(0)) + 1;
        let wait = debt * 1000 / u128::from(self.bytes_per_second().max(1)) + 1;
        if self.left > 0 {
            self.at_ms
        } else {
            self.at_ms.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX).max(REST_MS))
        }
    }

    fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.under_way += bytes;
    }
}

/// The unplaced traces of a shard, by their index in its table.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers {
    unplaced: BTreeMap<u32, Unplaced>,
    pending: usize,
    waiting: BTreeSet<(u64, u32, Seat)>,
    /// By member of the present view.
    members: Vec<Member>,
    /// Whose turn it is next.
    turn: MemberIndex,
}

#[derive(Clone, Debug, Default)]
struct Member {
    queue: BTreeSet<(Rank, u32, Seat)>,
    allowance: Allowance,
    /// Seats that it has not confirmed.
    owing: u64,
}

impl Offers {
    /// A new view begins: nothing is unplaced before it is inserted again. `former` says for each
    /// member of the new view which one of the last view it was; its allowance goes on. Gives what
    /// there was.
    pub(super) fn begin_view(
        &mut self,
        former: impl Iterator<Item = Option<MemberIndex>>,
    ) -> Former {
        let member = |former: Option<MemberIndex>| {
            let member = former.and_then(|index| self.members.get(usize::from(index)));
            Member {
                allowance: member.map_or_else(Allowance::default, |member| member.allowance),
                ..Member::default()
            }
        };
        let members = former.map(member).collect();
        Former(std::mem::replace(self, Self { members, ..Self::default() }))
    }

    /// A trace is unplaced from now on, and to be offered from `at_ms` on.
    pub(super) fn insert(
        &mut self,
        trace: u32,
        holders: [Option<Holder>; 2],
        at_ms: u64,
        pending: bool,
    ) {
        let pending = self.remove(trace) | pending;
        let seats = holders.map(|holder| {
            let place = if holder.is_some() { Place::Waiting(at_ms) } else { Place::Nobody };
            let Holder { member, bytes } = holder.unwrap_or(Holder { member: 0, bytes: false });
            Taken { member, place, bytes }
        });
        self.pending += usize::from(pending);
        for (seat, taken) in seats.iter().enumerate().filter(|(_, t)| t.place != Place::Nobody) {
            self.waiting.insert((at_ms, trace, seat));
            self.members[usize::from(taken.member)].owing += 1;
        }
        self.unplaced.insert(trace, Unplaced { seats, pending });
    }

    /// A trace is placed, or forgotten. Whether the node could not settle before it was.
    pub(super) fn remove(&mut self, trace: u32) -> bool {
        let Some(unplaced) = self.unplaced.get(&trace).copied() else { return false };
        for seat in 0..unplaced.seats.len() {
            self.set(trace, seat, Place::Confirmed);
        }
        self.unplaced.remove(&trace);
        self.pending -= usize::from(unplaced.pending);
        unplaced.pending
    }

    pub(super) fn contains(&self, trace: u32) -> bool {
        self.unplaced.contains_key(&trace)
    }

    /// Unplaced traces.
    pub(super) fn len(&self) -> usize {
        self.unplaced.len()
    }

    /// What they take beside the traces themselves.
    pub(super) fn cost_bytes(&self) -> usize {
        /// An entry in the map, and for each seat one in a queue.
        const UNPLACED_BYTES: usize =
            size_of::<(u32, Unplaced)>() + 2 * size_of::<(Rank, u32, Seat)>();
        self.unplaced.len() * 2 * UNPLACED_BYTES
    }

    /// Whether everything is placed that was not when the view began.
    pub(super) fn is_settled(&self) -> bool {
        self.pending == 0
    }

    /// Traces that each member of the view has yet to confirm.
    pub(super) fn owing(&self) -> impl Iterator<Item = u64> {
        self.members.iter().map(|member| member.owing)
    }

    /// Whether all other holders have all that is here.
    pub(super) fn is_confirmed(&self, trace: u32) -> bool {
        let is_over = |taken: &Taken| matches!(taken.place, Place::Nobody | Place::Confirmed);
        self.unplaced.get(&trace).is_none_or(|unplaced| unplaced.seats.iter().all(is_over))
    }

    /// The seat of a member.
    pub(super) fn seat(&self, trace: u32, member: MemberIndex) -> Option<Seat> {
        let seats = self.unplaced.get(&trace)?.seats;
        seats.iter().position(|taken| taken.place != Place::Nobody && taken.member == member)
    }

    /// A member has all that is here.
    pub(super) fn confirm(&mut self, trace: u32, seat: Seat) {
        self.set(trace, seat, Place::Confirmed);
    }

    /// What is here changed: whoever had confirmed is to be offered it again at `at_ms`.
    pub(super) fn unconfirm(&mut self, trace: u32, at_ms: u64) {
        let Some(unplaced) = self.unplaced.get(&trace).copied() else { return };
        for (seat, taken) in unplaced.seats.iter().enumerate() {
            if taken.place == Place::Confirmed {
                self.set(trace, seat, Place::Waiting(at_ms));
            }
        }
    }

    /// A seat is to be offered again at `at_ms`, or sooner where that was planned.
    pub(super) fn again(&mut self, trace: u32, seat: Seat, at_ms: u64) {
        let Some(unplaced) = self.unplaced.get(&trace) else { return };
        if let Place::Waiting(planned) = unplaced.seats[seat].place {
            self.set(trace, seat, Place::Waiting(planned.min(at_ms)));
        }
    }

    /// What a member wanted was sent to it.
    pub(super) fn given(&mut self, trace: u32, seat: Seat) {
        if let Some(unplaced) = self.unplaced.get_mut(&trace) {
            unplaced.seats[seat].bytes = false;
        }
    }

    /// A member wants bytes that could not be sent at once.
    pub(super) fn want(&mut self, trace: u32, seat: Seat, at_ms: u64) {
        self.again(trace, seat, at_ms);
        if let Some(unplaced) = self.unplaced.get_mut(&trace) {
            unplaced.seats[seat].bytes = true;
        }
    }

    /// Queues what has waited long enough.
    pub(super) fn wake(&mut self, now_ms: u64, rank: impl Fn(u32) -> Rank) {
        while let Some(&(at_ms, trace, seat)) = self.waiting.first() {
            if at_ms > now_ms {
                break;
            }
            self.set(trace, seat, Place::Queued(rank(trace)));
        }
    }

    pub(super) fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Every member has its turn, so that a frame has much to say to one of them.
    pub(super) fn turn_to_next_member(&mut self) -> MemberIndex {
        let member = self.turn;
        let next = usize::from(member) + 1;
        self.turn = MemberIndex::try_from(next % self.members.len().max(1)).unwrap_or(0);
        member
    }

    /// The next seat that may be offered to a member now.
    pub(super) fn next(&mut self, member: MemberIndex, now_ms: u64) -> Option<(u32, Seat)> {
        let Member { queue, allowance, .. } = &mut self.members[usize::from(member)];
        let &(_, trace, seat) = queue.first()?;
        allowance.lets_go(now_ms).then_some((trace, seat))
    }

    /// Whether a seat is to be offered with bytes. Before the first grant it is not.
    pub(super) fn bytes(&self, trace: u32, seat: Seat) -> bool {
        let Some(taken) = self.unplaced.get(&trace).map(|unplaced| unplaced.seats[seat]) else {
            return false;
        };
        taken.bytes && self.members[usize::from(taken.member)].allowance.granted.is_some()
    }

    /// A seat was offered; unless it is confirmed it is offered again at `again_ms`. What was sent
    /// with bytes is by names from then on.
    pub(super) fn offered(&mut self, trace: u32, seat: Seat, with_bytes: bool, again_ms: u64) {
        if let Some(unplaced) = self.unplaced.get_mut(&trace) {
            unplaced.seats[seat].bytes &= !with_bytes;
            self.set(trace, seat, Place::Waiting(again_ms));
        }
    }

    /// Whether so much may be sent to a member out of turn; it counts as sent then.
    pub(super) fn may_give(&mut self, member: MemberIndex, now_ms: u64) -> bool {
        let allowance = &mut self.members[usize::from(member)].allowance;
        allowance.granted.is_some() && allowance.lets_go(now_ms)
    }

    /// So much was sent to a member.
    pub(super) fn spend(&mut self, member: MemberIndex, bytes: usize) {
        self.members[usize::from(member)].allowance.spend(bytes);
    }

    /// What was sent to a member was answered, or was lost.
    pub(super) fn ended(&mut self, member: MemberIndex, bytes: usize, arrived: bool) {
        let allowance = &mut self.members[usize::from(member)].allowance;
        allowance.under_way = allowance.under_way.saturating_sub(bytes);
        let window = if arrived { allowance.window * 2 } else { allowance.window / 2 };
        allowance.window = window.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
    }

    /// A member grants so much a second.
    pub(super) fn grant(&mut self, member: MemberIndex, bytes_per_second: u64) {
        self.members[usize::from(member)].allowance.granted = Some(bytes_per_second.max(1));
    }

    /// When there is something to be done, in milliseconds.
    pub(super) fn next_wake(&self) -> Option<u64> {
        let waiting = self.waiting.first().map(|&(at_ms, ..)| at_ms);
        let queued = self.members.iter().filter(|member| !member.queue.is_empty());
        let allowed = queued.map(|member| member.allowance.next_ms());
        allowed.chain(waiting).min().filter(|&at_ms| at_ms < u64::MAX)
    }

    /// What of this the future depends on, for an explorer: seats in their order, by instants.
    pub(super) fn hash(&self, trace: u32, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let Some(unplaced) = self.unplaced.get(&trace) else { return };
        unplaced.pending.hash(hasher);
        for taken in unplaced.seats {
            let place = match taken.place {
                Place::Nobody => 0_u8,
                Place::Confirmed => 1,
                Place::Waiting(_) => 2,
                Place::Queued(_) => 3,
            };
            (place, taken.bytes && place > 1, taken.member).hash(hasher);
        }
    }

    /// When the seats of a trace are to be offered; the distant future where they are not.
    pub(super) fn instants(&self, trace: u32) -> [u64; 2] {
        let seats = self.unplaced.get(&trace).map(|unplaced| unplaced.seats);
        seats.map_or([u64::MAX; 2], |seats| {
            seats.map(|taken| match taken.place {
                Place::Waiting(at_ms) => at_ms,
                Place::Queued(_) => 0,
                Place::Nobody | Place::Confirmed => u64::MAX,
            })
        })
    }

    /// The same, of what it knows of the members.
    pub(super) fn hash_members(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let granted = self.members.iter().map(|member| member.allowance.granted.is_some());
        granted.for_each(|granted| granted.hash(hasher));
        self.turn.hash(hasher);
    }

    fn set(&mut self, trace: u32, seat: Seat, place: Place) {
        let Some(unplaced) = self.unplaced.get_mut(&trace) else { return };
        let taken = &mut unplaced.seats[seat];
        if taken.place == Place::Nobody {
            return;
        }
        let member = &mut self.members[usize::from(taken.member)];
        match taken.place {
            Place::Nobody => {}
            Place::Confirmed => member.owing += 1,
            Place::Waiting(at_ms) => {
                self.waiting.remove(&(at_ms, trace, seat));
            }
            Place::Queued(rank) => {
                member.queue.remove(&(rank, trace, seat));
            }
        }
        taken.place = place;
        match place {
            Place::Nobody | Place::Confirmed => member.owing -= 1,
            Place::Waiting(at_ms) => {
                self.waiting.insert((at_ms, trace, seat));
            }
            Place::Queued(rank) => {
                member.queue.insert((rank, trace, seat));
            }
        }
    }
}

/// What was unplaced in the view before.
#[derive(Clone, Debug)]
pub(super) struct Former(Offers);

impl Former {
    pub(super) fn contains(&self, trace: u32) -> bool {
        self.0.contains(trace)
    }

    pub(super) fn cost_bytes(&self) -> usize {
        self.0.cost_bytes()
    }

    pub(super) fn hash(&self, trace: u32, hasher: &mut impl std::hash::Hasher) {
        self.0.hash(trace, hasher);
    }

    /// Whether a member of the view before was still to be sent bytes.
    pub(super) fn bytes(&self, trace: u32, member: MemberIndex) -> bool {
        let Some(unplaced) = self.0.unplaced.get(&trace) else { return false };
        self.0.seat(trace, member).is_some_and(|seat| unplaced.seats[seat].bytes)
    }
}
