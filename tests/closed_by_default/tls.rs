//! TLS listeners and client certificates.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{PASSWORD, user};
use crate::support::tls::{Authority, client_config, is_turned_away, open};
use crate::support::{Connect, Gateway, Setup, free_port};

/// A gateway with a plain and a TLS listener; returns the port of the latter.
fn gateway(authority: &Authority, with_ca: bool, more: &str) -> (Gateway, u16) {
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    let port = free_port();
    let ca = if with_ca { ", client_ca = \"ca.crt\"" } else { "" };
    let listener = format!(
        "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n\
         tls = {{ cert = \"server.crt\", key = \"server.key\"{ca} }}\n{more}"
    );
    (setup.config(&listener).start(), port)
}

#[test]
fn passwords_and_messages_pass_over_tls() {
    let authority = Authority::new();
    let (gateway, port) = gateway(&authority, false, &user("esp", ""));
    let config = client_config(&authority, None);
    let (mut client, connack) = open(&Connect::v5("a").login("esp", PASSWORD), port, config.clone());
    assert_eq!(connack.reason, 0);
    client.subscribe("a", 2);
    let payload = vec![b'x'; 200_000];
    Connect::new("plain").open(gateway.port).publish("a", &payload, 2, false);
    assert!(client.receive().payload == payload);
    assert_eq!(open(&Connect::v5("b").login("esp", "wrong"), port, config).1.reason, 0x86);
    let stranger = client_config(&Authority::new(), None);
    assert!(is_turned_away(port, stranger), "a client that does not trust the server");
}

#[test]
fn the_common_name_of_a_client_certificate_is_the_user() {
    let authority = Authority::new();
    let rules = "[[broker.user]]\nname = \"esp\"\npublish = [\"users/%u\"]\n";
    let (_gateway, port) = gateway(&authority, true, rules);
    let esp = authority.sign("esp");
    let (mut client, connack) = open(&Connect::v5("a"), port, client_config(&authority, Some(&esp)));
    assert_eq!(connack.reason, 0);
    assert_eq!(client.publish("users/esp", "", 1, false), 0);
    assert_eq!(client.publish("users/admin", "", 1, false), 0x87);
    let (mut client, _) = open(&Connect::v5("b").login("admin", "x"), port, client_config(&authority, Some(&esp)));
    assert_eq!(client.publish("users/admin", "", 1, false), 0x87, "the certificate counts, not the name in CONNECT");

    let unknown = client_config(&authority, Some(&authority.sign("unknown")));
    assert_eq!(open(&Connect::v5("c"), port, unknown.clone()).1.reason, 0x87);
    assert_eq!(open(&Connect::new("c"), port, unknown).1.reason, 5);
    assert!(is_turned_away(port, client_config(&authority, None)), "no certificate");
    // signed by somebody else, who has the same name
    let other = Authority::new();
    assert!(is_turned_away(port, client_config(&authority, Some(&other.sign("esp")))));
}

#[test]
fn silent_handshakes_and_half_open_sockets_hold_up_nobody() {
    let authority = Authority::new();
    let (gateway, port) = gateway(&authority, false, "");
    let connect = |port| TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    let silent: Vec<TcpStream> =
        (0..60).map(|number| connect(if number % 2 == 0 { port } else { gateway.port })).collect();
    let config = client_config(&authority, None);
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(open(&Connect::new("a"), port, config.clone()).1.reason, 0);
        Connect::new("b").open(gateway.port).ping();
    }
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}: as long as a handshake may take", begin.elapsed());
    drop(silent);
}
