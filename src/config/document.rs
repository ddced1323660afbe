//! The configuration as a document: tables and values with their places in the file, and the problems found in them.
//!
//! A reader asks a [`Table`] for its keys and a [`Value`] for its contents in the expected type. An error is recorded with
//! its place, and the reader gets nothing, so it continues and finds the next error. [`Table::finish`] records the keys that
//! no reader has asked for.

use std::cell::{OnceCell, RefCell};
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

/// The text of a file, and the problems found in it so far.
pub(super) struct Document<'a> {
    file: &'a str,
    text: &'a str,
    places: OnceCell<LineMarks>,
    problems: RefCell<Vec<ConfigProblem>>,
    warnings: RefCell<Vec<ConfigProblem>>,
    files: RefCell<Vec<FileProblem>>,
}

/// Line and column of a byte in a text, both counted from 1.
pub(super) fn line_and_column(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

/// Lines and columns at every [`LineMarks::STEP`]th byte of a text. A file can have a problem in each of its lines, or
/// many in one line, so counting from the beginning each time would take a time that grows with the square of its
/// length.
struct LineMarks(Vec<(usize, usize)>);

impl LineMarks {
    const STEP: usize = 256;

    fn of(text: &str) -> LineMarks {
        let mut place = (1, 1);
        let mark = |piece| {
            let begin = place;
            place = after(place, piece);
            begin
        };
        LineMarks(text.as_bytes().chunks(LineMarks::STEP).map(mark).collect())
    }

    /// The line and column of a byte in the text from which this was made, both counted from 1.
    fn at(&self, text: &str, at: usize) -> (usize, usize) {
        let at = at.min(text.len());
        let mark = (at / LineMarks::STEP).min(self.0.len().saturating_sub(1));
        let known = self.0.get(mark).copied().unwrap_or((1, 1));
        after(known, &text.as_bytes()[mark * LineMarks::STEP..at])
    }
}

/// The place after these bytes of UTF-8, which begin at a place. Columns are counted in characters.
fn after((line, column): (usize, usize), bytes: &[u8]) -> (usize, usize) {
    let characters = |bytes: &[u8]| bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => {
            let newlines = bytes.iter().filter(|byte| **byte == b'\n').count();
            (line + newlines, characters(&bytes[last + 1..]) + 1)
        }
        None => (line, column + characters(bytes)),
    }
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Document<'a> {
        let places = OnceCell::new();
        Document {
            file,
            text,
            places,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            files: RefCell::default(),
        }
    }

    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    /// The line of a byte in the text, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.place(at).0
    }

    fn place(&self, at: usize) -> (usize, usize) {
        self.places.get_or_init(|| LineMarks::of(self.text)).at(self.text, at)
    }

    fn problem_at(&self, at: usize, key: &str, message: String) -> ConfigProblem {
        let place = Some(self.place(at));
        ConfigProblem { file: self.file.into(), place, key: key.into(), message }
    }

    pub(super) fn problem(&self, at: usize, key: &str, message: impl Into<String>) {
        let problem = self.problem_at(at, key, message.into());
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn warning(&self, at: usize, key: &str, message: impl Into<String>) {
        let warning = self.problem_at(at, key, message.into());
        self.warnings.borrow_mut().push(warning);
    }

    /// What was recorded: problems, warnings and files that cannot be used, each in the order of the lines.
    pub(super) fn into_findings(self) -> (Vec<ConfigProblem>, Vec<ConfigProblem>, Vec<FileProblem>) {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        let mut files = self.files.into_inner();
        problems.sort_by_key(|problem| problem.place);
        warnings.sort_by_key(|warning| warning.place);
        files.sort_by_key(|file| file.problem.place);
        (problems, warnings, files)
    }
}

/// A table, and which of its keys were asked for.
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

    /// The byte in the text at which the table begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The document to which the table belongs.
    pub(super) fn document(&self) -> &'a Document<'a> {
        self.document
    }

    /// Records a problem with one of its keys, whether the key is present or not.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.document.problem(self.at, &self.path_of(key), message);
    }

    /// Records a warning about one of its keys, whether the key is present or not.
    pub(super) fn warning(&self, key: &str, message: impl Into<String>) {
        self.document.warning(self.at, &self.path_of(key), message);
    }

    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key);
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Value { document: self.document, path: self.path_of(key), value: value.get_ref(), span: value.span() })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// The value of a required key. `valid` describes for a message what it may be.
    pub(super) fn required(&self, key: &'static str, valid: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            self.problem(key, format!("{MISSING}; valid: {valid}"));
        }
        value
    }

    /// The table under a key.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        self.get(key)?.table()
    }

    /// The list of tables, `[[...]]`, under a key.
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

    /// Records a problem for every key that no reader has asked for.
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

