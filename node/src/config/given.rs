//! Values by path, each with the place where it was typed.
//!
//! The invariant: a value has the kind that the table of keys gives to its path. To read one as
//! another kind, or one that has no default as if it were always there, is a bug of the reader and
//! panics; every start of a node reads them all, so such a bug does not live long.

use super::error::Origin;
use super::values::Value;
use super::{HostPort, Share};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A value and where it was typed.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// Values by path.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Given>);

impl Values {
    pub(super) fn insert(&mut self, path: &'static str, origin: Origin, value: Value) {
        self.0.insert(path, Given { origin, value });
    }

    /// Sets a value that nobody typed.
    pub(super) fn set_default(&mut self, path: &'static str, value: Value) {
        self.0.entry(path).or_insert(Given { origin: Origin::Default, value });
    }

    pub(super) fn get(&self, path: &str) -> Option<&Given> {
        self.0.get(path)
    }

    /// Where a value was typed; the default for those that nobody typed.
    pub(super) fn origin(&self, path: &str) -> Origin {
        self.get(path).map_or(Origin::Default, |given| given.origin.clone())
    }

    /// A value as a person would type it.
    pub(super) fn typed(&self, path: &str) -> String {
        self.get(path).map_or_else(String::new, |given| given.value.to_string())
    }

    /// A name, text, path, URL or choice.
    pub(super) fn text(&self, path: &str) -> &str {
        present(path, self.optional_text(path))
    }

    pub(super) fn optional_text(&self, path: &str) -> Option<&str> {
        self.read(path, |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn list_of_texts(&self, path: &str) -> Vec<&str> {
        self.items(path, |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn texts(&self, path: &str) -> &[(String, String)] {
        let texts = self.read(path, |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        });
        texts.unwrap_or_default()
    }

    pub(super) fn ip(&self, path: &str) -> IpAddr {
        let ip = self.read(path, |value| match value {
            Value::Ip(ip) => Some(*ip),
            _ => None,
        });
        present(path, ip)
    }

    /// Listeners of a list, or the one of a key that holds one; without an IP they get this one.
    pub(super) fn listeners(&self, path: &str, bind: IpAddr) -> Vec<SocketAddr> {
        self.items(path, |value| match value {
            Value::Listener(ip, port) => Some(SocketAddr::new(ip.unwrap_or(bind), *port)),
            _ => None,
        })
    }

    pub(super) fn optional_socket(&self, path: &str) -> Option<SocketAddr> {
        self.read(path, |value| match value {
            Value::Socket(socket) => Some(*socket),
            _ => None,
        })
    }

    pub(super) fn addresses(&self, path: &str) -> Vec<HostPort> {
        self.items(path, |value| match value {
            Value::Address(address) => Some(address.clone()),
            _ => None,
        })
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        let duration = self.read(path, |value| match value {
            Value::Duration(duration) => Some(*duration),
            _ => None,
        });
        present(path, duration)
    }

    pub(super) fn size(&self, path: &str) -> u64 {
        let bytes = self.read(path, |value| match value {
            Value::Size(bytes) => Some(*bytes),
            _ => None,
        });
        present(path, bytes)
    }

    pub(super) fn share(&self, path: &str) -> Share {
        let share = self.read(path, |value| match value {
            Value::Share(share) => Some(*share),
            _ => None,
        });
        present(path, share)
    }

    pub(super) fn count(&self, path: &str) -> u64 {
        let count = self.read(path, |value| match value {
            Value::Count(count) => Some(*count),
            _ => None,
        });
        present(path, count)
    }

    pub(super) fn number(&self, path: &str) -> f64 {
        let number = self.read(path, |value| match value {
            Value::Number(number) => Some(*number),
            _ => None,
        });
        present(path, number)
    }

    fn read<'v, T>(&'v self, path: &str, read: impl Fn(&'v Value) -> Option<T>) -> Option<T> {
        let given = self.get(path)?;
        Some(present(path, read(&given.value)))
    }

    fn items<'v, T>(&'v self, path: &str, read: impl Fn(&'v Value) -> Option<T>) -> Vec<T> {
        let items = match self.get(path).map(|given| &given.value) {
            Some(Value::List(items)) => items.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        items.iter().map(|value| present(path, read(value))).collect()
    }
}

#[track_caller]
fn present<T>(path: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| panic!("{path} is not what the table of keys says it is"))
}
