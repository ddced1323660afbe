//! Connected subscribers that read lose nothing, whatever the publishers do, and all of them see the same last value.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use support::packet::packet;
use support::wire::{self, packets, put_ack};
use support::{Client, Connect, Gateway, Mosquitto, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

const PUBLISHERS: usize = 50;
const SUBSCRIBERS: usize = 50;
/// The number of topics of each publisher. Multiplied by the number of publishers, it is the number of the filters of the
/// narrow subscriber.
const TOPICS: usize = 12;
const IN_FLIGHT: usize = 64;
/// The number of messages of each publisher: many times the messages in flight, but a debug build on two cores needs only
/// seconds.
const MESSAGES: usize = 500;
/// After a silence of this length the missing messages count as lost.
const SILENCE: Duration = Duration::from_secs(20);

async fn connect(port: u16, id: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&wire::connect(id)).await.unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    stream
}

/// Publishes its messages, topic after topic, with as many in flight as allowed.
async fn publish(port: u16, publisher: usize, start: Arc<Barrier>) {
    let mut stream = connect(port, &format!("publisher-{publisher}")).await;
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut sent = 0;
    let mut put = |output: &mut BytesMut, id: u16| {
        let topic = sent % TOPICS;
        let template = wire::publish(&format!("flood/{publisher}/{topic}"), 1, 12);
        template.put(output, id);
        let at = output.len() - 12;
        for (place, number) in [publisher, topic, sent / TOPICS].into_iter().enumerate() {
            output[at + 4 * place..at + 4 * place + 4].copy_from_slice(&(number as u32).to_be_bytes());
        }
        sent += 1;
    };
    (1..=IN_FLIGHT as u16).for_each(|id| put(&mut output, id));
    start.wait().await;
    let mut acknowledged = 0;
    while acknowledged < MESSAGES {
        stream.write_all_buf(&mut output).await.unwrap();
        assert_ne!(stream.read_buf(&mut input).await.unwrap(), 0, "the gateway has ended the connection");
        packets(&mut input, |packet| {
            assert_eq!(packet.first, 0x40);
            acknowledged += 1;
            if acknowledged + IN_FLIGHT <= MESSAGES {
                put(&mut output, packet.ack_id());
            }
        });
    }
}

