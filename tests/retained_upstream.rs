//! After outages, crashes and losses the upstream retains the same messages as the gateway on the topics that go up.
//! Messages that others retain there are kept.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::{Connect, Gateway, Mosquitto, Setup, free_port, wait_until};

const TOPICS: u64 = 40;

/// Small pseudo-random numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn upstream(port: u16, rules: &str) -> String {
    format!(
        "[journal]\nmax_size = \"1 MiB\"\n[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n{rules}\
         [[upstream.out]]\ntopic_filter = \"loft/#\"\nremote_prefix = \"sites/\"\n"
    )
}

/// The retained messages of a broker, by topic.
fn retained(port: u16, filter: &str) -> BTreeMap<String, String> {
    let mut client = Connect::new("looker").open(port);
    client.subscribe(filter, 0);
    let found = client.drain().into_iter().filter(|message| message.retain);
    found.map(|message| (message.topic.clone(), message.text())).collect()
}

/// The messages that should be retained at the upstream.
fn expected(gateway: &Gateway, others: &[(&str, &str)]) -> BTreeMap<String, String> {
    let ours = retained(gateway.port, "loft/#").into_iter().map(|(topic, text)| (format!("sites/{topic}"), text));
    ours.chain(others.iter().map(|(topic, text)| ((*topic).into(), (*text).into()))).collect()
}

#[track_caller]
fn wait_until_equal(gateway: &Gateway, mosquitto: &Mosquitto, others: &[(&str, &str)]) {
    let mut seen = (BTreeMap::new(), BTreeMap::new());
    let mut is_equal = || {
        seen = (retained(mosquitto.port, "sites/#"), expected(gateway, others));
        seen.0 == seen.1
    };
    let begin = std::time::Instant::now();
    while !is_equal() && begin.elapsed() < support::PATIENCE {}
    assert_eq!(seen.0, seen.1, "there and here");
}

/// Sets and deletes retained messages at random. Sometimes publishes so many other messages that the journal drops its
/// oldest.
fn change(gateway: &Gateway, dice: &mut Dice, flood: bool) {
    let mut client = Connect::new("changer").open(gateway.port);
    for number in 0..60 {
        let topic = format!("loft/{}", dice.below(TOPICS));
        let text = if dice.below(3) == 0 { String::new() } else { format!("{number}-{}", dice.below(1000)) };
        client.publish(&topic, text, 1, true);
        if flood && number == 40 {
            for _ in 0..60 {
                client.publish("loft/flood", [b'x'; 20_000], 1, false);
            }
        }
    }
    client.disconnect();
}

const OTHERS: [(&str, &str); 3] = [("sites/cellar", "theirs"), ("sites/loft/theirs", "1"), ("sites/loft/99", "2")];

fn others_publish(port: u16) {
    let mut other = Connect::new("other").open(port);
    for (topic, text) in OTHERS {
        other.publish(topic, text, 1, true);
    }
    other.disconnect();
}

#[test]
fn it_is_equal_after_outages_losses_and_crashes() {
    equal_after_all("strict", 7);
}

#[test]
fn it_is_equal_in_live_first_order_too() {
    equal_after_all("live_first", 8);
}

fn equal_after_all(order: &str, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // the upstream keeps retained messages and our session
    let persistence = format!("persistence true\npersistence_location {}/\nuser root", dir.path().display());
    let start = || Mosquitto::on(port, &persistence);
    let config = upstream(port, "protocol = 5\n").replace("[journal]", &format!("[journal]\norder = \"{order}\""));
    let mut gateway = Setup::default().config(&config).start();
    let mut mosquitto = start();
    others_publish(port);
    let mut dice = Dice(seed);
    for round in 0..6 {
        change(&gateway, &mut dice, false);
        wait_until_equal(&gateway, &mosquitto, &OTHERS);
        mosquitto.stop();
        change(&gateway, &mut dice, round % 2 == 0);
        if round % 3 == 0 {
            gateway = gateway.kill().restart();
            change(&gateway, &mut dice, round == 3);
        }
        mosquitto = start();
        wait_until_equal(&gateway, &mosquitto, &OTHERS);
    }
}

