//! A message is never dropped because of errors that another cause explains.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::played::{Played, Say};
use crate::support::packet::packet;
use crate::support::{Setup, wait_until};
use crate::{drained, ledger, publish, start, upstream};

const FIVE: [&str; 5] = ["0", "1", "2", "3", "4"];

#[test]
fn a_subscription_that_ends_connections_is_left_out_and_forwarding_goes_on() {
    for protocol in [4, 5] {
        let played = Played::new(|heard| match heard.filters() {
            Some(filters) if filters.iter().any(|filter| filter.starts_with("secret")) => Say::Close,
            _ => Say::Usual,
        });
        let rules = "[[upstream.in]]\ntopic_filter = \"a/#\"\n[[upstream.in]]\ntopic_filter = \"secret/#\"\n\
                     [[upstream.in]]\ntopic_filter = \"z/#\"\n";
        let config = upstream(played.port, &format!("protocol = {protocol}\nstatus_topic = \"status\"")) + rules;
        let (gateway, port) = start(&config);
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        let line = gateway.wait_for_line("asked for this subscription");
        assert!(line.contains("secret/#") && line.contains("pigateway.toml:"), "{line}");
        wait_until("the others are subscribed to", || {
            let log = played.log();
            ["a/#", "z/#"].iter().all(|filter| log.filters.iter().any(|known| known == filter))
        });
    }
}

#[test]
fn at_most_eight_filters_go_into_one_packet() {
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = largest.clone();
    let played = Played::new(move |heard| {
        let count = heard.filters().map_or(0, |filters| filters.len());
        seen.fetch_max(count, Ordering::Relaxed);
        if count > 8 { Say::Close } else { Say::Usual }
    });
    let rules: String = (0..20).map(|n| format!("[[upstream.in]]\ntopic_filter = \"c{n}/#\"\n")).collect();
    let (gateway, port) = start(&(upstream(played.port, "protocol = 4") + &rules));
    publish(&gateway, "a", &FIVE, false);
    played.wait_for(&FIVE);
    wait_until("all filters", || played.log().filters.len() == 20);
    assert_eq!((drained(port), largest.load(Ordering::Relaxed), played.log().connections.len()), (0, 8, 1));
}

#[test]
fn an_upstream_that_never_answers_a_subscription_gets_messages_all_the_same() {
    let played = Played::new(|heard| if heard.filters().is_some() { Say::Nothing } else { Say::Usual });
    let config = upstream(played.port, "protocol = 4") + "[[upstream.in]]\ntopic_filter = \"a/#\"\n";
    let (gateway, port) = start(&config);
    publish(&gateway, "a", &FIVE, false);
    played.wait_for(&FIVE);
    assert_eq!(drained(port), 0);
}

#[test]
fn a_status_that_ends_connections_is_left_out() {
    for protocol in [4, 5] {
        let played = Played::new(|heard| match heard.publish() {
            Some(publish) if publish.topic == "status" => Say::Close,
            _ => Say::Usual,
        });
        let (gateway, port) =
            start(&upstream(played.port, &format!("protocol = {protocol}\nstatus_topic = \"status\"")));
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        gateway.wait_for_line("the status is left out");
    }
}

#[test]
fn a_will_that_ends_connections_is_left_out() {
    // a connection that is closed without an answer, and "not authorized" with 3.1.1 and with 5
    for (protocol, answer) in
        [(4, None), (4, Some(vec![0x20, 2, 0, 5])), (5, None), (5, Some(vec![0x20, 3, 0, 0x87, 0]))]
    {
        let played = Played::new(move |heard| match (&answer, heard.is_connect() && heard.flags() & 4 != 0) {
            (_, false) => Say::Usual,
            (None, true) => Say::Close,
            (Some(bytes), true) => Say::Last(bytes.clone()),
        });
        let (gateway, port) =
            start(&upstream(played.port, &format!("protocol = {protocol}\nstatus_topic = \"status\"")));
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        gateway.wait_for_line("does not take the will");
    }
}

