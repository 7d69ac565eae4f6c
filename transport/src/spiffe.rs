//! The name that a certificate proves: `spiffe://<cluster>/node/<node-id>`.
//!
//! The format is that of SPIFFE ids: the trust domain has lower-case letters, digits, `.`, `-` and
//! `_`, the path segments upper-case letters besides. The invariant: what [`SpiffeId::uri`] writes,
//! [`SpiffeId::of_certificate`] reads back, and nothing else is accepted, so that two nodes never
//! read one certificate differently. Whether the certificate may be believed is decided elsewhere.

use std::fmt;
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The longest cluster name or node id. SPIFFE allows 255 characters for a trust domain.
const NAME_BYTES_MAX: usize = 255;

/// Who a certificate says its owner is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SpiffeId {
    pub(crate) cluster: Arc<str>,
    pub(crate) node_id: Arc<str>,
}

impl SpiffeId {
    /// The id of a node, or what is wrong with its names.
    pub(crate) fn new(cluster: &str, node_id: &str) -> Result<Self, &'static str> {
        let lower = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        let sized = |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len());
        if !sized(cluster) || !cluster.bytes().all(lower) {
            return Err("a cluster name has 1 to 255 lower-case letters, digits, `.`, `-`, `_`");
        }
        let any_case = |c: u8| lower(c.to_ascii_lowercase());
        // SPIFFE forbids `.` and `..` as path segments.
        if !sized(node_id) || !node_id.bytes().all(any_case) || matches!(node_id, "." | "..") {
            return Err("a node id has 1 to 255 letters, digits, `.`, `-`, `_`, and is not `.`");
        }
        Ok(Self { cluster: cluster.into(), node_id: node_id.into() })
    }

    /// As it stands in the certificate.
    pub(crate) fn uri(&self) -> String {
        format!("spiffe://{}/node/{}", self.cluster, self.node_id)
    }

    fn parse(uri: &str) -> Option<Self> {
        let (cluster, node_id) = uri.strip_prefix("spiffe://")?.split_once("/node/")?;
        Self::new(cluster, node_id).ok()
    }

    /// The id that stands in a certificate (DER), or what is wrong with it in words.
    pub(crate) fn of_certificate(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| format!("it is no X.509: {e}"))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| format!("its subject alternative names are malformed: {e}"))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        match uris.as_slice() {
            [uri] => Self::parse(uri)
                .ok_or_else(|| format!("its URI {uri:?} is not spiffe://<cluster>/node/<node-id>")),
            [] => Err("it names no URI spiffe://<cluster>/node/<node-id>".into()),
            several => Err(format!("it names {} URIs where one is expected", several.len())),
        }
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_survives_its_uri(cluster in "[a-z0-9._-]{1,40}", node in "[A-Za-z0-9_-]{1,40}") {
            let id = SpiffeId::new(&cluster, &node).unwrap();
            prop_assert_eq!(SpiffeId::parse(&id.uri()), Some(id));
        }

        #[test]
        fn garbage_never_panics(
            uri in "\\PC{0,60}",
            der in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = SpiffeId::parse(&uri);
            let _ = SpiffeId::parse(&format!("spiffe://{uri}"));
            prop_assert!(SpiffeId::of_certificate(&der).is_err());
        }
    }

    #[test]
    fn ambiguous_uris_are_refused() {
        for uri in [
            "spiffe://a/node/b/node/c",
            "spiffe://a/node/",
            "spiffe:///node/b",
            "spiffe://A/node/b",
            "spiffe://a/node/..",
            "spiffe://a:1/node/b",
            "spiffe://a/node/b?c",
            "https://a/node/b",
        ] {
            assert_eq!(SpiffeId::parse(uri), None, "{uri}");
        }
    }
}
