//! Statements of the standards about sequences of packets: acknowledgements, sessions, subscriptions, wills.
//! `docs/conformance.md` lists the test of each statement.

use std::collections::BTreeSet;
use std::thread;

use crate::support::packet::{Properties, V5, V311, Value, binary, packet, publish};
use crate::support::{Client, Connect, Gateway, contents, wait_until};

/// Waits until a message that is published now, and that expires after a second, has expired.
fn let_a_second_pass(gateway: &Gateway) {
    let mut clock = Connect::v5("clock").open(gateway.port);
    clock.publish_with("clock", "x", 1, true, &Properties::new().four(0x02, 1));
    wait_until("a second passes", || {
        clock.subscribe("clock", 0);
        clock.drain().is_empty()
    });
}

#[test]
fn only_a_normal_disconnect_takes_the_will_with_it() {
    let gateway = Gateway::start();
    let mut watcher = Connect::v5("watcher").open(gateway.port);
    watcher.subscribe("will", 1);
    let client = || Connect::v5("a").will("will", "left", 1, false).open(gateway.port);
    client().disconnect_with(0x00, &Properties::new());
    client().disconnect();
    assert_eq!(watcher.drain(), []);
    for reason in [0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99] {
        client().disconnect_with(reason, &Properties::new());
        assert_eq!(watcher.receive().text(), "left", "reason {reason:#x} [MQTT-3.14.4-3]");
    }
}

#[test]
fn a_will_keeps_the_order_of_its_user_properties() {
    let gateway = Gateway::start();
    let mut watcher = Connect::v5("watcher").open(gateway.port);
    watcher.subscribe("will", 1);
    let properties = Properties::new().user("b", "1").user("a", "2").user("b", "3");
    Connect::v5("a").will_with("will", "x", 1, false, properties).open(gateway.port).vanish();
    let pair = |name: &str, value: &str| (0x26, Value::Pair(name.into(), value.into()));
    assert_eq!(watcher.receive().properties, [pair("b", "1"), pair("a", "2"), pair("b", "3")], "[MQTT-3.1.3-10]");
}

#[test]
fn a_topic_alias_ends_with_its_connection() {
    let gateway = Gateway::start();
    let alias = Properties::new().two(0x23, 1);
    let mut client = Connect::v5("client").persistent().open(gateway.port);
    assert_eq!(client.publish_with("a", "x", 1, false, &alias), 0);
    assert_eq!(client.publish_with("", "x", 1, false, &alias), 0);
    client.disconnect();
    let mut client = Connect::v5("client").persistent().open(gateway.port);
    client.send(&publish(b"", b"x", 2, Some(1), Some(&alias)));
    client.closed_with(0x82);

    // the same holds for client ids that the broker has assigned
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let subscriber =
        || Connect::v5("subscriber").persistent().properties(Properties::new().two(0x22, 1).four(0x11, 60));
    for _ in 0..3 {
        let mut subscriber = subscriber().open(gateway.port);
        subscriber.subscribe("a", 0);
        for expected in ["a", ""] {
            publisher.publish("a", "x", 0, false);
            assert_eq!(subscriber.receive().topic, expected, "[MQTT-3.3.2-7]");
        }
        subscriber.disconnect();
    }
}

#[test]
fn a_packet_id_is_free_once_it_is_acknowledged() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("a", 1);
    for version in [V311, V5] {
        let section = (version == V5).then(Properties::new);
        let mut publisher = Connect::version(version, "publisher").open(gateway.port);
        // DUP has no meaning after the PUBACK was sent, and is not passed on
        for (flags, payload) in [(2, "1"), (10, "2"), (10, "3")] {
            publisher.send(&publish(b"a", payload.as_bytes(), flags, Some(9), section.as_ref()));
            assert_eq!(publisher.expect(4).id(), 9);
        }
        let received = subscriber.drain();
        assert_eq!(contents(&received), ["1", "2", "3"].map(|text| ("a", text.to_owned())), "[MQTT-4.3.2-5]");
        assert!(received.iter().all(|message| !message.dup), "[MQTT-3.3.1-3]");
    }
}

#[test]
fn what_was_refused_at_qos_2_is_new_when_it_comes_again() {
    let gateway = Gateway::with("[broker.anonymous]\npublish = [\"open\", \"fence/#\"]");
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("#", 2);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let none = Properties::new();
    for (topic, flags, reason) in [("closed", 4, 0x87), ("closed", 12, 0x87), ("open", 4, 0), ("open", 12, 0)] {
        publisher.send(&publish(topic.as_bytes(), b"x", flags, Some(5), Some(&none)));
        let received = publisher.expect(5);
        assert_eq!((received.id(), received.reason()), (5, reason), "{topic} [MQTT-4.3.3-9]");
    }
    publisher.ack(0x62, 5);
    assert_eq!(publisher.expect(7).reason(), 0);
    assert_eq!(contents(&subscriber.drain()), [("open", "x".into())]);
}

