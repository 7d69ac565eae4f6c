//! Who is let in: cluster keys, certificates of an authority, and their change.

use crate::harness::{Clock, HOUR, Node, Plan, eventually, frame, key};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use std::fs;
use std::path::Path;
use tracemesh_transport::{
    CERTIFICATE_LIFE, CallError, ClusterKey, Credentials, IdentityError, Refusal, Reloaded,
    StartError, Transport,
};

/// It dialled in vain just now, or was not let in.
fn is_refused(error: &CallError) -> bool {
    matches!(error, CallError::Unreachable { .. } | CallError::Lost { .. })
}

/// Neither can reach the other, and each side counts its part.
async fn assert_strangers(guest: &Node, host: &Node, at_guest: Refusal, at_host: Refusal) {
    let error = guest.call(&host.as_peer(), frame(1, 1)).await.unwrap_err();
    assert!(is_refused(&error), "{error:?}");
    let counts = || {
        guest.transport.counters().refused(at_guest) > 0
            && host.transport.counters().refused(at_host) > 0
    };
    eventually("both count it", counts).await;
    eventually("no connection stays", || {
        guest.transport.round_trip(host.transport.local_address()).is_none()
            && host.transport.round_trip(guest.transport.local_address()).is_none()
    })
    .await;
}

async fn assert_friends(a: &Node, b: &Node) {
    assert_eq!(a.call(&b.as_peer(), frame(1, 1)).await, Ok(frame(1, 1)));
    assert_eq!(b.call(&a.as_peer(), frame(2, 2)).await, Ok(frame(2, 2)));
}

#[tokio::test]
async fn a_node_of_another_cluster_name_is_refused() {
    let host = Plan::new("host").start();
    let guest = Plan { cluster: "other", ..Plan::new("guest") }.start();
    assert_strangers(&guest, &host, Refusal::Cluster, Refusal::ByPeer).await;
    assert_strangers(&host, &guest, Refusal::Cluster, Refusal::ByPeer).await;
}

#[tokio::test]
async fn a_node_with_another_key_is_refused() {
    let host = Plan::new("host").start();
    let guest = Plan::new("guest").with_keys(&[key(2)]).start();
    assert_strangers(&guest, &host, Refusal::Authority, Refusal::ByPeer).await;
    assert_strangers(&host, &guest, Refusal::Authority, Refusal::ByPeer).await;
}

