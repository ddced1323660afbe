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
                let reason = |error: rustls::Error| TlsError::File { path: path.into(), reason: error.to_string() };
                roots.add(certificate).map_err(reason)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(error.to_string()))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| TlsError::File { path: key.into(), reason: error.to_string() })?;
    let config = builder.with_single_cert(certificates(cert)?, key).map_err(|error| unusable(error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The common name of a client certificate's subject.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.into())
}