#[test]
fn what_ends_the_connection_at_qos_2_is_new_when_it_comes_again() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("a", 2);
    let open = || Connect::v5("publisher").persistent().open_with(gateway.port);
    // an alias that is larger than allowed, and one that stands for no topic
    for (topic, alias, reason) in [("a", 40, 0x94), ("", 7, 0x82)] {
        let (mut publisher, _) = open();
        let alias = Properties::new().two(0x23, alias);
        publisher.send(&publish(topic.as_bytes(), b"x", 4, Some(5), Some(&alias)));
        publisher.closed_with(reason);
        let (mut publisher, connack) = open();
        assert!(connack.present);
        publisher.send(&publish(b"a", topic.as_bytes(), 12, Some(5), Some(&Properties::new())));
        assert_eq!(publisher.expect(5).id(), 5);
        publisher.ack(0x62, 5);
        assert_eq!(publisher.expect(7).reason(), 0);
        assert_eq!(contents(&subscriber.drain()), [("a", topic.into())]);
    }
}

#[test]
fn a_message_that_its_receiver_refuses_is_done_with() {
    let gateway = Gateway::start();
    let connect = || Connect::v5("client").persistent();
    let mut client = connect().open(gateway.port);
    client.subscribe("a", 2);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("a", "1", 1, false);
    publisher.publish("a", "2", 2, false);
    for kind in [0x40, 0x50] {
        let message = client.receive_unacked();
        client.send(&[&[kind, 3], &message.id.to_be_bytes()[..], &[0x97]].concat());
    }
    client.ping();
    publisher.publish("a", "3", 1, false);
    assert_eq!(client.receive().text(), "3", "a PUBREC that refuses has no PUBREL");
    client.ping();
    client.vanish();
    let mut client = connect().open(gateway.port);
    assert_eq!(client.drain(), [], "nothing is sent again [MQTT-4.4.0-2]");
}

#[test]
fn expiry_does_not_end_an_exchange_that_has_begun() {
    let gateway = Gateway::start();
    let connect = || Connect::v5("client").persistent();
    let mut client = connect().open(gateway.port);
    client.subscribe("a", 2);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let brief = Properties::new().four(0x02, 1);
    publisher.send(&publish(b"a", b"brief", 4, Some(3), Some(&brief)));
    assert_eq!(publisher.expect(5).id(), 3);
    let first = client.receive_unacked();
    client.vanish();
    let_a_second_pass(&gateway);
    // towards the subscriber
    let mut client = connect().open(gateway.port);
    let again = client.receive_unacked();
    assert_eq!((again.text(), again.id, again.dup), ("brief".into(), first.id, true), "[MQTT-4.3.3-7]");
    client.ack(0x50, again.id);
    assert_eq!(client.expect(6).reason(), 0);
    client.ack(0x70, again.id);
    // and towards the publisher
    publisher.ack(0x62, 3);
    let complete = publisher.expect(7);
    assert_eq!((complete.id(), complete.reason()), (3, 0), "[MQTT-4.3.3-13]");
}

#[test]
fn unsubscribing_completes_what_has_begun() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for version in [V311, V5] {
        let connect = || Connect::version(version, "client").persistent();
        let mut client = connect().open(gateway.port);
        client.subscribe("a", 2);
        publisher.publish("a", "1", 1, false);
        publisher.publish("a", "2", 2, false);
        let begun = [client.receive_unacked(), client.receive_unacked()];
        assert_eq!(client.unsubscribe("a"), 0);
        publisher.publish("a", "later", 2, false);
        client.ack(0x50, begun[1].id);
        assert_eq!(client.expect(6).id(), begun[1].id, "[MQTT-3.10.4-3]");
        client.vanish();
        let mut client = connect().open(gateway.port);
        let again = client.receive_unacked();
        assert_eq!((again.text(), again.id, again.dup), ("1".into(), begun[0].id, true));
        client.ack(0x40, again.id);
        assert_eq!(client.expect(6).id(), begun[1].id);
        client.ack(0x70, begun[1].id);
        assert_eq!(client.drain(), [], "nothing new comes [MQTT-3.10.4-2]");
        client.disconnect();
        Connect::version(version, "client").open(gateway.port).disconnect();
    }
}

