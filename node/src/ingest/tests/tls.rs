//! TLS on both ports, with clients that others wrote.

use super::*;
use rustls_pki_types::ServerName;
use std::fs;
use std::path::Path;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, crypto, version};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// An authority, its certificate, and what it signs.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(parameters, key), pem }
    }

    fn sign(&self) -> Signed {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }

    /// What a tonic client trusts.
    fn trusted(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.pem))
            .domain_name("localhost")
    }

    /// Connects as a client that trusts this authority and offers `protocols`.
    async fn dial(
        &self,
        address: SocketAddr,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let file = crate::reload::File { path: "ca".into(), bytes: self.pem.clone().into_bytes() };
        let roots = crate::tls::authorities(&file).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS12, &version::TLS13])
            .unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn write(directory: &Path, signed: &Signed) -> ServerFiles {
    let [cert_file, key_file] = ["cert.pem", "key.pem"].map(|name| directory.join(name));
    fs::write(&cert_file, &signed.certificate).unwrap();
    fs::write(&key_file, &signed.key).unwrap();
    ServerFiles { cert_file, key_file, client_ca_file: None }
}

async fn server(files: ServerFiles) -> Server {
    Server::with(Settings { tls: Some(files), ..settings() }).await
}

/// Whether a gRPC client with these settings gets an answer.
async fn reaches(server: &Server, tls: ClientTlsConfig) -> bool {
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc)).unwrap();
    let channel: Channel = endpoint.tls_config(tls).unwrap().connect_lazy();
    let request = HealthCheckRequest::default();
    timeout(PATIENCE, HealthClient::new(channel).check(request)).await.unwrap().is_ok()
}

#[tokio::test]
async fn both_ports_speak_tls_and_nothing_else() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let server = server(write(directory.path(), &authority.sign())).await;
    assert!(reaches(&server, authority.trusted()).await);
    for (offered, agreed) in
        [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"][..], "http/1.1"), (&[][..], "")]
    {
        let mut stream = authority.dial(server.http, offered).await.unwrap();
        let protocol = stream.get_ref().1.alpn_protocol().unwrap_or_default();
        assert_eq!(protocol, agreed.as_bytes());
        if agreed != "h2" {
            let request = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\
                           Content-Type: application/x-protobuf\r\nConnection: close\r\n\r\nabc";
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut reply = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
        }
    }
    assert_eq!(server.received(), ["abc", "abc"]);
    assert_eq!(server.counter("connections_refused_total{cause=\"tls\"}"), 0);

    let mut plain = TcpStream::connect(server.http).await.unwrap();
    plain.write_all(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut reply = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut reply)).await.unwrap();
    assert!(!reply.starts_with(b"HTTP"));
    wait_until(|| server.counter("connections_refused_total{cause=\"tls\"}") == 1).await;
}

#[tokio::test]
async fn clients_need_a_certificate_where_an_authority_for_them_is_named() {
    let [servers, clients] = [Authority::new(), Authority::new()];
    let directory = tempfile::tempdir().unwrap();
    let client_ca_file = directory.path().join("clients.pem");
    fs::write(&client_ca_file, &clients.pem).unwrap();
    let files = write(directory.path(), &servers.sign());
    let server = server(ServerFiles { client_ca_file: Some(client_ca_file), ..files }).await;
    let with = |signed: Signed| {
        servers.trusted().identity(Identity::from_pem(signed.certificate, signed.key))
    };
    assert!(reaches(&server, with(clients.sign())).await);
    assert!(!reaches(&server, with(servers.sign())).await);
    assert!(!reaches(&server, servers.trusted()).await);
    assert!(server.counter("connections_refused_total{cause=\"tls\"}") >= 2);
}

#[test]
fn certificate_and_key_have_to_belong_together() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = write(directory.path(), &authority.sign());
    assert_eq!(files.check(), Ok(()));
    fs::write(&files.key_file, authority.sign().key).unwrap();
    let error = files.check().unwrap_err().to_string();
    assert!(error.contains("cert.pem: with ") && error.contains("key.pem: "), "{error}");
}

#[tokio::test]
async fn certificate_follows_its_file() {
    let [old, new] = [Authority::new(), Authority::new()];
    let directory = tempfile::tempdir().unwrap();
    let server = server(write(directory.path(), &old.sign())).await;
    assert!(reaches(&server, old.trusted()).await);
    write(directory.path(), &new.sign());
    let replaced = async {
        while !reaches(&server, new.trusted()).await {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, replaced).await.unwrap();
    assert!(!reaches(&server, old.trusted()).await);
}

#[tokio::test]
async fn client_that_does_not_finish_its_handshake_is_left() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let server = server(write(directory.path(), &authority.sign())).await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    // The start of a handshake record, as TLS has it.
    stream.write_all(&[0x16, 3, 1]).await.unwrap();
    tokio::time::pause();
    let mut reply = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut reply)).await.unwrap();
    assert!(ended.is_err() || reply.is_empty());
}
