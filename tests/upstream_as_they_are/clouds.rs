//! Port 443, and the extensions that clouds require in the TLS handshake.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::played::{Played, Say};
use crate::support::packet::packet;
use crate::support::tls::Authority;
use crate::support::{Connect, PATIENCE, Setup, free_port, http, wait_until};
use crate::{drained, ledger, publish, start, upstream};

#[test]
fn web_sockets_over_tls_lead_to_an_upstream() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().write_server_files(dir.path());
    let at = dir.path().display();
    let (setup, web) =
        Setup::default().http_tls(&format!("{{ cert = \"{at}/server.crt\", key = \"{at}/server.key\" }}"));
    let other = setup.start();
    let config = upstream(1, &format!("tls = {{ ca = \"{at}/ca.crt\" }}"));
    let (gateway, port) = start(&config.replace("mqtt://127.0.0.1:1", &format!("wss://localhost:{web}/mqtt")));
    publish(&gateway, "a", &["over 443"], true);
    wait_until("it is there", || ledger(port)["acked"] == 1);
    let mut reader = Connect::new("reader").open(other.port);
    reader.subscribe("loft/a", 1);
    assert_eq!(reader.receive().text(), "over 443");
}

/// The protocol and the name that a client requests in the TLS handshake.
type Asked = (Option<Vec<u8>>, Option<String>);

/// Accepts CONNECT only with the name `iot.example.org` and this protocol.
fn cloud(dir: &Path, protocol: &str) -> (u16, mpsc::Receiver<Asked>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["iot.example.org".into()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(dir.join("cloud.crt"), certificate.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![protocol.into()];
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let (port, (asked, heard)) = (listener.local_addr().unwrap().port(), mpsc::channel());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let mut bytes = [0; 512];
            if stream.read(&mut bytes).is_err() {
                continue;
            }
            let name = stream.conn.server_name().map(str::to_owned);
            let _ = asked.send((stream.conn.alpn_protocol().map(Vec::from), name));
            // CONNACK of version 5
            let _ = stream.write_all(&[0x20, 3, 0, 0, 0]);
            while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
        }
    });
    (port, heard)
}

#[test]
fn a_cloud_is_told_the_name_and_the_protocol_that_the_settings_say() {
    let dir = tempfile::tempdir().unwrap();
    let (port, heard) = cloud(dir.path(), "x-amzn-mqtt-ca");
    let keys = |name: &str, alpn: &str| {
        let ca = dir.path().join("cloud.crt");
        format!("protocol = 5\ntls = {{ ca = \"{}\"{name}, alpn = [{alpn}] }}", ca.display())
    };
    let config = |keys: String| upstream(port, &keys).replace("mqtt://", "mqtts://");
    let (name, alpn) = (", server_name = \"iot.example.org\"", "\"x-amzn-mqtt-ca\"");
    let (gateway, _) = start(&config(keys(name, alpn)));
    let asked = heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(asked, (Some(b"x-amzn-mqtt-ca".to_vec()), Some("iot.example.org".into())));
    gateway.wait_for_line("connected upstream");
    drop(gateway);
    start(&config(keys("", alpn))).0.wait_for_line("set tls.server_name to it");
    start(&config(keys(name, "\"mqtt\""))).0.wait_for_line("does not take the protocols of tls.alpn");
}

#[test]
fn an_upstream_that_takes_qos_2_as_1_gets_each_message_once() {
    // like RabbitMQ, it answers with PUBACK
    for protocol in [4, 5] {
        let played = Played::new(|_| Say::Usual);
        let (gateway, port) = start(&(upstream(played.port, &format!("protocol = {protocol}")) + "qos = 2\n"));
        publish(&gateway, "a", &["1", "2", "3"], false);
        played.wait_for(&["1", "2", "3"]);
        assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, 3.into()));
        assert_eq!(played.texts(), ["1", "2", "3"]);
    }
}

