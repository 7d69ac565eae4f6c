//! The addresses behind the configured seeds.
//!
//! A seed is `IP:port`, which is taken as it is, or `name:port`, which is looked up again at every
//! try, with all the addresses it has then. This node's own address is passed over, so that every
//! host can have the same list. Seeds are tried for ever: briefly apart while nobody is known,
//! seldom afterwards, when all that they are for is to heal a mesh that was cut for long.
//!
//! Owns nothing but what it said to the log, so that a name that cannot be resolved is reported
//! once and not at every try. Names need the system's resolver; addresses need nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::member::SeedKind;

/// Between two tries while nobody is known.
pub(crate) const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Between two tries when somebody is.
pub(crate) const TRY_AGAIN_CALM: Duration = Duration::from_secs(5);

/// A resolver that takes longer is as good as none; the next try may find a better one.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// Addresses that are tried at a time: one of them suffices to find the mesh.
const ADDRESSES_MAX: usize = 64;

/// The configured seeds.
#[derive(Debug)]
pub(crate) struct Seeds {
    fixed: BTreeSet<SocketAddr>,
    names: Vec<String>,
    myself: SocketAddr,
    /// How the last look-up of a name went, as far as the log was told.
    told: BTreeMap<String, Resolution>,
}

/// What a try found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) kind: SeedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    Known,
    Unknown,
}

impl Seeds {
    pub(crate) fn new(seeds: &[String], myself: SocketAddr) -> Self {
        let mut fixed = BTreeSet::new();
        let mut names = Vec::new();
        for seed in seeds {
            match seed.parse::<SocketAddr>() {
                Ok(address) if address == myself => {}
                Ok(address) => drop(fixed.insert(address)),
                Err(_) => names.push(seed.clone()),
            }
        }
        Self { fixed, names, myself, told: BTreeMap::new() }
    }

    /// Whether there is anybody to ask, as far as that is known without a look-up.
    pub(crate) fn kind(&self) -> SeedKind {
        if self.fixed.is_empty() && self.names.is_empty() {
            SeedKind::OnlyMyself
        } else {
            SeedKind::Others
        }
    }

    /// Looks all names up.
    pub(crate) async fn find(&mut self) -> Found {
        self.find_by(addresses_of).await
    }

    async fn find_by<F>(&mut self, look_up: impl Fn(String) -> F) -> Found
    where
        F: Future<Output = Vec<SocketAddr>>,
    {
        let mut addresses = self.fixed.clone();
        let mut all_known = true;
        for name in &self.names {
            let found = look_up(name.clone()).await;
            let resolution = if found.is_empty() { Resolution::Unknown } else { Resolution::Known };
            all_known &= resolution == Resolution::Known;
            addresses.extend(found.into_iter().filter(|address| *address != self.myself));
            if is_news(&mut self.told, name, resolution) {
                tell(name, resolution);
            }
        }
        let nobody = addresses.is_empty() && all_known;
        let kind = if nobody { SeedKind::OnlyMyself } else { SeedKind::Others };
        Found { addresses: addresses.into_iter().take(ADDRESSES_MAX).collect(), kind }
    }
}

/// All addresses that a name has now; none when it cannot be looked up.
async fn addresses_of(name: String) -> Vec<SocketAddr> {
    match timeout(LOOKUP_MAX, lookup_host(&name)).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            tracing::debug!(seed = name, %error, "seed cannot be looked up");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(seed = name, "seed cannot be looked up: no answer");
            Vec::new()
        }
    }
}

fn is_news(told: &mut BTreeMap<String, Resolution>, name: &str, resolution: Resolution) -> bool {
    told.insert(name.to_owned(), resolution) != Some(resolution)
}

fn tell(name: &str, resolution: Resolution) {
    match resolution {
        Resolution::Known => tracing::info!(seed = name, "seed found"),
        Resolution::Unknown => {
            tracing::warn!(seed = name, "seed has no address; it is looked up again at every try");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(list: &[&str], myself: &str) -> Seeds {
        let list: Vec<_> = list.iter().map(|seed| (*seed).to_owned()).collect();
        Seeds::new(&list, myself.parse().unwrap())
    }

    #[tokio::test]
    async fn addresses_are_taken_as_they_are_and_the_own_one_is_passed_over() {
        let list = ["10.0.0.2:4319", "10.0.0.1:4319", "10.0.0.2:4319", "[::1]:4319"];
        let mut seeds = seeds(&list, "10.0.0.1:4319");
        assert_eq!(seeds.kind(), SeedKind::Others);
        let expected = ["10.0.0.2:4319", "[::1]:4319"].map(|address| address.parse().unwrap());
        let found = Found { addresses: expected.to_vec(), kind: SeedKind::Others };
        assert_eq!(seeds.find().await, found);
    }

    #[tokio::test]
    async fn no_seed_or_only_the_own_address_leave_nobody_to_ask() {
        let nobody = Found { addresses: Vec::new(), kind: SeedKind::OnlyMyself };
        for list in [&[][..], &["10.0.0.1:4319"], &["10.0.0.1:4319", "10.0.0.1:4319"]] {
            let mut seeds = seeds(list, "10.0.0.1:4319");
            assert_eq!(seeds.kind(), SeedKind::OnlyMyself);
            assert_eq!(seeds.find().await, nobody);
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_at_every_try_and_gives_all_its_addresses_but_the_own_one() {
        let mut seeds = seeds(&["mesh:4319"], "10.0.0.1:4319");
        let mut found_of = async |addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let found = seeds.find_by(async |_| addresses.clone()).await;
            let texts = found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
            (texts.join(" "), found.kind)
        };
        let (others, nobody) = (SeedKind::Others, SeedKind::OnlyMyself);
        // Nobody knows who will be behind it.
        assert_eq!(found_of(&[]).await, (String::new(), others));
        let own = "10.0.0.1:4319";
        assert_eq!(found_of(&[own]).await, (String::new(), nobody));
        let all = [own, "10.0.0.2:4319", "10.0.0.3:4319"];
        assert_eq!(found_of(&all).await, ("10.0.0.2:4319 10.0.0.3:4319".to_owned(), others));
        let moved = [own, "10.0.0.4:4319"];
        assert_eq!(found_of(&moved).await, ("10.0.0.4:4319".to_owned(), others));
    }

    #[tokio::test]
    async fn names_are_looked_up_by_the_system() {
        let found = seeds(&["localhost:4320"], "127.0.0.1:4319").find().await;
        assert!(found.addresses.contains(&"127.0.0.1:4320".parse().unwrap()));
    }

    #[test]
    fn a_name_is_told_of_when_something_changes_and_not_at_every_try() {
        let mut told = BTreeMap::new();
        let mut is_news = |resolution| is_news(&mut told, "mesh:4319", resolution);
        assert!(is_news(Resolution::Unknown));
        assert!(!is_news(Resolution::Unknown));
        assert!(is_news(Resolution::Known));
        assert!(!is_news(Resolution::Known));
        assert!(is_news(Resolution::Unknown));
    }

    #[tokio::test]
    async fn what_is_neither_address_nor_known_name_is_tried_again() {
        for seed in ["no port", "", "host.invalid:4319"] {
            let mut seeds = seeds(&[seed], "10.0.0.1:4319");
            let nothing = Found { addresses: Vec::new(), kind: SeedKind::Others };
            assert_eq!(seeds.find().await, nothing);
            assert_eq!(seeds.find().await, nothing);
        }
    }
}
