//! The bytes of a trace's spans: what came in one frame is in one allocation or two, its blocks.
//!
//! The invariant: the spans of a block are those of consecutive keys of the trace, from the block's
//! first on, in that order; they are cut into runs of one scope each. A block is freed when all its
//! spans are done, and counted whole until then. What a span is, and whether it is done, is not
//! known here.

use crate::allocator::allocated;
use crate::spans::{Chunk, Scope, SpanBytes};
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;

/// The two counters of an `Arc<[u8]>`, before its bytes.
const COUNTER_BYTES: usize = 16;

/// Lists of blocks that a shard keeps for other traces, some hundred bytes each.
const SPARE_MAX: usize = 1024;
/// Those with room for more blocks or runs than this are not kept.
const SPARE_ROOM_MAX: usize = 32;

/// A second block takes time as well as memory; it is made where it saves more than this.
const SECOND_BLOCK_BYTES: usize = size_of::<Block>() + 64;

/// Spans of one trace that came in one frame, until they are stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrived {
    spans: Vec<u8>,
    runs: Vec<Run>,
}

/// Consecutive spans of one scope.
#[derive(Clone, Debug)]
struct Run {
    scope: Arc<Scope>,
    count: u32,
    /// Where its bytes end.
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

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// After how many runs a second block begins, 0 for none. The allocator has few sizes, so that
    /// one block alone would waste a tenth of its memory.
    fn cut(&self) -> usize {
        let all = self.spans.len();
        let cost = |run: &Run| {
            let first = run.end as usize;
            block_bytes(first) + block_bytes(all - first) + SECOND_BLOCK_BYTES
        };
        let cuts = self.runs.split_last().map_or(&[][..], |(_, cuts)| cuts);
        let cuts = (1..).zip(cuts).map(|(run_count, run)| (cost(run), run_count));
        cuts.chain([(block_bytes(all), 0)]).min().map_or(0, |(_, run_count)| run_count)
    }
}

/// What a block with so many bytes of spans takes.
fn block_bytes(bytes: usize) -> usize {
    allocated(COUNTER_BYTES + bytes)
}

#[derive(Clone, Debug)]
struct Block {
    spans: Arc<[u8]>,
    /// The position of its first span's key.
    first: u32,
    run_count: u32,
}

/// A run with where it is.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    /// The positions of its spans' keys.
    pub(super) keys: Range<usize>,
    scope: &'a Arc<Scope>,
    block: &'a Arc<[u8]>,
    bytes: Range<u32>,
}

impl Stored<'_> {
    /// Its bytes, shared.
    pub(super) fn chunk(&self) -> Chunk {
        let spans = SpanBytes::part(self.block, self.bytes.clone());
        Chunk { scope: Arc::clone(self.scope), spans }
    }
}

/// All blocks of a trace.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    runs: Vec<Run>,
    bytes: usize,
    allocated: usize,
}

impl Blocks {
    /// Bytes of spans.
    pub(super) fn span_bytes(&self) -> usize {
        self.bytes
    }

    /// All that they take.
    pub(super) fn cost_bytes(&self) -> usize {
        allocated(size_of::<Self>())
            + self.allocated
            + allocated(self.blocks.capacity() * size_of::<Block>())
            + allocated(self.runs.capacity() * size_of::<Run>())
    }

    /// The position of the first key that has its bytes here.
    pub(super) fn first(&self) -> Option<usize> {
        self.blocks.first().map(|block| block.first as usize)
    }

    /// Reads a little of the lists; the value means nothing.
    pub(super) fn look(&self) -> u64 {
        (self.bytes ^ self.runs.len()) as u64
    }

    /// The same for their last entries.
    pub(super) fn look_at_last(&self) -> u64 {
        let block = self.blocks.last().map_or(0, |block| block.first);
        u64::from(block ^ self.runs.last().map_or(0, |run| run.end))
    }