#[test]
fn what_an_upstream_grants_less_than_was_asked_for_is_said_once() {
    // Maximum QoS 0 and Retain Available 0, and then an end of the connection at the second message
    let played = Played::new(|heard| match heard.packet.kind() {
        1 => Say::Instead(packet(0x20, &[&[0, 0, 4, 0x24, 0, 0x25, 0]])),
        8 => {
            let codes = heard.filters().unwrap().into_iter().map(|filter| u8::from(filter != "cmd/a"));
            Say::Instead(packet(0x90, &[&heard.packet.id().to_be_bytes(), &[0], &codes.collect::<Vec<_>>()]))
        }
        3 if heard.connection == 0 => Say::Last(vec![0xe0, 1, 0x8b]),
        _ => Say::Usual,
    });
    let rules = "qos = 2\n[[upstream.in]]\ntopic_filter = \"cmd/a\"\nqos = 2\n[[upstream.in]]\ntopic_filter = \"cmd/b\"\nqos = 2\n\
                 [[upstream.in]]\ntopic_filter = \"cmd/c\"\nqos = 1\n";
    let (gateway, _) = start(&(upstream(played.port, "protocol = 5") + rules));
    publish(&gateway, "a", &["1"], true);
    wait_until("a second connection", || played.log().connections.len() >= 2);
    publish(&gateway, "a", &["2"], true);
    played.wait_for(&["2"]);
    let says = |text: &str| gateway.log().iter().filter(|line| line.contains("WARN") && line.contains(text)).count();
    gateway.wait_for_lines("connected upstream", 2);
    assert_eq!(says("takes only QoS 0: it confirms nothing"), 1);
    assert_eq!(says("takes no retained messages"), 1);
    let line = gateway.wait_for_line("grants the subscription at QoS 0 only");
    assert!(line.contains("cmd/a") && line.contains("pigateway.toml:"), "{line}");
    assert!(gateway.wait_for_line("grants the subscription at QoS 1 only").contains("cmd/b"));
    assert_eq!((says("at QoS 0 only"), says("at QoS 1 only"), says("cmd/c")), (1, 1, 0));
}

#[test]
fn answers_to_subscriptions_are_told_by_their_packet_ids() {
    for protocol in [4, 5] {
        let first = Mutex::new(0_u16);
        let played = Played::new(move |heard| {
            let Some(filters) = heard.filters() else { return Say::Usual };
            let none: &[u8] = if protocol == 5 { &[0] } else { &[] };
            let answer = |id: u16, codes: &[u8]| packet(0x90, &[&id.to_be_bytes(), none, codes]);
            if filters.len() == 8 {
                *first.lock().unwrap() = heard.packet.id();
                return Say::Nothing;
            }
            let (first, codes) = (*first.lock().unwrap(), [1, 0x80, 1, 1, 1, 1, 1, 1]);
            let unknown = [answer(first + 77, &[0x80; 8]), answer(9, &[0x80; 8])].concat();
            Say::Instead([answer(heard.packet.id(), &[1, 1]), unknown, answer(first, &codes)].concat())
        });
        let rules: String = (0..10).map(|number| format!("[[upstream.in]]\ntopic_filter = \"f{number}\"\n")).collect();
        let (gateway, _) = start(&(upstream(played.port, &format!("protocol = {protocol}")) + &rules));
        let line = gateway.wait_for_line("refuses the subscription");
        assert!(line.contains("filter=f1 "), "{line}");
        gateway.wait_for_lines("subscribed", 9);
        let count = |text: &str| gateway.log().iter().filter(|line| line.contains(text)).count();
        assert_eq!((count("refuses the subscription"), count("a packet id that no subscription has")), (1, 1));
    }
}

