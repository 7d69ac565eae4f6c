//! One trace as a shard keeps it: the keys of its spans, and the bytes of those it still holds.
//!
//! The layout is what makes a held span cheap: a key is one word whose two low bits are its state,
//! and spans that came together share an allocation (`blocks`). The invariant: what is held or
//! being sent has its bytes in a block. Nothing here knows of owners, time or the network.

use super::attempt::Trying;
use super::blocks::{Arrived, Blocks, Spare, Stored};
use super::vanished::Vanished;
use crate::allocator::allocated;
use crate::frame::Verdict;
use crate::spans::{Chunk, TraceId};
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::mem::size_of;
use tracemesh_membership::Slot;

/// Up to here a trace finds a key by walking through all; above, through an index, so that a giant
/// trace does not cost the square of its size.
const WALKED_KEYS_MAX: usize = 64;

/// So many keys are kept in the trace itself: those of a usual one.
const KEYS_INSIDE: usize = 8;

/// A trace with more keys forgets the oldest of those that are done, down to half of this: all that
/// is known of a trace fits into a frame, and a trace id that is used for days costs no more memory
/// with each of them.
pub(super) const KEYS_MAX: usize = 256 << 10;

/// An entry in the shard's hash table, and one in each of its two queues.
const QUEUE_BYTES: usize = 8 + 16 + 16;

const STATE_BITS: u64 = 0b11;

/// The 64-bit keyed hash of a span's id and kind, its two low bits zero (PROTOCOL.md: span key; on
/// the wire a *name*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanKey(u64);

impl SpanKey {
    /// The key of a hash, or of a name from the wire.
    pub fn new(hash: u64) -> Self {
        Self(hash & !STATE_BITS)
    }

    /// As frames carry it.
    pub fn name(self) -> u64 {
        self.0
    }
}

/// What a node knows of a span whose key it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SpanState {
    /// Its bytes are here.
    Held,
    /// Its bytes are here, and in the export attempt in flight.
    Sending,
    /// It is finished: the bytes are gone, or go with their block.
    Done,
}

impl SpanState {
    fn of(word: u64) -> Self {
        match word & STATE_BITS {
            0 => Self::Held,
            1 => Self::Sending,
            _ => Self::Done,
        }
    }

    fn bits(self) -> u64 {
        match self {
            Self::Held => 0,
            Self::Sending => 1,
            Self::Done => 2,
        }
    }
}

/// What there is to see of a trace, one pointer after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LookedAt {
    /// The trace itself.
    Trace,
    /// The keys that are not in it, the lists of its blocks, and its attempt.
    Lists,
    /// The last entries of the lists, and what the attempt sends.
    LastBlock,
    /// The first span of each block.
    Spans,
}

impl LookedAt {
    pub(super) const ALL: [Self; 4] = [Self::Trace, Self::Lists, Self::LastBlock, Self::Spans];
}

/// One trace, held or remembered.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) id: TraceId,
    pub(crate) slot: Slot,
    /// The view by which it was last looked at, by its number in the table.
    pub(super) view: u8,
    pub(crate) verdict: Verdict,
    /// A root span came: the trace is due `root_delay` after it.
    pub(crate) rooted: bool,
    /// Another holder may lack something (PROTOCOL.md, P1 and H3).
    pub(crate) unplaced: bool,
    /// Owners that vanished while it was due.
    pub(crate) vanished: Vanished,
    /// It became mine to decide by a view change, after it was due.
    pub(crate) taken_over: bool,
    /// How often the owner was asked since something last changed.
    pub(crate) asked: u8,
    /// Another one at every change of spans or verdict.
    pub(crate) version: u32,
    /// Held and sending spans.
    pub(crate) held_count: u32,
    /// When the first of them came, in seconds since the shard's start; stale when there are none.
    pub(crate) held_since: u32,
    /// When it should be decided, in ms since the shard's start; only ever moves earlier.
    pub(crate) due_ms: u64,
    /// The one wake-up in the queue that counts; others of this trace are stale.
    pub(crate) wake_ms: u64,
    /// Until when a trace of which nothing is held is remembered; 0 when something is held.
    pub(crate) remembered_until_ms: u64,
    /// The export attempt that is not over, if any.
    pub(crate) trying: Option<Box<Trying>>,
    words: SmallVec<[u64; KEYS_INSIDE]>,
    /// The wrapping sum of keys that were forgotten.
    forgotten: u64,
    /// None when nothing is held: most traces are only remembered.
    blocks: Option<Box<Blocks>>,
    index: Option<Box<HashTable<u32>>>,
}

