//! Malformed packets.

use std::time::Instant;

use super::{Random, assert_it_serves};
use crate::support::packet::{Properties, V5, V31, V311, binary, packet, publish};
use crate::support::{Client, Connect, Gateway, Setup, http, quick_hash};

/// Bytes that end a connection whatever its version is.
fn wrong_everywhere() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![
        vec![0x00, 0],
        vec![0xf1, 0],
        vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
        vec![0x30, 0],
        vec![0x32, 1, 0],
        vec![0x80, 0],
        vec![0x82, 0],
        vec![0x62, 1, 0],
        vec![0x40, 0],
        vec![0xc1, 0],
        vec![0xc0, 1, 0],
        vec![0xe1, 0],
        Connect::new("second").encode(),
        packet(0x36, &[&binary(b"a"), &[0, 1]]),
        packet(0x38, &[&binary(b"a")]),
        packet(0x82, &[&[0, 0], &binary(b"a"), &[0]]),
        packet(0x82, &[&[0, 1]]),
        packet(0xa2, &[&[0, 1]]),
    ];
    for topic in [&b"+"[..], b"a/#", b"#", b"a\0b", b"\xff\xfe", b"\xed\xa0\x80", b"a+"] {
        all.push(publish(topic, b"x", 0, None, None));
    }
    // packets that only servers send
    all.extend([0x20, 0x90, 0xb0, 0xd0].map(|first| vec![first, 2, 0, 0]));
    all
}

