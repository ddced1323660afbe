//! Reads YAML as a tree whose leaves are lines of the original.

use std::path::Path;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::import::ImportError;
use crate::import::line::{LinePlace, SettingLine, SettingLines};

/// The deepest nesting that is read.
const DEEPEST: usize = 64;

/// A single value, a map or a list.
#[derive(Clone, Debug)]
pub(super) enum YamlNode {
    Map(Vec<(String, YamlNode)>),
    List(Vec<YamlNode>),
    Value(Rc<SettingLine>),
}

impl YamlNode {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&YamlNode> {
        match self {
            YamlNode::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    fn entries(self) -> Vec<(String, YamlNode)> {
        match self {
            YamlNode::Map(entries) => entries,
            _ => Vec::new(),
        }
    }

    /// The line of a key.
    pub(crate) fn line(&self, key: &str) -> Option<&Rc<SettingLine>> {
        match self.get(key) {
            Some(YamlNode::Value(line)) => Some(line),
            _ => None,
        }
    }

    /// The text of a key, if it is not empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.given(key).map(|line| line.value.as_str())
    }

    /// The line of a key, if its value is not empty.
    pub(crate) fn given(&self, key: &str) -> Option<&Rc<SettingLine>> {
        self.line(key).filter(|line| !line.value.is_empty())
    }

    /// Whether the value is `true`, `yes` or `on`, which all mean true in YAML 1.1.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.text(key).is_some_and(|text| matches!(text.to_lowercase().as_str(), "true" | "yes" | "on" | "y"))
    }

    /// The items of the list of a key.
    pub(crate) fn items(&self, key: &str) -> &[YamlNode] {
        match self.get(key) {
            Some(YamlNode::List(items)) => items,
            _ => &[],
        }
    }

    /// All lines below this node, in order.
    pub(crate) fn lines(&self) -> Vec<Rc<SettingLine>> {
        match self {
            YamlNode::Map(entries) => entries.iter().flat_map(|(_, node)| node.lines()).collect(),
            YamlNode::List(items) => items.iter().flat_map(YamlNode::lines).collect(),
            YamlNode::Value(line) => vec![line.clone()],
        }
    }
}

/// A map or list whose end has not been read.
enum OpenNode {
    Map { entries: Vec<(String, YamlNode)>, merged: Vec<(String, YamlNode)>, key: Option<String>, anchor: usize },
    List { items: Vec<YamlNode>, anchor: usize },
}

/// Reads the first document of a text.
pub(super) fn parse(path: &Path, text: &str, lines: &SettingLines) -> Result<YamlNode, ImportError> {
    let wrong = |line: usize, column: usize, message: String| ImportError::Yaml {
        path: path.into(),
        line,
        column: column + 1,
        message,
    };
    let mut reader = YamlReader {
        file: path.display().to_string().into(),
        lines,
        open: Vec::new(),
        anchors: Vec::new(),
        root: None,
    };
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
    Ok(reader.root.unwrap_or(YamlNode::Map(Vec::new())))
}

struct YamlReader<'a> {
    file: Rc<str>,
    lines: &'a SettingLines,
    open: Vec<OpenNode>,
    anchors: Vec<(usize, YamlNode)>,
    root: Option<YamlNode>,
}

impl YamlReader<'_> {
    /// Processes an event. Returns whether the document has ended.
    fn take(&mut self, event: Event, number: usize) -> bool {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                if let Some(OpenNode::Map { key: key @ None, .. }) = self.open.last_mut() {
                    *key = Some(text.into_owned());
                    return false;
                }
                let written = self.name();
                let key = written.rsplit('.').next().unwrap_or_default().to_owned();
                let key = if key == "password" { "remote_password".into() } else { key };
                // without quotes these mean that there is no value
                let is_null = style == ScalarStyle::Plain && matches!(&*text, "~" | "null" | "Null" | "NULL");
                let text = if is_null { "" } else { &*text };
                let place = LinePlace { file: self.file.clone(), number };
                let line = self.lines.add(SettingLine::new(place, &format!("{written}:"), &key, text));
                self.add(YamlNode::Value(line), anchor);
            }
            Event::MappingStart(anchor, _) => {
                self.open.push(OpenNode::Map { entries: Vec::new(), merged: Vec::new(), key: None, anchor })
            }
            Event::SequenceStart(anchor, _) => self.open.push(OpenNode::List { items: Vec::new(), anchor }),
            Event::MappingEnd | Event::SequenceEnd => match self.open.pop() {
                Some(OpenNode::Map { mut entries, merged, anchor, .. }) => {
                    // an entry of the map itself wins, wherever `<<` stands
                    for (name, node) in merged {
                        if !entries.iter().any(|(own, _)| *own == name) {
                            entries.push((name, node));
                        }
                    }
                    self.add(YamlNode::Map(entries), anchor);
                }
                Some(OpenNode::List { items, anchor }) => self.add(YamlNode::List(items), anchor),
                None => {}
            },
            Event::Alias(anchor) => {
                let node = self.anchors.iter().find(|(other, _)| *other == anchor).map(|(_, node)| node.clone());
                self.add(node.unwrap_or(YamlNode::Map(Vec::new())), 0);
            }
            Event::DocumentEnd => return true,
            _ => {}
        }
        false
    }

    /// The path of the value that is read next.
    fn name(&self) -> String {
        let parts = self.open.iter().filter_map(|open| match open {
            OpenNode::Map { key, .. } => key.clone(),
            OpenNode::List { items, .. } => Some((items.len() + 1).to_string()),
        });
        parts.collect::<Vec<String>>().join(".")
    }

    fn add(&mut self, node: YamlNode, anchor: usize) {
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        match self.open.last_mut() {
            Some(OpenNode::Map { entries, merged, key, .. }) => match key.take() {
                // `<<` copies the entries of another map, or of several, of which an earlier one wins
                Some(name) if name == "<<" => match node {
                    YamlNode::Map(more) => merged.extend(more),
                    YamlNode::List(maps) => merged.extend(maps.into_iter().flat_map(YamlNode::entries)),
                    YamlNode::Value(line) => {
                        line.wrong("valid after <<: a map, or a list of maps");
                        entries.push((name, YamlNode::Value(line)));
                    }
                },
                Some(name) => entries.push((name, node)),
                None => {}
            },
            Some(OpenNode::List { items, .. }) => items.push(node),
            None => self.root = Some(node),
        }
    }
}
