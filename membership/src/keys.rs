//! What members say of themselves: the keys of gossip, written and parsed here and nowhere else.
//!
//! A member gossips short texts under fixed names. What the protocol waits for stands under
//! `view.`, so that a listener can tell it from figures that change all the time. The invariant:
//! what [`Published::entries`] writes, [`Published::parse`] reads back equal; and a member of
//! another release is understood as far as possible: unknown keys are passed over, a missing figure
//! is zero, and only what placement and the protocol rest on must be there. Each key is small (a
//! few dozen bytes; lists have [`ADDRESSES_MAX`] entries), because gossip sends a newcomer all of
//! them at once.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::view::{MemberState, Weight};

/// The keys that the protocol waits for begin with this.
pub(crate) const VIEW_PREFIX: &str = "view.";

const STATE: &str = "view.state";
const EPOCH: &str = "view.epoch";
const VIEW_HASH: &str = "view.hash";
const SETTLED: &str = "view.settled";
const WEIGHT: &str = "weight";
const ZONE: &str = "zone";
const VERSION: &str = "version";
const OTLP_GRPC: &str = "otlp.grpc";
const OTLP_HTTP: &str = "otlp.http";
const CONSOLE: &str = "console";
const FILL: &str = "fill";
const LOAD: &str = "load";
const CONFIG_HASH: &str = "config.hash";
const AGREED_CLUSTER: &str = "agreed.cluster";
const AGREED_REPLICAS: &str = "agreed.replicas";
const AGREED_HASH_KEY: &str = "agreed.hash_key";

/// Listeners of one kind that a member tells about; more are of no use to anybody.
const ADDRESSES_MAX: usize = 8;

/// Everything that one member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where in its life it is.
    pub state: MemberState,
    /// How many stand-stills it noticed in this generation.
    pub epoch: u32,
    /// The hash of its view.
    pub view_hash: u64,
    /// The hash of the last view in which it had nothing left to hand over; 0 for none.
    pub settled: u64,
    /// Its part of the load.
    pub weight: Weight,
    /// Its rack or site.
    pub zone: Arc<str>,
    /// Its release.
    pub version: String,
    /// Where it takes OTLP over gRPC.
    pub otlp_grpc: Vec<SocketAddr>,
    /// Where it takes OTLP over HTTP.
    pub otlp_http: Vec<SocketAddr>,
    /// Where its console is.
    pub console: Option<SocketAddr>,
    /// How full its memory budget is, in thousandths; more than 1000 is over it.
    pub fill: u16,
    /// How much it does.
    pub load: Load,
    /// Of the settings that may differ for a while.
    pub config_hash: u64,
    /// The settings that must agree.
    pub agreement: Agreement,
}

/// Figures for people and balancers; nothing is decided by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Spans that clients sent it, a second.
    pub spans_per_second: u64,
    /// Spans that it holds.
    pub spans_held: u64,
    /// Traces that it holds.
    pub traces_held: u64,
}

/// The settings that must agree in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The cluster's name.
    pub cluster: String,
    /// Nodes besides the owner that must hold a span before it is acknowledged.
    pub replicas: u8,
    /// Fingerprint of the placement's hash key.
    pub hash_key: u64,
}

impl Agreement {
    /// The first setting that differs: its name in the configuration, the value here, the value
    /// there.
    pub(crate) fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        if self.cluster != other.cluster {
            return Some(("cluster.name", self.cluster.clone(), other.cluster.clone()));
        }
        if self.replicas != other.replicas {
            let values = (self.replicas.to_string(), other.replicas.to_string());
            return Some(("cluster.replicas", values.0, values.1));
        }
        let fingerprint = |key: u64| format!("of fingerprint {key:016x}");
        // A cluster key holds the hash key, unless that has a file of its own.
        (self.hash_key != other.hash_key).then(|| {
            let key = "the hash key (of cluster.hash_key_file, else of cluster.key_file)";
            (key, fingerprint(self.hash_key), fingerprint(other.hash_key))
        })
    }
}

