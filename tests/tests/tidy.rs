//! The repository checks itself: what a compiler cannot see and a reviewer should not have to.
//!
//! Each rule is a pure function from the files to complaints, and each complaint says what to do
//! instead. Below every rule that could rot unseen, a test plants a violation and sees it caught.
//! Files are those that git tracks or would track; nothing is built, run or changed.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// What the top level may hold, besides dotfiles.
const TOP_LEVEL: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "membership",
    "node",
    "simulation",
    "tests",
    "transport",
];

/// The crates that each crate may depend on, and none else of ours.
const CRATE_EDGES: [(&str, &[&str]); 5] = [
    ("tracemesh", &["tracemesh-membership", "tracemesh-transport"]),
    ("tracemesh-membership", &[]),
    ("tracemesh-simulation", &["tracemesh", "tracemesh-membership", "tracemesh-transport"]),
    ("tracemesh-tests", &["tracemesh"]),
    ("tracemesh-transport", &[]),
];

/// Names of crates that few files may speak of: the name, where the rule looks, the allowed files.
const CONFINED: [(&str, &str, &[&str]); 3] = [
    ("chitchat", "", &["membership/src/gossip.rs"]),
    ("quinn", "", &["transport/src/connection.rs", "transport/src/endpoint.rs"]),
    (
        "rustls",
        "transport/",
        &["transport/src/connection.rs", "transport/src/endpoint.rs", "transport/src/tls.rs"],
    ),
];

/// Lines that a file has before its tests.
const LINES_MAX: usize = 500;
/// Characters of a line; prose in Markdown is wrapped by who shows it.
const COLUMNS_MAX: usize = 100;

/// Words that do not belong, and what to write instead.
const WORDS: [(&str, &str); 8] = [
    ("TODO", "do it, or leave it out: what is not built is not there"),
    ("FIXME", "mend it, or say in a sentence why it is so"),
    ("XXX", "say in a sentence what is remarkable"),
    ("HACK", "say in a sentence why it is so"),
    ("blacklist", "say `refused`"),
    ("whitelist", "say `allowed`"),
    ("#[ignore]", "give the reason: `#[ignore = \"...\"]`"),
    ("#[allow(", "say `#[expect(..., reason = \"...\")]`, which complains when it is not needed"),
];
/// Endings of types and modules whose names say nothing.
const EMPTY_NAMES: [&str; 8] =
    ["Manager", "Helper", "Helpers", "Util", "Utils", "helpers", "utils", "common"];

/// Files of the repository: path from the root, and text.
struct Tree(BTreeMap<String, String>);

impl Tree {
    /// The files that git tracks, or would track.
    fn of_this_repository() -> Self {
        let root = root();
        let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let output = Command::new("git").arg("-C").arg(root).args(list).output();
        let output = output.expect("tidy asks git for the files");
        assert!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
        let paths = String::from_utf8(output.stdout).expect("paths are UTF-8");
        let paths = paths.split('\0').filter(|path| !path.is_empty());
        let text = |path: &str| std::fs::read(root.join(path)).ok();
        let files = paths.filter_map(|path| Some((path.to_owned(), text(path)?)));
        let lossy = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self(files.map(|(path, bytes)| (path, lossy(bytes))).collect())
    }

    fn planted<const N: usize>(files: [(&str, &str); N]) -> Self {
        Self(files.map(|(path, text)| (path.to_owned(), text.to_owned())).into())
    }

    fn with_ending(&self, ending: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.0.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        files.filter(move |(path, _)| path.ends_with(ending))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate lies below the root")
}

/// This file names what it forbids.
fn is_this_file(path: &str) -> bool {
    path == "tests/tests/tidy.rs"
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[track_caller]
fn assert_caught(complaints: &[String], word: &str) {
    assert!(complaints.len() == 1, "one complaint, not {complaints:?}");
    assert!(complaints[0].contains(word), "{complaints:?} names {word}");
}

/// A line without its comment. A `//` inside a string ends it too early, which costs nothing here.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Whether `line` has `word` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !joins(line[..at].chars().next_back()) && !joins(line[at + word.len()..].chars().next())
    })
}

