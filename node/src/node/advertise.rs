//! The address that a node tells others when the configuration does not say it.
//!
//! A node that listens on every address tells others the one from which it reaches them: the
//! kernel is asked for its route to each seed in turn. A seed that has no address yet is no reason
//! not to start, so in the end it is asked for the route to anywhere. Nothing is sent.

use super::StartError;
use crate::config::Config;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Addresses of documentation (RFC 5737, RFC 3849), which no host has: the way there is the way to
/// anywhere. A socket for both families writes IPv4 as the last one.
const ANYWHERE_V4: [&str; 1] = ["192.0.2.1:9"];
const ANYWHERE_V6: [&str; 2] = ["[2001:db8::1]:9", "[::ffff:192.0.2.1]:9"];

/// A resolver that takes longer is as good as none.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// The address that others reach this node at, which listens on `bound`.
///
/// # Errors
/// It listens on every address, and this host has no route to others.
pub(super) async fn advertised(
    config: &Config,
    bound: SocketAddr,
) -> Result<SocketAddr, StartError> {
    if let Some(advertise) = config.node.advertise {
        return Ok(advertise);
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    if config.cluster.seeds.is_empty() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bound.port()));
    }
    let seeds: Vec<_> = config.cluster.seeds.iter().map(ToString::to_string).collect();
    let ip = own_address(bound.ip(), &seeds).await.map_err(StartError::Advertise)?;
    Ok(SocketAddr::new(ip, bound.port()))
}

/// The address from which this host reaches the first seed that has a route. One on loopback, as
/// the host's own name often has, is for a mesh that is all there: where a seed has no address yet,
/// the others may be on other hosts.
async fn own_address(bound: IpAddr, seeds: &[String]) -> io::Result<IpAddr> {
    let (mut loopback, mut unreached) = (None, None);
    for seed in seeds {
        match source_towards(bound, seed).await {
            Ok(ip) if ip.is_loopback() => loopback = Some(ip),
            Ok(ip) => return Ok(ip),
            Err(error) => unreached = Some(error),
        }
    }
    match (loopback, unreached) {
        (Some(ip), None) => Ok(ip),
        (loopback, error) => match towards_anywhere(bound).await {
            Some(ip) => {
                tracing::warn!(
                    address = %ip,
                    "not every seed has an address yet; others are told that of this host's \
                     default route, unless node.advertise says another"
                );
                Ok(ip)
            }
            None => loopback.ok_or_else(|| error.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        },
    }
}

async fn towards_anywhere(bound: IpAddr) -> Option<IpAddr> {
    let targets = if bound.is_ipv4() { &ANYWHERE_V4[..] } else { &ANYWHERE_V6[..] };
    for target in targets {
        if let Ok(ip) = source_towards(bound, target).await {
            return Some(ip);
        }
    }
    None
}

/// Connecting a UDP socket sends nothing; it asks the kernel for the route. An address of IPv4 is
/// written as one, as in lists of seeds.
async fn source_towards(bound: IpAddr, target: &str) -> io::Result<IpAddr> {
    let probe = UdpSocket::bind((bound, 0)).await?;
    timeout(LOOKUP_MAX, probe.connect(target)).await??;
    Ok(probe.local_addr()?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    const ALL: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    async fn found(seeds: &[&str]) -> Option<IpAddr> {
        let seeds: Vec<_> = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        own_address(ALL, &seeds).await.ok()
    }

    #[tokio::test]
    async fn loopback_is_for_a_mesh_that_is_all_there() {
        let loopback = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(found(&["127.0.0.1:4319", "127.0.0.1:4329"]).await, loopback);
        // A host without any network has no way to anywhere.
        let anywhere = towards_anywhere(ALL).await;
        let expected = anywhere.or(loopback);
        assert_eq!(found(&["nowhere.invalid:4319", "127.0.0.1:4319"]).await, expected);
    }

    #[tokio::test]
    async fn a_seed_without_an_address_is_passed_over() {
        let Some(own) = towards_anywhere(ALL).await else {
            return eprintln!("SKIPPED: this host has loopback alone");
        };
        let address = SocketAddr::new(own, 4319).to_string();
        assert_eq!(found(&["127.0.0.1:4319", &address]).await, Some(own));
        assert_eq!(found(&["nowhere.invalid:4319", &address]).await, Some(own));
        assert_eq!(found(&["nowhere.invalid:4319"]).await, Some(own), "the way to anywhere");
    }

    #[tokio::test]
    async fn an_address_of_ipv4_is_written_as_one() {
        let both = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let Ok(found) = source_towards(both, "127.0.0.1:4319").await else {
            return eprintln!("SKIPPED: this host has no IPv6");
        };
        assert_eq!(found, Ipv4Addr::LOCALHOST);
    }
}
