//! `pigateway check`: reports what is wrong with configuration files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::{CliError, OUTPUT, print};
use crate::access::owner::{ConsumerOwner, DENIED, LARGE, SHELF, denied_consumer, large_consumer, shelf_consumer};
use crate::app::data_dir::obstacle as obstacle_to;
use crate::config::{self, ConfigProblem};
use crate::import::kind_of_file;
use crate::journal::inspect::waiting;

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Files to check
    #[arg(required_unless_present = "config", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A file to check, for those who are used to the option of the other commands
    #[arg(long, short, hide = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Output for people, or one JSON object for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// The result for one file.
#[derive(Debug, Default, Serialize)]
struct CheckReport {
    file: String,
    /// The file has no mistakes. If files that it names are missing, the gateway runs, and what needs them waits.
    valid: bool,
    problems: Vec<FileFinding>,
    warnings: Vec<FileFinding>,
    missing_files: Vec<FileFinding>,
}

#[derive(Debug, Serialize)]
struct FileFinding {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    message: String,
    /// The finding as one line for people.
    #[serde(skip)]
    shown: String,
}

impl From<&ConfigProblem> for FileFinding {
    fn from(problem: &ConfigProblem) -> FileFinding {
        let (line, column) = problem.place.unzip();
        let (key, message) = (problem.key.clone(), problem.message.clone());
        FileFinding { line, column, key, message, shown: problem.to_string() }
    }
}

/// Recognises a file of another program, and returns a text that names the command which imports it.
pub(super) fn foreign(path: &Path) -> Option<String> {
    let kind = kind_of_file(path)?;
    let (what, from, file) = (kind.name(), kind.import()?, path.display());
    Some(format!("{file}: this is {what}; `pigateway import {from} {file}` makes a pigateway.toml of it"))
}

fn report(path: &Path) -> CheckReport {
    let mut report = CheckReport { file: path.display().to_string(), ..CheckReport::default() };
    if let Some(message) = foreign(path) {
        let shown = message.clone();
        report.problems.push(FileFinding { line: None, column: None, key: String::new(), message, shown });
        return report;
    }
    match config::load(path) {
        Ok(loaded) => {
            report.warnings = loaded.warnings.iter().map(FileFinding::from).collect();
            report.warnings.extend(orphans(&loaded.settings));
            made_users(&loaded.settings, &mut report);
            report.problems.extend(obstacle(&loaded.settings, path));
            for file in &loaded.files {
                let list = if file.is_missing { &mut report.missing_files } else { &mut report.problems };
                list.push(FileFinding::from(&file.problem));
            }
        }
        Err(problems) => report.problems = problems.problems.iter().map(FileFinding::from).collect(),
    }
    report.valid = report.problems.is_empty();
    report
}

/// Adds what is wrong with the file of users that administrators have added. If that file is damaged, the gateway runs
/// without those users.
fn made_users(settings: &config::Settings, report: &mut CheckReport) {
    let dir = &settings.gateway.data_dir;
    // if the file cannot be opened, the gateway itself reports it
    if std::fs::File::open(config::made_users_path(dir)).is_err() {
        return;
    }
    match config::load_made_users(dir) {
        Ok(made) => {
            let warnings = made.all_warnings(&settings.broker.access.users, dir);
            report.warnings.extend(warnings.iter().map(FileFinding::from));
        }
        Err(problems) => report.missing_files.extend(problems.problems.iter().map(FileFinding::from)),
    }
}

/// What stands in the way of the data directory, without which the gateway does not start.
fn obstacle(settings: &config::Settings, file: &Path) -> Option<FileFinding> {
    let (key, message) = ("gateway.data_dir".to_owned(), obstacle_to(&settings.gateway.data_dir)?);
    let shown = format!("{}: {key}: {message}", file.display());
    Some(FileFinding { line: None, column: None, key, message, shown })
}

