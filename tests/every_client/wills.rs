//! Last wills.

use std::time::{Duration, Instant};

use crate::support::packet::{Properties, V5, V31, V311, publish};
use crate::support::{Client, Connect, Gateway, Lookup, contents};

fn watcher(gateway: &Gateway) -> Client {
    let mut watcher = Connect::v5("watcher").open(gateway.port);
    watcher.subscribe("will/#", 2);
    watcher
}

#[test]
fn a_will_is_published_when_its_client_vanishes() {
    let gateway = Gateway::start();
    let mut watcher = watcher(&gateway);
    for version in [V31, V311, V5] {
        for qos in 0..=2 {
            let client = Connect::version(version, "a").will("will/a", "gone", qos, false).open(gateway.port);
            client.vanish();
            let will = watcher.receive();
            assert_eq!(
                (will.topic.as_str(), will.text(), will.qos, will.retain),
                ("will/a", "gone".into(), qos, false)
            );
        }
    }
}

#[test]
fn a_will_is_published_when_its_client_is_cut_off() {
    let gateway = Gateway::start();
    let mut watcher = watcher(&gateway);
    let mut client = Connect::new("a").will("will/a", "broken", 1, false).open(gateway.port);
    client.send(b"\xf0\0");
    client.closed();
    assert_eq!(watcher.receive().text(), "broken");
    let mut client = Connect::new("a").will("will/a", "silent", 1, false).keep_alive(1).open(gateway.port);
    client.closed();
    assert_eq!(watcher.receive().text(), "silent");
    let mut old = Connect::new("a").will("will/a", "taken over", 1, false).open(gateway.port);
    let _new = Connect::new("a").open(gateway.port);
    old.closed();
    assert_eq!(watcher.receive().text(), "taken over");
}

#[test]
fn disconnect_takes_the_will_with_it_unless_it_says_otherwise() {
    let gateway = Gateway::start();
    let mut watcher = watcher(&gateway);
    for version in [V31, V311, V5] {
        Connect::version(version, "a").will("will/a", "no", 1, false).open(gateway.port).disconnect();
    }
    Connect::v5("a").will("will/a", "yes", 1, false).open(gateway.port).disconnect_with(0x04, &Properties::new());
    assert_eq!(watcher.receive().text(), "yes");
    assert_eq!(watcher.drain(), []);
}

#[test]
fn a_will_may_be_retained_and_has_properties() {
    let gateway = Gateway::start();
    let properties = Properties::new().text(0x03, "text/plain").user("why", "power").four(0x02, 600);
    Connect::v5("a").will_with("will/a", "gone", 1, true, properties).open(gateway.port).vanish();
    let mut watcher = watcher(&gateway);
    let will = watcher.receive();
    assert_eq!((will.text(), will.properties.text(0x03)), ("gone".into(), Some("text/plain".into())));
    assert!(will.properties.number(0x02).is_some_and(|left| left > 590));
}

#[test]
fn a_will_waits_for_its_delay() {
    let gateway = Gateway::start();
    let mut watcher = watcher(&gateway);
    let begin = Instant::now();
    let delayed = |seconds, payload: &str| {
        let properties = Properties::new().four(0x18, seconds);
        Connect::v5("a").properties(Properties::new().four(0x11, 60)).will_with("will/a", payload, 1, false, properties)
    };
    delayed(1, "late").open(gateway.port).vanish();
    assert_eq!(watcher.receive().text(), "late");
    assert!(begin.elapsed() >= Duration::from_secs(1));

    delayed(3, "never").open(gateway.port).vanish();
    let back = Connect::v5("a").clean(false).properties(Properties::new().four(0x11, 60)).open(gateway.port);
    // a delayed will of another client measures a time that is longer than the delay
    let other = Properties::new().four(0x18, 4);
    let other = Connect::v5("b").properties(Properties::new().four(0x11, 60)).will_with("will/b", "x", 1, false, other);
    other.open(gateway.port).vanish();
    assert_eq!(watcher.receive().topic, "will/b");
    back.disconnect();
}

#[test]
fn a_delayed_will_does_not_outlive_its_session() {
    let gateway = Gateway::start();
    let mut watcher = watcher(&gateway);
    let begin = Instant::now();
    let connect = |expiry| {
        let will = Properties::new().four(0x18, 600);
        Connect::v5("a").properties(Properties::new().four(0x11, expiry)).will_with("will/a", "x", 1, false, will)
    };
    connect(0).open(gateway.port).vanish();
    assert_eq!(watcher.receive().topic, "will/a");
    connect(1).open(gateway.port).vanish();
    assert_eq!(watcher.receive().topic, "will/a");
    // a clean start ends the session as well
    connect(600).open(gateway.port).vanish();
    let _new = Connect::v5("a").open(gateway.port);
    assert_eq!(watcher.receive().topic, "will/a");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn what_was_published_before_the_will_arrives_before_it() {
    let gateway = Gateway::start();
    let mut watcher = watcher(&gateway);
    let mut client = Connect::new("a").will("will/a", "last", 0, false).open(gateway.port);
    let burst: Vec<u8> =
        (0..500).flat_map(|number: u32| publish(b"will/a", number.to_string().as_bytes(), 0, None, None)).collect();
    client.send(&burst);
    client.send(b"\xf0\0");
    client.closed();
    let received: Vec<_> = (0..=500).map(|_| watcher.receive()).collect();
    assert_eq!(received[500].text(), "last");
    assert_eq!(contents(&received[..2]), [("will/a", "0".into()), ("will/a", "1".into())]);
}
