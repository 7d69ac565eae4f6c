//! Writes the requests of a [`Plan`]: realistic spans, cheap to make.
//!
//! Spans are encoded once, as templates, with recognisable ids and times; a request is a copy of
//! templates with its own ids and times written over them. So generating costs a small fraction of
//! what receiving costs, and two requests differ only where real ones would. The invariant: every
//! request is the valid encoding of an `ExportTraceServiceRequest` with exactly the spans of the
//! plan. The templates come from the seed alone.
//!
//! A span has about 508 bytes with 8 to 14 attributes, some have events and links; a request has 3
//! to 8 resources with 10 attributes each.

use super::plan::{Plan, SpanNumber, mix};
use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::RangeInclusive;

/// Different spans, of each kind (root or not): enough that neighbours are rarely equal, little
/// enough to stay in a processor's cache.
const SPAN_TEMPLATES: usize = 64;
/// Different resources, as if from as many services.
const RESOURCES: usize = 24;
/// Resources of one request.
const RESOURCES_PER_REQUEST: RangeInclusive<u64> = 3..=8;
/// Attributes of one span.
const ATTRIBUTES: RangeInclusive<usize> = 8..=14;
/// One span in so many has an event, one in twice as many a link.
const EVENT_EVERY: usize = 6;

/// Tags of `ExportTraceServiceRequest.resource_spans`, `ResourceSpans.resource`,
/// `ResourceSpans.scope_spans`, `ScopeSpans.scope` and `ScopeSpans.spans`.
const RESOURCE_SPANS: u8 = 0x0a;
const RESOURCE: u8 = 0x0a;
const SCOPE_SPANS: u8 = 0x12;
const SCOPE: u8 = 0x0a;
const SPANS: u8 = 0x12;

/// Stand in templates where ids and times are written; found again by their bytes.
const TRACE_ID: [u8; 16] = *b"trace-id marker!";
const SPAN_ID: [u8; 8] = *b"span-id!";
const PARENT_ID: [u8; 8] = *b"parents!";
const START_TIME: [u8; 8] = *b"started!";
const END_TIME: [u8; 8] = *b"the end!";

/// An encoded `ScopeSpans.spans` field and where to write in it.
#[derive(Debug)]
struct Template {
    /// Tag, length, span.
    field: Vec<u8>,
    trace_id: usize,
    span_id: usize,
    /// `None` in a root.
    parent_id: Option<usize>,
    start_time: usize,
    end_time: usize,
}

/// Makes requests.
#[derive(Debug)]
pub(super) struct Generator {
    plan: Plan,
    roots: Vec<Template>,
    children: Vec<Template>,
    /// Encoded `ResourceSpans.resource` fields.
    resources: Vec<Vec<u8>>,
    /// Encoded `ScopeSpans.scope` fields, one for each resource.
    scopes: Vec<Vec<u8>>,
    /// The spans of the request being made; kept for its memory.
    spans: Vec<(SpanNumber, u64)>,
}

impl Generator {
    /// Encodes the templates.
    pub(super) fn new(plan: Plan, seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut templates = |kind: fn(&mut StdRng, usize) -> Span| -> Vec<_> {
            (0..SPAN_TEMPLATES).map(|index| Template::new(&kind(random, index))).collect()
        };
        Self {
            plan,
            roots: templates(root),
            children: templates(child),
            resources: (0..RESOURCES).map(|index| field(RESOURCE, &resource(index))).collect(),
            scopes: (0..RESOURCES).map(|index| field(SCOPE, &scope(index))).collect(),
            spans: Vec::new(),
        }
    }

    /// The bytes of a request and its number of spans; `now` in nanoseconds since 1970.
    pub(super) fn request(&mut self, request: u64, now: u64) -> (Bytes, u64) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.clear();
        let numbers = self.plan.spans_of(request);
        spans.extend(numbers.map(|number| (number, self.plan.span_id(number))));
        let dice = mix(request);
        let choices = RESOURCES_PER_REQUEST.end() - RESOURCES_PER_REQUEST.start() + 1;
        let resource_count = (RESOURCES_PER_REQUEST.start() + dice % choices) as usize;
        let group_size = spans.len().div_ceil(resource_count).max(1);

