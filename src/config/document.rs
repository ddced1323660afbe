//! The configuration as a document: tables and values that know where they stand, and the problems found in them.
//!
//! A reader asks a [`Table`] for its keys and a [`Value`] for what it should be. What is wrong is noted with its place
//! and the reader gets nothing, so it goes on and finds the next. [`Table::finish`] notes the keys nobody asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigProblem, FileProblem, nearest};
use super::units;
use crate::message::{Topic, check_topic};
use crate::secret::FileError;

/// The text of a file, and what is wrong with it so far.
pub(super) struct Document<'a> {
    file: &'a str,
    text: &'a str,
    problems: RefCell<Vec<ConfigProblem>>,
    warnings: RefCell<Vec<ConfigProblem>>,
    files: RefCell<Vec<FileProblem>>,
}

/// Line and column, from 1 on, of a byte of a text.
pub(super) fn line_and_column(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Document<'a> {
        Document { file, text, problems: RefCell::default(), warnings: RefCell::default(), files: RefCell::default() }
    }

    /// Name of the file.
    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    /// The line, from 1 on, of a byte of the text.
    pub(super) fn line(&self, at: usize) -> usize {
        line_and_column(self.text.as_bytes(), at).0
    }

    fn problem_at(&self, at: usize, key: &str, message: String) -> ConfigProblem {
        let place = Some(line_and_column(self.text.as_bytes(), at));
        ConfigProblem { file: self.file.into(), place, key: key.into(), message }
    }

    /// Notes a problem.
    pub(super) fn problem(&self, at: usize, key: &str, message: impl Into<String>) {
        let problem = self.problem_at(at, key, message.into());
        self.problems.borrow_mut().push(problem);
    }

    /// Notes something to know.
    pub(super) fn warning(&self, at: usize, key: &str, message: impl Into<String>) {
        let warning = self.problem_at(at, key, message.into());
        self.warnings.borrow_mut().push(warning);
    }

    /// What was noted: problems, warnings and files that cannot be used, each in the order of the lines.
    pub(super) fn into_findings(self) -> (Vec<ConfigProblem>, Vec<ConfigProblem>, Vec<FileProblem>) {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        let mut files = self.files.into_inner();
        problems.sort_by_key(|problem| problem.place);
        warnings.sort_by_key(|warning| warning.place);
        files.sort_by_key(|file| file.problem.place);
        (problems, warnings, files)
    }
}

/// A table and what was asked of it.
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    path: String,
    table: &'a DeTable<'a>,
    at: usize,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    pub(super) fn root(document: &'a Document<'a>, table: &'a DeTable<'a>) -> Table<'a> {
        Table { document, path: String::new(), table, at: 0, known: RefCell::default() }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// Byte at which the table begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The document it is part of.
    pub(super) fn document(&self) -> &'a Document<'a> {
        self.document
    }

    /// Notes a problem with one of its keys, present or not.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.document.problem(self.at, &self.path_of(key), message);
    }

    /// Notes something to know about one of its keys, present or not.
    pub(super) fn warning(&self, key: &str, message: impl Into<String>) {
        self.document.warning(self.at, &self.path_of(key), message);
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key);
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Value { document: self.document, path: self.path_of(key), value: value.get_ref(), span: value.span() })
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// The value of a key that must be there; `valid` says what it may be.
    pub(super) fn required(&self, key: &'static str, valid: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            self.problem(key, format!("{MISSING}; valid: {valid}"));
        }
        value
    }

    /// A table within.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        self.get(key)?.table()
    }

    /// A list of tables, `[[...]]`.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some(list) = self.get(key) else { return Vec::new() };
        match list.value {
            DeValue::Array(_) => list.items("").iter().filter_map(Value::table).collect(),
            _ => {
                list.wrong(format!("[[{}]], a list of tables", list.path));
                Vec::new()
            }
        }
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.into_inner();
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let path = if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) };
            let hint = match nearest(name, &known) {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => format!("unknown key; valid: {}", known.join(", ")),
            };
            self.document.problem(key.span().start, &path, hint);
        }
    }
}

/// How messages about required keys that are not there begin.
pub(super) const MISSING: &str = "missing";

/// A value and its place.
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    path: String,
    value: &'a DeValue<'a>,
    span: Range<usize>,
}

impl<'a> Value<'a> {
    /// Line, from 1 on.
    pub(super) fn line(&self) -> usize {
        self.document.line(self.span.start)
    }

    /// Notes a problem with it.
    pub(super) fn problem(&self, message: impl Into<String>) {
        self.document.problem(self.span.start, &self.path, message);
    }

    /// Notes that it is perhaps not meant.
    pub(super) fn warning(&self, message: impl Into<String>) {
        self.document.warning(self.span.start, &self.path, message);
    }

    /// Notes that the file it names cannot be used now.
    pub(super) fn file(&self, error: &FileError) {
        let problem = self.document.problem_at(self.span.start, &self.path, error.to_string());
        self.document.files.borrow_mut().push(FileProblem { problem, is_missing: error.is_missing() });
    }

    /// Notes that it is not what it should be.
    pub(super) fn wrong(&self, valid: impl Display) {
        self.problem(format!("found {}; valid: {valid}", self.shown()));
    }

    fn shown(&self) -> String {
        match self.value {
            DeValue::Array(_) => "a list".into(),
            DeValue::Table(_) => "a table".into(),
            DeValue::String(text) => shortened(&format!("{text:?}")),
            _ => shortened(self.document.text.get(self.span.clone()).unwrap_or_default()),
        }
    }

