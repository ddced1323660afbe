//! Moving in: what other programs were configured with, as a `pigateway.toml`.
//!
//! Each line of the original ends in exactly one way, its [`Fate`]: it is taken over, taken over with a difference, not
//! needed, not taken over, or not understood. All but the first stand as a comment in the table that they belong to, with
//! the reason, and the counts add up to the number of lines. Where something has no equivalent, what is written is never
//! more open than the original: a listener whose protection cannot be had is left out rather than opened without it.

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

/// A configuration made from another program's.
#[derive(Debug)]
pub struct Imported {
    /// The text of a valid `pigateway.toml`.
    pub text: String,
    /// Passwords, which belong into files of their own.
    pub secrets: Vec<SecretFile>,
    /// What became of the lines.
    pub summary: Summary,
}

/// A password and the file that the configuration names for it.
pub struct SecretFile {
    /// Name of the file, in the directory of the configuration.
    pub name: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How an import is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Name of this host, which mosquitto makes client ids of.
    pub host_name: &'a str,
    /// Whether passwords will be written to files beside the configuration; otherwise a person has to do it.
    pub keeps_secrets: bool,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is something else.
    #[error("{}: this is not {expected}", path.display())]
    NotThat {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A file is not YAML.
    #[error("{}:{line}:{column}: not YAML: {message}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Line, from 1 on.
        line: usize,
        /// Column, from 1 on.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A password cannot be hashed.
    #[error("cannot hash a password: {0}")]
    Hash(#[from] io::Error),
}

/// What a file is, if it can be read and is clearly one of these.
pub(crate) fn kind_of_file(path: &Path) -> Option<ForeignKind> {
    kind_of(&files::read(path).ok()?)
}

/// What became of the lines of the original.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All of them, without comments and empty ones.
    pub lines: usize,
    /// Taken over as they are.
    pub taken: usize,
    /// Taken over, with a difference.
    pub differ: usize,
    /// Not needed: nothing is lost.
    pub not_needed: usize,
    /// Without an equivalent.
    pub not_taken: usize,
    /// Not understood; mosquitto would not start with most of these.
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

/// What a person searches for in the result.
const NOT_TAKEN: &str = "NOT TAKEN OVER";

/// The comment that a line leaves, if it leaves one.
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

/// The comment at the head of a result.
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
