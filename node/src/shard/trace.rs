//! One trace as a shard keeps it: the keys of its spans, and the bytes of those it still holds.
//!
//! The layout is what makes a held span cheap: a key is one word whose two low bits are its state,
//! and spans that came together share one allocation, a block. The invariant: chunk `c` holds
//! exactly the spans of the keys `c.first .. c.first + c.count`, in that order, and the chunks of a
//! block follow each other. A block is freed when all its spans are done, and counted whole until
//! then. Nothing here knows of owners, time or the network.

use super::attempt::Trying;
use super::vanished::Vanished;
use crate::frame::Verdict;
use crate::spans::{Chunk, Scope, SpanBytes, TraceId};
use hashbrown::HashTable;
use std::mem::size_of;
use std::sync::Arc;
use tracemesh_membership::Slot;

/// Up to here a trace finds a key by walking through all; above, through an index, so that a giant
/// trace does not cost the square of its size.
const WALKED_KEYS_MAX: usize = 64;

/// A trace with more keys forgets the oldest of those that are done, down to half of this: all that
/// is known of a trace fits into a frame, and a trace id that is used for days costs no more memory
/// with each of them.
pub(super) const KEYS_MAX: usize = 256 << 10;

/// What an `Arc<[u8]>` costs besides its bytes and its pointer: two counters, and the allocator's
/// word and rounding.
const BLOCK_ALLOCATION_BYTES: usize = 16 + 16;

/// An entry in the shard's hash table, and one in each of its two queues.
const QUEUE_BYTES: usize = 8 + 16 + 24;

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

/// Spans of one trace that came in one frame, until they are stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrived {
    spans: Vec<u8>,
    runs: Vec<Run>,
}

/// Consecutive spans of one scope, up to where their bytes end.
#[derive(Clone, Debug)]
struct Run {
    scope: Arc<Scope>,
    count: u32,
    end: u32,
}

impl Arrived {
    /// The spans that follow are of this scope.
    pub(crate) fn begin(&mut self, scope: Arc<Scope>) {
        self.runs.push(Run { scope, count: 0, end: 0 });
    }

    /// Adds the span that `append` appends.
    pub(crate) fn push(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        append(&mut self.spans);
        if let Some(run) = self.runs.last_mut() {
            run.count += 1;
            run.end = u32::try_from(self.spans.len()).unwrap_or(u32::MAX);
        }
    }
}

/// Spans of one scope that came in one frame.
#[derive(Clone, Debug)]
struct Stored {
    chunk: Chunk,
    first: u32,
    count: u32,
}

