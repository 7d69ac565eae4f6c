//! Sinks as they are meant.
//!
//! A sink has values of its own, apart from those of the node. No two sinks of a node write to one
//! file; whether another process does is found when the file is locked.

use super::error::{Origin, Problem};
use super::given::Values;
use super::keys::{self, SinkKind};
use super::meant::{MESH_PORT, Meaning};
use super::typed::{TypedSink, defaults};
use super::values::Value;
use super::{Compression, Config, FileSink, OtlpSink, Protocol, Sink};
use crate::reload::FileError;
use crate::tls::{CertificateFiles, ClientFiles};
use rustls_pki_types::ServerName;
use std::collections::BTreeSet;
use std::path::PathBuf;

const REQUIRED: &str = "sinks.otlp.required";

impl Meaning<'_> {
    /// One file when no sink was named, and the default name for each file that has none.
    pub(super) fn with_default_files(
        &self,
        sinks: Option<Vec<TypedSink>>,
        mesh_port: u16,
    ) -> Vec<TypedSink> {
        let path = match mesh_port {
            MESH_PORT => "./tracemesh-traces.jsonl".to_owned(),
            port => format!("./tracemesh-traces-{port}.jsonl"),
        };
        let file = || TypedSink {
            origin: Origin::Default,
            kind: SinkKind::File,
            values: defaults(|path| keys::is_within(path, SinkKind::File.section())),
        };
        let mut sinks = sinks.unwrap_or_else(|| vec![file()]);
        for sink in sinks.iter_mut().filter(|sink| sink.kind == SinkKind::File) {
            sink.values.set_default("sinks.file.path", Value::Text(path.clone()));
        }
        sinks
    }

    /// What the sinks mean; there has to be one, or nothing would ever be let go.
    pub(super) fn sinks(&mut self, typed: &[TypedSink]) -> Vec<Sink> {
        if typed.is_empty() && self.is_clean(&["sinks"]) {
            let why = "no sink; expected one or more, such as `- stdout: {}`".to_owned();
            self.error(Origin::Default, "sinks", Problem::Conflict(why));
        }
        let mut paths = BTreeSet::new();
        let sinks = typed.iter().map(|TypedSink { kind, values, .. }| match kind {
            SinkKind::Stdout => Sink::Stdout,
            SinkKind::Otlp => Sink::Otlp(self.otlp(values)),
            SinkKind::File => {
                let path = values.text("sinks.file.path");
                if !paths.insert(path) {
                    let why = format!("{path:?} is the file of another sink");
                    self.sink_error(values, "sinks.file.path", Problem::Conflict(why));
                }
                Sink::File(FileSink {
                    path: path.into(),
                    rotate_bytes: values.size("sinks.file.rotate"),
                    keep: u32::try_from(values.count("sinks.file.keep")).unwrap_or(u32::MAX),
                    fsync: values.text("sinks.file.fsync") == "true",
                })
            }
        });
        let sinks: Vec<_> = sinks.collect();
        let is_optional = |sink: &Sink| matches!(sink, Sink::Otlp(otlp) if !otlp.required);
        if let Some(first) = typed.first()
            && sinks.iter().all(is_optional)
            && self.is_clean(&["sinks"])
        {
            let why = "no sink is required, so a crash could take what nobody else has; expected \
                       one or more with required: true";
            self.sink_error(&first.values, REQUIRED, Problem::Conflict(why.to_owned()));
        }
        sinks
    }

    /// The queues that have their memory to themselves leave enough of it.
    pub(super) fn check_queues(&mut self, config: &Config, typed: &[TypedSink]) {
        let (queues, memory) = (config.optional_queue_bytes(), config.node.memory_bytes);
        let optional = |sink: &&TypedSink| sink.values.optional_text(REQUIRED) == Some("false");
        if queues > memory / 2
            && self.is_clean(&["sinks", "node.memory"])
            && let Some(first) = typed.iter().find(optional)
        {
            let why = format!(
                "queues of sinks that are not required are taken off node.memory ({}), and this \
                 is more than half of it",
                self.values.typed("node.memory"),
            );
            self.sink_error(&first.values, "sinks.otlp.queue", Problem::Conflict(why));
        }
    }

    fn otlp(&mut self, values: &Values) -> OtlpSink {
        let protocol = match values.text("sinks.otlp.protocol") {
            "http" => Protocol::Http,
            _ => Protocol::Grpc,
        };
        let compression = match values.text("sinks.otlp.compression") {
            "gzip" => Compression::Gzip,
            "none" => Compression::None,
            _ => Compression::Zstd,
        };
        let endpoints = self.endpoints(values, protocol);
        OtlpSink {
            tls: self.client_files(values, &endpoints),
            endpoints,
            protocol,
            compression,
            headers: self.headers(values, protocol),
            request_bytes_max: values.size("sinks.otlp.request_bytes_max"),
            queue_bytes_max: values.size("sinks.otlp.queue"),
            retry_for: values.duration("sinks.otlp.retry_for"),
            required: values.text(REQUIRED) == "true",
            dead_letter_bytes_max: values.size("sinks.otlp.dead_letter_max"),
        }
    }

    fn endpoints(&mut self, values: &Values, protocol: Protocol) -> Vec<http::Uri> {
        const PATH: &str = "sinks.otlp.endpoint";
        let mut endpoints: Vec<http::Uri> = Vec::new();
        for text in values.list_of_texts(PATH) {
            let Ok(endpoint) = text.parse::<http::Uri>() else { continue };
            if protocol == Protocol::Grpc && endpoint.path_and_query().is_some_and(is_path) {
                let why =
                    format!("{text:?} has a path, and gRPC has none; expected protocol: http");
                self.sink_error(values, PATH, Problem::Conflict(why));
            } else if endpoints.contains(&endpoint) {
                let why = format!("{text:?} stands there twice");
                self.sink_error(values, PATH, Problem::Conflict(why));
            } else {
                endpoints.push(endpoint);
            }
        }
        if values.list_of_texts(PATH).is_empty() {
            let why = "it is empty; expected one or more, such as http://127.0.0.1:4327";
            self.sink_error(values, PATH, Problem::Conflict(why.to_owned()));
        }
        endpoints
    }

    fn client_files(&mut self, values: &Values, endpoints: &[http::Uri]) -> ClientFiles {
        const TLS: &str = "sinks.otlp.tls";
        let [ca, cert, key, name] =
            ["ca_file", "cert_file", "key_file", "server_name"].map(|key| format!("{TLS}.{key}"));
        let file = |path: &str| values.optional_text(path).map(PathBuf::from);
        let certificate = match (file(&cert), file(&key)) {
            (Some(cert_file), Some(key_file)) => Some(CertificateFiles { cert_file, key_file }),
            (None, None) => None,
            (given, _) => {
                let given = if given.is_some() { &cert } else { &key };
                let why = "expected cert_file and key_file together".to_owned();
                self.sink_error(values, given, Problem::Conflict(why));
                None
            }
        };
        let server_name = values.optional_text(&name).and_then(|text| {
            let why = || format!("{text:?} is no name of a host and no IP address");
            let parsed = ServerName::try_from(text.to_owned());
            parsed.map_err(|_| self.sink_error(values, &name, Problem::Conflict(why()))).ok()
        });
        let files = ClientFiles { ca_file: file(&ca), certificate, server_name };
        let is_used = endpoints.iter().any(|url| url.scheme() == Some(&http::uri::Scheme::HTTPS));
        let given = [&ca, &cert, &key, &name].into_iter().find(|path| values.get(path).is_some());
        match given {
            Some(given) if !is_used && !endpoints.is_empty() => {
                let why = "no endpoint is https, so nothing would be encrypted".to_owned();
                self.sink_error(values, given, Problem::Conflict(why));
            }
            _ if is_used => {
                if let Err(FileError { path, why }) = files.check() {
                    let is_of = |key: &&String| file(key).as_ref() == Some(&path);
                    let key = [&ca, &cert, &key].into_iter().find(is_of).unwrap_or(&ca);
                    let problem = Problem::File { file: path.display().to_string(), why };
                    self.sink_error(values, key, problem);
                }
            }
            _ => {}
        }
        files
    }

    fn headers(
        &mut self,
        values: &Values,
        protocol: Protocol,
    ) -> Vec<(http::HeaderName, http::HeaderValue)> {
        const PATH: &str = "sinks.otlp.headers";
        let mut headers = Vec::new();
        for (name, value) in values.texts(PATH) {
            let header = name.parse::<http::HeaderName>().ok().zip(value.parse().ok());
            let Some((header, mut value)): Option<(_, http::HeaderValue)> = header else {
                let why = format!("{name:?} or its value has characters that no header may have");
                self.sink_error(values, PATH, Problem::Conflict(why));
                continue;
            };
            if protocol == Protocol::Grpc && header.as_str().ends_with("-bin") {
                let why = format!("{name:?} would be binary in gRPC; expected another name");
                self.sink_error(values, PATH, Problem::Conflict(why));
            }
            value.set_sensitive(true);
            headers.push((header, value));
        }
        headers
    }

    fn sink_error(&mut self, values: &Values, path: &str, problem: Problem) {
        self.error(values.origin(path), path, problem);
    }
}

fn is_path(path: &http::uri::PathAndQuery) -> bool {
    path != "/"
}
