//! Topics that are mirrored both ways have the same retained messages on both sides when both are connected and quiet,
//! whatever happened to either side meanwhile.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use support::{Connect, Gateway, Mosquitto, Setup, free_port, wait_until};

const TOPICS: u64 = 30;

/// Small pseudo-random numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// The retained messages of a broker, by topic.
fn retained(port: u16) -> BTreeMap<String, String> {
    let mut client = Connect::new("looker").open(port);
    client.subscribe("shared/#", 0);
    let found = client.drain().into_iter().filter(|message| message.retain);
    found.map(|message| (message.topic.clone(), message.text())).collect()
}

#[track_caller]
fn wait_until_equal(gateway: &Gateway, mosquitto: &Mosquitto) -> BTreeMap<String, String> {
    let begin = Instant::now();
    let mut equal = 0;
    loop {
        let (there, here) = (retained(mosquitto.port), retained(gateway.port));
        // several times, because what crosses may be equal for a moment
        equal = if there == here { equal + 1 } else { 0 };
        if equal == 3 {
            return here;
        }
        if begin.elapsed() > support::PATIENCE {
            assert_eq!(there, here, "there and here");
        }
    }
}

#[track_caller]
fn wait_until_retained(port: u16, expected: &BTreeMap<String, String>) {
    let begin = Instant::now();
    while retained(port) != *expected {
        if begin.elapsed() > support::PATIENCE {
            assert_eq!(retained(port), *expected);
        }
    }
}

/// Sets and deletes retained messages at random.
fn change(port: u16, side: &str, dice: &mut Dice) {
    let mut client = Connect::new(&format!("changer-{side}")).open(port);
    for number in 0..20 {
        let topic = format!("shared/{}", dice.below(TOPICS));
        let text = if dice.below(4) == 0 { String::new() } else { format!("{side} {number} {}", dice.below(1_000)) };
        client.publish(&topic, text, 1, true);
    }
    client.disconnect();
}

fn set(port: u16, topic: &str, text: &str) {
    let mut client = Connect::new("setter").open(port);
    client.publish(topic, text, 1, true);
    client.disconnect();
}

