//! Tests of TLS with a real mosquitto: what works, and the messages if it does not.

use super::real::{Mosquitto, free_port};
use super::*;
use crate::upstream::client::RemoteClient;
use crate::upstream::settings::UpstreamTls;

/// A directory with an authority, and with certificates for a server with these names and for a client.
fn certificates(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    // the default name is the same for all certificates, which would look self-signed to OpenSSL
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, key);
    std::fs::write(file("ca.crt"), authority_pem).unwrap();
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(file(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_trusts_the_given_authority_and_shows_a_certificate() {
    let dir = certificates(&["127.0.0.1", "localhost"]);
    let file = |name: &str| dir.path().join(name);
    let port = free_port();
    let at = dir.path().display();
    let extra = format!(
        "user root\ncafile {at}/ca.crt\ncertfile {at}/server.crt\nkeyfile {at}/server.key\nrequire_certificate true"
    );
    let _broker = Mosquitto::start(dir.path(), port, &extra).await;
    let mut configured = settings(&[&format!("mqtts://127.0.0.1:{port}")]);
    let stranger = Running::start(configured.clone(), TestDoor::default(), RemoteClient::new(256 << 10));
    let mut stranger = stranger;
    stranger.until("a refusal", |snapshot| snapshot.last_error.is_some()).await;
    stranger.stop().await;
    let files = UpstreamTls {
        ca: Some(file("ca.crt")),
        cert: Some(file("client.crt")),
        key: Some(file("client.key")),
        ..UpstreamTls::default()
    };
    configured.tls = Some(files);
    let mut running = Running::start(configured, TestDoor::default(), RemoteClient::new(256 << 10));
    running.append("loft/a", "1");
    running.until("an ack", |snapshot| snapshot.ledger.acked == 1).await;
    running.stop().await;
}

/// The message of an upstream with this address and authority about its first attempt.
async fn complaint(address: &str, ca: Option<std::path::PathBuf>) -> String {
    let mut configured = settings(&[address]);
    configured.tls = Some(UpstreamTls { ca, ..UpstreamTls::default() });
    let mut running = Running::start(configured, TestDoor::default(), RemoteClient::new(256 << 10));
    let snapshot = running.until("a failure", |snapshot| snapshot.last_error.is_some()).await;
    running.stop().await;
    snapshot.last_error.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_with_what_to_do() {
    let dir = certificates(&["localhost"]);
    let (ca, at) = (dir.path().join("ca.crt"), dir.path().display().to_string());
    let (secure, plain) = (free_port(), free_port());
    let extra = format!("user root\ncafile {at}/ca.crt\ncertfile {at}/server.crt\nkeyfile {at}/server.key");
    let _secure = Mosquitto::start(dir.path(), secure, &extra).await;
    let other = tempfile::tempdir().unwrap();
    let _plain = Mosquitto::start(other.path(), plain, "").await;
    let stranger = certificates(&["localhost"]).path().join("ca.crt");
    for (address, ca, expected) in [
        (format!("mqtts://localhost:{secure}"), None, "set tls.ca"),
        (format!("mqtts://127.0.0.1:{secure}"), Some(&ca), "for another host name"),
        (format!("mqtt://127.0.0.1:{secure}"), None, "begins with mqtts://"),
        (format!("mqtts://127.0.0.1:{plain}"), Some(&ca), "begins with mqtt://"),
        (format!("mqtts://127.0.0.1:{plain}"), Some(&stranger), "No such file"),
    ] {
        let complaint = complaint(&address, ca.cloned()).await;
        assert!(complaint.contains(expected), "{address}: {complaint}");
        println!("{address}: {complaint}");
    }
}