impl Published {
    /// The keys and their values.
    pub(crate) fn entries(&self) -> [(&'static str, String); 16] {
        let Load { spans_per_second, spans_held, traces_held } = self.load;
        [
            (STATE, self.state.to_string()),
            (EPOCH, self.epoch.to_string()),
            (VIEW_HASH, format!("{:016x}", self.view_hash)),
            (SETTLED, format!("{:016x}", self.settled)),
            (WEIGHT, self.weight.thousandths().to_string()),
            (ZONE, self.zone.to_string()),
            (VERSION, self.version.clone()),
            (OTLP_GRPC, write_addresses(&self.otlp_grpc)),
            (OTLP_HTTP, write_addresses(&self.otlp_http)),
            (CONSOLE, write_addresses(self.console.as_slice())),
            (FILL, self.fill.to_string()),
            (LOAD, format!("{spans_per_second} {spans_held} {traces_held}")),
            (CONFIG_HASH, format!("{:016x}", self.config_hash)),
            (AGREED_CLUSTER, self.agreement.cluster.clone()),
            (AGREED_REPLICAS, self.agreement.replicas.to_string()),
            (AGREED_HASH_KEY, format!("{:016x}", self.agreement.hash_key)),
        ]
    }

    /// Reads a member's keys; `get` returns the value of a key. `None` while something is missing
    /// or not understood that placement and the protocol rest on.
    pub(crate) fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        Some(Self {
            state: parse_state(get(STATE)?)?,
            epoch: get(EPOCH)?.parse().ok()?,
            view_hash: parse_hash(get(VIEW_HASH)?)?,
            settled: parse_hash(get(SETTLED)?)?,
            weight: Weight::from_thousandths(get(WEIGHT)?.parse().ok()?)?,
            zone: Arc::from(get(ZONE)?),
            version: get(VERSION).unwrap_or_default().to_owned(),
            otlp_grpc: parse_addresses(get(OTLP_GRPC)),
            otlp_http: parse_addresses(get(OTLP_HTTP)),
            console: parse_addresses(get(CONSOLE)).first().copied(),
            fill: get(FILL).and_then(|text| text.parse().ok()).unwrap_or_default(),
            load: get(LOAD).and_then(parse_load).unwrap_or_default(),
            config_hash: get(CONFIG_HASH).and_then(parse_hash).unwrap_or_default(),
            agreement: Agreement {
                cluster: get(AGREED_CLUSTER)?.to_owned(),
                replicas: get(AGREED_REPLICAS)?.parse().ok()?,
                hash_key: parse_hash(get(AGREED_HASH_KEY)?)?,
            },
        })
    }
}

fn parse_state(text: &str) -> Option<MemberState> {
    [MemberState::Joining, MemberState::Active, MemberState::Leaving]
        .into_iter()
        .find(|state| state.to_string() == text)
}

