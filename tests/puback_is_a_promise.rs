//! PUBACK is a promise: a message that a persistent session, the retained store or an upstream needs is on disk before
//! PUBACK or PUBREC leaves, and survives kill -9.

#![allow(clippy::unwrap_used)]

mod support;

use support::packet::{Properties, V5, V311, publish};
use support::{Connect, Gateway, Mosquitto, Publish, Setup, contents};

#[test]
fn what_was_acknowledged_arrives_after_kill() {
    let mut gateway = Gateway::start();
    let sleeper = || Connect::new("sleeper").persistent();
    let mut client = sleeper().open(gateway.port);
    client.subscribe("news/#", 1);
    client.disconnect();
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for number in 0..20 + round * 7 {
            let payload = format!("{round}-{number}");
            publisher.publish("news/a", &payload, 1 + number % 2, false);
            publisher.publish("kept", &payload, 1, true);
            acknowledged.push(payload);
        }
        gateway = gateway.kill().restart();
        let mut client = Connect::new("reader").open(gateway.port);
        client.subscribe("kept", 1);
        assert_eq!(contents(&[client.receive()]), [("kept", acknowledged.last().unwrap().clone())]);
    }
    let (mut client, connack) = sleeper().open_with(gateway.port);
    assert!(connack.present);
    let received: Vec<String> = (0..acknowledged.len()).map(|_| client.receive().text()).collect();
    assert_eq!(received, acknowledged);
}

#[test]
fn a_retained_message_that_was_cleared_stays_cleared() {
    let mut gateway = Gateway::start();
    for round in 0..3 {
        let mut client = Connect::new("client").open(gateway.port);
        client.publish("kept/a", format!("{round}"), 1, true);
        client.publish("kept/b", "x", 1, true);
        client.publish("kept/b", "", 1, true);
        gateway = gateway.kill().restart();
        let mut client = Connect::new("client").open(gateway.port);
        client.subscribe("kept/#", 1);
        assert_eq!(contents(&client.drain()), [("kept/a", format!("{round}"))]);
    }
}

#[test]
fn what_the_subscriber_had_not_acknowledged_comes_again_with_dup_and_the_same_id() {
    for version in [V311, V5] {
        let gateway = Gateway::start();
        let sleeper = || Connect::version(version, "sleeper").persistent();
        let mut client = sleeper().open(gateway.port);
        client.subscribe("news", 2);
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for (payload, qos) in [("a", 1), ("b", 2), ("c", 2), ("d", 1)] {
            publisher.publish("news", payload, qos, false);
        }
        let before: Vec<(u16, String)> = (0..4).map(|_| client.receive_unacked()).map(|m| (m.id, m.text())).collect();
        // the client has received b, so the message must not be sent again
        client.ack(0x50, before[1].0);
        assert_eq!(client.expect(6).id(), before[1].0);
        let gateway = gateway.kill().restart();
        let (mut client, connack) = sleeper().open_with(gateway.port);
        assert!(connack.present);
        let mut released = None;
        let mut again = Vec::new();
        while again.len() < 3 || released.is_none() {
            let packet = client.read();
            match packet.kind() {
                3 => again.push(support::Publish::read(&packet, version)),
                6 => released = Some(packet.id()),
                kind => panic!("{kind}"),
            }
        }
        assert!(again.iter().all(|message| message.dup));
        let again: Vec<(u16, String)> = again.into_iter().map(|message| (message.id, message.text())).collect();
        assert_eq!(again, [before[0].clone(), before[2].clone(), before[3].clone()]);
        assert_eq!(released, Some(before[1].0));
    }
}

