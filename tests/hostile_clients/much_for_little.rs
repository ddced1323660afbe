//! Small packets that cause much work: memory depends on the existing data and not on the number of requests, and only the
//! client that takes much time has to wait.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::assert_it_serves;
use crate::support::broker::Setup;
use crate::support::packet::{Properties, publish, subscribe};
use crate::support::{self, Client, Connect, Gateway};

/// The limit of memory for a debug build, in KiB.
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
    // live messages come after the retained ones
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
    // messages without room in its queue come when there is room
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

/// The number of messages that two clients exchange while a greedy client causes much work.
const INNOCENT: usize = 5;
const PUBLISH: u8 = 3;
const PINGRESP: u8 = 13;
/// The longest time for all turns of a greedy client.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends these bytes to the gateway at once, and checks that others do not wait until they are processed: others exchange
/// their messages before the greedy client gets the last kind of packet.
#[track_caller]
pub fn others_go_on(gateway: &Gateway, mut greedy: Client, burst: &[u8], last: u8) {
    let mut reader = Connect::new("reader").open(gateway.port);
    reader.subscribe("innocent/+", 0);
    let mut publisher = Connect::new("innocent").open(gateway.port);
    greedy.send(burst);
    let (done, is_done) = mpsc::channel();
    let waiting = thread::spawn(move || {
        greedy.patience(PATIENCE);
        while greedy.read().kind() != last {}
        done.send(()).unwrap();
    });
    for number in 0..INNOCENT {
        publisher.publish("innocent/topic", number.to_string(), 1, false);
        assert_eq!(reader.receive().text(), number.to_string());
    }
    let others_were_first = is_done.try_recv().is_err();
    assert!(others_were_first, "others have waited for all of it");
    // and all requests are processed in the end
    is_done.recv_timeout(PATIENCE).expect("the greedy client has its turns");
    waiting.join().unwrap();
}

/// All filters of twelve levels that select a topic of these levels.
fn overlapping(levels: [&str; 12]) -> Vec<String> {
    let filter = |number: usize| -> Vec<&str> {
        levels.iter().enumerate().map(|(at, level)| if number >> at & 1 == 1 { "+" } else { *level }).collect()
    };
    (0..1 << 12).map(|number| filter(number).join("/")).collect()
}

fn subscribe_in_parts(client: &mut Client, filters: &[String], options: u8) {
    for some in filters.chunks(1000) {
        let some: Vec<(&str, u8)> = some.iter().map(|filter| (filter.as_str(), options)).collect();
        assert_eq!(client.subscribe_all(&some, &Properties::new()), vec![options & 3; some.len()]);
    }
}

