//! Sessions that outlive their connection.

use crate::support::packet::{Properties, V5, V31, V311};
use crate::support::{Connect, Gateway, Lookup, contents, wait_until};

#[test]
fn a_session_keeps_subscriptions_and_what_comes_meanwhile() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for version in [V31, V311, V5] {
        let id = format!("sleeper-{version}");
        let sleeper = || Connect::version(version, &id).persistent();
        let (mut client, connack) = sleeper().open_with(gateway.port);
        assert!(!connack.present);
        client.subscribe("news/#", 2);
        client.disconnect();
        for number in 0..200 {
            publisher.publish("news/a", number.to_string(), 1 + number % 2, false);
        }
        let (mut client, connack) = sleeper().open_with(gateway.port);
        assert_eq!(connack.present, version != V31, "MQTT 3.1 cannot say");
        for number in 0..200 {
            let message = client.receive();
            assert_eq!((message.text(), message.qos, message.dup), (number.to_string(), 1 + number % 2, false));
        }
        publisher.publish("news/b", "live", 0, false);
        assert_eq!(contents(&[client.receive()]), [("news/b", "live".into())]);
    }
}

#[test]
fn a_clean_start_forgets() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for version in [V311, V5] {
        let mut client = Connect::version(version, "a").persistent().open(gateway.port);
        client.subscribe("news", 1);
        client.disconnect();
        publisher.publish("news", "x", 1, false);
        let (mut client, connack) = Connect::version(version, "a").open_with(gateway.port);
        assert!(!connack.present);
        assert_eq!(client.drain(), []);
        client.disconnect();
        assert!(!Connect::version(version, "a").clean(false).open_with(gateway.port).1.present, "nothing was kept");
    }
}

#[test]
fn what_was_not_acknowledged_is_sent_again_in_order_with_dup() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for version in [V311, V5] {
        let sleeper = || Connect::version(version, "sleeper").persistent();
        let mut client = sleeper().open(gateway.port);
        client.subscribe("news", 2);
        for (payload, qos) in [("a", 1), ("b", 2), ("c", 2), ("d", 1)] {
            publisher.publish("news", payload, qos, false);
        }
        let ids: Vec<u16> = (0..4).map(|_| client.receive_unacked().id).collect();
        client.ack(0x40, ids[0]);
        client.ack(0x50, ids[1]);
        assert_eq!(client.expect(6).id(), ids[1]);
        client.vanish();

        let mut client = sleeper().open(gateway.port);
        let release = client.read();
        assert_eq!((release.kind(), release.id()), (6, ids[1]), "PUBREL where PUBREC had come");
        for (payload, id) in [("c", ids[2]), ("d", ids[3])] {
            let message = client.receive_unacked();
            assert_eq!((message.text(), message.id, message.dup), (payload.into(), id, true));
        }
        client.ack(0x70, ids[1]);
        client.ack(0x40, ids[3]);
        client.ack(0x50, ids[2]);
        assert_eq!(client.expect(6).id(), ids[2]);
        client.ack(0x70, ids[2]);
        assert_eq!(client.drain(), []);
        client.disconnect();
        let mut client = sleeper().open(gateway.port);
        assert_eq!(client.drain(), [], "all of it is settled");
        client.disconnect();
        Connect::version(version, "sleeper").open(gateway.port).disconnect();
    }
}

#[test]
fn a_client_id_that_connects_again_takes_over() {
    let gateway = Gateway::start();
    for version in [V31, V311, V5] {
        let id = format!("twin-{version}");
        let mut old = Connect::version(version, &id).open(gateway.port);
        for _ in 0..10 {
            let mut new = Connect::version(version, &id).open(gateway.port);
            if version == V5 {
                old.closed_with(0x8e);
            } else {
                assert_eq!(old.closed(), []);
            }
            new.ping();
            old = new;
        }
    }
}

