//! TLS: reads certificates and keys, and makes the acceptors of ports from them.

pub(crate) mod chains;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use self::chains::ClientChains;
use crate::secret::{self, FileError};

/// Files of a port with TLS, all in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, with the server's own certificate first.
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// The authorities that sign client certificates. If it is given, clients must show a certificate.
    pub(crate) client_ca: Option<PathBuf>,
    /// The list of revoked client certificates.
    pub(crate) crl: Option<PathBuf>,
    /// The largest record that is written, in bytes with its header; `None` means the limit of TLS.
    pub(crate) max_fragment_size: Option<usize>,
}

/// The most bytes that header, nonce and tag add to a record: those of TLS 1.2 with AES-GCM, which needs most of the
/// supported versions.
const RECORD_OVERHEAD: usize = 5 + 8 + 16;
/// The bytes that rustls includes in its limit for a fragment.
const RECORD_HEAD: usize = 5;

/// The properties of files by which a change is noticed: time, size and inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamps(Vec<Option<(SystemTime, u64, u64)>>);

impl TlsFiles {
    /// The present properties; links are followed.
    pub(crate) fn stamps(&self) -> Stamps {
        let stamp = |path: &PathBuf| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.modified().ok()?, about.len(), about.ino()))
        };
        Stamps([&self.cert, &self.key].into_iter().chain(&self.client_ca).chain(&self.crl).map(stamp).collect())
    }

    /// Makes an acceptor from the files.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, FileError> {
        acceptor(self)
    }
}

/// Reads the certificates in a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = secret::contents(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.unwrap_or_default();
    if found.is_empty() { Err(FileError::unusable(path, "has no certificate in PEM form")) } else { Ok(found) }
}

pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = secret::contents(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| FileError::unusable(path, "has no private key in PEM form"))
}

/// Reads the certificates of authorities in a file.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            let error = error.to_string();
            FileError::unusable(path, format!("will not do: {error}{}", version_hint(&error)))
        })?;
    }
    Ok(roots)
}

/// Decides which of certificate and key is not usable, and why.
pub(crate) fn blame(cert: &Path, key: &Path, error: rustls::Error) -> FileError {
    match error {
        rustls::Error::InconsistentKeys(_) => FileError::unusable(
            key,
            format!("will not do: this key does not belong to the certificate in {}", cert.display()),
        ),
        // the message of the key's reader
        rustls::Error::General(reason) => FileError::unusable(key, format!("will not do: {reason}")),
        error => {
            let error = error.to_string();
            FileError::unusable(cert, format!("will not do: {error}{}", version_hint(&error)))
        }
    }
}

/// Reads the lists of revoked certificates in a file, at least one.
pub(crate) fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let text = secret::contents(path)?;
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    let found = found.unwrap_or_default();
    if found.is_empty() {
        Err(FileError::unusable(path, "has no list of revoked certificates in PEM form"))
    } else {
        Ok(found)
    }
}

/// Makes an acceptor from certificate chain and key, and, if clients must show a certificate, from the authorities that sign
/// it.
pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, FileError> {
    let (cert, key) = (files.cert.as_path(), files.key.as_path());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| blame(cert, key, error))?;
    let builder = match files.client_ca.as_deref() {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider);
            if let Some(crl) = &files.crl {
                // like OpenSSL's X509_V_FLAG_CRL_CHECK: only the client's own certificate is checked, and its issuer must
                // have a list
                verifier = verifier.with_crls(revoked(crl)?).only_check_end_entity_revocation();
            }
            let to_blame = files.crl.as_deref().unwrap_or(path);
            let verifier = verifier.build().map_err(|error| FileError::unusable(to_blame, error.to_string()))?;
            builder.with_client_cert_verifier(Arc::new(ClientChains(verifier)))
        }
    };
    let config = builder.with_single_cert(certificates(cert)?, private_key(key)?);
    let mut config = config.map_err(|error| blame(cert, key, error))?;
    config.max_fragment_size = files.max_fragment_size.map(|most| most - RECORD_OVERHEAD + RECORD_HEAD);
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The words for a certificate, the first in a file, that has expired by this machine's clock. A file that cannot be read is
/// another problem. A certificate that is not valid yet is none, because the clock of a Pi may not be set yet.
pub(crate) fn expired(path: &Path) -> Option<String> {
    let chain = certificates(path).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    let validity = certificate.validity();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let now = i64::try_from(now).ok()?;
    if validity.not_after.timestamp() < now {
        return Some(format!("the certificate is not valid since {}: renew it", validity.not_after));
    }
    None
}

/// The common name in the subject of a client certificate.
pub(crate) fn common_name(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.into())
}

fn version_hint(error: &str) -> &'static str {
    if error.contains("UnsupportedCertVersion") {
        ". The certificate is X.509 version 1, which `openssl x509 -req` makes unless it is told otherwise; make it version 3 \
         with -extfile"
    } else {
        ""
    }
}

/// The likely reason for a failed handshake, to be appended to the error; empty if the error is clear.
pub(crate) fn handshake_hint(error: &str) -> &'static str {
    let causes = [
        ("ChainTooLong", ". The client shows more intermediate certificates than are looked at"),
        (
            "no certificates",
            ". The listener has client_ca: the client must show a certificate that this authority has signed",
        ),
        (
            "InvalidContentType",
            ". Most likely a client that does not speak TLS: let it use TLS, or a listener without `tls`",
        ),
        (
            "received fatal alert",
            ". The client refuses the certificate of this gateway: does it know the authority that has signed it, and is the \
             name in it the one that it connects to?",
        ),
        ("Revoked", ". The certificate of the client stands in the crl of the listener"),
        (
            "UnknownRevocationStatus",
            ". The crl of the listener has no list of the authority that has signed the certificate of the client",
        ),
        (
            "UnknownIssuer",
            ". The certificate of the client is not signed by the authority in client_ca of the listener",
        ),
    ];
    match causes.iter().find(|(part, _)| error.contains(part)) {
        Some((_, hint)) => hint,
        None => version_hint(error),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError};

    use super::*;

    #[test]
    fn usual_failures_have_a_hint() {
        let version = OtherError(Arc::new(std::io::Error::other("UnsupportedCertVersion")));
        for (error, part) in [
            (Error::NoCertificatesPresented, "client_ca"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "refuses the certificate"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "client_ca"),
            (Error::InvalidCertificate(CertificateError::Other(version)), "-extfile"),
        ] {
            let hint = handshake_hint(&error.to_string());
            assert!(hint.contains(part), "{error}: {hint}");
        }
        assert_eq!(handshake_hint("tls handshake eof"), "");
    }
}
