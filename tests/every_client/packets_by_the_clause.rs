//! Statements of the standards about packets and their fields. `docs/conformance.md` lists the test of each statement.

use crate::support::packet::{Properties, V5, V311, binary, packet, publish};
use crate::support::{Client, Connect, Gateway, Lookup, contents};

/// Checks that these bytes of a connected client end its connection, with MQTT 5 by a DISCONNECT with this reason.
#[track_caller]
fn ends_with(gateway: &Gateway, version: u8, bytes: &[u8], reason: u8) {
    let mut client = Connect::version(version, "wrong").open(gateway.port);
    client.send(bytes);
    let last = client.closed();
    if version == V5 {
        let disconnect = last.last().unwrap_or_else(|| panic!("a DISCONNECT for {bytes:x?}"));
        assert_eq!((disconnect.kind(), &disconnect.body[..]), (14, &[reason, 0][..]), "no properties: {bytes:x?}");
    } else {
        assert_eq!(last, [], "MQTT 3.1.1 has no DISCONNECT from the server: {bytes:x?}");
    }
}

/// A CONNECT with these flags and this payload, and with empty properties if the version has them.
fn connect(version: u8, flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    let properties: &[u8] = if version == V5 { &[0] } else { &[] };
    packet(0x10, &[&binary(b"MQTT"), &[version, flags, 0, 0], properties, &payload.concat()])
}

/// Checks that the broker closes the connection, and sends at most a CONNACK with a refusal.
#[track_caller]
fn is_no_client(gateway: &Gateway, bytes: &[u8]) {
    let mut client = Client::raw(gateway.port, V311);
    client.send(bytes);
    for answer in client.closed() {
        assert_eq!((answer.kind(), answer.body[0]), (2, 0), "{bytes:x?} is answered with {answer:?}");
        assert_ne!(answer.body[1], 0, "{bytes:x?} is accepted");
    }
}

#[test]
fn the_flags_of_connect_say_what_follows() {
    let gateway = Gateway::start();
    for version in [V311, V5] {
        let id = binary(b"flags");
        let will: &[u8] = if version == V5 { b"\0\0\x04will\0\x03bye" } else { b"\0\x04will\0\x03bye" };
        for (flags, payload, why) in [
            (0x03, vec![&id[..]], "the reserved flag [MQTT-3.1.2-3]"),
            (0x06, vec![&id], "a will flag without will [MQTT-3.1.2-9]"),
            (0x02, vec![&id, will], "a will without will flag"),
            (0x0a, vec![&id], "will QoS without will [MQTT-3.1.2-11]"),
            (0x22, vec![&id], "will retain without will [MQTT-3.1.2-13]"),
            (0x1e, vec![&id, will], "will QoS 3 [MQTT-3.1.2-12]"),
            (0x82, vec![&id], "a user name flag without user name [MQTT-3.1.2-17]"),
            (0x02, vec![&id, b"\0\x01u"], "a user name without flag [MQTT-3.1.2-16]"),
            (0xc2, vec![&id, b"\0\x01u"], "a password flag without password [MQTT-3.1.2-19]"),
            (0x82, vec![&id, b"\0\x01u", b"\0\x01p"], "a password without flag [MQTT-3.1.2-18]"),
            (0x02, vec![], "no client id [MQTT-3.1.3-3]"),
        ] {
            println!("version {version}: {why}");
            is_no_client(&gateway, &connect(version, flags, &payload));
        }
        let mut good = Client::raw(gateway.port, version);
        good.send(&connect(version, 0xf6, &[&id, will, b"\0\x01u", b"\0\x01p"]));
        assert_eq!(good.read().body[..2], [0, 0], "all of it, in its order [MQTT-3.1.3-1]");
    }
    // MQTT 3.1.1 has no password without a user name, MQTT 5 has
    is_no_client(&gateway, &connect(V311, 0x42, &[b"\0\x01a", b"\0\x01p"]));
    let mut token = Client::raw(gateway.port, V5);
    token.send(&connect(V5, 0x42, &[b"\0\x01a", b"\0\x01p"]));
    assert_eq!(token.read().kind(), 2);
}

#[test]
fn what_is_no_connect_is_no_client() {
    let gateway = Gateway::start();
    for bytes in [
        packet(0x10, &[&binary(b"MQTX"), &[4, 2, 0, 0], &binary(b"a")]), // [MQTT-3.1.2-1]
        packet(0x10, &[&binary(b"MQTT"), &[6, 2, 0, 0], &binary(b"a")]), // [MQTT-3.1.2-2]
        packet(0x11, &[&binary(b"MQTT"), &[4, 2, 0, 0], &binary(b"a")]), // [MQTT-2.1.3-1]
        packet(0x10, &[&binary(b"MQTT"), &[5, 2, 0, 0, 2, 0x7e, 0], &binary(b"a")]), // no such property
        packet(0x10, &[&binary(b"MQTT"), &[5, 2, 0, 0, 3, 0x21, 0, 0], &binary(b"a")]), // Receive Maximum 0
        packet(0x10, &[&binary(b"MQTT"), &[4, 2, 0, 0], &binary(b"a"), b"more"]),
        publish(b"a", b"before CONNECT", 0, None, None), // [MQTT-3.1.0-1]
        vec![0xe0, 0],
    ] {
        is_no_client(&gateway, &bytes);
    }
}