/// Messages that wait for upstreams or for rules which the configuration does not have. It may be a mistake in the configuration.
fn orphans(settings: &config::Settings) -> Vec<FileFinding> {
    let dir = &settings.gateway.data_dir;
    // if the journal cannot be read, the gateway itself reports it
    let consumers = waiting(dir).unwrap_or_default();
    let mut unknown: BTreeMap<&str, u64> = BTreeMap::new();
    let mut shelved: BTreeMap<&str, u64> = BTreeMap::new();
    let mut denied: BTreeMap<&str, u64> = BTreeMap::new();
    let mut large: BTreeMap<&str, u64> = BTreeMap::new();
    for (consumer, messages) in consumers.iter().filter(|(_, messages)| *messages > 0) {
        let ConsumerOwner::Upstream(name) = ConsumerOwner::of(consumer) else { continue };
        if !settings.upstreams.iter().any(|upstream| upstream.name == name) {
            *unknown.entry(name).or_default() += messages;
        } else if **consumer == *shelf_consumer(name) {
            *shelved.entry(name).or_default() += messages;
        } else if **consumer == *denied_consumer(name) {
            *denied.entry(name).or_default() += messages;
        } else if **consumer == *large_consumer(name) {
            *large.entry(name).or_default() += messages;
        }
    }
    let finding = |why: String, discard: String| {
        let dir = dir.display();
        let message = format!(
            "{why}: they are kept, and are the first to give way when the journal is full; pigateway journal {dir} --discard \
             {discard} removes them"
        );
        FileFinding { line: None, column: None, key: String::new(), shown: message.clone(), message }
    };
    let unknown = unknown.into_iter().map(|(name, messages)| {
        let why = format!("{messages} messages wait for upstream {name}, which is not configured");
        finding(why, name.to_owned())
    });
    let shelved = shelved.into_iter().map(|(name, messages)| {
        let why = format!("{messages} messages wait for upstream {name}, and none of its rules matched them");
        finding(why, format!("{name}{SHELF}"))
    });
    let denied = denied.into_iter().map(|(name, messages)| {
        let why = format!("{messages} messages wait for upstream {name}, which did not take their topics");
        finding(why, format!("{name}{DENIED}"))
    });
    let large = large.into_iter().map(|(name, messages)| {
        let why = format!("{messages} messages wait for upstream {name}, which were larger than its address took");
        finding(why, format!("{name}{LARGE}"))
    });
    unknown.chain(shelved).chain(denied).chain(large).collect()
}

fn show(report: &CheckReport) -> Result<(), CliError> {
    for warning in &report.warnings {
        eprintln!("warning: {}", warning.shown);
    }
    for finding in report.problems.iter().chain(&report.missing_files) {
        eprintln!("{}", finding.shown);
    }
    match report.problems.len() {
        0 if report.missing_files.is_empty() => print(format!("{}: ok\n", report.file).as_bytes())?,
        0 => {}
        1 => eprintln!("{}: 1 problem", report.file),
        count => eprintln!("{}: {count} problems", report.file),
    }
    Ok(())
}

