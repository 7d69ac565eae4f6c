//! What nodes wrote into their trace files: OTLP JSON, one trace a line.
//!
//! The reader is strict, because the file is what users build on: every complete line must be one
//! export request whose spans belong to one trace. A last line without its end is still being
//! written and is passed over.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One line of a trace file.
#[derive(Clone, Debug)]
pub struct Line {
    /// The trace that all spans of the line belong to, in lower-case hex.
    pub trace_id: String,
    /// The spans as JSON objects, in the order of the file.
    pub spans: Vec<Value>,
    /// The whole line.
    pub document: Value,
}

/// The complete lines of a trace file; none while the file does not exist.
///
/// # Panics
/// When a complete line is not the spans of one trace.
pub fn read(path: &Path) -> Vec<Line> {
    let text = String::from_utf8(fs::read(path).unwrap_or_default()).expect("the file is UTF-8");
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(read_line).collect()
}

/// How often each trace was written to any of `paths`, and with how many spans each time.
pub fn span_counts<'a>(paths: impl IntoIterator<Item = &'a Path>) -> BTreeMap<String, Vec<usize>> {
    let mut counts = BTreeMap::<String, Vec<usize>>::new();
    for line in paths.into_iter().flat_map(read) {
        counts.entry(line.trace_id).or_default().push(line.spans.len());
    }
    counts
}

fn read_line(text: &str) -> Line {
    let document: Value = serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("a line is no JSON: {error}: {text}"));
    let spans: Vec<Value> = each(&document, "resourceSpans")
        .flat_map(|resource| each(resource, "scopeSpans"))
        .flat_map(|scope| each(scope, "spans"))
        .cloned()
        .collect();
    let mut trace_ids: Vec<_> = spans.iter().map(|span| span["traceId"].as_str()).collect();
    trace_ids.dedup();
    let [Some(trace_id)] = trace_ids[..] else {
        panic!("a line holds the spans of one trace, not of {trace_ids:?}: {text}");
    };
    Line { trace_id: trace_id.to_owned(), spans, document }
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::{read, span_counts};
    use std::fs;

    fn line(trace_ids: &[&str]) -> String {
        let spans: Vec<_> = trace_ids.iter().map(|id| format!(r#"{{"traceId":"{id}"}}"#)).collect();
        let spans = spans.join(",");
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#)
    }

    #[test]
    fn a_line_without_its_end_is_not_read_yet() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        fs::write(&path, format!("{}\n{}", line(&["a", "a"]), &line(&["b"])[..9])).unwrap();
        assert_eq!(span_counts([path.as_path()]), [("a".to_owned(), vec![2])].into());
    }

    #[test]
    #[should_panic(expected = "spans of one trace")]
    fn a_line_with_two_traces_is_a_fault() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.jsonl");
        fs::write(&path, line(&["a", "b"]) + "\n").unwrap();
        read(&path);
    }
}
