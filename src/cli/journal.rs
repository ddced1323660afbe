//! `pigateway journal`: shows the contents of a journal.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{CliError, print};
use crate::app::data_dir::is_used;
use crate::journal::inspect::{InspectError, InspectOptions, inspect, journal_dir};
use crate::{app, config};

#[derive(Debug, clap::Args)]
pub(super) struct JournalArgs {
    /// Data directory of the gateway, or its configuration file, which names that directory
    #[arg(required_unless_present = "config")]
    dir: Option<PathBuf>,
    /// Its configuration file, for those who are used to the option of the other commands
    #[arg(long, short, hide = true, value_name = "FILE", conflicts_with = "dir")]
    config: Option<PathBuf>,
    /// Read every record and check it
    #[arg(long)]
    verify: bool,
    /// Print the messages as JSON, one on each line
    #[arg(long, conflicts_with = "verify")]
    export: bool,
    /// Remove the messages that wait for the upstream with this name, for example one that is no longer configured; no
    /// gateway may use the directory meanwhile
    #[arg(long, value_name = "NAME", conflicts_with_all = ["verify", "export"])]
    discard: Option<String>,
}

pub(super) fn journal(args: &JournalArgs) -> Result<(), CliError> {
    let dir = data_dir(args)?;
    match &args.discard {
        Some(upstream) => discard(&dir, upstream),
        None => show(&dir, InspectOptions { verify: args.verify, export: args.export }),
    }
}

/// The directory that is meant. A file whose name ends as those of configurations do is one.
fn data_dir(args: &JournalArgs) -> Result<PathBuf, CliError> {
    let is_config = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "toml") && path.is_file();
    match args.config.as_ref().or(args.dir.as_ref().filter(is_config)) {
        Some(config) => Ok(config::load(config)?.settings.gateway.data_dir),
        None => Ok(args.dir.clone().unwrap_or_default()),
    }
}

fn show(dir: &Path, what: InspectOptions) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let is_whole = match inspect(dir, what, &mut out).and_then(|is_whole| Ok(out.flush().map(|()| is_whole)?)) {
        // a closed pipe means that the reader has seen enough
        Err(InspectError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => true,
        Err(InspectError::None(_)) if is_used(dir) => {
            eprintln!("pigateway: there is no journal yet in {}: nothing has had to be kept", dir.display());
            true
        }
        result => result?,
    };
    if is_whole { Ok(()) } else { Err(CliError::Damaged) }
}

/// Removes the messages that wait for an upstream.
fn discard(dir: &Path, upstream: &str) -> Result<(), CliError> {
    // messages are removed only from a gateway's data directory, which can be locked
    if journal_dir(dir)? == dir {
        return Err(match is_used(dir) {
            true => CliError::NoUpstream(upstream.to_owned()),
            false => InspectError::None(dir.display().to_string()).into(),
        });
    }
    match app::discard(dir, upstream)? {
        Some(messages) => {
            print(format!("{messages} messages that waited for upstream {upstream} are removed\n").as_bytes())
        }
        None => Err(CliError::NoUpstream(upstream.to_owned())),
    }
}
