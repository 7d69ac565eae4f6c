//! Texts and what they mean: durations, sizes, addresses, names.
//!
//! A [`Kind`] says how the value of a key is written; [`Kind::parse`] turns a text into a
//! [`Value`], or says what it expected. File, variables, flags and defaults all pass through here,
//! and `Display` of a value is a text that parses to the same value. Nothing here knows keys.

use super::{HostPort, Share};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The longest name of a cluster or node: both fit into the URI of a certificate and a file name.
const NAME_LEN_MAX: usize = 128;
/// The longest other text.
const TEXT_LEN_MAX: usize = 1024;
/// The longest duration: ten years, so that adding it to a clock never overflows.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];
const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// How the value of a key is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A name for a directory and for the path of a URI.
    Name,
    /// A name for the host of a URI.
    LowerName,
    Text,
    Path,
    Url,
    /// Of a web page.
    Origin,
    Ip,
    /// Where to listen: an IP may be left out.
    Listener,
    /// Where others reach this node.
    Socket,
    /// Another node.
    Address,
    Duration,
    Size,
    /// A size, or a percentage of the memory budget.
    Share,
    Count,
    Number,
    Choice(&'static [&'static str]),
    List(&'static Self),
    /// A mapping of texts.
    Texts,
}

/// What a text means.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(super) enum Value {
    /// A name, text, path, URL or choice.
    Text(String),
    Ip(IpAddr),
    Listener(Option<IpAddr>, u16),
    Socket(SocketAddr),
    Address(HostPort),
    Duration(Duration),
    Size(u64),
    Share(Share),
    Count(u64),
    Number(f64),
    List(Vec<Self>),
    Texts(Vec<(String, String)>),
}

impl Kind {
    /// What the value is called in errors and in the reference.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Name | Self::LowerName => "name",
            Self::Text => "text",
            Self::Path => "path",
            Self::Url => "URL",
            Self::Origin => "origin",
            Self::Ip => "IP address",
            Self::Listener => "listener",
            Self::Socket => "IP address with port",
            Self::Address => "address",
            Self::Duration => "duration",
            Self::Size => "size",
            Self::Share => "size or percentage",
            Self::Count => "whole number",
            Self::Number => "number",
            Self::Choice(_) => "choice",
            Self::List(item) => match item {
                Self::Listener => "list of listeners",
                Self::Address => "list of addresses",
                Self::Origin => "list of origins",
                Self::Url => "list of URLs",
                _ => "list",
            },
            Self::Texts => "mapping of texts",
        }
    }

    /// How the value is written.
    pub(super) fn expected(self) -> String {
        let expected = match self {
            Self::Name => "letters, digits, and inside `.`, `_`, `-`, such as node-1",
            Self::LowerName => "lower-case letters, digits, and inside `.`, `_`, `-`, such as blue",
            Self::Text => "at most 1024 bytes without control characters",
            Self::Path => "the name of a file or directory",
            Self::Url => "http://HOST:PORT or https://HOST:PORT",
            Self::Origin => {
                "* or http(s)://HOST[:PORT] as browsers write it, in lower case and without a port \
                 that goes without saying"
            }
            Self::Ip => "an IPv4 or IPv6 address, such as 127.0.0.1",
            Self::Listener => "IP:PORT or :PORT, such as \":4317\"",
            Self::Socket => "IP:PORT, such as 10.0.0.1:4319",
            Self::Address => "HOST:PORT, such as 10.0.0.1:4319",
            Self::Duration => "a whole number with ms, s, m or h, such as 250ms",
            Self::Size => "a number with B, KiB, MiB or GiB, such as 64MiB",
            Self::Share => "a percentage of node.memory or a size, such as 10% or 64MiB",
            Self::Count => "digits, such as 20000",
            Self::Number => "digits, such as 1.5",
            Self::Choice(choices) => return choices.join(" or "),
            Self::List(item) => return format!("a list, each {}", item.expected()),
            Self::Texts => "a mapping, such as {name: value}",
        };
        expected.to_owned()
    }

    /// What one text means; `None` when it means nothing of this kind.
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        let checked = |valid: bool| valid.then(|| Value::Text(text.to_owned()));
        match self {
            Self::Name => checked(is_name(text)),
            Self::LowerName => checked(is_name(text) && !text.contains(char::is_uppercase)),
            Self::Text => checked(is_text(text)),
            Self::Path => checked(!text.is_empty() && is_text(text)),
            Self::Url => checked(is_url(text)),
            Self::Origin => checked(text == "*" || is_origin(text)),
            Self::Choice(choices) => checked(choices.contains(&text)),
            Self::Ip => text.parse().ok().map(Value::Ip),
            Self::Listener => listener(text),
            Self::Socket => text.parse().ok().map(Value::Socket),
            Self::Address => text.parse().ok().map(Value::Address),
            Self::Duration => duration(text).map(Value::Duration),
            Self::Size => scaled(text, &SIZE_UNITS).map(Value::Size),
            Self::Share => share(text).map(Value::Share),
            Self::Count => digits(text).map(Value::Count),
            Self::Number => number(text).map(Value::Number),
            Self::List(item) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|text| item.parse(text)).collect::<Option<_>>().map(Value::List)
            }
            Self::Texts => None,
        }
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_LEN_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

