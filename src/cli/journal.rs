//! `pigateway journal`: shows the contents of a journal.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{CliError, print};
use crate::app;
use crate::journal::inspect::{InspectError, InspectOptions, inspect, journal_dir};

#[derive(Debug, clap::Args)]
pub(super) struct JournalArgs {
    /// Data directory of the gateway
    dir: PathBuf,
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
    match &args.discard {
        Some(upstream) => discard(&args.dir, upstream),
        None => show(&args.dir, InspectOptions { verify: args.verify, export: args.export }),
    }
}

fn show(dir: &Path, what: InspectOptions) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let is_whole = match inspect(dir, what, &mut out).and_then(|is_whole| Ok(out.flush().map(|()| is_whole)?)) {
        // a closed pipe means that the reader has seen enough
        Err(InspectError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => true,
        result => result?,
    };
    if is_whole { Ok(()) } else { Err(CliError::Damaged) }
}

/// Removes the messages that wait for an upstream.
fn discard(dir: &Path, upstream: &str) -> Result<(), CliError> {
    // messages are removed only from a gateway's data directory, which can be locked
    if journal_dir(dir)? == dir {
        return Err(InspectError::None(dir.display().to_string()).into());
    }
    match app::discard(dir, upstream)? {
        Some(messages) => {
            print(format!("{messages} messages that waited for upstream {upstream} are removed\n").as_bytes())
        }
        None => Err(CliError::NoUpstream(upstream.to_owned())),
    }
}
