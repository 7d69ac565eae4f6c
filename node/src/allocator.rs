//! The allocator of the daemon, and how long it keeps memory that nobody uses.
//!
//! Half of what a span costs is memory that comes and goes, and the first touch of a page that the
//! kernel gave costs as much as the work on it. The invariant: what traffic that goes on needs
//! again is not given back in between. What a burst needed goes back later, so a node at rest is
//! small again; the budget of `node.memory` bounds both. The one file of the node with `unsafe`.

pub use mimalloc::MiMalloc as Allocator;

use libmimalloc_sys::{mi_option_get, mi_option_set_default, mi_option_t};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "reads an option of a C library")]
    fn free_memory_is_kept_for_a_minute() {
        keep_free_memory();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, 60_000);
    }
}