fn config(port: u16, keys: &str) -> String {
    format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n\
         retry = {{ min = \"100 ms\", max = \"400 ms\" }}\n{keys}\
         [[upstream.both]]\ntopic_filter = \"shared/#\"\n"
    )
}

fn equal_after_all(seed: u64, keeps: bool, keys: &str) {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let persistence = format!("persistence true\npersistence_location {}/\nuser root", dir.path().display());
    let start = || Mosquitto::on(port, if keeps { &persistence } else { "" });
    let mut gateway = Setup::default().config(&config(port, keys)).start();
    let mut mosquitto = start();
    let mut dice = Dice(seed);
    for round in 0..6 {
        change(gateway.port, "here", &mut dice);
        change(port, "there", &mut dice);
        wait_until_equal(&gateway, &mosquitto);
        match round % 3 {
            // the upstream is away
            0 => {
                mosquitto.stop();
                change(gateway.port, "here", &mut dice);
                mosquitto = start();
                change(port, "there", &mut dice);
            }
            // the gateway is away, in order or not
            _ => {
                let ended = if dice.below(2) == 0 { gateway.kill() } else { gateway.end() };
                change(port, "there", &mut dice);
                if round % 3 == 2 {
                    mosquitto.stop();
                    mosquitto = start();
                }
                gateway = ended.restart();
                change(gateway.port, "here", &mut dice);
            }
        }
        wait_until_equal(&gateway, &mosquitto);
    }
    drop((gateway, mosquitto));
}

#[test]
fn both_sides_are_equal_where_the_upstream_keeps_everything() {
    equal_after_all(1, true, "");
}

#[test]
fn both_sides_are_equal_where_the_upstream_forgets_our_session() {
    equal_after_all(2, true, "clean_session = true\n");
}

#[test]
fn both_sides_are_equal_where_the_upstream_forgets_everything() {
    equal_after_all(3, false, "");
}

#[test]
fn the_newer_value_wins_after_an_outage() {
    for clean in ["", "clean_session = true\n"] {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let persistence = format!("persistence true\npersistence_location {}/\nuser root", dir.path().display());
        let gateway = Setup::default().config(&config(port, clean)).start();
        let mosquitto = Mosquitto::on(port, &persistence);
        for topic in ["shared/changed_here", "shared/changed_there", "shared/deleted_here", "shared/deleted_there"] {
            set(port, topic, "old");
        }
        wait_until("the old values", || retained(gateway.port).len() == 4);
        mosquitto.stop();
        set(gateway.port, "shared/changed_here", "new");
        set(gateway.port, "shared/deleted_here", "");
        set(gateway.port, "shared/only_here", "new");
        let mosquitto = Mosquitto::on(port, &persistence);
        set(port, "shared/changed_there", "new");
        let same = |text: &str| text.to_owned();
        let mut expected = BTreeMap::from([
            (same("shared/changed_here"), same("new")),
            (same("shared/changed_there"), same("new")),
            (same("shared/deleted_there"), same("old")),
            (same("shared/only_here"), same("new")),
        ]);
        wait_until_retained(port, &expected);
        wait_until_retained(gateway.port, &expected);
        assert_eq!(wait_until_equal(&gateway, &mosquitto), expected, "{clean:?}");
        set(port, "shared/deleted_there", "");
        expected.remove("shared/deleted_there");
        wait_until_retained(gateway.port, &expected);
        assert_eq!(wait_until_equal(&gateway, &mosquitto), expected, "{clean:?}");
        drop((gateway, mosquitto));
    }
}

/// A line to a broker that counts what comes down, and can be cut.
struct CountedLine {
    port: u16,
    down: Arc<AtomicUsize>,
    is_closed: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl CountedLine {
    fn to(broker: u16) -> CountedLine {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = CountedLine {
            port: listener.local_addr().unwrap().port(),
            down: Arc::default(),
            is_closed: Arc::default(),
            sockets: Arc::default(),
        };
        let (down, is_closed, sockets) = (line.down.clone(), line.is_closed.clone(), line.sockets.clone());
        thread::spawn(move || {
            for gateway in listener.incoming().map_while(Result::ok) {
                if is_closed.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                sockets.lock().unwrap().push(gateway.try_clone().unwrap());
                let (up, back) = ((gateway.try_clone().unwrap(), broker.try_clone().unwrap()), (broker, gateway));
                let down = down.clone();
                thread::spawn(move || carry(up, &AtomicUsize::new(0)));
                thread::spawn(move || carry(back, &down));
            }
        });
        line
    }

    fn cut(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn carry((mut from, mut to): (TcpStream, TcpStream), count: &AtomicUsize) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        count.fetch_add(read, Ordering::Relaxed);
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_session_that_was_kept_costs_only_what_is_doubtful() {
    const VALUES: usize = 2_000;
    let port = free_port();
    let line = CountedLine::to(port);
    let gateway = Setup::default().config(&config(line.port, "")).start();
    let mosquitto = Mosquitto::on(port, "");
    set(gateway.port, "shared/only_here", "1");
    wait_until("the first value", || retained(port).len() == 1);
    // it forgets that, and gets others
    line.is_closed.store(true, Ordering::Relaxed);
    mosquitto.stop();
    let mosquitto = Mosquitto::on(port, "max_queued_messages 0");
    let mut remote = Connect::new("remote").open(port);
    for number in 0..VALUES {
        remote.publish(&format!("shared/{number}"), [b'x'; 100], 1, true);
    }
    line.is_closed.store(false, Ordering::Relaxed);
    wait_until("all values", || retained(gateway.port).len() == VALUES + 1);
    gateway.wait_for_line("brought up to date");
    wait_until("what it had forgotten", || retained(port).len() == VALUES + 1);
    let before = line.down.load(Ordering::Relaxed);
    assert!(before > VALUES * 100, "{before}");
    for round in 0..3 {
        line.cut();
        set(gateway.port, "shared/0", &format!("here {round}"));
        remote.publish("shared/0", format!("there {round}"), 1, true);
        set(gateway.port, "shared/last", &format!("{round}"));
        wait_until("what was published here", || {
            retained(port).get("shared/last").is_some_and(|text| *text == round.to_string())
        });
        wait_until_equal(&gateway, &mosquitto);
    }
    let after = line.down.load(Ordering::Relaxed) - before;
    assert!(after < 10_000, "{after} bytes for three reconnections");
    drop((gateway, mosquitto));
}
