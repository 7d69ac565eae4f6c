//! What the sinks count, for `/metrics`.
//!
//! Made once, by [`Metrics::register`], and passed in; the registry's owner adds the prefix
//! `tracemesh_`. Labels are the names of configured sinks, so their number is bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Label of metrics that there are once a sink.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

/// Label of metrics that there are once a queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: String,
}

/// The metrics of all sinks.
#[derive(Clone)]
pub struct Metrics {
    spans: Family<SinkLabel, Counter>,
    spans_rejected: Family<SinkLabel, Counter>,
    seconds: Family<SinkLabel, Histogram, fn() -> Histogram>,
    up: Family<SinkLabel, Gauge>,
    queue_bytes: Family<QueueLabel, Gauge>,
    spans_dead_lettered: Family<SinkLabel, Counter>,
    spans_dropped: Family<SinkLabel, Counter>,
    dead_letter_bytes: Gauge,
}

/// The metrics of one sink.
#[derive(Clone)]
pub(super) struct SinkMetrics {
    /// Spans that the sink acknowledged; counted at each sink.
    pub(super) spans: Counter,
    /// Spans that the sink acknowledged a request without (`partial_success`).
    pub(super) spans_rejected: Counter,
    /// From sending a request, or writing a line, to its answer.
    pub(super) seconds: Histogram,
    /// 0 from an attempt that failed for now until one that did not; else 1.
    pub(super) up: Gauge,
    /// Bytes of spans that wait for the sink or are on their way to it.
    pub(super) queue_bytes: Gauge,
}

/// The metrics of one dead-letter file.
#[derive(Clone)]
pub(super) struct DeadLetterMetrics {
    pub(super) spans: Counter,
    /// Spans of a sink that nobody waits for, which could not be written either.
    pub(super) dropped: Counter,
    /// Size of all dead-letter files together.
    pub(super) bytes: Gauge,
}

impl Metrics {
    /// Creates the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            spans: Family::default(),
            spans_rejected: Family::default(),
            seconds: Family::new_with_constructor(sink_seconds),
            up: Family::default(),
            queue_bytes: Family::default(),
            spans_dead_lettered: Family::default(),
            spans_dropped: Family::default(),
            dead_letter_bytes: Gauge::default(),
        };
        let m = metrics.clone();
        registry.register("sink_spans", "Spans that a sink acknowledged", m.spans);
        let help = "Spans that a sink rejected for good while it accepted the rest of a request";
        registry.register("sink_spans_rejected", help, m.spans_rejected);
        registry.register("sink_seconds", "Time a sink took for one request or line", m.seconds);
        registry.register("sink_up", "1 unless the last attempt failed for now", m.up);
        let help = "Bytes of spans that wait in a queue or were taken from it and not yet answered";
        registry.register("queue_bytes", help, m.queue_bytes);
        let help = "Spans written to a dead-letter file";
        registry.register("spans_dead_lettered", help, m.spans_dead_lettered);
        let help = "Spans that neither a sink with `required: false` nor its dead-letter file took";
        registry.register("sink_spans_dropped", help, m.spans_dropped);
        let help = "Size of all dead-letter files";
        registry.register("dead_letter_bytes", help, m.dead_letter_bytes);
        metrics
    }

    pub(super) fn sink(&self, name: &str) -> SinkMetrics {
        let label = SinkLabel { sink: name.to_owned() };
        SinkMetrics {
            spans: self.spans.get_or_create_owned(&label),
            spans_rejected: self.spans_rejected.get_or_create_owned(&label),
            seconds: self.seconds.get_or_create_owned(&label),
            up: self.up.get_or_create_owned(&label),
            queue_bytes: self
                .queue_bytes
                .get_or_create_owned(&QueueLabel { queue: format!("sink_{name}") }),
        }
    }

    pub(super) fn dead_letters(&self, name: &str) -> DeadLetterMetrics {
        let label = SinkLabel { sink: name.to_owned() };
        DeadLetterMetrics {
            spans: self.spans_dead_lettered.get_or_create_owned(&label),
            dropped: self.spans_dropped.get_or_create_owned(&label),
            bytes: self.dead_letter_bytes.clone(),
        }
    }
}

/// 1 ms to 8 s: an attempt ends after 5 s.
fn sink_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 14))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn names_are_those_that_users_read() {
        let mut registry = Registry::with_prefix("tracemesh");
        let metrics = Metrics::register(&mut registry);
        metrics.sink("otlp").spans.inc_by(3);
        metrics.sink("otlp").seconds.observe(0.5);
        metrics.dead_letters("otlp").spans.inc();
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "tracemesh_sink_spans_total{sink=\"otlp\"} 3",
            "tracemesh_sink_spans_rejected_total{sink=\"otlp\"} 0",
            "tracemesh_sink_seconds_count{sink=\"otlp\"} 1",
            "tracemesh_sink_up{sink=\"otlp\"} 0",
            "tracemesh_queue_bytes{queue=\"sink_otlp\"} 0",
            "tracemesh_spans_dead_lettered_total{sink=\"otlp\"} 1",
            "tracemesh_dead_letter_bytes 0",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
    }
}
