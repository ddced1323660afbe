//! QoS, overlap, order.

use crate::support::packet::{Properties, V5, V31, V311, publish};
use crate::support::{Connect, Gateway, contents};

#[test]
fn delivery_is_at_the_lower_of_both_qos() {
    let gateway = Gateway::start();
    for version in [V31, V311, V5] {
        let mut publisher = Connect::version(version, "publisher").open(gateway.port);
        for subscribed in 0..=2 {
            let mut subscriber = Connect::version(version, "subscriber").open(gateway.port);
            assert_eq!(subscriber.subscribe("a/+", subscribed), subscribed);
            for published in 0..=2 {
                publisher.publish("a/b", format!("{published}"), published, false);
                let message = subscriber.receive();
                assert_eq!((message.text(), message.qos), (published.to_string(), published.min(subscribed)));
                assert!(!message.dup && !message.retain);
            }
        }
    }
}

#[test]
fn a_qos_2_message_that_is_sent_again_is_delivered_once() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("once", 2);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for (first, payload) in [(4, "first"), (12, "first"), (12, "first")] {
        publisher.send(&publish(b"once", payload.as_bytes(), first, Some(7), None));
        assert_eq!(publisher.expect(5).id(), 7);
    }
    publisher.send(&publish(b"once", b"other", 4, Some(8), None));
    assert_eq!(publisher.expect(5).id(), 8);
    publisher.ack(0x62, 7);
    assert_eq!(publisher.expect(7).id(), 7);
    // released: the same id is a new message, and releasing it twice is harmless
    publisher.ack(0x62, 7);
    assert_eq!(publisher.expect(7).id(), 7);
    publisher.send(&publish(b"once", b"second", 4, Some(7), None));
    assert_eq!(publisher.expect(5).id(), 7);
    let received = subscriber.drain();
    assert_eq!(contents(&received), [("once", "first".into()), ("once", "other".into()), ("once", "second".into())]);
}

#[test]
fn a_qos_2_message_that_is_sent_again_on_a_new_connection_is_delivered_once() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("once", 2);
    let mut publisher = Connect::new("publisher").persistent().open(gateway.port);
    publisher.send(&publish(b"once", b"message", 4, Some(7), None));
    publisher.expect(5);
    publisher.vanish();
    let mut publisher = Connect::new("publisher").persistent().open(gateway.port);
    publisher.send(&publish(b"once", b"message", 12, Some(7), None));
    assert_eq!(publisher.expect(5).id(), 7);
    publisher.ack(0x62, 7);
    publisher.expect(7);
    assert_eq!(contents(&subscriber.drain()), [("once", "message".into())]);
}

#[test]
fn overlapping_subscriptions_deliver_with_the_highest_qos() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::v5("subscriber").open(gateway.port);
    subscriber.subscribe_all(&[("a/#", 0), ("a/b", 2)], &Properties::new().variable(0x0b, 7));
    subscriber.subscribe_all(&[("+/b", 1)], &Properties::new().variable(0x0b, 300));
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("a/b", "x", 2, false);
    let received = subscriber.drain();
    let mut ids: Vec<u32> =
        received.iter().flat_map(|one| crate::support::Lookup::numbers(&one.properties[..], 0x0b)).collect();
    ids.sort_unstable();
    // one copy with all ids or one per subscription [MQTT-3.3.4-3]
    assert_eq!(ids, [7, 7, 300]);
    assert_eq!(received.iter().map(|message| message.qos).max(), Some(2));
    assert!(received.len() == 1 || received.len() == 3, "{received:?}");
}

#[test]
fn the_order_of_a_publisher_is_kept() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("ordered/#", 2);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for qos in 0..=2 {
        for number in 0..300 {
            publisher.publish(&format!("ordered/{}", number % 3), format!("{qos} {number}"), qos, false);
        }
        for number in 0..300 {
            assert_eq!(subscriber.receive().text(), format!("{qos} {number}"));
        }
    }
}

#[test]
fn what_is_unsubscribed_does_not_come() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    client.subscribe("a", 1);
    client.subscribe("b", 1);
    assert_eq!(client.unsubscribe("a"), 0);
    assert_eq!(client.unsubscribe("never/subscribed"), 0x11);
    client.publish("a", "x", 1, false);
    client.publish("b", "x", 1, false);
    assert_eq!(contents(&client.drain()), [("b", "x".into())]);
}

#[test]
fn filters_match_as_the_specification_says() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let topics = ["sport", "sport/tennis", "sport/tennis/player1", "/finance", "sport/", "/"];
    for (filter, matched) in [
        ("sport/#", &["sport", "sport/tennis", "sport/tennis/player1", "sport/"][..]),
        ("sport/+", &["sport/tennis", "sport/"]),
        ("+/+", &["sport/tennis", "/finance", "sport/", "/"]),
        ("/+", &["/finance", "/"]),
        ("+", &["sport"]),
        ("#", &topics[..]),
        ("sport/tennis/#", &["sport/tennis", "sport/tennis/player1"]),
        ("+/tennis/#", &["sport/tennis", "sport/tennis/player1"]),
    ] {
        let mut subscriber = Connect::new("subscriber").open(gateway.port);
        subscriber.subscribe(filter, 0);
        for topic in topics {
            publisher.publish(topic, "", 1, false);
        }
        let mut received: Vec<String> = subscriber.drain().into_iter().map(|message| message.topic).collect();
        received.retain(|topic| !topic.starts_with("fence/"));
        assert_eq!(received, matched, "{filter}");
    }
}

#[test]
fn a_message_as_large_as_allowed_passes() {
    let gateway = Gateway::start();
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("large", 1);
    let payload: Vec<u8> = (0..(256 << 10) - 20).map(|number| number as u8).collect();
    client.publish("large", &payload, 1, false);
    assert!(client.receive().payload == payload);
}