#[tokio::test]
async fn a_host_refuses_a_guest_that_would_accept_it_and_the_guest_learns_why() {
    // The guest trusts the host's key, but comes with a certificate from another.
    let host = Plan::new("host").start();
    let guest = Plan::new("guest").with_keys(&[next_key(), key(1)]).start();
    assert_strangers(&guest, &host, Refusal::ByPeer, Refusal::Authority).await;
    // And again, whether it dials or remembers that it did.
    let error = guest.call(&host.as_peer(), frame(1, 1)).await.unwrap_err();
    assert!(is_refused(&error), "{error:?}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_clocks_an_hour_apart_are_not() {
    let host = Plan::new("host").start();
    let slow = Plan::new("slow").start();
    let behind = Clock::today();
    let late = Plan { clock: behind.clone(), ..Plan::new("late") }.start();
    // All three began at the same time; now the host and the slow one live a day later.
    let ahead = Clock::today();
    ahead.advance(25 * HOUR);
    let future = Plan { clock: ahead, ..Plan::new("future") }.start();
    assert_strangers(&future, &late, Refusal::Expired, Refusal::ByPeer).await;
    assert_strangers(&late, &future, Refusal::Expired, Refusal::ByPeer).await;
    behind.advance(HOUR - 1);
    let hour_ahead = Plan { clock: behind, ..Plan::new("hour-ahead") }.start();
    assert_friends(&hour_ahead, &host).await;
    assert_friends(&slow, &hour_ahead).await;
}

#[tokio::test]
async fn a_renewed_certificate_is_valid_again_and_open_connections_stay() {
    let clock = Clock::today();
    let plan = |name| Plan { clock: clock.clone(), ..Plan::new(name) };
    let (alice, bob, carol) = (plan("alice").start(), plan("bob").start(), plan("carol").start());
    assert_friends(&alice, &bob).await;
    clock.advance(25 * HOUR);
    assert_friends(&alice, &bob).await;
    assert_strangers(&alice, &carol, Refusal::Expired, Refusal::ByPeer).await;
    for node in [&alice, &carol] {
        assert_eq!(node.transport.reload().unwrap(), Reloaded::Replaced);
        assert_eq!(node.transport.certificate_expires(), clock.now() + CERTIFICATE_LIFE);
    }
    eventually("the pause is over", || {
        alice.transport.round_trip(carol.as_peer().address).is_none()
    })
    .await;
    assert_friends(&carol, &alice).await;
    assert_eq!(bob.transport.counters().connections_opened, 1);
}

fn next_key() -> ClusterKey {
    key(1).successor(&mut StdRng::seed_from_u64(9))
}

#[tokio::test]
async fn a_change_of_key_works_node_by_node() {
    let (old, new) = (key(1), next_key());
    let steps = [
        vec![old.clone()],
        vec![old.clone(), new.clone()],
        vec![new.clone(), old.clone()],
        vec![new.clone()],
    ];
    for pair in steps.windows(2) {
        let before = Plan::new("before").with_keys(&pair[0]).start();
        let after = Plan::new("after").with_keys(&pair[1]).start();
        assert_friends(&before, &after).await;
    }
    let first = Plan::new("first").with_keys(&steps[0]).start();
    let last = Plan::new("last").with_keys(&steps[3]).start();
    assert_strangers(&first, &last, Refusal::Authority, Refusal::ByPeer).await;
}

#[tokio::test]
async fn the_development_key_is_for_loopback_only() {
    let plan = Plan::new("dev").with_keys(&[ClusterKey::development()]);
    let open = Plan { address: "0.0.0.0:0".parse().unwrap(), ..plan.clone() };
    let error = Transport::start(open.settings()).unwrap_err();
    assert!(matches!(error, StartError::DevelopmentKey { .. }), "{error}");
    assert!(Transport::start(plan.settings()).is_ok());
}

#[tokio::test]
async fn names_that_cannot_stand_in_a_certificate_are_refused_at_the_start() {
    for (cluster, node_id) in [("Test", "a"), ("", "a"), ("test", "a/b"), ("test", "")] {
        let plan = Plan { cluster, ..Plan::new(node_id) };
        let error = Transport::start(plan.settings()).unwrap_err();
        assert!(matches!(error, StartError::Identity(IdentityError::Name { .. })), "{error}");
    }
}

/// A wait that costs nothing: these tests run on tokio's paused clock.
async fn upkeep_passes() {
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
}

#[tokio::test(start_paused = true)]
async fn an_issued_certificate_is_renewed_by_itself_at_half_of_its_life() {
    let clock = Clock::today();
    let plan = Plan { clock: clock.clone(), ..Plan::new("alice") };
    let (transport, _incoming) = plan.start_silent();
    let first = transport.certificate_expires();
    clock.advance(11 * HOUR);
    upkeep_passes().await;
    assert_eq!(transport.certificate_expires(), first);
    clock.advance(HOUR);
    upkeep_passes().await;
    assert_eq!(transport.certificate_expires(), clock.now() + CERTIFICATE_LIFE);
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_read_again_by_themselves_and_bad_ones_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    trust(directory.path(), &[&authority]);
    authority.issue(directory.path(), "spiffe://test/node/alice", 2040);
    let plan = Plan { credentials: files(directory.path()), ..Plan::new("alice") };
    let (transport, _incoming) = plan.start_silent();
    let first = transport.certificate_expires();
    authority.issue(directory.path(), "spiffe://test/node/bob", 2041);
    upkeep_passes().await;
    assert_eq!(transport.certificate_expires(), first);
    authority.issue(directory.path(), "spiffe://test/node/alice", 2041);
    upkeep_passes().await;
    assert!(transport.certificate_expires() > first);
}

/// An operator's authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a node's certificate and key, as PEM.
    fn issue(&self, directory: &Path, uri: &str, until_year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.not_after = date_time_ymd(until_year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
        fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    }
}

fn trust(directory: &Path, authorities: &[&Authority]) {
    let pem: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
    fs::write(directory.join("ca.pem"), pem).unwrap();
}

fn files(directory: &Path) -> Credentials {
    Credentials::Files {
        ca_file: directory.join("ca.pem"),
        cert_file: directory.join("cert.pem"),
        key_file: directory.join("key.pem"),
    }
}

fn start_from_files(node_id: &'static str, directory: &Path) -> Node {
    Plan { credentials: files(directory), ..Plan::new(node_id) }.start()
}

/// Uses what the files say now, unless the node's own look at them has just come before.
fn take_up(node: &Node) {
    node.transport.reload().unwrap();
    assert_eq!(node.transport.reload().unwrap(), Reloaded::Unchanged);
}

#[tokio::test]
async fn an_own_authority_is_changed_while_the_mesh_runs() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = [directories[0].path(), directories[1].path()];
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    for (directory, uri) in [(a, "spiffe://test/node/alice"), (b, "spiffe://test/node/bob")] {
        trust(directory, &[&old]);
        old.issue(directory, uri, 2040);
    }
    let (alice, bob) = (start_from_files("alice", a), start_from_files("bob", b));
    assert_friends(&alice, &bob).await;
    assert_eq!(alice.transport.reload().unwrap(), Reloaded::Unchanged);

    // Trust both, then issue by the new one, then forget the old one: first at alice.
    for directory in [a, b] {
        trust(directory, &[&old, &new]);
    }
    [&alice, &bob].into_iter().for_each(take_up);
    assert_friends(&alice, &bob).await;
    new.issue(a, "spiffe://test/node/alice", 2040);
    take_up(&alice);
    assert_eq!(alice.transport.counters().connections_opened, 1, "no connection had to end");
    trust(a, &[&new]);
    take_up(&alice);

    // Bob's certificate is of the old authority: his connection ends and he is refused.
    let address = bob.transport.local_address();
    eventually("distrusted", || alice.transport.round_trip(address).is_none()).await;
    assert_strangers(&alice, &bob, Refusal::Authority, Refusal::ByPeer).await;
    new.issue(b, "spiffe://test/node/bob", 2040);
    take_up(&bob);
    assert_friends(&bob, &alice).await;
}

