//! The cluster key: the one secret with which a cluster needs no certificate authority to operate.
//!
//! A key is two secrets in one line of text: 32 bytes from which every node derives the cluster's
//! authority, and the 16-byte key of the placement's hash. They are apart because the first may
//! change while the second may not: a successor has a new authority and the same hash key. The
//! text carries its version and a checksum, so that a line that lost a character is a clear error
//! and not a node that nobody trusts. Secrets are never printed, except by [`ClusterKey::to_text`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use std::fmt;
use thiserror::Error;

const PREFIX: &str = "tracemesh-key-1:";
const SECRET_BYTES: usize = 32;
const HASH_KEY_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
const TEXT_BYTES: usize = SECRET_BYTES + HASH_KEY_BYTES + CHECKSUM_BYTES;

/// Keys that one file may hold: the one that issues, and the other one during a change of key.
const KEYS_MAX: usize = 2;

/// The secret of a cluster; every node that has it is a member.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey {
    secret: [u8; SECRET_BYTES],
    hash_key: [u8; HASH_KEY_BYTES],
}

/// Why a text is no cluster key file. Nothing was changed; the file has to be mended. The text
/// itself is never repeated, because it is secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// No line holds a key.
    #[error("the file holds no key; `tracemesh keygen` prints one")]
    Empty,
    /// More than two lines hold a key.
    #[error(
        "line {line} holds a third key; at most two are allowed: the first issues, both are \
             trusted"
    )]
    TooMany {
        /// Line, counted from 1.
        line: usize,
    },
    /// A line does not begin as a key does.
    #[error("line {line} is no key: it does not begin with `{PREFIX}`")]
    Prefix {
        /// Line, counted from 1.
        line: usize,
    },
    /// What follows the prefix has another length or alphabet.
    #[error("line {line} is no key: after `{PREFIX}` come 70 letters, digits, `-` and `_`")]
    Encoding {
        /// Line, counted from 1.
        line: usize,
    },
    /// The checksum does not fit: a character was changed.
    #[error("line {line} is mistyped: its checksum does not fit")]
    Checksum {
        /// Line, counted from 1.
        line: usize,
    },
    /// Two keys do not place spans alike.
    #[error(
        "the two keys differ in their hash key, so nodes would place spans differently; \
             make the second one with `tracemesh keygen --after` the first"
    )]
    HashKeys,
}

impl ClusterKey {
    /// A new key, from a source that nobody can predict.
    pub fn generate(random: &mut dyn rand::RngCore) -> Self {
        let mut key = Self { secret: [0; SECRET_BYTES], hash_key: [0; HASH_KEY_BYTES] };
        random.fill_bytes(&mut key.secret);
        random.fill_bytes(&mut key.hash_key);
        key
    }

    /// A key with a new authority and this one's hash key, for a change of key without a change of
    /// placement.
    pub fn successor(&self, random: &mut dyn rand::RngCore) -> Self {
        Self { hash_key: self.hash_key, ..Self::generate(random) }
    }

