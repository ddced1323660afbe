//! TLS towards an upstream: rustls with ring, the system's roots or a given authority, a client certificate if there is one.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::settings::{Scheme, UpstreamTls};
use super::wire::Broken;
use crate::tls::{authorities, blame, certificates, private_key};

/// Reads the files, which blocks. They are read for every connection, so a renewed certificate is used at once.
pub fn client_config(files: &UpstreamTls) -> Result<Arc<ClientConfig>, String> {
    let roots = match &files.ca {
        Some(path) => authorities(path).map_err(|error| error.to_string())?,
        None => {
            let mut roots = RootCertStore::empty();
            let system = rustls_native_certs::load_native_certs();
            // a certificate of the system that cannot be read does not spoil the others
            roots.add_parsable_certificates(system.certs);
            roots
        }
    };
    if roots.is_empty() {
        return Err("no certificate authority in the system: set tls.ca, or install ca-certificates".into());
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let (chain, private) = certificates(cert)
                .and_then(|chain| Ok((chain, private_key(key)?)))
                .map_err(|error| error.to_string())?;
            builder.with_client_auth_cert(chain, private).map_err(|error| blame(cert, key, error).to_string())?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// What a failure of the network or of TLS means.
pub(super) fn broken_io(error: &io::Error) -> Broken {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Broken::Failed(in_words(error));
    }
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Broken::Closed,
        TimedOut => Broken::Silent,
        _ => Broken::Failed(error.to_string()),
    }
}

/// What is wrong, and what to do about it.
pub fn in_words(error: &rustls::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    let advice = match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the authority that signed its certificate is not known here: set tls.ca to that authority's certificate"
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "its certificate is for another host name: use a name in addresses that the certificate has"
        }
        InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid today: is it renewed, and is this machine's clock right?",
        AlertReceived(AlertDescription::CertificateRequired) => {
            "it asks for a client certificate: set tls.cert and tls.key"
        }
        AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
            "it does not accept our certificate: see tls.cert"
        }
        InvalidMessage(_) => "it does not speak TLS on this port: a plain port's address begins with mqtt://",
        _ => return format!("TLS: {error}"),
    };
    format!("{advice} ({error})")
}

/// What may be wrong with an address where nothing answers in MQTT.
pub(super) fn hint(scheme: Scheme, why: &Broken) -> Option<&'static str> {
    match (scheme, why) {
        (Scheme::Mqtt, Broken::Closed | Broken::Garbled) => {
            Some("if this port is for TLS, its address begins with mqtts://")
        }
        (Scheme::Mqtts, Broken::Closed) => Some("if this port is not for TLS, its address begins with mqtt://"),
        _ => None,
    }
}
