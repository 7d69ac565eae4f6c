//! Who this node is: its certificate, its private key and the authorities that it trusts.
//!
//! Two sources. From a **cluster key** every node derives the same authority (HKDF-SHA-256 over
//! the secret and the cluster's name gives an Ed25519 key; the authority's certificate is the same
//! to the byte on every node) and issues itself a certificate that lives for a day, in memory. From
//! **files** come certificates of the operator's own authority, read again when they change.
//!
//! The invariant: an [`Identity`] that left this module names this node in this cluster. What
//! fails leaves the one in use untouched. [`Source`] belongs to the transport, behind a lock that
//! is never held across a wait. Files are bounded by [`FILE_BYTES_MAX`]. Whether a peer is to be
//! believed is decided in `tls`, which is also where PEM is read.

use crate::key::ClusterKey;
use crate::spiffe::SpiffeId;
use crate::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use ring::hkdf;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thiserror::Error;

/// Where the time of day comes from; certificates are checked and issued by it.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How long an issued certificate is valid. A day: long enough that a cluster whose clocks are an
/// hour apart works, short enough that a leaked one is soon worth nothing.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How far back an issued certificate's validity begins, for nodes whose clocks are behind.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3600);

/// The largest credential file. A bundle of some hundred authorities has 200 KB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The last second that X.509 can express: the end of the year 9999.
const X509_SECONDS_MAX: u64 = 253_402_300_799;

/// From where a node has its certificate.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// One or two cluster keys (see [`ClusterKey::parse_file`]): the first issues, all are trusted.
    ClusterKey(Vec<ClusterKey>),
    /// The operator's own authority, all in PEM; read again when their content changes.
    Files {
        /// One or several authorities to trust.
        ca_file: PathBuf,
        /// This node's certificate, then intermediate ones if there are any.
        cert_file: PathBuf,
        /// The private key of the certificate.
        key_file: PathBuf,
    },
}

/// Why there is no usable certificate. The one in use, if any, stays in use.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A name cannot stand in a certificate. Change the configuration.
    #[error("{what}, but this is {value:?}")]
    Name {
        /// The rule.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// No cluster key was given, or more than two.
    #[error("one or two cluster keys are needed, and {0} were given")]
    KeyCount(usize),
    /// A file could not be read. Retry when it can.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content is not what it should be. Retry when it was replaced.
    #[error("{} is not usable: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate is that of another node or cluster.
    #[error("{} is the certificate of {found}, but this node is {expected}", path.display())]
    OtherNode {
        /// The certificate's file.
        path: PathBuf,
        /// What the certificate names.
        found: String,
        /// What the configuration names.
        expected: String,
    },
    /// A certificate could not be made or used.
    #[error("cannot use the certificate: {0}")]
    Certificate(String),
}

/// What [`crate::Transport::reload`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The files are the same as before.
    Unchanged,
    /// New connections use and trust the new certificates from now on.
    Replaced,
}

/// One node's certificate with everything to use it, as DER.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Authorities that peers' certificates must come from.
    pub(crate) anchors: Vec<Vec<u8>>,
    /// Own certificate first.
    pub(crate) chain: Vec<Vec<u8>>,
    /// PKCS #8, PKCS #1 or SEC 1.
    pub(crate) key: Vec<u8>,
    /// End of the own certificate's validity.
    pub(crate) expires: SystemTime,
}

/// Makes identities, again and again.
pub(crate) struct Source {
    credentials: Credentials,
    id: SpiffeId,
    wall_clock: WallClock,
    seed: [u8; 32],
    /// Certificates issued so far: each has a private key and a serial number of its own.
    issued: u64,
    issued_at: SystemTime,
}

impl Source {
    pub(crate) fn new(
        credentials: Credentials,
        cluster: &str,
        node_id: &str,
        wall_clock: WallClock,
        seed: [u8; 32],
    ) -> Result<Self, IdentityError> {
        let id = SpiffeId::new(cluster, node_id).map_err(|what| {
            let value = if what.starts_with("a cluster") { cluster } else { node_id };
            IdentityError::Name { what, value: value.into() }
        })?;
        if let Credentials::ClusterKey(keys) = &credentials
            && !(1..=2).contains(&keys.len())
        {
            return Err(IdentityError::KeyCount(keys.len()));
        }
        let issued_at = SystemTime::UNIX_EPOCH;
        Ok(Self { credentials, id, wall_clock, seed, issued: 0, issued_at })
    }

    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub(crate) fn reads_files(&self) -> bool {
        matches!(self.credentials, Credentials::Files { .. })
    }

    /// Issues a certificate, or reads the files.
    pub(crate) fn load(&mut self) -> Result<Identity, IdentityError> {
        match self.credentials.clone() {
            Credentials::ClusterKey(keys) => self.issue(&keys),
            Credentials::Files { ca_file, cert_file, key_file } => {
                self.read(&ca_file, &cert_file, &key_file)
            }
        }
    }

