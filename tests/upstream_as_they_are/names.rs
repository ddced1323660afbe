//! Names with several addresses of which one is broken, as those of clusters: a node that is drained, has an old certificate,
//! or whose balancer says that it is overloaded.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::support::tls::Authority;
use crate::support::{Mosquitto, Setup, free_port, wait_until};
use crate::{ledger, publish, start, upstream};

/// Does this with each connection to `[::1]:PORT`, which `localhost` leads to besides 127.0.0.1.
fn broken_node(port: u16, mut treat: impl FnMut(TcpStream) + Send + 'static) {
    let listener = TcpListener::bind(("::1", port)).unwrap();
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(&mut treat));
}

/// The ways in which a node is broken.
fn silent(port: u16) {
    let mut kept = Vec::new();
    broken_node(port, move |stream| kept.push(stream));
}

fn closing(port: u16) {
    broken_node(port, |mut stream| {
        let _ = stream.read(&mut [0; 64]);
    });
}

fn overloaded(port: u16) {
    broken_node(port, |mut stream| {
        let _ = stream.read(&mut [0; 2048]);
        let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    });
}

/// Accepts MQTT 5, and says that another server is to be used.
fn sending_away(port: u16) {
    broken_node(port, |mut stream| {
        let _ = stream.read(&mut [0; 2048]);
        let _ = stream.write_all(&[0x20, 3, 0, 0, 0, 0xe0, 2, 0x9c, 0]);
        // until it has gone
        while stream.read(&mut [0; 2048]).is_ok_and(|bytes| bytes > 0) {}
    });
}

/// Accepts MQTT 3.1.1, and closes the connection at the next packet.
fn accepting(port: u16) {
    broken_node(port, |mut stream| {
        let _ = stream.read(&mut [0; 2048]);
        let _ = stream.write_all(&[0x20, 2, 0, 0]);
        let _ = stream.read(&mut [0; 2048]);
    });
}

/// Checks that a message gets to the good node of `localhost`.
#[track_caller]
fn arrives(config: &str) {
    let (gateway, http) = start(config);
    publish(&gateway, "a", &["1"], false);
    wait_until("it is there", || ledger(http)["acked"] == 1);
}

/// A mosquitto with TLS at this address, and the keys of an upstream that trusts it.
fn secure(authority: &Authority, address: &str, port: u16) -> (Mosquitto, String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    authority.write_server_files(dir.path());
    let at = dir.path().display();
    let broker = Mosquitto::with(&format!(
        "listener {port} {address}\nuser root\ncertfile {at}/server.crt\nkeyfile {at}/server.key\n"
    ));
    (broker, format!("connect_timeout = \"2 s\"\ntls = {{ ca = \"{at}/ca.crt\" }}"), dir)
}

#[test]
fn what_tls_finds_wrong_with_one_address_does_not_keep_a_name_from_the_other() {
    for node in [silent as fn(u16), closing] {
        let port = free_port();
        let (_good, keys, _dir) = secure(&Authority::new(), "127.0.0.1", port);
        node(port);
        arrives(&upstream(port, &keys).replace("mqtt://127.0.0.1", "mqtts://localhost"));
    }
    let port = free_port();
    let (_good, keys, _dir) = secure(&Authority::new(), "127.0.0.1", port);
    let _old = secure(&Authority::new(), "::1", port);
    arrives(&upstream(port, &keys).replace("mqtt://127.0.0.1", "mqtts://localhost"));
}

#[test]
fn a_node_that_accepts_and_sends_away_does_not_keep_a_name_from_the_other() {
    for (node, protocol) in [(sending_away as fn(u16), 5), (accepting, 4)] {
        let port = free_port();
        let _good = Mosquitto::on(free_port(), &format!("listener {port} 127.0.0.1"));
        node(port);
        arrives(&upstream(port, &format!("protocol = {protocol}")).replace("127.0.0.1", "localhost"));
    }
}

#[test]
fn a_web_server_that_is_overloaded_does_not_keep_a_name_from_the_other() {
    for node in [silent as fn(u16), overloaded] {
        let (setup, web) = Setup::default().http();
        let _good = setup.start();
        node(web);
        let address = format!("ws://localhost:{web}/mqtt");
        arrives(&upstream(1, "connect_timeout = \"2 s\"").replace("mqtt://127.0.0.1:1", &address));
    }
}