impl Trace {
    pub(crate) fn new(id: TraceId, slot: Slot, view: u8) -> Self {
        Self {
            id,
            slot,
            view,
            verdict: Verdict::None,
            rooted: false,
            unplaced: false,
            vanished: Vanished::default(),
            taken_over: false,
            asked: 0,
            version: 0,
            held_count: 0,
            held_since: 0,
            due_ms: u64::MAX,
            wake_ms: u64::MAX,
            remembered_until_ms: 0,
            trying: None,
            words: SmallVec::new(),
            forgotten: 0,
            blocks: None,
            index: None,
        }
    }

    /// Bytes of spans that are held here, those of done spans included whose block is not yet free.
    pub(crate) fn span_bytes(&self) -> usize {
        self.blocks.as_ref().map_or(0, |blocks| blocks.span_bytes())
    }

    /// All that this trace takes, for the memory budget.
    pub(crate) fn cost_bytes(&self) -> usize {
        let words = if self.words.spilled() { self.words.capacity() } else { 0 };
        size_of::<Self>()
            + QUEUE_BYTES
            + allocated(words * size_of::<u64>())
            + self.blocks.as_ref().map_or(0, |blocks| blocks.cost_bytes())
            + self.index.as_ref().map_or(0, |index| index.capacity() * 5)
    }

    /// Reads a little of what is so far away; the value means nothing.
    pub(super) fn look(&self, at: LookedAt) -> u64 {
        let blocks = |look: fn(&Blocks) -> u64| self.blocks.as_deref().map_or(0, look);
        let trying = |look: fn(&Trying) -> u64| self.trying.as_deref().map_or(0, look);
        match at {
            LookedAt::Trace => {
                let times = self.due_ms ^ self.remembered_until_ms;
                times ^ self.forgotten ^ u64::from(self.held_count) ^ self.words.len() as u64
            }
            LookedAt::Lists => {
                let words = self.words.last().copied().unwrap_or(0);
                words ^ blocks(Blocks::look) ^ trying(|trying| trying.number.into())
            }
            LookedAt::LastBlock => {
                blocks(Blocks::look_at_last) ^ trying(|trying| trying.attempt.span_count.into())
            }
            LookedAt::Spans => blocks(Blocks::look_at_spans),
        }
    }

    pub(crate) fn is_remembered(&self) -> bool {
        self.remembered_until_ms != 0
    }

    pub(crate) fn key_count(&self) -> usize {
        self.words.len()
    }

    pub(crate) fn state(&self, key: SpanKey) -> Option<SpanState> {
        self.position(key).map(|at| SpanState::of(self.words[at]))
    }

    /// Makes room for so many keys, and for more that will come in other frames.
    pub(crate) fn reserve(&mut self, keys: usize) {
        self.words.reserve(keys);
    }

    /// Adds a key that is not known yet.
    pub(crate) fn push(&mut self, key: SpanKey, state: SpanState) {
        let at = u32::try_from(self.words.len()).unwrap_or(u32::MAX);
        self.words.push(key.0 | state.bits());
        if let SpanState::Held | SpanState::Sending = state {
            self.held_count += 1;
        }
        match &mut self.index {
            Some(index) => {
                index.insert_unique(key.0, at, |&at| self.words[at as usize] & !STATE_BITS);
            }
            None if self.words.len() > WALKED_KEYS_MAX => self.build_index(),
            None => {}
        }
    }

    /// Adds the bytes of the last keys pushed, and empties `arrived`.
    pub(super) fn store(&mut self, arrived: &mut Arrived, spare: &mut Spare) {
        if arrived.is_empty() {
            return;
        }
        let blocks = self.blocks.get_or_insert_with(|| spare.take());
        blocks.store(arrived, u32::try_from(self.words.len()).unwrap_or(u32::MAX));
    }