/// The first word of messages about required keys that are missing.
pub(super) const MISSING: &str = "missing";

/// A value with its place in the text.
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    path: String,
    value: &'a DeValue<'a>,
    span: Range<usize>,
}

impl<'a> Value<'a> {
    /// The line, counted from 1.
    pub(super) fn line(&self) -> usize {
        self.document.line(self.span.start)
    }

    /// Records a problem with the value.
    pub(super) fn problem(&self, message: impl Into<String>) {
        self.document.problem(self.span.start, &self.path, message);
    }

    /// Records a warning that the value may not be what was meant.
    pub(super) fn warning(&self, message: impl Into<String>) {
        self.document.warning(self.span.start, &self.path, message);
    }

    /// Records that the file named by the value cannot be used at present.
    pub(super) fn file(&self, error: &FileError) {
        let problem = self.document.problem_at(self.span.start, &self.path, error.to_string());
        self.document.files.borrow_mut().push(FileProblem { problem, is_missing: error.is_missing() });
    }

    /// Records that the value is not valid.
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

    /// The items of a list. `valid` describes for a message what is expected.
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

    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// The text, if the value is one.
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

    /// The result of `read` for a text that it accepts.
    pub(super) fn parsed<T>(&self, valid: &str, read: impl FnOnce(&'a str) -> Option<T>) -> Option<T> {
        let value = read(self.text(valid)?);
        if value.is_none() {
            self.wrong(valid);
        }
        value
    }

    /// A whole number within the range.
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

    /// A value that is `true` or `false`.
    pub(super) fn switch(&self) -> Option<bool> {
        let DeValue::Boolean(switch) = self.value else {
            self.wrong("true or false");
            return None;
        };
        Some(*switch)
    }

    /// One of these words. Numbers may be written as digits.
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
        // a number is never taken for a misspelling of another number, but it may have quotes that it should not have
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

    /// A size in bytes within the range.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let (low, high) = (units::show_size(*range.start()), units::show_size(*range.end()));
        let valid = format!("a size from {low} to {high}: {}", units::SIZE_FORM);
        self.parsed(&valid, |text| units::parse_size(text).filter(|size| range.contains(size)))
    }

    /// A name that is used in log fields, URLs, client ids and metrics.
    pub(super) fn name(&self) -> Option<String> {
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        self.parsed(NAME_FORM, |text: &str| {
            ((1..=64).contains(&text.chars().count()) && text.chars().all(fits)).then(|| text.into())
        })
    }
}

/// The allowed form of a name, for messages.
pub(super) const NAME_FORM: &str = "1 to 64 letters, digits, '-', '_' or '.'";

/// A topic to which clients may publish. It must stay valid with `suffix` appended.
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

/// Checks that values in a list of tables differ.
pub(super) struct Unique<T> {
    owner: &'static str,
    seen: HashMap<T, usize>,
}

impl<T: Eq + Hash + Clone> Unique<T> {
    /// `owner` names the kind of table, for messages.
    pub(super) fn new(owner: &'static str) -> Unique<T> {
        Unique { owner, seen: HashMap::new() }
    }

    /// Adds a value, or records a problem if it was added before.
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

/// Sets a value that was read. Without one, the default stays.
pub(super) fn assign<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::read_made_users;

    #[test]
    fn the_time_for_many_problems_does_not_grow_with_the_square_of_the_file() {
        let user = format!("[[user]]\nname = \"\"\n# {}\n", "x".repeat(200));
        let begun = Instant::now();
        let problems = read_made_users(&user.repeat(20_000), "f").unwrap_err().problems;
        assert_eq!(problems.len(), 20_000);
        assert_eq!(problems.last().and_then(|last| last.place), Some((3 * 20_000 - 1, 8)));
        // counting from the beginning for each problem takes some minutes
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }

    #[test]
    fn places_are_those_that_are_counted_from_the_beginning() {
        let text: String =
            (0..400).map(|number| ["ä", "\n", "b", "\u{1f600}", "\r\n"][number * number % 23 % 5]).collect();
        for text in ["", "\n", "a", &text, &text.replace('\n', "x"), &"x".repeat(2 * LineMarks::STEP)] {
            let document = Document::new("f", text);
            for at in 0..=text.len() + 1 {
                assert_eq!(document.place(at), line_and_column(text.as_bytes(), at), "{at} of {text:?}");
            }
        }
    }
}
