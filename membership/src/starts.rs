//! The record of a node's starts: its last generation, and how often it came up only to fall.
//!
//! A generation names one life of a node, and gossip takes a life that is not newer than the last
//! one for dead. So it must grow over every restart, also when the wall clock went back: the
//! greatest of the wall clock in nanoseconds and what is on record plus one. The record is written
//! before the generation is used. Where it is lost the clock has to do; where the clock went back
//! too, the node hears its old generation in gossip and starts again above it (`twin`).
//!
//! The same record counts starts that ended within [`STEADY_AFTER`] and not in order. From the
//! third such end in a row on the node waits before it gossips again, 1 s, 2 s, ... up to
//! [`REJOIN_WAIT_MAX`]: a restart loop would else move data every time, and fill gossip with the
//! ids of its lives.
//!
//! One small file, owned by the node that has the data directory. What is unreadable counts as no
//! record; what cannot be written refuses the start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A node that ran for so long has not crashed at once: longer than the longest hand-over.
pub(crate) const STEADY_AFTER: Duration = Duration::from_secs(60);

/// A crash loop costs at most one view change in so long.
pub(crate) const REJOIN_WAIT_MAX: Duration = Duration::from_secs(64);

/// Ends that may be an operator's doing.
const UNSTEADY_TOLERATED: u32 = 2;

/// A generation above this was invented, and there might be none above it.
pub(crate) const GENERATION_MAX: u64 = u64::MAX / 2;

/// A wall clock after the year 2200 is broken. [`GENERATION_MAX`] is 62 years later.
const WALL_NANOS_MAX: u128 = 7_258_118_400_000_000_000;

/// What a node remembers of its starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartRecord {
    /// The last generation that was used.
    pub generation: u64,
    /// Starts in a row, the present one included, that neither ended in order nor ran for a minute.
    pub unsteady_starts: u32,
}

impl StartRecord {
    /// The record of a further start.
    pub(crate) fn next_start(self, wall: SystemTime) -> Self {
        Self {
            generation: generation_above(self.generation, wall),
            unsteady_starts: self.unsteady_starts.saturating_add(1),
        }
    }

    /// How long this start waits before it joins.
    pub(crate) fn rejoin_wait(self) -> Duration {
        let crashes = self.unsteady_starts.saturating_sub(1);
        match crashes.checked_sub(UNSTEADY_TOLERATED + 1) {
            None => Duration::ZERO,
            Some(more) => Duration::from_secs(1 << more.min(6)).min(REJOIN_WAIT_MAX),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix("starts/1 ")?.split_ascii_whitespace();
        Some(Self {
            generation: fields.next()?.parse().ok().filter(|last| *last < GENERATION_MAX)?,
            unsteady_starts: fields.next()?.parse().ok()?,
        })
    }

    fn text(self) -> String {
        format!("starts/1 {} {}\n", self.generation, self.unsteady_starts)
    }
}

/// A generation above `last`, and the wall clock in nanoseconds where that is greater.
pub(crate) fn generation_above(last: u64, wall: SystemTime) -> u64 {
    let nanos = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let nanos = if nanos > WALL_NANOS_MAX { 0 } else { nanos as u64 };
    nanos.max(last.saturating_add(1))
}

/// Where the record is kept: a file, or whatever a simulator puts in its place.
pub trait StartStore: Send + Sync {
    /// The record; `None` when there is none, or none that can be understood.
    ///
    /// # Errors
    /// It may be there, but cannot be read.
    fn load(&self) -> io::Result<Option<StartRecord>>;

    /// Replaces the record; it survives a crash of the machine once this has returned.
    ///
    /// # Errors
    /// It could not be written; the one before is unharmed.
    fn store(&self, record: StartRecord) -> io::Result<()>;
}

/// The record as a file of one line, replaced as a whole.
#[derive(Clone, Debug)]
pub struct StartsFile {
    path: PathBuf,
}

impl StartsFile {
    /// The file need not exist; its directory must.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    fn write(&self, record: StartRecord) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(record.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        File::open(self.directory())?.sync_all()
    }

    /// The error with the path, which the system leaves out.
    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

impl StartStore for StartsFile {
    fn load(&self) -> io::Result<Option<StartRecord>> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(StartRecord::parse)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.named(&error)),
        }
    }

    fn store(&self, record: StartRecord) -> io::Result<()> {
        self.write(record).map_err(|error| self.named(&error))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_generation_is_the_wall_clock_in_nanoseconds() {
        assert_eq!(StartRecord::default().next_start(at(5)).generation, 5_000_000_000);
    }

    #[test]
    fn a_generation_grows_when_the_clock_went_back() {
        let first = StartRecord::default().next_start(at(1_000));
        let second = first.next_start(at(10));
        assert_eq!(second.generation, first.generation + 1);
        let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(second.next_start(before_1970).generation, first.generation + 2);
    }

    proptest! {
        #[test]
        fn generations_grow_over_any_steps_of_the_clock(
            clocks in prop::collection::vec(0..u64::MAX / 4, 2..20),
        ) {
            let mut record = StartRecord::default();
            for seconds in clocks {
                let wall = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
                let next = record.next_start(wall.unwrap_or(SystemTime::UNIX_EPOCH));
                prop_assert!(next.generation > record.generation);
                record = next;
            }
        }

        #[test]
        fn a_record_is_read_back_and_garbage_is_none(
            generation in 0..GENERATION_MAX,
            unsteady_starts: u32,
            garbage in ".*",
        ) {
            let record = StartRecord { generation, unsteady_starts };
            prop_assert_eq!(StartRecord::parse(&record.text()), Some(record));
            prop_assert_eq!(StartRecord::parse(&garbage), None);
        }
    }

    #[test]
    fn a_node_that_keeps_crashing_waits_longer_each_time() {
        let mut record = StartRecord::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            record = record.next_start(at(1));
            waits.push(record.rejoin_wait().as_secs());
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 64, 64]);
        let worst = StartRecord { generation: 1, unsteady_starts: u32::MAX };
        assert_eq!(worst.next_start(at(1)).rejoin_wait(), REJOIN_WAIT_MAX);
    }

    #[test]
    fn the_file_keeps_the_last_record() {
        let directory = tempfile::tempdir().unwrap();
        let file = StartsFile::new(directory.path().join("starts"));
        assert_eq!(file.load().unwrap(), None);
        for generation in 1..4 {
            let record = StartRecord { generation, unsteady_starts: 1 };
            file.store(record).unwrap();
            assert_eq!(file.load().unwrap(), Some(record));
        }
        let names = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 1, "nothing but the record is left behind");
    }

    #[test]
    fn a_file_that_is_not_understood_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("starts");
        let file = StartsFile::new(&path);
        let beyond = b"starts/1 18446744073709551615 1";
        for content in [&b""[..], b"starts/1", b"starts/1 x 1", b"starts/9 1 1", b"\xFF", beyond] {
            fs::write(&path, content).unwrap();
            assert_eq!(file.load().unwrap(), None);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("starts");
        let error = StartsFile::new(&path).store(StartRecord::default()).unwrap_err();
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    }
}
