//! Values made of files, and made again when the files change: certificates, tokens.
//!
//! The files are read every [`LOOK_EVERY`] and compared by their bytes, since times of change lie
//! where files are swapped by links. The invariant: there is always a value that whole, valid files
//! gave; when new ones cannot be read or used, that is said once, and the old value stays.
//! [`Files`] belongs to the task that runs [`Files::keep`]; others hold an [`InUse`]. Bounded by
//! [`FILE_BYTES_MAX`] a file. What is in a file never gets into a log or an error.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often files are looked at, as often as the mesh looks at its certificates.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The largest file. A bundle of some hundred authorities has 200 KB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file that cannot be read or used. Worth another try when somebody has replaced it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct FileError {
    /// Its name.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// A file that was read.
#[derive(PartialEq, Eq)]
pub struct File {
    /// Its name.
    pub path: PathBuf,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl File {
    /// Reads a whole file.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let failed = |error: io::Error| FileError {
            path: path.into(),
            why: format!("cannot read it: {error}"),
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        let length = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        let file = Self { path: path.into(), bytes };
        match length as u64 > FILE_BYTES_MAX {
            true => Err(file.error("larger than 1 MiB")),
            false => Ok(file),
        }
    }

    /// What is wrong with what is in it.
    pub fn error(&self, why: impl ToString) -> FileError {
        FileError { path: self.path.clone(), why: why.to_string() }
    }
}

/// The value that is in use now, for whoever uses it.
#[derive(Debug)]
pub struct InUse<T>(watch::Receiver<Arc<T>>);

impl<T> InUse<T> {
    /// The value.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }
}

impl<T> Clone for InUse<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Files and the value that they gave.
pub struct Files<T> {
    make: Box<Make<T>>,
    files: Vec<File>,
    in_use: watch::Sender<Arc<T>>,
    /// What was said last, so that it is said once.
    complaint: Option<FileError>,
}

type Make<T> = dyn Fn(&[File]) -> Result<T, FileError> + Send + Sync;

impl<T: Send + Sync + 'static> Files<T> {
    /// Reads files, one or more, and makes the first value of them.
    pub fn open(
        paths: &[PathBuf],
        make: impl Fn(&[File]) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let files = read(paths.iter().map(PathBuf::as_path))?;
        let in_use = watch::Sender::new(Arc::new(make(&files)?));
        Ok(Self { make: Box::new(make), files, in_use, complaint: None })
    }

    /// The value in use, now and later.
    pub fn in_use(&self) -> InUse<T> {
        InUse(self.in_use.subscribe())
    }

    /// Follows the files until `stop`.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            // Files may be on a disk that is slow.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(files) => self = files,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => return,
            }
        }
    }

    /// Looks once whether the files have changed.
    fn look(&mut self) {
        let error = match read(self.files.iter().map(|file| file.path.as_path())) {
            Ok(files) if files == self.files => None,
            Ok(files) => match (self.make)(&files) {
                Ok(value) => {
                    let file = self.files.first().map(|file| file.path.display().to_string());
                    self.in_use.send_replace(Arc::new(value));
                    self.files = files;
                    tracing::info!(file, "read again");
                    None
                }
                Err(error) => Some(error),
            },
            Err(error) => Some(error),
        };
        if let Some(error) = &error
            && self.complaint.as_ref() != Some(error)
        {
            tracing::error!(%error, "cannot use what has changed; the old file stays in use");
        }
        self.complaint = error;
    }
}

fn read<'p>(paths: impl Iterator<Item = &'p Path>) -> Result<Vec<File>, FileError> {
    paths.map(File::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn number(files: &[File]) -> Result<u32, FileError> {
        let text = std::str::from_utf8(&files[0].bytes).unwrap();
        text.trim().parse().map_err(|_| files[0].error("no number"))
    }

    #[test]
    fn value_follows_its_file_and_outlasts_one_that_is_broken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        fs::write(&path, "1").unwrap();
        let mut files = Files::open(std::slice::from_ref(&path), number).unwrap();
        let in_use = files.in_use();
        assert_eq!(*in_use.get(), 1);
        let looked = |files: &mut Files<u32>| {
            files.look();
            (*in_use.get(), files.complaint.as_ref().map(|error| error.why.clone()))
        };
        fs::write(&path, "2").unwrap();
        assert_eq!(looked(&mut files), (2, None));
        fs::write(&path, "two").unwrap();
        assert_eq!(looked(&mut files), (2, Some("no number".to_owned())));
        fs::write(&path, vec![b'7'; 1 + (1 << 20)]).unwrap();
        assert_eq!(looked(&mut files), (2, Some("larger than 1 MiB".to_owned())));
        fs::remove_file(&path).unwrap();
        let (value, why) = looked(&mut files);
        assert!(value == 2 && why.unwrap().contains("No such file"));
        fs::write(&path, "3").unwrap();
        assert_eq!(looked(&mut files), (3, None));
    }

    #[test]
    fn file_that_cannot_be_used_is_named_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        let error = Files::open(std::slice::from_ref(&path), number).err().unwrap().to_string();
        assert!(
            error.starts_with(&format!("{}: cannot read it: No such", path.display())),
            "{error}"
        );
        fs::write(&path, "x").unwrap();
        let error = Files::open(std::slice::from_ref(&path), number).err().unwrap().to_string();
        assert_eq!(error, format!("{}: no number", path.display()));
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_followed_until_they_need_not_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        fs::write(&path, "1").unwrap();
        let files = Files::open(std::slice::from_ref(&path), number).unwrap();
        let mut in_use = files.in_use();
        fs::write(&path, "2").unwrap();
        let stop = CancellationToken::new();
        let changed = async {
            in_use.0.changed().await.unwrap();
            assert_eq!(*in_use.get(), 2);
            stop.cancel();
        };
        tokio::join!(files.keep(stop.clone()), changed);
        assert!(in_use.0.changed().await.is_err(), "nobody follows them");
    }
}
