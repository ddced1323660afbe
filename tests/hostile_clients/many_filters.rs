//! Clients with thousands of subscriptions: what they do costs as much as it is large, and others have their turns in
//! between.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::much_for_little::others_go_on;
use super::{assert_it_serves, assert_it_serves_but};
use crate::support::packet::{Properties, binary, packet, publish, subscribe};
use crate::support::{Client, Connect, Gateway};

const SUBACK: u8 = 9;
const UNSUBACK: u8 = 11;

fn shared(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|number| format!("$share/group-{number}/topic-{number}")).collect()
}

fn with_qos(filters: &[String], qos: u8) -> Vec<(&str, u8)> {
    filters.iter().map(|filter| (filter.as_str(), qos)).collect()
}

/// Subscribes with QoS 2.
fn subscribe_to(client: &mut Client, filters: &[String]) {
    for some in filters.chunks(1000) {
        let granted = client.subscribe_all(&with_qos(some, 2), &Properties::new());
        assert_eq!(granted, vec![2; some.len()]);
    }
}

fn unsubscribe(id: u16, filters: &[String]) -> Vec<u8> {
    let names = filters.iter().flat_map(|filter| binary(filter.as_bytes()));
    packet(0xa2, &[&id.to_be_bytes(), &[0], &names.collect::<Vec<u8>>()])
}

fn cost(gateway: &Gateway, act: impl FnOnce()) -> Duration {
    let before = gateway.cpu_time();
    act();
    gateway.cpu_time() - before
}

#[test]
fn whoever_subscribes_thousands_of_times_in_one_packet_does_not_keep_others_waiting() {
    let mut gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let kept = |number| publish(format!("kept/{number}").as_bytes(), b"x", 0x31, None, None);
    publisher.send(&(0..80).flat_map(kept).collect::<Vec<u8>>());
    publisher.ping();
    // what is kept of them is less than a client without a user may write to the card at once
    let of_groups = shared(0, 2_500);
    let searching: Vec<String> = (0..9_000).map(|number| format!("+/none-{number}")).collect();
    for (name, filters, qos) in [("groups", &of_groups, 2), ("searching", &searching, 0)] {
        let client = |kind| {
            let connect = Connect::v5(&format!("{name}-{kind}"));
            if qos > 0 { connect.persistent() } else { connect }.open(gateway.port)
        };
        let burst = subscribe(1, &with_qos(filters, qos), Some(&Properties::new()));
        others_go_on(&gateway, client("first"), &burst, SUBACK);
        let burst = [burst, unsubscribe(2, filters)].concat();
        others_go_on(&gateway, client("second"), &burst, UNSUBACK);
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn packets_after_a_large_subscribe_wait_for_its_end() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    let filters: Vec<String> = (0..1000).map(|number| format!("topic/{number}")).collect();
    let none = Properties::new();
    let packets = [
        subscribe(1, &with_qos(&filters, 1), Some(&none)),
        publish(b"topic/999", b"mine", 0x32, Some(7), Some(&none)),
        unsubscribe(2, &filters[..500]),
        vec![0xc0, 0],
    ];
    client.send(&packets.concat());
    assert_eq!(client.expect(SUBACK).body.len(), 3 + 1000);
    let (mut came, mut kinds) = (0, HashSet::new());
    while kinds.len() < 3 {
        match client.read().kind() {
            3 => came += 1,
            kind => assert!(kinds.insert(kind)),
        }
    }
    assert_eq!(kinds, HashSet::from([4, UNSUBACK, 13]));
    if came == 0 {
        // the last filter was there before the message
        assert_eq!(client.receive().text(), "mine");
    }
}

#[test]
fn a_new_group_and_an_acknowledgement_cost_the_same_however_many_groups_there_are() {
    let mut gateway = Gateway::start();
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let mut client = Connect::v5("client").persistent().open(gateway.port);
    client.subscribe("alone", 1);
    let mut measure = |client: &mut Client, number: usize| {
        let groups = cost(&gateway, || {
            let mut other = Connect::v5(&format!("other-{number}")).persistent().open(gateway.port);
            subscribe_to(&mut other, &shared(100_000 * number, 500));
        });
        let acknowledgements = cost(&gateway, || {
            for _ in 0..300 {
                publisher.publish("alone", "x", 1, false);
                client.receive();
            }
            client.ping();
        });
        (groups, acknowledgements)
    };
    let before = measure(&mut client, 1);
    subscribe_to(&mut client, &shared(0, 8_000));
    let after = measure(&mut client, 2);
    println!("{before:?} {after:?}");
    assert!(after.0 < before.0 * 3, "new groups: {before:?} {after:?}");
    assert!(after.1 < before.1 * 3, "acknowledgements: {before:?} {after:?}");
    assert_it_serves(&mut gateway);
}

#[test]
fn what_waits_in_many_groups_comes_as_the_session_has_room_for_it() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("client").persistent().open(gateway.port);
    subscribe_to(&mut client, &shared(0, 50));
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let mut sent = HashSet::new();
    for message in 0..5 {
        for number in 0..50 {
            let payload = format!("{message} of {number}");
            publisher.publish(&format!("topic-{number}"), &payload, 2, false);
            sent.insert(payload);
        }
    }
    for _ in 0..250 {
        let message = client.receive();
        assert!(sent.remove(&message.text()), "twice: {}", message.text());
    }
    client.ping();
    assert!(client.has_come().is_none());
}

