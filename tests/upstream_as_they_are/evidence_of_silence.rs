//! What an upstream never answers, and what makes the line go silent, does not hold up the rest for good, and is kept.

use std::time::Duration;

use crate::played::{Played, Say};
use crate::support::packet::{packet, publish as publish_packet};
use crate::support::{Properties, http, wait_until};
use crate::{drained, ledger, publish, start, upstream};

const FIVE: [&str; 5] = ["0", "1", "2", "3", "4"];

/// Waits until the upstream has had this many connections.
#[track_caller]
fn wait_for_connections(played: &Played, count: usize) {
    wait_until(&format!("{count} connections"), || played.log().connections.len() >= count);
}

#[test]
fn a_message_at_which_the_line_goes_silent_lets_others_go_first() {
    // as with a path that swallows packets of more than a certain size
    let begin = |protocol: u8| {
        let played = Played::new(|heard| match heard.publish() {
            Some(publish) if publish.payload.len() > 1000 && heard.connection < 3 => Say::Gone,
            _ => Say::Usual,
        });
        let (gateway, port) = start(&upstream(played.port, &format!("protocol = {protocol}\nkeep_alive = \"5 s\"")));
        publish(&gateway, "a", &["0", &"x".repeat(1300), "1", "2", &"y".repeat(1400), "3", "4"], false);
        (played, gateway, port)
    };
    for (played, gateway, port) in [4, 5].map(begin) {
        wait_for_connections(&played, 3);
        played.wait_for(&FIVE);
        let line = gateway.wait_for_line("go silent at this message");
        assert!(line.contains("WARN") && line.contains("loft/a"), "{line}");
        // and in the end the line carries them too
        assert_eq!(drained(port), 0);
        assert_eq!(ledger(port)["acked"], 7);
    }
}

#[test]
fn an_upstream_that_takes_nothing_for_a_while_gets_everything_in_order() {
    // as with a broker that accepts connections while it is out of memory
    let played = Played::new(|heard| if heard.connection < 2 && !heard.is_connect() { Say::Gone } else { Say::Usual });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4\nkeep_alive = \"5 s\""));
    publish(&gateway, "a", &FIVE, false);
    played.wait_for(&FIVE);
    assert_eq!((drained(port), played.texts()), (0, FIVE.map(str::to_owned).into()));
}

#[test]
fn a_subscription_at_which_an_upstream_goes_silent_is_left_out_and_forwarding_goes_on() {
    let begin = |protocol: u8| {
        let played = Played::new(|heard| match heard.filters() {
            Some(filters) if filters.iter().any(|filter| filter.starts_with("secret")) => Say::Gone,
            _ => Say::Usual,
        });
        let rules = "[[upstream.in]]\ntopic_filter = \"a/#\"\n[[upstream.in]]\ntopic_filter = \"secret/#\"\n\
                     [[upstream.in]]\ntopic_filter = \"z/#\"\n";
        let keys = format!("protocol = {protocol}\nkeep_alive = \"5 s\"\nstatus_topic = \"status\"");
        let (gateway, port) = start(&(upstream(played.port, &keys) + rules));
        publish(&gateway, "a", &FIVE, false);
        (played, gateway, port)
    };
    for (played, gateway, port) in [4, 5].map(begin) {
        wait_for_connections(&played, 3);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        let line = gateway.wait_for_line("goes silent when asked for this subscription");
        assert!(line.contains("secret/#") && line.contains("pigateway.toml:"), "{line}");
        wait_until("the others are subscribed to", || {
            let log = played.log();
            ["a/#", "z/#"].iter().all(|filter| log.filters.iter().any(|known| known == filter))
        });
    }
}

