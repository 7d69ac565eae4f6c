//! A line file that is put aside when it is full, and begun anew.
//!
//! The file at PATH becomes PATH.1, which was PATH.2 before, and so on; at most `keep` stay. The
//! invariant: no line is cut, and none is lost but with the oldest file. Files are moved into gaps
//! only, the oldest first, so a crash between two moves leaves a gap that the next rotation fills.
//! Whatever fails is an error of the line that was to be written, and is tried again with the next.

use super::StartError;
use super::file::LineFile;
use super::lines::Lines;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// When a file is full, and what stays of those that were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file is put aside before it grows larger, unless by a single line; 0: never.
    pub bytes_max: u64,
    /// Files that stay besides the one that is written; 1 or more.
    pub keep: u32,
}

/// Whether a line is on the disk before it is acknowledged, or with the system alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It outlasts the process.
    System,
    /// It outlasts the machine.
    Disk,
}

/// See the module's invariant.
pub(super) struct RotatedFile {
    file: LineFile,
    sink: String,
    path: PathBuf,
    rotation: Rotation,
    durability: Durability,
}

impl RotatedFile {
    /// Opens the file of a sink, and locks it until the sink is gone.
    pub(super) fn open(
        sink: &str,
        path: &Path,
        rotation: Rotation,
        durability: Durability,
    ) -> Result<Self, StartError> {
        let file = LineFile::open_locked(sink, path)?;
        let (sink_name, path_name) = (sink.to_owned(), path.to_owned());
        let rotated = Self { file, sink: sink_name, path: path_name, rotation, durability };
        let synced = rotated.sync_directory();
        synced.map_err(|source| StartError::Open {
            sink: sink.into(),
            path: path.into(),
            source,
        })?;
        Ok(rotated)
    }

    fn is_full(&self, line: &[u8]) -> io::Result<bool> {
        let bytes = self.file.bytes()?;
        let bytes_max = self.rotation.bytes_max;
        Ok(bytes_max > 0 && bytes > 0 && bytes + line.len() as u64 > bytes_max)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        // Somebody else, or this before it failed, may have put it aside already.
        if self.is_in_place()? {
            self.make_room()?;
            fs::rename(&self.path, numbered(&self.path, 1))?;
        }
        self.file = LineFile::open_locked(&self.sink, &self.path).map_err(io::Error::other)?;
        self.sync_directory()
    }

