//! Checks upstreams: name resolution, connection and TLS for each of their addresses.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ProtocolVersion};

use super::DoctorFinding;
use crate::config::Settings;
use crate::upstream::reach::reach;
use crate::upstream::settings::{UpstreamAddress, UpstreamSettings};
use crate::upstream::tls::{client_config, in_words};

/// The longest wait for each step.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait for what follows the handshake. A server on the other side of the world tells it within a second.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// The findings about every address of every upstream. The addresses are checked at the same time.
pub(super) fn all(settings: &Settings) -> Vec<DoctorFinding> {
    thread::scope(|scope| {
        let asked =
            settings.upstreams.iter().flat_map(|upstream| upstream.addresses.iter().map(move |at| (upstream, at)));
        let asked: Vec<_> = asked.map(|(upstream, at)| scope.spawn(move || address(upstream, at))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn address(upstream: &UpstreamSettings, at: &UpstreamAddress) -> DoctorFinding {
    let name = &upstream.name;
    if upstream.proxy.is_some() || at.scheme.is_web_socket() {
        return as_a_gateway(upstream, at);
    }
    let addresses = match resolve(&at.host, at.port) {
        Ok(addresses) => addresses,
        Err(error) => {
            return DoctorFinding::problem(
                format!("upstream {name}: {} cannot be resolved: {error}", at.host),
                "correct the name, or see to DNS: `getent hosts NAME`, /etc/resolv.conf",
            );
        }
    };
    let mut stream = Err(io::Error::other("no address"));
    for address in addresses {
        stream = TcpStream::connect_timeout(&address, PATIENCE);
        if stream.is_ok() {
            break;
        }
    }
    match stream {
        Err(error) => DoctorFinding::problem(
            format!("upstream {name}: {at}: {error}"),
            "is the broker running, and does a firewall let this machine through?",
        ),
        Ok(stream) if at.scheme.is_tls() => tls(upstream, at, stream),
        Ok(_) => DoctorFinding::good(format!("upstream {name}: {at} answers")),
    }
}

/// The finding about an upstream that is connected to as a gateway does, up to where MQTT begins: behind a proxy or by
/// WebSocket.
fn as_a_gateway(upstream: &UpstreamSettings, at: &UpstreamAddress) -> DoctorFinding {
    let name = &upstream.name;
    let (by, keys) = match (&upstream.proxy, at.scheme.is_web_socket()) {
        (Some(proxy), _) => (format!(" through proxy {proxy}"), "proxy, addresses and tls"),
        (None, true) => (" by WebSocket".to_owned(), "addresses and tls"),
        (None, false) => (String::new(), "addresses and tls"),
    };
    match reach(upstream, at) {
        Ok(()) => DoctorFinding::good(format!("upstream {name}: {at} answers{by}")),
        Err(why) => {
            DoctorFinding::problem(format!("upstream {name}: {at}: {why}"), format!("see {keys} of this upstream"))
        }
    }
}

/// Resolves a name with a time limit, because the system's resolver has none of its own.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let target = (host.to_owned(), port);
    thread::spawn(move || {
        let addresses = target.to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>);
        // the receiver may have given up
        let _ = sender.send(addresses);
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(Ok(_)) => Err("the name has no address".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("nobody answers within 5 s".into()),
    }
}

/// Waits for what TLS 1.3 tells after the handshake: tickets if our certificate, or that there is none, is accepted, and an
/// alert if not. A server may also say nothing until it gets CONNECT.
fn hear_of_ours(connection: &mut ClientConnection, stream: &mut TcpStream) -> io::Result<()> {
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return Ok(());
    }
    stream.set_read_timeout(Some(AFTERWARDS))?;
    match connection.read_tls(stream) {
        Ok(0) => Err(io::Error::other("it closed the connection after the handshake: does it accept our certificate?")),
        Ok(_) => connection.process_new_packets().map(drop).map_err(io::Error::other),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error),
    }
}

fn tls(upstream: &UpstreamSettings, at: &UpstreamAddress, mut stream: TcpStream) -> DoctorFinding {
    let name = &upstream.name;
    let problem =
        |what: String| DoctorFinding::problem(format!("upstream {name}: {at}: {what}"), "see tls of this upstream");
    let files = upstream.tls.clone().unwrap_or_default();
    let config = match client_config(&files, at.scheme.is_web_socket()) {
        Ok(config) => config,
        Err(error) => return problem(error),
    };
    let Ok(server) = ServerName::try_from(files.server_name.unwrap_or_else(|| at.host.clone())) else {
        return problem("its name is not one that a certificate can have".into());
    };
    let mut connection = match ClientConnection::new(config, server) {
        Ok(connection) => connection,
        Err(error) => return problem(in_words(&error)),
    };
    let patience = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    let done = patience.and_then(|()| {
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        hear_of_ours(&mut connection, &mut stream)
    });
    match done {
        Ok(()) => DoctorFinding::good(format!("upstream {name}: {at} answers with TLS, and its certificate is good")),
        Err(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => problem(in_words(error)),
            None => problem(format!("TLS: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::Path;

    use super::super::FindingLevel;
    use super::*;
    use crate::tls::TlsFiles;
    use crate::upstream::settings::{Proxy, UpstreamTls};

    /// Writes an authority, and a certificate of it, to files of these names.
    fn certificates(dir: &Path, authority: &str, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, authority);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        std::fs::write(dir.join(format!("{authority}.crt")), pem).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// The finding about an upstream at this address whose proxy, of this scheme, answers each read with the next of these and
    /// closes the connection after the last one.
    fn through(scheme: &str, address: &str, answers: Vec<&'static [u8]>) -> DoctorFinding {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = format!("{scheme}://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                stream.read_exact(&mut [0; 1]).unwrap();
                stream.set_nonblocking(true).unwrap();
                thread::sleep(Duration::from_millis(20));
                let _ = stream.read(&mut [0; 4096]);
                stream.set_nonblocking(false).unwrap();
                stream.write_all(answer).unwrap();
            }
        });
        let at = UpstreamAddress::parse(address).unwrap();
        let mut upstream = UpstreamSettings::new("u", vec![at.clone()], "c");
        upstream.proxy = Some(Proxy::parse(&proxy).unwrap());
        super::address(&upstream, &at)
    }

    #[test]
    fn what_a_proxy_refuses_is_said_in_the_words_of_the_log() {
        let refusal: &[u8] = &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0];
        for (scheme, answers, expected) in [
            (
                "http",
                vec![&b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n"[..]],
                "it wants a user name and password (407): proxy = \"http://USER:PASSWORD@HOST:PORT\"",
            ),
            ("http", vec![b"HTTP/1.1 502 Bad Gateway\r\n\r\n"], "it does not connect to hub:1883: HTTP status 502"),
            ("http", vec![b""], "it closed the connection; is it an HTTP proxy?"),
            (
                "http",
                vec![b"HTTP/1.1 200 OK\r\n\r\n"],
                "mqtt://hub:1883: it closed the connection; if this port is for TLS",
            ),
            (
                "socks5",
                vec![&[5, 0xff]],
                "it wants a user name and password: proxy = \"socks5://USER:PASSWORD@HOST:PORT\"",
            ),
            ("socks5", vec![&[5, 0], refusal], "it does not connect to hub:1883: connection refused"),
        ] {
            let found = through(scheme, "mqtt://hub:1883", answers);
            let is_said = found.level == FindingLevel::Problem && found.what.contains(expected);
            assert!(is_said && found.remedy.contains("see proxy"), "{expected}: {found}");
        }
    }

    #[test]
    fn a_refusal_that_follows_the_handshake_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        certificates(dir.path(), "authority", "server");
        certificates(dir.path(), "another", "stranger");
        let server = TlsFiles {
            cert: file("server.crt"),
            key: file("server.key"),
            client_ca: Some(file("authority.crt")),
            ..TlsFiles::default()
        };
        let config = server.acceptor().unwrap().config().clone();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = UpstreamAddress::parse(&format!("mqtts://{}", listener.local_addr().unwrap())).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut connection = rustls::ServerConnection::new(config.clone()).unwrap();
                // until it has said all that it has to say, and the client is gone
                while connection.complete_io(&mut stream).is_ok_and(|(read, _)| read > 0) {}
            }
        });
        let asked = |shown: Option<&str>| {
            let mut upstream = UpstreamSettings::new("u", vec![at.clone()], "c");
            let shown = |end: &str| shown.map(|name| file(&format!("{name}.{end}")));
            let (cert, key) = (shown("crt"), shown("key"));
            upstream.tls = Some(UpstreamTls { ca: Some(file("authority.crt")), cert, key, ..UpstreamTls::default() });
            address(&upstream, &at)
        };
        let good = asked(Some("server"));
        assert_eq!(good.level, FindingLevel::Good, "{good}");
        for (shown, expected) in [(Some("stranger"), "our certificate"), (None, "a client certificate")] {
            let refused = asked(shown);
            let is_said = refused.level == FindingLevel::Problem && refused.what.contains(expected);
            assert!(is_said, "{shown:?}: {refused}");
        }
    }
}