#[test]
fn a_qos_2_publication_counts_once_over_kill() {
    for version in [V311, V5] {
        let gateway = Gateway::start();
        let mut reader = Connect::new("reader").persistent().open(gateway.port);
        reader.subscribe("news", 1);
        reader.disconnect();
        let writer = || Connect::version(version, "writer").persistent();
        let properties = Properties::new();
        let properties = (version == V5).then_some(&properties);
        let send = |first: u8, payload: &[u8]| publish(b"news", payload, first, Some(7), properties);
        let mut client = writer().open(gateway.port);
        client.send(&send(0x34, b"once"));
        assert_eq!(client.expect(5).id(), 7);
        let gateway = gateway.kill().restart();
        let (mut client, connack) = writer().open_with(gateway.port);
        assert!(connack.present);
        client.send(&send(0x3c, b"once"));
        assert_eq!(client.expect(5).id(), 7);
        client.ack(0x62, 7);
        assert_eq!(client.expect(7).id(), 7);
        let gateway = gateway.kill().restart();
        let mut client = writer().open(gateway.port);
        // after the release the same id stands for another message
        client.send(&send(0x34, b"twice"));
        assert_eq!(client.expect(5).id(), 7);
        let mut reader = Connect::new("reader").persistent().open(gateway.port);
        assert_eq!(contents(&reader.drain()), [("news", "once".into()), ("news", "twice".into())]);
    }
}

#[test]
fn what_was_refused_at_qos_2_is_new_after_a_restart() {
    let gateway = Gateway::with("[broker]\nmax_retained = 1");
    let mut subscriber = Connect::new("subscriber").persistent().open(gateway.port);
    subscriber.subscribe("#", 2);
    let open = |port| Connect::v5("writer").persistent().open(port);
    let mut writer = open(gateway.port);
    writer.publish("kept", "x", 1, true);
    let send = |topic: &str, first| publish(topic.as_bytes(), b"x", first, Some(11), Some(&Properties::new()));
    writer.send(&send("more", 0x35));
    assert_eq!(writer.expect(5).reason(), 0x97);
    subscriber.drain();
    let gateway = gateway.end().restart();
    let mut writer = open(gateway.port);
    writer.send(&send("new", 0x34));
    assert_eq!(writer.expect(5).reason(), 0);
    let mut subscriber = Connect::new("subscriber").persistent().open(gateway.port);
    assert_eq!(contents(&subscriber.drain()), [("new", "x".into())], "[MQTT-4.3.3-9]");
}

#[test]
fn subscriptions_come_back_and_go_on_ending() {
    let gateway = Gateway::start();
    let sleeper = || Connect::v5("sleeper").persistent();
    let mut client = sleeper().open(gateway.port);
    client.subscribe_all(&[("a/#", 1), ("b", 2), ("c", 1)], &Properties::new().variable(0x0b, 9));
    client.unsubscribe("c");
    let gateway = gateway.kill().restart();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for topic in ["a/x", "b", "c"] {
        publisher.publish(topic, topic, 1, false);
    }
    let gateway = gateway.kill().restart();
    let mut client = sleeper().open(gateway.port);
    let received = client.drain();
    assert_eq!(contents(&received), [("a/x", "a/x".into()), ("b", "b".into())]);
    assert_eq!(received[0].properties, [(0x0b, support::packet::Value::Number(9))]);
    client.disconnect();
    // a clean start ends the session permanently
    Connect::v5("sleeper").open(gateway.port).disconnect();
    let gateway = gateway.kill().restart();
    assert!(!Connect::v5("sleeper").clean(false).open_with(gateway.port).1.present);
}