    pub(super) fn table(&self) -> Option<Table<'a>> {
        let DeValue::Table(table) = self.value else {
            self.wrong(format!("[{}], a table", self.path));
            return None;
        };
        let (document, path) = (self.document, self.path.clone());
        Some(Table { document, path, table, at: self.span.start, known: RefCell::default() })
    }

    /// The items of a list.
    pub(super) fn items(&self, valid: &str) -> Vec<Value<'a>> {
        let DeValue::Array(items) = self.value else {
            self.wrong(valid);
            return Vec::new();
        };
        let item = |item: &'a toml::Spanned<DeValue<'a>>| Value {
            document: self.document,
            path: self.path.clone(),
            value: item.get_ref(),
            span: item.span(),
        };
        items.iter().map(item).collect()
    }

    /// Whether it is a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// Its text, if it is one.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn text(&self, valid: &str) -> Option<&'a str> {
        let text = self.as_text();
        if text.is_none() {
            self.wrong(valid);
        }
        text
    }

    /// A text that `read` accepts.
    pub(super) fn parsed<T>(&self, valid: &str, read: impl FnOnce(&'a str) -> Option<T>) -> Option<T> {
        let value = read(self.text(valid)?);
        if value.is_none() {
            self.wrong(valid);
        }
        value
    }

    /// A whole number.
    pub(super) fn whole(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = self.integer().filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(format!("a whole number from {} to {}", range.start(), range.end()));
        }
        number
    }

    fn integer(&self) -> Option<u64> {
        match self.value {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub(super) fn switch(&self) -> Option<bool> {
        let DeValue::Boolean(switch) = self.value else {
            self.wrong("true or false");
            return None;
        };
        Some(*switch)
    }

    /// One of these words or, written as digits, numbers.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let number = self.integer().map(|number| number.to_string());
        let (word, is_number) = match self.value {
            DeValue::String(text) => (Some(text.as_ref()), false),
            _ => (number.as_deref(), true),
        };
        let same_kind = |name: &str| name.starts_with(|c: char| c.is_ascii_digit()) == is_number;
        let found = choices.iter().find(|(name, _)| word == Some(name) && same_kind(name));
        if let Some((_, value)) = found {
            return Some(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let is_digits = |name: &str| name.starts_with(|c: char| c.is_ascii_digit());
        let quoted = |name: &&str| if is_digits(name) { (*name).into() } else { format!("{name:?}") };
        let mut valid = names.iter().map(quoted).collect::<Vec<String>>().join(", ");
        // a number is never a misspelling of another, but may stand in quotes where it should not
        let near = word.and_then(|word| nearest(word, &names).filter(|near| !is_digits(near) || *near == word));
        if let Some(near) = near {
            let _ = write!(valid, "; did you mean {}?", quoted(&near));
        }
        self.wrong(valid);
        None
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let (low, high) = (units::show_duration(*range.start()), units::show_duration(*range.end()));
        let valid = format!("a duration from {low} to {high}: {}", units::DURATION_FORM);
        self.parsed(&valid, |text| units::parse_duration(text).filter(|duration| range.contains(duration)))
    }

    /// A size in bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let (low, high) = (units::show_size(*range.start()), units::show_size(*range.end()));
        let valid = format!("a size from {low} to {high}: {}", units::SIZE_FORM);
        self.parsed(&valid, |text| units::parse_size(text).filter(|size| range.contains(size)))
    }

    /// A name that others refer to it by: in log fields, URLs, client ids and metrics.
    pub(super) fn name(&self) -> Option<String> {
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        self.parsed(NAME_FORM, |text: &str| {
            ((1..=64).contains(&text.chars().count()) && text.chars().all(fits)).then(|| text.into())
        })
    }
}

/// What a name may be.
pub(super) const NAME_FORM: &str = "1 to 64 letters, digits, '-', '_' or '.'";

/// A topic that clients may publish to; with `suffix` behind it, it still is one.
pub(super) fn topic(value: &Value, suffix: &str) -> Option<Topic> {
    let valid = "a topic, such as \"loft/motion1\"";
    let text = value.text(valid)?;
    if text.starts_with('$') {
        value.wrong(format!("{valid}; those that begin with '$' belong to the broker"));
        return None;
    }
    match Topic::new(text).and_then(|topic| check_topic(&format!("{text}{suffix}")).map(|()| topic)) {
        Ok(topic) => Some(topic),
        Err(error) => {
            value.wrong(format!("{valid}; this {error}"));
            None
        }
    }
}

/// Values that must differ within a list of tables.
pub(super) struct Unique<T> {
    owner: &'static str,
    seen: HashMap<T, usize>,
}

impl<T: Eq + Hash + Clone> Unique<T> {
    /// For values of these.
    pub(super) fn new(owner: &'static str) -> Unique<T> {
        Unique { owner, seen: HashMap::new() }
    }

    /// Notes a value, or a problem if it was there before.
    pub(super) fn check(&mut self, value: &Value, item: T) -> Option<T> {
        if let Some(line) = self.seen.get(&item) {
            value.wrong(format!("one that no other {} has, and line {line} has it", self.owner));
            return None;
        }
        self.seen.insert(item.clone(), value.line());
        Some(item)
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 { text.into() } else { text.chars().take(57).chain("...".chars()).collect() }
}

/// Sets what was read, and leaves the default where nothing was.
pub(super) fn assign<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}