#[test]
fn an_upstream_that_ends_every_connection_for_a_while_costs_nothing() {
    for (protocol, ends) in [(4, 1), (4, 2), (4, 7), (4, 12), (5, 7)] {
        let played = Played::new(move |heard| match heard.publish() {
            Some(_) if heard.connection < ends => Say::Close,
            _ => Say::Usual,
        });
        let (gateway, port) = start(&upstream(played.port, &format!("protocol = {protocol}")));
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0, "{ends}");
    }
}

#[test]
fn an_upstream_that_ends_every_connection_for_very_long_costs_nothing() {
    // as many attempts as there are in a minute
    const ENDS: usize = 200;
    let begin = |protocol: u8| {
        let played = Played::new(move |heard| match heard.publish() {
            Some(_) if heard.connection < ENDS => Say::Close,
            _ => Say::Usual,
        });
        let config = upstream(played.port, &format!("protocol = {protocol}")).replace("400 ms", "100 ms");
        let (gateway, port) = start(&config);
        publish(&gateway, "a", &FIVE, false);
        (played, gateway, port)
    };
    for (played, _gateway, port) in [4, 5].map(begin) {
        wait_until("it has ended them all", || played.log().connections.len() > ENDS);
        played.wait_for(&FIVE);
        assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, 5.into()));
    }
}

#[test]
fn attempts_slow_down_when_different_messages_end_connections_in_turn() {
    let played = Played::new(|heard| if heard.publish().is_some() { Say::Close } else { Say::Usual });
    let keys = "protocol = 4\nretry = { min = \"100 ms\", max = \"10 s\" }";
    let config = upstream(played.port, keys).replacen("retry = { min = \"100 ms\", max = \"400 ms\" }\n", "", 1);
    let (gateway, port) = start(&config);
    publish(&gateway, "a", &FIVE, false);
    let line = gateway.wait_for_line("whatever message it gets");
    assert!(line.contains("WARN"), "{line}");
    wait_until("seven connections", || played.log().connections.len() >= 7);
    let log = played.log();
    let waits: Vec<Duration> = log.connections.windows(2).map(|two| two[1].0 - two[0].0).collect();
    assert!(waits[5] > waits[0] * 4, "{waits:?}");
    assert_eq!(crate::ledger(port)["pending"], 5);
}

#[test]
fn an_upstream_that_takes_few_messages_per_connection_gets_all() {
    for most in [1, 3] {
        let played = Played::new(move |heard| {
            // CONNECT is the first packet
            if heard.publish().is_some() && heard.before > most { Say::Close } else { Say::Usual }
        });
        let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
    }
}