fn is_text(text: &str) -> bool {
    text.len() <= TEXT_LEN_MAX && !text.contains(char::is_control)
}

/// Without a user's name and password: those belong into headers.
fn is_url(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    })
}

fn is_origin(text: &str) -> bool {
    let is_default = text.starts_with("http://") && text.ends_with(":80")
        || text.starts_with("https://") && text.ends_with(":443");
    is_url(text) && !text.ends_with('/') && !is_default && !text.contains(char::is_uppercase)
}

fn listener(text: &str) -> Option<Value> {
    if let Some(port) = text.strip_prefix(':') {
        let port = digits(port)?.try_into().ok()?;
        return Some(Value::Listener(None, port));
    }
    let socket: SocketAddr = text.parse().ok()?;
    Some(Value::Listener(Some(socket.ip()), socket.port()))
}

fn duration(text: &str) -> Option<Duration> {
    let duration = Duration::from_millis(scaled(text, &DURATION_UNITS)?);
    (duration <= DURATION_MAX).then_some(duration)
}

fn share(text: &str) -> Option<Share> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent = digits(percent)?.try_into().ok()?;
            (percent <= 100).then_some(Share::Percent(percent))
        }
        None => scaled(text, &SIZE_UNITS).map(Share::Bytes),
    }
}

/// The first unit that ends the text; longer units stand before those that end them.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)));
    let (number, scale) = unit?;
    digits(number.trim_end())?.checked_mul(*scale)
}

/// Digits alone: `parse` would take a plus sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// No `NaN`, no infinity, no exponent.
fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| text.parse().ok())?
}