fn parse_hash(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn parse_load(text: &str) -> Option<Load> {
    let mut figures = text.split(' ').map(u64::from_str);
    Some(Load {
        spans_per_second: figures.next()?.ok()?,
        spans_held: figures.next()?.ok()?,
        traces_held: figures.next()?.ok()?,
    })
}

fn write_addresses(addresses: &[SocketAddr]) -> String {
    let texts: Vec<_> = addresses.iter().take(ADDRESSES_MAX).map(SocketAddr::to_string).collect();
    texts.join(",")
}

fn parse_addresses(text: Option<&str>) -> Vec<SocketAddr> {
    let texts = text.unwrap_or_default().split(',');
    texts.filter_map(|address| address.parse().ok()).take(ADDRESSES_MAX).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What a member says that has just started.
    pub(crate) fn published() -> Published {
        Published {
            state: MemberState::Joining,
            epoch: 0,
            view_hash: 0,
            settled: 0,
            weight: Weight::default(),
            zone: "".into(),
            version: "0.1.0".to_owned(),
            otlp_grpc: Vec::new(),
            otlp_http: Vec::new(),
            console: None,
            fill: 0,
            load: Load::default(),
            config_hash: 0,
            agreement: Agreement { cluster: "tracemesh".to_owned(), replicas: 1, hash_key: 7 },
        }
    }

    fn address() -> impl Strategy<Value = SocketAddr> + Clone {
        (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    fn any_published() -> impl Strategy<Value = Published> {
        let state = prop_oneof![
            Just(MemberState::Joining),
            Just(MemberState::Active),
            Just(MemberState::Leaving)
        ];
        let addresses = prop::collection::vec(address(), 0..=ADDRESSES_MAX);
        let texts = (".{0,20}", ".{0,20}", ".{0,20}");
        let figures = (any::<[u64; 7]>(), any::<u32>(), any::<u16>(), any::<u8>());
        let weight = Weight::MIN.thousandths()..=Weight::MAX.thousandths();
        (state, addresses.clone(), addresses, prop::option::of(address()), texts, figures, weight)
            .prop_map(|(state, otlp_grpc, otlp_http, console, texts, figures, weight)| {
                let ([hash, settled, a, b, c, config_hash, hash_key], epoch, fill, replicas) =
                    figures;
                Published {
                    state,
                    epoch,
                    view_hash: hash,
                    settled,
                    weight: Weight::from_thousandths(weight).unwrap(),
                    zone: texts.0.into(),
                    version: texts.1,
                    otlp_grpc,
                    otlp_http,
                    console,
                    fill,
                    load: Load { spans_per_second: a, spans_held: b, traces_held: c },
                    config_hash,
                    agreement: Agreement { cluster: texts.2, replicas, hash_key },
                }
            })
    }

    fn entries(published: &Published) -> BTreeMap<&'static str, String> {
        published.entries().into_iter().collect()
    }

    fn parse(entries: &BTreeMap<&str, String>) -> Option<Published> {
        Published::parse(|key| entries.get(key).map(String::as_str))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(published in any_published()) {
            prop_assert_eq!(parse(&entries(&published)), Some(published));
        }

        #[test]
        fn garbage_in_any_key_is_refused_or_passed_over(
            published in any_published(),
            key in 0..16_usize,
            garbage in ".{0,12}",
        ) {
            let mut entries = entries(&published);
            let (changed, _) = published.entries()[key];
            entries.insert(changed, garbage);
            if let Some(understood) = parse(&entries) {
                let weight = understood.weight.thousandths();
                prop_assert!((1..=1_000_000).contains(&weight));
            }
        }
    }

    #[test]
    fn figures_may_be_missing_and_what_placement_needs_may_not() {
        let figures = [VERSION, OTLP_GRPC, OTLP_HTTP, CONSOLE, FILL, LOAD, CONFIG_HASH];
        let all = entries(&published());
        assert_eq!(all.len(), 16);
        for key in all.keys() {
            let mut fewer = all.clone();
            fewer.remove(key);
            assert_eq!(parse(&fewer).is_some(), figures.contains(key), "{key}");
        }
    }

    #[test]
    fn a_key_of_a_later_release_is_passed_over() {
        let mut more = entries(&published());
        more.insert("later", "?".to_owned());
        assert_eq!(parse(&more), Some(published()));
    }

    #[test]
    fn every_setting_that_must_agree_is_compared() {
        let mine = published().agreement;
        assert_eq!(mine.difference(&mine), None);
        let theirs = Agreement { cluster: "other".to_owned(), ..mine.clone() };
        let expected = ("cluster.name", "tracemesh".to_owned(), "other".to_owned());
        assert_eq!(mine.difference(&theirs), Some(expected));
        let theirs = Agreement { replicas: 0, ..mine.clone() };
        let expected = ("cluster.replicas", "1".to_owned(), "0".to_owned());
        assert_eq!(mine.difference(&theirs), Some(expected));
        let theirs = Agreement { hash_key: 8, ..mine.clone() };
        let (key, here, there) = mine.difference(&theirs).unwrap();
        assert!(key.contains("cluster.hash_key_file"), "{key}");
        assert_ne!(here, there);
    }
}