#[test]
fn several_filters_are_like_several_packets() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("b", "kept", 1, true);
    for (version, refusal) in [(V311, 0x80), (V5, 0x87)] {
        let mut client = Connect::version(version, "client").open(gateway.port);
        // the last subscription to a filter counts, and the answers are in the order of the filters
        let filters = [("a", 0), ("b", 2), ("$SYS/#", 1), ("a", 1), ("c/+", 2)];
        assert_eq!(client.subscribe_all(&filters, &Properties::new()), [0, 2, refusal, 1, 2], "[MQTT-3.9.3-1]");
        publisher.publish("a", "x", 2, false);
        let received: Vec<_> = client.drain().into_iter().map(|message| (message.text(), message.qos)).collect();
        assert_eq!(received, [("kept".to_owned(), 1), ("x".to_owned(), 1)]);
        let section: &[u8] = if version == V5 { &[0] } else { &[] };
        let filters = [binary(b"b"), binary(b"never"), binary(b"c/+"), binary(b"b")].concat();
        client.send(&packet(0xa2, &[&[0, 77], section, &filters]));
        let answer = client.expect(11);
        let expected: &[u8] = if version == V5 { &[0, 77, 0, 0, 0x11, 0, 0x11] } else { &[0, 77] };
        assert_eq!(answer.body, expected, "one UNSUBACK, in the order of the filters [MQTT-3.11.3-1]");
        for topic in ["b", "c/d", "a"] {
            publisher.publish(topic, topic, 1, false);
        }
        assert_eq!(contents(&client.drain()), [("a", "a".into())]);
    }
}

#[test]
fn a_filter_that_is_subscribed_again_is_replaced() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("a", "kept", 1, true);
    let mut client = Connect::v5("client").open(gateway.port);
    for (qos, id) in [(2, 5), (0, 6), (1, 7)] {
        client.subscribe_all(&[("a", qos)], &Properties::new().variable(0x0b, id));
        publisher.publish("a", "new", 2, false);
        let received = client.drain();
        let ids: Vec<_> =
            received.iter().flat_map(|one| crate::support::Lookup::numbers(&one.properties[..], 0x0b)).collect();
        assert_eq!(ids, [id as u32; 2], "of the new subscription only [MQTT-3.8.4-3]");
        assert_eq!(contents(&received), [("a", "kept".into()), ("a", "new".into())]);
        assert_eq!(received[1].qos, qos);
    }
}

#[test]
fn replacing_a_subscription_loses_nothing() {
    const COUNT: usize = 500;
    let gateway = Gateway::start();
    for connect in [Connect::v5("client"), Connect::v5("client").persistent()] {
        let mut client = connect.open(gateway.port);
        client.subscribe("a", 1);
        let port = gateway.port;
        let publishing = thread::spawn(move || {
            let mut publisher = Connect::new("publisher").open(port);
            for number in 0..COUNT {
                publisher.publish("a", number.to_string(), 1, false);
            }
        });
        let mut received = Vec::new();
        while received.len() < COUNT {
            client.subscribe("a", 1 + (received.len() % 2) as u8);
            received.push(client.receive().text().parse::<usize>().unwrap());
        }
        publishing.join().unwrap();
        assert!(received.iter().copied().eq(0..COUNT), "[MQTT-3.8.4-4]: {received:?}");
        client.disconnect();
    }
}

#[test]
fn filters_are_unsubscribed_letter_by_letter() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    client.subscribe("a/+", 1);
    for other in ["a/b", "a/#", "A/+", "a/+/", "+/+", "#"] {
        assert_eq!(client.unsubscribe(other), 0x11, "{other} [MQTT-3.10.4-1]");
    }
    client.publish("a/b", "x", 1, false);
    assert_eq!(contents(&client.drain()), [("a/b", "x".into())]);
    assert_eq!(client.unsubscribe("a/+"), 0);
}

#[test]
fn retained_messages_outlive_the_session_of_their_publisher() {
    let gateway = Gateway::start();
    for version in [V311, V5] {
        let mut publisher = Connect::version(version, "publisher").persistent().open(gateway.port);
        publisher.publish("kept", "x", 1, true);
        publisher.disconnect();
        // a clean start ends the session
        Connect::version(version, "publisher").open(gateway.port).disconnect();
        let mut reader = Connect::new("reader").open(gateway.port);
        reader.subscribe("kept", 1);
        assert_eq!(contents(&reader.drain()), [("kept", "x".into())], "[MQTT-3.1.2-7]");
    }
}