        let mut bytes = Vec::with_capacity(self.encoded_bytes_max(&spans));
        for (index, group) in spans.chunks(group_size).enumerate() {
            let resource = (dice as usize / 64 + index) % RESOURCES;
            self.write_group(resource, group, now, &mut bytes);
        }
        let span_count = spans.len() as u64;
        self.spans = spans;
        (bytes.into(), span_count)
    }

    /// One `ResourceSpans` with one `ScopeSpans`.
    fn write_group(
        &self,
        resource: usize,
        group: &[(SpanNumber, u64)],
        now: u64,
        bytes: &mut Vec<u8>,
    ) {
        let (resource, scope) = (&self.resources[resource], &self.scopes[resource]);
        let span_bytes: usize =
            group.iter().map(|(number, id)| self.template(*number, *id).field.len()).sum();
        let scope_spans = scope.len() + span_bytes;
        let resource_spans =
            resource.len() + 1 + prost::length_delimiter_len(scope_spans) + scope_spans;
        put_head(RESOURCE_SPANS, resource_spans, bytes);
        bytes.extend_from_slice(resource);
        put_head(SCOPE_SPANS, scope_spans, bytes);
        bytes.extend_from_slice(scope);
        for (number, id) in group {
            self.write_span(*number, *id, now, bytes);
        }
    }

    fn write_span(&self, number: SpanNumber, id: u64, now: u64, bytes: &mut Vec<u8>) {
        let template = self.template(number, id);
        let begin = bytes.len();
        bytes.extend_from_slice(&template.field);
        let span = &mut bytes[begin..];
        span[template.trace_id..][..16].copy_from_slice(&self.plan.trace_id(number.trace));
        span[template.span_id..][..8].copy_from_slice(&id.to_be_bytes());
        if let Some(parent_id) = template.parent_id {
            let parent = SpanNumber { span: (number.span - 1) / 2, ..number };
            let parent = self.plan.span_id(parent);
            span[parent_id..][..8].copy_from_slice(&parent.to_be_bytes());
        }
        // Children begin a little after their parents and end before them.
        let age = 50_000_000 / (number.span + 1) + id % 1_000_000;
        span[template.start_time..][..8].copy_from_slice(&(now - age).to_le_bytes());
        span[template.end_time..][..8].copy_from_slice(&(now - age / 2).to_le_bytes());
    }

    fn template(&self, number: SpanNumber, id: u64) -> &Template {
        let kind = if number.span == 0 { &self.roots } else { &self.children };
        &kind[(id >> 32) as usize % SPAN_TEMPLATES]
    }

    fn encoded_bytes_max(&self, spans: &[(SpanNumber, u64)]) -> usize {
        let span_bytes: usize =
            spans.iter().map(|(number, id)| self.template(*number, *id).field.len()).sum();
        let largest = |fields: &[Vec<u8>]| fields.iter().map(Vec::len).max().unwrap_or(0);
        let heads = 2 * (1 + prost::length_delimiter_len(span_bytes) + 1);
        let group = largest(&self.resources) + largest(&self.scopes) + heads;
        span_bytes + *RESOURCES_PER_REQUEST.end() as usize * group
    }
}

impl Template {
    fn new(span: &Span) -> Self {
        let field = field(SPANS, span);
        let find = |marker: &[u8]| field.windows(marker.len()).position(|bytes| bytes == marker);
        let found = |marker| find(marker).expect("the templates below have every marker");
        Self {
            trace_id: found(&TRACE_ID),
            span_id: found(&SPAN_ID),
            parent_id: find(&PARENT_ID),
            start_time: found(&START_TIME),
            end_time: found(&END_TIME),
            field,
        }
    }
}

/// Tag and length of a field.
fn put_head(tag: u8, length: usize, bytes: &mut Vec<u8>) {
    bytes.push(tag);
    prost::encode_length_delimiter(length, bytes).expect("a Vec grows as needed");
}

fn field(tag: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![tag];
    message.encode_length_delimited(&mut bytes).expect("a Vec grows as needed");
    bytes
}

