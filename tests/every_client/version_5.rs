//! The features that MQTT 5 adds.

use std::time::Duration;

use crate::support::packet::{Value, packet, publish};
use crate::support::{Client, Connect, Gateway, Lookup, Properties, contents, wait_until};

#[test]
fn properties_pass_through_unchanged() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::v5("subscriber").open(gateway.port);
    subscriber.subscribe("a", 1);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let properties = Properties::new()
        .byte(0x01, 1)
        .user("b", "1")
        .text(0x03, "application/json")
        .text(0x08, "answers/here")
        .user("a", "2")
        .text(0x09, [0, 255, 7])
        .user("b", "3");
    publisher.publish_with("a", "{}", 1, false, &properties);
    let mut received = subscriber.receive().properties;
    let users: Vec<_> = received.iter().filter(|(id, _)| *id == 0x26).cloned().collect();
    let pair = |name: &str, value: &str| (0x26, Value::Pair(name.into(), value.into()));
    assert_eq!(users, [pair("b", "1"), pair("a", "2"), pair("b", "3")], "in order [MQTT-3.3.2-18]");
    received.retain(|(id, _)| *id != 0x26);
    received.sort_by_key(|(id, _)| *id);
    let expected = [
        (0x01, Value::Number(1)),
        (0x03, Value::Text(b"application/json".into())),
        (0x08, Value::Text(b"answers/here".into())),
        (0x09, Value::Text(vec![0, 255, 7])),
    ];
    assert_eq!(received, expected);
    // a client with an older version gets the message without properties
    let mut old = Connect::new("old").open(gateway.port);
    old.subscribe("a", 1);
    publisher.publish_with("a", "{}", 1, false, &properties);
    assert_eq!(contents(&old.drain()), [("a", "{}".into())]);
}

#[test]
fn no_local_keeps_a_client_from_its_own() {
    let gateway = Gateway::start();
    for connect in [Connect::v5("client"), Connect::v5("client").persistent()] {
        let mut client = connect.open(gateway.port);
        client.subscribe("a", 1 | 4);
        let mut other = Connect::v5("other").open(gateway.port);
        client.publish("a", "own", 1, false);
        other.publish("a", "other", 1, false);
        assert_eq!(contents(&client.drain()), [("a", "other".into())]);
    }
}

#[test]
fn topic_aliases_of_the_client_are_understood() {
    let gateway = Gateway::start();
    let (mut client, connack) = Connect::v5("client").open_with(gateway.port);
    let maximum = connack.properties.number(0x22).expect("a topic alias maximum") as u16;
    assert!(maximum > 0);
    client.subscribe("#", 1);
    let alias = |number| Properties::new().two(0x23, number);
    client.publish_with("first", "1", 0, false, &alias(1));
    client.publish_with("", "2", 1, false, &alias(1));
    client.publish_with("second", "3", 1, false, &alias(maximum));
    client.publish_with("", "4", 0, false, &alias(maximum));
    client.publish_with("other", "5", 0, false, &alias(1));
    client.publish_with("", "6", 2, false, &alias(1));
    let expected = ["first", "first", "second", "second", "other", "other"];
    let received: Vec<_> = expected.iter().map(|_| client.receive()).collect();
    assert_eq!(received.iter().map(|message| message.topic.as_str()).collect::<Vec<_>>(), expected);
    assert!(received.iter().all(|message| message.properties.number(0x23).is_none()));
    for wrong in [0, maximum + 1] {
        let mut client = Connect::v5("wrong").open(gateway.port);
        client.send(&publish(b"a", b"", 0, None, Some(&alias(wrong))));
        client.closed_with(0x94);
    }
    let mut client = Connect::v5("unknown").open(gateway.port);
    client.send(&publish(b"", b"", 0, None, Some(&alias(1))));
    client.closed_with(0x82);
}

