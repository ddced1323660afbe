//! TLS for upstreams: rustls with ring, with the system's roots or a given authority, and with a client certificate if
//! configured.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::approach::Past;
use super::settings::{Scheme, UpstreamTls};
use super::wire::{BeginStep, Broken};
use crate::secret::sha256;
use crate::tls::chains::{self, ServerChains};
use crate::tls::{authorities, blame, certificates, private_key};

/// Reads the files, which blocks. They are read for every connection, so that a renewed certificate is used at once.
pub(crate) fn client_config(files: &UpstreamTls, is_web_socket: bool) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match files.fingerprint {
        Some(fingerprint) => {
            let verifier = Arc::new(Pinned { fingerprint, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        }
        None => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(files)?), provider).build();
            let verifier = verifier.map_err(|error| error.to_string())?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerChains(verifier)))
        }
    };
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let (chain, private) = certificates(cert)
                .and_then(|chain| Ok((chain, private_key(key)?)))
                .map_err(|error| error.to_string())?;
            builder.with_client_auth_cert(chain, private).map_err(|error| blame(cert, key, error).to_string())?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = files.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    if is_web_socket && config.alpn_protocols.is_empty() {
        // a server that supports HTTP/2 must not choose it
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    Ok(Arc::new(config))
}

fn roots(files: &UpstreamTls) -> Result<RootCertStore, String> {
    if let Some(path) = &files.ca {
        return authorities(path).map_err(|error| error.to_string());
    }
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    // a certificate of the system that cannot be read does not affect the others
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        return Err("no certificate authority in the system: set tls.ca, or install ca-certificates".into());
    }
    Ok(roots)
}

/// The meaning of a failure of the network or of TLS.
pub(super) fn broken_io(error: &io::Error) -> Broken {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, PermissionDenied, TimedOut, UnexpectedEof};
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return broken(error);
    }
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Broken::Closed,
        TimedOut => Broken::Silent,
        // by a firewall, or by the service's own limits
        PermissionDenied => Broken::Lasting(format!("this machine does not allow the connection: {error}")),
        _ => Broken::Failed(error.to_string()),
    }
}

/// The meaning of a failure of TLS. What certificates and settings are the reason for does not go away by itself.
fn broken(error: &rustls::Error) -> Broken {
    use AlertDescription::{
        BadRecordMac, CloseNotify, DecodeError, DecryptError, InternalError, RecordOverflow, UserCanceled,
    };
    use CertificateError::{NotValidYet, NotValidYetContext};
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, NoApplicationProtocol, PeerIncompatible};
    let words = in_words(error);
    match error {
        InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => Broken::NotYetValid(words),
        AlertReceived(
            BadRecordMac | CloseNotify | DecodeError | DecryptError | InternalError | RecordOverflow | UserCanceled,
        ) => Broken::Failed(words),
        InvalidMessage(_) => Broken::OtherThan(BeginStep::Tls, format!("it does not answer with TLS ({error})")),
        AlertReceived(_) | InvalidCertificate(_) | NoApplicationProtocol | PeerIncompatible(_) => {
            Broken::Lasting(words)
        }
        _ => Broken::Failed(words),
    }
}

/// The problem in words, with what to do about it, for somebody of whom nothing is known from before. It stays the same while
/// its cause does, so it has no present time.
pub(crate) fn in_words(error: &rustls::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, NoApplicationProtocol};
    if let AlertReceived(alert) = error
        && let Some(advice) = about_ours(*alert)
    {
        return format!("{advice} ({error})");
    }
    if let Some(why) = chains::too_long(error) {
        return format!("its certificate is not accepted, because it comes with {why}");
    }
    let advice = match error {
        InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the authority that signed its certificate is not known here: set tls.ca to that authority's certificate, or \
             tls.fingerprint to this one's"
        }
        InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) if presented.is_empty() => {
            "its certificate names no host in subjectAltName, and the common name does not count: make one with \
             -addext subjectAltName=DNS:NAME, or set tls.fingerprint"
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "its certificate is for another host name: use a name in addresses that the certificate has, or set \
             tls.server_name to it"
        }
        InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            return format!("its certificate is not valid since {}: {RENEWED}", time(*not_after));
        }
        InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            return format!("its certificate is not valid before {}: {RENEWED}", time(*not_before));
        }
        // of some certificates rustls does not tell the time
        InvalidCertificate(CertificateError::Expired) => return format!("its certificate has expired: {RENEWED}"),
        InvalidCertificate(CertificateError::NotValidYet) => {
            return format!("its certificate is not valid yet: {RENEWED}");
        }
        InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            "its certificate is not the one of tls.fingerprint: has it been renewed, or is somebody in between?"
        }
        AlertReceived(AlertDescription::NoApplicationProtocol) | NoApplicationProtocol => {
            "it does not take the protocols of tls.alpn"
        }
        AlertReceived(AlertDescription::UnrecognisedName) => {
            "it does not know the host name: is tls.server_name, or the name in addresses, right?"
        }
        InvalidMessage(_) => "it does not speak TLS on this port: a plain port's address begins with mqtt:// or ws://",
        _ => return format!("TLS: {error}{}", self_made(&error.to_string())),
    };
    format!("{advice} ({error})")
}

