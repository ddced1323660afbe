//! TLS listeners and client certificates.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use super::{PASSWORD, user};
use crate::support::tls::{Authority, client_config, is_turned_away, open};
use crate::support::{Connect, Gateway, PATIENCE, ReadSome, Setup, free_port};

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
    // signed by another authority with the same name
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
    let both = || {
        assert_eq!(open(&Connect::new("a"), port, config.clone()).1.reason, 0);
        Connect::new("b").open(gateway.port).ping();
    };
    both();
    // all of them are still connected, so nobody has waited until the time for their handshake was over
    for mut stream in silent.iter() {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read_some(&mut [0]).expect_err("nothing is said").kind(), ErrorKind::WouldBlock);
    }
    (0..20).for_each(|_| both());
}

#[test]
fn the_log_says_why_a_handshake_failed() {
    let authority = Authority::new();
    let (gateway, port) = gateway(&authority, true, "");
    for _ in 0..3 {
        assert!(is_turned_away(port, client_config(&authority, None)), "no certificate");
        let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
        plain.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a").unwrap();
        let _ = plain.read_some(&mut [0; 100]);
        let mut tls = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        tls.write_all(b"\x16\x03\x01\x02\x00").unwrap();
        let _ = tls.read_some(&mut [0; 100]);
    }
    let parts = ["The listener has client_ca", "does not speak TLS", "It speaks TLS"];
    for part in parts {
        gateway.wait_for_line(part);
    }
    let log = gateway.log();
    for part in parts {
        let count = log.iter().filter(|line| line.contains(part) && line.contains("from=127.0.0.1")).count();
        assert_eq!(count, 1, "{part} in {log:#?}");
    }
}

#[test]
fn a_crowd_that_begins_handshakes_leaves_the_processor_to_others() {
    const CROWD: usize = 150;
    let authority = Authority::new();
    let (mqtt, websocket) = (free_port(), free_port());
    let files = "{ cert = \"server.crt\", key = \"server.key\" }";
    let (setup, http) = Setup::default().http_tls(files);
    authority.write_server_files(setup.dir());
    let listener = |port, more| format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\ntls = {files}\n{more}");
    let gateway = setup.config(&(listener(mqtt, "") + &listener(websocket, "websocket = true\n"))).start();
    let config = client_config(&authority, None);
    let client = || ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap();
    for port in [mqtt, websocket, http] {
        let mut hello = Vec::new();
        client().write_tls(&mut hello).unwrap();
        let connect = |from: &str| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
            TcpStream::from(socket)
        };
        let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect("127.0.0.9")).collect();
        let mut other = connect("127.0.0.1");
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let (before, begin) = (gateway.cpu_time(), Instant::now());
        for socket in &mut crowd {
            socket.write_all(&hello).unwrap();
        }
        let mut tls = client();
        while tls.is_handshaking() {
            tls.complete_io(&mut other).unwrap();
        }
        for socket in &crowd {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_ne!(socket.peek(&mut [0]).unwrap(), 0, "all have their turns");
        }
        let (busy, time) = (gateway.cpu_time() - before, begin.elapsed());
        println!("{busy:?} of {time:?} for {CROWD} handshakes");
        assert!(busy * 4 < time * 3, "busy for {busy:?} of {time:?}");
    }
}
