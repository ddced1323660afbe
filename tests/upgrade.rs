//! This gateway reads the data directory of an older one, with all accepted messages, subscriptions, retained messages and
//! promises.
//!
//! `fixtures/data_40a2f34.tar.gz` is the data directory of the gateway of commit 40a2f34, which was killed with kill -9. It
//! contains sessions with subscriptions of every kind and with waiting messages, one of them of a user; a message in flight
//! at QoS 2 that its client had received but not completed; changed and cleared retained messages; the will of a connected
//! client; and a cursor of an upstream with the messages that wait after it.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::packet::{Value, contents};
use support::{Connect, Gateway, Mosquitto, Publish, Setup};

const USER: &str = "[[broker.user]]\nname = \"anna\"\npassword_hash = \"$argon2id$v=19$m=19456,t=2,p=1$gRI349DFhPydO2HzFaKRYQ$rONI/t+xkvqnVMJUK4T6vedLDg85qoGR5UAfQdTReMY\"\n";

fn config(upstream: u16) -> String {
    format!(
        "{USER}[broker]\nmax_packet_size = \"16 KiB\"\n[journal]\nmax_size = \"1 MiB\"\n\
         [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{upstream}\"]\n\
         [[upstream.out]]\ntopic_filter = \"up/#\"\n"
    )
}

/// Starts this version of the gateway with that directory.
fn upgraded() -> (Gateway, u16) {
    let upstream = support::free_port();
    let setup = Setup::default().config(&config(upstream));
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data_40a2f34.tar.gz");
    let unpacked = Command::new("tar").args(["xzf", archive, "-C"]).arg(setup.dir()).status().unwrap();
    assert!(unpacked.success());
    (setup.start(), upstream)
}

fn texts(messages: &[Publish]) -> Vec<String> {
    messages.iter().map(Publish::text).collect()
}

#[test]
fn sessions_come_back_with_their_subscriptions_and_messages() {
    let (gateway, _) = upgraded();
    let (mut sleeper, connack) = Connect::v5("sleeper").persistent().open_with(gateway.port);
    assert!(connack.present);
    let (mut released, mut received) = (None, Vec::new());
    while received.len() < 6 || released.is_none() {
        let packet = sleeper.read();
        match packet.kind() {
            3 => received.push(Publish::read(&packet, support::packet::V5)),
            6 => released = Some(packet.id()),
            kind => panic!("{kind}"),
        }
    }
    let expected: Vec<String> =
        std::iter::once("sent".into()).chain((0..5).map(|number| format!("news {number}"))).collect();
    assert_eq!(texts(&received), expected, "what was received is not sent again");
    assert!(received.iter().all(|message| message.properties == [(0x0b, Value::Number(9))]));
    sleeper.ack(0x70, released.unwrap());
    for message in received {
        sleeper.ack(if message.qos == 1 { 0x40 } else { 0x50 }, message.id);
        if message.qos == 2 {
            assert_eq!(sleeper.expect(6).id(), message.id);
            sleeper.ack(0x70, message.id);
        }
    }
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for (topic, qos) in [("news/x", 1), ("quiet", 1), ("gone", 1)] {
        publisher.publish(topic, topic, qos, false);
    }
    let mut heard = texts(&[sleeper.receive(), sleeper.receive()]);
    heard.sort();
    assert_eq!(heard, ["news/x", "quiet"]);
    assert!(sleeper.drain().is_empty());

    let (mut worker, connack) = Connect::v5("worker").persistent().open_with(gateway.port);
    assert!(connack.present);
    publisher.publish("work/1", "shared", 1, false);
    assert_eq!(worker.receive().text(), "shared");
}

#[test]
fn a_users_session_is_still_that_users() {
    let (gateway, _) = upgraded();
    let (mut phone, connack) = Connect::v5("phone").login("anna", "correct horse").persistent().open_with(gateway.port);
    assert!(connack.present);
    let expected: Vec<String> = (0..5).map(|number| format!("mail {number}")).collect();
    assert_eq!((0..5).map(|_| phone.receive().text()).collect::<Vec<_>>(), expected);
}

#[test]
fn retained_messages_and_wills_come_back() {
    let (gateway, _) = upgraded();
    let mut client = Connect::new("reader").open(gateway.port);
    client.subscribe("kept/#", 1);
    assert_eq!(contents(&client.drain()), [("kept/a", "kept 4".into()), ("kept/c", "last".into())]);
    client.subscribe("node/status", 1);
    assert_eq!(texts(&client.drain()), ["offline"], "its client was cut off with the gateway");
}

#[test]
fn what_waits_for_an_upstream_goes_there() {
    let (gateway, port) = upgraded();
    let home = Mosquitto::with("");
    let mut reader = Connect::new("reader").open(home.port);
    reader.subscribe("#", 1);
    home.also_at(port);
    let mut arrived = Vec::new();
    while arrived.last().is_none_or(|last| last != "after 4") {
        arrived.push(reader.receive().text());
    }
    arrived.retain(|text| !text.starts_with("before"));
    assert_eq!(arrived, (0..5).map(|number| format!("after {number}")).collect::<Vec<_>>());
    drop(gateway);
}

#[test]
fn and_once_more_after_the_next_start() {
    let (gateway, _) = upgraded();
    let gateway = gateway.kill().restart();
    let gateway = gateway.end().restart();
    let (_, connack) = Connect::v5("sleeper").persistent().open_with(gateway.port);
    assert!(connack.present);
    let mut phone = Connect::v5("phone").login("anna", "correct horse").persistent().open(gateway.port);
    let expected: Vec<String> = (0..5).map(|number| format!("mail {number}")).collect();
    assert_eq!((0..5).map(|_| phone.receive().text()).collect::<Vec<_>>(), expected);
}