#[test]
fn a_refused_retain_flag_is_remembered_over_connections_and_a_reload_asks_again() {
    let (allowed, flags, ended) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    let (is_allowed, count) = (allowed.clone(), flags.clone());
    let played = Played::new(move |heard| match heard.publish() {
        Some(message) if message.retain && !is_allowed.load(Ordering::Relaxed) => {
            count.fetch_add(1, Ordering::Relaxed);
            Say::Instead(packet(0x40, &[&message.id.to_be_bytes(), &[0x9a, 0]]))
        }
        Some(message) if message.text() == "end" && !ended.swap(true, Ordering::Relaxed) => Say::Close,
        _ => Say::Usual,
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 5\nstatus_topic = \"status\""));
    wait_until("the status", || played.log().messages.iter().any(|message| message.topic == "status"));
    publish(&gateway, "a", &["1"], true);
    publish(&gateway, "b", &["end"], false);
    publish(&gateway, "c", &["2"], true);
    played.wait_for(&["1", "end", "2"]);
    assert_eq!((drained(port), played.log().connections.len()), (0, 2));
    assert_eq!(flags.load(Ordering::Relaxed), 1, "only the status had it");
    assert!(played.log().messages.iter().all(|message| !message.retain));
    let said = |text: &str| gateway.log().iter().filter(|line| line.contains(text)).count();
    assert_eq!(said("does not take the retain flag"), 1);
    allowed.store(true, Ordering::Relaxed);
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("takes the retain flag again");
    // the status, and what went without the flag
    wait_until("all that is retained", || {
        let log = played.log();
        let mut retained: Vec<_> =
            log.messages.iter().filter(|message| message.retain).map(|message| &*message.topic).collect();
        retained.sort_unstable();
        retained == ["loft/a", "loft/c", "status"]
    });
    assert_eq!(played.log().connections.len(), 2);
}

#[test]
fn a_subscription_that_stays_refused_is_said_once_over_connections_and_shown_until_it_is_granted() {
    for protocol in [4, 5] {
        let (allowed, code) = (Arc::new(AtomicBool::new(false)), if protocol == 5 { 0x87 } else { 0x80 });
        let is_allowed = allowed.clone();
        let played = Played::new(move |heard| {
            let none: &[u8] = if protocol == 5 { &[0] } else { &[] };
            let answer = |id: u16, codes: &[u8]| packet(0x90, &[&id.to_be_bytes(), none, codes]);
            match heard.filters() {
                Some(filters) => {
                    let is_taken = |filter: &String| filter == "free" || is_allowed.load(Ordering::Relaxed);
                    let codes = filters.iter().map(|filter| if is_taken(filter) { 1 } else { code });
                    Say::Instead(answer(heard.packet.id(), &codes.collect::<Vec<_>>()))
                }
                // the line breaks again and again, at messages of which none is to blame
                None if heard.packet.kind() == 3 && heard.connection < 4 => Say::Reset,
                None => Say::Usual,
            }
        });
        let rules = ["cmd/#", "free"].map(|filter| format!("[[upstream.in]]\ntopic_filter = \"{filter}\"\n"));
        let (gateway, port) = start(&(upstream(played.port, &format!("protocol = {protocol}")) + &rules.concat()));
        let said = |text: &str| gateway.log().iter().filter(|line| line.contains(text)).count();
        let shown = || {
            let faulty = http::get(port, "/api/v1/gateway").json()["faulty"].clone();
            let of_part =
                faulty.as_array().unwrap().iter().find(|faulty| faulty["part"] == "upstream home: subscriptions");
            of_part.map(|faulty| faulty["problem"].as_str().unwrap().to_owned())
        };
        let problem = format!("nothing comes down by the subscription to cmd/# (refused, reason code {code:#04x})");
        gateway.wait_for_line("refuses the subscription");
        publish(&gateway, "a", &["1"], false);
        played.wait_for(&["1"]);
        wait_until("all connections", || played.log().connections.len() == 5);
        wait_until("it is shown", || shown().as_ref() == Some(&problem));
        publish(&gateway, "a", &["2"], false);
        played.wait_for(&["2"]);
        assert_eq!((said("refuses the subscription"), said(" subscribed")), (1, 1), "at five connections");
        // a person who reloads wants to know
        gateway.signal(Signal::HUP);
        gateway.wait_for_lines("refuses the subscription", 2);
        allowed.store(true, Ordering::Relaxed);
        gateway.signal(Signal::HUP);
        wait_until("it is over", || shown().is_none() && said(" subscribed") == 2);
        assert_eq!(said("refuses the subscription"), 2);
    }
}