/// What an alert of the other side says about our certificate, or that it wants one, with what to do.
fn about_ours(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as Alert;
    Some(match alert {
        Alert::CertificateRequired => "it asks for a client certificate: set tls.cert and tls.key",
        Alert::UnknownCA => {
            "it does not know the authority that signed our certificate: have it signed by one that it trusts, and set \
             tls.cert to that, with those in between"
        }
        Alert::CertificateExpired => {
            "our certificate has expired, it says: renew the file of tls.cert, or set the clock there"
        }
        Alert::CertificateRevoked => {
            "our certificate has been revoked, it says: have a new one made, and set tls.cert and tls.key to it"
        }
        Alert::CertificateUnknown => {
            "it does not accept our certificate: is it registered and active there, and is the file of tls.cert the right one?"
        }
        Alert::BadCertificate | Alert::UnsupportedCertificate => "it does not accept our certificate: see tls.cert",
        Alert::AccessDenied => {
            "it does not let our certificate in: see tls.cert, and what that certificate may do there"
        }
        Alert::HandshakeFailure => {
            "it agrees to none of our ways of TLS: if it asks for a client certificate, set tls.cert and tls.key"
        }
        _ => return None,
    })
}

const RENEWED: &str = "is it renewed, and is this machine's clock right?";

fn time(at: UnixTime) -> String {
    let second = i64::try_from(at.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok());
    second.map_or_else(|| at.as_secs().to_string(), |time| time.to_string())
}

/// Advice about certificates that were made by hand, to be appended to the error.
fn self_made(error: &str) -> &'static str {
    if error.contains("UnsupportedCertVersion") {
        ". The certificate is X.509 version 1, which `openssl x509 -req` makes unless it is told otherwise: make it version 3 \
         with -extfile, or set tls.fingerprint"
    } else if error.contains("CaUsedAsEndEntity") {
        ". The certificate is that of an authority (CA:TRUE), used as that of a server: sign another with it and set tls.ca, \
         or set tls.fingerprint"
    } else {
        ""
    }
}

/// Accepts only the certificate with this fingerprint. The possession of its key is checked as always.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// Checks the signature by the key alone, so that certificates of version 1 are accepted too.
    fn by_key(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let bad = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|_| bad)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if sha256(end_entity) == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        // for a certificate of version 1, by the key alone
        verify_tls12_signature(message, cert, dss, known)
            .or_else(|error| self.by_key(message, cert, dss).map_err(|_| error))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_key(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The likely reason why an upstream does not answer as expected, which fits what has worked there before.
pub(super) fn hint(scheme: Scheme, why: &Broken, past: Past) -> Option<&'static str> {
    use Broken::{Closed, Garbled, NotBegun, OtherThan, Unresolved};
    match (scheme, why) {
        (_, Unresolved(_)) => Some(RESOLVE),
        (_, NotBegun(..) | OtherThan(..)) if past.has_begun => Some(WORKED),
        (_, Garbled) if past.has_worked => Some(WORKED),
        _ if past.has_worked => None,
        (_, NotBegun(BeginStep::HttpProxy, _)) => Some("is it an HTTP proxy?"),
        (_, NotBegun(BeginStep::Socks5, _)) => Some("is it a SOCKS5 proxy?"),
        (Scheme::Mqtts, NotBegun(BeginStep::Tls, _) | OtherThan(BeginStep::Tls, _)) => {
            Some("if this port is not for TLS, its address begins with mqtt://")
        }
        (Scheme::Wss, NotBegun(BeginStep::Tls, _) | OtherThan(BeginStep::Tls, _)) => {
            Some("if this port is not for TLS, its address begins with ws://")
        }
        (Scheme::Mqtt, Closed | Garbled) => Some("if this port is for TLS, its address begins with mqtts://"),
        (Scheme::Mqtts | Scheme::Wss, Closed) => {
            Some("TLS works; it may be that it does not accept client_id, username, password or the certificate")
        }
        (Scheme::Ws, Closed) => Some("it may be that it does not accept client_id, username or password"),
        _ => None,
    }
}

