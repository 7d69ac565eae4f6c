//! An allocator that counts what each node has allocated.
//!
//! A node's own gauge cannot show that the gauge is wrong, so memory is counted here, where it is
//! asked for. There is an account for each node and one for the world around them; whoever runs
//! code says on whose account it allocates ([`charge`]). Memory freed on another account than it
//! came from moves between the two; so what the world copies for itself it copies on its own
//! account. The invariant: over all accounts of a thread, allocated less freed is right to the
//! byte.
//!
//! Accounts belong to a thread; a simulation is one thread. One of the two with `unsafe` here.
#![expect(unsafe_code, reason = "an allocator is unsafe by nature; the work is mimalloc's")]

use crate::plan::{NODES_MAX, NodeNumber};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

/// One for each node, and the world's.
const ACCOUNTS: usize = NODES_MAX + 1;

const WORLD: usize = NODES_MAX;

struct Account {
    bytes: Cell<i64>,
    peak: Cell<i64>,
}

thread_local! {
    static PRESENT: Cell<usize> = const { Cell::new(WORLD) };
    static ACCOUNTS_HERE: [Account; ACCOUNTS] =
        const { [const { Account { bytes: Cell::new(0), peak: Cell::new(0) } }; ACCOUNTS] };
}

/// The allocator of the simulator's binary.
#[derive(Debug)]
pub struct Counting;

static BELOW: tracemesh::Allocator = tracemesh::Allocator;

fn count(bytes: i64) {
    let account = PRESENT.get();
    ACCOUNTS_HERE.with(|accounts| {
        let account = &accounts[account];
        account.bytes.set(account.bytes.get() + bytes);
        account.peak.set(account.peak.get().max(account.bytes.get()));
    });
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call goes to the node's allocator unchanged; counting touches only cells that need
// no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { BELOW.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { BELOW.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { BELOW.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { BELOW.realloc(pointer, layout, size) }
    }
}

/// Runs `work` on the account of a node, or of the world.
pub fn charge<T>(node: Option<NodeNumber>, work: impl FnOnce() -> T) -> T {
    struct Back(usize);
    impl Drop for Back {
        fn drop(&mut self) {
            PRESENT.set(self.0);
        }
    }
    let _back = Back(PRESENT.replace(node.unwrap_or(WORLD)));
    work()
}

/// What a node has allocated and not freed, and the most since the account was opened; 0 where
/// [`Counting`] is not the program's allocator.
pub fn balance(node: NodeNumber) -> (i64, i64) {
    ACCOUNTS_HERE.with(|accounts| (accounts[node].bytes.get(), accounts[node].peak.get()))
}

/// Begins a node's account anew, at zero.
pub fn open(node: NodeNumber) {
    ACCOUNTS_HERE.with(|accounts| {
        accounts[node].bytes.set(0);
        accounts[node].peak.set(0);
    });
}

/// What a node has allocated now, from where on its peak is measured anew.
pub fn mark(node: NodeNumber) -> i64 {
    ACCOUNTS_HERE.with(|accounts| {
        let account = &accounts[node];
        account.peak.set(account.bytes.get());
        account.bytes.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn bytes_are_counted_on_the_account_that_was_named() {
        open(1);
        open(2);
        let kept = charge(Some(1), || vec![0_u8; 100_000]);
        charge(Some(2), || drop(vec![0_u8; 50_000]));
        assert_eq!(balance(1), (100_000, 100_000));
        assert_eq!(balance(2), (0, 50_000));
        charge(Some(1), || drop(kept));
        assert_eq!(balance(1), (0, 100_000));
    }

    #[test]
    fn growing_counts_what_was_added() {
        open(3);
        charge(Some(3), || {
            let mut bytes = Vec::<u8>::with_capacity(10);
            bytes.reserve_exact(1_000);
            assert_eq!(balance(3).0, 1_000);
        });
        assert_eq!(balance(3).0, 0);
    }
}