#[test]
fn what_has_begun_is_completed_after_unsubscribe_and_a_restart() {
    for is_killed in [true, false] {
        let gateway = Gateway::start();
        let reader = || Connect::new("reader").persistent();
        let mut client = reader().open(gateway.port);
        client.subscribe_all(&[("once", 2), ("received", 2), ("often", 1), ("less", 1)], &Properties::new());
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for (topic, qos) in [("once", 2), ("received", 2), ("often", 1), ("less", 2)] {
            publisher.publish(topic, topic, qos, false);
        }
        let begun: Vec<_> = (0..4).map(|_| client.receive_unacked()).collect();
        assert_eq!(begun.iter().map(|message| message.qos).collect::<Vec<_>>(), [2, 2, 1, 1]);
        client.ack(0x50, begun[1].id);
        assert_eq!(client.expect(6).id(), begun[1].id);
        for message in &begun {
            client.unsubscribe(&message.topic);
        }
        publisher.publish("often", "too late", 1, false);
        let gateway = again(gateway, is_killed);
        let mut client = reader().open(gateway.port);
        let mut resent = Vec::new();
        for _ in &begun {
            match client.read() {
                release if release.kind() == 6 => {
                    assert_eq!(release.id(), begun[1].id, "the client has the message");
                    client.ack(0x70, release.id());
                }
                packet => resent.push(Publish::read(&packet, V311)),
            }
        }
        for (sent, message) in resent.iter().zip([&begun[0], &begun[2], &begun[3]]) {
            assert_eq!((&sent.topic, sent.id, sent.dup), (&message.topic, message.id, true));
            assert!(sent.qos >= message.qos, "{sent:?}");
        }
        client.ping();
        assert!(client.has_come().is_none(), "and nothing else");
    }
}

#[test]
fn a_full_journal_refuses_where_it_is_told_to() {
    let config = "[journal]\nmax_size = \"1 MiB\"\nwhen_full = \"refuse\"\n[broker]\nmax_packet_size = \"64 KiB\"\n\
                  [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n";
    let gateway = Setup::default().config(config).start();
    let mut client = Connect::v5("client").open(gateway.port);
    let payload = [7; 60_000];
    // messages without room wait in memory, up to a limit, and then QoS 1 is refused
    let mut v5 = Connect::v5("more").open(gateway.port);
    let mut refused = false;
    for id in 1..=900u16 {
        let packet = publish(b"up/x", &payload, 0x32, Some(id), Some(&Properties::new()));
        v5.send(&packet);
    }
    for _ in 0..900 {
        let answer = v5.read();
        refused |= answer.kind() == 4 && answer.reason() == 0x97;
        if refused {
            break;
        }
    }
    assert!(refused);
    // others are not disturbed
    client.subscribe("local", 1);
    assert_eq!(client.publish("local", "x", 1, false), 0);
    assert_eq!(contents(&client.drain()), [("local", "x".into())]);
}

#[test]
fn what_others_send_at_qos_0_or_come_and_go_with_refuses_nobody() {
    let gateway = Gateway::start();
    let sleeper = || Connect::new("sleeper").persistent();
    let mut client = sleeper().open(gateway.port);
    client.subscribe("house/#", 1);
    client.disconnect();
    let mut asked = Connect::v5("asked").open(gateway.port);
    let mut camera = Connect::new("camera").open(gateway.port);
    for number in 0..20 {
        camera.publish(&format!("camera/{number}"), [b'j'; 300_000], 0, true);
    }
    for round in 0..90 {
        for topic in 0..100 {
            let value = format!("{round:0>400}");
            camera.publish(&format!("sensor/{topic}"), value, 0, true);
        }
        camera.ping();
        assert_eq!(asked.publish("house/a", round.to_string(), 1, false), 0, "round {round}");
    }
    for number in 0..600 {
        let will = "z".repeat(3900);
        Connect::new(&format!("w{number}")).will("a/b", &will, 0, false).open(gateway.port).disconnect();
        Connect::new(&format!("p{number}")).persistent().open(gateway.port).disconnect();
    }
    assert_eq!(asked.publish("house/a", "90", 1, false), 0);
    camera.disconnect();
    let gateway = gateway.end().restart();
    let mut client = sleeper().open(gateway.port);
    let received: Vec<String> = (0..=90).map(|_| client.receive().text()).collect();
    assert!(received.iter().enumerate().all(|(at, text)| *text == at.to_string()), "{received:?}");
    client.subscribe("camera/+", 0);
    assert!((0..20).map(|_| client.receive()).all(|message| message.payload.len() == 300_000));
    client.subscribe("sensor/+", 0);
    assert!((0..100).map(|_| client.receive()).all(|message| message.text().ends_with("089")));
}

