//! Finds the files that the configuration names, with the environment of the process.

use std::path::{Path, PathBuf};

use super::document::{Table, Value};
use crate::secret::{self, FileError};
use crate::tls::{self, TlsFiles, acceptor};

/// The parts of the process's environment on which the configuration depends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// The name of the host, which is the default of `gateway.id`.
    pub host_name: String,
    /// The directory in which systemd keeps the service's state. It is the default of `gateway.data_dir`.
    pub state_dir: Option<PathBuf>,
    /// The directory in which systemd puts the service's credentials. Secrets are looked for here first.
    pub credentials_dir: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process.
    pub(crate) fn current() -> Environment {
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

    /// A path relative to the directory of the configuration.
    pub(super) fn path(&self, value: &Value) -> Option<PathBuf> {
        value.parsed("a path", |text| (!text.is_empty() && !text.contains('\0')).then(|| self.base.join(text)))
    }

    /// A path relative to the credentials directory if the file exists there, otherwise to the directory of the
    /// configuration.
    fn secret_path(&self, value: &Value) -> Option<PathBuf> {
        let path = self.path(value)?;
        let credential = self.credentials.zip(value.text("a path")).map(|(dir, text)| dir.join(text));
        Some(credential.filter(|credential| credential.exists()).unwrap_or(path))
    }

    /// A usable file with a password.
    pub(super) fn password(&self, value: &Value) -> Option<PathBuf> {
        let path = self.secret_path(value)?;
        note(value, secret::password(&path));
        warn_if_public(value, &path);
        Some(path)
    }

    /// A usable file with certificates.
    pub(super) fn certificates(&self, value: &Value) -> Option<PathBuf> {
        let path = self.path(value)?;
        note(value, tls::certificates(&path));
        Some(path)
    }

    /// A usable file with our certificate and those of its authorities. If it has expired, others refuse it.
    pub(super) fn own_certificates(&self, value: &Value) -> Option<PathBuf> {
        let path = self.certificates(value)?;
        if let Some(warning) = tls::expired(&path) {
            value.warning(warning);
        }
        Some(path)
    }

    /// A usable file with lists of revoked certificates.
    pub(super) fn revoked(&self, value: &Value) -> Option<PathBuf> {
        let path = self.path(value)?;
        note(value, tls::revoked(&path));
        Some(path)
    }

    /// A usable file with a private key.
    pub(super) fn key(&self, value: &Value) -> Option<PathBuf> {
        let path = self.secret_path(value)?;
        note(value, tls::private_key(&path));
        warn_if_public(value, &path);
        Some(path)
    }

    /// The files of a `tls` table: certificate and key, and with `client` the authority that signs client certificates and
    /// the list of revoked ones. Together they must be usable for a server.
    pub(super) fn server_tls(&self, tls: &Table, client: bool) -> Option<TlsFiles> {
        let cert_value = tls.required("cert", "a file with the certificate chain in PEM form");
        let key_value = tls.required("key", "a file with the private key in PEM form");
        let cert = cert_value.as_ref().and_then(|cert| self.own_certificates(cert));
        let key = key_value.as_ref().and_then(|key| self.key(key));
        let ca_value = client.then(|| tls.get("client_ca")).flatten();
        let client_ca = ca_value.as_ref().and_then(|value| self.certificates(value));
        let crl_value = client.then(|| tls.get("crl")).flatten();
        let crl = crl_value.as_ref().and_then(|value| self.revoked(value));
        if let Some(value) = crl_value.as_ref().filter(|_| ca_value.is_none()) {
            value.problem("without client_ca no client shows a certificate that could be revoked");
        }
        let (cert, key) = cert.zip(key)?;
        let files = TlsFiles { cert, key, client_ca, crl, max_fragment_size: None };
        let each_is_well = tls::certificates(&files.cert).is_ok()
            && tls::private_key(&files.key).is_ok()
            && files.client_ca.as_deref().is_none_or(|path| tls::certificates(path).is_ok())
            && files.crl.as_deref().is_none_or(|path| tls::revoked(path).is_ok());
        // problems with a single file have been recorded already
        if each_is_well && let Err(error) = acceptor(&files) {
            let named = [(&ca_value, &files.client_ca), (&crl_value, &files.crl)];
            let client = named.into_iter().find(|(_, path)| path.as_deref() == Some(error.path()));
            let to_blame = match client {
                Some((value, _)) => value.as_ref(),
                None if error.path() == files.key => key_value.as_ref(),
                None => cert_value.as_ref(),
            };
            if let Some(value) = to_blame {
                value.file(&error);
            }
        }
        Some(files)
    }
}

/// Warns of a secret that everybody can read. It is used nevertheless, because it may be intended on a machine without other
/// users.
fn warn_if_public(value: &Value, path: &Path) {
    if secret::is_public(path) {
        value.warning(format!(
            "everybody on this machine can read {}; chown it to the user that pigateway runs as and chmod 600, or hand it over \
             with LoadCredential (a FAT card cannot keep it secret)",
            path.display()
        ));
    }
}

fn note<T>(value: &Value, read: Result<T, FileError>) {
    if let Err(error) = read {
        value.file(&error);
    }
}
