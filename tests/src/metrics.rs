//! What a node's `/metrics` says, as numbers.
//!
//! Reads the Prometheus text format as far as the tests need it: samples with labels, no time
//! stamps. A line that it cannot read panics, so that every test that looks at a metric checks the
//! format too.

use std::collections::BTreeMap;

/// One reading of all metrics of a node.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text of `/metrics`.
    ///
    /// # Panics
    /// When a line is no sample.
    pub fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { samples: lines.map(Sample::read).collect() }
    }

    /// The sum of all samples of `name` that have `labels` among theirs; 0 where there are none, as
    /// a counter that never counted may be absent.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| sample.name == name && sample.has(labels);
        self.samples.iter().filter(fits).map(|sample| sample.value).sum()
    }

    /// Whether there is a sample of `name` that has `labels` among its own.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.samples.iter().any(|sample| sample.name == name && sample.has(labels))
    }

    /// The names of all samples, sorted, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.samples.iter().map(|sample| sample.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Sample {
    fn read(line: &str) -> Self {
        Self::parse(line).unwrap_or_else(|| panic!("this is no sample: {line:?}"))
    }

    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            None => (series, BTreeMap::new()),
            Some((name, labels)) => (name, read_labels(labels.strip_suffix('}')?)?),
        };
        Some(Self { name: name.to_owned(), labels, value: value.parse().ok()? })
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|have| have == value))
    }
}

/// `a="b",c="d"`; a value may hold commas, and quotes behind a backslash.
fn read_labels(text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim_end_matches(',');
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(characters.next()?.1),
                (_, character) => value.push(character),
            }
        };
        labels.insert(key.to_owned(), value);
        rest = after[end..].trim_start_matches(',');
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_summed_over_the_labels_that_were_not_named() {
        let text =
            "# TYPE held gauge\nheld{role=\"owner\",why=\"a,\\\"b\"} 2\nheld{role=\"replica\"} 3\n";
        let metrics = Metrics::read(text);
        assert_eq!(metrics.sum("held", &[]), 5.0);
        assert_eq!(metrics.sum("held", &[("why", "a,\"b")]), 2.0);
        assert_eq!(metrics.sum("held", &[("role", "nobody")]), 0.0);
        assert_eq!(metrics.names(), ["held"]);
    }

    #[test]
    #[should_panic(expected = "no sample")]
    fn a_line_that_is_no_sample_is_not_passed_over() {
        Metrics::read("held{role=\"owner\"");
    }
}
