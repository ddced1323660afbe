//! What does not go away by itself is shown by `journalctl -p warning`, and once; a trouble of the line is not.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;

use crate::line::secured;
use crate::played::{Played, Say};
use crate::support::{Gateway, Mosquitto, free_port, http, wait_until};
use crate::{start, upstream};

/// What is shown of an upstream once it has failed this often.
const ATTEMPTS: u64 = 10;

/// The configuration of one upstream with this name, scheme and port.
fn named(name: &str, (scheme, port): (&str, u16), keys: &str) -> String {
    let keys = format!("client_id = \"{name}\"\n{keys}");
    upstream(port, &keys).replace("\"home\"", &format!("\"{name}\"")).replace("mqtt://", &format!("{scheme}://"))
}

fn failed(http: u16, name: &str) -> u64 {
    let all = http::get(http, "/api/v1/upstreams").json();
    let of_name = all.as_array().unwrap().iter().find(|upstream| upstream["name"] == name);
    of_name.unwrap()["failed_attempts"].as_u64().unwrap()
}

/// The errors and warnings about an upstream.
fn loud(gateway: &Gateway, name: &str) -> Vec<String> {
    let of_name = |line: &String| line.contains(&format!("upstream=\"{name}\""));
    let is_loud = |line: &String| line.contains(" ERROR ") || line.contains(" WARN ");
    gateway.log().into_iter().filter(|line| of_name(line) && is_loud(line)).collect()
}

/// Servers with certificates that are not accepted.
struct Servers {
    _gateways: Vec<Gateway>,
    _dirs: Vec<tempfile::TempDir>,
}

/// Configurations of upstreams whose certificates are not accepted, with what is logged of each.
fn certificates() -> (Servers, Vec<(&'static str, String, &'static str)>) {
    type Change = fn(&mut rcgen::CertificateParams);
    type Keys = fn(&Path) -> String;
    let itself: Keys = |dir| format!("tls = {{ ca = \"{}/server.crt\" }}", dir.display());
    let other: Keys = |dir| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["elsewhere".into()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "elsewhere");
        std::fs::write(dir.join("other.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        format!("tls = {{ ca = \"{}/other.crt\" }}", dir.display())
    };
    let pinned: Keys = |_| format!("tls = {{ fingerprint = \"sha256:{}\" }}", "ab".repeat(32));
    let cases: [(&str, Change, Keys, &str); 5] = [
        ("authority", |_| {}, other, "set tls.ca to that authority"),
        ("fingerprint", |_| {}, pinned, "not the one of tls.fingerprint"),
        (
            "host",
            |params| params.subject_alt_names = vec![rcgen::SanType::DnsName("there.example".try_into().unwrap())],
            itself,
            "for another host name",
        ),
        (
            "self-made",
            |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            itself,
            "CA:TRUE",
        ),
        ("expired", |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), itself, "since 2001-01-01T00:00:00Z"),
    ];
    let mut servers = Servers { _gateways: Vec::new(), _dirs: Vec::new() };
    let mut all = Vec::new();
    for (name, change, keys, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (gateway, port) = secured(dir.path(), change);
        all.push((name, named(name, ("mqtts", port), &keys(dir.path())), expected));
        servers._gateways.push(gateway);
        servers._dirs.push(dir);
    }
    (servers, all)
}

/// The port of a server that reads something and closes every connection.
fn closing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    port
}

#[test]
fn what_only_a_person_can_change_is_shown_once() {
    let (_servers, mut all) = certificates();
    let dir = tempfile::tempdir().unwrap();
    let (_secure, secure) = secured(dir.path(), |_| {});
    let at = dir.path().display();
    let (asking, asking_port) = (tempfile::tempdir().unwrap(), free_port());
    let _same = secured(asking.path(), |_| {});
    let files = asking.path().display();
    let _asking = Mosquitto::with(&format!(
        "listener {asking_port} 127.0.0.1\nuser root\ncafile {files}/server.crt\ncertfile {files}/server.crt\n\
         keyfile {files}/server.key\nrequire_certificate true\n"
    ));
    let refusing = Played::new(|heard| match heard.is_connect() {
        true => Say::Last(vec![0x20, 3, 0, 0x86, 0]),
        false => Say::Usual,
    });
    let closing = closing();
    let plain = Gateway::start();
    let trusted = format!("tls = {{ ca = \"{at}/server.crt\" }}");
    let of_asking = format!("tls = {{ ca = \"{files}/server.crt\" }}");
    all.extend([
        // the alert may be overtaken by the end of the connection
        ("client", named("client", ("mqtts", asking_port), &of_asking), "certificate"),
        ("tls-only", named("tls-only", ("mqtt", secure), ""), "its address begins with mqtts://"),
        ("plain-only", named("plain-only", ("mqtts", plain.port), &trusted), "its address begins with mqtt://"),
        ("no-websocket", named("no-websocket", ("ws", closing), ""), "when asked for WebSocket"),
        ("closing", named("closing", ("mqtt", closing), "protocol = 4"), "it closed the connection"),
        ("credentials", named("credentials", ("mqtt", refusing.port), "protocol = 5"), "bad user name"),
    ]);
    let config: String = all.iter().map(|(_, config, _)| config.as_str()).collect();
    let (gateway, http) = start(&(config + &named("down", ("mqtt", free_port()), "")));
    for (name, _, expected) in &all {
        wait_until(name, || failed(http, name) >= ATTEMPTS);
        let lines = loud(&gateway, name);
        assert!(lines.len() == 1 && lines[0].contains(expected), "{name}: {lines:?}");
        let faults = http::get(http, "/readyz").text();
        assert!(faults.contains(&format!("upstream {name}: ")), "{faults}");
    }
    wait_until("down", || failed(http, "down") >= ATTEMPTS);
    assert_eq!(loud(&gateway, "down"), [""; 0], "offline is normal");
}
