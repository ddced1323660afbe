//! Retained messages.

use crate::support::packet::{Properties, V5, V31, V311, packet};
use crate::support::{Connect, Gateway, Lookup, contents, wait_until};

#[test]
fn a_retained_message_is_kept_replaced_and_cleared() {
    let gateway = Gateway::start();
    for version in [V31, V311, V5] {
        let mut client = Connect::version(version, "client").open(gateway.port);
        let seen = || {
            let mut subscriber = Connect::version(version, "").open_or_named(gateway.port);
            subscriber.subscribe("kept", 1);
            let received = subscriber.drain();
            received.iter().map(|message| (message.text(), message.retain)).collect::<Vec<_>>()
        };
        assert_eq!(seen(), []);
        client.publish("kept", "first", 1, true);
        assert_eq!(seen(), [("first".into(), true)]);
        client.publish("kept", "second", 0, true);
        client.publish("kept", "not retained", 1, false);
        client.publish("kept", "", 1, false);
        assert_eq!(seen(), [("second".into(), true)], "only a retained message replaces or clears");
        client.publish("kept", "", 1, true);
        assert_eq!(seen(), []);
    }
}

impl Connect {
    /// MQTT 3.1 has no empty client id.
    fn open_or_named(self, port: u16) -> crate::support::Client {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.named(&format!("subscriber-{number}")).open(port)
    }
}

#[test]
fn who_is_subscribed_gets_it_as_any_other_message() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("kept", 1);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("kept", "x", 1, true);
    publisher.publish("kept", "", 1, true);
    let received: Vec<_> = subscriber.drain().into_iter().map(|message| (message.text(), message.retain)).collect();
    assert_eq!(received, [("x".to_owned(), false), (String::new(), false)]);
}

#[test]
fn retain_as_published_keeps_the_flag() {
    let gateway = Gateway::start();
    let mut subscriber = Connect::v5("subscriber").open(gateway.port);
    subscriber.subscribe("kept", 1 | 8);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("kept", "a", 1, true);
    publisher.publish("kept", "b", 1, false);
    let flags: Vec<bool> = subscriber.drain().iter().map(|message| message.retain).collect();
    assert_eq!(flags, [true, false]);
}

#[test]
fn any_number_of_retained_messages_is_sent() {
    const COUNT: usize = 3000;
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..COUNT {
        publisher.publish(&format!("many/{number}"), number.to_string(), 0, true);
    }
    publisher.ping();
    for qos in [0, 1] {
        let mut subscriber = Connect::new("subscriber").open(gateway.port);
        subscriber.subscribe("many/+", qos);
        let mut numbers: Vec<usize> = (0..COUNT).map(|_| subscriber.receive().text().parse().unwrap()).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..COUNT));
    }
}

#[test]
fn retain_handling_says_when_they_are_sent() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    client.publish("kept", "x", 1, true);
    for (handling, first, again) in [(0, 1, 1), (1, 1, 0), (2, 0, 0)] {
        let mut subscriber = Connect::v5("subscriber").open(gateway.port);
        subscriber.subscribe("kept", handling << 4);
        assert_eq!(subscriber.drain().len(), first, "retain handling {handling}, a new subscription");
        subscriber.subscribe("kept", handling << 4);
        assert_eq!(subscriber.drain().len(), again, "retain handling {handling}, the same subscription again");
    }
}

#[test]
fn mqtt_3_clients_get_them_at_every_subscribe() {
    let gateway = Gateway::start();
    let mut client = Connect::new("client").open(gateway.port);
    client.publish("kept", "x", 1, true);
    for _ in 0..3 {
        client.subscribe("kept", 1);
        assert_eq!(contents(&client.drain()), [("kept", "x".into())]);
    }
}

#[test]
fn a_retained_message_expires() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    client.publish_with("short", "x", 1, true, &Properties::new().four(0x02, 1));
    client.publish_with("long", "x", 1, true, &Properties::new().four(0x02, 600));
    wait_until("the message expires", || {
        client.subscribe("short", 0);
        client.drain().is_empty()
    });
    wait_until("a second of the other one has passed too", || {
        client.subscribe("long", 0);
        let left = client.receive().properties.number(0x02).expect("the time that is left");
        assert!((570..=600).contains(&left), "{left}");
        left < 600
    });
}

#[test]
fn a_retained_message_comes_with_its_properties_and_the_subscription_id() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    client.publish_with("kept", "x", 2, true, &Properties::new().text(0x03, "text/plain").user("a", "b"));
    client.subscribe_all(&[("kept", 2)], &Properties::new().variable(0x0b, 9));
    let message = client.receive();
    assert_eq!((message.qos, message.retain), (2, true));
    assert_eq!(message.properties.text(0x03).as_deref(), Some("text/plain"));
    assert_eq!(message.properties.numbers(0x0b), [9]);
}

#[test]
fn nothing_that_a_subscribe_causes_comes_before_its_suback() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..20 {
        publisher.publish(&format!("news/{number}"), "kept", 1, true);
    }
    for version in [3, 4, 5] {
        for connect in [Connect::version(version, "reader"), Connect::version(version, "reader").persistent()] {
            let mut reader = connect.open(gateway.port);
            for round in 0..10u8 {
                let section: &[u8] = if version == 5 { &[0] } else { &[] };
                reader.send(&packet(0x82, &[&[0, round + 1], section, b"\0\x06news/#", &[round % 3]]));
                // live ones race with the answer
                publisher.publish("news/live", "now", 1, false);
                let answer = reader.read();
                assert_eq!((answer.kind(), answer.id()), (9, u16::from(round) + 1), "{answer:?}");
                let messages = reader.drain();
                assert!(messages.iter().filter(|message| message.retain).count() == 20);
                reader.unsubscribe("news/#");
                reader.drain();
            }
            reader.disconnect();
            Connect::version(version, "reader").open(gateway.port).disconnect();
        }
    }
}
