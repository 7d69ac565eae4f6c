//! The spool: what a node could not get rid of when it stopped in order, kept for its next start
//! (PROTOCOL.md, M4).
//!
//! A file of Holds, as frames carry them, each with its length and a checksum. It is written whole
//! beside the old one and put in its place, and is removed only when everything that was read from
//! it is where it belongs; so it is there until it is not needed, whatever happens in between. The
//! invariant: what is damaged is never taken for spans, costs nothing that stands before it, and is
//! set aside, not deleted.

use crate::assemble::{HoldError, Shards};
use crate::frame::{self, Hold, Origin, Sender};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The first line; another one is another format.
const HEADER: &[u8] = b"tracemesh-spool/1\n";
/// A record is a frame: its spans, what is said of their traces, and some room.
const RECORD_BYTES_MAX: usize = 4 * frame::FRAME_SPANS_BYTES_MAX;
/// How often it is tried again to hold what there was no memory for, and looked whether everything
/// is placed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Records of a spool, one after the other.
pub type Records = Box<dyn Iterator<Item = Result<Bytes, SpoolError>> + Send>;

/// A spool cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The machine refuses.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// What stands there is no record.
    #[error("damaged at byte {at}")]
    Damaged {
        /// Where the first record that makes no sense begins.
        at: u64,
    },
}

/// Where a spool is kept: a file, or whatever a simulator puts in its place.
pub trait SpoolStore: Send + Sync {
    /// Where that is, for people.
    fn place(&self) -> String;

    /// The records; `None` when there is no spool.
    ///
    /// # Errors
    /// It may be there, but cannot be read.
    fn read(&self) -> io::Result<Option<Records>>;

    /// Replaces the spool; it survives a crash of the machine once this has returned.
    ///
    /// # Errors
    /// It could not be written; the one before is unharmed.
    fn write(&self, records: &mut dyn Iterator<Item = Bytes>) -> io::Result<()>;

    /// Removes the spool, if there is one.
    ///
    /// # Errors
    /// It is still there.
    fn clear(&self) -> io::Result<()>;

    /// Keeps a damaged spool under another name as well, which nobody reads, and says which.
    ///
    /// # Errors
    /// It has no other name.
    fn set_aside(&self) -> io::Result<String>;
}

/// A spool as a file.
#[derive(Clone, Debug)]
pub struct SpoolFile {
    path: PathBuf,
}

