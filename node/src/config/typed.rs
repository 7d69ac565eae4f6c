//! The first stage: configuration as it was typed.
//!
//! Defaults, file, variables and flags are laid over each other, every value with its origin. What
//! comes out has known keys only, and every value parses and lies in its range; whether the values
//! make sense together, and with the files that they name, is the second stage's question. A wrong
//! value is reported and left out, so that everything else is still checked.

use super::error::{ConfigError, Origin, Problem};
use super::flags::Flags;
use super::given::Values;
use super::keys::{self, Found, KEYS, Key, NOT_YET, SinkKind};
use super::values::{Kind, Value};
use super::yaml::{Content, Entry, Node};
use std::collections::BTreeMap;

/// One sink.
#[derive(Debug)]
pub(super) struct TypedSink {
    pub(super) origin: Origin,
    pub(super) kind: SinkKind,
    pub(super) values: Values,
}

/// Everything that was typed, over the defaults.
#[derive(Debug)]
pub(super) struct Typed {
    pub(super) values: Values,
    /// The last layer that names sinks names all of them; none when no layer does.
    pub(super) sinks: Option<Vec<TypedSink>>,
}

/// Lays the layers over each other; what is wrong with them is added to `errors`.
pub(super) fn read(
    file: Option<&Node>,
    variables: &BTreeMap<String, String>,
    flags: &Flags,
    errors: &mut Vec<ConfigError>,
) -> Typed {
    let mut typed = Typed { values: defaults(|path| !path.starts_with("sinks.")), sinks: None };
    let mut reader = Reader { variables, errors };
    match file {
        Some(Node { content: Content::Map(entries), .. }) => {
            for (path, Entry { origin, node, .. }) in reader.nested("", entries) {
                reader.entry(&mut typed, &path, origin, node);
            }
        }
        None | Some(Node { content: Content::Nothing, .. }) => {}
        Some(root) => reader.bad_shape("", root, "mapping of keys", "lines such as `node:`"),
    }
    for (name, text) in variables {
        if let Some(path) = keys::path_of_variable(name) {
            let origin = Origin::Variable(name.clone());
            let node = Node::text(origin.clone(), text.as_str());
            reader.entry(&mut typed, &path, &origin, &node);
        }
    }
    for (path, node) in flags.nodes() {
        reader.entry(&mut typed, path, &node.origin, &node);
    }
    typed
}

/// The defaults of the keys that are wanted.
pub(super) fn defaults(wanted: impl Fn(&str) -> bool) -> Values {
    let keys = KEYS.iter().filter(|key| wanted(key.path));
    let mut values = Values::default();
    for (path, kind, default) in keys.filter_map(|key| Some((key.path, key.kind, key.default?))) {
        let value = kind.parse(default);
        let value = value.unwrap_or_else(|| panic!("the default of {path} does not parse"));
        values.insert(path, Origin::Default, value);
    }
    values
}