#[test]
fn what_follows_a_refused_connect_is_not_read() {
    let gateway = Gateway::start();
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe("#", 1);
    let method = Connect::v5("a").properties(Properties::new().text(0x15, "SCRAM-SHA-1"));
    let long = "x".repeat(1025);
    for (version, refused, reason) in [
        (V311, Connect::new("").clean(false), 2),
        (V311, Connect::new(&long), 2),
        (V5, Connect::v5(&long), 0x85),
        (V5, method, 0x8c),
    ] {
        let section = (version == V5).then(Properties::new);
        let will = refused.will("will", "x", 1, false);
        let mut client = Client::raw(gateway.port, version);
        client.send(&[will.encode(), publish(b"a", b"x", 2, Some(1), section.as_ref())].concat());
        let answer = client.read();
        assert_eq!((answer.kind(), &answer.body[..2]), (2, &[0, reason][..]));
        assert_eq!(client.closed(), [], "one CONNACK and nothing else");
    }
    assert_eq!(watcher.drain(), [], "neither the message nor the will [MQTT-3.1.4-6]");
}

#[test]
fn a_refusal_never_says_that_a_session_is_present() {
    let gateway = Gateway::start();
    Connect::v5("kept").persistent().open(gateway.port).disconnect();
    let method = Properties::new().text(0x15, "SCRAM-SHA-1");
    let (mut client, connack) = Connect::v5("kept").persistent().properties(method).try_open(gateway.port);
    assert_eq!((connack.present, connack.reason), (false, 0x8c));
    assert_eq!(client.closed(), []);
    assert!(Connect::v5("kept").persistent().open_with(gateway.port).1.present, "the session is still there");
}

#[test]
fn client_ids_that_every_server_must_take() {
    let gateway = Gateway::start();
    let all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for version in [V311, V5] {
        for id in [&all[..1], &all[..23], &all[20..43], &all[39..]] {
            Connect::version(version, id).open(gateway.port).ping();
        }
    }
}

#[test]
fn strings_are_utf_8_without_nul() {
    let gateway = Gateway::start();
    for wrong in [&b"\xff\xfe"[..], b"\xed\xa0\x80", b"a\0b", b"\xc3"] {
        let text = binary(wrong);
        for version in [V311, V5] {
            let will: Vec<u8> = if version == V5 { vec![0] } else { vec![] };
            // client id, will topic, user name
            is_no_client(&gateway, &connect(version, 2, &[&text]));
            is_no_client(&gateway, &connect(version, 6, &[&binary(b"a"), &will, &text, &binary(b"x")]));
            is_no_client(&gateway, &connect(version, 0x82, &[&binary(b"a"), &text]));
            let section: &[u8] = if version == V5 { &[0] } else { &[] };
            ends_with(&gateway, version, &packet(0x30, &[&text, section, b"x"]), 0x81);
            ends_with(&gateway, version, &packet(0x82, &[&[0, 1], section, &text, &[0]]), 0x81);
            ends_with(&gateway, version, &packet(0xa2, &[&[0, 1], section, &text]), 0x81);
        }
        for id in [0x03, 0x08] {
            let properties = Properties::new().text(id, wrong);
            ends_with(&gateway, V5, &publish(b"a", b"", 0, None, Some(&properties)), 0x81);
        }
        // both halves of a user property [MQTT-1.5.7-1]
        for pair in [[text.clone(), binary(b"a")], [binary(b"a"), text.clone()]] {
            let properties = Properties([vec![0x26], pair.concat()].concat());
            ends_with(&gateway, V5, &publish(b"a", b"", 0, None, Some(&properties)), 0x81);
        }
    }
    // a response topic is a topic [MQTT-3.3.2-14]
    let wildcard = Properties::new().text(0x08, "a/#");
    ends_with(&gateway, V5, &publish(b"a", b"", 0, None, Some(&wildcard)), 0x90);
}

#[test]
fn names_are_compared_as_they_stand() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    // names that look alike: another composition, a byte order mark, another case, and one more slash
    let names = ["\u{c5}", "A\u{30a}", "a", "\u{feff}a", "A", "a/", "/a", "a//"];
    for filter in names {
        let mut subscriber = Connect::new("subscriber").open(gateway.port);
        assert_eq!(subscriber.subscribe(filter, 1), 1);
        for name in names {
            publisher.publish(name, name, 1, false);
        }
        assert_eq!(contents(&subscriber.drain()), [(filter, filter.to_owned())]);
    }
}

