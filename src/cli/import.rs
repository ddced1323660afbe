//! `pigateway import`: converts configurations of other programs.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::deferred::Deferred;
use super::{CliError, print};
use crate::access::hash;
use crate::config::{self, Environment};
use crate::import::{Imported, Options, mosquitto, mqtt_io};

#[derive(Debug, Subcommand)]
pub(super) enum From {
    /// mosquitto.conf with what it includes, password files and access control lists
    Mosquitto(Deferred<MosquittoArgs>),
    /// The YAML file of mqtt-io or pi-mqtt-gpio: its digital inputs
    MqttIo(Deferred<MqttIoArgs>),
}

#[derive(Debug, clap::Args)]
pub(super) struct MosquittoArgs {
    /// mosquitto.conf, and those password files and access control lists that are not at the paths it names
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, clap::Args)]
pub(super) struct MqttIoArgs {
    /// YAML file to import
    file: PathBuf,
    #[command(flatten)]
    to: To,
}

/// The destination of the result.
#[derive(Debug, clap::Args)]
pub(super) struct To {
    /// Write the configuration to this file, and passwords to files beside it; without it, to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite existing files
    #[arg(long, requires = "output")]
    force: bool,
}

/// Makes a configuration. A report of what became of the original's lines goes to standard error.
pub(super) fn import(from: &From) -> Result<(), CliError> {
    let environment = Environment::current();
    let to = match from {
        From::Mosquitto(Deferred(args)) => &args.to,
        From::MqttIo(Deferred(args)) => &args.to,
    };
    let options = Options {
        host_name: &environment.host_name,
        keeps_secrets: to.output.is_some(),
        hash: |password| hash::make(password),
    };
    let imported = match from {
        From::Mosquitto(Deferred(args)) => mosquitto::import(&args.files, &options)?,
        From::MqttIo(Deferred(args)) => mqtt_io::import(&args.file, &options)?,
    };
    let path = to.output.as_deref().unwrap_or(Path::new("pigateway.toml"));
    let checked = config::read(&imported.text, path, &environment).map_err(CliError::ImportedBadly);
    match &to.output {
        None => print(imported.text.as_bytes())?,
        Some(path) => write(path, &imported, to.force)?,
    }
    eprintln!("{}", imported.summary);
    for warning in &checked?.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn write(path: &Path, imported: &Imported, force: bool) -> Result<(), CliError> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let secrets: Vec<(PathBuf, &str)> =
        imported.secrets.iter().map(|secret| (dir.join(&secret.name), secret.password.as_str())).collect();
    let mut all = std::iter::once(path).chain(secrets.iter().map(|(path, _)| path.as_path()));
    // write nothing at all if one of the files exists
    if let Some(there) = all.find(|path| !force && path.symlink_metadata().is_ok()) {
        return Err(CliError::Exists(there.into()));
    }
    for (path, password) in &secrets {
        write_file(path, password, 0o600, force)?;
    }
    write_file(path, &imported.text, 0o644, force)
}

fn write_file(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), CliError> {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode).create(force).truncate(force).create_new(!force);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => CliError::Exists(path.into()),
        _ => CliError::Write { path: path.into(), source },
    })
}