    /// Marks one known span as done; whether that changed anything.
    pub(crate) fn finish(&mut self, key: SpanKey) -> bool {
        let Some(at) = self.position(key) else { return false };
        if SpanState::of(self.words[at]) == SpanState::Done {
            return false;
        }
        self.words[at] = key.0 | SpanState::Done.bits();
        self.held_count -= 1;
        true
    }

    /// Marks all spans that are in `from` as `to`; how many there were.
    pub(crate) fn turn(&mut self, from: SpanState, to: SpanState) -> u32 {
        let mut turned = 0;
        for word in self.words.iter_mut().filter(|word| SpanState::of(**word) == from) {
            *word = *word & !STATE_BITS | to.bits();
            turned += 1;
        }
        if from != SpanState::Done && to == SpanState::Done {
            self.held_count -= turned;
        }
        turned
    }

    /// Frees the blocks of which every span is done, and what the vectors do not need any more.
    pub(crate) fn free_done(&mut self) {
        let words = &mut self.words;
        let is_done = |word: &u64| SpanState::of(*word) == SpanState::Done;
        if self.held_count == 0 {
            self.blocks.iter_mut().for_each(|blocks| blocks.clear());
            words.shrink_to_fit();
        } else if let Some(blocks) = &mut self.blocks
            && words.iter().any(is_done)
        {
            blocks.free(|keys| words[keys].iter().all(is_done));
        }
    }

    /// Gives the lists of blocks away when nothing is held.
    pub(super) fn give_spare(&mut self, spare: &mut Spare) {
        if self.held_count == 0
            && let Some(blocks) = self.blocks.take()
        {
            spare.put(blocks);
        }
    }

    /// Forgets the oldest keys of spans that are done when there are more than [`KEYS_MAX`];
    /// whether there were some to forget. A span that comes once more is a new one then. They go on
    /// in the sums, so holders that saw the same of a trace still agree.
    pub(crate) fn forget_oldest_keys(&mut self) -> bool {
        // All before the first block: what is held has its bytes in one.
        let first = self.blocks.as_ref().and_then(|blocks| blocks.first());
        let done = first.unwrap_or(self.words.len());
        let count = done.min(self.words.len().saturating_sub(KEYS_MAX / 2));
        if self.words.len() <= KEYS_MAX || count == 0 {
            return false;
        }
        self.forgotten = sum(self.forgotten, self.words.drain(..count));
        if let Some(blocks) = &mut self.blocks {
            blocks.shift(count as u32);
        }
        self.build_index();
        true
    }

    /// The wrapping sum of the keys that are done, as [`Done`](crate::frame::Done) carries it.
    pub(crate) fn done_sum(&self) -> u64 {
        sum(self.forgotten, self.keys_in(SpanState::Done).map(SpanKey::name))
    }

    /// The wrapping sum of all keys.
    pub(crate) fn sum(&self) -> u64 {
        sum(self.forgotten, self.words.iter().copied())
    }

    pub(crate) fn keys_in(&self, state: SpanState) -> impl Iterator<Item = SpanKey> {
        self.words
            .iter()
            .filter(move |word| SpanState::of(**word) == state)
            .map(|word| SpanKey(word & !STATE_BITS))
    }

