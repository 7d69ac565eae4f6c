//! A node's data directory, as far as it decides anything: the record of its starts, the spool.
//!
//! It belongs to the machine and outlives the node's process; a machine with an empty disk gets a
//! new one. A full disk refuses to be written and can still be read.

use bytes::Bytes;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracemesh::spool::{Records, SpoolStore};
use tracemesh_membership::{StartRecord, StartStore};

/// The disk; nothing is on it at first.
#[derive(Debug, Default)]
pub struct Disk {
    record: Mutex<Option<StartRecord>>,
    spool: Mutex<Option<Vec<Bytes>>>,
    /// Reasons for which it is full.
    full: AtomicU32,
}

impl Disk {
    /// One more reason for which nothing can be written.
    pub fn fill(&self) {
        self.full.fetch_add(1, Relaxed);
    }

    /// One reason less.
    pub fn make_room(&self) {
        // Only what was filled is made room on, once each.
        self.full.fetch_sub(1, Relaxed);
    }

    /// Whether nothing can be written.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed) > 0
    }

    /// Everything on it is lost.
    pub fn erase(&self) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.spool() = None;
    }

    fn spool(&self) -> MutexGuard<'_, Option<Vec<Bytes>>> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpoolStore for Disk {
    fn place(&self) -> String {
        "spool".to_owned()
    }

    fn read(&self) -> io::Result<Option<Records>> {
        let records = self.spool().clone();
        Ok(records.map(|records| Box::new(records.into_iter().map(Ok)) as Records))
    }

    fn write(&self, records: &mut dyn Iterator<Item = Bytes>) -> io::Result<()> {
        if self.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let records = records.collect();
        *self.spool() = Some(records);
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        *self.spool() = None;
        Ok(())
    }

    fn set_aside(&self) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl StartStore for Disk {
    fn load(&self) -> io::Result<Option<StartRecord>> {
        Ok(*self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn store(&self, record: StartRecord) -> io::Result<()> {
        if self.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_keeps_what_it_has() {
        let disk = Disk::default();
        let record = StartRecord { generation: 7, unsteady_starts: 1 };
        disk.store(record).unwrap();
        disk.fill();
        let error = disk.store(StartRecord::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.load().unwrap(), Some(record));
        disk.make_room();
        disk.erase();
        assert_eq!(disk.load().unwrap(), None);
    }
}
