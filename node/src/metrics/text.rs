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
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|typed| typed.split_once(' '))
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
        let value: f64 = value.parse().ok().filter(|_| name.ends_with("_total"))?;
        let series = series.strip_prefix("tracemesh_").unwrap_or(series);
        Some((series.to_owned(), value as u64))
    });
    Ok(values.collect())
}