    /// Whether an issued certificate is past half of its life, or from a future that a step of the
    /// clock took back.
    pub(crate) fn is_renewal_due(&self) -> bool {
        let now = (self.wall_clock)();
        match now.duration_since(self.issued_at) {
            Ok(age) => age >= CERTIFICATE_LIFE / 2,
            Err(ahead) => ahead.duration() >= CLOCK_SKEW_MAX / 2,
        }
    }

    /// 32 bytes which are the same after a restart with the same credentials, and secret.
    pub(crate) fn stable_secret(&self, identity: &Identity, purpose: &str) -> [u8; 32] {
        match &self.credentials {
            // The hash key, because unlike the secret it outlives a change of key.
            Credentials::ClusterKey(keys) => {
                let hash_key = keys.first().map_or([0; 16], ClusterKey::hash_key);
                derive(&hash_key, &[purpose, &self.id.uri()])
            }
            Credentials::Files { .. } => derive(&identity.key, &[purpose, &self.id.uri()]),
        }
    }

    fn issue(&mut self, keys: &[ClusterKey]) -> Result<Identity, IdentityError> {
        let failed = |e: rcgen::Error| IdentityError::Certificate(e.to_string());
        let mut authorities = Vec::with_capacity(keys.len());
        for key in keys {
            authorities.push(authority(key, &self.id.cluster).map_err(failed)?);
        }
        let anchors = authorities.iter().map(|(der, _)| der.clone()).collect();
        let Some((_, issuer)) = authorities.first() else {
            return Err(IdentityError::KeyCount(0));
        };
        let now = (self.wall_clock)();
        let expires = now.checked_add(CERTIFICATE_LIFE).unwrap_or(now);
        let epoch = date_time_ymd(1970, 1, 1);
        let number = self.issued.to_string();
        let key = ed25519_pkcs8(&derive(&self.seed, &["node key", &number]));
        let pair = KeyPair::try_from(key.as_slice()).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&self.id.node_id);
        let uri = self.id.uri().try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.not_before = epoch + x509_seconds(now.checked_sub(CLOCK_SKEW_MAX).unwrap_or(now));
        params.not_after = epoch + x509_seconds(expires);
        params.serial_number = Some(serial(&derive(&self.seed, &["serial", &number])));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&pair, issuer).map_err(failed)?;
        self.issued += 1;
        self.issued_at = now;
        Ok(Identity { anchors, chain: vec![certificate.der().to_vec()], key, expires })
    }

    fn read(&self, ca: &Path, cert: &Path, key: &Path) -> Result<Identity, IdentityError> {
        let content = |path: &Path, why: String| IdentityError::Content { path: path.into(), why };
        let anchors = tls::pem_certificates(&read(ca)?).map_err(|why| content(ca, why))?;
        let chain = tls::pem_certificates(&read(cert)?).map_err(|why| content(cert, why))?;
        let key_der = tls::pem_private_key(&read(key)?).map_err(|why| content(key, why))?;
        let own = chain.first().map_or(&[][..], Vec::as_slice);
        let found = SpiffeId::of_certificate(own).map_err(|why| content(cert, why))?;
        if found != self.id {
            return Err(IdentityError::OtherNode {
                path: cert.into(),
                found: found.uri(),
                expected: self.id.uri(),
            });
        }
        let expires = expiry(own).ok_or_else(|| content(cert, "it is no X.509".into()))?;
        Ok(Identity { anchors, chain, key: key_der, expires })
    }
}

