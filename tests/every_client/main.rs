//! One port serves every client: MQTT 3.1, 3.1.1 and 5, over IPv4 and IPv6, with all features of these versions.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod delivery;
mod dollar_topics;
mod endings;
mod exchanges_by_the_clause;
mod idle;
mod packets_by_the_clause;
mod retained;
mod sessions;
mod shared;
mod sizes;
mod system_topics;
mod version_3_1;
mod version_5;
mod wills;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use support::packet::{V5, V31, V311, binary, packet};
use support::{Client, Connect, Gateway, Lookup, Setup};

#[test]
fn all_versions_share_one_port_over_ipv4_and_ipv6() {
    let gateway = Setup::default().listen_on("[::]").start();
    let hosts: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut clients: Vec<Client> = [V31, V311, V5]
        .into_iter()
        .flat_map(|version| hosts.map(|host| Connect::version(version, &format!("{version}-{host}")).host(host)))
        .map(|connect| connect.open(gateway.port))
        .collect();
    for client in &mut clients {
        assert_eq!(client.subscribe("all", 2), 2);
    }
    for number in 0..clients.len() {
        clients[number].publish("all", number.to_string(), 2, false);
        for client in &mut clients {
            let message = client.receive();
            assert_eq!((message.topic.as_str(), message.text(), message.qos), ("all", number.to_string(), 2));
        }
    }
}

#[test]
fn keep_alive_0_means_never() {
    let gateway = Gateway::start();
    let mut patient = Connect::new("patient").open(gateway.port);
    let mut witness = Connect::new("witness").keep_alive(1).open(gateway.port);
    witness.closed();
    patient.ping();
}

#[test]
fn a_silent_client_is_disconnected_after_one_and_a_half_times_its_keep_alive() {
    let gateway = Gateway::start();
    for version in [V311, V5] {
        let begin = Instant::now();
        let mut client = Connect::version(version, "silent").keep_alive(2).open(gateway.port);
        if version == V5 {
            client.closed_with(0x8d);
        } else {
            client.closed();
        }
        let elapsed = begin.elapsed();
        assert!(elapsed > Duration::from_millis(2500) && elapsed < Duration::from_secs(30), "{elapsed:?}");
    }
}

#[test]
fn a_keep_alive_holds_as_the_client_says_unless_the_configuration_bounds_it() {
    let gateway = Gateway::start();
    for asked in [0, 30, 61, 3600, 65535] {
        let (_, connack) = Connect::v5("a").keep_alive(asked).open_with(gateway.port);
        assert_eq!(connack.properties.number(0x13), None, "keep alive {asked}");
    }
    let gateway = Gateway::with("[broker]\nmax_keep_alive = \"1 min\"");
    for (asked, told) in [(0, Some(60)), (30, None), (60, None), (61, Some(60)), (65535, Some(60))] {
        let (_, connack) = Connect::v5("a").keep_alive(asked).open_with(gateway.port);
        assert_eq!(connack.properties.number(0x13), told, "keep alive {asked}");
    }
    let gateway = Gateway::with("[broker]\nmax_keep_alive = \"1 s\"");
    let (mut client, _) = Connect::v5("silent").keep_alive(600).open_with(gateway.port);
    client.closed_with(0x8d);
    let mut old = Connect::new("old").keep_alive(600).open(gateway.port);
    old.stays_silent(Duration::from_secs(2)); // it cannot be told
    old.ping();
}

#[test]
fn the_system_looks_after_silent_connections_on_every_port() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let _mqtt = Connect::new("silent").open(gateway.port);
    let _http = std::net::TcpStream::connect(("127.0.0.1", http)).unwrap();
    for port in [gateway.port, http] {
        support::wait_until("the keepalive timer runs", || has_keepalive(port));
    }
}

/// Whether an accepted connection on this port has a keepalive timer [Linux, Documentation/networking/proc_net_tcp].
fn has_keepalive(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let accepted = format!(":{port:04X}");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&accepted) && fields[3] == "01" && fields[5].starts_with("02:")
    })
}

#[test]
fn who_has_no_client_id_gets_one() {
    let gateway = Gateway::start();
    let (_, first) = Connect::v5("").open_with(gateway.port);
    let (_, second) = Connect::v5("").open_with(gateway.port);
    let ids = [&first, &second].map(|connack| connack.properties.text(0x12).expect("an assigned client id"));
    assert_ne!(ids[0], ids[1]);
    let (_, named) = Connect::v5("a").open_with(gateway.port);
    assert_eq!(named.properties.text(0x12), None);

    let (mut one, mut other) = (Connect::new("").open(gateway.port), Connect::new("").open(gateway.port));
    one.ping();
    other.ping();
    assert_eq!(Connect::new("").clean(false).refused(gateway.port), 2, "a session needs a name");
}

#[test]
fn an_unknown_protocol_level_is_answered_with_code_1() {
    let gateway = Gateway::start();
    let mut client = Client::raw(gateway.port, V311);
    client.send(&packet(0x10, &[&binary(b"MQTT"), &[6, 2, 0, 0], &binary(b"a")]));
    assert_eq!(client.read().body, [0, 1]);
    client.closed();
}

#[test]
fn whoever_does_not_speak_mqtt_is_hung_up_on() {
    let gateway = Gateway::start();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\xc0\0", b"\x30\x05\0\x01abc", b"\x16\x03\x01\x02\0\x01"] {
        let mut client = Client::raw(gateway.port, V311);
        client.send(bytes);
        assert!(client.closed().is_empty());
    }
}
