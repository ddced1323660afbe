//! Hostile and faulty clients lose their own connections and do not affect others: the gateway continues to serve, within
//! its limits of memory.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod debts;
mod floods;
mod malformed;
mod many_filters;
mod much_for_little;
mod slow_readers;
mod stress;
mod worst;

use support::{Connect, Gateway};

/// Pseudo-random numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below this one.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound as u64) as usize
    }

    /// This many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.number() as u8).collect()
    }
}

/// Checks that two clients can exchange messages as usual, and that the log has no panic.
#[track_caller]
pub fn assert_it_serves(gateway: &mut Gateway) {
    assert_it_serves_but(gateway, &[]);
}

/// Checks the same if errors with one of these texts are expected.
#[track_caller]
pub fn assert_it_serves_but(gateway: &mut Gateway, expected: &[&str]) {
    let mut subscriber = Connect::v5("good-subscriber").open(gateway.port);
    let mut publisher = Connect::new("good-publisher").open(gateway.port);
    subscriber.subscribe("good/+", 2);
    for qos in 0..=2 {
        publisher.publish("good/topic", "x", qos, false);
        assert_eq!((subscriber.receive().topic.as_str(), qos), ("good/topic", qos));
    }
    subscriber.disconnect();
    publisher.disconnect();
    assert!(gateway.is_running());
    let log = gateway.log();
    let bad = log.iter().filter(|line| line.contains("panic") || line.contains(" ERROR "));
    let bad: Vec<_> = bad.filter(|line| !expected.iter().any(|text| line.contains(text))).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn a_reset_before_connack_and_back_with_the_same_id() {
    let mut gateway = Gateway::start();
    for round in 0..500 {
        let mut client = support::Client::raw(gateway.port, support::packet::V311);
        client.send(&Connect::new("same").clean(round % 2 == 0).encode());
        client.reset();
    }
    // connections that were read before they were reset are still being processed, and take over the id
    support::wait_until("the client stays", || {
        let mut client = Connect::new("same").open_eventually(gateway.port);
        client.try_send(&[0xc0, 0]) && client.try_read().is_some()
    });
    assert_it_serves(&mut gateway);
}

#[test]
fn odd_client_ids_are_ids_like_others() {
    let mut gateway = Gateway::start();
    let long = "x".repeat(1024);
    for id in ["a/b", "/", "+", "#", "a b", "été", "日本", "$SYS/x", "../../etc/passwd", "session/a", &long] {
        for connect in [Connect::new(id), Connect::v5(id), Connect::v5(id).persistent()] {
            let mut client = connect.open(gateway.port);
            client.subscribe("a", 1);
            client.publish("a", "x", 1, false);
            assert_eq!(client.receive().text(), "x");
            client.disconnect();
        }
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn topics_of_all_letters() {
    let mut gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    client.subscribe("#", 1);
    let long = "x/".repeat(150);
    for topic in ["été", "ü", "日本/温度", "🙂", "\u{feff}bom", " ", "/", "//", "a//b", "\u{7f}", "é$SYS", &long]
    {
        client.publish(topic, topic, 1, true);
        let message = client.receive();
        assert_eq!((message.topic.as_str(), message.text().as_str()), (topic, topic));
        let mut subscriber = Connect::new("subscriber").open(gateway.port);
        subscriber.subscribe(topic, 0);
        assert_eq!(subscriber.receive().text(), topic, "retained");
        subscriber.disconnect();
    }
    assert_it_serves(&mut gateway);
}