/// Reads a whole small file.
fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |source| IdentityError::Read { path: path.into(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let length = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    if length as u64 == FILE_BYTES_MAX {
        let why = format!("it has {FILE_BYTES_MAX} bytes or more");
        return Err(IdentityError::Content { path: path.into(), why });
    }
    Ok(bytes)
}

fn expiry(der: &[u8]) -> Option<SystemTime> {
    use x509_parser::prelude::FromDer as _;
    let (_, certificate) = x509_parser::prelude::X509Certificate::from_der(der).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The authority that a key stands for in a cluster: its certificate and what issues.
fn authority(
    key: &ClusterKey,
    cluster: &str,
) -> Result<(Vec<u8>, Issuer<'static, KeyPair>), rcgen::Error> {
    let secret = derive(key.secret(), &["authority", cluster]);
    let pair = KeyPair::try_from(ed25519_pkcs8(&secret).as_slice())?;
    let mut params = CertificateParams::default();
    // The fingerprint tells the authorities of two keys apart by name during a change of key.
    let fingerprint = ring::digest::digest(&ring::digest::SHA256, pair.public_key_raw());
    let short: String =
        fingerprint.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = named(&format!("tracemesh authority {short}"));
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(9999, 1, 1);
    params.serial_number = Some(serial(&[0; 32]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&pair)?;
    Ok((certificate.der().to_vec(), Issuer::new(params, pair)))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Sixteen bytes whose first makes them a positive number without padding: RFC 5280 allows 20.
fn serial(bytes: &[u8; 32]) -> SerialNumber {
    let mut serial = [0; 16];
    serial.copy_from_slice(&bytes[..16]);
    serial[0] = 0x40 | (serial[0] & 0x3f);
    SerialNumber::from_slice(&serial)
}

/// Seconds since 1970, kept within what X.509 can express whatever the clock says.
fn x509_seconds(time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Duration::from_secs(since.as_secs().min(X509_SECONDS_MAX))
}

/// An Ed25519 private key as PKCS #8, version 1 (RFC 8410, section 7): a fixed prefix and the key.
fn ed25519_pkcs8(secret: &[u8; 32]) -> Vec<u8> {
    const PREFIX: [u8; 16] =
        [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    [&PREFIX[..], secret].concat()
}

/// HKDF-SHA-256 of `secret`; the parts of `info` must not contain NUL, which joins them.
pub(crate) fn derive(secret: &[u8], info: &[&str]) -> [u8; 32] {
    let info = info.join("\0");
    let mut bytes = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"tracemesh/1")
        .extract(secret)
        .expand(&[info.as_bytes()], hkdf::HKDF_SHA256)
        .and_then(|key| key.fill(&mut bytes))
        .expect("32 bytes are what HKDF-SHA-256 gives at once");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn source(node_id: &str, keys: &[ClusterKey], clock: &Arc<AtomicU64>) -> Source {
        let clock = clock.clone();
        let seconds = move || Duration::from_secs(clock.load(Ordering::Relaxed));
        let wall_clock: WallClock = Arc::new(move || SystemTime::UNIX_EPOCH + seconds());
        let seed = derive(node_id.as_bytes(), &["test"]);
        Source::new(Credentials::ClusterKey(keys.to_vec()), "test", node_id, wall_clock, seed)
            .unwrap()
    }

    fn today() -> Arc<AtomicU64> {
        Arc::new(AtomicU64::new(1_780_000_000))
    }

    #[test]
    fn every_node_derives_the_same_authority_and_none_the_same_certificate() {
        let keys = [ClusterKey::development()];
        let clock = today();
        let mut alice = source("alice", &keys, &clock);
        let first = alice.load().unwrap();
        clock.fetch_add(1_000_000, Ordering::Relaxed);
        let bob = source("bob", &keys, &clock).load().unwrap();
        assert_eq!(first.anchors, bob.anchors);
        assert_ne!(first.key, bob.key);
        let second = alice.load().unwrap();
        assert_ne!(first.key, second.key);
        assert_eq!(first.chain[0].len(), second.chain[0].len());
        assert!(first == source("alice", &keys, &today()).load().unwrap(), "same seed, same bytes");
    }

    #[test]
    fn another_cluster_name_is_another_authority() {
        let key = ClusterKey::development();
        let of = |cluster| authority(&key, cluster).unwrap().0;
        assert_ne!(of("a"), of("b"));
    }

    #[test]
    fn what_peers_recognize_after_a_restart_survives_a_change_of_key() {
        let key = ClusterKey::development();
        let successor =
            key.successor(&mut <rand::rngs::StdRng as rand::SeedableRng>::from_seed([3; 32]));
        let secret = |node_id: &str, keys: &[ClusterKey]| {
            let mut source = source(node_id, keys, &today());
            let identity = source.load().unwrap();
            source.stable_secret(&identity, "test")
        };
        let before = secret("alice", std::slice::from_ref(&key));
        assert_eq!(before, secret("alice", &[successor, key.clone()]));
        assert_ne!(before, secret("bob", &[key]));
    }

    #[test]
    fn renewal_is_due_at_half_life_or_when_the_clock_stepped_back() {
        let clock = today();
        let mut source = source("alice", &[ClusterKey::development()], &clock);
        source.load().unwrap();
        let half = CERTIFICATE_LIFE.as_secs() / 2;
        clock.fetch_add(half - 1, Ordering::Relaxed);
        assert!(!source.is_renewal_due());
        clock.fetch_add(1, Ordering::Relaxed);
        assert!(source.is_renewal_due());
        source.load().unwrap();
        assert!(!source.is_renewal_due());
        clock.fetch_sub(CLOCK_SKEW_MAX.as_secs(), Ordering::Relaxed);
        assert!(source.is_renewal_due());
    }

    #[test]
    fn a_clock_at_either_end_of_time_does_not_panic() {
        for seconds in [0, 1, X509_SECONDS_MAX, X509_SECONDS_MAX + 1, i64::MAX as u64] {
            let clock = Arc::new(AtomicU64::new(seconds));
            assert!(source("alice", &[ClusterKey::development()], &clock).load().is_ok());
        }
    }
}