#[tokio::test]
async fn bad_files_are_named_at_the_start_and_leave_a_running_node_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let start = || {
        let plan = Plan { credentials: files(path), ..Plan::new("alice") };
        match Transport::start(plan.settings()) {
            Ok((transport, _)) => Ok(transport),
            Err(StartError::Identity(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    };
    let authority = Authority::new("authority");
    assert!(matches!(start().unwrap_err(), IdentityError::Read { .. }));
    fs::write(path.join("ca.pem"), "nothing").unwrap();
    assert!(matches!(start().unwrap_err(), IdentityError::Content { .. }));
    trust(path, &[&authority]);
    authority.issue(path, "spiffe://test/node/bob", 2040);
    let error = start().unwrap_err().to_string();
    assert!(error.contains("spiffe://test/node/bob"), "{error}");
    assert!(error.contains("spiffe://test/node/alice"), "{error}");
    Authority::new("stranger").issue(path, "spiffe://test/node/alice", 2040);
    assert!(matches!(start().unwrap_err(), IdentityError::Certificate(_)));
    authority.issue(path, "spiffe://test/node/alice", 2040);
    let transport = start().unwrap();

    let expires = transport.certificate_expires();
    fs::write(path.join("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(transport.reload().unwrap_err(), IdentityError::Certificate(_)));
    fs::write(path.join("key.pem"), "half a ke").unwrap();
    assert!(matches!(transport.reload().unwrap_err(), IdentityError::Content { .. }));
    assert_eq!(transport.certificate_expires(), expires);
}

#[tokio::test]
async fn a_certificate_without_a_spiffe_uri_or_of_another_cluster_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    trust(directory.path(), &[&authority]);
    authority.issue(directory.path(), "spiffe://test/node/host", 2040);
    let host = start_from_files("host", directory.path());
    // Of the same authority, but of another cluster.
    let guests = tempfile::tempdir().unwrap();
    trust(guests.path(), &[&authority]);
    authority.issue(guests.path(), "spiffe://staging/node/guest", 2040);
    let plan = Plan { cluster: "staging", ..Plan::new("guest") };
    let guest = Plan { credentials: files(guests.path()), ..plan }.start();
    assert_strangers(&guest, &host, Refusal::Cluster, Refusal::ByPeer).await;
    authority.issue(guests.path(), "https://test/node/guest", 2040);
    assert!(matches!(guest.transport.reload().unwrap_err(), IdentityError::Content { .. }));
}