impl SpoolFile {
    /// The file need not exist; its directory must.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn write_to(path: &Path, records: &mut dyn Iterator<Item = Bytes>) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(HEADER)?;
        for record in records {
            let length = u32::try_from(record.len()).map_err(io::Error::other)?;
            file.write_all(&length.to_le_bytes())?;
            file.write_all(&crc32fast::hash(&record).to_le_bytes())?;
            file.write_all(&record)?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

impl SpoolStore for SpoolFile {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn read(&self) -> io::Result<Option<Records>> {
        match File::open(&self.path) {
            Ok(file) => Ok(Some(Box::new(Reader { file: BufReader::new(file), at: 0 }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, records: &mut dyn Iterator<Item = Bytes>) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let written = Self::write_to(&fresh, records);
        if written.is_err() {
            // Half a spool would only take the room that is missing.
            let _ = fs::remove_file(&fresh);
        }
        written?;
        fs::rename(&fresh, &self.path)?;
        self.sync_directory()
    }

    fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn set_aside(&self) -> io::Result<String> {
        let free = (1..).map(|number| self.path.with_extension(format!("damaged-{number}")));
        let aside = free.into_iter().find(|path| !path.exists()).unwrap_or_default();
        fs::hard_link(&self.path, &aside)?;
        self.sync_directory()?;
        Ok(aside.display().to_string())
    }
}

/// The records of a file; it ends after the first error.
struct Reader {
    file: BufReader<File>,
    at: u64,
}

impl Reader {
    fn record(&mut self) -> Result<Option<Bytes>, SpoolError> {
        if self.at == 0 {
            let mut header = [0; HEADER.len()];
            self.fill(&mut header)?;
            if header != *HEADER {
                return Err(SpoolError::Damaged { at: 0 });
            }
            self.at = HEADER.len() as u64;
        }
        let mut head = [0; 8];
        if self.file.read(&mut head[..1])? == 0 {
            return Ok(None);
        }
        self.fill(&mut head[1..])?;
        let [a, b, c, d, e, f, g, h] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(SpoolError::Damaged { at: self.at });
        }
        let mut record = vec![0; length];
        self.fill(&mut record)?;
        if crc32fast::hash(&record) != u32::from_le_bytes([e, f, g, h]) {
            return Err(SpoolError::Damaged { at: self.at });
        }
        self.at += (head.len() + length) as u64;
        Ok(Some(record.into()))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SpoolError> {
        match self.file.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(SpoolError::Damaged { at: self.at })
            }
            other => Ok(other?),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Bytes, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == u64::MAX {
            return None;
        }
        let record = self.record().transpose();
        if !matches!(record, Some(Ok(_))) {
            self.at = u64::MAX;
        }
        record
    }
}

/// The spool of a running node: what is yet to be read, and where what is left goes.
#[derive(Clone)]
pub struct Spool {
    store: Arc<dyn SpoolStore>,
    unread: Arc<Mutex<Unread>>,
}

/// What was not read of a spool.
pub struct Rest {
    record: Option<Bytes>,
    records: Option<Records>,
    kept: bool,
}

impl Rest {
    /// Whether all was read.
    pub fn is_empty(&self) -> bool {
        self.record.is_none() && self.records.is_none()
    }
}

#[derive(Default)]
struct Unread {
    /// Read, and not held yet.
    record: Option<Bytes>,
    records: Option<Records>,
    /// There is a spool of which not everything is placed yet, or that cannot be set aside.
    kept: bool,
    /// It is damaged, and has another name.
    aside: bool,
}

impl Spool {
    /// Opens what the last stop left, if anything.
    ///
    /// # Errors
    /// It may be there, but cannot be read.
    pub fn open(store: Arc<dyn SpoolStore>) -> io::Result<Self> {
        let records = store.read()?;
        let kept = records.is_some();
        let unread = Unread { record: None, records, kept, aside: false };
        Ok(Self { store, unread: Arc::new(Mutex::new(unread)) })
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        self.store.place()
    }

    /// Whether everything that the last stop left is held.
    pub fn is_read(&self) -> bool {
        let unread = self.unread();
        unread.record.is_none() && unread.records.is_none()
    }

    /// Holds what the last stop left as if another node had sent it, by a view that nobody has;
    /// then waits until it is placed, and removes it. Cancel-safe: what was not held is still here.
    pub async fn read_back(&self, shards: &Shards, is_placed: impl Fn(Instant) -> bool) {
        if !self.unread().kept {
            return;
        }
        let mut holds: u64 = 0;
        while let Some(record) = self.next() {
            match hold(shards, record).await {
                Ok(Held::Held) => {
                    self.unread().record = None;
                    holds += 1;
                }
                Ok(Held::Full) => sleep(LOOK_AGAIN).await,
                Err(HoldError::Stopping) => return,
                Err(error) => {
                    let mut unread = self.unread();
                    unread.record = None;
                    self.set_aside(&mut unread, &error);
                }
            }
        }
        tracing::info!(holds, spool = self.place(), "read what the last stop left");
        let read_at = Instant::now();
        while !is_placed(read_at) {
            sleep(LOOK_AGAIN).await;
        }
        self.clear();
    }

    /// Nothing of it is needed any more.
    pub fn clear(&self) {
        let mut unread = self.unread();
        if !std::mem::take(&mut unread.kept) {
            return;
        }
        if let Err(error) = self.store.clear() {
            let spool = self.place();
            tracing::error!(%error, spool, "cannot remove a spool that is not needed any more");
        }
    }

    /// Ends reading, and gives what was not read: nothing that is held meanwhile is missing in what
    /// is held afterwards.
    pub fn end_reading(&self) -> Rest {
        let mut unread = self.unread();
        // What is being read goes on into the new spool, which nobody removes.
        let kept = std::mem::take(&mut unread.kept);
        Rest { record: unread.record.take(), records: unread.records.take(), kept }
    }

    /// Nothing of it is needed any more after reading was ended.
    pub fn discard(&self, rest: &Rest) {
        self.unread().kept = rest.kept;
        self.clear();
    }

    /// Replaces it by `holds` and what was not read of it.
    ///
    /// # Errors
    /// It could not be written; the one before is unharmed.
    pub fn write(&self, holds: impl Iterator<Item = Hold>, rest: Rest) -> io::Result<()> {
        let unread = rest.records.into_iter().flatten().map_while(|record| match record {
            Ok(record) => Some(record),
            Err(error) => {
                self.set_aside(&mut self.unread(), &error);
                None
            }
        });
        let held = holds.map(|hold| frame::encode(&hold)).chain(rest.record);
        self.store.write(&mut held.chain(unread))
    }

    /// The record to hold next. What is damaged ends the spool, and is set aside.
    fn next(&self) -> Option<Bytes> {
        let mut unread = self.unread();
        if unread.record.is_none() {
            match unread.records.as_mut()?.next() {
                Some(Ok(record)) => unread.record = Some(record),
                Some(Err(error)) => {
                    unread.records = None;
                    self.set_aside(&mut unread, &error);
                }
                None => unread.records = None,
            }
        }
        unread.record.clone()
    }

    /// Until what stands before the damage is placed, the spool stays where it is as well.
    fn set_aside(&self, unread: &mut Unread, error: &dyn std::fmt::Display) {
        if unread.aside {
            return;
        }
        let aside = self.store.set_aside();
        unread.aside = aside.is_ok();
        let aside = aside.unwrap_or_else(|error| format!("nowhere: {error}"));
        tracing::error!(
            %error,
            spool = self.place(),
            aside,
            "spool cannot be read on: what stands before that is held, the rest is lost unless \
             another node has it"
        );
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Held {
    Held,
    Full,
}

async fn hold(shards: &Shards, record: Bytes) -> Result<Held, HoldError> {
    let hold: Hold = frame::decode(record)?;
    // By no view: whoever should have it may lack it.
    let hold = Hold { sender: Sender::default(), origin: Origin::Placing.into(), ..hold };
    let reply = shards.on_hold(hold).await?;
    Ok(if reply.full { Held::Full } else { Held::Held })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool() -> (tempfile::TempDir, SpoolFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = SpoolFile::new(directory.path().join("spool"));
        (directory, file)
    }

    fn records(file: &SpoolFile) -> (Vec<Bytes>, Option<SpoolError>) {
        let (mut good, mut bad) = (Vec::new(), None);
        for record in file.read().unwrap().unwrap() {
            match record {
                Ok(record) => good.push(record),
                Err(error) => bad = Some(error),
            }
        }
        (good, bad)
    }

    #[test]
    fn records_are_read_back_and_a_spool_is_replaced_as_a_whole() {
        let (directory, file) = spool();
        assert!(file.read().unwrap().is_none());
        let all = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 70_000])];
        for count in [3, 1] {
            file.write(&mut all[..count].iter().cloned()).unwrap();
            let (good, bad) = records(&file);
            assert_eq!((good, bad.is_none()), (all[..count].to_vec(), true));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        file.clear().unwrap();
        file.clear().unwrap();
        assert!(file.read().unwrap().is_none());
    }

    #[test]
    fn whatever_is_damaged_or_cut_off_what_stands_before_it_is_read() {
        let (_directory, file) = spool();
        let all = [Bytes::from_static(b"first"), Bytes::from_static(b"second")];
        file.write(&mut all.iter().cloned()).unwrap();
        let whole = fs::read(&file.path).unwrap();
        let second = HEADER.len() + 8 + all[0].len();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&file.path, &damaged).unwrap();
            let (good, bad) = records(&file);
            let intact = if at < HEADER.len() + 8 + all[0].len() { 0 } else { 1 };
            assert_eq!(good, all[..intact], "byte {at}");
            assert!(bad.is_some(), "byte {at}");
            fs::write(&file.path, &whole[..at]).unwrap();
            let (good, bad) = records(&file);
            let between = [HEADER.len(), second].contains(&at);
            assert!(good.len() < 2 && bad.is_none() == between, "cut at {at}");
        }
    }

    #[test]
    fn damaged_spool_is_set_aside_and_never_over_another() {
        let (directory, file) = spool();
        for number in 1..4 {
            fs::write(&file.path, b"garbage").unwrap();
            assert!(file.set_aside().unwrap().ends_with(&format!("spool.damaged-{number}")));
            file.clear().unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_stands_before_a_damage_stays_until_it_is_placed() {
        let (directory, file) = spool();
        let all = [Bytes::from_static(b"first"), Bytes::from_static(b"second")];
        file.write(&mut all.iter().cloned()).unwrap();
        let mut damaged = fs::read(&file.path).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(&file.path, &damaged).unwrap();
        let read = || {
            let spool = Spool::open(Arc::new(file.clone())).unwrap();
            let first = spool.next();
            spool.unread().record = None;
            (first, spool.next(), spool)
        };
        for _ in 0..2 {
            let (first, second, _) = read();
            assert_eq!((first.as_ref(), second), (Some(&all[0]), None), "whoever is killed then");
        }
        let (.., spool) = read();
        let rest = spool.end_reading();
        assert!(rest.is_empty());
        spool.clear();
        assert!(file.path.exists(), "it may be another one by then");
        spool.discard(&rest);
        assert!(!file.path.exists());
        assert_eq!(fs::read(directory.path().join("spool.damaged-1")).unwrap(), damaged);
    }

    #[test]
    fn directory_that_is_gone_is_an_error_and_what_was_not_read_stays() {
        let (directory, file) = spool();
        file.write(&mut std::iter::once(Bytes::from_static(b"one"))).unwrap();
        let unread = Spool::open(Arc::new(file.clone())).unwrap();
        assert!(!unread.is_read());
        let rest = unread.end_reading();
        unread.write(std::iter::once(Hold::default()), rest).unwrap();
        let (good, _) = records(&file);
        assert_eq!(good.len(), 2, "what is held now, and what was never read");
        drop(directory);
        let rest = unread.end_reading();
        assert!(unread.write(std::iter::empty(), rest).is_err());
    }
}