#[test]
fn acknowledgements_come_in_the_order_of_the_messages() {
    let gateway = Gateway::start();
    // only some of the messages must be on disk before they are acknowledged
    let mut sleeper = Connect::new("sleeper").persistent().open(gateway.port);
    sleeper.subscribe("kept", 2);
    for version in [V311, V5] {
        let section = (version == V5).then(Properties::new);
        let mut publisher = Connect::version(version, "publisher").open(gateway.port);
        let message = |number: u16| {
            let topic: &[u8] = if number.is_multiple_of(3) { b"kept" } else { b"passing" };
            publish(topic, b"x", if number.is_multiple_of(2) { 2 } else { 4 }, Some(number), section.as_ref())
        };
        publisher.send(&(1..=60).flat_map(message).collect::<Vec<u8>>());
        for number in 1..=60u16 {
            let answer = publisher.read();
            let kind = if number.is_multiple_of(2) { 4 } else { 5 };
            assert_eq!((answer.kind(), answer.id()), (kind, number), "[MQTT-4.6.0-2], [MQTT-4.6.0-3]");
        }
    }
}

#[test]
fn releases_come_in_the_order_of_the_receipts() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for connect in [Connect::new("client"), Connect::v5("client").persistent()] {
        let mut client = connect.open(gateway.port);
        client.subscribe("a", 2);
        for number in 0..10 {
            publisher.publish("a", number.to_string(), 2, false);
        }
        let mut ids: Vec<u16> = (0..10).map(|_| client.receive_unacked().id).collect();
        // not the order in which they came
        ids.reverse();
        client.send(&ids.iter().flat_map(|id| packet(0x50, &[&id.to_be_bytes()])).collect::<Vec<u8>>());
        let released: Vec<u16> = ids.iter().map(|_| client.expect(6).id()).collect();
        assert_eq!(released, ids, "[MQTT-4.6.0-4]");
        ids.iter().for_each(|id| client.ack(0x70, *id));
        client.disconnect();
    }
}

#[test]
fn without_a_will_nothing_is_published() {
    let gateway = Gateway::start();
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe("#", 1);
    for version in [V311, V5] {
        Connect::version(version, "a").will("will", "x", 1, false).open(gateway.port).disconnect();
        let mut old = Connect::version(version, "a").open(gateway.port);
        let _new = Connect::version(version, "a").open(gateway.port);
        old.closed();
        Connect::version(version, "b").open(gateway.port).vanish();
        Connect::version(version, "b").open(gateway.port).ping();
        assert_eq!(watcher.drain(), [], "[MQTT-3.1.2-12]");
    }
}

#[test]
fn a_session_lasts_as_long_as_its_connection() {
    let gateway = Gateway::start();
    let connect = || Connect::v5("client").clean(false).properties(Properties::new().four(0x11, 1));
    let mut client = connect().open(gateway.port);
    client.subscribe("a", 1);
    let_a_second_pass(&gateway);
    let_a_second_pass(&gateway);
    assert!(connect().open_with(gateway.port).1.present, "its expiry begins when the connection ends [MQTT-4.1.0-1]");
    client.closed_with(0x8e);
}

/// A member of a group at QoS 2, whose session outlives its connection for an hour.
fn member(gateway: &Gateway, name: &str) -> Client {
    let mut member = Connect::v5(name).persistent().open(gateway.port);
    assert_eq!(member.subscribe("$share/group/jobs", 2), 2);
    member
}

#[test]
fn what_a_member_has_begun_at_qos_2_stays_its_own() {
    let gateway = Gateway::start();
    let mut first = member(&gateway, "first");
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("jobs", "first's", 2, false);
    let begun = first.receive_unacked();
    let mut second = member(&gateway, "second");
    first.vanish();
    wait_until("the first member's connection has ended", || {
        publisher.publish("jobs", "more", 1, false);
        second.receive().text() == "more"
    });
    // the exchange is completed with the same client when it comes back [MQTT-4.8.2-4]
    let mut first = Connect::v5("first").persistent().open(gateway.port);
    let again = first.receive_unacked();
    assert_eq!((again.text(), again.id, again.dup), ("first's".into(), begun.id, true));
    // when the session of this client ends, no other client gets the message [MQTT-4.8.2-5]
    first.disconnect_with(0, &Properties::new().four(0x11, 0));
    let rest: BTreeSet<String> = second.drain().iter().map(|message| message.text()).collect();
    assert!(!rest.contains("first's"), "{rest:?}");
}

#[test]
fn what_a_member_refuses_is_not_given_to_another() {
    let gateway = Gateway::start();
    let mut first = member(&gateway, "first");
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("jobs", "1", 1, false);
    publisher.publish("jobs", "2", 2, false);
    // the first member gets both messages before there is another member
    let messages = [first.receive_unacked(), first.receive_unacked()];
    let mut second = member(&gateway, "second");
    for (kind, message) in [0x40, 0x50].into_iter().zip(messages) {
        first.send(&[&[kind, 3], &message.id.to_be_bytes()[..], &[0x80]].concat());
    }
    first.ping();
    first.disconnect_with(0, &Properties::new().four(0x11, 0));
    assert_eq!(second.drain(), [], "[MQTT-4.8.2-6]");
}
