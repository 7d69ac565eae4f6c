//! YAML as a small tree that remembers where each value was typed.
//!
//! The parser's events become mappings, lists and *texts*: what a text means is decided by the key
//! that it belongs to, so `1.0`, `10s` and `"10s"` are read by the same code as a variable or a
//! flag. Every node has its origin. Bounded: files to [`FILE_BYTES_MAX`], nesting to
//! [`DEPTH_MAX`]. What configuration does without is refused, not ignored: anchors and aliases,
//! tags, mappings as keys, a second document.

use super::error::{Origin, Problem};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use std::sync::Arc;

/// The largest configuration or key file that is read: a thousand times what one needs.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// How deep values may be nested; the deepest key, in a header of a sink, needs 5.
const DEPTH_MAX: usize = 16;

/// A value and where it was typed.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) content: Content,
}

/// A value as typed.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing: `key:`, `~` or `null`.
    Nothing,
    Text(String),
    List(Vec<Node>),
    /// In the order in which they were typed; a key may stand there twice.
    Map(Vec<Entry>),
}

/// A key of a mapping, where it was typed, and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn text(origin: Origin, text: impl Into<String>) -> Self {
        Self { origin, content: Content::Text(text.into()) }
    }
}

/// Reads the one document of a file; `None` when the file holds none.
pub(super) fn parse(name: &Arc<str>, text: &str) -> Result<Option<Node>, (Origin, Problem)> {
    let mut builder = Builder { name, events: Parser::new_from_str(text) };
    let mut root = None;
    loop {
        match builder.next()? {
            (Event::StreamEnd, _) => return Ok(root),
            (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd, _) => {}
            (_, span) if root.is_some() => {
                return Err(builder.refuse(span, "a second document; expected one"));
            }
            (event, span) => root = Some(builder.node(event, span, 0)?),
        }
    }
}

struct Builder<'a> {
    name: &'a Arc<str>,
    events: Parser<'a, StrInput<'a>>,
}

type Failure = (Origin, Problem);

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Failure> {
        let event = self.events.next().transpose();
        let event = event.map_err(|error: ScanError| {
            let problem = Problem::Syntax(format!("no valid YAML: {}", error.info()));
            (self.origin(error.marker().line()), problem)
        })?;
        Ok(event.unwrap_or((Event::StreamEnd, Span::default())))
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::File { name: Arc::clone(self.name), line }
    }

    fn refuse(&self, span: Span, what: &str) -> Failure {
        (self.origin(span.start.line()), Problem::Syntax(what.to_owned()))
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Failure> {
        if depth == DEPTH_MAX {
            return Err(self.refuse(span, "nested deeper than any key is"));
        }
        let content = match event {
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return Err(self.refuse(span, "a tag (`!…`); expected a plain value"));
            }
            Event::Scalar(text, style, _, None) => scalar(&text, style),
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(..) => self.map(depth)?,
            _ => return Err(self.refuse(span, "an alias (`*…`); expected the value itself")),
        };
        Ok(Node { origin: self.origin(span.start.line()), content })
    }

    fn list(&mut self, depth: usize) -> Result<Content, Failure> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Content, Failure> {
        let mut entries = Vec::new();
        loop {
            let (key, span) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Content::Map(entries)),
                (Event::Scalar(key, ..), span) => (key.into_owned(), span),
                (_, span) => return Err(self.refuse(span, "a key that is no text")),
            };
            let (event, value_span) = self.next()?;
            let node = self.node(event, value_span, depth + 1)?;
            entries.push(Entry { key, origin: self.origin(span.start.line()), node });
        }
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Content {
    match (style, text) {
        (ScalarStyle::Plain, "" | "~" | "null") => Content::Nothing,
        _ => Content::Text(text.to_owned()),
    }
}