/// Distinguishes mistakes from missing files: with missing files the gateway runs, and what needs them waits.
pub(super) fn check(args: &CheckArgs) -> Result<(), CliError> {
    let reports: Vec<CheckReport> = args.config.iter().chain(&args.files).map(|path| report(path)).collect();
    match args.format {
        Format::Text => reports.iter().try_for_each(show)?,
        Format::Json => {
            let json = serde_json::to_string_pretty(&serde_json::json!({ "files": reports }));
            print((json.map_err(|error| CliError::io(OUTPUT)(error.into()))? + "\n").as_bytes())?;
        }
    }
    let all = reports.len();
    let bad = reports.iter().filter(|report| !report.valid).count();
    let incomplete = reports.iter().filter(|report| report.valid && !report.missing_files.is_empty()).count();
    match (bad, incomplete) {
        (0, 0) => Ok(()),
        (0, _) => Err(CliError::Missing { incomplete, all }),
        _ => Err(CliError::Check { bad, all }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_these(files: &[&PathBuf]) -> Result<(), CliError> {
        let files = files.iter().map(|path| (*path).clone()).collect();
        check(&CheckArgs { files, config: Vec::new(), format: Format::Text })
    }

    #[test]
    fn one_bad_file_among_several_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
        std::fs::write(&good, "[log]\nlevel = \"info\"\n").unwrap();
        std::fs::write(&bad, "x = 1").unwrap();
        assert!(check_these(&[&good]).is_ok());
        assert!(matches!(check_these(&[&good, &bad]), Err(CliError::Check { bad: 1, all: 2 })));
        let incomplete = dir.path().join("incomplete.toml");
        let upstream =
            "[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://h\"]\nusername = \"a\"\npassword_file = \"p\"\n";
        std::fs::write(&incomplete, upstream).unwrap();
        let error = check_these(&[&good, &incomplete]).unwrap_err();
        assert!(
            matches!(error, CliError::Missing { incomplete: 1, all: 2 }) && error.exit_code().number() == 66,
            "{error}"
        );
        assert!(matches!(check_these(&[&incomplete, &bad]), Err(CliError::Check { bad: 1, all: 2 })));
        std::fs::write(dir.path().join("p"), "\r\n").unwrap();
        assert!(matches!(check_these(&[&incomplete]), Err(CliError::Check { bad: 1, all: 1 })));
        std::fs::write(dir.path().join("p"), "secret\r\n").unwrap();
        assert!(check_these(&[&incomplete]).is_ok());
    }

    #[test]
    fn a_certificate_that_has_expired_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pigateway.toml");
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        let text = "[[upstream]]\nname = \"u\"\naddresses = [\"mqtts://h\"]\ntls = { cert = \"c\", key = \"k\" }\n";
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("k"), key.serialize_pem()).unwrap();
        for (year, is_expired) in [(2020, true), (4000, false)] {
            params.not_after = rcgen::date_time_ymd(year, 5, 6);
            std::fs::write(dir.path().join("c"), params.self_signed(&key).unwrap().pem()).unwrap();
            let found = report(&path);
            let is_said =
                |warning: &FileFinding| warning.key == "upstream.tls.cert" && warning.message.contains("2020");
            assert_eq!((found.valid, found.warnings.iter().any(is_said)), (true, is_expired), "{found:?}");
        }
    }

    #[test]
    fn a_data_directory_that_cannot_be_one_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pigateway.toml");
        for (data_dir, is_valid) in [("new/data", true), ("pigateway.toml", false), ("link/data", false)] {
            std::fs::write(&path, format!("[gateway]\ndata_dir = \"{data_dir}\"\n")).unwrap();
            let found = report(&path);
            assert_eq!(found.valid, is_valid, "{found:?}");
            let is_named = |problem: &FileFinding| problem.shown.contains("gateway.data_dir: found a ");
            assert!(found.problems.iter().all(is_named), "{found:?}");
            if is_valid {
                std::os::unix::fs::symlink("/nowhere/data", dir.path().join("link")).unwrap();
            }
        }
    }

    #[test]
    fn what_belongs_to_another_program_is_said_with_the_command_that_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text, command) in [
            ("mosquitto.conf", "listener 1883\nallow_anonymous true\n", "import mosquitto"),
            ("passwd", "a:$7$101$c2FsdA==$aGFzaA==\n", "import mosquitto"),
            ("aclfile", "user a\ntopic read x/#\n", "import mosquitto"),
            ("config.yml", "mqtt:\n  host: h\ndigital_inputs: []\n", "import mqtt-io"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let found = report(&path);
            assert!(!found.valid && found.problems[0].message.contains(command), "{found:?}");
            assert!(foreign(&path).unwrap().contains(name));
        }
        let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/pigateway.example.toml"));
        assert_eq!(foreign(own), None);
    }
}