#[test]
fn reserved_bits_end_the_connection() {
    let gateway = Gateway::start();
    for version in [V311, V5] {
        let section: &[u8] = if version == V5 { &[0] } else { &[] };
        for (kind, right, body) in [
            (4, 0, vec![0, 1]),
            (5, 0, vec![0, 1]),
            (6, 2, vec![0, 1]),
            (7, 0, vec![0, 1]),
            (8, 2, [&[0, 1], section, &[0, 1, b'a', 0]].concat()),
            (10, 2, [&[0, 1], section, &[0, 1, b'a']].concat()),
            (12, 0, vec![]),
            (14, 0, vec![]),
        ] {
            for flags in (0..16).filter(|flags| *flags != right) {
                ends_with(&gateway, version, &packet(kind << 4 | flags, &[&body]), 0x81);
            }
        }
    }
    for flags in 1..16 {
        ends_with(&gateway, V5, &packet(0xf0 | flags, &[&[0x18, 0]]), 0x81); // [MQTT-3.15.1-1]
    }
    // in the options of a subscription
    for options in [0x40, 0x80, 0xc1] {
        ends_with(&gateway, V5, &packet(0x82, &[&[0, 1, 0, 0, 1, b'a', options]]), 0x81); // [MQTT-3.8.3-5]
    }
    for options in [0x04, 0x08, 0x10, 0x81, 0x03] {
        ends_with(&gateway, V311, &packet(0x82, &[&[0, 1, 0, 1, b'a', options]]), 0); // [MQTT-3-8.3-4]
    }
    ends_with(&gateway, V5, &packet(0x82, &[&[0, 1, 0, 0, 1, b'a', 0x30]]), 0x82); // retain handling 3
}

#[test]
fn packets_without_what_they_must_have() {
    let gateway = Gateway::start();
    for version in [V311, V5] {
        let section: &[u8] = if version == V5 { &[0] } else { &[] };
        for (bytes, reason) in [
            (packet(0x82, &[&[0, 1], section]), 0x82),                   // [MQTT-3.8.3-2]
            (packet(0xa2, &[&[0, 1], section]), 0x82),                   // [MQTT-3.10.3-2]
            (packet(0x82, &[&[0, 0], section, &[0, 1, b'a', 0]]), 0x81), // packet id 0
            (packet(0xa2, &[&[0, 0], section, &[0, 1, b'a']]), 0x81),    // [MQTT-2.3.1-1]
            (packet(0x32, &[&binary(b"a"), &[0, 0], section, b"x"]), 0x81), // [MQTT-2.2.1-3]
            (packet(0x36, &[&binary(b"a"), &[0, 1], section, b"x"]), 0x81), // QoS 3 [MQTT-3.3.1-4]
            (packet(0x38, &[&binary(b"a"), section, b"x"]), 0x81),       // DUP at QoS 0 [MQTT-3.3.1-2]
            (packet(0x30, &[]), 0x81),                                   // [MQTT-3.3.2-1]
            (connect(version, 2, &[&binary(b"wrong")]), 0x82),           // a second CONNECT [MQTT-3.1.0-2]
        ] {
            ends_with(&gateway, version, &bytes, reason);
        }
    }
    // an empty topic, in a filter and in a message
    ends_with(&gateway, V311, &packet(0x82, &[&[0, 1, 0, 0, 0]]), 0);
    ends_with(&gateway, V311, &packet(0x30, &[&[0, 0], b"x"]), 0);
    let mut client = Connect::v5("empty").open(gateway.port);
    assert_eq!(client.subscribe("", 0), 0x8f, "[MQTT-4.7.3-1]");
}

#[test]
fn a_property_comes_once_where_it_belongs() {
    let gateway = Gateway::start();
    let twice = Properties::new().text(0x1f, "a").text(0x1f, "b").section();
    let expiry = Properties::new().four(0x11, 0).four(0x11, 0).section();
    for (bytes, reason) in [
        (packet(0x40, &[&[0, 1, 0], &twice]), 0x82),
        (packet(0x62, &[&[0, 1, 0], &twice]), 0x82),
        (packet(0xe0, &[&[0], &expiry]), 0x82),
        (packet(0xe0, &[&[0, 0], b"more"]), 0x81),
        (packet(0x40, &[&[0, 1, 0, 0], b"more"]), 0x81),
        (packet(0x40, &[&[0, 1, 0], &Properties::new().four(0x02, 1).section()]), 0x82),
        (publish(b"a", b"", 0, None, Some(&Properties::new().variable(0x0b, 1))), 0x82), // [MQTT-3.3.4-6]
        (packet(0x30, &[&binary(b"a"), &[0x80, 0x00], b"x"]), 0x81),                     // overlong [MQTT-1.5.5-1]
        (packet(0xf0, &[&[0x18, 0]]), 0x82),                                             // AUTH [MQTT-4.12.0-7]
    ] {
        ends_with(&gateway, V5, &bytes, reason);
    }
    let data = Properties::new().text(0x16, "secret").section();
    is_no_client(&gateway, &packet(0x10, &[&binary(b"MQTT"), &[5, 2, 0, 0], &data, &binary(b"a")]));
}