fn strange_top_level_entries(tree: &Tree) -> Vec<String> {
    let entries = tree.0.keys().map(|path| path.split('/').next().unwrap_or(path));
    let entries: BTreeSet<&str> = entries.collect();
    let strange = entries.iter().filter(|entry| !entry.starts_with('.'));
    let strange = strange.filter(|entry| !TOP_LEVEL.contains(entry));
    let advice = "packaging, examples and dashboards live in node/packaging/, benchmarks in \
                  node/benches/ and tests/, tool configuration in dot-folders";
    strange.map(|entry| format!("{entry}: not at the top level; {advice}")).collect()
}

#[test]
fn top_level_holds_what_the_readme_lists() {
    assert_none(&strange_top_level_entries(&Tree::of_this_repository()));
    let planted = Tree::planted([("scripts/run.sh", ""), (".ci/run", ""), ("node/x", "")]);
    assert_caught(&strange_top_level_entries(&planted), "scripts");
}

fn strange_crate_edges(metadata: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = CRATE_EDGES.iter().find(|(package, _)| *package == name) else {
            complaints.push(format!("{name}: a sixth crate; put it into one of the five"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let names = dependencies.filter_map(|dependency| dependency["name"].as_str());
        let ours = names.filter(|name| name.starts_with("tracemesh"));
        complaints.extend(ours.filter(|ours| !allowed.contains(ours)).map(|ours| {
            format!("{name}: must not depend on {ours}; let node, which may know both, join them")
        }));
    }
    complaints
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(root());
    let output = cargo.output().expect("cargo started this test");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    assert_eq!(metadata["packages"].as_array().map(Vec::len), Some(CRATE_EDGES.len()));
    assert_none(&strange_crate_edges(&metadata));
    let dependency = serde_json::json!([{ "name": "tracemesh-membership" }, { "name": "bytes" }]);
    let package = serde_json::json!({ "name": "tracemesh-transport", "dependencies": dependency });
    let planted = serde_json::json!({ "packages": [package] });
    assert_caught(&strange_crate_edges(&planted), "tracemesh-membership");
}

fn own_versions(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    // What is fuzzed needs another compiler, and so a workspace of its own.
    let files = tree.with_ending("/Cargo.toml").filter(|(path, _)| *path != "node/fuzz/Cargo.toml");
    for (path, text) in files {
        let mut in_dependencies = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
            } else if in_dependencies && line.contains('=') && !line.contains("workspace = true") {
                complaints.push(format!(
                    "{path}: `{line}`: put the version into [workspace.dependencies] and say \
                     `.workspace = true` here"
                ));
            }
        }
        if !text.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{path}: add `[lints]` with `workspace = true`"));
        }
    }
    complaints
}

#[test]
fn versions_and_lints_are_those_of_the_workspace() {
    assert_none(&own_versions(&Tree::of_this_repository()));
    let lints = "[lints]\nworkspace = true\n";
    let own = format!("[dependencies]\nserde = \"1\"\nbytes.workspace = true\n{lints}");
    assert_caught(&own_versions(&Tree::planted([("node/Cargo.toml", &own)])), "serde");
    assert_caught(&own_versions(&Tree::planted([("node/Cargo.toml", "")])), "[lints]");
}

fn strange_mentions(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (word, place, allowed) in CONFINED {
        let files = tree.with_ending(".rs").filter(|(path, _)| path.starts_with(place));
        for (path, text) in files.filter(|(path, _)| !allowed.contains(path) && !is_this_file(path))
        {
            if text.lines().any(|line| has_word(code(line), word)) {
                complaints.push(format!(
                    "{path}: names {word}, which only {allowed:?} may; ask one of these for what \
                     is needed, in words of our own"
                ));
            }
        }
    }
    complaints
}

