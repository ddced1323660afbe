//! The sizes of packets, and the memory of all packets that are being received.

use crate::support::packet::{Properties, publish};
use crate::support::{Client, Connect, Gateway, Lookup, Setup, http};

/// Zigbee2MQTT publishes its devices in one message, and paho's clients buffers of a megabyte and more.
#[test]
fn two_mebibytes_fit_unless_less_is_configured() {
    let gateway = Gateway::start();
    let (mut client, connack) = Connect::v5("client").persistent().open_with(gateway.port);
    assert_eq!(connack.properties.number(0x27), Some(2 << 20));
    client.subscribe("bridge/devices", 1);
    client.disconnect();
    let payload: Vec<u8> = (0..2_000_000u32).map(|at| (at % 251) as u8).collect();
    let mut publisher = Connect::new("zigbee2mqtt").open(gateway.port);
    publisher.publish("bridge/devices", &payload, 1, true);
    let mut client = Connect::v5("client").persistent().open(gateway.port);
    let queued = client.receive();
    assert!(queued.payload == payload, "the queue of a client that is away holds it");
    let mut later = Connect::new("later").open(gateway.port);
    later.subscribe("bridge/#", 2);
    assert!(later.receive().payload == payload, "and so does the retained store");
    // a second time, which shows that the memory was freed
    for _ in 0..20 {
        publisher.publish("other", &payload, 1, false);
    }
}

#[test]
fn whoever_is_not_known_yet_has_64_kib() {
    let gateway = Gateway::start();
    let fits = "x".repeat(60_000);
    Connect::v5("fits").will("w", &fits, 0, false).open(gateway.port).disconnect();
    for version in [4, 5] {
        let mut client = Client::raw(gateway.port, version);
        let (will, password) = ("x".repeat(65_500), "x".repeat(1000));
        let connect = Connect::version(version, "large").will("w", &will, 0, false).login("u", &password);
        client.try_send(&connect.encode());
        if version == 5 {
            assert_eq!(client.read().body[1], 0x95);
        }
        assert!(client.closed().is_empty());
    }
    let line = gateway.wait_for_line("before login");
    assert!(line.contains("65536 bytes") && line.contains("WARN"), "{line}");
}

#[test]
fn being_cut_off_for_size_is_a_warning_with_all_that_helps() {
    let gateway = Gateway::with("[broker]\nmax_packet_size = \"4 KiB\"");
    let mut client = Connect::v5("zigbee2mqtt").open(gateway.port);
    let packet = publish(b"bridge/devices", &[b'x'; 5000], 0, None, Some(&Properties::new()));
    // some clients send the head separately, and the topic must be reported nevertheless
    client.send(&packet[..3]);
    client.send(&packet[3..]);
    client.closed_with(0x95);
    let line = gateway.wait_for_line("broker.max_packet_size");
    let size = packet.len().to_string();
    for part in ["WARN", "zigbee2mqtt", "bridge/devices", &size, "4096"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

/// A client that has begun a packet and does not complete it.
fn half(port: u16, id: &str) -> Client {
    let mut client = Connect::new(id).keep_alive(0).open(port);
    client.send(&publish(b"a", &vec![b'x'; 2_000_000], 0, None, None)[..100_000]);
    client
}

#[test]
fn packets_that_do_not_end_hold_nobody_up_for_ever() {
    let gateway = Gateway::start();
    let halves: Vec<Client> = (0..20).map(|number| half(gateway.port, &format!("half-{number}"))).collect();
    let mut client = Connect::new("whole").open(gateway.port);
    // small packets need none of the shared memory
    client.publish("small", [b'x'; 60_000], 1, false);
    client.publish("large", vec![b'x'; 1_000_000], 1, false);
    let line = gateway.wait_for_line("has held memory for a large packet");
    assert!(line.contains("half-") && line.contains("WARN"), "{line}");
    drop(halves);
}

#[test]
fn a_refusal_by_http_arrives_although_the_body_is_still_coming() {
    let (setup, port) = Setup::default().config("[broker]\nmax_packet_size = \"64 KiB\"").http();
    let gateway = setup.start();
    let body = vec![b'x'; 8 << 20];
    for target in ["/api/v1/topics/a", "/api/v1/nothing", "/api/v1/topics/a?qos=7"] {
        let expected = match target {
            "/api/v1/topics/a" => 413,
            "/api/v1/nothing" => 404,
            _ => 400,
        };
        for _ in 0..10 {
            let answer = http::request(port, "PUT", target, &[], &body);
            assert_eq!(answer.status, expected, "{target}");
            assert!(!answer.body.is_empty(), "with words");
        }
    }
    assert!(http::request(port, "PUT", "/api/v1/topics/a", &[], &body).text().contains("max_packet_size"));
    drop(gateway);
}
