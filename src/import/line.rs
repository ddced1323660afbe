//! The lines of the original, and what becomes of each.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// The place of a line: file name and line number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinePlace {
    pub(crate) file: Rc<str>,
    pub(crate) number: usize,
}

impl fmt::Display for LinePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.number)
    }
}

/// What becomes of a line. The text is the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has the same meaning here.
    Taken,
    /// It is taken over, but something is different.
    Differs(String),
    /// It is left out, and nothing is lost by that.
    NotNeeded(String),
    /// It is left out, because there is no equivalent.
    NotTaken(String),
    /// It is not valid in the original either, or not known.
    Wrong(String),
}

/// One setting of the original, with its line.
#[derive(Debug)]
pub(super) struct SettingLine {
    place: LinePlace,
    /// The present name of the setting.
    pub(crate) key: String,
    /// The line as it was written.
    written: String,
    pub(crate) value: String,
    fate: RefCell<Option<Fate>>,
}

impl SettingLine {
    pub(crate) fn new(place: LinePlace, written: &str, key: &str, value: &str) -> SettingLine {
        SettingLine { place, key: key.into(), written: written.into(), value: value.into(), fate: RefCell::default() }
    }

    pub(crate) fn place(&self) -> &LinePlace {
        &self.place
    }

    /// The line for a comment, with passwords and hashes removed.
    pub(crate) fn shown(&self) -> String {
        const SECRETS: [&str; 4] = ["remote_password", "local_password", "bridge_psk", "tls_engine_kpass_sha1"];
        if SECRETS.contains(&self.key.as_str()) || self.key.starts_with("plugin_opt_") {
            return format!("{} (hidden)", self.written);
        }
        let shown = format!("{} {}", self.written, self.value);
        let shown = shown.trim_end();
        if shown.chars().count() <= 100 { shown.into() } else { shown.chars().take(97).chain("...".chars()).collect() }
    }

    pub(crate) fn fate(&self) -> Fate {
        let unknown = || Fate::Wrong("this program does not know it".into());
        self.fate.borrow().clone().unwrap_or_else(unknown)
    }

    /// Sets the fate of the line unless it has one already: the first reason found is the right one. A line
    /// that was taken for one user may differ for another.
    fn decide(&self, new: Fate) {
        let mut fate = self.fate.borrow_mut();
        if matches!((&*fate, &new), (None, _) | (Some(Fate::Taken), Fate::Differs(_))) {
            *fate = Some(new);
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.fate.borrow().is_none()
    }

    pub(crate) fn taken(&self) {
        self.decide(Fate::Taken);
    }

    pub(crate) fn differs(&self, why: impl Into<String>) {
        self.decide(Fate::Differs(why.into()));
    }

    pub(crate) fn not_needed(&self, why: impl Into<String>) {
        self.decide(Fate::NotNeeded(why.into()));
    }

    pub(crate) fn not_taken(&self, why: impl Into<String>) {
        self.decide(Fate::NotTaken(why.into()));
    }

    pub(crate) fn wrong(&self, why: impl Into<String>) {
        self.decide(Fate::Wrong(why.into()));
    }

    /// Changes a line that was taken over to one that was not, because its whole table is left out.
    pub(crate) fn revoke(&self, why: &str) {
        let mut fate = self.fate.borrow_mut();
        if matches!(*fate, None | Some(Fate::Taken | Fate::Differs(_) | Fate::NotNeeded(_))) {
            *fate = Some(Fate::NotTaken(why.into()));
        }
    }

    /// The first word of the value. mosquitto ignores what follows it, except in texts.
    pub(crate) fn word(&self) -> &str {
        self.value.split([' ', '\t']).next().unwrap_or_default()
    }

    /// The value as `true` or `false`.
    pub(crate) fn flag(&self) -> Option<bool> {
        match self.word() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => {
                self.wrong("valid: true or false");
                None
            }
        }
    }

    /// The value as a whole number.
    pub(crate) fn number(&self) -> Option<i64> {
        let number = self.word().parse().ok();
        if number.is_none() {
            self.wrong("valid: a whole number");
        }
        number
    }

    /// The value as a path. Text after a `#` is read as a comment, which people mean, although mosquitto makes it part of
    /// the name.
    pub(crate) fn path(&self) -> Option<&str> {
        let text = self.value.split(" #").next().unwrap_or_default().trim();
        if text.is_empty() {
            self.wrong("the path is missing");
            return None;
        }
        Some(text)
    }
}

/// All lines that were read, in their order.
#[derive(Debug, Default)]
pub(super) struct SettingLines(RefCell<Vec<Rc<SettingLine>>>);

impl SettingLines {
    pub(crate) fn add(&self, line: SettingLine) -> Rc<SettingLine> {
        let line = Rc::new(line);
        self.0.borrow_mut().push(line.clone());
        line
    }

    pub(crate) fn all(&self) -> Vec<Rc<SettingLine>> {
        self.0.borrow().clone()
    }
}
