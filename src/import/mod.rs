//! Converts the configurations of other programs to a `pigateway.toml`.
//!
//! Each line of the original gets exactly one [`Fate`]: it is taken over, taken over with a difference, not needed, not
//! taken over, or not understood. All but the first are written as a comment with the reason into the table that they belong
//! to, and the counts add up to the number of lines. If something has no equivalent, the result is never more open than the
//! original: a listener that cannot be protected as before is left out rather than opened without protection.

mod address;
mod files;
mod line;
pub mod mosquitto;
mod mosquitto_keys;
pub mod mqtt_io;
mod sniff;
mod text;

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use line::{Fate, SettingLine, SettingLines};
pub(crate) use sniff::{ForeignKind, kind_of};

/// A configuration made from that of another program.
#[derive(Debug)]
pub struct Imported {
    /// The text of a valid `pigateway.toml`.
    pub text: String,
    /// Passwords, which belong in files of their own.
    pub secrets: Vec<SecretFile>,
    /// The counts of what became of the lines.
    pub summary: Summary,
}

/// A password and the file in which the configuration expects it.
pub struct SecretFile {
    /// The name of the file, in the directory of the configuration.
    pub name: String,
    /// The password in plain text.
    pub password: String,
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Options of an import.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The name of this host, from which mosquitto makes client ids.
    pub host_name: &'a str,
    /// Whether passwords will be written to files beside the configuration. Otherwise a person has to do that.
    pub keeps_secrets: bool,
    /// Makes the hash of a password that stands in plain text. This is meant to be slow.
    pub hash: fn(&str) -> io::Result<String>,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file is of another kind than expected.
    #[error("{}: this is not {expected}", path.display())]
    NotThat {
        /// The path of the file.
        path: PathBuf,
        /// What kind of file was expected.
        expected: &'static str,
    },
    /// A file is not YAML.
    #[error("{}:{line}:{column}: not YAML: {message}", path.display())]
    Yaml {
        /// The path of the file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
        /// The message of the YAML parser.
        message: String,
    },
    /// A password cannot be hashed.
    #[error("cannot hash a password: {0}")]
    Hash(#[from] io::Error),
}

/// The kind of a file, if it can be read and clearly is one of the known kinds.
pub(crate) fn kind_of_file(path: &Path) -> Option<ForeignKind> {
    // what is read from a pipe is gone, and the configuration is read after this
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    kind_of(&files::read(path).ok()?)
}

/// The number of lines of the original by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All lines, without comments and empty lines.
    pub lines: usize,
    /// Lines with the same meaning here.
    pub taken: usize,
    /// Lines that were taken over with a difference.
    pub differ: usize,
    /// Lines that were left out without a loss.
    pub not_needed: usize,
    /// Lines without an equivalent.
    pub not_taken: usize,
    /// Lines that are not valid. With most of them mosquitto would not start.
    pub not_understood: usize,
    /// What a person has to do before the result can be used.
    pub(crate) to_do: Vec<String>,
}

impl Summary {
    fn of(lines: &SettingLines, to_do: Vec<String>) -> Summary {
        let mut summary = Summary { to_do, ..Summary::default() };
        for line in lines.all() {
            summary.lines += 1;
            match line.fate() {
                Fate::Taken => summary.taken += 1,
                Fate::Differs(_) => summary.differ += 1,
                Fate::NotNeeded(_) => summary.not_needed += 1,
                Fate::NotTaken(_) => summary.not_taken += 1,
                Fate::Wrong(_) => summary.not_understood += 1,
            }
        }
        summary
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} lines: {} taken over, {} with a difference, {} not needed, {} {NOT_TAKEN}, {} not understood",
            self.lines, self.taken, self.differ, self.not_needed, self.not_taken, self.not_understood
        )?;
        for item in &self.to_do {
            write!(f, "\nto do: {item}")?;
        }
        Ok(())
    }
}

/// The words by which a person finds lines without an equivalent in the result.
const NOT_TAKEN: &str = "NOT TAKEN OVER";

/// The comment for a line, if it needs one.
fn remark(line: &SettingLine) -> Option<String> {
    let shown = text::printable(&line.shown());
    Some(match line.fate() {
        Fate::Taken => return None,
        Fate::Differs(why) => format!("{}: \"{shown}\" differs: {why}", line.place()),
        Fate::NotNeeded(why) => format!("{}: \"{shown}\" is not needed: {why}", line.place()),
        Fate::NotTaken(why) => format!("{}: \"{shown}\" {NOT_TAKEN}: {why}", line.place()),
        Fate::Wrong(why) => format!("{}: \"{shown}\" is not understood: {why}", line.place()),
    })
}

/// The comment at the beginning of a result.
fn head(command: &str, sources: &[String], summary: &Summary) -> String {
    let mut head = format!("# Written by `pigateway import {command}` from\n");
    for source in sources {
        let _ = writeln!(head, "#   {}", text::printable(source));
    }
    for line in summary.to_string().lines() {
        let _ = writeln!(head, "# {}", text::printable(line));
    }
    head
}
