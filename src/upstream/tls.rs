//! TLS towards an upstream: rustls with ring, the system's roots or a given authority, a client certificate if there is one.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::settings::UpstreamTls;

/// Reads the files, which blocks. They are read for every connection, so a renewed certificate is used at once.
pub(super) fn client_config(files: &UpstreamTls) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match &files.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            // a certificate of the system that cannot be read does not spoil the others
            roots.add_parsable_certificates(system.certs);
        }
    }
    if roots.is_empty() {
        let what = files.ca.as_ref().map_or("the system".to_owned(), |path| path.display().to_string());
        return Err(format!("no certificate authority in {what}: set tls.ca, or install ca-certificates"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|error| format!("{}: {error}", cert.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| format!("{}: {error}", path.display()))
}
