//! The command line: one file for each command.

mod check;
pub mod client;
mod deferred;
mod doctor;
mod explain;
mod import;
mod journal;
mod man;
mod meant;
pub mod status;
mod user;

use std::io::{self, Write};
use std::panic::{UnwindSafe, catch_unwind};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use self::deferred::Deferred;
use crate::app::exit_code::ExitCode;
use crate::import::ImportError;
use crate::journal::inspect::InspectError;
use crate::{app, config};

/// The path at which the Debian package installs the configuration.
const CONFIGURATION: &str = "/etc/pigateway/pigateway.toml";

/// What is said of an error of standard output.
const OUTPUT: &str = "standard output cannot be written";

/// MQTT gateway for the Raspberry Pi: broker, motion sensors and store-and-forward bridge in one process.
#[derive(Debug, Parser)]
#[command(name = "pigateway", version, args_conflicts_with_subcommands = true, flatten_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway; this is also the default without a command
    Run(RunArgs),
    /// Check configuration files and report everything that is wrong with them
    Check(Deferred<check::CheckArgs>),
    /// Ask for a password, or read it from standard input, and print the table that makes a user
    User(Deferred<user::UserArgs>),
    /// Show who may publish and receive a topic and by which line, whether it is kept, and where it goes upstream
    Explain(Deferred<explain::ExplainArgs>),
    /// Find what would keep a gateway from working on this machine and say what to do; changes nothing
    Doctor(Deferred<doctor::DoctorArgs>),
    /// Show how a running gateway is doing
    Status(Deferred<status::StatusArgs>),
    /// Publish one message to a broker
    Publish(Deferred<client::PublishArgs>),
    /// Print the messages of a broker as they come
    Subscribe(Deferred<client::SubscribeArgs>),
    /// Make a configuration of mosquitto's or mqtt-io's
    #[command(subcommand)]
    Import(import::From),
    /// Show the contents of a journal: segments, consumers with their ledgers, damage; changes nothing, can run beside
    /// a gateway
    Journal(Deferred<journal::JournalArgs>),
    /// Print completions for a shell
    Completions(Deferred<man::CompletionsArgs>),
    /// Print the manual page
    Man,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Configuration file; without one, a demonstration with a simulated sensor
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is not valid.
    #[error("the configuration is not valid, nothing was started\n{0}")]
    Config(#[from] config::ConfigProblems),
    /// The file given as configuration is another program's.
    #[error("{0}")]
    Foreign(String),
    /// Some of the checked files are not valid. What is wrong has been printed.
    #[error("{bad} of {all} files not valid")]
    Check {
        /// The number of files that are not valid.
        bad: usize,
        /// The number of checked files.
        all: usize,
    },
    /// The checked files are valid, but some name files that cannot be read. Which ones has been printed.
    #[error("{incomplete} of {all} files valid, but they name files that cannot be read")]
    Missing {
        /// The number of files that name such files.
        incomplete: usize,
        /// The number of checked files.
        all: usize,
    },
    /// The configuration has no user with this name.
    #[error("there is no [[broker.user]] {0:?} in the configuration")]
    NoSuchUser(String),
    /// The doctor has found this many problems, and has printed them.
    #[error("{0} problems")]
    Unwell(usize),
    /// The gateway does not answer, or its answer is an error.
    #[error("{0}")]
    Gateway(String),
    /// The broker does not answer, or refuses.
    #[error("{0}")]
    Broker(String),
    /// Another program's configuration cannot be read.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The result of an import is not valid, which is a fault of this program.
    #[error("what was made of it is not valid, which is a fault of pigateway\n{0}")]
    ImportedBadly(config::ConfigProblems),
    /// A file exists already and must not be overwritten.
    #[error("{} is there already; --force overwrites it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The gateway did not start, or ended.
    #[error(transparent)]
    App(#[from] app::AppError),
    /// The journal cannot be shown.
    #[error(transparent)]
    Journal(#[from] InspectError),
    /// The journal has no consumer for an upstream with this name.
    #[error("nothing waits for an upstream {0:?} there")]
    NoUpstream(String),
    /// The journal is damaged. The damage has been printed.
    #[error("the journal is damaged")]
    Damaged,
    /// The password is not acceptable, for the reason given.
    #[error("{0}")]
    Password(&'static str),
    /// Standard input or output failed, or the system refuses something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl CliError {
    /// Names what was tried: without that, nobody could tell from an error of the system what to do.
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> CliError {
        move |source| CliError::Io { what, source }
    }

    /// The code with which the program ends after this error.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CliError::Config(_) | CliError::Check { .. } | CliError::Foreign(_) => ExitCode::CONFIG,
            CliError::App(error) => error.exit_code(),
            CliError::Password(_) | CliError::Damaged => ExitCode::DATA_ERROR,
            CliError::Import(ImportError::NotThat { .. } | ImportError::Yaml { .. }) => ExitCode::DATA_ERROR,
            CliError::Import(_) | CliError::Journal(_) | CliError::NoUpstream(_) => ExitCode::NO_INPUT,
            CliError::Missing { .. } | CliError::Read { .. } => ExitCode::NO_INPUT,
            CliError::Unwell(_) => ExitCode::PROBLEMS_FOUND,
            CliError::NoSuchUser(_) => ExitCode::NO_USER,
            CliError::Gateway(_) | CliError::Broker(_) => ExitCode::UNAVAILABLE,
            CliError::ImportedBadly(_) => ExitCode::SOFTWARE,
            CliError::Exists(_) | CliError::Write { .. } => ExitCode::CANNOT_CREATE,
            CliError::Io { .. } => ExitCode::IO_ERROR,
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn execute(self) -> Result<(), CliError> {
        match self.command {
            None => run(self.run),
            Some(Command::Run(args)) => run(args),
            Some(Command::Check(Deferred(args))) => check::check(&args),
            Some(Command::User(Deferred(args))) => user::user(&args),
            Some(Command::Explain(Deferred(args))) => explain::explain(&args),
            Some(Command::Doctor(Deferred(args))) => doctor::doctor(&args),
            Some(Command::Status(Deferred(args))) => status::status(&args),
            Some(Command::Publish(Deferred(args))) => client::publish(&args),
            Some(Command::Subscribe(Deferred(args))) => client::subscribe(&args),
            Some(Command::Import(from)) => import::import(&from),
            Some(Command::Journal(Deferred(args))) => journal::journal(&args),
            Some(Command::Completions(Deferred(args))) => print(&man::completions(&args)),
            Some(Command::Man) => print(&man::man_page().map_err(CliError::io("the manual page cannot be made"))?),
        }
    }
}

/// Runs the command that the command line of this process asks for, and prints its error. Returns the code to end with.
pub fn main() -> ExitCode {
    outcome(|| meant::parse(std::env::args_os().collect()).unwrap_or_else(|error| error.exit()).execute())
}

fn outcome(command: impl FnOnce() -> Result<(), CliError> + UnwindSafe) -> ExitCode {
    match catch_unwind(command) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("pigateway: {error}");
            error.exit_code()
        }
        // the panic has been printed already, and is a fault of the program like any other
        Err(_) => ExitCode::SOFTWARE,
    }
}

fn run(args: RunArgs) -> Result<(), CliError> {
    let hangup = app::early_hangup().map_err(CliError::io("the system refuses signals"))?;
    let settings = match &args.config {
        Some(path) => {
            // a file of another program contains no valid configuration
            let foreign_or = |problems| check::foreign(path).map_or(CliError::Config(problems), CliError::Foreign);
            let loaded = config::load(path).map_err(foreign_or)?;
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            loaded.settings
        }
        None => config::Settings::demonstration(),
    };
    Ok(app::run(settings, args.config.as_deref(), hangup)?)
}

/// Writes to standard output. A closed pipe is no error, because the reader may have seen enough.
fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::io(OUTPUT)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_that_panics_has_a_code_of_the_list() {
        assert_eq!(outcome(|| Ok(())), ExitCode::SUCCESS);
        assert_eq!(outcome(|| Err(CliError::Damaged)), ExitCode::DATA_ERROR);
        assert_eq!(outcome(|| panic!("a fault")), ExitCode::SOFTWARE);
    }

    #[test]
    fn a_gateway_that_starts_describes_no_other_command() {
        let mut root = Cli::command();
        let other = |root: &clap::Command| {
            let others = root.get_subcommands().filter(|command| !matches!(command.get_name(), "run" | "help"));
            others.map(|command| command.get_arguments().count()).sum::<usize>()
        };
        assert_eq!(other(&root), 0);
        root.try_get_matches_from_mut(["pigateway", "run", "--config", "x.toml"]).unwrap();
        assert_eq!(other(&root), 0);
        // a command that is called, or whose help is asked for, is described in full
        assert!(Cli::try_parse_from(["pigateway", "journal", "x", "--verify"]).is_ok());
        assert!(Cli::try_parse_from(["pigateway", "import", "mosquitto", "x"]).is_ok());
        root.build();
        assert!(other(&root) > 20);
        // the description of a command is the one given here, and not that of a part of its arguments
        let about =
            root.get_subcommands().map(|command| command.get_about().map(ToString::to_string).unwrap_or_default());
        let first: Vec<String> = about.collect();
        assert!(first.contains(&"Publish one message to a broker".to_owned()), "{first:?}");
    }

    #[test]
    fn what_is_another_programs_is_told_from_mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let start = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            run(RunArgs { config: Some(path) }).unwrap_err()
        };
        assert!(matches!(start("mosquitto.conf", "listener 1883\n"), CliError::Foreign(_)));
        assert!(matches!(start("pigateway.toml", "[log]\nlevel = 3\n"), CliError::Config(_)));
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
        for args in [&["check", "x.toml"][..], &["check", "--config", "x.toml"], &["check", "-c", "x.toml", "y.toml"]] {
            let command = Cli::try_parse_from([&["pigateway"], args].concat());
            assert!(matches!(command.unwrap().command, Some(Command::Check(_))), "{args:?}");
        }
        assert!(Cli::try_parse_from(["pigateway", "user", "a\nb"]).is_err());
    }

    #[test]
    fn errors_have_the_exit_codes_of_the_list() {
        let problems = config::load(Path::new("/does/not/exist.toml")).unwrap_err();
        assert_eq!(CliError::from(problems).exit_code(), ExitCode::CONFIG);
        assert_eq!(CliError::Check { bad: 1, all: 2 }.exit_code(), ExitCode::CONFIG);
        let path = "/x".into();
        let data_dir = app::AppError::DataDir { path, source: io::ErrorKind::PermissionDenied.into() };
        assert_eq!(CliError::from(data_dir).exit_code(), ExitCode::CANNOT_CREATE);
        let usage = Cli::try_parse_from(["pigateway", "--no-such-option"]).unwrap_err();
        assert_eq!(usage.exit_code(), i32::from(ExitCode::USAGE.number()));
    }
}