    /// All keys with what is known of them, in the order in which they came.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (SpanKey, SpanState)> {
        self.words.iter().map(|&word| (SpanKey(word & !STATE_BITS), SpanState::of(word)))
    }

    pub(crate) fn has_done(&self) -> bool {
        self.keys_in(SpanState::Done).next().is_some()
    }

    /// Turns held spans to sending, chunk by chunk until one of the bounds is reached, and returns
    /// them with their number.
    pub(crate) fn begin_sending(&mut self, spans_max: u32, bytes_max: usize) -> (Vec<Chunk>, u32) {
        let Self { words, blocks: Some(blocks), .. } = self else { return (Vec::new(), 0) };
        let (mut span_count, mut bytes) = (0, 0);
        let mut chunks = Vec::with_capacity(blocks.run_count());
        for stored in blocks.stored() {
            if span_count >= spans_max || bytes >= bytes_max {
                break;
            }
            let is_held = |_, state| state == SpanState::Held;
            let words = &mut words[stored.keys.clone()];
            let Some((chunk, count)) = chunk(&stored, words, is_held) else { continue };
            span_count += count;
            bytes += chunk.spans.len();
            chunks.push(chunk);
            for word in words.iter_mut().filter(|word| SpanState::of(**word) == SpanState::Held) {
                *word = *word & !STATE_BITS | SpanState::Sending.bits();
            }
        }
        (chunks, span_count)
    }

    /// The bytes of all spans for which `wanted` says so, sharing the chunks that are wanted whole,
    /// and how many they are.
    pub(crate) fn chunks(&self, wanted: impl Fn(SpanKey, SpanState) -> bool) -> (Vec<Chunk>, u32) {
        let mut span_count = 0;
        let chunk = |stored: Stored<'_>| {
            let (chunk, count) = chunk(&stored, &self.words[stored.keys.clone()], &wanted)?;
            span_count += count;
            Some(chunk)
        };
        let stored = self.blocks.iter().flat_map(|blocks| blocks.stored());
        (stored.filter_map(chunk).collect(), span_count)
    }

    fn position(&self, key: SpanKey) -> Option<usize> {
        match &self.index {
            Some(index) => index
                .find(key.0, |&at| self.words[at as usize] & !STATE_BITS == key.0)
                .map(|&at| at as usize),
            None => self.words.iter().position(|word| word & !STATE_BITS == key.0),
        }
    }

    fn build_index(&mut self) {
        let mut index = HashTable::with_capacity(self.words.len() * 2);
        for (at, word) in self.words.iter().enumerate() {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            index
                .insert_unique(word & !STATE_BITS, at, |&at| self.words[at as usize] & !STATE_BITS);
        }
        self.index = Some(Box::new(index));
    }
}

/// What the sums of a shard count of one trace.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    pub(super) bytes: usize,
    pub(super) keys: usize,
    pub(super) held: u32,
    pub(super) verdict: Verdict,
}

impl Before {
    pub(super) fn of(trace: &Trace) -> Self {
        Self {
            bytes: trace.cost_bytes(),
            keys: trace.key_count(),
            held: trace.held_count,
            verdict: trace.verdict,
        }
    }
}

/// The wanted spans of one run, whose keys are these, and how many they are; none when none is
/// wanted.
fn chunk(
    stored: &Stored<'_>,
    words: &[u64],
    wanted: impl Fn(SpanKey, SpanState) -> bool,
) -> Option<(Chunk, u32)> {
    let is_wanted = |word: &u64| wanted(SpanKey(word & !STATE_BITS), SpanState::of(*word));
    let count = words.iter().filter(|word| is_wanted(word)).count();
    if count == 0 {
        return None;
    }
    let mut chunk = stored.chunk();
    if count < words.len() {
        let mut spans = Vec::new();
        for (span, _) in chunk.framed_spans().zip(words).filter(|(_, word)| is_wanted(word)) {
            spans.extend_from_slice(span);
        }
        chunk.spans = spans.into();
    }
    Some((chunk, count as u32))
}