#[test]
fn what_waits_for_an_upstream_arrives_after_kill() {
    let port = support::free_port();
    let config = format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n"
    );
    let mut gateway = Setup::default().config(&config).start();
    for round in 0..3 {
        let mut publisher = Connect::new("publisher").open(gateway.port);
        for number in 0..50 {
            publisher.publish("up/a", format!("{}", round * 50 + number), 1, false);
        }
        gateway = gateway.kill().restart();
    }
    let upstream = Mosquitto::with("");
    let mut reader = Connect::new("reader").open(upstream.port);
    reader.subscribe("#", 1);
    upstream.also_at(port);
    let received: Vec<String> = (0..150).map(|_| reader.receive().text()).collect();
    assert_eq!(received, (0..150).map(|number| number.to_string()).collect::<Vec<_>>());
}

/// A worker of a group, with a persistent session.
fn worker(gateway: &Gateway, name: &str, qos: u8) -> support::Client {
    let mut worker = Connect::v5(name).persistent().open(gateway.port);
    assert_eq!(worker.subscribe("$share/g/t", qos), qos);
    worker
}

fn publish_five(gateway: &Gateway, qos: u8) {
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..5 {
        publisher.publish("t", number.to_string(), qos, false);
    }
}

/// Waits until a worker that comes back has got at least this many messages, and returns them. A last message to the worker
/// alone could not mark the end, because it may overtake the messages of the group.
fn resumed(gateway: &Gateway, name: &str, least: usize) -> Vec<String> {
    let (mut worker, connack) = Connect::v5(name).persistent().open_with(gateway.port);
    assert!(connack.present);
    let mut received: Vec<String> = (0..least).map(|_| worker.receive().text()).collect();
    received.extend(worker.drain().iter().map(Publish::text));
    received.sort();
    received
}

const FIVE: [&str; 5] = ["0", "1", "2", "3", "4"];

/// Starts the gateway again, after kill -9 or after an orderly stop.
fn again(gateway: Gateway, is_killed: bool) -> Gateway {
    if is_killed { gateway.kill().restart() } else { gateway.end().restart() }
}

#[test]
fn a_shared_subscription_keeps_what_was_acknowledged_while_its_member_is_away() {
    for is_killed in [false, true] {
        for qos in [1, 2] {
            let gateway = Gateway::start();
            worker(&gateway, "worker", qos).disconnect();
            publish_five(&gateway, qos);
            let gateway = again(gateway, is_killed);
            assert_eq!(resumed(&gateway, "worker", 5), FIVE, "killed: {is_killed}, QoS {qos}");
            // settled messages are not delivered again
            let gateway = again(gateway, false);
            assert!(resumed(&gateway, "worker", 0).is_empty());
        }
    }
}

#[test]
fn what_was_in_flight_to_a_member_of_a_group_comes_again() {
    for is_killed in [false, true] {
        let gateway = Gateway::start();
        let mut member = worker(&gateway, "worker", 1);
        publish_five(&gateway, 1);
        (0..3).for_each(|_| drop(member.receive_unacked()));
        let gateway = again(gateway, is_killed);
        assert_eq!(resumed(&gateway, "worker", 5), FIVE);
    }
}

#[test]
fn a_qos_2_message_of_a_group_goes_on_with_the_member_that_it_was_begun_with() {
    let gateway = Gateway::start();
    let mut member = worker(&gateway, "first", 2);
    publish_five(&gateway, 2);
    let before: Vec<(u16, String)> = (0..5).map(|_| member.receive_unacked()).map(|m| (m.id, m.text())).collect();
    member.ack(0x50, before[0].0);
    assert_eq!(member.expect(6).id(), before[0].0);
    member.vanish();
    let gateway = gateway.kill().restart();
    let mut other = worker(&gateway, "second", 2);
    assert!(other.drain().is_empty(), "they belong to the first");
    let mut member = Connect::v5("first").persistent().open(gateway.port);
    let (mut released, mut received) = (None, Vec::new());
    while received.len() < 4 || released.is_none() {
        let packet = member.read();
        match packet.kind() {
            3 => received.push(Publish::read(&packet, V5)),
            6 => released = Some(packet.id()),
            kind => panic!("{kind}"),
        }
    }
    assert_eq!(released, Some(before[0].0));
    let received: Vec<(u16, String)> = received.into_iter().map(|m| (m.id, m.text())).collect();
    assert_eq!(received, before[1..], "the same messages under the same ids");
}

