//! Sorts the lines of the files into sections: the broker, each listener and each bridge.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::import::ImportError;
use crate::import::files::{Files, read};
use crate::import::line::{LinePlace, SettingLine, SettingLines};
use crate::import::mosquitto_keys::{self as keys, Repeated, Scope};

/// The lines that apply to one listener, one bridge or the broker.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    /// The `listener ...` or `connection ...` line; `None` for the broker and for the default listener.
    pub(crate) head: Option<Rc<SettingLine>>,
    pub(crate) lines: Vec<Rc<SettingLine>>,
}

impl Section {
    /// The line that counts for a setting. The other lines for it get the fate that mosquitto gives them.
    pub(crate) fn get(&self, key: &str) -> Option<Rc<SettingLine>> {
        let repeated = keys::find(key).map_or(Repeated::Last, |key| key.repeated);
        let mut lines: Vec<&Rc<SettingLine>> = self.all(key).collect();
        let chosen = match repeated {
            Repeated::Refused => lines.first().copied()?.clone(),
            Repeated::Last | Repeated::All => lines.pop()?.clone(),
        };
        for line in lines.into_iter().filter(|line| !Rc::ptr_eq(line, &chosen)) {
            match repeated {
                Repeated::Refused => {
                    line.wrong(format!("mosquitto refuses a second one; {} is taken", chosen.place()));
                }
                _ => line.not_needed(format!("{} comes later and counts", chosen.place())),
            }
        }
        Some(chosen)
    }

    /// Every line for a setting, in order.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Rc<SettingLine>> {
        self.lines.iter().filter(move |line| line.key == key)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.all(key).next().is_some()
    }

    /// The value of a setting that is `true` or `false`. The line counts as taken over.
    pub(crate) fn flag(&self, key: &str) -> Option<(Rc<SettingLine>, bool)> {
        let line = self.get(key)?;
        let flag = line.flag()?;
        Some((line, flag))
    }

    /// All lines, with the head first.
    pub(crate) fn everything(&self) -> impl Iterator<Item = &Rc<SettingLine>> {
        self.head.iter().chain(&self.lines)
    }
}

/// A configuration, sorted into sections.
#[derive(Debug, Default)]
pub(super) struct MosquittoDocument {
    pub(crate) lines: SettingLines,
    pub(crate) global: Section,
    /// The default listener first, then the `listener` sections.
    pub(crate) listeners: Vec<Section>,
    pub(crate) bridges: Vec<Section>,
    pub(crate) per_listener: bool,
    /// The files that were read.
    pub(crate) sources: Vec<String>,
}

/// The position of the reader in a file. Each file, also an included one, begins with the default listener and without a
/// bridge.
#[derive(Default)]
struct DocumentCursor {
    listener: usize,
    bridge: Option<usize>,
    is_included: bool,
}