    /// And for the bytes of each block.
    pub(super) fn look_at_spans(&self) -> u64 {
        let first = |block: &Block| u64::from(block.spans.first().copied().unwrap_or(0));
        self.blocks.iter().map(first).sum()
    }

    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Takes the bytes of spans whose keys end before position `end`, and empties `arrived`.
    pub(super) fn store(&mut self, arrived: &mut Arrived, end: u32) {
        let cut = arrived.cut();
        let Arrived { spans, runs } = arrived;
        let mut first = end - runs.iter().map(|run| run.count).sum::<u32>();
        make_room(&mut self.blocks, if cut == 0 { 1 } else { 2 });
        make_room(&mut self.runs, runs.len());
        let (head, tail) = runs.split_at_mut(cut);
        let mut start = 0;
        for runs in [head, tail] {
            let Some(&Run { end, .. }) = runs.last() else { continue };
            let spans = &spans[start as usize..end as usize];
            let run_count = runs.len() as u32;
            self.blocks.push(Block { spans: spans.into(), first, run_count });
            self.bytes += spans.len();
            self.allocated += block_bytes(spans.len());
            for run in runs {
                first += run.count;
                run.end -= start;
            }
            start = end;
        }
        self.runs.append(runs);
        spans.clear();
    }

    /// All runs, in the order of their keys.
    pub(super) fn stored(&self) -> impl Iterator<Item = Stored<'_>> {
        self.blocks().flat_map(|(block, runs)| {
            let (mut key, mut start) = (block.first as usize, 0);
            runs.iter().map(move |run| {
                let (keys, bytes) = (key..key + run.count as usize, start..run.end);
                (key, start) = (keys.end, bytes.end);
                Stored { keys, scope: &run.scope, block: &block.spans, bytes }
            })
        })
    }

    /// All blocks with their runs.
    fn blocks(&self) -> impl Iterator<Item = (&Block, &[Run])> {
        let mut rest = self.runs.as_slice();
        self.blocks.iter().map(move |block| {
            let (runs, after) = rest.split_at(block.run_count as usize);
            rest = after;
            (block, runs)
        })
    }

    /// Frees the blocks of whose keys, by their positions, all are done.
    pub(super) fn free(&mut self, are_done: impl Fn(Range<usize>) -> bool) {
        let Self { blocks, runs: kept, bytes, allocated } = self;
        let mut runs = std::mem::take(kept).into_iter();
        blocks.retain(|block| {
            let at = kept.len();
            kept.extend(runs.by_ref().take(block.run_count as usize));
            let end = block.first + kept[at..].iter().map(|run| run.count).sum::<u32>();
            let is_done = are_done(block.first as usize..end as usize);
            if is_done {
                kept.truncate(at);
                *bytes -= block.spans.len();
                *allocated -= block_bytes(block.spans.len());
            }
            !is_done
        });
    }

    /// Frees all but the memory of the lists.
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.runs.clear();
        (self.bytes, self.allocated) = (0, 0);
    }

    /// The first `count` keys of the trace are gone; none of them had bytes here.
    pub(super) fn shift(&mut self, count: u32) {
        self.blocks.iter_mut().for_each(|block| block.first -= count);
    }
}

/// Lists of blocks that are empty, to be used again: every trace needs one for a while, and most
/// are as long as any other.
#[derive(Clone, Debug, Default)]
#[expect(clippy::vec_box, reason = "traces have them in boxes, which are used again as well")]
pub(super) struct Spare(Vec<Box<Blocks>>);

impl Spare {
    /// One that was put here, or a new one.
    pub(super) fn take(&mut self) -> Box<Blocks> {
        self.0.pop().unwrap_or_default()
    }

    /// Keeps an empty one, if it is of use for others.
    pub(super) fn put(&mut self, blocks: Box<Blocks>) {
        let room = blocks.runs.capacity().max(blocks.blocks.capacity());
        if room <= SPARE_ROOM_MAX && self.0.len() < SPARE_MAX {
            self.0.push(blocks);
        }
    }
}

