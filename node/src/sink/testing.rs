//! Attempts for the tests of sinks, built with prost, which is the oracle.

use super::Attempt;
use crate::spans::{Chunk, Resource, Scope, TraceId};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1 as proto;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use std::sync::Arc;

fn attribute(key: &str, value: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value)) };
    KeyValue { key: key.into(), value: Some(value) }
}

pub(crate) fn resource(number: usize) -> Arc<Resource> {
    let resource = proto::Resource {
        attributes: vec![attribute("service.name", format!("service-{number}"))],
        ..Default::default()
    };
    let message = ResourceSpans {
        resource: Some(resource),
        schema_url: format!("resource-{number}"),
        ..Default::default()
    };
    Arc::new(Resource { fields: message.encode_to_vec().into() })
}

pub(crate) fn scope(resource: &Arc<Resource>, number: usize) -> Arc<Scope> {
    let scope = InstrumentationScope { name: format!("library-{number}"), ..Default::default() };
    let message = ScopeSpans {
        scope: Some(scope),
        schema_url: format!("scope-{number}"),
        ..Default::default()
    };
    Arc::new(Scope { resource: resource.clone(), fields: message.encode_to_vec().into() })
}

/// `count` spans as `ScopeSpans.spans` fields, with ids from `first` on.
pub(crate) fn spans(trace: u8, first: u64, count: usize, padding: usize) -> Vec<u8> {
    let span = |n: usize| Span {
        trace_id: vec![trace; 16],
        span_id: (first + n as u64).to_be_bytes().to_vec(),
        name: format!("span {n}"),
        start_time_unix_nano: 1_700_000_000_000_000_000,
        attributes: vec![attribute("padding", "x".repeat(padding))],
        ..Default::default()
    };
    ScopeSpans { spans: (0..count).map(span).collect(), ..Default::default() }.encode_to_vec()
}

pub(crate) fn attempt(trace: u8, chunks: Vec<(Arc<Scope>, Vec<u8>)>) -> Arc<Attempt> {
    let count = |spans: &Vec<u8>| ScopeSpans::decode(&**spans).map_or(1, |s| s.spans.len() as u32);
    Arc::new(Attempt {
        trace_id: TraceId([trace; 16]),
        span_count: chunks.iter().map(|(_, spans)| count(spans)).sum(),
        bytes: chunks.iter().map(|(_, spans)| spans.len()).sum(),
        due: None,
        chunks: chunks
            .into_iter()
            .map(|(scope, spans)| Chunk { scope, spans: spans.into() })
            .collect(),
    })
}

/// A trace of `count` spans in one scope.
pub(super) fn trace(trace: u8, count: usize) -> Arc<Attempt> {
    attempt(trace, vec![(scope(&resource(0), 0), spans(trace, 1, count, 10))])
}

pub(super) fn decode(request: &Bytes) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(request.clone()).unwrap()
}

/// (resource, scope, trace id, span id) of every span, sorted.
pub(super) fn span_ids(requests: &[Bytes]) -> Vec<(String, String, Vec<u8>, Vec<u8>)> {
    let mut ids = Vec::new();
    for resource in requests.iter().flat_map(|request| decode(request).resource_spans) {
        for scope in resource.scope_spans {
            ids.extend(scope.spans.into_iter().map(|span| {
                let urls = (resource.schema_url.clone(), scope.schema_url.clone());
                (urls.0, urls.1, span.trace_id, span.span_id)
            }));
        }
    }
    ids.sort();
    ids
}
