//! The registry as text: OpenMetrics, and the older format of Prometheus.
//!
//! The library writes OpenMetrics only. In the older format a counter's `HELP` and `TYPE` name the
//! sample, `_total` included, and there is no end mark; everything else that Tracemesh uses is the
//! same, so one pass over the lines is enough. The invariant: both formats have the same samples.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;

/// OpenMetrics 1.0.
pub fn open_metrics(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// The text format 0.0.4 of Prometheus.
pub fn classic(registry: &Registry) -> Result<String, fmt::Error> {
    let open_metrics = open_metrics(registry)?;
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            // Held back until the type is known, which comes next.
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

/// Every counter by its name and labels, without the prefix `tracemesh_`; fractions are cut off.
pub fn counters(registry: &Registry) -> Result<BTreeMap<String, u64>, fmt::Error> {
    let text = open_metrics(registry)?;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let values = samples.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let name = series.split('{').next().unwrap_or(series);
        let value = whole(value).filter(|_| name.ends_with("_total"))?;
        let series = series.strip_prefix("tracemesh_").unwrap_or(series);
        Some((series.to_owned(), value))
    });
    Ok(values.collect())
}

/// The whole part of a value that is never negative.
fn whole(value: &str) -> Option<u64> {
    value.split('.').next().unwrap_or(value).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{
        Answer, Direction, DirectionLabels, HashLabels, Metrics, PeerLabels, Protocol, Reason,
        ReasonLabels, Role, RoleLabels, registry, show_hash,
    };

    fn registered() -> (Registry, Metrics) {
        let mut registry = registry();
        let metrics = Metrics::register(&mut registry);
        (registry, metrics)
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let (registry, metrics) = registered();
        metrics.route.accepted.inc_by(7);
        metrics.trace.held.get_or_create(&RoleLabels { role: Role::StandIn }).set(3);
        let labels = PeerLabels { peer: "a \"quoted\" # name".into() };
        metrics.cluster.peer_round_trip_seconds.get_or_create(&labels).set(0.25);
        metrics.ingest.acknowledge_seconds.observe(0.004);
        let samples = |text: String| -> Vec<String> {
            let of_process = |line: &str| line.starts_with("tracemesh_process");
            let lines = text.lines().filter(|line| !line.starts_with('#') && !of_process(line));
            lines.map(str::to_owned).collect()
        };
        let classic_samples = samples(classic(&registry).unwrap());
        assert_eq!(classic_samples, samples(open_metrics(&registry).unwrap()));
        assert!(classic_samples.contains(&"tracemesh_spans_held{role=\"stand_in\"} 3".to_owned()));
    }

    #[test]
    fn older_format_names_counters_as_they_are_sampled_and_has_no_end_mark() {
        let (registry, metrics) = registered();
        metrics.route.accepted.inc();
        let text = classic(&registry).unwrap();
        let lines = "# HELP tracemesh_spans_accepted_total Spans of requests that succeeded.\n\
                     # TYPE tracemesh_spans_accepted_total counter\n\
                     tracemesh_spans_accepted_total 1\n";
        assert!(text.contains(lines), "{text}");
        assert!(!text.contains("EOF"));
        assert!(open_metrics(&registry).unwrap().ends_with("# EOF\n"));
    }

    #[test]
    fn counters_are_found_by_name_and_labels() {
        let (registry, metrics) = registered();
        metrics.trace.exported.inc_by(u64::MAX - 1);
        metrics.ingest.count(Protocol::Http, Answer::Malformed, Some(Reason::Syntax));
        metrics.route.refused.get_or_create(&ReasonLabels { reason: Reason::Ids }).inc_by(2);
        let sent = DirectionLabels { direction: Direction::Sent };
        metrics.cluster.hop_bytes.get_or_create(&sent).inc_by(9);
        metrics.memory.memory_bytes.set(5);
        let counters = counters(&registry).unwrap();
        for (name, value) in [
            ("spans_exported_total", u64::MAX - 1),
            ("requests_total{protocol=\"http\",answer=\"malformed\"}", 1),
            ("spans_refused_total{reason=\"syntax\"}", 1),
            ("spans_refused_total{reason=\"ids\"}", 2),
            ("hop_bytes_total{direction=\"sent\"}", 9),
            ("spans_accepted_total", 0),
        ] {
            assert_eq!(counters.get(name), Some(&value), "{name}");
        }
        assert!(counters.keys().all(|name| !name.contains("memory_bytes")));
    }

    #[test]
    fn one_hash_is_shown_at_a_time() {
        let (registry, metrics) = registered();
        show_hash(&metrics.cluster.view, "aa");
        show_hash(&metrics.cluster.view, "bb");
        let shown =
            |hash: &str| metrics.cluster.view.get(&HashLabels { hash: hash.into() }).is_some();
        assert!(!shown("aa") && shown("bb"));
        let text = classic(&registry).unwrap();
        assert!(text.contains("tracemesh_view_info{hash=\"bb\"} 1\n"), "{text}");
    }
}