/// Receives all messages of all publishers and checks their order.
async fn receive(port: u16, id: String, filters: Vec<String>, start: Arc<Barrier>) {
    let mut stream = connect(port, &id).await;
    for filters in filters.chunks(50) {
        let wanted: Vec<u8> =
            filters.iter().flat_map(|filter| [support::packet::binary(filter.as_bytes()), vec![1]].concat()).collect();
        stream.write_all(&packet(0x82, &[&[0, 1], &wanted])).await.unwrap();
        let mut suback = vec![0; 4 + filters.len()];
        stream.read_exact(&mut suback).await.unwrap();
        assert!(suback[4..].iter().all(|granted| *granted == 1), "{suback:?}");
    }
    start.wait().await;
    let (mut input, mut output) = (BytesMut::with_capacity(1 << 18), BytesMut::new());
    let mut next: HashMap<(u32, u32), u32> = HashMap::new();
    let mut received = 0;
    while received < PUBLISHERS * MESSAGES {
        input.reserve(1 << 16);
        match tokio::time::timeout(SILENCE, stream.read_buf(&mut input)).await {
            Ok(count) => assert_ne!(count.unwrap(), 0, "{id}: the gateway has ended the connection"),
            Err(_) => panic!("{id} got {received} of {} messages", PUBLISHERS * MESSAGES),
        }
        packets(&mut input, |packet| {
            assert_eq!(packet.first, 0x32, "QoS 1, not sent before");
            put_ack(&mut output, 0x40, packet.publish_id());
            let number = |at: usize| u32::from_be_bytes(packet.payload()[at..at + 4].try_into().unwrap());
            let expected = next.entry((number(0), number(4))).or_default();
            assert_eq!(number(8), *expected, "{id}: publisher {}, topic {}", number(0), number(4));
            *expected += 1;
            received += 1;
        });
        stream.write_all_buf(&mut output).await.unwrap();
    }
    assert_eq!(next.len(), PUBLISHERS * TOPICS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_at_qos_1_reaches_every_subscriber_whole_and_in_order() {
    let gateway = Gateway::start();
    let start = Arc::new(Barrier::new(PUBLISHERS + SUBSCRIBERS + 1));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..SUBSCRIBERS {
        let filter = ["flood/#", "flood/+/+", "#"][number % 3].to_owned();
        clients.spawn(receive(gateway.port, format!("subscriber-{number}"), vec![filter], start.clone()));
    }
    let narrow = (0..PUBLISHERS * TOPICS).map(|number| format!("flood/{}/{}", number / TOPICS, number % TOPICS));
    clients.spawn(receive(gateway.port, "narrow".into(), narrow.collect(), start.clone()));
    for publisher in 0..PUBLISHERS {
        clients.spawn(publish(gateway.port, publisher, start.clone()));
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let log = gateway.log();
    assert!(!log.iter().any(|line| line.contains("WARN") || line.contains("ERROR")), "{log:#?}");
}

/// Publishes retained messages on the topics as fast as PUBACKs arrive, with many in flight.
fn race(port: u16, name: &str, rounds: usize, topics: &[&str]) {
    let mut client = Connect::new(name).open(port);
    for round in 0..rounds {
        let mut burst = Vec::new();
        for (number, topic) in topics.iter().enumerate() {
            let payload = format!("{name} {round}");
            burst.extend(support::packet::publish(
                topic.as_bytes(),
                payload.as_bytes(),
                3,
                Some(number as u16 + 1),
                None,
            ));
        }
        client.send(&burst);
        topics.iter().for_each(|_| drop(client.expect(4)));
    }
}

/// The last value that a subscriber has seen on each topic.
fn last_values(client: &mut Client, seen: &mut HashMap<String, String>) {
    for message in client.drain() {
        seen.insert(message.topic.clone(), message.text());
    }
}

#[test]
fn racing_retained_values_leave_the_same_last_one_everywhere() {
    const TOPICS: [&str; 8] = ["r/0", "r/1", "r/2", "r/3", "r/4", "r/5", "r/6", "r/7"];
    let mosquitto = Mosquitto::with("max_queued_messages 0");
    let gateway = Gateway::with(&format!(
        "[[upstream]]\nname = \"up\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\n[[upstream.out]]\ntopic_filter = \"r/#\"",
        mosquitto.port
    ));
    let subscribers = [("a", 0), ("b", 1), ("c", 2), ("d", 1)];
    let mut live: Vec<(Client, HashMap<String, String>)> = Vec::new();
    for (id, qos) in subscribers {
        let connect = if id == "d" { Connect::new(id).persistent() } else { Connect::new(id) };
        let mut client = connect.open(gateway.port);
        client.subscribe("r/#", qos);
        live.push((client, HashMap::new()));
    }
    std::thread::scope(|scope| {
        for name in ["left", "right"] {
            let port = gateway.port;
            scope.spawn(move || race(port, name, 40, &TOPICS));
        }
        // a subscriber that does not read loses messages
        for _ in 0..20 {
            live.iter_mut().for_each(|(client, seen)| last_values(client, seen));
        }
    });
    let mut kept = HashMap::new();
    let mut late = Connect::new("late").open(gateway.port);
    late.subscribe("r/#", 1);
    last_values(&mut late, &mut kept);
    assert_eq!(kept.len(), TOPICS.len());
    for (client, seen) in &mut live {
        last_values(client, seen);
        assert_eq!(*seen, kept, "a subscriber and the retained store differ");
    }
    let mut upstream = Connect::new("late").open(mosquitto.port);
    let mut there = HashMap::new();
    wait_until("the upstream has the same last values", || {
        upstream.subscribe("r/#", 1);
        last_values(&mut upstream, &mut there);
        there == kept
    });
}
