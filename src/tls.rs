//! TLS for ports: the broker's listeners and HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

/// What is wrong with the files of a TLS listener.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read or has no PEM section of the kind needed.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not make a server.
    #[error("{cert}: {reason}")]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl TlsError {
    /// The file that is to blame.
    pub fn path(&self) -> &Path {
        match self {
            TlsError::File { path, .. } => path,
            TlsError::Unusable { cert, .. } => cert,
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |reason: String| TlsError::File { path: path.into(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| file(e.to_string()))?.collect();
    let found = found.map_err(|error| file(error.to_string()))?;
    if found.is_empty() { Err(file("no certificate in it (PEM is expected)".into())) } else { Ok(found) }
}

/// Makes an acceptor of certificate chain, key and, if clients are to show a certificate, the authorities that sign those.
pub fn acceptor(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<TlsAcceptor, TlsError> {
    let unusable = |reason: String| TlsError::Unusable { cert: cert.into(), reason };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| {
                    let error = error.to_string();
                    TlsError::File { path: path.into(), reason: format!("{error}{}", version_hint(&error)) }
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(error.to_string()))?)
        }
    };
    let wrong_key = |reason: String| TlsError::File { path: key.into(), reason };
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong_key(error.to_string()))?;
    let config = builder.with_single_cert(certificates(cert)?, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong_key(format!("this key does not belong to the certificate in {}", cert.display()))
        }
        // what the key's reader says
        rustls::Error::General(reason) => wrong_key(reason),
        error => {
            let error = error.to_string();
            unusable(format!("{error}{}", version_hint(&error)))
        }
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The common name of a client certificate's subject.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
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

/// What most likely is behind a failed handshake, to be put after the error; empty where the error says enough.
pub fn handshake_hint(error: &str) -> &'static str {
    let causes = [
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
