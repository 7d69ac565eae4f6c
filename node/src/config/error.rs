//! What is wrong with a configuration, one line an error.
//!
//! Loading collects every error before it gives up, so that a person corrects a file once and not
//! line by line. The invariant: each error names where the value was typed (file and line,
//! variable, or flag), which key it was for, and what was expected instead. Errors are bounded by
//! the size of the file and hold no secret: values of variables appear only when they are wrong.

use std::fmt::{self, Write as _};
use std::sync::Arc;

/// Where a value was typed. Ordered as the layers are applied, and lines within a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody typed it.
    Default,
    /// In the configuration file.
    File {
        /// The file's name as it was given.
        name: Arc<str>,
        /// Line, counted from 1.
        line: usize,
    },
    /// In an environment variable of this name.
    Variable(String),
    /// In a flag, written with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What is wrong with one value. None is worth a retry: somebody has to change the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is no YAML, or uses a part of it that configuration does without.
    #[error("{0}")]
    Syntax(String),
    /// No such key.
    #[error("unknown key{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// The key or value is part of the design, and not built.
    #[error("not yet: {0}")]
    NotYet(String),
    /// The key stands twice in one mapping.
    #[error("given twice, first at {first}")]
    Twice {
        /// Where the first one stands.
        first: Origin,
    },
    /// The text does not say what the key needs.
    #[error("{value} is no {kind}; expected {expected}")]
    BadValue {
        /// The value, quoted, or its shape.
        value: String,
        /// What the key holds.
        kind: &'static str,
        /// How that is written.
        expected: String,
    },
    /// The value is outside of the range of its key.
    #[error("{value} is out of range; expected {least} to {most}")]
    OutOfRange {
        /// The value.
        value: String,
        /// The smallest allowed.
        least: &'static str,
        /// The largest allowed.
        most: &'static str,
    },
    /// `${env:NAME}` names a variable that is not set.
    #[error("${{env:{0}}} is not set in the environment")]
    MissingVariable(String),
    /// A file could not be read, or holds something else.
    #[error("{file}: {why}")]
    File {
        /// Its name.
        file: String,
        /// What went wrong.
        why: String,
    },
    /// The value is fine, but not together with others.
    #[error("{0}")]
    Conflict(String),
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean {key}?"))
}

/// One error: where, which key, what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the value was typed.
    pub origin: Origin,
    /// Path of the key, with dots; empty when the whole file is meant.
    pub path: String,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for ConfigError {
    /// One line, whatever a key or a value holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if self.origin != Origin::Default {
            write!(line, "{}: ", self.origin)?;
        }
        if !self.path.is_empty() {
            write!(line, "{}: ", self.path)?;
        }
        write!(line, "{}", self.problem)?;
        line.chars().try_for_each(|character| {
            if character.is_control() {
                write!(f, "{}", character.escape_debug())
            } else {
                f.write_char(character)
            }
        })
    }
}

/// Everything that is wrong with a configuration, at least one error, in the order in which it was
/// typed. Nothing was started. `Display` is one line an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// Sorts errors by where they were typed.
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by(|one, other| one.origin.cmp(&other.origin));
        Self(errors)
    }

    /// The errors.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}
