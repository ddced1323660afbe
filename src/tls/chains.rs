//! Verifiers of certificates that refuse long chains before any signature in them is checked.
//!
//! Whoever shows a chain of its own making decides how much work it is: the certificates may all have one name, and then each
//! may have signed each other one, so that the number of signatures to check grows with the factorial of their number. Real
//! chains have one to three intermediate certificates, and careless servers send the root too.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

/// The most intermediate certificates of a chain.
const MOST: usize = 5;

/// A chain has more intermediate certificates than are looked at.
#[derive(Debug, thiserror::Error)]
#[error("{0} intermediate certificates, more than the {MOST} that are looked at")]
pub(crate) struct ChainTooLong(usize);

/// The reason for this failure, if it is the length of a chain.
pub(crate) fn too_long(error: &Error) -> Option<&ChainTooLong> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

fn check(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    match intermediates.len() {
        0..=MOST => Ok(()),
        count => {
            let error = OtherError(Arc::new(ChainTooLong(count)));
            Err(Error::InvalidCertificate(CertificateError::Other(error)))
        }
    }
}

/// Checks certificates of clients.
pub(crate) struct ClientChains(pub(crate) Arc<dyn ClientCertVerifier>);

impl fmt::Debug for ClientChains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ClientCertVerifier for ClientChains {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check(intermediates)?;
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Checks certificates of upstreams.
#[derive(Debug)]
pub(crate) struct ServerChains(pub(crate) Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ServerChains {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check(intermediates)?;
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::crypto::ring::default_provider;
    use rustls::server::WebPkiClientVerifier;

    use super::*;

    #[test]
    fn long_chains_are_refused_before_they_are_read() {
        let authority = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.cert.der().clone()).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(default_provider()));
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
        let (clients, servers) = (ClientChains(clients), ServerChains(servers));
        let (garbage, name) = (CertificateDer::from(vec![0]), ServerName::try_from("host").unwrap());
        for (count, words) in [(MOST, "BadEncoding"), (MOST + 1, "ChainTooLong(6)")] {
            let chain = vec![garbage.clone(); count];
            let now = UnixTime::now();
            let from_client = clients.verify_client_cert(&garbage, &chain, now).unwrap_err();
            let from_server = servers.verify_server_cert(&garbage, &chain, &name, &[], now).unwrap_err();
            for error in [from_client, from_server] {
                assert_eq!(too_long(&error).is_some(), count > MOST);
                assert!(format!("{error:?}").contains(words), "{error:?}");
            }
        }
    }
}
