//! Tests of how connections are made, and how messages are sent over them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::played::{Played, Say};
use crate::support::{Gateway, Mosquitto, Setup, broker, free_port, http, wait_until};
use crate::{drained, ledger, publish, start, upstream};

#[test]
fn an_upstream_that_is_silent_to_version_5_is_tried_with_3_1_1() {
    let played = Played::new(|heard| if heard.version == 5 { Say::Nothing } else { Say::Usual });
    let (gateway, port) = start(&upstream(played.port, "connect_timeout = \"2 s\""));
    publish(&gateway, "a", &["1"], false);
    played.wait_for(&["1"]);
    assert_eq!(drained(port), 0);
}

#[test]
fn one_connection_that_ends_early_is_no_proof_that_version_5_is_not_spoken() {
    let played = Played::new(|heard| if heard.connection == 0 { Say::Close } else { Say::Usual });
    let (gateway, _) = start(&upstream(played.port, ""));
    publish(&gateway, "a", &["1"], false);
    played.wait_for(&["1"]);
    assert!(played.log().connections.iter().all(|(_, version)| *version == 5));
    let old = Played::new(|heard| if heard.version == 5 { Say::Close } else { Say::Usual });
    let (gateway, _) = start(&upstream(old.port, ""));
    publish(&gateway, "a", &["1"], false);
    old.wait_for(&["1"]);
}

#[test]
fn a_dead_address_of_a_name_does_not_hold_up_the_live_one() {
    // localhost has ::1 and 127.0.0.1, and one of them accepts connections and never answers
    let port = free_port();
    let dead = TcpListener::bind(("::1", port)).unwrap();
    let played = Played::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_| Say::Usual);
    let config = upstream(port, "connect_timeout = \"2 s\"").replace("mqtt://127.0.0.1", "mqtt://localhost");
    let (gateway, _) = start(&config);
    publish(&gateway, "a", &["1"], false);
    played.wait_for(&["1"]);
    assert_eq!(played.log().connections[0].1, 5, "which is no reason to speak another version");
    drop(dead);
}

#[test]
fn a_broken_address_of_a_name_does_not_keep_it_from_the_good_one() {
    // one address of localhost closes each connection, or refuses it for the moment
    for broken in [None, Some([0x20, 3, 0, 0x88, 0])] {
        let port = free_port();
        let bad = Played::on(TcpListener::bind(("::1", port)).unwrap(), move |_| match broken {
            None => Say::Close,
            Some(answer) => Say::Last(answer.to_vec()),
        });
        let good = Played::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_| Say::Usual);
        let config = upstream(port, "protocol = 5").replace("mqtt://127.0.0.1", "mqtt://localhost");
        let (gateway, _) = start(&config);
        publish(&gateway, "a", &["1"], false);
        good.wait_for(&["1"]);
        drop(bad);
    }
}

#[test]
fn codes_that_3_1_1_does_not_have_are_refusals_with_a_long_pause() {
    for (protocol, code) in [("4", 6), ("4", 7), ("4", 0x97), ("\"auto\"", 6), ("5", 0x9f)] {
        let played = Played::new(move |heard| match (heard.is_connect(), heard.version) {
            (true, 5) if code > 0x7f => Say::Last(vec![0x20, 3, 0, code, 0]),
            (true, _) => Say::Last(vec![0x20, 2, 0, code]),
            _ => Say::Usual,
        });
        let (gateway, _) = start(&upstream(played.port, &format!("protocol = {protocol}")));
        let line = gateway.wait_for_line("takes no connection for a while");
        assert!(line.contains("ERROR") && !line.contains("not MQTT"), "{line}");
        let seconds = line.split("next_attempt=").nth(1).and_then(|rest| rest.split("in ").nth(1)).unwrap();
        let seconds: f32 = seconds.split(' ').next().unwrap().parse().unwrap();
        assert!(seconds >= 60.0, "{line}");
        assert_eq!(played.log().connections.len(), 1);
    }
}

#[test]
fn what_is_said_fits_what_happened() {
    // after a working connection, no report says that TLS may be needed
    let played =
        Played::new(|heard| if heard.connection > 0 || heard.publish().is_some() { Say::Close } else { Say::Usual });
    let (gateway, _) = start(&upstream(played.port, "protocol = 5"));
    publish(&gateway, "a", &["1"], false);
    wait_until("a failure", || played.log().connections.len() > 3);
    assert!(!gateway.log().iter().any(|line| line.contains("mqtts://")), "{:?}", gateway.log());
}