/// Written in the largest unit that needs no fraction.
fn in_largest_unit(number: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().filter(|(_, scale)| number >= *scale && number.is_multiple_of(*scale));
    match whole.max_by_key(|(_, scale)| scale) {
        Some((unit, scale)) => format!("{}{unit}", number / scale),
        None => format!("0{}", units[units.len() - 1].0),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Listener(Some(ip), port) => write!(f, "{}", SocketAddr::new(*ip, *port)),
            Self::Listener(None, port) => write!(f, ":{port}"),
            Self::Socket(socket) => write!(f, "{socket}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Duration(duration) => {
                let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                f.write_str(&in_largest_unit(milliseconds, &DURATION_UNITS))
            }
            Self::Size(bytes) | Self::Share(Share::Bytes(bytes)) => {
                f.write_str(&in_largest_unit(*bytes, &SIZE_UNITS))
            }
            Self::Share(Share::Percent(percent)) => write!(f, "{percent}%"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(ToString::to_string).collect();
                f.write_str(&items.join(","))
            }
            // The values may be secrets.
            Self::Texts(texts) => {
                let names: Vec<_> = texts.iter().map(|(name, _)| format!("{name}: …")).collect();
                write!(f, "{{{}}}", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Kind; 17] = [
        Kind::Name,
        Kind::LowerName,
        Kind::Text,
        Kind::Path,
        Kind::Url,
        Kind::Origin,
        Kind::Ip,
        Kind::Listener,
        Kind::Socket,
        Kind::Address,
        Kind::Duration,
        Kind::Size,
        Kind::Share,
        Kind::Count,
        Kind::Number,
        Kind::Choice(&["one", "two"]),
        Kind::List(&Kind::Address),
    ];

    #[track_caller]
    fn assert_refused(kind: Kind, texts: &[&str]) {
        for text in texts {
            assert_eq!(kind.parse(text), None, "{text:?} as {}", kind.name());
        }
    }

    #[test]
    fn units_are_exact() {
        let duration = |text| Kind::Duration.parse(text);
        assert_eq!(duration("250ms"), Some(Value::Duration(Duration::from_millis(250))));
        assert_eq!(duration("2 s"), Some(Value::Duration(Duration::from_secs(2))));
        assert_eq!(duration("10m"), Some(Value::Duration(Duration::from_secs(600))));
        assert_eq!(duration("87600h"), Some(Value::Duration(DURATION_MAX)));
        assert_refused(Kind::Duration, &["", "1", "s", "1.5s", "-1s", "+1s", "1S", "1s1", "1us"]);
        assert_refused(Kind::Duration, &["87601h", "18446744073709551615h", "1 fortnight"]);
        assert_eq!(Kind::Size.parse("0B"), Some(Value::Size(0)));
        assert_eq!(Kind::Size.parse("3KiB"), Some(Value::Size(3072)));
        assert_eq!(Kind::Size.parse("4GiB"), Some(Value::Size(4 << 30)));
        assert_refused(Kind::Size, &["", "1", "4GB", "4G", "1.5MiB", "B", "99999999999GiB"]);
        assert_eq!(Kind::Share.parse("100%"), Some(Value::Share(Share::Percent(100))));
        assert_refused(Kind::Share, &["101%", "-1%", "%", "10 percent", "256%"]);
    }

    #[test]
    fn names_fit_into_files_and_uris() {
        assert!(Kind::Name.parse("Node-1.rack_7").is_some());
        assert_refused(Kind::Name, &["", ".", "..", "-a", "a/b", "a b", "a\n", "bücher"]);
        assert_refused(Kind::Name, &["a".repeat(NAME_LEN_MAX + 1).as_str()]);
        assert_refused(Kind::LowerName, &["Blue", ""]);
        assert_refused(Kind::Text, &["a\nb", "a".repeat(TEXT_LEN_MAX + 1).as_str()]);
        assert_refused(Kind::Path, &[""]);
    }

    #[test]
    fn addresses_have_a_port() {
        let any = Value::Listener(None, 4317);
        assert_eq!(Kind::Listener.parse(":4317"), Some(any));
        assert_refused(Kind::Listener, &["4317", ":", ":65536", ":+1", "localhost:1", "127.0.0.1"]);
        assert_refused(
            Kind::Address,
            &["a", "a:", ":1", "a:0", "a:b", "http://a:1", "::1:1", "[a]:1"],
        );
        assert_refused(Kind::Url, &["a:1", "ftp://a", "http://u:p@a", "http://"]);
        assert!(Kind::Url.parse("http://[::1]:4317").is_some());
        for origin in ["*", "https://shop.example", "http://localhost:3000", "http://[::1]:8080"] {
            assert!(Kind::Origin.parse(origin).is_some(), "{origin}");
        }
        assert_refused(
            Kind::Origin,
            &["shop.example", "https://a/", "https://A", "https://a:443", "http://a:80", "null"],
        );
        assert_refused(Kind::Number, &["", ".", "1e3", "NaN", "inf", "-1", "1,5"]);
    }

    /// Addresses, durations and sizes, some of them good.
    const TEXT: &str = "(\\[?[0-9a-f:.]{1,9}\\]?:)?[0-9]{1,6}(ms|[smhB%]|[KMG]iB)?";

    proptest! {
        #[test]
        fn what_is_shown_means_the_same(text in TEXT) {
            for kind in KINDS {
                if let Some(value) = kind.parse(&text) {
                    let shown = value.to_string();
                    prop_assert_eq!(kind.parse(&shown), Some(value), "{}", shown);
                }
            }
        }

        #[test]
        fn garbage_never_panics(text in "\\PC{0,30}") {
            for kind in KINDS {
                let _ = kind.parse(&text);
            }
        }
    }
}