#[test]
fn every_malformed_packet_ends_its_connection_only() {
    let mut gateway = Gateway::start();
    let mut witness = Connect::new("witness").open(gateway.port);
    for bytes in wrong_everywhere() {
        for version in [V31, V311, V5] {
            if version == V31 && bytes == [0xc1, 0] {
                continue; // it does not look at flags that PINGREQ has no use for
            }
            let mut client = Connect::version(version, "broken").open(gateway.port);
            client.send(&bytes);
            // no byte after the malformed packet is read
            client.try_send(&[0xff; 8]);
            let last = client.closed();
            assert!(last.iter().all(|packet| packet.kind() == 14), "{bytes:x?} is answered with {last:?}");
            assert!(version == V5 || last.is_empty(), "MQTT 3 has no DISCONNECT from the server");
            witness.ping();
        }
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn what_clients_send_is_short_in_the_log_and_on_the_page() {
    let (setup, http) = Setup::default().http();
    let hash = quick_hash("secret");
    let gateway =
        setup.config(&format!("[[broker.user]]\nname = \"a\"\npassword_hash = \"{hash}\"\npublish = []\n")).start();
    let long = "ü".repeat(30_000);
    assert_ne!(Connect::v5("a").login(&long, "x").refused(gateway.port), 0);
    let line = gateway.wait_for_line("client refused: wrong user name or password");
    let shown = format!("user=\"{}…\" from=127.0.0.1", "ü".repeat(150));
    assert!(line.contains(&shown) && line.len() < 800, "{line}");
    let mut client = Connect::v5("a").login("a", "secret").open(gateway.port);
    assert_eq!(client.publish(&format!("x\n{long}"), "", 1, false), 0x87);
    let line = gateway.wait_for_line("publication refused");
    assert!(line.contains("topic=\"x?üü") && line.contains("more_since_last=0") && line.len() < 800, "{line}");
    let problems = http::request(http, "GET", "/api/v1/problems", &[], b"").text();
    assert!(problems.contains("wrong user name") && problems.contains("from=127.0.0.1"), "{problems}");
    assert!(problems.len() < 4000, "{problems}");
    let (_, log) = gateway.stop();
    assert!(log.iter().all(|line| line.len() < 4000), "{log:?}");
}

#[test]
fn one_bad_client_does_not_fill_the_log() {
    let begin = Instant::now();
    let gateway = Gateway::start();
    let deep = "a/".repeat(201);
    for _ in 0..50 {
        let mut client = Connect::v5("evil").open(gateway.port);
        assert_eq!(client.publish(&deep, "x", 1, false), 0x90);
        client.send(b"\xf1\0");
        client.closed();
    }
    Connect::new("old").open(gateway.port).publish(&deep, "not taken, and MQTT 3 cannot say so", 1, false);
    gateway.wait_for_lines("more than 200 levels", 2);
    // one more line has the number of those without a line
    for number in 0..30 {
        let mut client = Connect::v5(&format!("evil-{number}")).open(gateway.port);
        client.send(b"\xf1\0");
        client.closed();
    }
    gateway.wait_for_lines("more of what clients did wrong than has lines here", 1);
    let (_, log) = gateway.stop();
    let lines = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    // sixteen lines for one address in a minute, two of them about levels; on a slow machine this takes more than a minute
    let minutes = 1 + begin.elapsed().as_secs() as usize / 60;
    let (violations, levels) = (lines("protocol violation"), lines("levels"));
    assert!((14..=16 * minutes - 2).contains(&violations) && (2..=2 * minutes).contains(&levels), "{log:?}");
}

#[test]
fn wildcards_and_nul_in_topics_have_their_reason() {
    let gateway = Gateway::start();
    for (topic, reason) in [(&b"a/+"[..], 0x90), (b"#", 0x90), (b"a\0", 0x81), (b"\xc3", 0x81)] {
        let mut client = Connect::v5("broken").open(gateway.port);
        client.send(&publish(topic, b"x", 0, None, Some(&Properties::new())));
        client.closed_with(reason);
    }
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_conversation() {
    let mut gateway = Gateway::start();
    let conversation = [
        Connect::v5("c").will("w", "x", 1, true).login("u", "p").properties(Properties::new().four(0x11, 5)).encode(),
        packet(0x82, &[&[0, 1], &[0], &binary(b"a/#"), &[2]]),
        publish(b"a/b", b"payload", 4, Some(5), Some(&Properties::new().text(3, "t").user("k", "v"))),
        vec![0x62, 2, 0, 5],
        vec![0xe0, 0],
    ]
    .concat();
    for cut in 0..conversation.len() {
        let mut client = Client::raw(gateway.port, V5);
        client.send(&conversation[..cut]);
        client.vanish();
    }
    for bit in 0..conversation.len() * 8 {
        let mut flipped = conversation.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let mut client = Client::raw(gateway.port, V5);
        client.send(&flipped);
        client.reset();
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn random_bytes_before_and_after_connect() {
    let mut gateway = Gateway::start();
    let mut random = Random(0x5eed_0001);
    for round in 0..3000 {
        let len = 1 + random.below(200);
        let mut bytes = random.bytes(len);
        let mut client = if round % 3 == 0 {
            Client::raw(gateway.port, V311)
        } else {
            let version = [V31, V311, V5][random.below(3)];
            // a valid first byte leads to errors later in the packet
            bytes[0] = [0x30, 0x32, 0x34, 0x3d, 0x82, 0xa2, 0x40, 0x50, 0x62, 0x70, 0xe0, 0xf0][random.below(12)];
            if len > 1 {
                bytes[1] = (len - 2).min(127) as u8;
            }
            Connect::version(version, "random").open(gateway.port)
        };
        client.try_send(&bytes);
        client.reset();
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn a_connect_that_lies_about_its_length_waits_for_nobody() {
    let mut gateway = Gateway::start();
    let mut waiting = Vec::new();
    for claimed in [200_000, 260_000] {
        let mut client = Client::raw(gateway.port, V311);
        client.send(&[vec![0x10], crate::support::packet::variable(claimed), binary(b"MQTT")].concat());
        waiting.push(client);
    }
    let mut large = Client::raw(gateway.port, V311);
    large.send(&[vec![0x10], crate::support::packet::variable(300_000)].concat());
    large.closed();
    assert_it_serves(&mut gateway);
}