impl Stored {
    fn range(&self) -> std::ops::Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }
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
    words: Vec<u64>,
    /// The wrapping sum of keys that were forgotten.
    forgotten: u64,
    stored: Vec<Stored>,
    blocks: u32,
    index: Option<Box<HashTable<u32>>>,
    bytes: usize,
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
            words: Vec::new(),
            forgotten: 0,
            stored: Vec::new(),
            blocks: 0,
            index: None,
            bytes: 0,
        }
    }

    /// Bytes of spans that are held here, those of done spans included whose block is not yet free.
    pub(crate) fn span_bytes(&self) -> usize {
        self.bytes
    }

    /// All that this trace takes, for the memory budget.
    pub(crate) fn cost_bytes(&self) -> usize {
        size_of::<Self>()
            + QUEUE_BYTES
            + self.words.capacity() * size_of::<u64>()
            + self.stored.capacity() * size_of::<Stored>()
            + self.blocks as usize * BLOCK_ALLOCATION_BYTES
            + self.index.as_ref().map_or(0, |index| index.capacity() * 5)
            + self.bytes
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
    pub(crate) fn store(&mut self, arrived: &mut Arrived) {
        let Arrived { spans, runs } = arrived;
        if runs.is_empty() {
            return;
        }
        let count: u32 = runs.iter().map(|run| run.count).sum();
        let mut first = u32::try_from(self.words.len()).unwrap_or(u32::MAX) - count;
        let block: Arc<[u8]> = Arc::from(spans.as_slice());
        let mut start = 0;
        self.stored.reserve(runs.len());
        for Run { scope, count, end } in runs.drain(..) {
            let chunk = Chunk { scope, spans: SpanBytes::part(&block, start..end) };
            self.stored.push(Stored { chunk, first, count });
            first += count;
            start = end;
        }
        self.blocks += 1;
        self.bytes += block.len();
        spans.clear();
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
        if self.held_count == 0 {
            self.bytes = 0;
            self.blocks = 0;
            self.stored = Vec::new();
            self.words.shrink_to_fit();
            return;
        }
        if !self.has_done() {
            return;
        }
        let words = &self.words;
        let is_done = |stored: &Stored| {
            words[stored.range()].iter().all(|&word| SpanState::of(word) == SpanState::Done)
        };
        let mut kept = Vec::with_capacity(self.stored.len());
        for block in self.stored.chunk_by(|a, b| a.chunk.spans.shares(&b.chunk.spans)) {
            let done = block.iter().all(is_done);
            kept.extend(std::iter::repeat_n(!done, block.len()));
            if done {
                self.bytes -= block.iter().map(|stored| stored.chunk.spans.len()).sum::<usize>();
                self.blocks -= 1;
            }
        }
        let mut kept = kept.into_iter();
        self.stored.retain(|_| kept.next().unwrap_or(true));
    }

    /// Forgets the oldest keys of spans that are done when there are more than [`KEYS_MAX`];
    /// whether there were some to forget. A span that comes once more is a new one then. They go on
    /// in the sums, so holders that saw the same of a trace still agree.
    pub(crate) fn forget_oldest_keys(&mut self) -> bool {
        // All before the first block: what is held has its bytes in one.
        let done = self.stored.first().map_or(self.words.len(), |stored| stored.first as usize);
        let count = done.min(self.words.len().saturating_sub(KEYS_MAX / 2));
        if self.words.len() <= KEYS_MAX || count == 0 {
            return false;
        }
        self.forgotten = sum(self.forgotten, self.words.drain(..count));
        self.stored.iter_mut().for_each(|stored| stored.first -= count as u32);
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
        let (mut span_count, mut bytes) = (0, 0);
        let mut chunks = Vec::with_capacity(self.stored.len());
        for at in 0..self.stored.len() {
            if span_count >= spans_max || bytes >= bytes_max {
                break;
            }
            let is_held = |_, state| state == SpanState::Held;
            let Some((chunk, count)) = self.chunk(at, &is_held) else { continue };
            span_count += count;
            bytes += chunk.spans.len();
            chunks.push(chunk);
            let range = self.stored[at].range();
            for word in &mut self.words[range] {
                if SpanState::of(*word) == SpanState::Held {
                    *word = *word & !STATE_BITS | SpanState::Sending.bits();
                }
            }
        }
        (chunks, span_count)
    }

    /// The bytes of all spans for which `wanted` says so, sharing the chunks that are wanted whole,
    /// and how many they are.
    pub(crate) fn chunks(&self, wanted: impl Fn(SpanKey, SpanState) -> bool) -> (Vec<Chunk>, u32) {
        let mut span_count = 0;
        let chunk = |at| {
            let (chunk, count) = self.chunk(at, &wanted)?;
            span_count += count;
            Some(chunk)
        };
        let chunks = (0..self.stored.len()).filter_map(chunk).collect();
        (chunks, span_count)
    }

    /// The wanted spans of one chunk, and how many they are; none when none is wanted.
    fn chunk(
        &self,
        at: usize,
        wanted: &impl Fn(SpanKey, SpanState) -> bool,
    ) -> Option<(Chunk, u32)> {
        let stored = &self.stored[at];
        let words = &self.words[stored.range()];
        let is_wanted = |word: &u64| wanted(SpanKey(word & !STATE_BITS), SpanState::of(*word));
        let count = words.iter().filter(|word| is_wanted(word)).count() as u32;
        if count == stored.count {
            return Some((stored.chunk.clone(), count));
        }
        let mut spans = Vec::new();
        for (span, word) in stored.chunk.framed_spans().zip(words) {
            if is_wanted(word) {
                spans.extend_from_slice(span);
            }
        }
        let chunk = Chunk { scope: stored.chunk.scope.clone(), spans: spans.into() };
        (count > 0).then_some((chunk, count))
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

/// The wrapping sum of keys, whatever their states, from one on.
fn sum(from: u64, words: impl Iterator<Item = u64>) -> u64 {
    words.fold(from, |sum, word| sum.wrapping_add(word & !STATE_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans::Resource;

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
        trace.store(&mut arrived);
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
        assert_eq!((trace.span_bytes(), trace.blocks, spans(&trace).len()), (15, 2, 3));
        finish(&mut trace, 3..4);
        assert_eq!((trace.span_bytes(), trace.blocks), (6, 1));
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