/// The hint where a name leads to no address. A name that never worked may be wrong, and a resolver that has worked may not.
const RESOLVE: &str = "is the name right, and does this machine reach a name server? `getent hosts NAME`, `resolvectl status` and \
                       /etc/resolv.conf tell; an IP address in addresses needs none";

/// The hint where it has been different.
const WORKED: &str = "this has worked before: is it being restarted, or is a balancer without a server in front of it?";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_certificate_is_refused_is_said_and_what_to_do() {
        use AlertDescription as Alert;
        for error in [CertificateError::Expired, CertificateError::NotValidYet] {
            let why = broken_io(&io::Error::other(rustls::Error::InvalidCertificate(error))).to_string();
            assert!(why.starts_with("its certificate") && why.contains("clock"), "{why}");
        }
        for (alert, expected) in [
            (Alert::CertificateExpired, "our certificate has expired"),
            (Alert::CertificateRevoked, "our certificate has been revoked"),
            (Alert::CertificateUnknown, "our certificate: is it registered"),
            (Alert::BadCertificate, "our certificate: see"),
            (Alert::UnsupportedCertificate, "our certificate: see"),
            (Alert::UnknownCA, "the authority that signed our certificate"),
            (Alert::AccessDenied, "our certificate in"),
            (Alert::HandshakeFailure, "a client certificate"),
            (Alert::CertificateRequired, "a client certificate"),
        ] {
            let why = broken_io(&io::Error::other(rustls::Error::AlertReceived(alert)));
            let Broken::Lasting(words) = &why else { panic!("{why:?}") };
            assert!(words.contains(expected) && words.contains("tls.cert"), "{alert:?}: {words}");
        }
    }

    #[test]
    fn no_hint_contradicts_what_has_worked() {
        let broken = |error: rustls::Error| broken_io(&io::Error::other(error));
        let not_tls = broken(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
        let closed = |step| Broken::NotBegun(step, "it closed the connection".into());
        let other = |step| Broken::OtherThan(step, "what it says is not HTTP".into());
        let never = Past::default();
        let begun = Past { has_begun: true, has_worked: false };
        let worked = Past { has_begun: true, has_worked: true };
        assert!(!not_tls.to_string().contains("mqtt://"), "{not_tls}");
        for (scheme, why, expected) in [
            (Scheme::Mqtts, not_tls.clone(), Some("begins with mqtt://")),
            (Scheme::Mqtts, closed(BeginStep::Tls), Some("begins with mqtt://")),
            (Scheme::Wss, closed(BeginStep::Tls), Some("begins with ws://")),
            (Scheme::Wss, not_tls, Some("begins with ws://")),
            (Scheme::Ws, closed(BeginStep::WebSocket), None),
            (Scheme::Ws, other(BeginStep::WebSocket), None),
            (Scheme::Mqtt, closed(BeginStep::HttpProxy), Some("an HTTP proxy?")),
            (Scheme::Mqtt, closed(BeginStep::Socks5), Some("a SOCKS5 proxy?")),
            (Scheme::Mqtt, Broken::Closed, Some("begins with mqtts://")),
            (Scheme::Mqtt, Broken::Garbled, Some("begins with mqtts://")),
            (Scheme::Mqtts, Broken::Closed, Some("TLS works")),
        ] {
            let hints = [never, begun, worked].map(|past| hint(scheme, &why, past));
            let is_as_expected = match expected {
                Some(text) => hints[0].is_some_and(|hint| hint.contains(text)),
                None => hints[0].is_none(),
            };
            assert!(is_as_expected, "{why:?}: {hints:?}");
            let is_before_mqtt = matches!(why, Broken::NotBegun(..) | Broken::OtherThan(..));
            assert_eq!(hints[1], if is_before_mqtt { Some(WORKED) } else { hints[0] }, "{why:?}");
            let is_closed = why == Broken::Closed;
            assert_eq!(hints[2], (!is_closed).then_some(WORKED), "{why:?}");
        }
        for why in [Broken::Silent, Broken::Version, Broken::Lasting("its certificate is expired".into())] {
            assert_eq!(hint(Scheme::Mqtts, &why, worked), None);
        }
    }
}
