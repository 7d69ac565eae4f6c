//! The same inside of TLS, with certificates on both sides.

use super::*;
use crate::environment::WallClock;
use crate::tls::{CertificateFiles, ServerFiles, TlsAcceptor};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::ServerName;
use std::path::Path;
use tokio::net::TcpStream;
use tokio_stream::StreamExt;

/// An authority, and files of certificates that it issued.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), directory }
    }

    fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn issue(&self, name: &str) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end| self.directory.path().join(format!("{name}.{end}"));
        fs::write(path("pem"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        CertificateFiles { cert_file: path("pem"), key_file: path("key") }
    }
}

fn now() -> WallClock {
    let environment = crate::environment::Environment::real();
    environment.wall_clock
}

/// A server for `name`, which wants a certificate of the same authority from its clients.
async fn serve(authority: &Authority, name: &str) -> (SocketAddr, JoinSet<()>) {
    let CertificateFiles { cert_file, key_file } = authority.issue(name);
    let client_ca_file = Some(authority.ca_file());
    let files = ServerFiles { cert_file, key_file, client_ca_file }.open(&now()).unwrap();
    let acceptor = TlsAcceptor::from(files.in_use().get());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = move |stream: std::io::Result<TcpStream>| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream?).await }
    };
    // Who fails in the handshake costs itself only.
    let streams = TcpListenerStream::new(listener).then(accept).filter(Result::is_ok);
    let service = tower::service_fn(|request: http::Request<Body>| async move {
        let is_grpc = request.headers()["content-type"] == "application/grpc";
        let yes = |_: Request<Bytes>| async { Ok(Response::new(Bytes::new())) };
        let mut grpc =
            tonic::server::Grpc::new(RawCodec).accept_compressed(CompressionEncoding::Zstd);
        Ok::<_, Infallible>(match is_grpc {
            true => grpc.unary(tower::service_fn(yes), request).await,
            false => http::Response::new(Body::empty()),
        })
    });
    let mut task = JoinSet::new();
    task.spawn(async move {
        let server = tonic::transport::Server::builder().accept_http1(true);
        server.serve_with_incoming(service, streams).await.unwrap();
    });
    (address, task)
}

fn target_of(protocol: Protocol, address: SocketAddr, files: ClientFiles) -> Target {
    Target { tls: files, ..target(protocol, &[format!("https://{address}")]) }
}

/// Tells the present, since certificates are valid in it.
fn rig(target: &Target) -> Rig {
    Rig::with_clock(target, now(), |_| {})
}

fn files(ca: &Path, certificate: &CertificateFiles) -> ClientFiles {
    let certificate = Some(certificate.clone());
    ClientFiles { ca_file: Some(ca.to_owned()), certificate, server_name: None }
}

#[tokio::test]
async fn both_protocols_pass_with_certificates_on_both_sides() {
    let authority = Authority::new();
    let (address, _server) = serve(&authority, "127.0.0.1").await;
    let own = authority.issue("client");
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let rig = rig(&target_of(protocol, address, files(&authority.ca_file(), &own)));
        assert_eq!(rig.export(&traces(3)).await, vec![Outcome::Acknowledged; 3], "{protocol:?}");
    }
}

#[tokio::test]
async fn certificate_may_be_for_another_name_that_is_told() {
    let authority = Authority::new();
    let (address, _server) = serve(&authority, "collector.test").await;
    let own = authority.issue("client");
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let mut files = files(&authority.ca_file(), &own);
        assert_eq!(
            rig(&target_of(protocol, address, files.clone())).export_one().await,
            Outcome::AGAIN
        );
        files.server_name = Some(ServerName::try_from("collector.test").unwrap());
        let rig = rig(&target_of(protocol, address, files));
        assert_eq!(rig.export_one().await, Outcome::Acknowledged);
    }
}

#[tokio::test]
async fn server_is_not_reached_without_trust_in_both_directions() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (address, _server) = serve(&authority, "127.0.0.1").await;
    let (own, foreign) = (authority.issue("client"), other.issue("client"));
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let strange = rig(&target_of(protocol, address, files(&other.ca_file(), &own)));
        assert_eq!(strange.export_one().await, Outcome::AGAIN);
        let stranger = rig(&target_of(protocol, address, files(&authority.ca_file(), &foreign)));
        // In TLS 1.3 the server's refusal comes after the client's last word.
        assert_ne!(stranger.export_one().await, Outcome::Acknowledged);
        assert!(strange.dead().is_empty() && stranger.dead().is_empty());
    }
}

#[tokio::test]
async fn authority_that_was_replaced_counts_for_the_next_connection() {
    let (old, new) = (Authority::new(), Authority::new());
    let (address, _server) = serve(&new, "127.0.0.1").await;
    let files = files(&old.ca_file(), &new.issue("client"));
    let rig = rig(&target_of(Protocol::Http, address, files));
    assert_eq!(rig.export_one().await, Outcome::AGAIN);
    fs::copy(new.ca_file(), old.ca_file()).unwrap();
    // Every try is a connection; files are looked at every few seconds.
    rig.wait_for(&[trace(1, 1)], Outcome::Acknowledged).await;
}