struct Reader<'a> {
    variables: &'a BTreeMap<String, String>,
    errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    fn error(&mut self, origin: &Origin, path: &str, problem: Problem) {
        self.errors.push(ConfigError { origin: origin.clone(), path: path.to_owned(), problem });
    }

    fn bad_shape(&mut self, path: &str, node: &Node, kind: &'static str, expected: &str) {
        let value = match &node.content {
            Content::Nothing => "nothing".to_owned(),
            Content::Text(text) => format!("{text:?}"),
            Content::List(_) => "a list".to_owned(),
            Content::Map(_) => "a mapping".to_owned(),
        };
        let problem = Problem::BadValue { value, kind, expected: expected.to_owned() };
        self.error(&node.origin, path, problem);
    }

    /// The entries of a mapping, without those whose key stood there before.
    fn distinct<'n>(&mut self, section: &str, entries: &'n [Entry]) -> Vec<&'n Entry> {
        let mut seen = BTreeMap::new();
        let mut distinct = Vec::with_capacity(entries.len());
        for entry in entries {
            match seen.get(entry.key.as_str()) {
                None => {
                    seen.insert(entry.key.as_str(), &entry.origin);
                    distinct.push(entry);
                }
                Some(&first) => {
                    let problem = Problem::Twice { first: first.clone() };
                    self.error(&entry.origin, &join(section, &entry.key), problem);
                }
            }
        }
        distinct
    }

    /// The entries of a section, each with its path. A dot is for people: in the file, keys are
    /// nested.
    fn nested<'n>(&mut self, section: &str, entries: &'n [Entry]) -> Vec<(String, &'n Entry)> {
        let mut nested = Vec::with_capacity(entries.len());
        for entry in self.distinct(section, entries) {
            let path = join(section, &entry.key);
            match entry.key.split_once('.') {
                None => nested.push((path, entry)),
                Some((outer, inner)) => {
                    let why = format!("a key with a dot; expected {inner} inside of {outer}");
                    self.error(&entry.origin, &path, Problem::Syntax(why));
                }
            }
        }
        nested
    }

    /// A value at the top of a layer.
    fn entry(&mut self, typed: &mut Typed, path: &str, origin: &Origin, node: &Node) {
        if path == "sinks" {
            if let Some(sinks) = self.sinks(node) {
                typed.sinks = Some(sinks);
            }
        } else if path.starts_with("sinks.") {
            let hint = "all sinks stand in one variable, such as TRACEMESH_SINKS=stdout,otlp=URL";
            self.error(origin, path, Problem::Conflict(hint.to_owned()));
        } else {
            self.value(&mut typed.values, path, origin, node);
        }
    }

    /// A value, or a mapping of values.
    fn value(&mut self, values: &mut Values, path: &str, origin: &Origin, node: &Node) {
        match keys::find(path) {
            Found::Key(key) => {
                if let Some(value) = self.parsed(key, node) {
                    values.insert(key.path, node.origin.clone(), value);
                }
            }
            Found::Section => match &node.content {
                Content::Nothing => {}
                Content::Map(entries) => {
                    for (path, Entry { origin, node, .. }) in self.nested(path, entries) {
                        self.value(values, &path, origin, node);
                    }
                }
                _ => self.bad_shape(path, node, "mapping", "its keys, one a line and indented"),
            },
            Found::NotYet => {
                let problem = Problem::NotYet("this version does not have it; remove it".into());
                self.error(origin, path, problem);
            }
            Found::Unknown { nearest } => {
                let nearest = match origin {
                    Origin::Variable(_) => nearest.map(keys::variable_of_path),
                    _ => nearest.map(str::to_owned),
                };
                let problem = Problem::UnknownKey { nearest };
                self.error(origin, path, problem);
            }
        }
    }

    fn parsed(&mut self, key: &Key, node: &Node) -> Option<Value> {
        let value = self.parsed_as(key.path, key.kind, node)?;
        let Some((least, most)) = key.range else {
            return Some(value);
        };
        if key.kind.parse(least) <= Some(value.clone())
            && Some(&value) <= key.kind.parse(most).as_ref()
        {
            return Some(value);
        }
        let problem = Problem::OutOfRange { value: value.to_string(), least, most };
        self.error(&node.origin, key.path, problem);
        None
    }

    fn parsed_as(&mut self, path: &str, kind: Kind, node: &Node) -> Option<Value> {
        match (&node.content, kind) {
            (Content::Nothing, _) => None,
            (Content::Text(text), _) => {
                let text = self.substituted(path, &node.origin, text)?;
                if NOT_YET.contains(&format!("{path}={text}").as_str()) {
                    let expected = kind.expected();
                    let what = format!("{text:?} is not built; expected {expected}");
                    self.error(&node.origin, path, Problem::NotYet(what));
                    return None;
                }
                let value = kind.parse(&text);
                if value.is_none() {
                    let node = Node::text(node.origin.clone(), text);
                    self.bad_shape(path, &node, kind.name(), &kind.expected());
                }
                value
            }
            (Content::List(nodes), Kind::List(item)) => {
                let items = nodes.iter().map(|node| {
                    if matches!(node.content, Content::Nothing) {
                        self.bad_shape(path, node, item.name(), &item.expected());
                    }
                    self.parsed_as(path, *item, node)
                });
                items.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Value::List)
            }
            (Content::Map(entries), Kind::Texts) => {
                let entries = self.distinct(path, entries);
                let texts = entries.iter().map(|Entry { key, node, .. }| {
                    let path = join(path, key);
                    let Content::Text(text) = &node.content else {
                        self.bad_shape(&path, node, "text", "a text");
                        return None;
                    };
                    Some((key.clone(), self.substituted(&path, &node.origin, text)?))
                });
                texts.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Value::Texts)
            }
            _ => {
                self.bad_shape(path, node, kind.name(), &kind.expected());
                None
            }
        }
    }

    /// The text with every `${env:NAME}` replaced, in values from the file.
    fn substituted(&mut self, path: &str, origin: &Origin, text: &str) -> Option<String> {
        if !matches!(origin, Origin::File { .. }) {
            return Some(text.to_owned());
        }
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${env:") {
            let Some((name, after)) = after.split_once('}') else {
                let problem = Problem::Syntax(format!("{text:?} has no `}}` after `${{env:`"));
                self.error(origin, path, problem);
                return None;
            };
            let Some(variable) = self.variables.get(name) else {
                self.error(origin, path, Problem::MissingVariable(name.to_owned()));
                return None;
            };
            result.push_str(before);
            result.push_str(variable);
            rest = after;
        }
        result.push_str(rest);
        Some(result)
    }

    fn sinks(&mut self, node: &Node) -> Option<Vec<TypedSink>> {
        let nodes: Vec<Node> = match &node.content {
            Content::Nothing => return None,
            Content::List(nodes) => {
                return Some(nodes.iter().filter_map(|node| self.sink(node)).collect());
            }
            Content::Text(text) => {
                let text = self.substituted("sinks", &node.origin, text)?;
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| Node::text(node.origin.clone(), item)).collect()
            }
            Content::Map(_) => {
                self.bad_shape("sinks", node, "list", "lines such as `- stdout: {}`");
                return None;
            }
        };
        Some(nodes.iter().filter_map(|node| self.sink(node)).collect())
    }

    /// One sink: a mapping of its kind to its keys, or short as `stdout`, `file=PATH`, `otlp=URL`.
    fn sink(&mut self, node: &Node) -> Option<TypedSink> {
        let short;
        let entry = match &node.content {
            Content::Map(entries) if entries.len() == 1 => &entries[0],
            Content::Text(text) => {
                short = Entry::sink(&node.origin, text);
                &short
            }
            _ => {
                self.bad_shape("sinks", node, "sink", "one kind, such as `- stdout: {}`");
                return None;
            }
        };
        let path = join("sinks", &entry.key);
        let kind = SinkKind::ALL.into_iter().find(|kind| kind.section() == path);
        let mut values = defaults(|key| kind.is_some() && keys::is_within(key, &path));
        self.value(&mut values, &path, &entry.origin, &entry.node);
        Some(TypedSink { origin: entry.origin.clone(), kind: kind?, values })
    }
}

impl Entry {
    /// A sink in its short form.
    fn sink(origin: &Origin, text: &str) -> Self {
        let (kind, argument) = text.split_once('=').unzip();
        let kind = kind.unwrap_or(text);
        let key = if kind == "file" { "path" } else { "endpoint" };
        let content = argument.map_or(Content::Nothing, |argument| {
            let node = Node::text(origin.clone(), argument);
            Content::Map(vec![Self { key: key.to_owned(), origin: origin.clone(), node }])
        });
        let node = Node { origin: origin.clone(), content };
        Self { key: kind.to_owned(), origin: origin.clone(), node }
    }
}

fn join(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        _ => format!("{section}.{key}"),
    }
}