impl MosquittoDocument {
    /// Reads configuration files one after another.
    pub(crate) fn read(paths: &[PathBuf], files: &Files) -> Result<MosquittoDocument, ImportError> {
        let mut document = MosquittoDocument { listeners: vec![Section::default()], ..MosquittoDocument::default() };
        for path in paths {
            let text = read(path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
            document.sort(path, &text, files, false);
        }
        document.apply_defaults();
        Ok(document)
    }

    fn sort(&mut self, path: &Path, text: &str, files: &Files, is_included: bool) {
        let file: Rc<str> = path.display().to_string().into();
        self.sources.push(file.to_string());
        let mut cursor = DocumentCursor { is_included, ..DocumentCursor::default() };
        for (index, raw) in text.lines().enumerate() {
            // mosquitto accepts a comment only in the first column, and otherwise does not start
            let raw = raw.trim();
            if raw.is_empty() || raw.starts_with('#') {
                continue;
            }
            let (written, value) = raw.split_once([' ', '\t']).unwrap_or((raw, ""));
            let place = LinePlace { file: file.clone(), number: index + 1 };
            let Some(key) = keys::find(written) else {
                let line = self.lines.add(SettingLine::new(place, written, written, value.trim()));
                line.wrong("it is no setting of mosquitto 1.4 to 2.1");
                self.global.lines.push(line);
                continue;
            };
            let line = self.lines.add(SettingLine::new(place, written, key.name, value.trim()));
            self.place(line, key.scope, &mut cursor, files);
        }
    }

    fn place(&mut self, line: Rc<SettingLine>, scope: Scope, cursor: &mut DocumentCursor, files: &Files) {
        if line.value.is_empty() {
            line.wrong("the value is missing");
        }
        match (scope, line.key.as_str()) {
            (Scope::Structure, "listener") => {
                cursor.listener = self.listeners.len();
                self.listeners.push(Section { head: Some(line), lines: Vec::new() });
            }
            (Scope::Structure, "connection") => {
                cursor.bridge = Some(self.bridges.len());
                self.bridges.push(Section { head: Some(line), lines: Vec::new() });
            }
            (Scope::Structure, "include_dir") => {
                self.global.lines.push(line.clone());
                self.include(&line, files, cursor.is_included);
            }
            (Scope::Structure, _) => {
                // once set it stays set
                self.per_listener |= line.flag() == Some(true);
                line.taken();
                self.global.lines.push(line);
            }
            (Scope::Global, _) => self.global.lines.push(line),
            // these two apply to the default listener, wherever they stand
            (Scope::Listener, "port" | "bind_address") => self.listeners[0].lines.push(line),
            (Scope::Listener | Scope::Security, _) => self.listeners[cursor.listener].lines.push(line),
            (Scope::Bridge, _) => match cursor.bridge {
                Some(bridge) => self.bridges[bridge].lines.push(line),
                None => {
                    line.wrong("it belongs below a connection, and there is none above it");
                    self.global.lines.push(line);
                }
            },
        }
    }

    /// Reads the files ending in `.conf` of an `include_dir`. Only the main file may include others.
    fn include(&mut self, line: &SettingLine, files: &Files, is_included: bool) {
        if is_included {
            line.not_needed("mosquitto follows include_dir in its main file only");
            return;
        }
        let Some(named) = line.path() else { return };
        let entries = files.find(named).and_then(|dir| std::fs::read_dir(dir).ok());
        let Some(entries) = entries else {
            line.not_taken("the directory cannot be read here; name its files after this one on the command line");
            return;
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let is_conf = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".conf"));
        let mut paths: Vec<PathBuf> = paths.filter(is_conf).collect();
        paths.sort_by_cached_key(|path| include_order(path));
        for path in paths {
            match read(&path) {
                Ok(text) => self.sort(&path, &text, files, true),
                Err(error) => line.not_taken(format!("{} cannot be read: {error}", path.display())),
            }
        }
        line.taken();
    }

    /// Without `per_listener_settings`, access settings apply to the whole broker, wherever they stand.
    fn apply_defaults(&mut self) {
        if !self.per_listener {
            let is_security = |line: &Rc<SettingLine>| keys::is_about_access(&line.key);
            for listener in &mut self.listeners {
                let (security, own) = listener.lines.drain(..).partition(is_security);
                listener.lines = own;
                let security: Vec<Rc<SettingLine>> = security;
                self.global.lines.extend(security);
            }
        }
        let sections = std::iter::once(&self.global).chain(&self.listeners).chain(&self.bridges);
        for section in sections {
            for line in section.lines.iter().filter(|line| line.is_open()) {
                if let Some(key) = keys::find(&line.key) {
                    keys::decide(line, key.simple);
                }
            }
        }
    }
}

/// A key that sorts alphabetically, with each upper case letter before the same letter in lower case.
fn include_order(path: &Path) -> Vec<(char, bool)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| (c.to_ascii_lowercase(), c.is_ascii_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn included_files_come_in_mosquittos_order() {
        let mut names = ["b.conf", "A.conf", "01.conf", "a.conf", "B.conf", "00.conf"].map(PathBuf::from);
        names.sort_by_cached_key(|path| include_order(path));
        assert_eq!(names, ["00.conf", "01.conf", "A.conf", "a.conf", "B.conf", "b.conf"].map(PathBuf::from));
    }
}
