//! The command line.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::journal::inspect::{InspectError, What, inspect};
use crate::{app, config};

/// MQTT gateway for the Raspberry Pi: broker, motion sensors and store-and-forward bridge in one process.
#[derive(Debug, Parser)]
#[command(
    name = "pigateway",
    version,
    args_conflicts_with_subcommands = true,
    flatten_help = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway; this is what happens without a command, too
    Run(Run),
    /// Check configuration files and report everything that is wrong with them
    Check {
        /// Files to check
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Ask for a password, or read it from standard input, and print the table that makes a user
    User {
        /// Name of the user
        #[arg(value_parser = user_name)]
        name: String,
    },
    /// Show what a journal holds: segments, consumers with their ledgers, damage. Changes nothing, works beside a gateway
    Journal {
        /// The data directory
        dir: PathBuf,
        /// Read every record
        #[arg(long)]
        verify: bool,
        /// Print the messages as JSON, one a line
        #[arg(long, conflicts_with = "verify")]
        export: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, Args)]
struct Run {
    /// Configuration file; without one, a demonstration with a simulated sensor
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is not valid.
    #[error("the configuration is not valid, nothing was started\n{0}")]
    Config(#[from] config::Problems),
    /// Some of the files checked are not valid; what is wrong has been printed.
    #[error("{bad} of {all} files not valid")]
    Check {
        /// So many are not.
        bad: usize,
        /// So many were checked.
        all: usize,
    },
    /// Files that are checked are valid, but name files that are not there; which has been printed.
    #[error("{incomplete} of {all} files valid, but they name files that cannot be read")]
    Missing {
        /// So many name such files.
        incomplete: usize,
        /// So many were checked.
        all: usize,
    },
    /// The gateway did not start, or ended.
    #[error(transparent)]
    App(#[from] app::AppError),
    /// The journal cannot be shown.
    #[error(transparent)]
    Journal(#[from] InspectError),
    /// The journal is damaged; how has been printed.
    #[error("the journal is damaged")]
    Damaged,
    /// The password will not do.
    #[error("{0}")]
    Password(&'static str),
    /// It cannot be read or hashed, or the output cannot be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl CliError {
    /// The exit code, as sysexits.h names them.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Config(_) | CliError::Check { .. } => 78,
            CliError::App(error) => error.exit_code(),
            CliError::Password(_) | CliError::Damaged => 65,
            CliError::Journal(_) | CliError::Missing { .. } => 66,
            CliError::Io(_) => 74,
        }
    }
}

impl Cli {
    /// Does what the command line asks for.
    pub fn execute(self) -> Result<(), CliError> {
        match self.command {
            None => run(self.run),
            Some(Command::Run(args)) => run(args),
            Some(Command::Check { files }) => check(&files),
            Some(Command::User { name }) => print(user_table(&name, &ask_password(&name)?)?.as_bytes()),
            Some(Command::Journal { dir, verify, export }) => show_journal(&dir, What { verify, export }),
            Some(Command::Completions { shell }) => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "pigateway", &mut script);
                print(&script)
            }
            Some(Command::Man) => print(&man_page()?),
        }
    }
}

/// The manual, all commands on one page.
fn man_page() -> io::Result<Vec<u8>> {
    let plain = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(Cli::command());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands_mut() {
        let usage = command.render_usage().to_string();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, ".TP\n\\fB{}\\fR\n{}.", plain(usage.trim_start_matches("Usage: ")), plain(&about))?;
    }
    writeln!(page, ".SH EXIT STATUS")?;
    for (code, meaning) in [
        ("0", "It was told to stop, or the command did what it should."),
        ("2", "The command line is not valid."),
        ("65", "The password will not do, or the journal is damaged."),
        ("66", "There is no journal, or it cannot be read; or a valid configuration names files that cannot be read."),
        ("69", "An address cannot be listened on."),
        ("70", "A part of the gateway ended unexpectedly."),
        ("71", "The system refuses threads, timers or signals."),
        ("73", "The data directory cannot be created or written."),
        ("74", "Input or output failed."),
        ("78", "A configuration file is not valid."),
    ] {
        writeln!(page, ".TP\n{code}\n{meaning}")?;
    }
    man.render_version_section(&mut page)?;
    Ok(page)
}

fn run(args: Run) -> Result<(), CliError> {
    let settings = match &args.config {
        Some(path) => {
            let loaded = config::load(path)?;
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            loaded.settings
        }
        None => config::Settings::demonstration(),
    };
    Ok(app::run(settings, args.config.as_deref())?)
}

/// Mistakes are told from files that are missing: with these the gateway runs, and what needs them waits.
fn check(files: &[PathBuf]) -> Result<(), CliError> {
    let (mut bad, mut incomplete) = (0, 0);
    for file in files {
        match config::load(file) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                for file in &loaded.files {
                    eprintln!("{}", file.problem);
                }
                if loaded.files.iter().any(|file| !file.is_missing) {
                    bad += 1;
                } else if !loaded.files.is_empty() {
                    incomplete += 1;
                } else {
                    print(format!("{}: ok\n", file.display()).as_bytes())?;
                }
            }
            Err(problems) => {
                eprintln!("{problems}");
                bad += 1;
            }
        }
    }
    let all = files.len();
    match (bad, incomplete) {
        (0, 0) => Ok(()),
        (0, _) => Err(CliError::Missing { incomplete, all }),
        _ => Err(CliError::Check { bad, all }),
    }
}