/// Makes room for so many more: no more than that at first, since most traces come in few frames.
fn make_room<T>(items: &mut Vec<T>, count: usize) {
    if items.is_empty() {
        items.reserve_exact(count);
    } else {
        items.reserve(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans::Resource;
    use proptest::prelude::*;

    /// Stores runs of spans with payloads of these sizes, up to 127, in one frame.
    fn store(blocks: &mut Blocks, end: &mut u32, runs: &[Vec<u8>]) {
        let mut arrived = Arrived::default();
        for run in runs {
            let resource = Arc::new(Resource { fields: Box::default() });
            arrived.begin(Arc::new(Scope { resource, fields: Box::default() }));
            for &size in run {
                arrived
                    .push(|spans| spans.extend([0x12, size].iter().chain(&vec![7; size.into()])));
                *end += 1;
            }
        }
        blocks.store(&mut arrived, *end);
        assert!(arrived.spans.is_empty() && arrived.runs.is_empty());
    }

    /// The size of the span of each key.
    fn sizes(blocks: &Blocks) -> Vec<(usize, u8)> {
        let sizes = |stored: Stored<'_>| {
            let chunk = stored.chunk();
            let sizes: Vec<u8> = chunk.framed_spans().map(|span| span[1]).collect();
            assert_eq!(sizes.len(), stored.keys.len());
            stored.keys.zip(sizes)
        };
        blocks.stored().flat_map(sizes).collect()
    }

    proptest! {
        #[test]
        fn each_key_keeps_its_span(
            frames in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(1..=127_u8, 1..6), 1..6),
                1..5,
            ),
            gone in 0..100_usize,
        ) {
            let (mut blocks, mut end) = (Blocks::default(), 0);
            frames.iter().for_each(|runs| store(&mut blocks, &mut end, runs));
            let all: Vec<_> = frames.into_iter().flatten().flatten().collect();
            prop_assert_eq!(sizes(&blocks), all.iter().copied().enumerate().collect::<Vec<_>>());
            let bytes = |sizes: &[(usize, u8)]| -> usize {
                sizes.iter().map(|(_, size)| 2 + usize::from(*size)).sum()
            };
            prop_assert_eq!(blocks.span_bytes(), bytes(&sizes(&blocks)));
            let allocated = |blocks: &Blocks| -> usize {
                blocks.blocks.iter().map(|block| block_bytes(block.spans.len())).sum()
            };
            prop_assert_eq!(blocks.allocated, allocated(&blocks));
            let gone = gone.min(all.len());
            blocks.free(|keys| keys.end <= gone);
            let left = sizes(&blocks);
            let first = left.first().map_or(all.len(), |(key, _)| *key);
            prop_assert!(first <= gone, "only what is done is freed");
            let expected: Vec<_> = all.iter().copied().enumerate().skip(first).collect();
            prop_assert_eq!(&left, &expected);
            prop_assert_eq!(blocks.span_bytes(), bytes(&left));
            prop_assert_eq!(blocks.allocated, allocated(&blocks));
            prop_assert_eq!(blocks.runs.len(), blocks.stored().count());
        }
    }

    #[test]
    fn lists_of_a_giant_trace_are_not_kept_for_others() {
        let (mut spare, mut end) = (Spare::default(), 0);
        let mut blocks = Box::<Blocks>::default();
        (0..1000).for_each(|_| store(&mut blocks, &mut end, &[vec![1]]));
        // Few runs are left, and their list is a short one; that of blocks has room for all.
        blocks.free(|keys| keys.end < 999);
        blocks.clear();
        spare.put(blocks);
        assert_eq!(spare.0.len(), 0);
        (0..2 * SPARE_MAX).for_each(|_| spare.put(Box::default()));
        assert_eq!(spare.0.len(), SPARE_MAX);
    }

    #[test]
    fn second_block_is_made_where_one_would_waste_memory() {
        let spans = |count: usize| vec![126; count];
        let block_count = |runs: &[Vec<u8>]| {
            let (mut blocks, mut end) = (Blocks::default(), 0);
            store(&mut blocks, &mut end, runs);
            blocks.blocks.len()
        };
        assert_eq!(block_bytes(31 * 128), 4096);
        assert_eq!(block_bytes(34 * 128), 5120);
        assert_eq!(block_count(&[spans(31)]), 1);
        assert_eq!(block_count(&[spans(10), spans(21)]), 1, "it fits");
        assert_eq!(block_count(&[spans(31), spans(3)]), 2);
        assert_eq!(block_count(&[spans(3), spans(31)]), 2);
        assert_eq!(block_count(&[spans(34)]), 1, "spans of one scope stay together");
    }
}