#[test]
fn whoever_publishes_to_thousands_of_overlapping_filters_waits_for_its_turns() {
    let mut gateway = Gateway::start();
    for (name, is_persistent) in [("live", false), ("kept", true)] {
        let connect = Connect::v5(name);
        let mut greedy = if is_persistent { connect.persistent() } else { connect }.open(gateway.port);
        subscribe_in_parts(&mut greedy, &overlapping(["a"; 12]), u8::from(is_persistent));
        let topics = [["a"; 12].join("/"), format!("b/{}", ["a"; 11].join("/"))];
        let one = |number: usize| publish(topics[number % 2].as_bytes(), b"x", 0x30, None, Some(&Properties::new()));
        let burst: Vec<u8> = (0..800).flat_map(one).chain([0xc0, 0]).collect();
        let publisher = Connect::v5(&format!("publisher-{name}")).open(gateway.port);
        others_go_on(&gateway, publisher, &burst, PINGRESP);
        greedy.disconnect();
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn whoever_is_in_thousands_of_groups_pays_for_what_is_published_to_them() {
    let mut gateway = Gateway::start();
    let mut member = Connect::v5("member").open(gateway.port);
    let filters: Vec<String> = (0..2500).map(|number| format!("$share/group-{number}/t")).collect();
    subscribe_in_parts(&mut member, &filters, 0);
    let mut reader = Connect::new("reader").open(gateway.port);
    reader.subscribe("innocent", 0);
    let mut innocent = Connect::new("innocent").open(gateway.port);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let before = gateway.cpu_time();
    let messages = 60;
    publisher.send(&(0..messages).flat_map(|_| publish(b"t", b"12345678", 0x30, None, None)).collect::<Vec<u8>>());
    publisher.ping();
    for number in 0..INNOCENT {
        innocent.publish("innocent", number.to_string(), 1, false);
        assert_eq!(reader.receive().text(), number.to_string());
    }
    let until_others_were_served = gateway.cpu_time() - before;
    for _ in 0..messages * filters.len() {
        assert_eq!(member.receive().topic, "t");
    }
    let whole = gateway.cpu_time() - before;
    println!("{until_others_were_served:?} of {whole:?}");
    assert!(until_others_were_served * 10 < whole, "others have waited for {until_others_were_served:?} of {whole:?}");
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn whoever_searches_the_retained_messages_again_and_again_waits_for_its_turns() {
    let mut gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let kept = |number| publish(format!("kept/{number}/a/b").as_bytes(), b"x", 0x31, None, None);
    publisher.send(&(0..5_000).flat_map(kept).collect::<Vec<u8>>());
    publisher.ping();
    let greedy = Connect::v5("greedy").open(gateway.port);
    let filters: Vec<String> = (0..700).map(|number| format!("+/+/a/none-{number}")).collect();
    let filters = filters.iter().map(String::as_str).chain(["kept/7/#"]);
    let filters: Vec<(&str, u8)> = filters.map(|filter| (filter, 0)).collect();
    others_go_on(&gateway, greedy, &subscribe(1, &filters, Some(&Properties::new())), PUBLISH);
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

#[test]
fn packet_ids_that_are_never_released_are_small() {
    const GUESTS: usize = 20;
    /// For these guests but the first, in KiB. Their buffers are most of it: the ids of each take 8.
    const MOST_GROWTH: u64 = 10 << 10;
    let mut gateway = Gateway::start();
    let ids: Vec<u16> = (1..=60_000).collect();
    let mut guests = Vec::new();
    let mut before = 0;
    for number in 0..GUESTS {
        // MQTT 3 has no limit for these messages
        let mut guest = Connect::new(&format!("guest-{number}")).open(gateway.port);
        for some in ids.chunks(5_000) {
            let burst: Vec<u8> = some.iter().flat_map(|id| publish(b"t", b"", 0x34, Some(*id), None)).collect();
            guest.send(&burst);
            let mut answers = vec![0; some.len() * 4];
            guest.socket.read_exact(&mut answers).unwrap();
            let recorded = some.iter().flat_map(|id| [&[0x50, 2], &id.to_be_bytes()[..]].concat());
            assert!(recorded.eq(answers), "a PUBREC for each");
        }
        // with a small packet the receive buffer shrinks again
        guest.ping();
        guests.push(guest);
        if number == 0 {
            before = gateway.memory_kib("VmHWM");
        }
    }
    let most = gateway.memory_kib("VmHWM");
    println!("{before} KiB with the first guest, {most} KiB with all");
    assert!(most - before < MOST_GROWTH, "{before} KiB with the first guest, {most} KiB with all");
    // the first id is still known, and the last message of all guests can be completed
    for guest in &mut guests {
        guest.send(&[0x62, 2, 0, 1, 0x62, 2, 0xea, 0x60]);
        for id in [1, 60_000_u16] {
            assert_eq!(guest.expect(7).body, id.to_be_bytes());
        }
    }
    assert_it_serves(&mut gateway);
}

/// A file with the history of a sensor, as large as it gets.
fn full_history(first: u64) -> String {
    let line = |n: u64| {
        format!(
            "{{\"n\":{n},\"state\":\"on\",\"boot\":\"b\",\"boot_ms\":{n},\"unix_ms\":17723664{:05}}}\n",
            n % 100_000
        )
    };
    let size = line(first).len();
    (first..).take((512 << 10) / size).map(line).collect()
}

#[test]
fn histories_that_are_asked_for_by_the_hundred_are_read_one_at_a_time() {
    const REQUESTS: usize = 250;
    // an event of the sensor would begin a new file, and the oldest events would be gone
    let sensor = "[[sensor]]\nname = \"loft\"\npin = 17\ntopic = \"loft\"\nsimulate = [\"1 h off\"]\n[broker.anonymous]\naccept = \"all\"\n";
    let (setup, http) = Setup::default().config(sensor).http();
    let history = setup.dir().join("data/history");
    std::fs::create_dir_all(&history).unwrap();
    for (name, first) in [("loft.jsonl.old", 1), ("loft.jsonl", 10_000)] {
        std::fs::write(history.join(name), full_history(first)).unwrap();
    }
    let mut gateway = setup.start();
    let sockets: Vec<TcpStream> = (0..REQUESTS).map(|_| TcpStream::connect(("127.0.0.1", http)).unwrap()).collect();
    let get = "GET /api/v1/sensors/loft/events?limit=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for mut socket in &sockets {
        socket.write_all(get.as_bytes()).unwrap();
    }
    for mut socket in &sockets {
        socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("{\"n\":1,") && answer.ends_with("\"cursor\":1,\"more\":true}"), "{answer}");
    }
    let threads = gateway.threads();
    println!("{threads} threads");
    assert!(threads < 40, "{threads} threads");
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}
