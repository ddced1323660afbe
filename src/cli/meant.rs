//! What a command line that is not valid is certainly meant to be: one in which only `--config` is missing before a file, or
//! stands before the command instead of after it.

use std::ffi::OsString;
use std::path::Path;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;

/// The names of the option for the configuration.
const CONFIG: [&str; 2] = ["--config", "-c"];

/// Parses the command line of a process, whose first argument is the name of the program.
pub(super) fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(&args).or_else(|error| {
        let meant = with_option(&args, &error).or_else(|| with_command_first(&args, &error));
        // what is wrong is said of what was written
        meant.and_then(|meant| Cli::try_parse_from(meant).ok()).ok_or(error)
    })
}

/// Whether a word is a file and not a mistyped command.
fn is_file(word: &str) -> bool {
    let path = Path::new(word);
    path.extension().is_some_and(|extension| extension == "toml") || path.is_file()
}

/// Puts the option before the file that no argument expects.
fn with_option(args: &[OsString], error: &clap::Error) -> Option<Vec<OsString>> {
    let kind = match error.kind() {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => return None,
    };
    let Some(ContextValue::String(word)) = error.get(kind) else { return None };
    let mut places = (1..args.len()).filter(|at| args[*at] == **word);
    let (at, None) = (places.next()?, places.next()) else { return None };
    let mut meant = args.to_vec();
    meant.insert(at, CONFIG[0].into());
    is_file(word).then_some(meant)
}

/// Puts the option behind the command that it is for.
fn with_command_first(args: &[OsString], error: &clap::Error) -> Option<Vec<OsString>> {
    let (program, rest) = args.split_first()?;
    let [option, file, command, others @ ..] = rest else { return None };
    if error.kind() != ErrorKind::ArgumentConflict || !CONFIG.iter().any(|name| *option == **name) {
        return None;
    }
    let meant = [program, command, option, file].into_iter().chain(others);
    Some(meant.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(written: &[&str], meant: &[&str]) {
        let parsed = |words: &[&str]| parse([&["pigateway"], words].concat().into_iter().map(OsString::from).collect());
        let (written, meant) = (parsed(written).unwrap(), parsed(meant).unwrap());
        assert_eq!(format!("{written:?}"), format!("{meant:?}"));
    }

    fn refused(words: &[&str]) -> String {
        let words = [&["pigateway"], words].concat().into_iter().map(OsString::from).collect();
        parse(words).unwrap_err().to_string()
    }

    #[test]
    fn a_file_needs_no_option_where_nothing_else_can_be_meant() {
        for command in [&[][..], &["run"], &["doctor"], &["status"], &["status", "--json"], &["explain", "a/b"]] {
            let valid = [command, &["--config", "x.toml"]].concat();
            same(&[command, &["x.toml"]].concat(), &valid);
            same(&[&["--config", "x.toml"], command].concat(), &valid);
            same(&[&["-c", "x.toml"], command].concat(), &valid);
        }
        // also one of another program, of which is said then what it is
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mosquitto.conf");
        std::fs::write(&file, "listener 1883\n").unwrap();
        let file = file.to_str().unwrap();
        same(&["doctor", file], &["doctor", "--config", file]);
    }

    #[test]
    fn what_is_no_file_or_may_mean_something_else_is_refused_as_it_was_written() {
        assert!(refused(&["stauts"]).contains("'status'"), "{}", refused(&["stauts"]));
        assert!(refused(&["doctor", "x"]).contains("'x'"));
        for words in [
            &["x.toml", "y.toml"][..],
            &["x.toml", "x.toml"],
            &["run", "--config", "y.toml", "x.toml"],
            &["man", "x.toml"],
            &["--config", "x.toml", "man"],
        ] {
            let error = refused(words);
            assert!(error.contains(words[words.len() - 1]) || error.contains("x.toml"), "{error}");
        }
    }
}