#[test]
fn two_gateways_with_one_client_id_are_told() {
    for (protocol, broker) in [("4", Mosquitto::with("")), ("5", Mosquitto::with(""))] {
        let config = upstream(broker.port, &format!("protocol = {protocol}\nclient_id = \"same\""));
        let gateways = [start(&config).0, start(&config).0];
        wait_until("a warning", || {
            gateways.iter().any(|gateway| {
                gateway.log().iter().any(|line| line.contains("WARN") && line.contains("client_id=\"same\""))
            })
        });
    }
}

/// A proxy that forwards all bytes after the greeting. `greet` returns the address.
fn proxy(greet: impl Fn(&mut TcpStream) -> u16 + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            if let Ok(server) = TcpStream::connect(("127.0.0.1", greet(&mut client))) {
                broker::carry_both_ways(client, server);
            }
        }
    });
    port
}

#[test]
fn proxies_are_gone_through() {
    let http = proxy(|client| {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        let asked = String::from_utf8(asked).unwrap();
        let port = asked.split_whitespace().nth(1).unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        port
    });
    let socks = proxy(|client| {
        let mut greeting = [0; 3];
        client.read_exact(&mut greeting).unwrap();
        client.write_all(&[5, 0]).unwrap();
        let mut request = [0; 10];
        client.read_exact(&mut request).unwrap();
        assert_eq!(request[..8], [5, 1, 0, 1, 127, 0, 0, 1]);
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        u16::from_be_bytes([request[8], request[9]])
    });
    for address in [format!("http://127.0.0.1:{http}"), format!("socks5://127.0.0.1:{socks}")] {
        let played = Played::new(|_| Say::Usual);
        let (gateway, _) = start(&upstream(played.port, &format!("proxy = \"{address}\"")));
        publish(&gateway, "a", &["1"], false);
        played.wait_for(&["1"]);
    }
}

/// The retained message of another gateway on `loft/a`.
fn has_arrived(other: &Gateway, text: &str) -> bool {
    let mut reader = crate::support::Connect::new("reader").open(other.port);
    reader.subscribe("loft/a", 1);
    reader.receive().text() == text
}

#[test]
fn web_sockets_lead_to_an_upstream() {
    let (setup, web) = Setup::default().http();
    let other = setup.start();
    let config = upstream(1, "").replace("mqtt://127.0.0.1:1", &format!("ws://127.0.0.1:{web}/mqtt"));
    let (gateway, port) = start(&config);
    publish(&gateway, "a", &["over web"], true);
    wait_until("it is there", || ledger(port)["acked"] == 1);
    assert!(has_arrived(&other, "over web"));
    // with another path, the error says what is wrong
    let config = upstream(1, "").replace("mqtt://127.0.0.1:1", &format!("ws://127.0.0.1:{web}/elsewhere"));
    start(&config).0.wait_for_line("no WebSocket at /elsewhere");
}

#[test]
fn a_self_made_certificate_is_pinned_by_its_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["somewhere.else".into()]).unwrap().self_signed(&key).unwrap();
    let (cert, private) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.der());
    let digits: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let fingerprint = format!("sha256:{}", digits.join(":"));
    let tls = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", cert.display(), private.display());
    let port = free_port();
    let other = Gateway::with(&format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n{tls}\n"));
    let config = |keys: &str| upstream(port, keys).replace("mqtt://", "mqtts://");
    let (gateway, http) = start(&config(&format!("tls = {{ fingerprint = \"{fingerprint}\" }}")));
    publish(&gateway, "a", &["pinned"], true);
    wait_until("it is there", || ledger(http)["acked"] == 1);
    assert!(has_arrived(&other, "pinned"));
    let wrong = "00".repeat(32);
    let (stranger, _) = start(&config(&format!("tls = {{ fingerprint = \"sha256:{wrong}\" }}")));
    stranger.wait_for_line("not the one of tls.fingerprint");
}

#[test]
fn passwords_are_fetched_for_each_connection_and_never_logged() {
    let played = Played::new(|heard| match heard.is_connect() {
        true if heard.password() == "token-3" => Say::Usual,
        true => Say::Last(vec![0x20, 2, 0, 4]),
        false => Say::Usual,
    });
    let dir = tempfile::tempdir().unwrap();
    let (count, script) = (dir.path().join("count"), dir.path().join("token"));
    std::fs::write(&script, format!("echo x >> {0}; n=$(/usr/bin/wc -l < {0}); echo token-$n\n", count.display()))
        .unwrap();
    let keys = format!("protocol = 4\nusername = \"u\"\npassword_command = [\"/bin/sh\", \"{}\"]\n", script.display());
    let (gateway, _) = start(&upstream(played.port, &keys));
    publish(&gateway, "a", &["1"], false);
    played.wait_for(&["1"]);
    assert_eq!(played.log().connections.len(), 3);
    assert!(!gateway.log().iter().any(|line| line.contains("token-")), "{:?}", gateway.log());
}

