//! The system's randomness, answered from a seed.
//!
//! Gossip picks peers from hash sets, and libraries seed their generators from the system: without
//! this, no run would be like another. The functions below stand in front of those of the C library
//! in every program that this crate is linked into. A thread that called [`seed_this_thread`] gets
//! a stream that depends on the seed alone; every other thread gets what the system has.
//!
//! What ring draws goes another way and stays random: it decides over the bytes of ciphertexts and
//! nothing else, and nothing in a simulation looks at those. One of the two with `unsafe` here.
#![expect(unsafe_code, reason = "functions of the C library are replaced")]

use crate::dice::Dice;
use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};

thread_local! {
    /// One stream for each function, so that one caller's appetite does not shift another's stream.
    static STREAMS: RefCell<Option<[Dice; 2]>> = const { RefCell::new(None) };
}

/// From now on, what this thread asks the system for depends on `seed` alone. To be called before
/// anything on this thread was random: hash maps draw their keys once and keep them.
pub fn seed_this_thread(seed: u64) {
    let streams = [Dice::new(seed, "getrandom"), Dice::new(seed, "getentropy")];
    STREAMS.with(|own| own.replace(Some(streams)));
}

/// Fills the buffer from this thread's stream; whether it has one. Threads that are ending have
/// none any more.
fn fill(stream: usize, buffer: &mut [u8]) -> bool {
    let filled = STREAMS.try_with(|own| {
        let Ok(mut own) = own.try_borrow_mut() else { return false };
        let Some(streams) = own.as_mut() else { return false };
        for chunk in buffer.chunks_mut(8) {
            let word = streams[stream].word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        true
    });
    filled.unwrap_or(false)
}

/// # Safety
/// As for the function of this name in the C library: `buffer` points to `length` writable bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if length > 0 {
        // SAFETY: the caller owns that many bytes. They are written before they are read.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        if fill(0, bytes) {
            return length.cast_signed();
        }
    }
    // SAFETY: the arguments are those of the caller; the system call has the same contract.
    let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
    filled as isize
}

/// # Safety
/// As for the function of this name in the C library: `buffer` points to `length` writable bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn getentropy(buffer: *mut c_void, length: usize) -> c_int {
    if length > 0 {
        // SAFETY: the caller owns that many bytes. They are written before they are read.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        if fill(1, bytes) {
            return 0;
        }
    }
    // SAFETY: the arguments are those of the caller, with flags of zero.
    let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, 0) };
    if usize::try_from(filled) == Ok(length) { 0 } else { -1 }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher;

    fn drawn(seed: Option<u64>) -> (u64, u64) {
        let draw = move || {
            if let Some(seed) = seed {
                super::seed_this_thread(seed);
            }
            (rand::random::<u64>(), RandomState::new().hash_one(1))
        };
        std::thread::spawn(draw).join().unwrap()
    }

    #[test]
    fn what_libraries_draw_depends_on_the_seed_alone_where_there_is_one() {
        assert_eq!(drawn(Some(7)), drawn(Some(7)));
        assert_ne!(drawn(Some(7)), drawn(Some(8)));
        assert_ne!(drawn(None), drawn(None));
    }
}