fn root(random: &mut StdRng, index: usize) -> Span {
    Span {
        name: format!("GET /shop/{}/{{id}}", ["cart", "orders", "items", "search"][index % 4]),
        kind: span::SpanKind::Server.into(),
        parent_span_id: Vec::new(),
        ..child(random, index)
    }
}

fn child(random: &mut StdRng, index: usize) -> Span {
    let kinds = [span::SpanKind::Client, span::SpanKind::Server, span::SpanKind::Internal];
    let events = index.is_multiple_of(EVENT_EVERY).then(|| span::Event {
        time_unix_nano: u64::from_le_bytes(START_TIME),
        name: "exception".to_owned(),
        attributes: vec![
            text("exception.type", "java.net.SocketTimeoutException"),
            text("exception.message", "Read timed out after 1000 ms"),
        ],
        dropped_attributes_count: 0,
    });
    let links = (index % (2 * EVENT_EVERY) == 1).then(|| span::Link {
        trace_id: random.random::<[u8; 16]>().to_vec(),
        span_id: random.random::<[u8; 8]>().to_vec(),
        ..span::Link::default()
    });
    let code = span_status(index);
    Span {
        trace_id: TRACE_ID.to_vec(),
        span_id: SPAN_ID.to_vec(),
        parent_span_id: PARENT_ID.to_vec(),
        flags: 0x101,
        name: format!("shop.Inventory/{}", ["Reserve", "Lookup", "List"][index % 3]),
        kind: kinds[index % kinds.len()].into(),
        start_time_unix_nano: u64::from_le_bytes(START_TIME),
        end_time_unix_nano: u64::from_le_bytes(END_TIME),
        attributes: attributes(random),
        events: events.into_iter().collect(),
        links: links.into_iter().collect(),
        status: Some(Status { code, message: String::new() }),
        ..Span::default()
    }
}

/// One span in sixteen failed (2), some are explicitly fine (1), most say nothing (0).
fn span_status(index: usize) -> i32 {
    match index % 16 {
        0 => 2,
        1..=3 => 1,
        _ => 0,
    }
}

fn attributes(random: &mut StdRng) -> Vec<KeyValue> {
    let id = random.random_range(10_000..1_000_000);
    let all = [
        text("http.request.method", "GET"),
        text("url.path", &format!("/shop/items/{id}")),
        number("http.response.status_code", 200),
        text("http.route", "/shop/items/{id}"),
        text("server.address", &format!("10.0.{}.{}", id % 256, id / 7 % 256)),
        number("server.port", 8080),
        text("network.peer.address", &format!("10.1.{}.{}", id % 199, id / 5 % 256)),
        text("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64)"),
        text("enduser.id", &format!("customer-{id:08}")),
        number("thread.id", id % 200),
        text("thread.name", &format!("worker-pool-{}", id % 32)),
        text("db.system.name", "postgresql"),
        text("db.query.text", "SELECT * FROM items WHERE id = $1"),
        number("network.peer.port", 30_000 + id % 30_000),
    ];
    let count = random.random_range(ATTRIBUTES);
    all.into_iter().take(count).collect()
}

fn resource(index: usize) -> Resource {
    let name = ["frontend", "cart", "checkout", "inventory", "payment", "shipping"][index % 6];
    Resource {
        attributes: vec![
            text("service.name", name),
            text("service.version", &format!("2.{index}.1")),
            text("service.instance.id", &format!("{name}-7d9f8b6c5-{index:05}")),
            text("deployment.environment.name", "production"),
            text("host.name", &format!("host-{:03}.example.net", index % 12)),
            text("os.type", "linux"),
            number("process.pid", 1000 + index as i64),
            text("telemetry.sdk.name", "opentelemetry"),
            text("telemetry.sdk.language", "java"),
            text("telemetry.sdk.version", "1.52.0"),
        ],
        ..Resource::default()
    }
}