    /// Whether the path names the file that is open.
    fn is_in_place(&self) -> io::Result<bool> {
        let open = self.file.storage().metadata()?;
        match fs::metadata(&self.path) {
            Ok(at_path) => Ok((at_path.dev(), at_path.ino()) == (open.dev(), open.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves the files up to the first gap, so that PATH.1 is free.
    fn make_room(&self) -> io::Result<()> {
        let keep = self.rotation.keep;
        let mut beyond = keep + 1;
        while remove(&numbered(&self.path, beyond))? {
            beyond += 1;
        }
        let mut gap = 1;
        while gap < keep && numbered(&self.path, gap).try_exists()? {
            gap += 1;
        }
        remove(&numbered(&self.path, gap))?;
        for number in (1..gap).rev() {
            fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1))?;
        }
        Ok(())
    }

    /// Names of files outlast the machine, too.
    fn sync_directory(&self) -> io::Result<()> {
        if self.durability == Durability::System {
            return Ok(());
        }
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Lines for RotatedFile {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.mend()?;
        if self.is_full(line)? {
            self.rotate().map_err(|error| {
                io::Error::new(error.kind(), format!("cannot put the full file aside: {error}"))
            })?;
        }
        self.file.append(line)
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.durability {
            Durability::System => Ok(()),
            Durability::Disk => self.file.storage().sync_data(),
        }
    }
}

/// The name of a file that was put aside.
pub(crate) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Whether there was one.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A directory with a file of at most 20 bytes: four lines.
    struct Scene {
        directory: tempfile::TempDir,
        file: RotatedFile,
    }

    fn open(directory: &Path, keep: u32) -> RotatedFile {
        let rotation = Rotation { bytes_max: 20, keep };
        let path = directory.join("traces.jsonl");
        RotatedFile::open("file", &path, rotation, Durability::Disk).unwrap()
    }

    impl Scene {
        fn new(keep: u32) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = open(directory.path(), keep);
            Self { directory, file }
        }

        fn write(&mut self, numbers: std::ops::Range<u32>) {
            numbers.for_each(|number| {
                self.file.append(format!("{{{number:02}}}\n").as_bytes()).unwrap()
            });
        }

        /// Lines by file name.
        fn files(&self) -> BTreeMap<String, Vec<String>> {
            let entries = fs::read_dir(self.directory.path()).unwrap();
            let read = |entry: io::Result<fs::DirEntry>| {
                let entry = entry.unwrap();
                let text = fs::read_to_string(entry.path()).unwrap();
                assert!(text.ends_with('\n') && text.len() <= 20, "{text}");
                let lines = text.lines().map(ToOwned::to_owned).collect();
                (entry.file_name().into_string().unwrap(), lines)
            };
            entries.map(read).collect()
        }

        fn assert_lines(&self, files: &[(&str, std::ops::Range<u32>)]) {
            let wanted = files.iter().map(|(end, numbers)| {
                let lines = numbers.clone().map(|number| format!("{{{number:02}}}")).collect();
                (format!("traces.jsonl{end}"), lines)
            });
            assert_eq!(self.files(), wanted.collect());
        }
    }

    #[test]
    fn full_file_is_put_aside_and_the_oldest_goes() {
        let mut scene = Scene::new(2);
        scene.write(0..4);
        scene.assert_lines(&[("", 0..4)]);
        scene.write(4..10);
        scene.assert_lines(&[("", 8..10), (".1", 4..8), (".2", 0..4)]);
        scene.write(10..13);
        scene.assert_lines(&[("", 12..13), (".1", 8..12), (".2", 4..8)]);
    }

    #[test]
    fn line_is_never_cut_even_when_it_alone_is_larger() {
        let mut scene = Scene::new(2);
        let large = format!("{{{}}}\n", "x".repeat(100));
        scene.write(0..1);
        scene.file.append(large.as_bytes()).unwrap();
        let path = scene.directory.path().join("traces.jsonl");
        assert_eq!(fs::read_to_string(&path).unwrap(), large);
        scene.write(1..2);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{01}\n");
        assert_eq!(fs::read_to_string(numbered(&path, 1)).unwrap(), large);
    }

    #[test]
    fn crash_between_two_moves_costs_no_file() {
        // What a rotation of three files leaves when it ends after so many moves.
        for moves in 0..=3 {
            let mut scene = Scene::new(3);
            scene.write(0..16);
            scene.assert_lines(&[("", 12..16), (".1", 8..12), (".2", 4..8), (".3", 0..4)]);
            let path = scene.directory.path().join("traces.jsonl");
            remove(&numbered(&path, 3)).unwrap();
            let steps = [(".2", ".3"), (".1", ".2"), ("", ".1")];
            for (from, to) in &steps[..moves] {
                let [from, to] =
                    [from, to].map(|end| scene.directory.path().join(format!("traces.jsonl{end}")));
                fs::rename(from, to).unwrap();
            }
            drop(scene.file);
            scene.file = open(scene.directory.path(), 3);
            scene.write(16..18);
            scene.assert_lines(&[("", 16..18), (".1", 12..16), (".2", 8..12), (".3", 4..8)]);
        }
    }

    #[test]
    fn fewer_files_stay_when_fewer_are_to_be_kept() {
        let mut scene = Scene::new(4);
        scene.write(0..20);
        drop(scene.file);
        scene.file = open(scene.directory.path(), 1);
        scene.write(20..21);
        scene.assert_lines(&[("", 20..21), (".1", 16..20)]);
    }

    #[test]
    fn what_cannot_be_put_aside_is_an_error_until_it_can() {
        let mut scene = Scene::new(2);
        scene.write(0..4);
        let path = scene.directory.path().join("traces.jsonl");
        // A directory that is not empty can neither be removed nor be moved upon.
        fs::create_dir_all(numbered(&path, 1).join("x")).unwrap();
        fs::create_dir_all(numbered(&path, 2).join("x")).unwrap();
        let error = scene.file.append(b"{04}\n").unwrap_err().to_string();
        assert!(error.starts_with("cannot put the full file aside: "), "{error}");
        fs::remove_dir_all(numbered(&path, 1)).unwrap();
        fs::remove_dir_all(numbered(&path, 2)).unwrap();
        scene.write(4..5);
        scene.assert_lines(&[("", 4..5), (".1", 0..4)]);
    }

    #[test]
    fn file_that_another_one_writes_is_left_to_it() {
        let mut scene = Scene::new(2);
        scene.write(0..4);
        let path = scene.directory.path().join("traces.jsonl");
        fs::rename(&path, scene.directory.path().join("elsewhere")).unwrap();
        let other = open(scene.directory.path(), 2);
        let error = scene.file.append(b"{04}\n").unwrap_err().to_string();
        assert!(error.contains("is being written by another sink"), "{error}");
        drop(other);
        scene.write(4..5);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{04}\n");
    }

    #[test]
    fn full_device_is_an_error_and_the_file_stays_open() {
        let path = Path::new("/dev/full");
        let rotation = Rotation { bytes_max: 20, keep: 2 };
        let mut file = RotatedFile::open("file", path, rotation, Durability::System).unwrap();
        for _ in 0..2 {
            let error = file.append(b"{}\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }
}