#[test]
fn an_upstream_that_hung_is_asked_for_everything_as_soon_as_it_answers() {
    let played = Played::new(|heard| if heard.connection < 2 && !heard.is_connect() { Say::Gone } else { Say::Usual });
    let keys = "protocol = 4\nkeep_alive = \"5 s\"\nstatus_topic = \"status\"";
    let rule = "[[upstream.in]]\ntopic_filter = \"a/#\"\n";
    let (gateway, _) = start(&(upstream(played.port, keys) + rule));
    wait_for_connections(&played, 3);
    wait_until("the subscription and the status", || {
        let log = played.log();
        log.filters.iter().any(|filter| filter == "a/#") && log.messages.iter().any(|message| message.topic == "status")
    });
    let after = played.log().connections[2].0.elapsed();
    assert!(after < Duration::from_secs(15), "{after:?}");
    let blamed = gateway.log().into_iter().filter(|line| line.contains("WARN") && line.contains("goes silent"));
    assert_eq!(blamed.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_status_at_which_an_upstream_goes_silent_is_left_out() {
    let played = Played::new(|heard| match heard.publish() {
        Some(publish) if publish.topic == "status" => Say::Gone,
        _ => Say::Usual,
    });
    let keys = "protocol = 4\nkeep_alive = \"5 s\"\nstatus_topic = \"status\"";
    let (gateway, port) = start(&upstream(played.port, keys));
    publish(&gateway, "a", &FIVE, false);
    wait_for_connections(&played, 3);
    played.wait_for(&FIVE);
    assert_eq!(drained(port), 0);
    gateway.wait_for_line("goes silent when it gets status_topic");
}

#[test]
fn a_will_at_which_an_upstream_is_silent_is_left_out() {
    for protocol in ["4", "5", "\"auto\""] {
        let played = Played::new(|heard| match heard.is_connect() && heard.flags() & 4 != 0 {
            true => Say::Nothing,
            false => Say::Usual,
        });
        let keys = format!("protocol = {protocol}\nconnect_timeout = \"1 s\"\nstatus_topic = \"status\"");
        let (gateway, port) = start(&upstream(played.port, &keys));
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        gateway.wait_for_line("does not take the will");
    }
}

#[test]
fn an_upstream_that_closes_at_pubrel_gets_the_others() {
    for protocol in [4, 5] {
        let played = Played::new(|heard| match (heard.packet.kind(), heard.publish()) {
            (_, Some(publish)) if publish.qos == 2 => Say::Instead(packet(0x50, &[&publish.id.to_be_bytes()])),
            (6, _) => Say::Close,
            _ => Say::Usual,
        });
        let rule = "\n[[upstream.out]]\ntopic_filter = \"exact\"\nqos = 2\n";
        let config = upstream(played.port, &format!("protocol = {protocol}")) + rule;
        let (gateway, port) = start(&config);
        let mut client = crate::support::Connect::v5("exact").open(gateway.port);
        for number in 0..5 {
            client.publish_with("exact", format!("exact {number}"), 1, false, &Properties::new());
        }
        client.disconnect();
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        wait_until("the others are settled", || ledger(port)["acked"] == 5);
        let line = gateway.wait_for_line("closes the connection at PUBREL");
        assert!(line.contains("WARN") && line.contains("topic=\"exact\""), "{line}");
        assert_eq!(ledger(port)["pending"], 5);
        assert!(!gateway.log().iter().any(|line| line.contains("use this client_id")), "{:?}", gateway.log());
    }
}

#[test]
fn an_upstream_that_closes_at_the_answer_to_its_message_gets_the_others() {
    for (qos, answer) in [(1, 4), (2, 5)] {
        let played = Played::new(move |heard| match heard.packet.kind() {
            // what it has sent once comes again on every connection
            8 => Say::Also(publish_packet(b"down/1", b"x", 0x30 | qos << 1, Some(7), None)),
            kind if kind == answer => Say::Close,
            _ => Say::Usual,
        });
        let rule = format!("[[upstream.in]]\ntopic_filter = \"down/#\"\nqos = {qos}\n");
        let (gateway, port) = start(&(upstream(played.port, "protocol = 4") + &rule));
        wait_for_connections(&played, 3);
        publish(&gateway, "a", &FIVE, false);
        played.wait_for(&FIVE);
        assert_eq!(drained(port), 0);
        gateway.wait_for_line("when messages from it are acknowledged");
        let count = played.log().connections.len();
        assert!(count < 6, "{count} connections");
        assert!(!gateway.log().iter().any(|line| line.contains("use this client_id")), "{:?}", gateway.log());
    }
}

#[test]
fn a_message_from_an_upstream_that_a_limit_excludes_is_reported_and_counted() {
    let deep = "down".to_owned() + &"/a".repeat(200);
    let played = Played::new(move |heard| match heard.packet.kind() {
        8 => Say::Also(publish_packet(deep.as_bytes(), b"x", 0x32, Some(7), None)),
        _ => Say::Usual,
    });
    let rule = "[[upstream.in]]\ntopic_filter = \"down/#\"\nqos = 1\n";
    let (gateway, port) = start(&(upstream(played.port, "protocol = 4") + rule));
    let line = gateway.wait_for_line("message from upstream dropped");
    assert!(line.contains("ERROR") && line.contains("more than 200 levels"), "{line}");
    wait_until("it is counted", || http::get(port, "/api/v1/upstreams").json()[0]["received_dropped"] == 1);
}