/// The wrapping sum of keys, whatever their states, from one on.
fn sum(from: u64, words: impl Iterator<Item = u64>) -> u64 {
    words.fold(from, |sum, word| sum.wrapping_add(word & !STATE_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans::{Resource, Scope};
    use std::sync::Arc;

    fn trace_of(keys: std::ops::Range<u64>) -> Trace {
        let mut trace = Trace::new(TraceId([1; 16]), Slot(0), 0);
        store(&mut trace, [keys]);
        trace
    }

    /// Stores one block, with a scope for each range of keys.
    fn store(trace: &mut Trace, scopes: impl IntoIterator<Item = std::ops::Range<u64>>) {
        let mut arrived = Arrived::default();
        for keys in scopes {
            let resource = Arc::new(Resource { fields: Box::default() });
            arrived.begin(Arc::new(Scope { resource, fields: Box::default() }));
            for key in keys {
                trace.push(SpanKey::new(key << 2), SpanState::Held);
                arrived.push(|spans| spans.extend([0x12, 1, key as u8]));
            }
        }
        trace.store(&mut arrived, &mut Spare::default());
    }

    #[test]
    fn block_is_freed_only_when_all_its_spans_are_done() {
        let mut trace = trace_of(1..4);
        assert!(trace.finish(SpanKey::new(4)));
        assert!(!trace.finish(SpanKey::new(4)));
        trace.free_done();
        assert_eq!((trace.held_count, trace.span_bytes()), (2, 9));
        assert_eq!(trace.turn(SpanState::Held, SpanState::Done), 2);
        trace.free_done();
        assert_eq!((trace.held_count, trace.span_bytes()), (0, 0));
        assert_eq!(trace.done_sum(), 4 + 8 + 12);
        assert_eq!(trace.done_sum(), trace.sum());
    }

    #[test]
    fn spans_of_a_block_go_together_whatever_their_scopes() {
        let mut trace = trace_of(1..3);
        store(&mut trace, [3..4, 4..6]);
        let finish = |trace: &mut Trace, keys: std::ops::Range<u64>| {
            keys.for_each(|key| assert!(trace.finish(SpanKey::new(key << 2))));
            trace.free_done();
        };
        let spans = |trace: &Trace| -> Vec<Vec<u8>> {
            trace.chunks(|_, _| true).0.iter().map(|chunk| chunk.spans.to_vec()).collect()
        };
        assert_eq!(spans(&trace)[1..], [vec![0x12, 1, 3], vec![0x12, 1, 4, 0x12, 1, 5]]);
        finish(&mut trace, 4..6);
        assert_eq!((trace.span_bytes(), spans(&trace).len()), (15, 3));
        finish(&mut trace, 3..4);
        assert_eq!(trace.span_bytes(), 6);
        assert_eq!(spans(&trace), [[0x12, 1, 1, 0x12, 1, 2]]);
    }

    #[test]
    fn only_wanted_spans_of_a_chunk_are_given() {
        let trace = trace_of(1..4);
        let (chunks, count) = trace.chunks(|key, _| key == SpanKey::new(8));
        assert_eq!((chunks.len(), count), (1, 1));
        assert_eq!(chunks[0].spans[..], [0x12, 1, 2]);
    }

    #[test]
    fn giant_trace_finds_its_keys_through_the_index() {
        let trace = trace_of(0..5000);
        for key in 0..5000_u64 {
            assert_eq!(trace.state(SpanKey::new(key << 2)), Some(SpanState::Held), "{key}");
        }
        assert_eq!(trace.state(SpanKey::new(5000 << 2)), None);
        assert!(trace.index.is_some());
    }

    #[test]
    fn endless_trace_forgets_its_oldest_done_keys_and_keeps_its_sums() {
        let end = KEYS_MAX as u64 + 1;
        let mut trace = trace_of(0..10);
        store(&mut trace, std::iter::once(10..end));
        let key = |key: u64| SpanKey::new(key << 2);
        assert!(!trace.forget_oldest_keys(), "all is held");
        (1..end).for_each(|number| assert!(trace.finish(key(number))));
        trace.free_done();
        assert!(!trace.forget_oldest_keys(), "the oldest is held");
        store(&mut trace, [end..end + 2, end + 2..end + 3]);
        assert!(trace.finish(key(0)));
        trace.free_done();
        let sums = (trace.sum(), trace.done_sum());
        assert!(trace.forget_oldest_keys());
        assert_eq!((trace.sum(), trace.done_sum()), sums);
        assert_eq!((trace.key_count(), trace.held_count), (KEYS_MAX / 2, 3));
        assert_eq!(trace.state(key(end - KEYS_MAX as u64 / 2)), None);
        assert_eq!(trace.state(key(end - KEYS_MAX as u64 / 2 + 3)), Some(SpanState::Done));
        assert_eq!(trace.chunks(|of, _| of == key(end + 1)).0[0].spans[2], (end + 1) as u8);
        assert!(!trace.forget_oldest_keys());
    }
}
