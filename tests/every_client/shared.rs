//! Shared subscriptions: every message goes to one member of the group.

use std::collections::BTreeSet;

use crate::support::{Client, Connect, Gateway, Lookup, Properties, Publish, wait_until};

const FILTER: &str = "$share/workers/jobs/#";

fn worker(gateway: &Gateway, name: &str) -> Client {
    let mut worker = Connect::v5(name).open(gateway.port);
    assert_eq!(worker.subscribe(FILTER, 1), 1);
    worker
}

#[test]
fn the_group_shares_the_messages() {
    let gateway = Gateway::start();
    let mut workers = ["a", "b", "c"].map(|name| worker(&gateway, name));
    let mut everybody = Connect::v5("everybody").open(gateway.port);
    everybody.subscribe("jobs/#", 1);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..300 {
        publisher.publish("jobs/x", number.to_string(), (number % 2) as u8, false);
    }
    assert_eq!(everybody.drain().len(), 300, "others get all of them as ever");
    let mut shares = [const { Vec::<u32>::new() }; 3];
    // a member that does not read holds up only its own share
    wait_until("all messages have been taken", || {
        for (worker, share) in workers.iter_mut().zip(&mut shares) {
            share.extend(worker.drain().iter().map(|message| message.text().parse::<u32>().unwrap()));
        }
        shares.iter().map(Vec::len).sum::<usize>() >= 300
    });
    assert!(shares.iter().all(|share| share.len() >= 30), "{:?}", shares.each_ref().map(Vec::len));
    let mut all = shares.concat();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..300), "{all:?}");
}

#[test]
fn persistent_members_take_turns_at_qos_2_too() {
    let gateway = Gateway::start();
    let mut workers = ["a", "b", "c"].map(|name| Connect::v5(name).persistent().open(gateway.port));
    workers.iter_mut().for_each(|worker| assert_eq!(worker.subscribe(FILTER, 2), 2));
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..9 {
        publisher.publish("jobs/x", number.to_string(), 2, false);
        assert_eq!(workers[number % 3].receive().text(), number.to_string());
    }
}

#[test]
fn what_a_member_leaves_behind_goes_to_the_others() {
    let gateway = Gateway::start();
    let (mut first, mut second) = (worker(&gateway, "first"), worker(&gateway, "second"));
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..20 {
        publisher.publish("jobs/x", number.to_string(), 1, false);
    }
    let unacknowledged: Publish = first.receive_unacked();
    first.vanish();
    let mut all = BTreeSet::new();
    while all.len() < 20 {
        all.insert(second.receive().text());
    }
    assert!(all.contains(&unacknowledged.text()));
}

#[test]
fn the_last_member_gone_nothing_is_kept() {
    let gateway = Gateway::start();
    let mut first = worker(&gateway, "first");
    assert_eq!(first.unsubscribe(FILTER), 0);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("jobs/x", "nobody's", 1, false);
    first.subscribe(FILTER, 1);
    publisher.publish("jobs/x", "first's", 1, false);
    assert_eq!(first.receive().text(), "first's");
}

#[test]
fn retained_messages_are_not_sent_for_shared_subscriptions() {
    let gateway = Gateway::start();
    Connect::new("publisher").open(gateway.port).publish("jobs/x", "old", 1, true);
    let mut worker = worker(&gateway, "worker");
    assert_eq!(worker.drain(), []);
}

#[test]
fn malformed_groups_are_refused() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    for filter in ["$share//a", "$share/g", "$share/g/", "$share/+/a", "$share/g#/a"] {
        assert_eq!(client.subscribe(filter, 0), 0x8f, "{filter}");
    }
    let granted = client.subscribe_all(&[("$share/g/a", 2), ("$share/h/a", 0)], &Properties::new());
    assert_eq!(granted, [2, 0]);
    client.publish("a", "x", 2, false);
    let received = [client.receive(), client.receive()].map(|message| message.qos);
    assert!(received == [2, 0] || received == [0, 2], "one for each group: {received:?}");
}

#[test]
fn a_message_of_a_group_has_the_qos_and_the_id_of_the_group_and_not_those_of_another_subscription() {
    let gateway = Gateway::start();
    let connect = || Connect::v5("both").persistent();
    let mut both = connect().open(gateway.port);
    for (filter, qos, id) in [("jobs/#", 1, 1), ("$share/workers/jobs/+", 2, 2)] {
        both.subscribe_all(&[(filter, qos)], &Properties::new().variable(0x0b, id));
    }
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let terms = |client: &mut Client| {
        let received = [client.receive(), client.receive()];
        let mut terms =
            received.map(|message| (message.text(), message.qos, Lookup::numbers(&message.properties[..], 0x0b)));
        terms.sort_unstable();
        terms
    };
    let expected = |text: &str| [(text.to_owned(), 1, vec![1]), (text.to_owned(), 2, vec![2])];
    publisher.publish("jobs/x", "1", 2, false);
    assert_eq!(terms(&mut both), expected("1"), "one for each subscription");
    // what waits while the client is away
    both.ping();
    both.vanish();
    publisher.publish("jobs/x", "2", 2, false);
    let mut both = connect().open(gateway.port);
    assert_eq!(terms(&mut both), expected("2"));
}