#[test]
fn few_files_name_the_gossip_and_transport_libraries() {
    let tree = Tree::of_this_repository();
    assert_none(&strange_mentions(&tree));
    for (word, _, allowed) in CONFINED {
        for path in allowed {
            let text = tree.0.get(*path).unwrap_or_else(|| panic!("{path} is gone: update tidy"));
            assert!(text.contains(word), "{path} does not name {word} any more: update tidy");
        }
    }
    let planted = Tree::planted([
        ("node/src/route.rs", "// chitchat is not named here\nuse chitchat::Chitchat;\n"),
        ("node/src/x.rs", "fn chitchatty() {} // chitchat\n"),
        ("membership/src/gossip.rs", "use chitchat::Chitchat;\n"),
    ]);
    assert_caught(&strange_mentions(&planted), "node/src/route.rs");
}

fn modules_without_purpose(tree: &Tree) -> Vec<String> {
    let files = tree.with_ending(".rs");
    let silent = files.filter(|(_, text)| !text.starts_with("//!"));
    let advice = "begin with `//!`: why it exists, the one invariant, who owns its state, what \
                  bounds it, what it does not do";
    silent.map(|(path, _)| format!("{path}: {advice}")).collect()
}

#[test]
fn every_module_begins_with_its_purpose() {
    assert_none(&modules_without_purpose(&Tree::of_this_repository()));
    let planted = Tree::planted([("node/src/a.rs", "use a;\n"), ("node/src/b.rs", "//! B.\n")]);
    assert_caught(&modules_without_purpose(&planted), "node/src/a.rs");
}

fn unbiased_selects(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree.with_ending(".rs").filter(|(path, _)| !is_this_file(path)) {
        for (number, line) in text.lines().enumerate() {
            let Some((_, inside)) = code(line).split_once("select! {") else {
                continue;
            };
            let following = text.lines().skip(number + 1).map(code);
            let mut inside = std::iter::once(inside).chain(following).map(str::trim);
            let first = inside.find(|line| !line.is_empty());
            if !first.is_some_and(|first| first.starts_with("biased;")) {
                complaints.push(format!(
                    "{path}:{}: begin with `biased;` and order the branches: cancel, control, data",
                    number + 1
                ));
            }
        }
    }
    complaints
}

#[test]
fn every_select_is_biased() {
    assert_none(&unbiased_selects(&Tree::of_this_repository()));
    let fair = "tokio::select! {\n    // why\n    biased;\n    x => {}\n}\n";
    let unfair = "tokio::select! {\n    x => {}\n}\n";
    let planted = Tree::planted([("node/src/fair.rs", fair), ("node/src/unfair.rs", unfair)]);
    assert_caught(&unbiased_selects(&planted), "node/src/unfair.rs:1");
}

fn long_lines(tree: &Tree) -> Vec<String> {
    let checked = [".rs", ".yaml", ".yml", ".py", ".sh", "run"];
    let files = checked.iter().flat_map(|ending| tree.with_ending(ending));
    let mut complaints = Vec::new();
    for (path, text) in files {
        for (number, line) in (1..).zip(text.lines()) {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                complaints.push(format!(
                    "{path}:{number}: {columns} characters; wrap it at {COLUMNS_MAX}"
                ));
            }
        }
    }
    complaints
}

#[test]
fn lines_fit_beside_each_other() {
    assert_none(&long_lines(&Tree::of_this_repository()));
    let long = "é".repeat(COLUMNS_MAX) + "\n\n" + &"x".repeat(COLUMNS_MAX + 1);
    assert_caught(&long_lines(&Tree::planted([("node/src/a.rs", &long)])), "a.rs:3");
}

/// Whether the file is no test by its place.
fn is_product(path: &str) -> bool {
    path.contains("/src/") && !path.ends_with("/tests.rs")
}

fn long_files(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree.with_ending(".rs").filter(|(path, _)| is_product(path)) {
        let lines: Vec<&str> = text.lines().collect();
        let tests = lines.windows(2).position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        });
        let count = tests.unwrap_or(lines.len());
        if count > LINES_MAX {
            complaints.push(format!(
                "{path}: {count} lines before its tests, over {LINES_MAX}; which state could move \
                 out? Split by owner of state, never by kind"
            ));
        }
    }
    complaints
}

