//! `pigateway import`: converts configurations of other programs.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
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
    let mut imported = match from {
        From::Mosquitto(Deferred(args)) => mosquitto::import(&args.files, &options)?,
        From::MqttIo(Deferred(args)) => mqtt_io::import(&args.file, &options)?,
    };
    let path = to.output.as_deref().unwrap_or(Path::new("pigateway.toml"));
    match &to.output {
        None => print(imported.text.as_bytes())?,
        Some(path) => imported.summary.to_do.extend(write(path, &imported, to.force)?),
    }
    eprintln!("{}", imported.summary);
    // by now its passwords are written, perhaps to a card that keeps nothing secret
    let checked = config::read(&imported.text, path, &environment).map_err(CliError::ImportedBadly)?;
    for warning in &checked.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

/// Writes the configuration and the passwords. Returns what is left to do.
fn write(path: &Path, imported: &Imported, force: bool) -> Result<Option<String>, CliError> {
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
    // there are password hashes in it
    write_file(path, &imported.text, 0o640, force)?;
    let paths = secrets.iter().map(|(path, _)| path.as_path()).chain([path]);
    let of_root: Vec<String> =
        paths.filter(|path| is_for_root_alone(path)).map(|path| path.display().to_string()).collect();
    let how = "only root can read it, and the service runs as pigateway: chgrp pigateway and chmod 640, or hand a password over \
               with LoadCredential";
    Ok((!of_root.is_empty()).then(|| format!("{}: {how}", of_root.join(", "))))
}

fn write_file(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), CliError> {
    write_private(path, text, mode, force).map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => CliError::Exists(path.into()),
        _ => CliError::Write { path: path.into(), source },
    })
}

/// Writes a file that only its owner, and where `mode` says so its group, can read. A file that is there keeps owner and
/// group, and the narrower of both modes.
fn write_private(path: &Path, text: &str, mode: u32, force: bool) -> io::Result<()> {
    let before = fs::metadata(path).ok();
    // what is there is emptied only when others cannot read it any more
    let mut file =
        OpenOptions::new().write(true).mode(mode).create(force).create_new(!force).truncate(false).open(path)?;
    if file.metadata()?.is_file() {
        let mode = match before.map(|before| before.mode()) {
            Some(before) if before & 0o007 == 0 => before & 0o640,
            Some(_) => mode,
            None if is_given_to_group(&file, path) => 0o640,
            None => mode,
        };
        // a FAT card has no modes: the warning about what everybody can read says it
        let _ = file.set_permissions(Permissions::from_mode(mode));
        file.set_len(0)?;
    }
    file.write_all(text.as_bytes())
}

/// Gives a new file to the group of its directory, if that is a group that the owner has chosen: the directory is closed to
/// everybody else, as /etc/pigateway is.
fn is_given_to_group(file: &File, path: &Path) -> bool {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_own = |about: &Metadata| about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o007 == 0;
    let Some(about) = fs::metadata(dir).ok().filter(is_own) else { return false };
    about.gid() != rustix::process::getegid().as_raw() && fchown(file, None, Some(about.gid())).is_ok()
}

/// Whether a service that does not run as root cannot read a file.
fn is_for_root_alone(path: &Path) -> bool {
    let is_for_root = |about: Metadata| about.uid() == 0 && (about.gid() == 0 || about.mode() & 0o040 == 0);
    fs::metadata(path).is_ok_and(|about| about.mode() & 0o004 == 0 && is_for_root(about))
}
