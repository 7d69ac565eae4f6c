//! Who may send spans: bearer tokens from a file, the same for both protocols.
//!
//! The file has a line `NAME:TOKEN` for each client; the name is for people. The invariant: how
//! long a comparison takes tells nothing about a token but its length, and no token gets into a
//! log, an answer or an error. [`Tokens`] is made anew when the file changes.

use crate::reload::{File, FileError, Files};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::collections::BTreeMap;
use std::path::Path;
use subtle::{Choice, ConstantTimeEq};

/// The tokens of a file, one or more.
pub struct Tokens(Vec<Vec<u8>>);

impl Tokens {
    /// Reads a file, and is ready to follow it.
    pub fn open(path: &Path) -> Result<Files<Self>, FileError> {
        Files::open(&[path.to_owned()], |files| Self::parse(&files[0]))
    }

    /// The tokens of a file that was read.
    pub fn parse(file: &File) -> Result<Self, FileError> {
        let text = std::str::from_utf8(&file.bytes).map_err(|_| file.error("no UTF-8"))?;
        let mut names = BTreeMap::new();
        let mut tokens = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parts = line.split_once(':').filter(|(name, token)| {
                !name.is_empty() && !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())
            });
            let Some((name, token)) = parts else {
                return Err(file.error(format!(
                    "line {number} is no NAME:TOKEN; expected a token of visible ASCII characters"
                )));
            };
            if let Some(first) = names.insert(name, number) {
                return Err(file.error(format!("line {number} has the name of line {first}")));
            }
            tokens.push(token.as_bytes().to_vec());
        }
        match tokens.is_empty() {
            true => Err(file.error("expected a line NAME:TOKEN for each client, and it has none")),
            false => Ok(Self(tokens)),
        }
    }

    /// Whether a request has one of the tokens (`Authorization: Bearer TOKEN`).
    pub(super) fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()))
        else {
            return false;
        };
        let equal = self.0.iter().map(|token| token.ct_eq(shown));
        equal.fold(Choice::from(0), |any, one| any | one).into()
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn parse(text: &str) -> Result<Tokens, String> {
        let file = File { path: "tokens".into(), bytes: text.as_bytes().to_vec() };
        Tokens::parse(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn every_token_of_the_file_lets_in_and_no_other() {
        let tokens = parse("# clients\ncart:one+/=\n\nshop:x:y\r\n").unwrap();
        let allow = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            tokens.allow(&headers)
        };
        for value in ["Bearer one+/=", "bearer  x:y", "BEARER x:y "] {
            assert!(allow(value), "{value}");
        }
        for value in ["Bearer one", "Bearer one+/=x", "Bearer", "Bearer ", "one+/=", "Basic x:y"] {
            assert!(!allow(value), "{value}");
        }
        assert!(!tokens.allow(&HeaderMap::new()));
    }

    #[test]
    fn file_that_lets_nobody_in_or_is_not_understood_is_refused_without_its_tokens() {
        for (text, said) in [
            ("", "it has none"),
            ("# a:b\n", "it has none"),
            ("a:secret\nsecret\n", "line 2 is no NAME:TOKEN"),
            (":secret", "line 1 is no NAME:TOKEN"),
            ("a:", "line 1 is no NAME:TOKEN"),
            ("a:secr\u{e9}t", "line 1 is no NAME:TOKEN"),
            ("\n a : secret", "line 2 is no NAME:TOKEN"),
            ("a:secret\na:secret2", "line 2 has the name of line 1"),
        ] {
            let error = parse(text).map(drop).unwrap_err();
            assert!(error.contains(said) && !error.contains("secr"), "{text:?}: {error}");
        }
    }
}
