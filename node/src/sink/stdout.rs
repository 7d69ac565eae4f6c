//! Lines to standard output.
//!
//! Written through a duplicate of the descriptor, unbuffered, because what the standard library
//! buffers after a failed write would come out later, next to what the owner sends again. Nothing
//! can be taken back here: after a torn line the next one begins on a line of its own, and a reader
//! may see one that is no JSON. A pipe that nobody reads any more is an error for ever.

use super::StartError;
use super::lines::Lines;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Writes lines to `W`, which is standard output but in tests.
pub(super) struct Output<W = File> {
    writer: W,
    /// Part of a line was written last.
    torn: bool,
}

pub(super) fn open(sink: &str) -> Result<Output, StartError> {
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Ok(Output { writer: File::from(descriptor), torn: false }),
        Err(source) => Err(StartError::Stdout { sink: sink.into(), source }),
    }
}

impl<W: Write + Send + 'static> Lines for Output<W> {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.writer.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.writer.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.torn = !rest.is_empty();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pipe {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room - self.bytes.len());
            if count == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.bytes.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn line_after_a_torn_one_is_on_a_line_of_its_own() {
        let mut output = Output { writer: Pipe { bytes: Vec::new(), room: 9 }, torn: false };
        output.append(b"{one}\n").unwrap();
        assert_eq!(output.append(b"{two}\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        output.append(b"{two}\n").unwrap_err();
        output.writer.room = 100;
        output.append(b"{two}\n").unwrap();
        assert_eq!(output.writer.bytes, b"{one}\n{tw\n{two}\n");
    }

    #[test]
    fn failure_between_lines_adds_no_empty_one() {
        let mut output = Output { writer: Pipe { bytes: Vec::new(), room: 6 }, torn: false };
        output.append(b"{one}\n").unwrap();
        output.append(b"{two}\n").unwrap_err();
        output.writer.room = 100;
        output.append(b"{two}\n").unwrap();
        assert_eq!(output.writer.bytes, b"{one}\n{two}\n");
    }
}
