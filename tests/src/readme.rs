//! Texts that the README tells its readers to use, so that tests run what users copy.
//!
//! A text is a fenced block with a name behind its language (` ```yaml collector-grpc `), which a
//! reader does not see.

/// What users read.
pub const README: &str = include_str!("../../README.md");

/// The text of that name.
///
/// # Panics
/// When the README has none.
#[track_caller]
pub fn text(name: &str) -> String {
    let mut lines = README.lines();
    let begins = |line: &str| line.starts_with("```") && line.ends_with(&format!(" {name}"));
    lines.find(|line| begins(line)).unwrap_or_else(|| panic!("README has no text {name:?}"));
    lines.take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect()
}

/// What stands between the marks of that name, trimmed: a table that a test knows how to write.
///
/// # Panics
/// When the README has no such marks.
#[track_caller]
pub fn section(name: &str) -> &'static str {
    let section = README.split_once(&format!("<!-- {name} -->")).and_then(|(_, rest)| {
        let (section, _) = rest.split_once(&format!("<!-- /{name} -->"))?;
        Some(section.trim())
    });
    section.unwrap_or_else(|| panic!("README has no section {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn a_text_is_found_by_its_name_and_ends_with_its_fence() {
        let text = text("collector-grpc");
        assert!(text.starts_with("exporters:\n"), "{text}");
        assert!(text.ends_with("[otlp]}}}\n"), "{text}");
    }

    #[test]
    #[should_panic(expected = "README has no text \"other\"")]
    fn a_name_that_is_not_there_is_a_fault() {
        text("other");
    }
}