#[test]
fn a_message_is_kept_for_a_limited_number_of_groups_of_one_user() {
    let mut gateway = Gateway::start();
    let of = |filter: &str, count: usize| -> Vec<String> {
        (0..count).map(|number| format!("$share/group-{number}/{filter}")).collect()
    };
    let subscribe = |client: &mut Client, filters: &[String], qos| {
        client.subscribe_all(&with_qos(filters, qos), &Properties::new())
    };
    let granted = |granted: Vec<u8>| granted.iter().filter(|reason| **reason <= 2).count();
    let mut first = Connect::v5("first").persistent().open(gateway.port);
    for (filter, count, most) in [("t", 70, 64), ("u", 70, 64), ("+", 200, 200), ("#", 200, 56)] {
        let reasons = subscribe(&mut first, &of(filter, count), 1);
        assert!(reasons[..most].iter().all(|reason| *reason == 1), "{filter}: {reasons:?}");
        assert!(reasons[most..].iter().all(|reason| *reason == 0x97), "{filter}: {reasons:?}");
    }
    // another client of the same user takes part in known groups, and makes no more of them than the first
    let mut second = Connect::v5("second").persistent().open(gateway.port);
    assert_eq!(granted(subscribe(&mut second, &of("t", 70), 2)), 64);
    // what is not kept has no such limit
    assert_eq!(granted(subscribe(&mut second, &of("v", 70), 0)), 70);
    let mut clean = Connect::v5("clean").open(gateway.port);
    assert_eq!(granted(subscribe(&mut clean, &of("t", 70), 2)), 70);
    // there is place for another when all have left one
    let last = "$share/group-69/t";
    first.unsubscribe("$share/group-7/t");
    assert_eq!(second.subscribe(last, 1), 0x97);
    second.unsubscribe("$share/group-7/t");
    assert_eq!(second.subscribe(last, 1), 1);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    publisher.publish("t", "x", 1, false);
    assert_it_serves_but(&mut gateway, &["too many shared subscriptions for which messages are kept"]);
}

#[test]
fn while_a_large_session_comes_back_nothing_comes_twice() {
    let gateway = Gateway::start();
    let connect = Connect::v5("client").persistent();
    let mut client = connect.open(gateway.port);
    let others: Vec<String> = (0..2_000).map(|number| format!("others/{number}")).collect();
    client.subscribe_all(&with_qos(&others, 0), &Properties::new());
    client.subscribe_all(&[("a/#", 0), ("a/b", 1)], &Properties::new());
    let (stop, port) = (Arc::new(AtomicBool::new(false)), gateway.port);
    let publishing = thread::spawn({
        let stop = stop.clone();
        move || {
            let mut publisher = Connect::v5("publisher").open(port);
            for number in 0.. {
                publisher.publish("a/b", number.to_string(), 1, false);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    for _ in 0..20 {
        for _ in 0..20 {
            let message = client.receive();
            assert_eq!(message.qos, 1, "{} comes from the journal, and live too", message.text());
        }
        client.vanish();
        client = connect.open(gateway.port);
    }
    stop.store(true, Ordering::Relaxed);
    publishing.join().unwrap();
}
