//! Ends of connections: packets that either side has sent before still count.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use crate::support::packet::{Properties, V5, packet, publish};
use crate::support::tls::{Authority, client_config, open};
use crate::support::{Client, Connect, Gateway, Setup, contents, free_port};

const ROUNDS: usize = 200;

/// Sends all packets at once and closes the connection without waiting for answers.
fn throw(port: u16, parts: &[&[u8]]) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(&parts.concat()).unwrap();
}

const DISCONNECT: &[u8] = &[0xe0, 0];

#[test]
fn a_disconnect_counts_however_soon_the_client_is_back() {
    let gateway = Gateway::start();
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe("will", 1);
    for round in 0..ROUNDS {
        let connect = Connect::v5("hasty").will("will", &round.to_string(), 1, false);
        if round % 2 == 0 {
            throw(gateway.port, &[&connect.encode(), DISCONNECT]);
        } else {
            let mut client = connect.open(gateway.port);
            client.send(DISCONNECT);
        }
        let mut next = Connect::v5("hasty").open(gateway.port);
        next.ping();
        next.disconnect();
    }
    assert_eq!(contents(&watcher.drain()), []);
}

#[test]
fn a_session_that_was_given_up_is_not_there_any_more() {
    let gateway = Gateway::start();
    let expiry = |seconds| Properties::new().four(0x11, seconds);
    let give_up = packet(0xe0, &[&[0], &expiry(0).section()]);
    for round in 0..ROUNDS {
        let connect = Connect::v5("hasty").clean(false).properties(expiry(3600));
        if round % 2 == 0 {
            throw(gateway.port, &[&connect.encode(), &give_up]);
        } else {
            let mut client = connect.open(gateway.port);
            client.send(&give_up);
        }
        let (_, connack) = Connect::v5("hasty").clean(false).open_with(gateway.port);
        assert!(!connack.present, "round {round}");
    }
}

#[test]
fn what_was_published_before_a_takeover_is_published() {
    let gateway = Gateway::start();
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe("t1", 0);
    for round in 0..ROUNDS {
        for version in [4, 5] {
            let mut client = Connect::version(version, "hasty").open(gateway.port);
            let section: &[u8] = if version == V5 { &[0] } else { &[] };
            let message = packet(0x30, &[b"\0\x02t1", section, format!("{round}-{version}").as_bytes()]);
            client.send(&message);
            if round % 2 == 0 {
                client.send(DISCONNECT);
            }
            if round % 3 == 0 {
                drop(client);
            }
            Connect::version(version, "hasty").open(gateway.port).disconnect();
            assert_eq!(watcher.receive().text(), format!("{round}-{version}"));
        }
    }
}

#[test]
fn what_was_sent_before_the_client_closed_is_read_even_if_it_takes_no_answers() {
    let gateway = Gateway::start();
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe_all(&[("t1", 0), ("will", 0)], &Properties::new());
    const MESSAGES: u16 = 300; // what a socket holds
    for qos in [0, 1, 2] {
        let connect = Connect::new("hasty").will("will", "x", 1, false);
        let messages: Vec<u8> = (1..=MESSAGES)
            .flat_map(|id| publish(b"t1", &[b'x'; 100], qos << 1, (qos > 0).then_some(id), None))
            .collect();
        // the broker's answers reach a closed socket, which resets the connection
        throw(gateway.port, &[&connect.encode(), &messages, DISCONNECT]);
        for _ in 0..MESSAGES {
            assert_eq!(watcher.receive().topic, "t1");
        }
    }
    assert_eq!(contents(&watcher.drain()), []);
}

#[test]
fn the_newest_connection_has_the_client_id() {
    let gateway = Gateway::start();
    for _ in 0..ROUNDS {
        // no answer to the first client is awaited, not even its CONNACK
        let connect = Connect::v5("twin").encode();
        let mut first = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        first.write_all(&connect).unwrap();
        let mut second = Connect::v5("twin").open(gateway.port);
        second.ping();
        second.disconnect();
    }
}

/// Sends without a pause until the other end no longer accepts bytes.
fn flood(socket: &TcpStream, packet: &[u8]) -> std::thread::JoinHandle<()> {
    let mut socket = socket.try_clone().unwrap();
    let packets = packet.repeat(64);
    std::thread::spawn(move || while socket.write_all(&packets).is_ok() {})
}

#[test]
fn a_reason_reaches_a_client_that_is_still_sending() {
    let gateway = Gateway::with("[broker]\nmax_packet_size = \"64 KiB\"");
    let message = publish(b"a", &[b'x'; 1000], 0, None, Some(&Properties::new()));
    let pings = [&message[..], &[0xc0, 0]].concat();
    let too_large = publish(b"a", &vec![b'x'; 2 << 20], 0, None, Some(&Properties::new()));
    let second_connect = Connect::v5("again").encode();
    for round in 0..20 {
        for (wrong, reason) in [
            (&[0x36, 4, 0, 1, b'a', 0][..], 0x81), // QoS 3
            (&second_connect, 0x82),
            (&too_large, 0x95),
        ] {
            let mut client = Connect::v5("busy").open(gateway.port);
            client.send(&message);
            client.send(wrong);
            // the broker may have closed by now
            client.try_send(&message.repeat(500));
            client.closed_with(reason);
        }
        if round >= 4 {
            continue;
        }
        let mut taken = Connect::v5("busy").open(gateway.port);
        let sender = flood(&taken.socket, if round % 2 == 0 { &pings } else { &message });
        let other = Connect::v5("busy").open(gateway.port);
        taken.closed_with(0x8e);
        // ends the sender, if the broker's end of the connection has not done so by now
        let _ = taken.socket.shutdown(Shutdown::Both);
        sender.join().unwrap();
        other.disconnect();
    }
}

#[test]
fn a_refusal_reaches_a_client_that_sends_more_than_its_connect() {
    let gateway = Gateway::with("[broker.anonymous]\naccept = \"none\"");
    let more = publish(b"a", &[b'x'; 1000], 0, None, None).repeat(500);
    for _ in 0..50 {
        let mut client = Client::raw(gateway.port, 4);
        client.send(&Connect::new("stranger").encode());
        client.try_send(&more);
        assert_eq!(client.read().body, [0, 5]);
        client.closed();
    }
}

#[test]
fn a_reason_arrives_over_tls_too() {
    let port = free_port();
    let files = "{ cert = \"server.crt\", key = \"server.key\" }";
    let setup = Setup::default().config(&format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\ntls = {files}"));
    let authority = Authority::new();
    authority.write_server_files(setup.dir());
    let _gateway = setup.start();
    let config = client_config(&authority, None);
    let message = publish(b"a", &[b'x'; 1000], 0, None, Some(&Properties::new()));
    for _ in 0..20 {
        let (mut client, _) = open(&Connect::v5("busy"), port, config.clone());
        client.send(&[0x36, 4, 0, 1, b'a', 0]);
        client.try_send(&message.repeat(300));
        client.closed_with(0x81);
    }
}