#[test]
fn topic_aliases_of_the_broker_are_used_within_the_client_s_bound() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").properties(Properties::new().two(0x22, 2)).open(gateway.port);
    client.subscribe("a/#", 0);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let mut known: std::collections::HashMap<u32, String> = std::collections::HashMap::new();
    for round in 0..20 {
        let topic = format!("a/{}", round % 4);
        publisher.publish(&topic, "x", 0, false);
        let message = client.receive();
        let alias = message.properties.number(0x23);
        assert!(alias.is_none_or(|alias| alias == 1 || alias == 2), "{message:?}");
        if let Some(alias) = alias.filter(|_| !message.topic.is_empty()) {
            known.insert(alias, message.topic.clone());
        }
        let meant = if message.topic.is_empty() { &known[&alias.expect("an alias")] } else { &message.topic };
        assert_eq!(*meant, topic);
    }
    let mut modest = Connect::v5("modest").open(gateway.port);
    modest.subscribe("a/#", 0);
    publisher.publish("a/b", "x", 0, false);
    assert_eq!(modest.receive().properties, []);
}

#[test]
fn a_client_gets_no_more_at_once_than_its_receive_maximum() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").properties(Properties::new().two(0x21, 2)).open(gateway.port);
    client.subscribe("a", 2);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..6 {
        publisher.publish("a", number.to_string(), 1 + number % 2, false);
    }
    let first = [client.receive_unacked(), client.receive_unacked()];
    assert_eq!(contents(&first), [("a", "0".into()), ("a", "1".into())]);
    client.ping();
    client.stays_silent(Duration::from_millis(300));
    client.ack(0x40, first[0].id);
    assert_eq!(client.receive_unacked().text(), "2");
    client.ack(0x50, first[1].id);
    client.expect(6);
    client.ack(0x70, first[1].id);
    assert_eq!(client.receive_unacked().text(), "3");
}

#[test]
fn more_at_once_than_the_broker_takes_ends_the_connection() {
    let gateway = Gateway::start();
    let (mut client, connack) = Connect::v5("client").open_with(gateway.port);
    let maximum = connack.properties.number(0x21).expect("a receive maximum") as u16;
    for id in 1..=maximum {
        client.send(&publish(b"a", b"", 4, Some(id), Some(&Properties::new())));
        assert_eq!(client.expect(5).id(), id);
    }
    client.ping();
    client.send(&publish(b"a", b"", 4, Some(maximum + 1), Some(&Properties::new())));
    client.closed_with(0x93);
}

#[test]
fn an_exchange_counts_once_towards_the_receive_maximum() {
    let gateway = Gateway::start();
    let none = Properties::new();
    for connect in [Connect::v5("client"), Connect::v5("client").persistent()] {
        let (mut client, connack) = connect.open_with(gateway.port);
        let maximum = connack.properties.number(0x21).expect("a receive maximum") as u16;
        let all: Vec<u8> = (1..=maximum).flat_map(|id| publish(b"a", b"x", 4, Some(id), Some(&none))).collect();
        client.send(&all);
        let repeated: Vec<u8> = (1..=maximum).flat_map(|id| publish(b"a", b"x", 12, Some(id), Some(&none))).collect();
        client.send(&repeated);
        for id in (1..=maximum).chain(1..=maximum) {
            let answer = client.expect(5);
            assert_eq!((answer.id(), answer.reason()), (id, 0));
        }
        // releases of unknown packet ids are no exchanges, and those of known ones free their room when they are answered
        let releases: Vec<u8> = (1..=maximum + 500).flat_map(|id| packet(0x62, &[&id.to_be_bytes()])).collect();
        client.send(&releases);
        for id in 1..=maximum + 500 {
            assert_eq!(client.expect(7).id(), id);
        }
        let mixed: Vec<u8> = (1..=maximum)
            .flat_map(|id| publish(b"a", b"x", if id % 2 == 0 { 2 } else { 4 }, Some(id), Some(&none)))
            .collect();
        client.send(&mixed);
        for id in 1..=maximum {
            let answer = client.expect(if id % 2 == 0 { 4 } else { 5 });
            assert_eq!((answer.id(), answer.reason()), (id, 0));
        }
        client.disconnect();
    }
}