#[test]
fn it_is_equal_when_the_upstream_has_forgotten_everything_and_when_messages_expire() {
    let port = free_port();
    for protocol in [4, 5] {
        let gateway = Setup::default().config(&upstream(port, &format!("protocol = {protocol}\n"))).start();
        let mosquitto = Mosquitto::on(port, "");
        let mut dice = Dice(9);
        change(&gateway, &mut dice, false);
        wait_until_equal(&gateway, &mosquitto, &[]);
        mosquitto.stop();
        // a deletion that expires before it can be forwarded
        let mut client = Connect::v5("client").open(gateway.port);
        for topic in 0..TOPICS / 2 {
            let properties = support::Properties::new().four(2, 1);
            client.publish_with(&format!("loft/{topic}"), "", 1, true, &properties);
        }
        thread::sleep(Duration::from_secs(1));
        let mosquitto = Mosquitto::on(port, "");
        others_publish(port);
        wait_until_equal(&gateway, &mosquitto, &OTHERS);
        drop(gateway.stop());
        mosquitto.stop();
    }
}

#[test]
fn an_overtaken_message_does_not_replace_what_is_newer() {
    const OLD: u32 = 2000;
    let port = free_port();
    let config = upstream(port, "").replace("[journal]", "[journal]\norder = \"live_first\"");
    let gateway = Setup::default().config(&config).start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..OLD {
        publisher.publish("loft/a", format!("old {number}"), 1, true);
    }
    let mosquitto = Mosquitto::on(port, "max_queued_messages 0");
    let mut remote = Connect::new("remote").open(port);
    remote.subscribe("sites/loft/a", 1);
    gateway.wait_for_line("connected");
    publisher.publish("loft/a", "new", 1, true);
    let last = format!("old {}", OLD - 1);
    let mut awaited = vec!["new", &*last];
    while !awaited.is_empty() {
        let text = remote.receive().text();
        awaited.retain(|awaited| *awaited != text);
    }
    wait_until("the last value", || {
        retained(port, "sites/loft/a").get("sites/loft/a").is_some_and(|text| text == "new")
    });
    publisher.publish("loft/a", "", 1, true);
    wait_until("the deletion", || retained(port, "sites/#").is_empty());
    drop(mosquitto);
}

/// A line to a broker that is cut as soon as this many bytes have gone up. The rest of a cut connection is lost.
struct Line {
    port: u16,
    left: Arc<AtomicUsize>,
}

/// The line is not cut.
const WHOLE: usize = usize::MAX;

impl Line {
    fn to(broker: u16) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, left) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(WHOLE)));
        let shared = left.clone();
        thread::spawn(move || {
            for gateway in listener.incoming().map_while(Result::ok) {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                let (up, down) = ((gateway.try_clone().unwrap(), broker.try_clone().unwrap()), (broker, gateway));
                let left = shared.clone();
                thread::spawn(move || carry(up, Some(&left)));
                thread::spawn(move || carry(down, None));
            }
        });
        Line { port, left }
    }

    fn cut_after(&self, bytes: usize) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    fn is_whole(&self) -> bool {
        self.left.load(Ordering::Relaxed) == WHOLE
    }
}

