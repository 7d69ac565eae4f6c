//! A file of whole lines, with one writer.
//!
//! The invariant: between two calls the file consists of whole lines. What a failed write left of
//! one is cut off at once, or, if that fails too, before the next line; what a crash left of one is
//! cut off when the file is opened. Nothing cut off was ever acknowledged.
//!
//! The file may be renamed or truncated from outside at any time, but not written to. What bounds
//! it is its owner's business.

use super::StartError;
use super::lines::Lines;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Read backwards in steps of this size for the end of the last whole line.
const SEARCH_BYTES: usize = 64 << 10;

/// What a line file needs of a file that is open for appending; a test puts a full disk here.
pub(super) trait Storage: Write + Send + 'static {
    fn bytes(&self) -> io::Result<u64>;
    fn set_bytes(&mut self, bytes: u64) -> io::Result<()>;
}

impl Storage for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_bytes(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// See the module's invariant.
pub(super) struct LineFile<S = File> {
    storage: S,
    /// Where the last whole line ends, when part of another one follows it.
    torn: Option<u64>,
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).read(true).append(true).open(path)
}

impl LineFile {
    /// Opens the file of a sink, and locks it for as long as it is open.
    pub(super) fn open_locked(sink: &str, path: &Path) -> Result<Self, StartError> {
        let error = |source| StartError::Open { sink: sink.into(), path: path.into(), source };
        let file = append_to(path).map_err(error)?;
        file.try_lock().map_err(|cause| match cause {
            TryLockError::WouldBlock => StartError::Locked { sink: sink.into(), path: path.into() },
            TryLockError::Error(source) => error(source),
        })?;
        let mut first = [b'{'];
        if file.bytes().map_err(error)? > 0 {
            file.read_exact_at(&mut first, 0).map_err(error)?;
        }
        if first != *b"{" {
            return Err(StartError::Foreign { sink: sink.into(), path: path.into() });
        }
        Self::whole(file, path).map_err(error)
    }

    /// Opens a file that the caller alone writes, and cuts off what is left of a torn line.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::whole(append_to(path)?, path)
    }

    fn whole(file: File, path: &Path) -> io::Result<Self> {
        let bytes = file.bytes()?;
        let whole = whole_bytes(&file, bytes)?;
        if whole < bytes {
            file.set_len(whole)?;
            let path = path.display();
            tracing::warn!(%path, bytes = bytes - whole, "cut off a line that a crash left torn");
        }
        Ok(Self { storage: file, torn: None })
    }
}

/// Where the last whole line of a file ends.
fn whole_bytes(file: &File, bytes: u64) -> io::Result<u64> {
    let mut block = vec![0; SEARCH_BYTES.min(usize::try_from(bytes).unwrap_or(usize::MAX))];
    let mut end = bytes;
    while end > 0 {
        // The last byte alone first: nearly always it ends a line.
        let step = if end == bytes { 1 } else { end.min(SEARCH_BYTES as u64) };
        let start = end - step;
        let part = &mut block[..step as usize];
        file.read_exact_at(part, start)?;
        if let Some(newline) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

impl<S: Storage> LineFile<S> {
    /// Size of the file now.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        self.storage.bytes()
    }

    /// The open file.
    pub(super) fn storage(&self) -> &S {
        &self.storage
    }

    /// Cuts off what a failed write left of a line.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        if let Some(whole) = self.torn {
            // Somebody may have emptied the file; then there is nothing to cut, and nothing to add.
            if self.storage.bytes()? > whole {
                self.storage.set_bytes(whole)?;
            }
            self.torn = None;
        }
        Ok(())
    }
}

impl<S: Storage> Lines for LineFile<S> {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.mend()?;
        let whole = self.storage.bytes()?;
        self.storage.write_all(line).and_then(|()| self.storage.flush()).inspect_err(|_| {
            self.torn = Some(whole);
            // The write's error is the one to tell; should this fail too, the next line mends.
            let _ = self.mend();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A disk with room for `room` bytes, which may refuse to cut as well.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
        cuts: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room - self.bytes.len());
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Storage for Disk {
        fn bytes(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }

        fn set_bytes(&mut self, bytes: u64) -> io::Result<()> {
            if !self.cuts {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.bytes.truncate(bytes as usize);
            Ok(())
        }
    }

    fn disk(room: usize, cuts: bool) -> LineFile<Disk> {
        LineFile { storage: Disk { bytes: Vec::new(), room, cuts }, torn: None }
    }

    #[test]
    fn full_disk_leaves_whole_lines() {
        let mut file = disk(10, true);
        file.append(b"{one}\n").unwrap();
        assert_eq!(file.append(b"{two}\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.storage.bytes, b"{one}\n");
        file.storage.room = 20;
        file.append(b"{two}\n").unwrap();
        assert_eq!(file.storage.bytes, b"{one}\n{two}\n");
    }

    #[test]
    fn line_that_could_not_be_cut_is_cut_before_the_next() {
        let mut file = disk(10, false);
        file.append(b"{one}\n").unwrap();
        file.append(b"{two}\n").unwrap_err();
        assert_eq!(file.storage.bytes, b"{one}\n{two");
        file.storage.room = 100;
        assert!(file.append(b"{three}\n").is_err(), "nothing may follow half a line");
        file.storage.cuts = true;
        file.append(b"{three}\n").unwrap();
        assert_eq!(file.storage.bytes, b"{one}\n{three}\n");
    }

    #[test]
    fn torn_last_line_is_cut_off_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        let long = format!("{{\"a\":\"{}", "x".repeat(3 * SEARCH_BYTES));
        for (before, after) in [
            ("", ""),
            ("{}\n", "{}\n"),
            ("{}\n{", "{}\n"),
            ("{\"a\":1", ""),
            (&format!("{{}}\n{long}"), "{}\n"),
            ("{}\n\0\0\0", "{}\n"),
            (&long, ""),
        ] {
            fs::write(&path, before).unwrap();
            let mut file = LineFile::open_locked("file", &path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
            file.append(b"{\"b\":2}\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{after}{{\"b\":2}}\n"));
        }
    }

    #[test]
    fn second_writer_is_refused_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        let first = LineFile::open_locked("file", &path).unwrap();
        let refused = LineFile::open_locked("file-2", &path).err().unwrap();
        assert!(matches!(refused, StartError::Locked { .. }));
        assert!(refused.to_string().contains("traces.jsonl"));
        drop(first);
        LineFile::open_locked("file-2", &path).unwrap();
    }

    #[test]
    fn file_of_another_kind_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        fs::write(&path, "dear diary").unwrap();
        assert!(matches!(LineFile::open_locked("file", &path), Err(StartError::Foreign { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary");
    }

    #[test]
    fn file_emptied_by_others_goes_on_from_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        let mut file = LineFile::open_locked("file", &path).unwrap();
        file.append(b"{one}\n").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        file.append(b"{two}\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"{two}\n");
    }
}