#[test]
fn maximum_packet_sizes_hold_both_ways() {
    let gateway = Gateway::with("[broker]\nmax_packet_size = \"4 KiB\"");
    let (mut client, connack) =
        Connect::v5("client").properties(Properties::new().four(0x27, 100)).open_with(gateway.port);
    assert_eq!(connack.properties.number(0x27), Some(4096));
    client.subscribe("a", 1);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    for payload in [vec![b'x'; 200], vec![b'y'; 10]] {
        publisher.publish("a", payload, 1, false);
    }
    assert_eq!(client.receive().payload, [b'y'; 10], "what the client cannot take is not sent [MQTT-3.1.2-24]");
    publisher.send(&publish(b"a", &[b'x'; 5000], 0, None, Some(&Properties::new())));
    publisher.closed_with(0x95);
    let mut old = Connect::new("old").open(gateway.port);
    old.send(&publish(b"a", &[b'x'; 5000], 0, None, None));
    assert_eq!(old.closed(), []);
}

#[test]
fn messages_expire_on_their_way() {
    let gateway = Gateway::start();
    let mut sleeper = Connect::v5("sleeper").persistent().open(gateway.port);
    sleeper.subscribe("a", 1);
    sleeper.disconnect();
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    for (payload, expiry) in [("short", 1), ("long", 600)] {
        publisher.publish_with("a", payload, 1, false, &Properties::new().four(0x02, expiry));
    }
    // a later message with the same expiry interval shows when the first has expired
    publisher.publish_with("clock", "x", 1, true, &Properties::new().four(0x02, 1));
    wait_until("the message expires", || {
        publisher.subscribe("clock", 0);
        publisher.drain().is_empty()
    });
    let mut sleeper = Connect::v5("sleeper").persistent().open(gateway.port);
    let received = sleeper.drain();
    assert_eq!(contents(&received), [("a", "long".into())]);
    let left = received[0].properties.number(0x02).expect("the time that is left");
    assert!((590..600).contains(&left), "{left}");
}

#[test]
fn what_is_wrong_is_named() {
    let gateway = Gateway::start();
    let with_method = Properties::new().text(0x15, "SCRAM-SHA-1");
    assert_eq!(Connect::v5("a").properties(with_method).refused(gateway.port), 0x8c);
    let mut client = Connect::v5("a").open(gateway.port);
    let granted =
        client.subscribe_all(&[("good/#", 1), ("bad/#/more", 1), ("bad+", 1), ("$share/g/x", 1)], &Properties::new());
    assert_eq!(granted, [1, 0x8f, 0x8f, 1]);
    for (bytes, reason) in [
        (packet(0x30, &[&[0, 1, b'+', 0]]), 0x90),
        (packet(0x82, &[&[0, 1, 0]]), 0x82),                      // no filter at all
        (packet(0x82, &[&[0, 1, 0, 0, 1, b'a', 3]]), 0x81),       // QoS 3
        (packet(0x36, &[&[0, 1, b'a', 0, 1, 0]]), 0x81),          // QoS 3
        (packet(0x82, &[b"\0\x01\0\0\x0a$share/g/a\x05"]), 0x82), // no local with a shared subscription
        (packet(0x82, &[&[0, 1, 2, 0x0b, 0, 0, 1, b'a', 0]]), 0x82), // subscription id 0
        (Connect::v5("a").encode(), 0x82),
        (vec![0xf0, 2, 0x18, 0], 0x82),
    ] {
        let mut client = Connect::v5("wrong").open(gateway.port);
        client.send(&bytes);
        let last = client.closed();
        let disconnect = last.last().unwrap_or_else(|| panic!("a DISCONNECT for {bytes:x?}"));
        assert_eq!((disconnect.kind(), disconnect.body[0]), (14, reason), "{bytes:x?}");
    }
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_harmless() {
    let gateway = Gateway::start();
    let mut client: Client = Connect::v5("client").open(gateway.port);
    client.ack(0x40, 77);
    client.ack(0x70, 77);
    client.ack(0x50, 77);
    let release = client.expect(6);
    assert_eq!((release.id(), release.reason()), (77, 0x92));
    client.ack(0x62, 77);
    let complete = client.expect(7);
    assert_eq!((complete.id(), complete.reason()), (77, 0x92));
    client.ping();
}