fn show_journal(dir: &Path, what: What) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let is_whole = match inspect(dir, what, &mut out).and_then(|is_whole| Ok(out.flush().map(|()| is_whole)?)) {
        // a reader that has seen enough is no error
        Err(InspectError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => true,
        result => result?,
    };
    if is_whole { Ok(()) } else { Err(CliError::Damaged) }
}

/// Writes to standard output, where a reader that has seen enough is no error.
fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn user_name(text: &str) -> Result<String, &'static str> {
    let fits = !text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control);
    if fits { Ok(text.into()) } else { Err("a name is not empty and has no control characters") }
}

/// The password, asked for twice on a terminal, else one line of standard input.
fn ask_password(name: &str) -> Result<String, CliError> {
    let password = if io::stdin().is_terminal() {
        let first = rpassword::prompt_password(format!("Password for {name}: "))?;
        if first != rpassword::prompt_password("The same again: ")? {
            return Err(CliError::Password("the two passwords differ"));
        }
        first
    } else {
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        line.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']).into()
    };
    if password.is_empty() { Err(CliError::Password("the password is empty")) } else { Ok(password) }
}

/// The table that makes a user, to be pasted into the configuration.
fn user_table(name: &str, password: &str) -> Result<String, CliError> {
    let name = toml::Value::String(name.into());
    let hash = hash(password)?;
    Ok(format!("[[broker.user]]\nname = {name}\npassword_hash = \"{hash}\"\npublish = [\"#\"]\nsubscribe = [\"#\"]\n"))
}

/// An argon2id hash that a small Pi computes in a fraction of a second: 19 MiB, 2 passes, 1 lane.
fn hash(password: &str) -> io::Result<String> {
    fn other(error: impl std::fmt::Display) -> io::Error {
        io::Error::other(error.to_string())
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(other)?;
    let params = Params::new(19_456, 2, 1, None).map_err(other)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let salt = SaltString::encode_b64(&salt).map_err(other)?;
    let hash = argon2.hash_password(password.as_bytes(), &salt).map_err(other)?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::PasswordVerifier;
    use argon2::password_hash::PasswordHash;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn running_is_the_default() {
        for args in [&["pigateway", "--config", "x.toml"][..], &["pigateway", "run", "--config", "x.toml"]] {
            let cli = Cli::try_parse_from(args).unwrap();
            let run = match cli.command {
                Some(Command::Run(run)) => run,
                _ => cli.run,
            };
            assert_eq!(run.config.as_deref(), Some(Path::new("x.toml")));
        }
        assert!(Cli::try_parse_from(["pigateway"]).unwrap().command.is_none());
        assert!(Cli::try_parse_from(["pigateway", "check"]).is_err());
        assert!(Cli::try_parse_from(["pigateway", "user", "a\nb"]).is_err());
    }

    #[test]
    fn the_manual_has_every_command() {
        let page = String::from_utf8(man_page().unwrap()).unwrap();
        for command in ["run", "check", "user", "journal", "completions", "man"] {
            assert!(page.contains(&format!("\\fBpigateway {command}")), "{command}: {page}");
        }
    }

    #[test]
    fn the_printed_table_is_a_user_with_that_password() {
        let table = user_table("esp \"loft\"", "hunter2").unwrap();
        let loaded = config::read(&table, Path::new("x.toml"), &config::Environment::default()).unwrap();
        let user = &loaded.settings.broker.access.users[0];
        assert_eq!(user.name, "esp \"loft\"");
        let hash = user.password_hash.as_deref().unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let hash = PasswordHash::new(hash).unwrap();
        assert!(Argon2::default().verify_password(b"hunter2", &hash).is_ok());
        assert!(Argon2::default().verify_password(b"hunter3", &hash).is_err());
    }

    #[test]
    fn one_bad_file_among_several_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
        std::fs::write(&good, "[log]\nlevel = \"info\"\n").unwrap();
        std::fs::write(&bad, "x = 1").unwrap();
        assert!(check(std::slice::from_ref(&good)).is_ok());
        assert!(matches!(check(&[good.clone(), bad.clone()]), Err(CliError::Check { bad: 1, all: 2 })));
        let incomplete = dir.path().join("incomplete.toml");
        let upstream =
            "[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://h\"]\nusername = \"a\"\npassword_file = \"p\"\n";
        std::fs::write(&incomplete, upstream).unwrap();
        let error = check(&[good.clone(), incomplete.clone()]).unwrap_err();
        assert!(matches!(error, CliError::Missing { incomplete: 1, all: 2 }) && error.exit_code() == 66, "{error}");
        assert!(matches!(check(&[incomplete.clone(), bad]), Err(CliError::Check { bad: 1, all: 2 })));
        std::fs::write(dir.path().join("p"), "\r\n").unwrap();
        assert!(matches!(check(std::slice::from_ref(&incomplete)), Err(CliError::Check { bad: 1, all: 1 })));
        std::fs::write(dir.path().join("p"), "secret\r\n").unwrap();
        assert!(check(&[incomplete]).is_ok());
    }

    #[test]
    fn errors_have_the_exit_codes_of_sysexits() {
        let problems = config::load(Path::new("/does/not/exist.toml")).unwrap_err();
        assert_eq!(CliError::from(problems).exit_code(), 78);
        assert_eq!(CliError::Check { bad: 1, all: 2 }.exit_code(), 78);
        let path = "/x".into();
        let data_dir = app::AppError::DataDir { path, source: io::ErrorKind::PermissionDenied.into() };
        assert_eq!(CliError::from(data_dir).exit_code(), 73);
    }
}
