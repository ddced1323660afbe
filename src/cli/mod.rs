//! The command line: one file for each command.

mod check;
pub mod client;
mod doctor;
mod explain;
mod import;
mod journal;
mod man;
pub mod status;
mod user;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::import::ImportError;
use crate::journal::inspect::{InspectError, InspectOptions};
use crate::{app, config};

/// Where the package keeps the configuration.
const CONFIGURATION: &str = "/etc/pigateway/pigateway.toml";

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
    /// Run the gateway; this is what happens without a command, too
    Run(RunArgs),
    /// Check configuration files and report everything that is wrong with them
    Check(check::CheckArgs),
    /// Ask for a password, or read it from standard input, and print the table that makes a user
    User {
        /// Name of the user
        #[arg(value_parser = user::user_name)]
        name: String,
    },
    /// Say who may publish and receive a topic and by which line, whether it is kept, and where it goes upstream
    Explain(explain::ExplainArgs),
    /// Look for what stands in the way of a gateway on this machine, and say what to do; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Show how a running gateway is doing
    Status(status::StatusArgs),
    /// Publish one message to a broker
    Publish(client::PublishArgs),
    /// Print the messages of a broker as they come
    Subscribe(client::SubscribeArgs),
    /// Make a configuration of mosquitto's or mqtt-io's
    #[command(subcommand)]
    Import(import::From),
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
        /// Remove what waits for the upstream with this name, such as one that is not configured any more; no gateway may
        /// run there
        #[arg(long, value_name = "NAME", conflicts_with_all = ["verify", "export"])]
        discard: Option<String>,
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
struct RunArgs {
    /// Configuration file; without one, a demonstration with a simulated sensor
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is not valid.
    #[error("the configuration is not valid, nothing was started\n{0}")]
    Config(#[from] config::ConfigProblems),
    /// The configuration is another program's.
    #[error("{0}")]
    Foreign(String),
    /// Some of the files checked are not valid; what is wrong has been printed.
    #[error("{bad} of {all} files not valid")]
    Check {
        /// How many of them are not valid.
        bad: usize,
        /// How many files were checked.
        all: usize,
    },
    /// Files that are checked are valid, but name files that are not there; which has been printed.
    #[error("{incomplete} of {all} files valid, but they name files that cannot be read")]
    Missing {
        /// How many of them name such files.
        incomplete: usize,
        /// How many files were checked.
        all: usize,
    },
    /// There is no such user in the configuration.
    #[error("there is no [[broker.user]] {0:?} in the configuration")]
    NoSuchUser(String),
    /// The machine has problems; which has been printed.
    #[error("{0} problems")]
    Unwell(usize),
    /// The gateway does not tell how it is doing.
    #[error("{0}")]
    Gateway(String),
    /// A broker does not do what it was asked for.
    #[error("{0}")]
    Broker(String),
    /// Another program's configuration cannot be read.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// What an import made is not valid, which is a fault of this program.
    #[error("what was made of it is not valid, which is a fault of pigateway\n{0}")]
    ImportedBadly(config::ConfigProblems),
    /// A file is there already.
    #[error("{} is there already; --force overwrites it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The gateway did not start, or ended.
    #[error(transparent)]
    App(#[from] app::AppError),
    /// The journal cannot be shown.
    #[error(transparent)]
    Journal(#[from] InspectError),
    /// The journal knows no such upstream.
    #[error("nothing waits for an upstream {0:?} there")]
    NoUpstream(String),
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
            CliError::Config(_) | CliError::Check { .. } | CliError::Foreign(_) => 78,
            CliError::App(error) => error.exit_code(),
            CliError::Password(_) | CliError::Damaged => 65,
            CliError::Import(ImportError::NotThat { .. } | ImportError::Yaml { .. }) => 65,
            CliError::Import(_) | CliError::Journal(_) | CliError::NoUpstream(_) | CliError::Missing { .. } => 66,
            CliError::Unwell(_) => 1,
            CliError::NoSuchUser(_) => 67,
            CliError::Gateway(_) | CliError::Broker(_) => 69,
            CliError::ImportedBadly(_) => 70,
            CliError::Exists(_) | CliError::Write { .. } => 73,
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
            Some(Command::Check(args)) => check::check(&args),
            Some(Command::User { name }) => print(user::user_table(&name, &user::ask_password(&name)?)?.as_bytes()),
            Some(Command::Explain(args)) => explain::explain(&args),
            Some(Command::Doctor(args)) => doctor::doctor(&args),
            Some(Command::Status(args)) => status::status(&args),
            Some(Command::Publish(args)) => client::publish(&args),
            Some(Command::Subscribe(args)) => client::subscribe(&args),
            Some(Command::Import(from)) => import::import(&from),
            Some(Command::Journal { dir, discard: Some(name), .. }) => journal::discard(&dir, &name),
            Some(Command::Journal { dir, verify, export, .. }) => {
                journal::show_journal(&dir, InspectOptions { verify, export })
            }
            Some(Command::Completions { shell }) => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "pigateway", &mut script);
                print(&script)
            }
            Some(Command::Man) => print(&man::man_page()?),
        }
    }
}

fn run(args: RunArgs) -> Result<(), CliError> {
    let settings = match &args.config {
        Some(path) => {
            if let Some(what) = check::foreign(path) {
                return Err(CliError::Foreign(what));
            }
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

/// Writes to standard output, where a reader that has seen enough is no error.
fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
    fn errors_have_the_exit_codes_of_sysexits() {
        let problems = config::load(Path::new("/does/not/exist.toml")).unwrap_err();
        assert_eq!(CliError::from(problems).exit_code(), 78);
        assert_eq!(CliError::Check { bad: 1, all: 2 }.exit_code(), 78);
        let path = "/x".into();
        let data_dir = app::AppError::DataDir { path, source: io::ErrorKind::PermissionDenied.into() };
        assert_eq!(CliError::from(data_dir).exit_code(), 73);
    }
}
