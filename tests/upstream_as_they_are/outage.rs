//! A long outage: the waiting messages arrive, in order and once.

use std::net::TcpListener;

use crate::played::{Played, Say};
use crate::support::packet::publish;
use crate::support::{Connect, free_port, http, wait_until};
use crate::{ledger, publish as publish_texts, start, upstream};

const MESSAGES: usize = 200_000;

#[test]
fn two_hundred_thousand_messages_arrive_after_an_outage() {
    let port = free_port();
    let (gateway, http) = start(&upstream(port, "max_inflight = 1000\nprotocol = 4"));
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for first in (0..MESSAGES).step_by(1000) {
        let packet = |number: usize| {
            publish(b"loft/a", number.to_string().as_bytes(), 2, Some(1 + (number % 60_000) as u16), None)
        };
        publisher.send(&(first..first + 1000).flat_map(packet).collect::<Vec<u8>>());
        (0..1000).for_each(|_| drop(publisher.expect(4)));
    }
    assert_eq!(ledger(http)["pending"], MESSAGES);
    let played = Played::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_| Say::Usual);
    let acked = || ledger(http)["acked"].as_u64().unwrap() as usize;
    let mut before = 0;
    while before < MESSAGES {
        // this may take long if other programs use the processor too
        wait_until("more has arrived", || acked() > before);
        before = acked();
    }
    let texts = played.texts();
    assert_eq!(texts.len(), MESSAGES);
    assert!(texts.iter().enumerate().all(|(number, text)| *text == number.to_string()), "in order");
}

#[test]
fn how_long_a_backlog_will_take_is_said() {
    let port = free_port();
    let (gateway, http) = start(&upstream(port, "rate = \"5/s\""));
    let texts: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    publish_texts(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
    let left = || http::get(http, "/api/v1/upstreams").json()[0]["seconds_left"].clone();
    assert!(left().is_null(), "nobody is there");
    let _played = Played::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_| Say::Usual);
    wait_until("an estimate", || left().as_u64().is_some_and(|left| left > 0));
}
