//! If a client and the gateway are cut off together, the will of the client is published when the gateway stops, or after
//! its next start.

#![allow(clippy::unwrap_used)]

mod support;

use support::packet::{Properties, V5, V31, V311};
use support::{Client, Connect, Gateway};

/// A subscriber that later gets the messages that are published while it is away.
fn watcher(port: u16) -> Client {
    Connect::new("watcher").persistent().open(port)
}

fn watch(gateway: &Gateway) {
    let mut watcher = watcher(gateway.port);
    watcher.subscribe("will/#", 1);
    watcher.disconnect();
}

/// Publishes a message whose acknowledgement means that all earlier changes are on disk.
fn settle(gateway: &Gateway) {
    Connect::new("settler").open(gateway.port).publish("settled", "x", 1, true);
}

/// The retained message of a topic, as a new subscriber gets it.
fn retained(gateway: &Gateway, topic: &str) -> Vec<String> {
    let mut client = Connect::new("reader").open(gateway.port);
    client.subscribe(topic, 1);
    client.drain().iter().map(support::Publish::text).collect()
}

fn with_status(version: u8) -> Connect {
    Connect::version(version, &format!("node-{version}")).will(&format!("will/{version}"), "offline", 1, true)
}

#[test]
fn at_an_orderly_stop_every_will_is_published() {
    let mut gateway = Gateway::start();
    watch(&gateway);
    let mut nodes = [V31, V311, V5].map(|version| (version, with_status(version).open(gateway.port)));
    for (version, node) in &mut nodes {
        node.publish(&format!("will/{version}"), "online", 1, true);
    }
    gateway = gateway.end().restart();
    for (version, _) in nodes {
        assert_eq!(retained(&gateway, &format!("will/{version}")), ["offline"]);
    }
    let mut watcher = watcher(gateway.port);
    let mut heard: Vec<String> = (0..6).map(|_| watcher.receive().text()).collect();
    heard.sort();
    assert_eq!(heard, ["offline", "offline", "offline", "online", "online", "online"]);
    assert_eq!(watcher.drain(), [], "once each");
}

#[test]
fn after_a_crash_wills_are_published_at_the_next_start() {
    let mut gateway = Gateway::start();
    let mut nodes = [V31, V311, V5].map(|version| (version, with_status(version).open(gateway.port)));
    for (version, node) in &mut nodes {
        node.publish(&format!("will/{version}"), "online", 1, true);
    }
    Connect::new("orderly").will("will/9", "offline", 1, true).open(gateway.port).disconnect();
    // the client id is free again only when all of that is done
    Connect::new("orderly").open(gateway.port).disconnect();
    settle(&gateway);
    gateway = gateway.kill().restart();
    for (version, _) in nodes {
        assert_eq!(retained(&gateway, &format!("will/{version}")), ["offline"]);
    }
    assert_eq!(retained(&gateway, "will/9"), [] as [&str; 0], "it had sent DISCONNECT");
    // a published will is not published again
    watch(&gateway);
    let mut watcher_now = watcher(gateway.port);
    watcher_now.drain();
    watcher_now.disconnect();
    settle(&gateway);
    gateway = gateway.kill().restart();
    // what was not known to be acknowledged when the power went may come again, also the marks by which `drain` finds its end
    let mut again = watcher(gateway.port).drain();
    again.retain(|message| message.topic.starts_with("will/"));
    assert_eq!(again, []);
}

#[test]
fn after_a_crash_a_delay_begins_anew_and_its_client_may_come_back() {
    let gateway = Gateway::start();
    watch(&gateway);
    let session = || Properties::new().four(0x11, 600);
    let node = |id: &str, delay| {
        let will = Properties::new().four(0x18, delay).user("why", "power");
        Connect::v5(id).properties(session()).will_with(&format!("will/{id}"), "gone", 1, false, will)
    };
    let connected = node("connected", 1).open(gateway.port);
    node("waiting", 1).open(gateway.port).vanish();
    node("back", 2).open(gateway.port).vanish();
    settle(&gateway);
    let gateway = gateway.kill().restart();
    let back = Connect::v5("back").clean(false).properties(session()).open(gateway.port);
    // its delay is longer than that of the client that came back
    node("measure", 3).open(gateway.port).vanish();
    let mut watcher = watcher(gateway.port);
    let mut heard = Vec::new();
    while heard.last().is_none_or(|topic| topic != "will/measure") {
        let will = watcher.receive();
        assert_eq!(will.text(), "gone");
        heard.push(will.topic);
    }
    heard.sort();
    heard.dedup();
    assert_eq!(heard, ["will/connected", "will/measure", "will/waiting"]);
    drop((connected, back));
}
