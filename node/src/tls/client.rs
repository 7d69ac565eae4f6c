//! TLS towards servers of others: whom to trust, and who we are to them.
//!
//! Servers are believed when their certificate chains to the authorities of a file, or, without
//! one, of this system: what its administrator trusts, as the collector does. No roots are built
//! in, since those of an old binary would be trusted for as long as it runs.

use super::{Clock, authorities, certificates, private_key};
use crate::environment::WallClock;
use crate::reload::{File, FileError, Files};
use rustls_pki_types::ServerName;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore};

/// How to speak TLS to a server.
pub type ClientTls = ClientConfig;

/// The files behind it, all in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Authorities to trust; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate with those between it and its authority, and its private key.
    pub certificate: Option<CertificateFiles>,
    /// The name that servers' certificates have to be for; none: that of the URL.
    pub server_name: Option<ServerName<'static>>,
}

/// A certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

impl ClientFiles {
    /// Reads the files, and is ready to follow them. `protocol` is what is spoken inside, where a
    /// server has to be told.
    pub fn open(
        &self,
        protocol: Option<&'static [u8]>,
        wall_clock: &WallClock,
    ) -> Result<Files<ClientTls>, FileError> {
        let clock = Clock(Arc::clone(wall_clock));
        let is_trusting_system = self.ca_file.is_none();
        Files::open(&self.paths(), move |files| {
            let (roots, own) = match files.split_first() {
                Some((ca_file, own)) if !is_trusting_system => (authorities(ca_file)?, own),
                _ => (system_authorities()?, files),
            };
            client(roots, own, protocol, clock.clone())
        })
    }

    /// Whether they can be used.
    pub fn check(&self) -> Result<(), FileError> {
        // No time is told before a connection is made.
        self.open(None, &(Arc::new(|| SystemTime::UNIX_EPOCH) as WallClock)).map(drop)
    }

    /// Authorities first, then certificate and key.
    fn paths(&self) -> Vec<PathBuf> {
        let own = self.certificate.iter().flat_map(|files| [&files.cert_file, &files.key_file]);
        self.ca_file.iter().chain(own).cloned().collect()
    }
}

fn client(
    roots: RootCertStore,
    own: &[File],
    protocol: Option<&[u8]>,
    clock: Clock,
) -> Result<ClientTls, FileError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(clock));
    let builder = builder
        .with_safe_default_protocol_versions()
        .expect("the provider has what its defaults need")
        .with_root_certificates(roots);
    let mut config = match own {
        [certificate, key] => {
            let failed =
                |error: Error| certificate.error(format!("with {}: {error}", key.path.display()));
            let chain = certificates(certificate)?;
            builder.with_client_auth_cert(chain, private_key(key)?).map_err(failed)?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
    Ok(config)
}

fn system_authorities() -> Result<RootCertStore, FileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (count, _) = roots.add_parsable_certificates(found.certs);
    if count > 0 {
        return Ok(roots);
    }
    let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    let why = format!("there are none ({}); name a ca_file", errors.join(", "));
    Err(FileError { path: "authorities of this system".into(), why })
}
