//! Delivery to an upstream that the test plays, packet by packet: the window, the messages that a crash repeats, the rest
//! of an expiry interval, and messages that the upstream does not accept.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use support::packet::{Packet, V5, V311, packet, publish};
use support::{Connect, Gateway, Lookup, PATIENCE, Properties, Publish, ReadSome, Setup, http, wait_until};

/// The upstream to which the gateway connects.
struct Upstream {
    listener: TcpListener,
}

/// A connection of the gateway.
struct Link {
    stream: TcpStream,
    version: u8,
    input: Vec<u8>,
}

impl Upstream {
    fn new() -> Upstream {
        Upstream { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn config(&self, extra: &str) -> String {
        let port = self.listener.local_addr().unwrap().port();
        format!(
            "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n{extra}\n\
             [[upstream.out]]\ntopic_filter = \"loft/#\"\n"
        )
    }

    /// The next connection, accepted with these properties.
    fn accept(&self, properties: &Properties) -> Link {
        self.listener.set_nonblocking(true).unwrap();
        let mut accepted = None;
        wait_until("a connection", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let stream = accepted.unwrap().0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut link = Link { stream, version: 0, input: Vec::new() };
        let connect = link.read().unwrap();
        link.version = connect.body[6];
        let section = if link.version == V5 { properties.section() } else { Vec::new() };
        link.write(&packet(0x20, &[&[1, 0], &section]));
        link
    }
}

impl Link {
    fn write(&mut self, bytes: &[u8]) {
        // a killed gateway does not read it
        let _ = self.stream.write_all(bytes);
    }

    /// The next packet; `None` at the end of the connection.
    fn read(&mut self) -> Option<Packet> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let length = |at: &mut usize| {
                let mut len = 0;
                loop {
                    let byte = *self.input.get(*at)?;
                    len |= usize::from(byte & 0x7f) << (7 * (*at - 1));
                    *at += 1;
                    if byte & 0x80 == 0 {
                        return Some(len);
                    }
                }
            };
            let mut at = 1;
            if let Some(len) = length(&mut at).filter(|len| self.input.len() >= at + len) {
                let rest = self.input.split_off(at + len);
                let whole = std::mem::replace(&mut self.input, rest);
                return Some(Packet { first: whole[0], body: whole[at..].to_vec() });
            }
            match self.stream.read_some(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing comes: {error}"),
            }
        }
    }

    /// The next PUBLISH; `None` at the end of the connection.
    fn try_next(&mut self) -> Option<Publish> {
        loop {
            match self.read()? {
                packet if packet.kind() == 3 => return Some(Publish::read(&packet, self.version)),
                packet if packet.kind() == 12 => self.write(&[0xd0, 0]),
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Publish {
        self.try_next().expect("a PUBLISH")
    }

    fn ack(&mut self, id: u16, reason: u8) {
        let reason: &[u8] = if reason > 0 { &[reason] } else { &[] };
        self.write(&packet(0x40, &[&id.to_be_bytes(), reason]));
    }

    /// Ends the connection so that everything written to it arrives. Closing it with unread input would reset it.
    fn close(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        while self.read().is_some() {}
    }

    /// Checks that no packet arrives for a while.
    fn is_silent(&mut self) -> bool {
        assert!(self.input.is_empty());
        self.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let read = self.stream.read_some(&mut [0; 1]);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(read, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

fn publish_numbers(gateway: &Gateway, numbers: std::ops::Range<u32>) {
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for part in numbers.collect::<Vec<_>>().chunks(100) {
        let packet = |number: &u32| {
            publish(b"loft/a", number.to_string().as_bytes(), 2, Some((number % 60_000 + 1) as u16), None)
        };
        publisher.send(&part.iter().flat_map(packet).collect::<Vec<u8>>());
        for _ in part {
            publisher.expect(4);
        }
    }
    publisher.disconnect();
}

fn ledger(http_port: u16) -> serde_json::Value {
    http::get(http_port, "/api/v1/upstreams").json()[0]["ledger"].clone()
}

#[test]
fn the_window_is_the_smaller_of_ours_and_theirs() {
    for (ours, theirs, expected) in [(50, 7, 7), (5, 100, 5)] {
        let upstream = Upstream::new();
        let gateway = Gateway::with(&upstream.config(&format!("max_inflight = {ours}")));
        let mut link = upstream.accept(&Properties::new().two(0x21, theirs));
        publish_numbers(&gateway, 0..30);
        let ids: Vec<u16> = (0..expected).map(|_| link.next().id).collect();
        assert!(link.is_silent(), "{expected} are unanswered");
        link.ack(ids[0], 0);
        assert_eq!(link.next().text(), expected.to_string());
        assert!(link.is_silent());
    }
}

#[test]
fn a_crash_repeats_what_was_under_way_and_what_was_acknowledged_since_the_last_cursor() {
    const MESSAGES: u32 = 12_000;
    const WINDOW: usize = 50;
    let upstream = Upstream::new();
    let mut gateway = Gateway::with(&upstream.config(&format!("max_inflight = {WINDOW}")));
    publish_numbers(&gateway, 0..MESSAGES);
    let mut times: HashMap<u32, u32> = HashMap::new();
    let mut repeats = Vec::new();
    let mut link = upstream.accept(&Properties::new());
    for crash in 1..=6u32 {
        while times.len() < (MESSAGES * crash / 7 + 137 * crash) as usize {
            let message = link.next();
            *times.entry(message.text().parse().unwrap()).or_default() += 1;
            link.ack(message.id, 0);
        }
        gateway = gateway.kill().restart();
        // messages that the killed gateway has sent count, because they arrived
        while let Some(message) = link.try_next() {
            *times.entry(message.text().parse().unwrap()).or_default() += 1;
        }
        link = upstream.accept(&Properties::new());
        let first = link.next();
        let number: u32 = first.text().parse().unwrap();
        let repeated = (number..MESSAGES).take_while(|number| times.contains_key(number)).count();
        repeats.push(repeated);
        *times.entry(number).or_default() += 1;
        link.ack(first.id, 0);
    }
    while times.len() < MESSAGES as usize {
        let message = link.next();
        *times.entry(message.text().parse().unwrap()).or_default() += 1;
        link.ack(message.id, 0);
    }
    println!("crashes repeated {repeats:?} messages");
    // 500 per cursor, the window, and the messages that are acknowledged while a cursor is being written, which are
    // sometimes more on a busy disk
    repeats.sort_unstable();
    assert!(repeats[repeats.len() / 2] <= 500 + WINDOW + 250, "{repeats:?}");
}

#[test]
fn what_is_left_of_an_expiry_interval_goes_up() {
    let upstream = Upstream::new();
    let gateway = Gateway::with(&upstream.config(""));
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let begin = Instant::now();
    for (text, seconds) in [("late", 1), ("in time", 600)] {
        publisher.publish_with("loft/a", text, 1, false, &Properties::new().four(2, seconds));
    }
    // from here the gateway has both; an expiry interval is in seconds
    let taken = Instant::now();
    wait_until("an expiry", || taken.elapsed() > Duration::from_millis(2_100));
    let mut link = upstream.accept(&Properties::new());
    let message = link.next();
    assert_eq!(message.text(), "in time");
    let left = message.properties.number(2).unwrap();
    let waited = begin.elapsed().as_secs() as u32;
    assert!((600 - waited - 1..=598).contains(&left), "{left} after {waited} s");
}

#[test]
fn on_3_1_1_a_message_that_ends_the_connection_is_set_aside_and_the_rest_arrives() {
    let upstream = Upstream::new();
    let (setup, port) = Setup::default().config(&upstream.config("protocol = 4")).http();
    let gateway = setup.start();
    publish_numbers(&gateway, 0..20);
    let mut arrived = Vec::new();
    let mut connections = 0;
    let mut last = None;
    while last.is_none() {
        let mut link = upstream.accept(&Properties::new());
        assert_eq!(link.version, V311);
        connections += 1;
        loop {
            let message = link.next();
            if message.text() == "7" {
                link.close();
                break;
            }
            arrived.push(message.text().parse::<u32>().unwrap());
            link.ack(message.id, 0);
            if arrived.last() == Some(&19) {
                last = Some(link);
                break;
            }
        }
    }
    arrived.dedup();
    assert_eq!(arrived, (0..20).filter(|number| *number != 7).collect::<Vec<_>>());
    assert_eq!(
        connections, 6,
        "one to suspect it, three strikes, one to send others before the last, one for the rest"
    );
    let line = gateway.wait_for_line("closes the connection whenever it gets this message");
    assert!(line.contains("ERROR") && line.contains("loft/a"), "{line}");
    wait_until("the ledger says so", || {
        let ledger = ledger(port);
        ledger["dropped"]["ends_connection"] == 1 && ledger["acked"] == 19 && ledger["pending"] == 0
    });
}

#[test]
fn what_is_refused_for_good_is_set_aside_and_what_is_refused_for_now_comes_again() {
    let upstream = Upstream::new();
    let (setup, port) = Setup::default().config(&upstream.config("")).http();
    let gateway = setup.start();
    publish_numbers(&gateway, 0..6);
    let mut link = upstream.accept(&Properties::new());
    let ids: Vec<u16> = (0..6).map(|_| link.next().id).collect();
    for (id, reason) in ids.into_iter().zip([0, 0x80, 0x97, 0x87, 0x97, 0]) {
        link.ack(id, reason);
    }
    let again: Vec<(u16, String)> = (0..2).map(|_| link.next()).map(|message| (message.id, message.text())).collect();
    assert_eq!(again.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["2", "4"]);
    for (id, _) in again {
        link.ack(id, 0x10);
    }
    gateway.wait_for_line("quota is exceeded");
    gateway.wait_for_line("the upstream refuses it");
    wait_until("the ledger says so", || {
        let ledger = ledger(port);
        ledger["dropped"]["refused"] == 2 && ledger["acked"] == 4 && ledger["pending"] == 0
    });
}
