//! The stream of everything that happens in a simulation, as one running hash.
//!
//! Two runs of one seed are the same when their hashes are. When they are not, both are run again
//! with a log, a line an event, and the first line that differs says where they parted. An event is
//! told by words that mean the same in every build; contents of datagrams are left out, because
//! ciphertexts are random and decide nothing.

use crate::dice::mix;
use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

/// The hash so far, and the log where one is wanted.
pub struct Events {
    hash: u64,
    count: u64,
    log: Option<Box<dyn Write + Send>>,
    failure: Option<io::Error>,
}

impl Events {
    /// No event yet; `log` gets a line for each.
    pub fn new(log: Option<Box<dyn Write + Send>>) -> Self {
        Self { hash: 0, count: 0, log, failure: None }
    }

    /// Something happened. `words` tell it apart from everything else that may happen then; `text`
    /// tells it to people.
    pub fn add(&mut self, at: Duration, words: &[u64], text: fmt::Arguments<'_>) {
        let micros = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        self.hash = mix(self.hash.rotate_left(5) ^ micros);
        for word in words {
            self.hash = mix(self.hash.rotate_left(5) ^ word);
        }
        self.count += 1;
        if let Some(log) = &mut self.log
            && let Err(error) = writeln!(log, "{:>12.6} {text}", at.as_secs_f64())
        {
            self.failure.get_or_insert(error);
        }
    }

    /// The hash over all events, and their number.
    pub fn hash(&self) -> (u64, u64) {
        (self.hash, self.count)
    }

    /// Writes what is not yet written.
    ///
    /// # Errors
    /// The log could not be written, now or before. The hash is right all the same.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.log.as_mut().map_or(Ok(()), |log| log.flush())
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// A text as a word for [`Events::add`].
pub fn word(text: &str) -> u64 {
    text.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(events: &[(u64, u64)]) -> u64 {
        let mut all = Events::new(None);
        for &(at, word) in events {
            all.add(Duration::from_millis(at), &[word], format_args!(""));
        }
        all.hash().0
    }

    #[test]
    fn hash_depends_on_order_and_time() {
        assert_eq!(hash(&[(1, 2), (1, 3)]), hash(&[(1, 2), (1, 3)]));
        assert_ne!(hash(&[(1, 2), (1, 3)]), hash(&[(1, 3), (1, 2)]));
        assert_ne!(hash(&[(1, 2)]), hash(&[(2, 2)]));
    }
}