    /// The keys of a key file: one or two, one a line; blank lines and lines that begin with `#`
    /// are skipped. The first issues certificates, all are trusted.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, KeyError> {
        let mut keys: Vec<Self> = Vec::new();
        for (index, content) in text.lines().enumerate() {
            let (line, content) = (index + 1, content.trim());
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            if keys.len() == KEYS_MAX {
                return Err(KeyError::TooMany { line });
            }
            keys.push(Self::parse_line(content, line)?);
        }
        match keys.as_slice() {
            [] => Err(KeyError::Empty),
            [first, second] if first.hash_key != second.hash_key => Err(KeyError::HashKeys),
            _ => Ok(keys),
        }
    }

    fn parse_line(content: &str, line: usize) -> Result<Self, KeyError> {
        let body = content.strip_prefix(PREFIX).ok_or(KeyError::Prefix { line })?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| KeyError::Encoding { line })?;
        let bytes: [u8; TEXT_BYTES] = bytes.try_into().map_err(|_| KeyError::Encoding { line })?;
        let (secret, rest) = bytes.split_at(SECRET_BYTES);
        let (hash_key, checksum) = rest.split_at(HASH_KEY_BYTES);
        let mut key = Self { secret: [0; SECRET_BYTES], hash_key: [0; HASH_KEY_BYTES] };
        key.secret.copy_from_slice(secret);
        key.hash_key.copy_from_slice(hash_key);
        if checksum == key.checksum() { Ok(key) } else { Err(KeyError::Checksum { line }) }
    }

    /// The line that stands for this key in a file, without a line end. Secret.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(TEXT_BYTES);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.hash_key);
        bytes.extend_from_slice(&self.checksum());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The key of the hash that places traces; all nodes of a cluster need the same.
    pub fn hash_key(&self) -> [u8; 16] {
        self.hash_key
    }

    /// The built-in key of nodes that were given none. It is in every copy of the program, so it
    /// protects nothing: [`crate::Transport::start`] accepts it on loopback addresses only.
    pub fn development() -> Self {
        Self { secret: *b"tracemesh: public, loopback only", hash_key: *b"tracemesh-public" }
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }

    fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let mut text = PREFIX.as_bytes().to_vec();
        text.extend_from_slice(&self.secret);
        text.extend_from_slice(&self.hash_key);
        let hash = digest(&SHA256, &text);
        let mut checksum = [0; CHECKSUM_BYTES];
        checksum.copy_from_slice(&hash.as_ref()[..CHECKSUM_BYTES]);
        checksum
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    fn key(seed: u64) -> ClusterKey {
        ClusterKey::generate(&mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn a_key_file_holds_one_or_two_keys_between_comments() {
        let first = key(1);
        let second = first.successor(&mut StdRng::seed_from_u64(2));
        let text = format!("# ours\n\n  {}\r\n#next\n{}\n", first.to_text(), second.to_text());
        assert_eq!(ClusterKey::parse_file(&text), Ok(vec![first.clone(), second.clone()]));
        assert_ne!(first.secret, second.secret);
        assert_eq!(first.hash_key(), second.hash_key());
    }

    #[test]
    fn each_fault_of_a_key_file_is_named_with_its_line() {
        let text = key(1).to_text();
        let parse = |text: &str| ClusterKey::parse_file(text).unwrap_err();
        assert_eq!(parse("# nothing\n"), KeyError::Empty);
        assert_eq!(parse(&format!("{text}\n{text}\n\n{text}")), KeyError::TooMany { line: 4 });
        assert_eq!(parse("\nsecret"), KeyError::Prefix { line: 2 });
        assert_eq!(parse(&text[..text.len() - 1]), KeyError::Encoding { line: 1 });
        assert_eq!(parse(&format!("{text}\n{}", key(2).to_text())), KeyError::HashKeys);
    }

    #[test]
    fn debug_output_and_errors_never_show_the_secret() {
        let text = key(1).to_text();
        assert_eq!(format!("{:?}", key(1)), "ClusterKey(secret)");
        let error = ClusterKey::parse_file(&text[..40]).unwrap_err();
        assert!(!error.to_string().contains(&text[20..30]));
    }

    proptest! {
        #[test]
        fn a_key_survives_its_text(seed: u64) {
            let key = key(seed);
            prop_assert_eq!(ClusterKey::parse_file(&key.to_text()), Ok(vec![key]));
        }

        #[test]
        fn one_wrong_character_is_noticed(seed: u64, at in 16usize..86, letter in "[A-Za-z0-9]") {
            let text = key(seed).to_text();
            let mut typo = text.clone();
            typo.replace_range(at..=at, &letter);
            prop_assume!(typo != text);
            prop_assert!(ClusterKey::parse_file(&typo).is_err());
        }

        #[test]
        fn garbage_never_panics(text in "\\PC{0,200}") {
            let _ = ClusterKey::parse_file(&text);
            let _ = ClusterKey::parse_file(&format!("{PREFIX}{text}"));
        }
    }
}