#[test]
fn a_group_of_persistent_and_clean_members_keeps_what_the_clean_ones_leave() {
    let gateway = Gateway::start();
    worker(&gateway, "worker", 1).disconnect();
    let mut clean = Connect::v5("clean").open(gateway.port);
    clean.subscribe("$share/g/t", 1);
    publish_five(&gateway, 1);
    assert_eq!(clean.receive().text(), "0");
    (1..4).for_each(|number| assert_eq!(clean.receive_unacked().text(), number.to_string()));
    clean.vanish();
    let gateway = gateway.end().restart();
    assert_eq!(resumed(&gateway, "worker", 4), FIVE[1..]);
}

#[test]
fn members_at_qos_0_are_served_and_need_nothing_kept() {
    let gateway = Gateway::start();
    worker(&gateway, "keeper", 1).disconnect();
    let mut quick = Connect::v5("quick").open(gateway.port);
    quick.subscribe("$share/g/t", 0);
    publish_five(&gateway, 1);
    let received = (0..5).map(|_| quick.receive());
    assert!(received.map(|message| (message.qos, message.text())).eq(FIVE.map(|text| (0, text.to_owned()))));
    quick.disconnect();
    let gateway = gateway.end().restart();
    assert!(resumed(&gateway, "keeper", 0).is_empty(), "they were delivered");
    // a group whose members all subscribe at QoS 0 has nothing on disk
    let gateway = Gateway::start();
    worker(&gateway, "worker", 0).disconnect();
    publish_five(&gateway, 1);
    let gateway = gateway.kill().restart();
    assert!(resumed(&gateway, "worker", 0).is_empty());
}

#[test]
fn a_group_ends_with_its_last_session() {
    let gateway = Gateway::start();
    let mut leaving = worker(&gateway, "leaving", 1);
    let short = Properties::new().four(0x11, 1);
    let mut expiring = Connect::v5("expiring").clean(false).properties(short).open(gateway.port);
    expiring.subscribe("$share/g/t", 1);
    let mut sentinel =
        Connect::v5("sentinel").clean(false).properties(Properties::new().four(0x11, 1)).open(gateway.port);
    sentinel.subscribe("t", 1);
    expiring.disconnect();
    sentinel.disconnect();
    leaving.unsubscribe("$share/g/t");
    support::wait_until("the other sessions have expired", || {
        !Connect::v5("sentinel").clean(false).open_with(gateway.port).1.present
            && !Connect::v5("expiring").clean(false).open_with(gateway.port).1.present
    });
    publish_five(&gateway, 1);
    let gateway = gateway.kill().restart();
    leaving = worker(&gateway, "leaving", 1);
    assert!(leaving.drain().is_empty(), "nobody was owed them");
}

#[test]
fn an_expired_member_leaves_the_rest_to_the_others() {
    let gateway = Gateway::start();
    worker(&gateway, "worker", 1).disconnect();
    let short = Properties::new().four(0x11, 1);
    let mut expiring = Connect::v5("expiring").clean(false).properties(short).open(gateway.port);
    expiring.subscribe("$share/g/t", 1);
    publish_five(&gateway, 1);
    (0..5).for_each(|_| drop(expiring.receive_unacked()));
    expiring.vanish();
    let gateway = gateway.kill().restart();
    assert_eq!(resumed(&gateway, "worker", 5), FIVE);
}
