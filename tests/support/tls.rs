//! Certificates and TLS clients.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::{Client, ConnAck, Connect};

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub struct Identity {
    /// Certificate.
    pub cert: String,
    /// Key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate for a server on this host or for a client with this common name.
    pub fn sign(&self, common_name: &str) -> Identity {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate").pem();
        Identity { cert, key: key.serialize_pem() }
    }

    /// The same with this serial number, by which it can be revoked.
    pub fn sign_numbered(&self, common_name: &str, number: u64) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(number));
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate").pem();
        Identity { cert, key: key.serialize_pem() }
    }

    /// A list of revoked certificates with these serial numbers.
    pub fn revoke(&self, numbers: &[u64]) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2045, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).expect("a list").pem().expect("PEM")
    }

    /// Writes the files of a TLS listener into a directory: ca.crt, server.crt, server.key.
    pub fn write_server_files(&self, dir: &Path) {
        let server = self.sign("localhost");
        for (name, text) in [("ca.crt", &self.pem()), ("server.crt", &server.cert), ("server.key", &server.key)] {
            std::fs::write(dir.join(name), text).expect("a file");
        }
    }
}

/// The authority that a TLS client trusts, and the certificate that it shows.
pub fn client_config(authority: &Authority, identity: Option<&Identity>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let cert = CertificateDer::from_pem_slice(identity.cert.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![cert], key).expect("an identity")
        }
    })
}

/// Connects over TLS.
#[track_caller]
pub fn open(connect: &Connect, port: u16, config: Arc<ClientConfig>) -> (Client, ConnAck) {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port is open");
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(config, name).expect("a TLS client");
    let stream = StreamOwned::new(connection, socket.try_clone().expect("a second handle"));
    connect.try_over(Box::new(stream), socket)
}

/// A TLS client over any stream.
pub fn over<S: std::io::Read + std::io::Write>(
    stream: S,
    config: Arc<ClientConfig>,
) -> StreamOwned<ClientConnection, S> {
    let name = ServerName::try_from("localhost").expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a TLS client"), stream)
}

/// Whether the server ends the handshake, or the connection right after it.
pub fn is_turned_away(port: u16, config: Arc<ClientConfig>) -> bool {
    use std::io::Write;

    use super::ReadSome;
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port is open");
    socket.set_read_timeout(Some(super::PATIENCE)).expect("an open socket");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).expect("a TLS client"), socket);
    let sent = stream.write_all(&Connect::new("a").encode());
    sent.is_err() || !stream.read_some(&mut [0; 4]).is_ok_and(|count| count > 0)
}
