//! PUBACK is a promise: what a persistent session, the retained store or an upstream needs is on disk before PUBACK or
//! PUBREC leaves, and is there after kill -9.

#![allow(clippy::unwrap_used)]

mod support;

use support::packet::{Properties, V5, V311, publish};
use support::{Connect, Gateway, Mosquitto, Setup, contents};

#[test]
fn what_was_acknowledged_arrives_after_kill() {
    let mut gateway = Gateway::start();
    let sleeper = || Connect::new("sleeper").persistent();
    let mut client = sleeper().open(gateway.port);
    client.subscribe("news/#", 1);
    client.disconnect();
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for number in 0..20 + round * 7 {
            let payload = format!("{round}-{number}");
            publisher.publish("news/a", &payload, 1 + number % 2, false);
            publisher.publish("kept", &payload, 1, true);
            acknowledged.push(payload);
        }
        gateway = gateway.kill().restart();
        let mut client = Connect::new("reader").open(gateway.port);
        client.subscribe("kept", 1);
        assert_eq!(contents(&[client.receive()]), [("kept", acknowledged.last().unwrap().clone())]);
    }
    let (mut client, connack) = sleeper().open_with(gateway.port);
    assert!(connack.present);
    let received: Vec<String> = (0..acknowledged.len()).map(|_| client.receive().text()).collect();
    assert_eq!(received, acknowledged);
}

#[test]
fn a_retained_message_that_was_cleared_stays_cleared() {
    let mut gateway = Gateway::start();
    for round in 0..3 {
        let mut client = Connect::new("client").open(gateway.port);
        client.publish("kept/a", format!("{round}"), 1, true);
        client.publish("kept/b", "x", 1, true);
        client.publish("kept/b", "", 1, true);
        gateway = gateway.kill().restart();
        let mut client = Connect::new("client").open(gateway.port);
        client.subscribe("kept/#", 1);
        assert_eq!(contents(&client.drain()), [("kept/a", format!("{round}"))]);
    }
}

#[test]
fn what_the_subscriber_had_not_acknowledged_comes_again_with_dup_and_the_same_id() {
    for version in [V311, V5] {
        let gateway = Gateway::start();
        let sleeper = || Connect::version(version, "sleeper").persistent();
        let mut client = sleeper().open(gateway.port);
        client.subscribe("news", 2);
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for (payload, qos) in [("a", 1), ("b", 2), ("c", 2), ("d", 1)] {
            publisher.publish("news", payload, qos, false);
        }
        let before: Vec<(u16, String)> = (0..4).map(|_| client.receive_unacked()).map(|m| (m.id, m.text())).collect();
        // b is received: it must not be sent again as a message
        client.ack(0x50, before[1].0);
        assert_eq!(client.expect(6).id(), before[1].0);
        let gateway = gateway.kill().restart();
        let (mut client, connack) = sleeper().open_with(gateway.port);
        assert!(connack.present);
        let mut released = None;
        let mut again = Vec::new();
        while again.len() < 3 || released.is_none() {
            let packet = client.read();
            match packet.kind() {
                3 => again.push(support::Publish::read(&packet, version)),
                6 => released = Some(packet.id()),
                kind => panic!("{kind}"),
            }
        }
        assert!(again.iter().all(|message| message.dup));
        let again: Vec<(u16, String)> = again.into_iter().map(|message| (message.id, message.text())).collect();
        assert_eq!(again, [before[0].clone(), before[2].clone(), before[3].clone()]);
        assert_eq!(released, Some(before[1].0));
    }
}