#[test]
fn the_first_address_is_preferred_again_and_nothing_is_lost_or_doubled() {
    let first = free_port();
    let second = Played::new(|_| Say::Usual);
    let keys = format!(
        "addresses = [\"mqtt://127.0.0.1:{first}\", \"mqtt://127.0.0.1:{}\"]\nfailback = \"1 s\"\n",
        second.port
    );
    let config = upstream(1, &keys).replacen("addresses = [\"mqtt://127.0.0.1:1\"]\n", "", 1);
    let (gateway, port) = start(&config);
    publish(&gateway, "a", &["1", "2"], false);
    second.wait_for(&["1", "2"]);
    let first = Played::on(TcpListener::bind(("127.0.0.1", first)).unwrap(), |_| Say::Usual);
    wait_until("it is preferred", || {
        publish(&gateway, "a", &["more"], false);
        first.texts().contains(&"more".to_owned())
    });
    assert_eq!(drained(port), 0);
    let acked = ledger(port)["acked"].as_u64().unwrap() as usize;
    assert_eq!(first.texts().len() + second.texts().len(), acked);
    assert_eq!(acked as u64, ledger(port)["accepted"].as_u64().unwrap());
}

#[test]
fn no_more_than_the_rate_goes_up() {
    let played = Played::new(|_| Say::Usual);
    let (gateway, port) = start(&upstream(played.port, "rate = \"20/s\""));
    let texts: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let begin = Instant::now();
    publish(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
    wait_until("all are there", || played.texts().len() == 60);
    assert!(begin.elapsed() > Duration::from_millis(2_700), "{:?}", begin.elapsed());
    assert_eq!((drained(port), played.texts()), (0, texts));
    let log = played.log();
    for (a, b) in log.times.iter().zip(&log.times[30..]) {
        assert!(*b - *a > Duration::from_millis(900), "{:?}", *b - *a);
    }
}

#[test]
fn what_waited_for_too_long_does_not_go_up() {
    let port = free_port();
    let (gateway, http) = start(&(upstream(port, "") + "max_age = \"1 s\"\n"));
    publish(&gateway, "a", &["old"], false);
    let begin = Instant::now();
    wait_until("it is too old", || begin.elapsed() > Duration::from_millis(1_200));
    publish(&gateway, "a", &["new"], false);
    let played = Played::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_| Say::Usual);
    wait_until("nothing waits", || ledger(http)["pending"] == 0);
    let ledger = ledger(http);
    assert_eq!(ledger["expired"].as_u64().unwrap() + ledger["acked"].as_u64().unwrap(), 2, "{ledger}");
    assert!(ledger["expired"].as_u64().unwrap() >= 1 && !played.texts().contains(&"old".to_owned()), "{ledger}");
}

/// A listener of another gateway with a typical certificate that was made by hand.
pub fn secured(dir: &std::path::Path, change: impl FnOnce(&mut rcgen::CertificateParams)) -> (Gateway, u16) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "127.0.0.1");
    change(&mut params);
    std::fs::write(dir.join("server.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
    let (at, port) = (dir.display(), free_port());
    let tls = format!("tls = {{ cert = \"{at}/server.crt\", key = \"{at}/server.key\" }}");
    (Gateway::with(&format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n{tls}\n")), port)
}

#[test]
fn certificates_as_they_are_made_by_hand_are_explained() {
    type Change = fn(&mut rcgen::CertificateParams);
    let cases: [(Change, &str); 3] = [
        (|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained), "CA:TRUE"),
        (|params| params.subject_alt_names.clear(), "subjectAltName"),
        (|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "clock"),
    ];
    for (change, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (_other, port) = secured(dir.path(), change);
        let ca = format!("tls = {{ ca = \"{}/server.crt\" }}", dir.path().display());
        let (gateway, _) = start(&upstream(port, &ca).replace("mqtt://", "mqtts://"));
        let line = gateway.wait_for_line("waiting for upstream");
        assert!(line.contains(expected), "{expected}: {line}");
        assert!(!line.contains("not for TLS"), "{line}");
    }
}

#[test]
fn a_refusal_after_tls_is_not_taken_for_a_port_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_other, port) = secured(dir.path(), |_| {});
    let trusted = format!("tls = {{ ca = \"{}/server.crt\" }}", dir.path().display());
    // this port does not support MQTT, and closes connections without HTTP
    let (setup, web) = Setup::default()
        .http_tls(&format!("{{ cert = \"{0}/server.crt\", key = \"{0}/server.key\" }}", dir.path().display()));
    let _web = setup.start();
    let (gateway, _) = start(&upstream(web, &trusted).replace("mqtt://", "mqtts://"));
    let line = gateway.wait_for_line("waiting for upstream");
    assert!(!line.contains("not for TLS"), "{line}");
    let (gateway, http) = start(&upstream(port, &trusted).replace("mqtt://", "mqtts://"));
    publish(&gateway, "a", &["1"], false);
    wait_until("it is there", || ledger(http)["acked"] == 1);
}