#[test]
fn answers_have_the_packet_id_of_what_they_answer() {
    let gateway = Gateway::start();
    for version in [V311, V5] {
        let section: &[u8] = if version == V5 { &[0] } else { &[] };
        let properties = (version == V5).then(Properties::new);
        let mut client = Connect::version(version, "client").open(gateway.port);
        for id in [1, 255, 256, u16::MAX] {
            let bytes = id.to_be_bytes();
            client.send(&packet(0x82, &[&bytes, section, &binary(b"some/filter"), &[1]]));
            assert_eq!(client.expect(9).id(), id);
            client.send(&publish(b"a", b"x", 2, Some(id), properties.as_ref()));
            assert_eq!(client.expect(4).id(), id);
            client.send(&publish(b"a", b"x", 4, Some(id), properties.as_ref()));
            assert_eq!(client.expect(5).id(), id);
            client.ack(0x62, id);
            assert_eq!(client.expect(7).id(), id);
            client.send(&packet(0xa2, &[&bytes, section, &binary(b"some/filter")]));
            assert_eq!(client.expect(11).id(), id);
        }
    }
}

#[test]
fn the_broker_s_packet_ids_are_unused_ones() {
    let gateway = Gateway::with("[broker]\nmax_inflight = 50");
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("a", 2);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let mut in_use = std::collections::BTreeSet::new();
    for round in 0..200 {
        publisher.publish("a", "x", 1 + round % 2, false);
        let message = client.receive_unacked();
        assert!(message.id != 0 && in_use.insert(message.id), "{} is in use", message.id);
        if in_use.len() > 40 && message.qos == 1 {
            client.ack(0x40, message.id);
            client.ping();
            in_use.remove(&message.id);
        }
        if in_use.len() > 45 {
            break;
        }
    }
}

#[test]
fn nothing_larger_than_the_client_takes_is_sent() {
    let gateway = Gateway::start();
    let most = |size| Connect::v5("small").properties(Properties::new().four(0x27, size));
    // if not even a CONNACK fits, nothing is sent, and the will of a client that was never accepted is not published
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe("will", 1);
    let mut client = Client::raw(gateway.port, V5);
    client.send(&most(8).will("will", "x", 1, false).encode());
    assert_eq!(client.closed(), []);
    assert_eq!(watcher.drain(), []);
    // a SUBACK that would be too large ends the connection
    let mut client = most(64).open(gateway.port);
    let filters: Vec<u8> = (0..80u8).flat_map(|number| [0, 1, b'0' + number % 40, 0]).collect();
    client.send(&packet(0x82, &[&[0, 1, 0], &filters]));
    client.closed_with(0x95);
    // a retained message and one at QoS 2 count as delivered
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    publisher.publish("kept", [b'x'; 100], 1, true);
    let mut client = most(64).open(gateway.port);
    assert_eq!(client.subscribe("kept", 2), 2);
    publisher.publish("kept", [b'y'; 100], 2, false);
    publisher.publish("kept", "fits", 2, false);
    assert_eq!(contents(&client.drain()), [("kept", "fits".into())]);
}

#[test]
fn what_a_client_does_not_ask_for_does_not_come() {
    let gateway = Gateway::with("[broker.anonymous]\npublish = [\"open/#\", \"fence/#\"]");
    // the client wants no problem information but asks for response information, which this broker does not have
    let properties = Properties::new().byte(0x17, 0).byte(0x19, 1);
    let (mut client, connack) = Connect::v5("client").properties(properties).open_with(gateway.port);
    for id in [0x1a, 0x15, 0x16] {
        assert_eq!(connack.properties.text(id), None, "property {id:#x} [MQTT-3.1.2-28], [MQTT-4.12.0-6]");
    }
    client.send(&publish(b"closed", b"x", 2, Some(7), Some(&Properties::new())));
    assert_eq!(client.expect(4).body, [0, 7, 0x87], "a reason and no text [MQTT-3.1.2-29]");
    client.send(&packet(0xa2, &[&[0, 8, 0], &binary(b"never")]));
    assert_eq!(client.expect(11).body, [0, 8, 0, 0x11]);
}
