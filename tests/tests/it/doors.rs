//! A node that takes spans only by TLS, and only from those who have a token.

use crate::host;
use crate::otlp::{encoded, trace, trace_id};
use serde_json::json;
use std::fs;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig};
use tracemesh_tests::grpc::Client;

#[test]
fn spans_come_in_by_tls_and_with_a_token_alone() {
    let host = host();
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let certificate = parameters.self_signed(&key).expect("a certificate signs itself").pem();
    let write = |name: &str, text: &str| {
        let path = host.path().join(name);
        fs::write(&path, text).expect("a file can be written");
        path
    };
    let tls = json!({
        "cert_file": write("cert.pem", &certificate),
        "key_file": write("key.pem", &key.serialize_pem()),
    });
    let tokens = write("tokens", "cart:open-sesame\n");
    let node = host.node("a").with("ingest.tls", tls).with("log.level", json!("trace"));
    let node = node.with("ingest.bearer_tokens_file", json!(tokens)).start();

    let request = encoded(trace(&trace_id(1), 3));
    let code = |mut client: Client| client.export(request.clone()).err().map(|s| s.code());
    let url = node.grpc_url();
    let trusting = || {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&certificate));
        Client::secure(url.replace("http:", "https:"), tls.domain_name("localhost"))
    };
    assert!(code(Client::new(url.clone())).is_some(), "nothing comes in without TLS");
    assert_eq!(code(trusting()), Some(Code::Unauthenticated));
    assert_eq!(code(trusting().with_token("sesame")), Some(Code::Unauthenticated));
    assert_eq!(code(trusting().with_token("open-sesame")), None);
    node.wait_for_trace(&crate::otlp::hex(&trace_id(1)));
    let refused = [("protocol", "grpc"), ("answer", "unauthenticated")];
    assert_eq!(node.metrics().sum("tracemesh_requests_total", &refused), 2.0);
    assert!(node.metrics().sum("tracemesh_connections_refused_total", &[("cause", "tls")]) >= 1.0);
    assert!(!node.output().contains("sesame"), "a token is never logged");
}
