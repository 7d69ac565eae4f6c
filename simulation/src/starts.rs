//! A node's record of its starts, in memory.
//!
//! It outlives the node as long as a test keeps it, so handing it to the next node is a restart on
//! the same disk, and a new one is a restart on an empty disk. It holds one record; it never fails.

use std::io;
use std::sync::{Mutex, PoisonError};
use tracemesh_membership::{StartRecord, StartStore};

/// The record; there is none at first.
#[derive(Debug, Default)]
pub struct MemoryStarts {
    record: Mutex<Option<StartRecord>>,
}

impl StartStore for MemoryStarts {
    fn load(&self) -> io::Result<Option<StartRecord>> {
        Ok(*self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn store(&self, record: StartRecord) -> io::Result<()> {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
        Ok(())
    }
}
