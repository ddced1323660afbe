//! With `order = "live_first"` new messages do not wait behind the backlog of an outage, and the backlog still arrives in
//! order, even with outages and crashes in between.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::packet::publish;
use support::{Client, Connect, Gateway, Mosquitto, ReadSome, Setup, free_port, wait_until};

/// A slow line to a broker, which can be cut.
struct Line {
    port: u16,
    up: Arc<AtomicBool>,
    /// The bytes per second towards the upstream.
    rate: Arc<AtomicU64>,
}

impl Line {
    fn to(broker: u16) -> Line {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let line = Line { port, up: Arc::default(), rate: Arc::new(AtomicU64::new(1_000_000)) };
        let (up, rate) = (line.up.clone(), line.rate.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Some(broker) = up.load(Ordering::Relaxed).then(|| TcpStream::connect(("127.0.0.1", broker))) else {
                    continue;
                };
                let broker = broker.unwrap();
                let (from, to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
                let (up_there, down_here, rate) = (up.clone(), up.clone(), rate.clone());
                std::thread::spawn(move || copy(from, to, &up_there, &rate));
                std::thread::spawn(move || copy(broker, client, &down_here, &AtomicU64::new(u64::MAX)));
            }
        });
        line
    }

    fn set(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, up: &AtomicBool, rate: &AtomicU64) {
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 16 * 1024];
    while up.load(Ordering::Relaxed) {
        match from.read_some(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                // the time that such a line takes for these bytes
                std::thread::sleep(Duration::from_nanos(count as u64 * 1_000_000_000 / rate.load(Ordering::Relaxed)));
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    for stream in [from, to] {
        // the other thread may have closed it already
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn configuration(port: u16) -> String {
    format!(
        "[journal]\norder = \"live_first\"\n[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n\
         [[upstream.out]]\ntopic_filter = \"loft/#\"\nremote_prefix = \"sites/\"\n"
    )
}

fn publish_all(gateway: &Gateway, topic: &str, numbers: std::ops::Range<u32>) {
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for part in numbers.collect::<Vec<_>>().chunks(100) {
        let packet = |number: &u32| {
            let (id, payload) = ((number % 60_000 + 1) as u16, format!("{number:0100}"));
            publish(topic.as_bytes(), payload.as_bytes(), 2, Some(id), None)
        };
        publisher.send(&part.iter().flat_map(packet).collect::<Vec<u8>>());
        for _ in part {
            publisher.expect(4);
        }
    }
    publisher.disconnect();
}

/// The received numbers by topic, in order, with the time of the first of each topic.
#[derive(Default)]
struct Seen(BTreeMap<String, Vec<u32>>);

impl Seen {
    fn of(&self, topic: &str) -> &[u32] {
        self.0.get(topic).map_or(&[], Vec::as_slice)
    }

    fn take(&mut self, client: &mut Client) -> (String, u32) {
        let message = client.receive();
        let number = message.text().parse().unwrap();
        self.0.entry(message.topic.clone()).or_default().push(number);
        (message.topic, number)
    }
}

#[test]
fn live_messages_pass_a_backlog_within_a_second() {
    pass_a_backlog(30_000, 200);
}

/// This test takes minutes. Run it with `cargo test --release --test live_first -- --ignored --nocapture`.
#[test]
#[ignore]
fn live_messages_pass_a_backlog_of_a_million() {
    pass_a_backlog(1_000_000, 1_000);
}

fn pass_a_backlog(backlog: u32, live: u32) {
    let mosquitto = Mosquitto::with("max_queued_messages 0");
    let line = Line::to(mosquitto.port);
    let gateway = Setup::default().config(&configuration(line.port)).start();
    let begin = Instant::now();
    publish_all(&gateway, "loft/old", 0..backlog);
    println!("{backlog} messages in {:?}, then {} KiB at most", begin.elapsed(), gateway.memory_kib("VmHWM"));
    let mut remote = Connect::new("remote").open(mosquitto.port);
    remote.subscribe("sites/#", 0);
    line.set(true);
    let mut seen = Seen::default();
    seen.take(&mut remote);
    let mut publisher = Connect::new("live").open(gateway.port);
    let mut waits = Vec::new();
    for number in 0..live {
        let begin = Instant::now();
        publisher.publish("loft/live", number.to_string(), 1, false);
        while seen.take(&mut remote) != ("sites/loft/live".into(), number) {}
        waits.push(begin.elapsed());
    }
    let drained_by_then = seen.of("sites/loft/old").len();
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    println!("live messages beside a backlog of {backlog}: median {:?}, p99 {p99:?}", waits[waits.len() / 2]);
    println!("{drained_by_then} of the backlog had arrived after the last of them");
    assert!(drained_by_then > 100 && drained_by_then < backlog as usize, "{drained_by_then}");
    assert!(p99 < Duration::from_secs(1), "{p99:?}");
    line.rate.store(u64::MAX, Ordering::Relaxed);
    let begin = Instant::now();
    while seen.of("sites/loft/old").len() < backlog as usize {
        seen.take(&mut remote);
    }
    println!("the rest in {:?}, {} KiB at most", begin.elapsed(), gateway.memory_kib("VmHWM"));
    assert_eq!(seen.of("sites/loft/old"), (0..backlog).collect::<Vec<_>>());
    assert_eq!(seen.of("sites/loft/live"), (0..live).collect::<Vec<_>>());
    assert!(gateway.memory_kib("VmHWM") < 40 << 10);
}

#[test]
fn outages_and_crashes_while_it_drains_lose_nothing() {
    const PART: u32 = 4_000;
    let mosquitto = Mosquitto::with("max_queued_messages 0");
    let line = Line::to(mosquitto.port);
    let (setup, http) = Setup::default().config(&configuration(line.port)).http();
    let mut gateway = setup.start();
    let mut remote = Connect::new("remote").open(mosquitto.port);
    remote.subscribe("sites/#", 0);
    let mut seen = Seen::default();
    for round in 0..6 {
        publish_all(&gateway, "loft/old", round * PART..(round + 1) * PART);
        line.set(true);
        publish_all(&gateway, "loft/live", round * 100..(round + 1) * 100);
        // a part of the backlog arrives
        for _ in 0..500 {
            seen.take(&mut remote);
        }
        if round % 2 == 0 {
            gateway = gateway.kill().restart();
        }
        line.set(false);
    }
    line.set(true);
    let missing = |seen: &Seen| {
        let count = |topic: &str| {
            let mut numbers = seen.of(topic).to_vec();
            numbers.sort_unstable();
            numbers.dedup();
            numbers.len()
        };
        (6 * PART as usize - count("sites/loft/old")) + (600 - count("sites/loft/live"))
    };
    let begin = Instant::now();
    let mut total = 0;
    while missing(&seen) > 0 {
        for _ in 0..missing(&seen) {
            seen.take(&mut remote);
            total += 1;
        }
        assert!(begin.elapsed() < support::PATIENCE, "{} missing after {total}", missing(&seen));
    }
    let all: usize = seen.0.values().map(Vec::len).sum();
    // each break repeats at most the window, and each crash at most 500 acknowledged messages more, for each lane
    let most = 6 * PART as usize + 600 + 12 * 100 + 3 * 2 * (500 + 100);
    assert!(all <= most, "{all} of at most {most}");
    wait_until("the ledger says so", || {
        let ledger = support::http::get(http, "/api/v1/upstreams").json()[0]["ledger"].clone();
        let count = |name: &str| ledger[name].as_u64().unwrap();
        count("pending") == 0 && count("accepted") == count("acked") && ledger["dropped"]["journal_full"] == 0
    });
}
