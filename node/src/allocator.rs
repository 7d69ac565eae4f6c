//! The allocator of the daemon, and how long it keeps memory that nobody uses.
//!
//! Half of what a span costs is memory that comes and goes, and the first touch of a page that the
//! kernel gave costs as much as the work on it. The invariant: what traffic that goes on needs
//! again is not given back in between. What a burst needed goes back later, so a node at rest is
//! small again; the budget of `node.memory` bounds both. The one file of the node with `unsafe`.

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_option_get, mi_option_set_default, mi_option_t,
    mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_long;
use std::time::Duration;

/// Free memory goes back to the system after this time: twice the 30 s for which a trace without a
/// root waits, so that it outlasts the ups and downs of what is held.
const KEEP: Duration = Duration::from_secs(60);

/// `mi_option_purge_delay` of mimalloc's `mimalloc.h`, in ms; the binding has no name for it.
const PURGE_DELAY: mi_option_t = 15;

/// What mimalloc has there by default, by which the option is known to be that one.
const PURGE_DELAY_DEFAULT: c_long = 1000;

/// Lets the allocator keep free memory for a while. `MIMALLOC_PURGE_DELAY` in the environment, in
/// ms, says otherwise.
#[expect(unsafe_code, reason = "an option of a C library; it is an atomic number there")]
pub fn keep_free_memory() {
    let delay = c_long::try_from(KEEP.as_millis()).unwrap_or(c_long::MAX);
    // SAFETY: both take any number of an option that the library knows, and it knows some 40.
    unsafe {
        if mi_option_get(PURGE_DELAY) == PURGE_DELAY_DEFAULT {
            mi_option_set_default(PURGE_DELAY, delay);
        }
    }
}

/// mimalloc, asked for an alignment only where it would not give it anyway.
///
/// Rust names one with every allocation. For most sizes mimalloc then takes a slow path and a
/// larger block (its issue 889).
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

/// What mimalloc aligns everything to that is as large (`MI_MAX_ALIGN_SIZE`); what is smaller, to
/// any power of two that is no larger than it.
const NATURAL_ALIGNMENT: usize = 16;

/// The largest allocation that shares a page of the allocator with others
/// (`MI_LARGE_MAX_OBJ_SIZE`).
const LARGE_BYTES: usize = 512 << 10;

/// Larger ones come from the system, by its pages.
const OS_PAGE_BYTES: usize = 4096;

fn is_natural(align: usize, size: usize) -> bool {
    align <= NATURAL_ALIGNMENT && align <= size
}

// SAFETY: what mimalloc gives is valid for its size, aligned as [`is_natural`] says or as it was
// asked, and taken back by `mi_free` however it was asked for.
#[expect(unsafe_code, reason = "an allocator is unsafe by nature; the work is mimalloc's")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: any size and any power of two will do.
        let block = unsafe {
            if is_natural(align, size) { mi_malloc(size) } else { mi_malloc_aligned(size, align) }
        };
        block.cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        let block = unsafe {
            if is_natural(align, size) { mi_zalloc(size) } else { mi_zalloc_aligned(size, align) }
        };
        block.cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller says that it is from here.
        unsafe { mi_free(block.cast()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (block, align) = (block.cast(), layout.align());
        // SAFETY: as above, both.
        let block = unsafe {
            if is_natural(align, size) {
                mi_realloc(block, size)
            } else {
                mi_realloc_aligned(block, size, align)
            }
        };
        block.cast()
    }
}

/// What an allocation of so many bytes takes: there are four sizes between a power of two and the
/// next, from 64 on (`mi_good_size`), and whole pages above half a mebibyte.
pub fn allocated(bytes: usize) -> usize {
    match bytes {
        0..=64 => bytes.next_multiple_of(NATURAL_ALIGNMENT),
        65..=LARGE_BYTES => bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2)),
        _ => bytes.next_multiple_of(OS_PAGE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmimalloc_sys::mi_good_size;

    /// Several at once, because places that are far enough from each other come one after another.
    #[test]
    #[expect(unsafe_code, reason = "allocates")]
    fn blocks_are_aligned_and_keep_their_bytes() {
        let is_filled = |block: *const u8, size, with| {
            // SAFETY: each block below is written in the whole of its size.
            unsafe { std::slice::from_raw_parts(block, size) }.iter().all(|byte| *byte == with)
        };
        for align in (0..=12).map(|bits| 1 << bits) {
            for size in (1..=200).chain([1000, 1025, 1032, 5000, 70_000]) {
                let layout = Layout::from_size_align(size, align).unwrap();
                let larger = Layout::from_size_align(2 * size, align).unwrap();
                // SAFETY: each block is used in its size, and freed once, with its layout.
                unsafe {
                    let zeroed = [(); 4].map(|()| Allocator.alloc_zeroed(layout));
                    assert!(zeroed.iter().all(|block| is_filled(*block, size, 0)), "{layout:?}");
                    let blocks = [(); 4].map(|()| Allocator.alloc(layout));
                    blocks.iter().for_each(|block| block.write_bytes(7, size));
                    let all = zeroed.iter().chain(&blocks);
                    assert!(all.into_iter().all(|block| block.addr() % align == 0), "{layout:?}");
                    let grown = blocks.map(|block| Allocator.realloc(block, layout, 2 * size));
                    for block in grown {
                        assert!(is_filled(block, size, 7), "{layout:?}");
                        assert_eq!(block.addr() % align, 0, "{larger:?}");
                        Allocator.dealloc(block, larger);
                    }
                    zeroed.iter().for_each(|block| Allocator.dealloc(*block, layout));
                }
            }
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "asks a C library")]
    fn sizes_are_those_of_the_allocator() {
        let around = |size: usize| size - 1..=size + 1;
        let sizes = (9..10_000).chain((14..24).flat_map(|bits| around(3 << bits)));
        for size in sizes.chain((14..26).flat_map(|bits| around(1 << bits))) {
            // SAFETY: a function of a number.
            assert_eq!(allocated(size), unsafe { mi_good_size(size) }, "{size}");
        }
        assert_eq!(allocated(0), 0);
    }

    #[test]
    #[expect(unsafe_code, reason = "reads an option of a C library")]
    fn free_memory_is_kept_for_a_minute() {
        keep_free_memory();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, 60_000);
    }
}
