//! Certificates of version 1, as `openssl x509 -req` has long made them: how they are reported, and that they can be pinned.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use base64ct::{Base64, Encoding};
use rcgen::SigningKey;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::line::secured;
use crate::support::{Mosquitto, broker, free_port, http, wait_until};
use crate::{ledger, publish, start, upstream};

/// The first element of DER: its tag, its contents, and the bytes behind it.
fn element(der: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (length, begin) = match der[1] {
        length @ 0..=0x7f => (usize::from(length), 2),
        0x81 => (usize::from(der[2]), 3),
        _ => (usize::from(u16::from_be_bytes([der[2], der[3]])), 4),
    };
    let (whole, rest) = der.split_at(begin + length);
    (whole, &whole[begin..], rest)
}

fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [high, low] = (content.len() as u16).to_be_bytes();
    let length = match content.len() {
        0..=0x7f => vec![low],
        0x80..=0xff => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [vec![tag], length, content].concat()
}

/// A self-signed certificate without version and extensions, and its key.
fn version_1() -> (CertificateDer<'static>, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let (_, certificate, _) = element(made.der());
    let (_, mut signed, rest) = element(certificate);
    let (algorithm, ..) = element(rest);
    let mut kept = Vec::new();
    while !signed.is_empty() {
        let (whole, _, rest) = element(signed);
        // [0] is the version, and [3] the extensions
        if ![0xa0, 0xa3].contains(&whole[0]) {
            kept.extend_from_slice(whole);
        }
        signed = rest;
    }
    let signed = tagged(0x30, &[&kept]);
    let signature = key.sign(&signed).unwrap();
    let der = tagged(0x30, &[&signed, algorithm, &tagged(3, &[&[0], &signature])]);
    (CertificateDer::from(der), key)
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the certificate as PEM.
fn write(certificate: &CertificateDer<'_>, path: &Path) {
    let text = Base64::encode_string(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_certificate_of_version_1_is_named_and_can_be_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = version_1();
    let (cert, private) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    write(&certificate, &cert);
    std::fs::write(&private, key.serialize_pem()).unwrap();
    let secure = free_port();
    let _broker = Mosquitto::with(&format!(
        "listener {secure} 127.0.0.1\nuser root\ncertfile {}\nkeyfile {}\n",
        cert.display(),
        private.display()
    ));
    let config = |keys: &str| upstream(secure, keys).replace("mqtt://127.0.0.1", "mqtts://localhost");
    // the certificate as its own authority, as such guides recommend, and the report without an authority
    for keys in [format!("tls = {{ ca = \"{}\" }}", cert.display()), String::new()] {
        let (gateway, _) = start(&config(&keys));
        let line = gateway.wait_for_line("X.509 version 1");
        assert!(line.contains("-extfile") && line.contains("set tls.fingerprint"), "{line}");
    }
    let (gateway, http) =
        start(&config(&format!("tls = {{ fingerprint = \"sha256:{}\" }}", fingerprint(&certificate))));
    publish(&gateway, "a", &["pinned"], false);
    wait_until("it is there", || ledger(http)["acked"] == 1);
}

/// A server that shows one certificate, even an invalid one.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A server with only TLS 1.2 on this port, which passes on the first byte that it receives.
fn old_server(certificate: CertificateDer<'static>, key: &rcgen::KeyPair) -> (u16, Receiver<u8>) {
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Only(Arc::new(CertifiedKey::new(vec![certificate], key)))));
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (said, first) = channel();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket);
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() && said.send(byte[0]).is_err() {
                return;
            }
        }
    });
    (port, first)
}

#[test]
fn it_can_be_pinned_where_only_tls_1_2_is_spoken() {
    let (certificate, key) = version_1();
    let digits = fingerprint(&certificate);
    let (port, first) = old_server(certificate, &key);
    let config = upstream(port, &format!("tls = {{ fingerprint = \"sha256:{digits}\" }}"));
    let _gateway = start(&config.replace("mqtt://", "mqtts://"));
    assert_eq!(first.recv_timeout(std::time::Duration::from_secs(120)), Ok(0x10), "CONNECT");
}

/// What a balancer does with a connection.
#[derive(Clone, Copy)]
enum Balanced {
    /// It goes to the server.
    Passed,
    /// It is closed.
    Closed,
    /// It gets an answer in HTTP, without TLS.
    Unavailable,
}

/// A balancer in front of a server at a port of this machine.
struct Balancer {
    port: u16,
    /// What becomes of new connections, and those that were passed on.
    now: Arc<Mutex<(Balanced, Vec<TcpStream>)>>,
}

impl Balancer {
    fn start(server: u16) -> Balancer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = Arc::new(Mutex::new((Balanced::Passed, Vec::new())));
        let shared = now.clone();
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let mut now = shared.lock().unwrap();
                match now.0 {
                    Balanced::Passed => {
                        let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                        broker::carry_both_ways(client.try_clone().unwrap(), server);
                        now.1.push(client);
                    }
                    Balanced::Closed => drop(client.read(&mut [0; 4096])),
                    Balanced::Unavailable => {
                        let _ = client.read(&mut [0; 4096]);
                        let _ = client.write_all(b"HTTP/1.0 503 Service Unavailable\r\n\r\n");
                    }
                }
            }
        });
        Balancer { port, now }
    }

    /// Ends all connections, and treats new ones like this.
    fn set(&self, how: Balanced) {
        let mut now = self.now.lock().unwrap();
        now.0 = how;
        now.1.drain(..).for_each(|client| drop(client.shutdown(Shutdown::Both)));
    }
}

#[test]
fn after_tls_has_worked_nobody_is_told_that_the_port_is_not_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, port) = secured(dir.path(), |_| {});
    let balancer = Balancer::start(port);
    let config = upstream(balancer.port, &format!("tls = {{ ca = \"{}/server.crt\" }}", dir.path().display()));
    let (gateway, port) = start(&config.replace("mqtt://", "mqtts://"));
    publish(&gateway, "a", &["1"], false);
    wait_until("it is there", || ledger(port)["acked"] == 1);
    let shown = |key: &str| http::get(port, "/api/v1/upstreams").json()[0][key].to_string();
    for (how, expected) in
        [(Balanced::Closed, "before TLS was agreed on"), (Balanced::Unavailable, "does not answer with TLS")]
    {
        balancer.set(how);
        let is_shown = |error: &str| error.contains(expected) && error.contains("; this has worked before");
        wait_until(expected, || is_shown(&shown("last_error")));
        balancer.set(Balanced::Passed);
        wait_until("it works again", || shown("state").contains("connected"));
    }
    gateway.wait_for_line("does not answer with TLS");
    let is_loud = |line: &String| [" ERROR ", " WARN ", "begins with"].iter().any(|word| line.contains(word));
    let loud: Vec<String> = gateway.log().into_iter().filter(is_loud).collect();
    assert_eq!(loud, [""; 0]);
}