#[test]
fn messages_that_end_connections_are_set_aside_where_others_get_through() {
    for protocol in [4, 5] {
        let played = Played::new(|heard| match heard.publish() {
            Some(publish) if publish.text().starts_with("bad") => Say::Close,
            _ => Say::Usual,
        });
        let (gateway, port) = start(&upstream(played.port, &format!("protocol = {protocol}")));
        publish(&gateway, "a", &["0", "1", "bad 1", "bad 2", "2", "3", "4", "5", "6", "7", "8", "9"], false);
        played.wait_for(&["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        let line = gateway.wait_for_line("closes the connection whenever it gets this message");
        assert!(line.contains("ERROR") && line.contains("loft/a"), "{line}");
        publish(&gateway, "a", &["10", "11", "12", "13", "14", "15"], false);
        assert_eq!(drained(port), 2);
        assert_eq!(crate::ledger(port)["dropped"]["ends_connection"], 2);
    }
}

#[test]
fn a_message_is_kept_while_no_other_gets_through() {
    let played = Played::new(|heard| match heard.publish() {
        Some(publish) if publish.text() == "alone" => Say::Close,
        _ => Say::Usual,
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    publish(&gateway, "a", &["alone"], false);
    wait_until("many connections", || played.log().connections.len() > 8);
    assert_eq!(crate::ledger(port)["pending"], 1);
}

#[test]
fn a_message_that_is_never_acknowledged_is_kept_and_does_not_hold_up_the_others() {
    // as with the queue of one topic that stands still for a while
    for protocol in [4, 5] {
        let played = Played::new(|heard| match heard.publish() {
            Some(publish) if publish.text() == "still" && heard.connection == 0 => Say::Nothing,
            Some(publish) if publish.text() == "end" && heard.connection == 0 => Say::Close,
            _ => Say::Usual,
        });
        let keys = format!("protocol = {protocol}\nmax_inflight = 4");
        let (gateway, port) = start(&upstream(played.port, &keys));
        publish(&gateway, "a", &["0", "still", "1", "2", "3", "4", "5", "6", "7", "8", "9"], false);
        played.wait_for(&["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        gateway.wait_for_line("no longer holds them up");
        assert_eq!(played.log().connections.len(), 1);
        publish(&gateway, "a", &["end"], false);
        played.wait_for(&["still", "end"]);
        assert_eq!(drained(port), 0);
        assert_eq!(ledger(port)["acked"], 12);
    }
}

#[test]
fn an_upstream_that_does_not_take_the_retain_flag_gets_messages_without() {
    for protocol in [4, 5] {
        let played = Played::new(move |heard| match heard.publish() {
            Some(publish) if publish.retain && protocol == 5 => Say::Last(packet(0xe0, &[&[0x9a, 0]])),
            Some(publish) if publish.retain => Say::Close,
            _ => Say::Usual,
        });
        let (gateway, port) =
            start(&upstream(played.port, &format!("protocol = {protocol}\nstatus_topic = \"status\"")));
        publish(&gateway, "a", &FIVE, true);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        gateway.wait_for_line("does not take the retain flag");
        wait_until("the status", || played.log().messages.iter().any(|message| message.topic == "status"));
        assert!(played.log().messages.iter().all(|message| !message.retain));
        let said = gateway.log().iter().filter(|line| line.contains("does not take the retain flag")).count();
        assert_eq!(said, 1);
    }
}

#[test]
fn on_3_1_1_the_flag_is_found_out_by_messages_alone_too() {
    let played = Played::new(|heard| match heard.publish() {
        Some(publish) if publish.retain => Say::Close,
        _ => Say::Usual,
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    publish(&gateway, "a", &["1"], true);
    publish(&gateway, "b", &["2", "3"], false);
    publish(&gateway, "c", &["4"], true);
    played.wait_for(&["1", "2", "3", "4"]);
    assert_eq!(drained(port), 0);
    gateway.wait_for_line("does not take the retain flag");
}

#[test]
fn a_rule_says_that_the_flag_is_left_out() {
    let played = Played::new(|_| Say::Usual);
    let (gateway, _) = start(&(upstream(played.port, "") + "retain = false\n"));
    publish(&gateway, "a", &["1"], true);
    played.wait_for(&["1"]);
    assert!(!played.log().messages[0].retain);
}

#[test]
fn retained_messages_that_end_connections_do_not_keep_the_others_from_coming_back() {
    for protocol in [4, 5] {
        // it has forgotten the retained messages, and keeps the session from the second connection on
        let played = Played::new(move |heard| match heard.publish() {
            Some(publish) if publish.topic == "loft/secret" || publish.payload.len() > 1_000 => Say::Close,
            None if heard.is_connect() && heard.connection > 0 => {
                let none: &[u8] = if protocol == 5 { &[0] } else { &[] };
                Say::Instead(packet(0x20, &[&[1, 0], none]))
            }
            _ => Say::Usual,
        });
        // nothing of it is in the journal of the upstream, which is configured later
        let gateway = Setup::default().start();
        let texts: Vec<String> = (10..40).map(|number| number.to_string()).collect();
        for text in &texts {
            publish(&gateway, text, &[text], true);
        }
        // two side by side, and the last one of all
        for (topic, text) in [("20", "x".repeat(2_000)), ("21", "x".repeat(3_000)), ("secret", "small".into())] {
            publish(&gateway, topic, &[&text], true);
        }
        let config = upstream(played.port, &format!("protocol = {protocol}"));
        let gateway = gateway.end().setup().config(&config).start();
        let others: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !["20", "21"].contains(text)).collect();
        played.wait_for(&others);
        let named = gateway.wait_for_lines("it is left out", 3);
        for topic in ["loft/20", "loft/21", "loft/secret"] {
            assert!(named.iter().any(|line| line.contains(topic)), "{topic}: {named:?}");
        }
        let log = gateway.log().join("\n");
        assert!(!log.contains("does another client") && !log.contains("not tried again"), "{log}");
        assert!(played.log().connections.len() < 20, "{log}");
    }
}