#[test]
fn files_stay_short() {
    assert_none(&long_files(&Tree::of_this_repository()));
    let long = "//! A.\n".repeat(LINES_MAX + 1);
    let tested = "//! A.\n".repeat(LINES_MAX) + "#[cfg(test)]\nmod tests {\n}\n";
    let planted = Tree::planted([("node/src/a.rs", &long), ("node/src/b.rs", &tested)]);
    assert_caught(&long_files(&planted), "node/src/a.rs");
}

/// Whether cargo finds the file by itself.
fn is_target(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split('/').collect();
    let file = parts.pop().unwrap_or_default();
    match parts.last() {
        Some(&"src") => ["lib.rs", "main.rs"].contains(&file),
        Some(&"bin" | &"tests" | &"benches" | &"examples" | &"fuzz_targets") => true,
        _ if parts.iter().rev().nth(1).is_some_and(|part| *part == "tests") => file == "main.rs",
        _ => file == "build.rs",
    }
}

fn dead_files(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, _) in tree.with_ending(".rs").filter(|(path, _)| !is_target(path)) {
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
        let module = file.trim_end_matches(".rs");
        let parents = ["lib.rs", "main.rs"].map(|file| format!("{directory}/{file}"));
        let parents = parents.into_iter().chain([format!("{directory}.rs")]);
        let mut texts = parents.filter_map(|parent| tree.0.get(&parent));
        let declares = |line: &str| code(line).trim_end().ends_with(&format!("mod {module};"));
        if !texts.any(|text| text.lines().any(declares)) {
            complaints
                .push(format!("{path}: no `mod {module};` refers to it; remove it or use it"));
        }
    }
    complaints
}

#[test]
fn every_file_is_used() {
    assert_none(&dead_files(&Tree::of_this_repository()));
    let planted = Tree::planted([
        ("node/src/lib.rs", "mod a;\n// mod dead;\n"),
        ("node/src/a.rs", "pub mod b;\n"),
        ("node/src/a/b.rs", ""),
        ("node/src/dead.rs", ""),
        ("tests/tests/it/main.rs", "mod c;\n"),
        ("tests/tests/it/c.rs", ""),
    ]);
    assert_caught(&dead_files(&planted), "node/src/dead.rs");
}

fn strange_words(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree.0.iter().filter(|(path, _)| !is_this_file(path)) {
        for (number, line) in (1..).zip(text.lines()) {
            let words = WORDS.iter().filter(|(word, _)| line.contains(word));
            complaints.extend(words.map(|(word, advice)| {
                format!("{path}:{number}: `{word}` does not belong here; {advice}")
            }));
            if let Some(name) = empty_name(path, line) {
                complaints.push(format!(
                    "{path}:{number}: `{name}` says nothing; name it after the data that it owns"
                ));
            }
        }
    }
    complaints
}

/// The name that a line of Rust declares, if it is an empty one.
fn empty_name<'a>(path: &str, line: &'a str) -> Option<&'a str> {
    let declaration =
        line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
    let (keyword, name) = declaration.split_once(' ')?;
    let declares = ["struct", "enum", "trait", "type", "mod"].contains(&keyword);
    let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    let is_empty = EMPTY_NAMES.iter().any(|ending| name.ends_with(ending));
    (path.ends_with(".rs") && declares && is_empty).then_some(name)
}

#[test]
fn words_mean_something() {
    assert_none(&strange_words(&Tree::of_this_repository()));
    let note = Tree::planted([("node/src/a.rs", "// TODO later\n")]);
    assert_caught(&strange_words(&note), "node/src/a.rs:1");
    let name = Tree::planted([("node/src/a.rs", "\npub struct PeerManager {\n")]);
    assert_caught(&strange_words(&name), "node/src/a.rs:2: `PeerManager`");
}

#[test]
fn readme_has_the_keys_of_the_configuration() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README is there");
    let table = tracemesh::config::reference_table();
    let section = format!("<!-- configuration -->\n\n{}\n\n<!-- /configuration -->", table.trim());
    assert!(readme.contains(&section), "README.md: between its marks belongs:\n\n{section}");
}