#[test]
fn a_qos_2_publication_counts_once_over_kill() {
    for version in [V311, V5] {
        let gateway = Gateway::start();
        let mut reader = Connect::new("reader").persistent().open(gateway.port);
        reader.subscribe("news", 1);
        reader.disconnect();
        let writer = || Connect::version(version, "writer").persistent();
        let properties = Properties::new();
        let properties = (version == V5).then_some(&properties);
        let send = |first: u8, payload: &[u8]| publish(b"news", payload, first, Some(7), properties);
        let mut client = writer().open(gateway.port);
        client.send(&send(0x34, b"once"));
        assert_eq!(client.expect(5).id(), 7);
        let gateway = gateway.kill().restart();
        let (mut client, connack) = writer().open_with(gateway.port);
        assert!(connack.present);
        client.send(&send(0x3c, b"once"));
        assert_eq!(client.expect(5).id(), 7);
        client.ack(0x62, 7);
        assert_eq!(client.expect(7).id(), 7);
        let gateway = gateway.kill().restart();
        let mut client = writer().open(gateway.port);
        // released: the same id is another message now
        client.send(&send(0x34, b"twice"));
        assert_eq!(client.expect(5).id(), 7);
        let mut reader = Connect::new("reader").persistent().open(gateway.port);
        assert_eq!(contents(&reader.drain()), [("news", "once".into()), ("news", "twice".into())]);
    }
}

#[test]
fn subscriptions_come_back_and_go_on_ending() {
    let gateway = Gateway::start();
    let sleeper = || Connect::v5("sleeper").persistent();
    let mut client = sleeper().open(gateway.port);
    client.subscribe_all(&[("a/#", 1), ("b", 2), ("c", 1)], &Properties::new().variable(0x0b, 9));
    client.unsubscribe("c");
    let gateway = gateway.kill().restart();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for topic in ["a/x", "b", "c"] {
        publisher.publish(topic, topic, 1, false);
    }
    let gateway = gateway.kill().restart();
    let mut client = sleeper().open(gateway.port);
    let received = client.drain();
    assert_eq!(contents(&received), [("a/x", "a/x".into()), ("b", "b".into())]);
    assert_eq!(received[0].properties, [(0x0b, support::packet::Value::Number(9))]);
    client.disconnect();
    // a clean start ends the session for good
    Connect::v5("sleeper").open(gateway.port).disconnect();
    let gateway = gateway.kill().restart();
    assert!(!Connect::v5("sleeper").clean(false).open_with(gateway.port).1.present);
}

#[test]
fn a_full_journal_refuses_where_it_is_told_to() {
    let config = "[journal]\nmax_size = \"1 MiB\"\nwhen_full = \"refuse\"\n[broker]\nmax_packet_size = \"64 KiB\"\n\
                  [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n";
    let gateway = Setup::default().config(config).start();
    let mut client = Connect::v5("client").open(gateway.port);
    let payload = [7; 60_000];
    // what has no room waits, in memory, up to a bound: then QoS 1 is refused
    let mut v5 = Connect::v5("more").open(gateway.port);
    let mut refused = false;
    for id in 1..=900u16 {
        let packet = publish(b"up/x", &payload, 0x32, Some(id), Some(&Properties::new()));
        v5.send(&packet);
    }
    for _ in 0..900 {
        let answer = v5.read();
        refused |= answer.kind() == 4 && answer.reason() == 0x97;
        if refused {
            break;
        }
    }
    assert!(refused);
    // others are not disturbed
    client.subscribe("local", 1);
    assert_eq!(client.publish("local", "x", 1, false), 0);
    assert_eq!(contents(&client.drain()), [("local", "x".into())]);
}

#[test]
fn what_waits_for_an_upstream_arrives_after_kill() {
    let port = support::free_port();
    let config = format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n"
    );
    let mut gateway = Setup::default().config(&config).start();
    for round in 0..3 {
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for number in 0..50 {
            publisher.publish("up/a", format!("{}", round * 50 + number), 1, false);
        }
        gateway = gateway.kill().restart();
    }
    let upstream = Mosquitto::with(&format!("listener {port} 127.0.0.1"));
    let mut reader = Connect::new("reader").open(upstream.port);
    reader.subscribe("#", 1);
    let received: Vec<String> = (0..150).map(|_| reader.receive().text()).collect();
    assert_eq!(received, (0..150).map(|number| number.to_string()).collect::<Vec<_>>());
}