/// The configuration with the pauses that hold without settings.
fn patient(port: u16, keys: &str, filters: &[&str]) -> String {
    let rules = filters.iter().map(|filter| format!("[[upstream.in]]\ntopic_filter = \"{filter}\"\n"));
    let config = upstream(port, keys) + &rules.collect::<String>();
    config.replace("retry = { min = \"100 ms\", max = \"400 ms\" }\n", "")
}

/// How long after the first connection the last of these messages arrived, and at which connection.
fn arrived(played: &Played, texts: &[&str]) -> (Duration, usize) {
    played.wait_for(texts);
    let log = played.log();
    let times = log.messages.iter().zip(&log.times).filter(|(message, _)| texts.contains(&message.text().as_str()));
    let last = *times.map(|(_, at)| at).max().unwrap();
    (last - log.connections[0].0, log.connections.iter().filter(|(at, _)| *at < last).count())
}

#[test]
fn forwarding_does_not_wait_for_subscriptions_that_a_cloud_denies() {
    for protocol in [4, 5] {
        let cloud = free_port();
        let filters = ["f0/#", "f1/#", "f2/#", "f3/#", "f4/#", "f5/#"];
        let (gateway, port) = start(&patient(cloud, &format!("protocol = {protocol}"), &filters));
        // they wait when the cloud comes
        publish(&gateway, "a", &["1", "2", "3"], false);
        let is_denied = |filter: &String| ["f1/#", "f3/#", "f4/#"].contains(&filter.as_str());
        let played = Played::on(TcpListener::bind(("127.0.0.1", cloud)).unwrap(), move |heard| match heard.filters() {
            Some(filters) if filters.iter().any(is_denied) => Say::Close,
            _ => Say::Usual,
        });
        let (after, connection) = arrived(&played, &["1", "2", "3"]);
        assert!(after < Duration::from_secs(10) && connection <= 2, "{after:?} {connection}");
        gateway.wait_for_lines("asked for this subscription", 3);
        wait_until("the others", || {
            let known = &played.log().filters;
            ["f0/#", "f2/#", "f5/#"].iter().all(|filter| known.iter().any(|known| known == filter))
        });
        assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, 3.into()));
    }
}

#[test]
fn forwarding_begins_soon_at_a_cloud_that_denies_will_status_a_subscription_and_the_retain_flag() {
    let played = Played::new(|heard| {
        let is_denied = match heard.publish() {
            Some(message) => message.retain || message.topic == "status",
            None if heard.is_connect() => heard.flags() & 4 != 0,
            None => heard.filters().is_some_and(|filters| filters.iter().any(|filter| filter == "bad/#")),
        };
        if is_denied { Say::Close } else { Say::Usual }
    });
    let keys = "protocol = 4\nstatus_topic = \"status\"";
    let (gateway, port) = start(&patient(played.port, keys, &["cmd/#", "bad/#"]));
    publish(&gateway, "a", &["1"], true);
    publish(&gateway, "b", &["2", "3"], false);
    let (after, connection) = arrived(&played, &["1", "2", "3"]);
    assert!(after < Duration::from_secs(20), "{after:?}, at connection {connection}");
    assert_eq!(drained(port), 0);
    let line = gateway.wait_for_line("asked for this subscription");
    assert!(line.contains("bad/#"), "{line}");
    wait_until("the other one", || played.log().filters.iter().any(|filter| filter == "cmd/#"));
}
