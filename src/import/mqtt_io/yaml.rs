//! YAML as a tree of lines.

use std::path::Path;
use std::rc::Rc;

use saphyr_parser::{Event, Parser};

use crate::import::ImportError;
use crate::import::line::{Line, Lines, Place};

/// Deepest nesting that is read.
const DEEPEST: usize = 64;

/// A value, or several.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Map(Vec<(String, Node)>),
    List(Vec<Node>),
    Value(Rc<Line>),
}

impl Node {
    /// What stands under a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The line under a key.
    pub(crate) fn line(&self, key: &str) -> Option<&Rc<Line>> {
        match self.get(key) {
            Some(Node::Value(line)) => Some(line),
            _ => None,
        }
    }

    /// The text under a key, if it is not empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.line(key).map(|line| line.value.as_str()).filter(|text| !matches!(*text, "" | "~" | "null"))
    }

    /// `true`, `yes` or `on`, as YAML 1.1 has them.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.text(key).is_some_and(|text| matches!(text.to_lowercase().as_str(), "true" | "yes" | "on" | "y"))
    }

    /// The items of a list under a key.
    pub(crate) fn items(&self, key: &str) -> &[Node] {
        match self.get(key) {
            Some(Node::List(items)) => items,
            _ => &[],
        }
    }

    /// All lines below it, in their order.
    pub(crate) fn lines(&self) -> Vec<Rc<Line>> {
        match self {
            Node::Map(entries) => entries.iter().flat_map(|(_, node)| node.lines()).collect(),
            Node::List(items) => items.iter().flat_map(Node::lines).collect(),
            Node::Value(line) => vec![line.clone()],
        }
    }
}

/// A map or list that is being read.
enum Open {
    Map { entries: Vec<(String, Node)>, key: Option<String>, anchor: usize },
    List { items: Vec<Node>, anchor: usize },
}

/// Reads the first document of a text.
pub(super) fn parse(path: &Path, text: &str, lines: &Lines) -> Result<Node, ImportError> {
    let wrong = |line: usize, column: usize, message: String| ImportError::Yaml {
        path: path.into(),
        line,
        column: column + 1,
        message,
    };
    let mut reader =
        Reader { file: path.display().to_string().into(), lines, open: Vec::new(), anchors: Vec::new(), root: None };
    for next in Parser::new_from_str(text) {
        let (event, span) =
            next.map_err(|error| wrong(error.marker().line(), error.marker().col(), error.info().to_owned()))?;
        if reader.open.len() >= DEEPEST {
            return Err(wrong(span.start.line(), span.start.col(), "it is nested too deeply".into()));
        }
        if reader.take(event, span.start.line()) {
            break;
        }
    }
    Ok(reader.root.unwrap_or(Node::Map(Vec::new())))
}

struct Reader<'a> {
    file: Rc<str>,
    lines: &'a Lines,
    open: Vec<Open>,
    anchors: Vec<(usize, Node)>,
    root: Option<Node>,
}

impl Reader<'_> {
    /// Takes an event; whether the document has ended.
    fn take(&mut self, event: Event, number: usize) -> bool {
        match event {
            Event::Scalar(text, _, anchor, _) => {
                if let Some(Open::Map { key: key @ None, .. }) = self.open.last_mut() {
                    *key = Some(text.into_owned());
                    return false;
                }
                let written = self.name();
                let key = written.rsplit('.').next().unwrap_or_default().to_owned();
                let key = if key == "password" { "remote_password".into() } else { key };
                let place = Place { file: self.file.clone(), number };
                let line = self.lines.add(Line::new(place, &format!("{written}:"), &key, &text));
                self.add(Node::Value(line), anchor);
            }
            Event::MappingStart(anchor, _) => self.open.push(Open::Map { entries: Vec::new(), key: None, anchor }),
            Event::SequenceStart(anchor, _) => self.open.push(Open::List { items: Vec::new(), anchor }),
            Event::MappingEnd | Event::SequenceEnd => match self.open.pop() {
                Some(Open::Map { entries, anchor, .. }) => self.add(Node::Map(entries), anchor),
                Some(Open::List { items, anchor }) => self.add(Node::List(items), anchor),
                None => {}
            },
            Event::Alias(anchor) => {
                let node = self.anchors.iter().find(|(other, _)| *other == anchor).map(|(_, node)| node.clone());
                self.add(node.unwrap_or(Node::Map(Vec::new())), 0);
            }
            Event::DocumentEnd => return true,
            _ => {}
        }
        false
    }

    /// The path of the value to come.
    fn name(&self) -> String {
        let parts = self.open.iter().filter_map(|open| match open {
            Open::Map { key, .. } => key.clone(),
            Open::List { items, .. } => Some((items.len() + 1).to_string()),
        });
        parts.collect::<Vec<String>>().join(".")
    }

    fn add(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        match self.open.last_mut() {
            Some(Open::Map { entries, key, .. }) => match key.take() {
                // `<<` takes over what the map behind it has
                Some(name) if name == "<<" => {
                    if let Node::Map(more) = node {
                        entries.extend(more);
                    }
                }
                Some(name) => entries.push((name, node)),
                None => {}
            },
            Some(Open::List { items, .. }) => items.push(node),
            None => self.root = Some(node),
        }
    }
}
