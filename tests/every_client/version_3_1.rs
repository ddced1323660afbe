//! MQTT 3.1, by its own document.

use crate::support::packet::{binary, packet};
use crate::support::{Client, Connect, Gateway, Setup, contents};

#[test]
fn redeliveries_are_marked_on_more_than_publications() {
    let gateway = Gateway::start();
    let mut client = Connect::v31("old").open(gateway.port);
    client.send(&packet(0x8a, &[&[0, 1], &binary(b"a"), &[2]]));
    assert_eq!(client.expect(9).body, [0, 1, 2]);
    client.send(&packet(0x34, &[&binary(b"a"), &[0, 7], b"x"]));
    assert_eq!(client.expect(5).id(), 7);
    client.send(&[0x6a, 2, 0, 7]);
    assert_eq!(client.expect(7).id(), 7);
    assert_eq!(client.receive().text(), "x");
    client.send(&packet(0xaa, &[&[0, 2], &binary(b"a")]));
    assert_eq!(client.expect(11).id(), 2);
}

#[test]
fn flags_that_a_packet_has_no_use_for_are_not_read() {
    let gateway = Gateway::start();
    let mut client = Client::raw(gateway.port, 3);
    let mut connect = Connect::v31("old").encode();
    connect[0] |= 0x0f;
    client.send(&connect);
    assert_eq!(client.read().body, [0, 0]);
    client.subscribe("a", 1);
    client.send(&[0xcf, 0]);
    client.expect(13);
    client.send(&packet(0x38, &[&binary(b"a"), b"DUP at QoS 0"]));
    client.send(&packet(0x82, &[&[0, 9], &binary(b"b"), &[0xfd]]));
    assert_eq!(client.expect(9).body, [0, 9, 1], "only the lowest two bits say the QoS");
    assert_eq!(client.receive().text(), "DUP at QoS 0");
    client.send(&packet(0x32, &[&binary(b"a"), &[0, 3], b"x"]));
    assert_eq!(client.expect(4).id(), 3);
    let message = client.receive_unacked();
    let [high, low] = message.id.to_be_bytes();
    client.send(&[0x4f, 2, high, low]);
    client.ping();
    client.send(&[0xef, 0]);
    assert!(client.closed().is_empty());
}

#[test]
fn newer_versions_stay_strict() {
    let gateway = Gateway::start();
    for version in [4, 5] {
        for first in [0x6a, 0x8a, 0xaa, 0x41, 0x52, 0x7f, 0xc8, 0xe1] {
            let mut client = Connect::version(version, "new").open(gateway.port);
            client.send(&[first, 2, 0, 1]);
            if version == 5 {
                client.closed_with(0x81);
            } else {
                assert!(client.closed().is_empty(), "{first:x}");
            }
        }
        let mut client = Client::raw(gateway.port, version);
        let mut connect = Connect::version(version, "new").encode();
        connect[0] |= 0x08;
        client.send(&connect);
        assert!(client.closed().is_empty());
    }
}

#[test]
fn who_may_not_subscribe_cannot_be_told() {
    let config = "[broker.anonymous]\nsubscribe = [\"open/#\"]";
    let gateway = Setup::default().config(config).start();
    let mut client = Connect::v31("old").open(gateway.port);
    assert_eq!(client.subscribe("closed", 1), 1);
    assert_eq!(client.subscribe("open/a", 2), 2);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for topic in ["closed", "open/a"] {
        publisher.publish(topic, "x", 1, false);
    }
    assert_eq!(contents(&[client.receive()]), [("open/a", "x".into())]);
    assert_eq!(Connect::new("new").open(gateway.port).subscribe("closed", 1), 0x80);
}
