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
/// anywhere.
const ANYWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

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
/// the host's own name often has, says nothing while another seed says more.
async fn own_address(bound: IpAddr, seeds: &[String]) -> io::Result<IpAddr> {
    let mut loopback = None;
    for seed in seeds {
        match source_towards(bound, seed).await {
            Ok(ip) if ip.to_canonical().is_loopback() => loopback = Some(ip),
            Ok(ip) => return Ok(ip),
            Err(error) => tracing::debug!(seed, %error, "no route"),
        }
    }
    match loopback {
        Some(ip) => Ok(ip),
        None => source_towards(bound, ANYWHERE[usize::from(bound.is_ipv6())]).await,
    }
}

/// Connecting a UDP socket sends nothing; it asks the kernel for the route.
async fn source_towards(bound: IpAddr, target: &str) -> io::Result<IpAddr> {
    let probe = UdpSocket::bind((bound, 0)).await?;
    timeout(LOOKUP_MAX, probe.connect(target)).await??;
    Ok(probe.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(seeds: &[&str]) -> io::Result<IpAddr> {
        let seeds: Vec<_> = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        own_address(Ipv4Addr::UNSPECIFIED.into(), &seeds).await
    }

    #[tokio::test]
    async fn a_seed_without_an_address_is_passed_over() {
        let seeds = ["nowhere.invalid:4319", "127.0.0.1:4319"];
        assert_eq!(found(&seeds).await.unwrap(), Ipv4Addr::LOCALHOST);
    }

    #[tokio::test]
    async fn seeds_without_addresses_leave_the_way_to_anywhere() {
        // A host without any network has none.
        let found = found(&["nowhere.invalid:4319"]).await;
        assert_eq!(
            found.ok(),
            source_towards(Ipv4Addr::UNSPECIFIED.into(), ANYWHERE[0]).await.ok()
        );
    }

    #[tokio::test]
    async fn loopback_is_advertised_only_where_no_seed_says_more() {
        let anywhere = source_towards(Ipv4Addr::UNSPECIFIED.into(), ANYWHERE[0]).await;
        let Ok(anywhere) = anywhere else {
            return eprintln!("SKIPPED: this host has loopback alone");
        };
        let own = SocketAddr::new(anywhere, 4319).to_string();
        assert_eq!(found(&["127.0.0.1:4319", &own]).await.unwrap(), anywhere);
    }
}
