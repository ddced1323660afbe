//! Writes the text of the result.

use std::fmt::{Display, Write};
use std::rc::Rc;

use super::line::SettingLine;
use super::remark;
// TOML does not allow control characters in comments
pub(super) use crate::message::printable;

/// TOML text that is being written.
#[derive(Debug, Default)]
pub(super) struct TomlText(String);

impl TomlText {
    /// Writes the header of a table, with an empty line before it.
    pub(crate) fn table(&mut self, header: &str) {
        let _ = write!(self.0, "\n{header}\n");
    }

    /// Writes a key. `value` must be TOML already.
    pub(crate) fn key(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} = {value}");
    }

    /// Writes a key with a comment after it.
    pub(crate) fn key_with(&mut self, name: &str, value: impl Display, comment: &str) {
        let _ = writeln!(self.0, "{name} = {value}    # {}", printable(comment));
    }

    pub(crate) fn comment(&mut self, comment: &str) {
        let _ = writeln!(self.0, "# {}", printable(comment));
    }

    /// Writes the comments for these lines.
    pub(crate) fn remarks<'a>(&mut self, lines: impl IntoIterator<Item = &'a Rc<SettingLine>>) {
        for line in lines {
            if let Some(remark) = remark(line) {
                self.comment(&remark);
            }
        }
    }

    pub(crate) fn append(&mut self, other: &TomlText) {
        self.0.push_str(&other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text as a TOML string, with escapes for control characters.
pub(super) fn quoted(text: &str) -> String {
    if text.contains(char::is_control) {
        // every escape of JSON is one of TOML, but JSON leaves the characters from U+007F on as they are
        let escaped = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.into() };
        return serde_json::Value::from(text).to_string().chars().map(escaped).collect();
    }
    toml::Value::String(text.into()).to_string()
}

/// A list of texts as a TOML array.
pub(super) fn list(texts: &[String]) -> String {
    let items: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", items.join(", "))
}

/// The text as a name in our configuration, which allows fewer characters.
pub(super) fn name(text: &str) -> String {
    let fits = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = text.chars().take(64).map(fits).collect();
    if name.is_empty() { "unnamed".into() } else { name }
}

/// The wanted name, or the first of `name-2`, `name-3`, ... that is not taken.
pub(super) fn free_name(wanted: &str, taken: &[String]) -> String {
    let wanted = name(wanted);
    let short: String = wanted.chars().take(58).collect();
    let others = (2..).map(|number: usize| format!("{short}-{number}"));
    std::iter::once(wanted.clone()).chain(others).find(|name| !taken.contains(name)).unwrap_or(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_text_is_read_as_it_was_and_has_no_control_characters() {
        for text in ["", "plain", "tab\there", "\"'\\\t", "\u{7f}\u{1b}[0m\r\n\0", "é\u{85}\"", "'''\t\"\"\""] {
            let quoted = quoted(text);
            assert!(!quoted.contains(char::is_control), "{quoted:?}");
            let table: toml::Table = format!("key = {quoted}").parse().unwrap();
            assert_eq!(table["key"].as_str(), Some(text), "{quoted}");
        }
    }
}
