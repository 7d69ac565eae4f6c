//! TLS of the OTLP listeners, and towards sinks: certificates, keys and authorities from files.
//!
//! With the one module in it, the only file of this crate that names the TLS library. The
//! invariant: a configuration that left this module has a private key that belongs to its
//! certificate. Followed by [`crate::reload`]; connections that are open keep what they began with.
//! Host names play no part on this side.

mod client;

pub use client::{CertificateFiles, ClientFiles, ClientTls};

use crate::environment::WallClock;
use crate::reload::{File, FileError, Files};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{Error, RootCertStore, ServerConfig};

pub use tokio_rustls::TlsAcceptor;

/// What a server is to a client: HTTP/2 first, since OTLP over gRPC has nothing else.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How a listener is to speak TLS.
pub type ServerTls = ServerConfig;

/// The files behind it, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The server's certificate, then those between it and its authority.
    pub cert_file: PathBuf,
    /// The private key of that certificate.
    pub key_file: PathBuf,
    /// Authorities of which clients have to show a certificate; none: they need not.
    pub client_ca_file: Option<PathBuf>,
}

impl ServerFiles {
    /// Reads the files, and is ready to follow them. Certificates of clients are checked by
    /// `wall_clock`.
    pub fn open(&self, wall_clock: &WallClock) -> Result<Files<ServerTls>, FileError> {
        let clock = Clock(Arc::clone(wall_clock));
        Files::open(&self.paths(), move |files| server(files, clock.clone()))
    }

    /// Whether they can be used.
    pub fn check(&self) -> Result<(), FileError> {
        // No time is told before somebody connects.
        self.open(&(Arc::new(|| SystemTime::UNIX_EPOCH) as WallClock)).map(drop)
    }

    fn paths(&self) -> Vec<PathBuf> {
        let files = [Some(&self.cert_file), Some(&self.key_file), self.client_ca_file.as_ref()];
        files.into_iter().flatten().cloned().collect()
    }
}

fn server(files: &[File], clock: Clock) -> Result<ServerTls, FileError> {
    let [certificate, key, authorities @ ..] = files else {
        unreachable!("two or three paths were opened");
    };
    let provider = Arc::new(ring::default_provider());
    let failed = |error: Error| certificate.error(format!("with {}: {error}", key.path.display()));
    let builder = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::new(clock));
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
    let builder = match authorities.first() {
        None => builder.with_no_client_auth(),
        Some(authorities) => builder.with_client_cert_verifier(verifier(authorities, provider)?),
    };
    let chain = certificates(certificate)?;
    let mut config = builder.with_single_cert(chain, private_key(key)?).map_err(failed)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(config)
}

fn verifier(
    file: &File,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn tokio_rustls::rustls::server::danger::ClientCertVerifier>, FileError> {
    let roots = Arc::new(authorities(file)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
    verifier.map_err(|error| file.error(error))
}

/// The certificates of a file, one or more.
pub fn certificates(file: &File) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(file.error("expected a certificate in PEM, and it holds none")),
        Err(error) => Err(file.error(format!("no valid PEM: {error}"))),
    }
}

/// The private key of a file.
pub fn private_key(file: &File) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(&file.bytes)
        .map_err(|_| file.error("expected a private key in PEM, and it holds none"))
}

/// The certificates of a file, as authorities to trust.
pub fn authorities(file: &File) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| file.error(error))?;
    }
    Ok(roots)
}

/// The injected wall clock, as TLS wants it.
#[derive(Clone)]
struct Clock(WallClock);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(UnixTime::since_unix_epoch(since))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
