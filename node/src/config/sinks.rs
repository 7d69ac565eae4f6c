//! Sinks as they are meant.
//!
//! A sink has values of its own, apart from those of the node. No two sinks of a node write to one
//! file; whether another process does is found when the file is locked.

use super::error::{Origin, Problem};
use super::given::Values;
use super::keys::SinkKind;
use super::meant::{MESH_PORT, Meaning};
use super::typed::TypedSink;
use super::values::Value;
use super::{Compression, OtlpSink, Protocol, Sink};
use std::collections::BTreeSet;

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
            values: Values::default(),
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
                Sink::File { path: path.into() }
            }
        });
        sinks.collect()
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
        OtlpSink {
            endpoints: self.endpoints(values, protocol),
            protocol,
            compression,
            headers: self.headers(values),
            request_bytes_max: values.size("sinks.otlp.request_bytes_max"),
            queue_bytes_max: values.size("sinks.otlp.queue"),
            retry_for: values.duration("sinks.otlp.retry_for"),
        }
    }

    fn endpoints(&mut self, values: &Values, protocol: Protocol) -> Vec<http::Uri> {
        const PATH: &str = "sinks.otlp.endpoint";
        let mut endpoints: Vec<http::Uri> = Vec::new();
        for text in values.list_of_texts(PATH) {
            let Ok(endpoint) = text.parse::<http::Uri>() else { continue };
            let mut wrong = None;
            if endpoint.scheme() == Some(&http::uri::Scheme::HTTPS) {
                let why = "TLS to a sink is not built; expected http://HOST:PORT";
                wrong = Some(Problem::NotYet(why.to_owned()));
            } else if protocol == Protocol::Grpc && endpoint.path_and_query().is_some_and(is_path) {
                let why =
                    format!("{text:?} has a path, and gRPC has none; expected protocol: http");
                wrong = Some(Problem::Conflict(why));
            } else if endpoints.contains(&endpoint) {
                wrong = Some(Problem::Conflict(format!("{text:?} stands there twice")));
            }
            match wrong {
                Some(problem) => self.sink_error(values, PATH, problem),
                None => endpoints.push(endpoint),
            }
        }
        if values.list_of_texts(PATH).is_empty() {
            let why = "it is empty; expected one or more, such as http://127.0.0.1:4327";
            self.sink_error(values, PATH, Problem::Conflict(why.to_owned()));
        }
        endpoints
    }

    fn headers(&mut self, values: &Values) -> Vec<(http::HeaderName, http::HeaderValue)> {
        const PATH: &str = "sinks.otlp.headers";
        let mut headers = Vec::new();
        for (name, value) in values.texts(PATH) {
            let header = name.parse::<http::HeaderName>().ok().zip(value.parse().ok());
            let Some((header, mut value)): Option<(_, http::HeaderValue)> = header else {
                let why = format!("{name:?} or its value has characters that no header may have");
                self.sink_error(values, PATH, Problem::Conflict(why));
                continue;
            };
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