fn scope(index: usize) -> InstrumentationScope {
    InstrumentationScope {
        name: format!("io.opentelemetry.http-{}", index % 5),
        version: "2.18.0".to_owned(),
        ..InstrumentationScope::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Shape;
    use super::super::scan;
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use std::collections::BTreeSet;

    const NOW: u64 = 1_700_000_000_000_000_000;

    fn plan(spans_per_trace: u64) -> Plan {
        Plan::new(Shape {
            seed: 42,
            spans_per_trace,
            trace_count: Some(576),
            target_count: 3,
            request_spans: 512,
        })
    }

    fn decode(bytes: Bytes) -> (ExportTraceServiceRequest, Vec<Span>) {
        let request = ExportTraceServiceRequest::decode(bytes).unwrap();
        let spans = request
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect();
        (request, spans)
    }

    #[test]
    fn every_request_decodes_to_the_spans_of_the_plan() {
        for plan in [plan(8), plan(1), plan(3000)] {
            let mut generator = Generator::new(plan, 42);
            for request in plan.schedule(0).take(6) {
                let (bytes, span_count) = generator.request(request, NOW);
                let (decoded, spans) = decode(bytes.clone());
                assert_eq!(decoded.encode_to_vec(), bytes, "the encoding is prost's own");
                assert_eq!(spans.len() as u64, span_count);
                let numbers: Vec<_> = spans
                    .iter()
                    .map(|span| plan.span_number(&span.trace_id, &span.span_id).unwrap())
                    .collect();
                assert_eq!(numbers, Vec::from_iter(plan.spans_of(request)));
                for (span, number) in spans.iter().zip(numbers) {
                    assert_eq!(span.parent_span_id.is_empty(), number.span == 0);
                    assert!(span.start_time_unix_nano < span.end_time_unix_nano);
                    assert!(span.end_time_unix_nano <= NOW);
                    assert!(ATTRIBUTES.contains(&span.attributes.len()));
                }
            }
        }
    }

    #[test]
    fn parents_are_spans_of_the_same_trace() {
        let plan = plan(8);
        let mut generator = Generator::new(plan, 42);
        let spans: Vec<_> = plan
            .schedule(0)
            .flat_map(|request| decode(generator.request(request, NOW).0).1)
            .collect();
        let ids: BTreeSet<_> =
            spans.iter().map(|span| (span.trace_id.clone(), span.span_id.clone())).collect();
        let children = spans.iter().filter(|span| !span.parent_span_id.is_empty());
        let mut parents = children.map(|span| (span.trace_id.clone(), span.parent_span_id.clone()));
        assert!(parents.all(|parent| ids.contains(&parent)));
    }

    #[test]
    fn payload_has_the_size_and_shape_that_it_claims() {
        let plan = plan(8);
        let mut generator = Generator::new(plan, 42);
        let (mut bytes_sum, mut span_count_sum) = (0, 0);
        for request in plan.schedule(0) {
            let (bytes, span_count) = generator.request(request, NOW);
            bytes_sum += bytes.len() as u64;
            span_count_sum += span_count;
            assert!(bytes.len() <= generator.encoded_bytes_max(&generator.spans));
            let resources = decode(bytes).0.resource_spans;
            assert!(RESOURCES_PER_REQUEST.contains(&(resources.len() as u64)));
            for resource in resources {
                assert_eq!(resource.resource.unwrap().attributes.len(), 10);
            }
        }
        let bytes_per_span = bytes_sum / span_count_sum;
        assert!((490..=525).contains(&bytes_per_span), "{bytes_per_span} bytes a span");
    }

    #[test]
    fn scan_finds_the_ids_that_prost_finds() {
        let plan = plan(8);
        let (bytes, _) = Generator::new(plan, 42).request(0, NOW);
        let mut scanned = Vec::new();
        scan::each_span(&bytes, |trace, span| scanned.push((trace.to_vec(), span.to_vec())))
            .unwrap();
        let decoded = decode(bytes.clone()).1.into_iter().map(|span| (span.trace_id, span.span_id));
        assert_eq!(scanned, Vec::from_iter(decoded));
        for length in (0..bytes.len()).step_by(997).skip(1) {
            assert!(scan::each_span(&bytes[..length], |_, _| {}).is_err(), "cut to {length}");
        }
    }
}
