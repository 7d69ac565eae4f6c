//! A node's own directory: made at the start, and locked while the node lives.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The directory, locked until this is dropped.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

/// The directory cannot be used. Nothing was changed but for directories that were made.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// It is not there and cannot be made.
    #[error("cannot make the data directory {}; name another with --data-dir", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its lock cannot be taken.
    #[error("cannot write to the data directory {}; name another with --data-dir", path.display())]
    Write {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another node has it.
    #[error(
        "the data directory {} is in use by another node; give this one another --node-id or \
         --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl DataDirectory {
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirectoryError> {
        let path = path.to_owned();
        if let Err(source) = fs::create_dir_all(&path) {
            return Err(DataDirectoryError::Make { path, source });
        }
        let lock = match File::create(path.join("lock")) {
            Ok(lock) => lock,
            Err(source) => return Err(DataDirectoryError::Write { path, source }),
        };
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirectoryError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(DataDirectoryError::Write { path, source }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dead_letters(&self) -> PathBuf {
        self.path.join("dead-letters")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_has_one_node_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data/node");
        let first = DataDirectory::open(&path).unwrap();
        let second = DataDirectory::open(&path).unwrap_err();
        assert!(matches!(second, DataDirectoryError::InUse { .. }), "{second}");
        drop(first);
        DataDirectory::open(&path).unwrap();
    }

    #[test]
    fn directory_below_a_file_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDirectory::open(&file.path().join("data")).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
