//! Files that the configuration names, and what the process was started with.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::document::{Table, Value};
use crate::tls::acceptor;
use crate::upstream::settings::Secret;

/// What the process was started with, as far as the configuration depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Name of the host: the default of `gateway.id`.
    pub host_name: String,
    /// Where systemd keeps the service's state: the default of `gateway.data_dir`.
    pub state_dir: Option<PathBuf>,
    /// Where systemd puts the service's credentials: secrets are looked for here first.
    pub credentials_dir: Option<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn current() -> Environment {
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // systemd lists several directories separated by colons (systemd.exec(5))
        let state_dir = std::env::var("STATE_DIRECTORY").ok();
        let state_dir =
            state_dir.and_then(|list| list.split(':').next().filter(|dir| !dir.is_empty()).map(PathBuf::from));
        let credentials_dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Environment { host_name, state_dir, credentials_dir }
    }
}

/// Finds the files that a configuration names.
pub(super) struct Paths<'a> {
    base: &'a Path,
    credentials: Option<&'a Path>,
}

impl<'a> Paths<'a> {
    pub(super) fn new(file: &'a Path, environment: &'a Environment) -> Paths<'a> {
        Paths { base: file.parent().unwrap_or(Path::new("")), credentials: environment.credentials_dir.as_deref() }
    }

    /// A path relative to the configuration.
    pub(super) fn path(&self, value: &Value) -> Option<PathBuf> {
        value.parsed("a path", |text| (!text.is_empty() && !text.contains('\0')).then(|| self.base.join(text)))
    }

    /// A path relative to the credentials directory, if it is there, else to the configuration.
    fn secret_path(&self, value: &Value) -> Option<PathBuf> {
        let path = self.path(value)?;
        let credential = self.credentials.zip(value.text("a path")).map(|(dir, text)| dir.join(text));
        Some(credential.filter(|credential| credential.exists()).unwrap_or(path))
    }

    /// The password in a file: its text without the line end.
    pub(super) fn password(&self, value: &Value) -> Option<Secret> {
        let path = self.secret_path(value)?;
        let content = read(value, &path)?;
        let Ok(text) = String::from_utf8(content) else {
            value.problem(format!("{} is not UTF-8 text", path.display()));
            return None;
        };
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            value.problem(format!("{} is empty", path.display()));
            return None;
        }
        Some(Secret::new(text))
    }

    /// A file with certificates.
    pub(super) fn certificates(&self, value: &Value) -> Option<PathBuf> {
        let path = self.path(value)?;
        let content = read(value, &path)?;
        let good = CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
        if !good.is_ok_and(|certificates| !certificates.is_empty()) {
            value.problem(format!("{} has no certificate in PEM form", path.display()));
            return None;
        }
        Some(path)
    }

    /// A file with a private key.
    pub(super) fn key(&self, value: &Value) -> Option<PathBuf> {
        let path = self.secret_path(value)?;
        let content = read(value, &path)?;
        if PrivateKeyDer::from_pem_slice(&content).is_err() {
            value.problem(format!("{} has no private key in PEM form", path.display()));
            return None;
        }
        Some(path)
    }

    /// Certificate and key of a listener's `tls` table; with `client_ca` they must make a server that asks for certificates.
    pub(super) fn server_tls(&self, tls: &Table, client_ca: Option<(&Value, &Path)>) -> Option<(PathBuf, PathBuf)> {
        let cert_value = tls.required("cert", "a file with the certificate chain in PEM form");
        let key_value = tls.required("key", "a file with the private key in PEM form");
        let cert = cert_value.as_ref().and_then(|cert| self.certificates(cert));
        let key = key_value.as_ref().and_then(|key| self.key(key));
        let (cert, key) = cert.zip(key)?;
        if let Err(error) = acceptor(&cert, &key, client_ca.map(|(_, path)| path)) {
            let to_blame = match client_ca {
                Some((value, path)) if error.path() == path => Some(value),
                _ if error.path() == key => key_value.as_ref(),
                _ => cert_value.as_ref(),
            };
            if let Some(value) = to_blame {
                value.problem(error.to_string());
            }
            return None;
        }
        Some((cert, key))
    }
}

fn read(value: &Value, path: &Path) -> Option<Vec<u8>> {
    match std::fs::read(path) {
        Ok(content) => Some(content),
        Err(error) => {
            value.problem(format!("{} cannot be read: {error}", path.display()));
            None
        }
    }
}
