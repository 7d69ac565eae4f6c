//! A program that runs beside a test: a node, a collector, a load generator.
//!
//! The invariant: it never outlives the value that owns it, and what it prints is not lost:
//! standard output and error go to one file, which is printed when the owner is dropped by a
//! panicking test.

use crate::wait::{DEADLINE, wait_for, wait_until};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A running (or ended) program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts `command`; what it prints is added to `<directory>/<name>.log`.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(name: &str, directory: &Path, command: &mut Command) -> Self {
        let output = output_file(name, directory);
        let file = File::options().create(true).append(true).open(&output);
        let file = file.expect("the file for a program's output can be made");
        let again = file.try_clone().expect("a file handle can be cloned");
        let child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}: {command:?}"));
        Self { name: name.to_owned(), child, output }
    }

    /// Starts `command` and waits for its end.
    ///
    /// # Panics
    /// When it does not start, or has not ended at the deadline.
    pub fn run(name: &str, directory: &Path, command: &mut Command) -> Ended {
        let mut program = Self::start(name, directory, command);
        let status = program.wait();
        Ended { status, output: program.output() }
    }

    /// Everything that it has printed until now.
    pub fn output(&self) -> String {
        text_of(&self.output)
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// When it ends before, or at the deadline.
    pub fn wait_for_output(&mut self, text: &str) {
        let what = format!("{} to print {text:?}", self.name);
        wait_until(&what, || {
            let ended = self.ended();
            let printed = self.output().contains(text);
            assert!(printed || ended.is_none(), "{} ended: {ended:?}", self.name);
            printed
        });
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked whether it has ended")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&format!("the end of {}", self.name), || self.ended())
    }

    /// Sends SIGTERM and returns at once.
    ///
    /// # Panics
    /// When there is no `kill` command.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGINT, as ^C does, and returns at once.
    ///
    /// # Panics
    /// When there is no `kill` command.
    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Sends SIGHUP, as a closed terminal does, or who wants a configuration read again.
    ///
    /// # Panics
    /// When there is no `kill` command.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    /// Stops it where it is, until [`Program::resume`].
    ///
    /// # Panics
    /// When there is no `kill` command.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When there is no `kill` command.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Bytes of its memory that are resident now.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_bytes(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    /// The most bytes of its memory that were ever resident.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_bytes_max(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn status_kib(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a running process has a status");
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let figure = line.and_then(|line| line.split_whitespace().next());
        figure.and_then(|figure| figure.parse().ok()).expect("the status has a figure in KiB")
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status();
        status.expect("there is a command to send signals");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "---- {} printed:\n{}---- ({DEADLINE:?} at most a wait)",
                self.name,
                self.output()
            );
        }
    }
}

/// Everything that programs called `name` have printed into `directory`.
pub fn output_of(name: &str, directory: &Path) -> String {
    text_of(&output_file(name, directory))
}

fn output_file(name: &str, directory: &Path) -> PathBuf {
    directory.join(format!("{name}.log"))
}

fn text_of(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// How a program ended, and what it had printed.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output and error.
    pub output: String,
}

impl Ended {
    /// The output of a program that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert!(self.status.success(), "{}:\n{}", self.status, self.output);
        self.output
    }
}
