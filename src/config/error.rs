//! The problems of a configuration: all of them at once, each with its place.

use std::fmt::{self, Write};

use crate::message::acts_on_text;

/// A problem, or, as a warning, something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    pub(crate) file: String,
    /// Line and column, both counted from 1 and columns in characters; `None` if the whole file is meant.
    pub(crate) place: Option<(usize, usize)>,
    /// The path of the key, such as `broker.listener.address`; empty if no key is meant.
    pub(crate) key: String,
    pub(crate) message: String,
}

/// Text of the file as it can be shown: a terminal must not act on it.
struct ShownText<'a>(&'a str);

impl fmt::Display for ShownText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '\n' => f.write_char(character),
            _ if acts_on_text(character) => write!(f, "{}", character.escape_default()),
            _ => f.write_char(character),
        })
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", ShownText(&self.key.replace('\n', "\\n")))?;
        }
        write!(f, ": {}", ShownText(&self.message))
    }
}

/// A file that the configuration names and that cannot be used at present. The configuration is valid nevertheless: only the
/// part that needs the file waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileProblem {
    /// The problem, with the place at which the file is named.
    pub(crate) problem: ConfigProblem,
    /// Whether the file is missing or cannot be read. Otherwise its contents are not usable.
    pub(crate) is_missing: bool,
}

/// All problems of a file, in the order of its lines. The text form has one line for each problem and a last line with their
/// number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblems {
    pub(crate) file: String,
    /// The problems, at least one.
    pub problems: Vec<ConfigProblem>,
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        match self.problems.len() {
            1 => write!(f, "{}: 1 problem", self.file),
            count => write!(f, "{}: {count} problems", self.file),
        }
    }
}

impl std::error::Error for ConfigProblems {}

/// The candidate that `word` most likely misspells, if one is similar enough.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    let length = word.chars().count();
    let allowed = length.max(3) / 3;
    candidates
        .iter()
        // the distance is at least the difference of the lengths
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= allowed)
        .map(|candidate| (distance(&word, &plain(candidate)), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The number of characters to insert, remove, replace or swap with their neighbour to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let edited = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { edited.min(rows[i - 2][j - 2] + 1) } else { edited }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found() {
        let keys = ["name", "pin", "topic", "max_connections", "max_sessions", "hold"];
        for (word, expected) in [
            ("pni", Some("pin")),
            ("Name", Some("name")),
            ("max-connections", Some("max_connections")),
            ("max_conections", Some("max_connections")),
            ("topics", Some("topic")),
            ("host", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &keys), expected, "{word}");
        }
    }

    #[test]
    fn a_terminal_does_not_act_on_what_a_file_has() {
        let (key, message) = ("a.\u{1b}[31mü\nb".into(), "found \u{9b}2J\u{7}, \nand more".into());
        let problem = ConfigProblem { file: "f".into(), place: None, key, message };
        assert_eq!(problem.to_string(), "f: a.\\u{1b}[31mü\\nb: found \\u{9b}2J\\u{7}, \nand more");
    }

    #[test]
    fn problems_are_counted() {
        let problem = ConfigProblem { file: "f".into(), place: Some((2, 3)), key: "a.b".into(), message: "no".into() };
        let whole =
            ConfigProblem { file: "f".into(), place: None, key: String::new(), message: "cannot be read".into() };
        let one = ConfigProblems { file: "f".into(), problems: vec![problem.clone()] };
        assert_eq!(one.to_string(), "f:2:3: a.b: no\nf: 1 problem");
        let two = ConfigProblems { file: "f".into(), problems: vec![problem, whole] };
        assert_eq!(two.to_string(), "f:2:3: a.b: no\nf: cannot be read\nf: 2 problems");
    }
}
