//! Shows faults of the server of rumqttd, started as its users start it. They are the reason why the gateway embeds only the
//! router (docs/decisions/rumqttd.md). If one of these tests fails, a later version has corrected a fault, and the page
//! must be reviewed.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use support::{Client, Connect, free_port, wait_until};

/// One server for MQTT 3.1.1 at this port, and one for MQTT 5 at the other, in threads that end with this process.
fn start(login: &str) -> [u16; 2] {
    let ports = [free_port(), free_port()];
    let server = |version: &str, port: u16| {
        format!(
            "[{version}.1]\nname = \"{version}\"\nlisten = \"127.0.0.1:{port}\"\nnext_connection_delay_ms = 1\n\
             [{version}.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 20480\n\
             max_inflight_count = 100\ndynamic_filters = true\n{login}\n"
        )
    };
    let text = format!(
        "id = 0\n[router]\nid = 0\nmax_connections = 100\nmax_outgoing_packet_count = 200\n\
         max_segment_size = 1048576\nmax_segment_count = 10\n{}{}",
        server("v4", ports[0]),
        server("v5", ports[1])
    );
    let config: rumqttd::Config = toml::from_str(&text).unwrap();
    thread::spawn(move || rumqttd::Broker::new(config).start().map_err(Box::new));
    ports.iter().for_each(|port| wait_until("it listens", || TcpStream::connect(("127.0.0.1", *port)).is_ok()));
    ports
}

fn connect(id: &str) -> Connect {
    Connect::new(id).keep_alive(60)
}

/// Whether a client that connects is accepted by a CONNACK. If the router is gone, some clients get no answer at all.
fn is_served(port: u16, connect: &Connect) -> bool {
    let mut client = Client::raw(port, 4);
    client.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // type, length, flags and reason, also with version 5
    let mut connack = [0; 4];
    client.try_send(&connect.encode())
        && (&client.socket).read_exact(&mut connack).is_ok()
        && matches!(connack, [0x20, _, _, 0])
}

/// Checks that the server closes a connection without an answer to CONNECT.
#[track_caller]
fn assert_it_is_turned_away(port: u16, connect: &Connect) {
    let mut client = Client::raw(port, 4);
    client.send(&connect.encode());
    assert_eq!(client.closed(), [], "it is answered");
}

/// Checks that no client is served any more. A single failure could have another reason, so several clients try. They
/// connect at the same time, so that their waits do not add up.
fn assert_it_serves_nobody(port: u16) {
    let is_served = |number: usize| move || is_served(port, &connect(&format!("late-{number}")));
    let late: Vec<_> = (0..3).map(|number| thread::spawn(is_served(number))).collect();
    assert!(late.into_iter().all(|client| !client.join().unwrap()));
}

#[test]
fn whoever_has_no_keep_alive_is_turned_away() {
    let [port, _] = start("");
    connect("with").open(port);
    assert_it_is_turned_away(port, &connect("without").keep_alive(0));
}

#[test]
fn a_port_serves_one_version() {
    let [port, port_of_5] = start("");
    Connect::v5("five").keep_alive(60).open(port_of_5);
    for connect in [Connect::v5("five"), Connect::v31("three")] {
        assert_it_is_turned_away(port, &connect.keep_alive(60));
    }
}

#[test]
fn users_read_what_others_publish() {
    let [port, _] = start("auth = { ann = \"a\", bob = \"b\" }");
    assert_it_is_turned_away(port, &connect("nobody").login("ann", "wrong"));
    let mut bob = connect("bob").login("bob", "b").open(port);
    bob.subscribe("of/ann/#", 0);
    let mut ann = connect("ann").login("ann", "a").open(port);
    assert_eq!(ann.publish("of/ann/alone", "secret", 1, false), 0);
    assert_eq!(bob.receive_unacked().text(), "secret");
}

#[test]
fn one_topic_ends_the_service_for_all() {
    let [port, _] = start("");
    let mut innocent = connect("innocent").open(port);
    innocent.subscribe("other", 0);
    wait_until("others are served", || is_served(port, &connect("before")));
    let mut client = connect("maker").open(port);
    client.send(&support::packet::publish("über/uns".as_bytes(), b"x", 0x30, None, None));
    wait_until("nobody is served any more", || !is_served(port, &connect("another")));
    assert_it_serves_nobody(port);
}

#[test]
fn a_client_that_leaves_before_its_connack_ends_the_service_for_all() {
    let [port, _] = start("");
    wait_until("they are served", || is_served(port, &connect("before")));
    wait_until("nobody is served any more", || {
        for _ in 0..20 {
            let mut client = Client::raw(port, 4);
            client.try_send(&connect("node").encode());
            client.reset();
        }
        !is_served(port, &connect("another"))
    });
    assert_it_serves_nobody(port);
}
