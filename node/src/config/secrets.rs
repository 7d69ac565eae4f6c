//! The files that make a node a member, and those by which clients are known: cluster key,
//! certificates, hash key, tokens.
//!
//! Reads each file that is named and says what is wrong with it, so that a node with half a secret
//! never starts. The cluster key is kept; certificates are only looked at, because they may be
//! renewed while the node runs, and whether they prove the right name is found when they are used.
//! No error repeats a secret.

use super::error::Problem;
use super::meant::Meaning;
use super::read_text;
use crate::ingest::Tokens;
use crate::reload::{File, FileError};
use crate::tls::{self, ServerFiles};
use std::path::PathBuf;
use tracemesh_membership::HashKey;
use tracemesh_transport::{ClusterKey, Credentials};

impl Meaning<'_> {
    pub(super) fn credentials(&mut self) -> Credentials {
        const FILES: [&str; 3] =
            ["cluster.tls.ca_file", "cluster.tls.cert_file", "cluster.tls.key_file"];
        let development = || Credentials::ClusterKey(vec![ClusterKey::development()]);
        let key_file = self.values.optional_text("cluster.key_file").map(ToOwned::to_owned);
        let files = FILES.map(|path| self.values.optional_text(path).map(PathBuf::from));
        match (key_file, files) {
            (None, [None, None, None]) => development(),
            (Some(file), [None, None, None]) => {
                let keys = self.text_of("cluster.key_file", &file).and_then(|text| {
                    let keys = ClusterKey::parse_file(&text);
                    keys.map_err(|error| self.bad_file("cluster.key_file", &file, error)).ok()
                });
                keys.map_or_else(development, Credentials::ClusterKey)
            }
            (None, [Some(ca_file), Some(cert_file), Some(key_file)]) => {
                self.check_file("cluster.tls.ca_file", tls::certificates);
                self.check_file("cluster.tls.cert_file", tls::certificates);
                self.check_file("cluster.tls.key_file", tls::private_key);
                Credentials::Files { ca_file, cert_file, key_file }
            }
            (Some(_), _) => {
                let why = "stands beside cluster.tls; expected one of them";
                self.conflict("cluster.key_file", why);
                development()
            }
            (None, files) => {
                if self.is_clean(&["cluster.tls"]) {
                    let given = files.iter().position(Option::is_some).unwrap_or_default();
                    let why = "expected ca_file, cert_file and key_file together in cluster.tls";
                    self.conflict(FILES[given], why);
                }
                development()
            }
        }
    }

    pub(super) fn hash_key(&mut self, credentials: &Credentials) -> HashKey {
        const PATH: &str = "cluster.hash_key_file";
        if let Some(file) = self.values.optional_text(PATH).map(ToOwned::to_owned) {
            let Some(text) = self.text_of(PATH, &file) else {
                return HashKey([0; 16]);
            };
            let mut key = [0; 16];
            if hex::decode_to_slice(text.trim(), &mut key).is_err() {
                self.bad_file(PATH, &file, "expected 32 hexadecimal digits");
            }
            return HashKey(key);
        }
        match credentials {
            Credentials::ClusterKey(keys) if !keys.is_empty() => HashKey(keys[0].hash_key()),
            _ => HashKey::from_cluster_name(self.values.text("cluster.name")),
        }
    }

    pub(super) fn ingest_tls(&mut self) -> Option<ServerFiles> {
        const CERT: &str = "ingest.tls.cert_file";
        const KEY: &str = "ingest.tls.key_file";
        const CLIENT_CA: &str = "ingest.tls.client_ca_file";
        let [cert, key, client_ca_file] =
            [CERT, KEY, CLIENT_CA].map(|path| self.values.optional_text(path).map(PathBuf::from));
        let given = [(CERT, &cert), (KEY, &key), (CLIENT_CA, &client_ca_file)];
        let (given, _) = given.into_iter().find(|(_, file)| file.is_some())?;
        let (Some(cert_file), Some(key_file)) = (cert, key) else {
            if self.is_clean(&["ingest.tls"]) {
                self.conflict(given, "expected cert_file and key_file together in ingest.tls");
            }
            return None;
        };
        self.check_file(CERT, tls::certificates);
        self.check_file(KEY, tls::private_key);
        if client_ca_file.is_some() {
            self.check_file(CLIENT_CA, tls::authorities);
        }
        let files = ServerFiles { cert_file, key_file, client_ca_file };
        if self.is_clean(&["ingest.tls"])
            && let Err(error) = files.check()
        {
            self.bad_file(CERT, &error.path.display().to_string(), error.why);
        }
        Some(files)
    }

    pub(super) fn bearer_tokens_file(&mut self) -> Option<PathBuf> {
        const PATH: &str = "ingest.bearer_tokens_file";
        let file = PathBuf::from(self.values.optional_text(PATH)?);
        self.check_file(PATH, Tokens::parse);
        Some(file)
    }

    fn text_of(&mut self, path: &str, file: &str) -> Option<String> {
        let text = read_text(file.as_ref());
        text.map_err(|why| self.bad_file(path, file, format!("cannot read it: {why}"))).ok()
    }

    fn bad_file(&mut self, path: &str, file: &str, why: impl ToString) {
        let problem = Problem::File { file: file.to_owned(), why: why.to_string() };
        self.error(self.values.origin(path), path, problem);
    }

    /// Whether the file that a key names holds what `read` reads from it.
    fn check_file<T>(&mut self, path: &str, read: impl Fn(&File) -> Result<T, FileError>) {
        let file = self.values.text(path).to_owned();
        if let Err(error) = File::read(file.as_ref()).and_then(|file| read(&file)) {
            self.bad_file(path, &file, error.why);
        }
    }
}
