//! Nodes that come and go while clients send.

use crate::host;
use crate::mesh::start;
use crate::otlp::{PROTOBUF, encoded, hex, trace, trace_id};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use tracemesh_tests::http;
use tracemesh_tests::node::Node;
use tracemesh_tests::wait::{wait_for, wait_until};

/// Spans of a trace; all travel in one request.
const SPANS_OF_A_TRACE: u64 = 4;
/// Traces of a request.
const TRACES_OF_A_REQUEST: u64 = 10;
/// Requests that must have been answered before and after a change.
const REQUESTS_AROUND_A_CHANGE: u64 = 50;

/// A client that tries every request at the next node until one takes it, as a balancer would.
struct Load {
    urls: Vec<String>,
    stopped: AtomicBool,
    taken_count: AtomicU64,
}

impl Load {
    fn new(nodes: &[&Node]) -> Self {
        let urls = nodes.iter().map(|node| node.http_url("/v1/traces")).collect();
        Self { urls, stopped: AtomicBool::new(false), taken_count: AtomicU64::new(0) }
    }

    /// Sends one request after the other until it is stopped.
    fn run(&self) {
        let mut tries = 0;
        while !self.stopped.load(Ordering::Relaxed) {
            let number = self.taken_count.load(Ordering::Relaxed);
            let first = number * TRACES_OF_A_REQUEST;
            let ids = (first..first + TRACES_OF_A_REQUEST).map(trace_id);
            let body = encoded(ids.flat_map(|id| trace(&id, SPANS_OF_A_TRACE)).collect());
            wait_for("a node to take a request", || {
                let url = &self.urls[tries % self.urls.len()];
                tries += 1;
                let answer = http::try_post(url, &[("content-type", PROTOBUF)], &body).ok()?;
                let may_be_sent_again =
                    answer.status == 503 && !answer.header("retry-after").is_empty();
                assert!(
                    answer.status == 200 || may_be_sent_again,
                    "{}: {}",
                    answer.status,
                    answer.text()
                );
                (answer.status == 200).then_some(())
            });
            self.taken_count.store(number + 1, Ordering::Relaxed);
        }
    }

    /// Runs while `change` runs, and for some requests before and after it; returns the ids of all
    /// traces that were taken.
    fn around<T>(&self, change: impl FnOnce() -> T) -> (T, BTreeSet<String>) {
        let result = thread::scope(|scope| {
            scope.spawn(|| self.run());
            self.wait_for_more();
            let result = change();
            self.wait_for_more();
            self.stopped.store(true, Ordering::Relaxed);
            result
        });
        let trace_count = self.taken_count.load(Ordering::Relaxed) * TRACES_OF_A_REQUEST;
        (result, (0..trace_count).map(|number| hex(&trace_id(number))).collect())
    }

    fn wait_for_more(&self) {
        let enough = self.taken_count.load(Ordering::Relaxed) + REQUESTS_AROUND_A_CHANGE;
        wait_until("more requests", || self.taken_count.load(Ordering::Relaxed) >= enough);
    }
}

/// The ids of traces of which all spans were written, in whatever parts.
fn whole_traces(nodes: &[&Node]) -> BTreeSet<String> {
    let mut span_ids: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for trace in nodes.iter().flat_map(|node| node.traces()) {
        let ids = trace.spans.iter().map(|span| span["spanId"].to_string());
        span_ids.entry(trace.trace_id).or_default().extend(ids);
    }
    let is_whole = |ids: &BTreeSet<_>| ids.len() as u64 == SPANS_OF_A_TRACE;
    span_ids.into_iter().filter(|(_, ids)| is_whole(ids)).map(|(id, _)| id).collect()
}

#[test]
fn node_that_joins_under_load_costs_no_client_a_span() {
    let host = host();
    let settings = host.nodes(&["a", "b", "c", "d"]);
    let mesh = start(&settings[..3]);
    let load = Load::new(&mesh.iter().collect::<Vec<_>>());
    let (newcomer, ids) = load.around(|| {
        let newcomer = settings[3].start();
        mesh.iter().chain([&newcomer]).for_each(|node| node.wait_for_members(4));
        newcomer
    });
    let nodes: Vec<_> = mesh.iter().chain([&newcomer]).collect();
    wait_until("all traces", || ids.is_subset(&whole_traces(&nodes)));
    assert!(!newcomer.traces().is_empty(), "the newcomer owns some traces");
}

#[test]
fn node_that_is_stopped_under_load_costs_no_client_a_span() {
    let host = host();
    let mut mesh = start(&host.nodes(&["a", "b", "c"]));
    let mut leaver = mesh.pop().expect("there are three");
    let load = Load::new(&[&mesh[0], &mesh[1], &leaver]);
    let (status, ids) = load.around(|| {
        let status = leaver.stop();
        mesh.iter().for_each(|node| node.wait_for_members(2));
        status
    });
    assert_eq!(status.code(), Some(0), "everything was handed over or exported");
    let nodes: Vec<_> = mesh.iter().chain([&leaver]).collect();
    wait_until("all traces", || ids.is_subset(&whole_traces(&nodes)));
    for name in ["tracemesh_peer_round_trip_seconds", "tracemesh_traces_unplaced"] {
        let tells_of = |peer| mesh[0].metrics().has(name, &[("peer", peer)]);
        assert!(tells_of("b"), "{name}");
        wait_until("no figure of who has gone", || !tells_of("c"));
    }
}
