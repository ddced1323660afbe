//! Upstreams that end connections for reasons of their own: a quota, a node that is drained, a QoS that they do not take.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::played::{Heard, Played, Say};
use crate::support::packet::packet;
use crate::support::wait_until;
use crate::{drained, ledger, publish, start, upstream};

const FIVE: [&str; 5] = ["0", "1", "2", "3", "4"];

/// A DISCONNECT of version 5 with this reason.
fn disconnect(reason: u8) -> Vec<u8> {
    packet(0xe0, &[&[reason, 0]])
}

#[test]
fn a_quota_that_closes_the_connection_costs_no_message() {
    // one message in so many milliseconds, and the connection is closed at any beyond it
    let taken = Mutex::new(Instant::now());
    let played = Played::new(move |heard| {
        let mut taken = taken.lock().unwrap();
        match heard.publish() {
            Some(_) if taken.elapsed() < Duration::from_millis(700) => Say::Close,
            Some(_) => {
                *taken = Instant::now();
                Say::Usual
            }
            None => Say::Usual,
        }
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    let texts: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    for text in &texts {
        publish(&gateway, text, &[text], false);
    }
    wait_until("all have arrived", || ledger(port)["acked"] == 12);
    assert_eq!(drained(port), 0);
}

#[test]
fn a_node_that_accepts_the_connection_and_ends_it_does_not_keep_the_gateway_from_the_next_one() {
    type Script = fn(&Heard) -> Say;
    let scripts: [(&str, Script); 7] = [
        ("use another server", |heard| sends_away(heard, 0x9c)),
        ("server shutting down", |heard| sends_away(heard, 0x8b)),
        ("administrative action", |heard| sends_away(heard, 0x98)),
        ("server busy", |heard| sends_away(heard, 0x89)),
        (
            "closes after CONNACK",
            |heard| if heard.is_connect() { Say::Last(vec![0x20, 3, 0, 0, 0]) } else { Say::Close },
        ),
        ("closes at PUBLISH", |heard| if heard.publish().is_some() { Say::Close } else { Say::Usual }),
        ("resets at PUBLISH", |heard| if heard.publish().is_some() { Say::Reset } else { Say::Usual }),
    ];
    for (name, script) in scripts {
        let (bad, good) = (Played::new(script), Played::new(|_| Say::Usual));
        let both = format!("\"mqtt://127.0.0.1:{}\", \"mqtt://127.0.0.1:{}\"", bad.port, good.port);
        let only = format!("\"mqtt://127.0.0.1:{}\"", bad.port);
        let (gateway, port) = start(&upstream(bad.port, "protocol = 5").replace(&only, &both));
        publish(&gateway, "a", &FIVE, false);
        good.wait_for(&FIVE);
        assert_eq!(drained(port), 0, "{name}");
        assert!(!bad.log().connections.is_empty(), "{name}: it is tried first");
    }
}

/// Accepts the connection and then ends it with this reason.
fn sends_away(heard: &Heard, reason: u8) -> Say {
    if heard.is_connect() { Say::Last([&[0x20, 3, 0, 0, 0][..], &disconnect(reason)].concat()) } else { Say::Close }
}

#[test]
fn what_ends_the_connection_at_a_subscription_by_a_quota_or_a_policy_is_left_out() {
    for reason in [0x97, 0x98] {
        let played = Played::new(move |heard| match heard.filters() {
            Some(filters) if filters.iter().any(|filter| filter.starts_with("secret")) => Say::Last(disconnect(reason)),
            _ => Say::Usual,
        });
        let rules = "[[upstream.in]]\ntopic_filter = \"secret/#\"\n";
        let (gateway, port) = start(&(upstream(played.port, "protocol = 5") + rules));
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        let line = gateway.wait_for_line("asked for this subscription");
        assert!(line.contains("secret/#") && line.contains("pigateway.toml:"), "{line}");
    }
}

#[test]
fn an_upstream_that_closes_the_connection_at_qos_2_gets_messages_at_qos_1() {
    for protocol in [4, 5] {
        let played = Played::new(|heard| match heard.publish() {
            Some(publish) if publish.qos == 2 => Say::Close,
            _ => Say::Usual,
        });
        let config = upstream(played.port, &format!("protocol = {protocol}"))
            + "qos = 2\n[[upstream.out]]\ntopic_filter = \"other/#\"\n";
        let (gateway, port) = start(&config);
        publish(&gateway, "a", &FIVE, false);
        wait_until("all have arrived", || ledger(port)["acked"] == 5);
        assert_eq!(drained(port), 0, "MQTT {protocol}");
        gateway.wait_for_line("does not take QoS 2");
        let connections = played.log().connections.len();
        publish(&gateway, "a", &["5", "6"], false);
        wait_until("they have arrived", || ledger(port)["acked"] == 7);
        assert_eq!(played.log().connections.len(), connections, "no more connections end");
    }
}
