//! TLS for both sides of a connection, and the decision whom to believe.
//!
//! A peer is believed when its certificate chains to one of our authorities, is valid now by the
//! injected clock, and names a node of our cluster in its SPIFFE URI; the host name that TLS knows
//! plays no part, because the URI is the identity. Both sides ask for a certificate, so there is
//! one rule, [`Verifier::check`], behind both of the library's traits. The invariant: no handshake
//! completes without it. Resumption is off: it would carry wall-clock time, and would let a peer in
//! by a ticket that its certificate would not.
//!
//! TLS 1.3 on ring only. One of the three files that name rustls; PEM is read here, since that is
//! a part of it.

use crate::identity::{Identity, IdentityError, WallClock};
use crate::spiffe::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerMisbehaved, RootCertStore, SignatureScheme, SupportedCipherSuite,
};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// The protocol and its version, agreed upon in the handshake.
const ALPN: &[u8] = b"tracemesh/1";

/// What a connection needs from this module, made anew from each identity.
pub(crate) struct Tls {
    pub(crate) server: Arc<rustls::ServerConfig>,
    pub(crate) client: Arc<rustls::ClientConfig>,
    pub(crate) verifier: Arc<Verifier>,
}

impl Tls {
    pub(crate) fn new(
        identity: &Identity,
        own: &SpiffeId,
        wall_clock: &WallClock,
    ) -> Result<Self, IdentityError> {
        let failed = |e: Error| IdentityError::Certificate(e.to_string());
        let provider = Arc::new(crypto());
        let clock = Arc::new(Clock(wall_clock.clone()));
        let verifier = Arc::new(Verifier::new(identity, own, &provider).map_err(failed)?);
        let chain: Vec<_> = identity.chain.iter().cloned().map(CertificateDer::from).collect();
        match verifier.check(&chain, clock.now()) {
            Ok(_) => {}
            // The clock may be wrong, and peers say so when it is not.
            Err(Error::InvalidCertificate(e)) if is_of_time(&e) => {
                tracing::warn!(error = %e, "own certificate is not valid now; peers refuse it");
            }
            Err(e) => {
                let why = format!("the own authorities do not accept the own certificate: {e}");
                return Err(IdentityError::Certificate(why));
            }
        }
        let key = || {
            PrivateKeyDer::try_from(identity.key.clone())
                .map_err(|e| IdentityError::Certificate(format!("the private key: {e}")))
        };

        let mut server =
            rustls::ServerConfig::builder_with_details(provider.clone(), clock.clone())
                .with_protocol_versions(&[&TLS13])
                .map_err(failed)?
                .with_client_cert_verifier(verifier.clone())
                .with_single_cert(chain.clone(), key()?)
                .map_err(failed)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut client = rustls::ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_auth_cert(chain, key()?)
            .map_err(failed)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Self { server: Arc::new(server), client: Arc::new(client), verifier })
    }
}

/// The library's, but AES with 128 bits is preferred to 256: no weaker in practice, and cheaper.
fn crypto() -> CryptoProvider {
    let mut crypto = rustls::crypto::ring::default_provider();
    let is_other =
        |suite: &SupportedCipherSuite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256;
    crypto.cipher_suites.sort_by_key(is_other);
    crypto
}

#[cfg(test)]
impl Tls {
    /// Makes it the client of somebody who has none.
    pub(crate) fn forget_client_certificate(&mut self) {
        let provider = self.client.crypto_provider().clone();
        let clock = self.client.time_provider.clone();
        let mut client = rustls::ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(self.verifier.clone())
            .with_no_client_auth();
        client.alpn_protocols = self.client.alpn_protocols.clone();
        self.client = Arc::new(client);
    }

    /// Makes it the client of another program.
    pub(crate) fn speak(&mut self, protocol: &[u8]) {
        let mut client = rustls::ClientConfig::clone(&self.client);
        client.alpn_protocols = vec![protocol.to_vec()];
        self.client = Arc::new(client);
    }
}

/// Decides whom to believe.
#[derive(Debug)]
pub(crate) struct Verifier {
    anchors: Arc<RootCertStore>,
    of_clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    cluster: Arc<str>,
}

impl Verifier {
    fn new(
        identity: &Identity,
        own: &SpiffeId,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let mut anchors = RootCertStore::empty();
        for der in &identity.anchors {
            anchors.add(CertificateDer::from(der.as_slice()))?;
        }
        let anchors = Arc::new(anchors);
        let of_clients =
            WebPkiClientVerifier::builder_with_provider(anchors.clone(), provider.clone())
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        let cluster = own.cluster.clone();
        Ok(Self { anchors, of_clients, provider: provider.clone(), cluster })
    }

    /// The whole rule, for a certificate in either role.
    pub(crate) fn check(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, Error> {
        let (end_entity, intermediates) =
            chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let id = self.check_name(end_entity)?;
        self.check_server_chain(end_entity, intermediates, now)?;
        self.of_clients.verify_client_cert(end_entity, intermediates, now)?;
        Ok(id)
    }

    /// Comes first, because "another cluster" says more than the unknown authority that it
    /// usually has as well.
    fn check_name(&self, end_entity: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
        let id =
            SpiffeId::of_certificate(end_entity).map_err(|why| refusal(&format!("({why})")))?;
        if id.cluster == self.cluster {
            return Ok(id);
        }
        Err(refusal(&format!("(it is of cluster {}, not {})", id.cluster, self.cluster)))
    }

    fn check_server_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.anchors,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_name(end_entity)?;
        self.check_server_chain(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// None: a hint would tell strangers which authority to imitate, and members need no hint.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_name(end_entity)?;
        self.of_clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// The injected wall clock, as TLS wants it.
pub(crate) struct Clock(pub(crate) WallClock);

impl Clock {
    pub(crate) fn now(&self) -> UnixTime {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixTime::since_unix_epoch(since)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Why a name is not accepted. The library prints it by `Debug`, hence the plain text there.
struct NameRefused(String);

fn refusal(why: &str) -> Error {
    let refused = OtherError(Arc::new(NameRefused(why.into())));
    Error::InvalidCertificate(CertificateError::Other(refused))
}

impl std::error::Error for NameRefused {}

impl fmt::Display for NameRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NameRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_of_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// The certificates of a PEM file, at least one, as DER.
pub(crate) fn pem_certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificates.push(certificate.map_err(|e| format!("its PEM is malformed: {e}"))?.to_vec());
    }
    if certificates.is_empty() {
        return Err("it holds no certificate in PEM".into());
    }
    Ok(certificates)
}

/// The private key of a PEM file, as DER.
pub(crate) fn pem_private_key(pem: &[u8]) -> Result<Vec<u8>, String> {
    let key = PrivateKeyDer::from_pem_slice(pem);
    let key = key.map_err(|e| format!("it holds no private key in PEM: {e}"))?;
    Ok(key.secret_der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_with_128_bits_is_preferred_and_no_suite_is_lost() {
        let suites = crypto().cipher_suites;
        assert_eq!(suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(suites.len(), rustls::crypto::ring::default_provider().cipher_suites.len());
    }
}
