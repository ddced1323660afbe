//! `$SYS`, as mosquitto names it.

use std::collections::BTreeSet;

use crate::support::{Client, Connect, Gateway, Mosquitto, wait_until};

fn names(client: &mut Client) -> BTreeSet<String> {
    client.subscribe("$SYS/#", 0);
    client.drain().into_iter().map(|message| message.topic).filter(|topic| topic.starts_with("$SYS")).collect()
}

#[test]
fn the_figures_have_the_names_that_mosquitto_s_users_know() {
    let gateway = Gateway::with("[broker.anonymous]\nsubscribe = [\"#\", \"$SYS/#\"]");
    let mosquitto = Mosquitto::with("sys_interval 1");
    let mut ours = Connect::new("a").open(gateway.port);
    let mut theirs = Connect::new("a").open(mosquitto.port);
    let (mut our_names, mut their_names) = (BTreeSet::new(), BTreeSet::new());
    // mosquitto publishes some of them only once they have changed
    let mut unknown = Vec::new();
    let mut asked = 0;
    wait_until("$SYS topics", || {
        our_names.extend(names(&mut ours));
        their_names.extend(names(&mut theirs));
        unknown = our_names.difference(&their_names).cloned().collect();
        asked += 1;
        our_names.len() > 20 && (unknown.is_empty() || asked > 2000)
    });
    assert!(unknown.is_empty(), "mosquitto does not have {unknown:?}");
    for name in [
        "version",
        "uptime",
        "clients/connected",
        "clients/total",
        "messages/received",
        "messages/sent",
        "publish/messages/received",
        "bytes/received",
        "bytes/sent",
        "retained messages/count",
        "subscriptions/count",
        "store/messages/count",
        "store/messages/bytes",
        "load/bytes/sent/1min",
    ] {
        assert!(our_names.contains(&format!("$SYS/broker/{name}")), "{name} is missing: {our_names:?}");
    }
}

#[test]
fn wildcards_at_the_front_do_not_reach_them() {
    let gateway = Gateway::with("[broker.anonymous]\nsubscribe = [\"#\", \"$SYS/#\"]");
    let mut client = Connect::new("a").open(gateway.port);
    assert_eq!(client.subscribe("#", 0), 0);
    client.subscribe("+/broker/#", 0);
    assert_eq!(client.drain().iter().filter(|message| message.topic.starts_with('$')).count(), 0);
    client.subscribe("$SYS/broker/version", 0);
    let version = client.receive();
    assert_eq!(version.text(), format!("pigateway version {}", env!("CARGO_PKG_VERSION")));
    assert!(version.retain);
}

#[test]
fn they_are_given_only_where_a_rule_names_them() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("a").open(gateway.port);
    assert_eq!(client.subscribe("$SYS/#", 0), 0x87);
    assert_eq!(client.publish("$SYS/broker/version", "mine", 1, false), 0x87);
}