#[test]
fn a_name_that_is_not_resolved_is_called_that_and_not_a_timeout_of_the_upstream() {
    // the top-level domain is reserved for names that do not exist [RFC 6761 section 6.4]; there may be no name server here
    let config = upstream(1, "connect_timeout = \"2 s\"").replace("127.0.0.1:1", "hub.invalid:1883");
    let (gateway, port) = start(&config);
    let line = gateway.wait_for_line("the name hub.invalid cannot be resolved: ");
    assert!(line.contains("does this machine reach a name server") && !line.contains("connect_timeout"), "{line}");
    wait_until("it is shown", || {
        let shown = http::get(port, "/api/v1/upstreams").json()[0]["last_error"].to_string();
        shown.contains("cannot be resolved") && shown.contains("getent hosts")
    });
}

#[test]
fn a_first_address_that_hangs_costs_the_connection_to_the_second_nothing() {
    // the kernel accepts, and nobody answers
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = Played::new(|_| Say::Usual);
    let keys = format!(
        "addresses = [\"mqtt://{}\", \"mqtt://127.0.0.1:{}\"]\nfailback = \"1 s\"\nconnect_timeout = \"1 s\"\n",
        first.local_addr().unwrap(),
        second.port
    );
    let config = upstream(1, &keys).replacen("addresses = [\"mqtt://127.0.0.1:1\"]\n", "", 1);
    let (gateway, port) = start(&config);
    publish(&gateway, "a", &["1"], false);
    second.wait_for(&["1"]);
    first.set_nonblocking(true).unwrap();
    while first.accept().is_ok() {}
    let mut looks = Vec::new();
    wait_until("it is looked at twice", || {
        looks.extend(first.accept().map(|(stream, _)| stream));
        looks.len() == 2
    });
    publish(&gateway, "a", &["2"], false);
    second.wait_for(&["2"]);
    assert_eq!(second.log().connections.len(), 1);
    assert_eq!(drained(port), 0);
    // a look takes nobody's session: it has no client id
    let mut connect = [0; 14];
    looks[0].set_nonblocking(false).unwrap();
    looks[0].read_exact(&mut connect).unwrap();
    assert!(connect.starts_with(b"\x10\x0c\x00\x04MQTT") && connect.ends_with(&[0, 0]), "{connect:?}");
}

#[test]
fn a_program_makes_a_password_only_for_whom_can_be_reached() {
    let (one, two) = (free_port(), free_port());
    let dir = tempfile::tempdir().unwrap();
    let (count, script) = (dir.path().join("count"), dir.path().join("token"));
    std::fs::write(&script, format!("echo x >> {}; echo token\n", count.display())).unwrap();
    let keys = format!(
        "addresses = [\"mqtt://127.0.0.1:{one}\", \"mqtt://127.0.0.1:{two}\"]\nprotocol = 4\nusername = \"u\"\n\
         password_command = [\"/bin/sh\", \"{}\"]\n",
        script.display()
    );
    let config = upstream(1, &keys).replacen("addresses = [\"mqtt://127.0.0.1:1\"]\n", "", 1);
    let (gateway, port) = start(&config);
    let attempts = || http::get(port, "/api/v1/upstreams").json()[0]["failed_attempts"].as_u64().unwrap_or_default();
    wait_until("both have been tried", || attempts() >= 4);
    assert!(!count.exists(), "nobody was there to get it");
    let played = Played::on(TcpListener::bind(("127.0.0.1", two)).unwrap(), |_| Say::Usual);
    publish(&gateway, "a", &["1"], false);
    played.wait_for(&["1"]);
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
}