fn carry((mut from, mut to): (TcpStream, TcpStream), left: Option<&AtomicUsize>) {
    let _ = to.set_nodelay(true);
    let mut bytes = [0; 256];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
        let Some(before) = left.map(|left| left.load(Ordering::Relaxed)).filter(|before| *before != WHOLE) else {
            continue;
        };
        if count >= before {
            left.unwrap().store(WHOLE, Ordering::Relaxed);
            break;
        }
        left.unwrap().store(before - count, Ordering::Relaxed);
        // a slow line, so that not everything is on it at once
        thread::sleep(Duration::from_millis(2));
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// The number of values, and the bytes of the packets that bring all of them.
const MANY: usize = 300;
const MANY_BYTES: usize = MANY * 80;

fn publish_many(gateway: &Gateway, text: &str) {
    let mut client = Connect::new("many").open(gateway.port);
    for number in 0..MANY {
        client.publish(&format!("loft/{number}"), format!("{text}{number:60}"), 1, true);
    }
    client.disconnect();
}

#[test]
fn it_is_equal_although_the_line_fails_while_values_come_back() {
    for protocol in [4, 5] {
        let port = free_port();
        let line = Line::to(port);
        let keys = format!("protocol = {protocol}\nretry = {{ min = \"100 ms\", max = \"400 ms\" }}\n");
        let mut gateway = Setup::default().config(&upstream(line.port, &keys)).start();
        // without persistence: it has forgotten everything after each restart
        let mut mosquitto = Mosquitto::on(port, "");
        publish_many(&gateway, "1");
        wait_until_equal(&gateway, &mosquitto, &[]);
        // the connection ends within the pass, several times
        mosquitto.stop();
        line.cut_after(MANY_BYTES / 4);
        mosquitto = Mosquitto::on(port, "");
        for _ in 0..3 {
            wait_until("the line is cut", || line.is_whole());
            line.cut_after(MANY_BYTES / 4);
        }
        line.cut_after(WHOLE);
        wait_until_equal(&gateway, &mosquitto, &[]);
        // within a backlog, before the pass
        mosquitto.stop();
        let mut client = Connect::new("backlog").open(gateway.port);
        for number in 0..MANY {
            client.publish("loft/backlog", format!("{number:60}"), 1, false);
        }
        line.cut_after(MANY_BYTES / 4);
        mosquitto = Mosquitto::on(port, "");
        wait_until("the line is cut", || line.is_whole());
        wait_until_equal(&gateway, &mosquitto, &[]);
        // the gateway is stopped, or killed, within the pass
        for is_killed in [false, true] {
            mosquitto.stop();
            line.cut_after(4 * MANY_BYTES);
            mosquitto = Mosquitto::on(port, "");
            wait_until("the pass runs", || line.left.load(Ordering::Relaxed) < 4 * MANY_BYTES - MANY_BYTES / 4);
            let ended = if is_killed { gateway.kill() } else { gateway.end() };
            line.cut_after(WHOLE);
            gateway = ended.restart();
            wait_until_equal(&gateway, &mosquitto, &[]);
        }
        drop(gateway.stop());
        mosquitto.stop();
    }
}

#[test]
fn it_is_equal_although_values_are_older_than_max_age() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let gateway = Setup::default().config(&(upstream(port, "") + "max_age = \"1 s\"\n")).start();
    let persistence = format!("persistence true\npersistence_location {}/\nuser root", dir.path().display());
    let mosquitto = Mosquitto::on(port, &persistence);
    let mut client = Connect::new("client").open(gateway.port);
    for topic in ["loft/a", "loft/b", "loft/c"] {
        client.publish(topic, "1", 1, true);
    }
    wait_until_equal(&gateway, &mosquitto, &[]);
    mosquitto.stop();
    // a newer value and a deletion wait for too long
    client.publish("loft/a", "2", 1, true);
    client.publish("loft/b", "", 1, true);
    thread::sleep(Duration::from_millis(1_200));
    let mosquitto = Mosquitto::on(port, &persistence);
    wait_until_equal(&gateway, &mosquitto, &[]);
    // and all are old when the upstream has forgotten everything
    mosquitto.stop();
    let mosquitto = Mosquitto::on(port, "");
    wait_until_equal(&gateway, &mosquitto, &[]);
    drop(mosquitto);
}