#[test]
fn a_session_that_is_taken_over_loses_nothing() {
    let gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let connect = || Connect::new("twin").persistent();
    let mut old = connect().open(gateway.port);
    old.subscribe("news", 1);
    let mut received = Vec::new();
    for round in 0..20 {
        for number in 0..10 {
            publisher.publish("news", (round * 10 + number).to_string(), 1, false);
        }
        received.push(old.receive().text().parse::<u32>().unwrap());
        let (new, connack) = connect().open_with(gateway.port);
        assert!(connack.present);
        old = new;
    }
    let rest = old.drain();
    received.extend(rest.iter().map(|message| message.text().parse::<u32>().unwrap()));
    received.dedup();
    let mut all = received.clone();
    all.sort_unstable();
    all.dedup();
    assert!(all.iter().copied().eq(0..200), "{all:?}");
}

#[test]
fn a_version_5_session_lives_as_long_as_its_expiry_says() {
    let gateway = Gateway::start();
    let connect = |expiry| Connect::v5("a").clean(false).properties(Properties::new().four(0x11, expiry));
    connect(0).open(gateway.port).disconnect();
    assert!(!connect(600).open_with(gateway.port).1.present, "expiry 0 ends with the connection");
    Connect::v5("a").clean(false).open(gateway.port).vanish();
    wait_until("the session ends with the connection", || !connect(0).open_with(gateway.port).1.present);

    connect(600).open(gateway.port).vanish();
    let will = Properties::new().four(0x18, 600);
    let (client, connack) = connect(600).will_with("will", "over", 1, false, will).open_with(gateway.port);
    assert!(connack.present);
    let mut watcher = Connect::new("watcher").open(gateway.port);
    watcher.subscribe("will", 1);
    // the will shows the end of the session, because the session's end is also the end of the will's delay
    client.disconnect_with(0x04, &Properties::new().four(0x11, 1));
    assert_eq!(watcher.receive().text(), "over");
    assert!(!connect(1).open_with(gateway.port).1.present, "DISCONNECT has cut it to one second");
}

#[test]
fn an_expiry_beyond_the_bound_is_cut_and_said() {
    let gateway = Gateway::with("[broker]\nsession_expiry = \"1 h\"");
    for (asked, told) in [(0, None), (3600, None), (3601, Some(3600)), (u32::MAX, Some(3600))] {
        let (_, connack) = Connect::v5("a").properties(Properties::new().four(0x11, asked)).open_with(gateway.port);
        assert_eq!(connack.properties.number(0x11), told, "{asked}");
    }
}

#[test]
fn a_disconnect_cannot_make_a_session_out_of_none() {
    let gateway = Gateway::start();
    let mut client = Connect::v5("a").open(gateway.port);
    client.send(&crate::support::packet::packet(0xe0, &[&[0], &Properties::new().four(0x11, 9).section()]));
    client.closed_with(0x82);
}

#[test]
fn the_queue_of_a_client_that_is_away_is_bounded() {
    let gateway = Gateway::with("[broker]\nmax_queued_messages = 50");
    let mut client = Connect::new("sleeper").persistent().open(gateway.port);
    client.subscribe("news", 1);
    client.disconnect();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..200 {
        publisher.publish("news", number.to_string(), 1, false);
    }
    let mut client = Connect::new("sleeper").persistent().open(gateway.port);
    let received = client.drain();
    assert!(received.len() <= 50, "{}", received.len());
    assert_eq!(received.last().expect("some").text(), "199", "the oldest are dropped");
}

#[test]
fn at_qos_0_nothing_waits_for_a_client_that_is_away() {
    let gateway = Gateway::start();
    let mut client = Connect::new("sleeper").persistent().open(gateway.port);
    client.subscribe_all(&[("zero", 0), ("one", 1)], &Properties::new());
    client.disconnect();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("zero", "x", 1, false);
    publisher.publish("one", "x", 0, false);
    publisher.publish("one", "kept", 1, false);
    let mut client = Connect::new("sleeper").persistent().open(gateway.port);
    let texts: Vec<String> = client.drain().iter().map(|message| message.text()).collect();
    assert_eq!(texts, ["kept"]);
}
