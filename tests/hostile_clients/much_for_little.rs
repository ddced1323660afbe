//! Small packets that ask for much: memory is paid by what is there, and not by how often it is asked for.

use std::collections::HashSet;

use super::assert_it_serves;
use crate::support::packet::{Properties, publish};
use crate::support::{Connect, Gateway};

/// For a debug build, in KiB.
const MOST: u64 = 80 << 10;

#[track_caller]
fn assert_small(gateway: &Gateway) {
    let most = gateway.memory_kib("VmHWM");
    println!("{most} KiB at most");
    assert!(most < MOST, "{most} KiB at most");
}

#[test]
fn one_filter_sixty_thousand_times_selects_each_retained_message_once() {
    let mut gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let topics = 0..9_000;
    let burst: Vec<u8> = topics
        .clone()
        .flat_map(|number| publish(format!("kept/{number}").as_bytes(), &[b'x'; 100], 0x31, None, None))
        .collect();
    publisher.send(&burst);
    publisher.ping();
    let mut greedy = Connect::v5("greedy").open(gateway.port);
    let granted = greedy.subscribe_all(&vec![("#", 0); 60_000], &Properties::new());
    assert_eq!(granted, vec![0; 60_000]);
    // what is live comes behind what was retained
    publisher.publish("end", "live", 1, false);
    let mut seen = HashSet::new();
    loop {
        let message = greedy.receive();
        if message.topic == "end" {
            break;
        }
        assert!(seen.insert(message.topic), "twice");
    }
    assert_eq!(seen.len(), topics.len());
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn a_thousand_groups_of_one_client_share_a_payload() {
    let mut gateway = Gateway::start();
    let mut member = Connect::v5("member").open(gateway.port);
    let filters: Vec<String> = (0..1000).map(|number| format!("$share/group-{number}/large")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 0)).collect();
    member.subscribe_all(&filters, &Properties::new());
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("large", vec![b'x'; 200_000], 1, false);
    assert_small(&gateway);
    for _ in 0..filters.len() {
        assert_eq!(member.receive().payload.len(), 200_000);
    }
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn a_thousand_groups_hand_a_client_no_more_than_its_queue_holds() {
    let mut gateway = Gateway::start();
    let mut member = Connect::v5("member").open(gateway.port);
    let filters: Vec<String> = (0..1000).map(|number| format!("$share/group/large/{number}")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 0)).collect();
    member.subscribe_all(&filters, &Properties::new());
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let count = 100;
    for number in 0..count {
        publisher.publish(&format!("large/{number}"), vec![b'x'; 200_000], 1, false);
    }
    assert_small(&gateway);
    // what its queue had no room for comes when it has
    let came: HashSet<String> = (0..count).map(|_| member.receive().topic).collect();
    assert_eq!(came.len(), count);
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn filters_of_two_hundred_levels_are_as_large_as_they_are_long() {
    let mut gateway = Gateway::start();
    let mut deep = Connect::v5("deep").open(gateway.port);
    let rest = "/a".repeat(198);
    let filters: Vec<String> = (0..3000).map(|number| format!("{number}{rest}/+")).collect();
    for some in filters.chunks(500) {
        let some: Vec<(&str, u8)> = some.iter().map(|filter| (filter.as_str(), 0)).collect();
        assert_eq!(deep.subscribe_all(&some, &Properties::new()), [0; 500]);
    }
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish(&format!("2999{rest}/x"), "found", 1, false);
    assert_eq!(deep.receive().text(), "found");
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn topics_behind_aliases_are_bounded() {
    let mut gateway = Gateway::start();
    let mut client = Connect::v5("client").open(gateway.port);
    let long = |alias| publish(&[b'x'; 60_000], b"", 0x30, None, Some(&Properties::new().two(0x23, alias)));
    for alias in [1, 2, 1, 2] {
        client.send(&long(alias));
        client.ping();
    }
    client.send(&long(3));
    client.closed_with(0x97);
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}
