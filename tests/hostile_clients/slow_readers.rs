//! Subscribers that do not read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::assert_it_serves;
use crate::support::packet::{Properties, publish};
use crate::support::{Client, Connect, Gateway};

/// The longest wait: a subscriber that reads nothing is disconnected after half a minute.
const CUT_OFF: Duration = Duration::from_secs(60);

#[test]
fn a_subscriber_that_never_reads_is_bounded_and_dropped_with_a_reason() {
    let mut gateway = Gateway::start();
    let mut stuck = Connect::new("never-reads").open(gateway.port);
    stuck.subscribe("flood", 0);
    let mut reading = Connect::new("reads").open(gateway.port);
    reading.subscribe("flood", 0);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let port = gateway.port;
    let over = AtomicBool::new(false);
    let is_cut_off =
        |log: Vec<String>| log.iter().any(|line| line.contains("never-reads") && line.contains("disconnected"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let message = publish(b"flood", &[b'x'; 1000], 0, None, None);
            let burst = message.repeat(100);
            while !over.load(Ordering::Relaxed) {
                publisher.send(&burst);
                publisher.ping();
                std::thread::sleep(Duration::from_millis(20));
            }
            publisher.publish("flood", "end", 0, false);
            publisher.ping();
        });
        scope.spawn(|| while reading.receive().payload != b"end" {});
        let begin = Instant::now();
        while !is_cut_off(gateway.log()) && begin.elapsed() < CUT_OFF {
            // others are served all the time
            Connect::new("passer-by").open(port).disconnect();
            std::thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
    });
    let log = gateway.log();
    assert!(log.iter().any(|line| line.contains("reads too slowly") && line.contains("never-reads")), "{log:#?}");
    assert!(is_cut_off(log));
    assert!(gateway.memory_kib("VmHWM") < 80 << 10, "{} KiB", gateway.memory_kib("VmHWM"));
    assert_it_serves(&mut gateway);
}

#[test]
fn a_subscriber_that_never_acknowledges_is_bounded() {
    let mut gateway = Gateway::start();
    let mut mute = Connect::v5("mute").properties(Properties::new().two(0x21, 10)).open(gateway.port);
    mute.subscribe("a/#", 1);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0..5000 {
        let before = Instant::now();
        publisher.publish(&format!("a/{}", number % 7), vec![b'x'; 2000], 1, false);
        slowest = slowest.max(before.elapsed());
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "publishers are held back once, not for ever");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    gateway.wait_for_line("reads too slowly");
    assert!(gateway.memory_kib("VmHWM") < 80 << 10, "{} KiB", gateway.memory_kib("VmHWM"));
    for _ in 0..10 {
        mute.receive_unacked();
    }
    assert_it_serves(&mut gateway);
}

/// A pair of clients with a topic of their own.
pub struct InnocentPair {
    reader: Client,
    publisher: Client,
}

impl InnocentPair {
    pub fn connect(port: u16) -> InnocentPair {
        let mut reader = Connect::new("innocent-reader").open(port);
        reader.subscribe("innocent/#", 1);
        InnocentPair { reader, publisher: Connect::new("innocent-publisher").open(port) }
    }

    /// Measures round trips until it is told to stop.
    pub fn round_trips(mut self, over: &AtomicBool) -> Vec<Duration> {
        let mut times = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let begin = Instant::now();
            self.publisher.publish("innocent/a", "x", 1, false);
            self.reader.receive();
            times.push(begin.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        times.sort();
        times
    }
}

fn pair(port: u16, over: &AtomicBool) -> Vec<Duration> {
    InnocentPair::connect(port).round_trips(over)
}

/// Fills the queue of a subscriber that does not read and connects again and again, under the same client id or others.
fn wedge(port: u16, over: &AtomicBool, same_name: bool) {
    let mut publisher = Connect::new("wedge-publisher").open(port);
    let burst = publish(b"wedge", &[b'x'; 1000], 0, None, None).repeat(200);
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let name = if same_name { "wedged".to_owned() } else { format!("wedged-{number}") };
        let mut reader = Connect::new(&name).open(port);
        reader.subscribe("wedge", 0);
        // more than the sockets and the queue can hold
        for _ in 0..60 {
            if over.load(Ordering::Relaxed) || !publisher.try_send(&burst) {
                return;
            }
        }
        reader.reset();
    }
}

#[test]
fn a_reader_that_does_not_read_and_comes_again_and_again_holds_nobody_else() {
    for same_name in [true, false] {
        let (mut gateway, beside) = (Gateway::start(), Gateway::start());
        let over = AtomicBool::new(false);
        let (disturbed, undisturbed) = std::thread::scope(|scope| {
            let disturbed = scope.spawn(|| pair(gateway.port, &over));
            let undisturbed = scope.spawn(|| pair(beside.port, &over));
            scope.spawn(|| wedge(gateway.port, &over, same_name));
            std::thread::sleep(Duration::from_secs(8));
            over.store(true, Ordering::Relaxed);
            (disturbed.join().unwrap(), undisturbed.join().unwrap())
        });
        gateway.wait_for_line("reads too slowly");
        let at = |times: &[Duration], share: usize| times[times.len() * share / 1000];
        for (name, times) in [("beside a reader that does not read", &disturbed), ("undisturbed", &undisturbed)] {
            let (median, p99, longest) = (at(times, 500), at(times, 990), times[times.len() - 1]);
            println!("{name}: {} round trips, median {median:?}, p99 {p99:?}, at most {longest:?}", times.len());
        }
        assert!(at(&disturbed, 990) < at(&undisturbed, 990) * 4 + Duration::from_millis(50));
        assert!(disturbed[disturbed.len() - 1] < undisturbed[undisturbed.len() - 1] * 2 + Duration::from_secs(1));
        assert_it_serves(&mut gateway);
    }
}

/// Subscribes to everything, publishes more than a queue holds, reads nothing, and comes again at once under another client id.
fn flood(port: u16, over: &AtomicBool) {
    let burst = publish(b"flood", &[b'x'; 100], 0, None, None).repeat(600);
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let mut client = Connect::new(&format!("flood-{number}")).open(port);
        client.subscribe("#", 0);
        client.try_send(&burst);
        client.reset();
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn whoever_gets_everything_reads_nothing_and_comes_again_and_again_holds_nobody() {
    let small = "[broker]\nmax_queued_messages = 100\n";
    let (mut gateway, beside) = (Gateway::with(small), Gateway::with(small));
    let over = AtomicBool::new(false);
    let (disturbed, undisturbed) = std::thread::scope(|scope| {
        let disturbed = scope.spawn(|| pair(gateway.port, &over));
        let undisturbed = scope.spawn(|| pair(beside.port, &over));
        scope.spawn(|| flood(gateway.port, &over));
        std::thread::sleep(Duration::from_secs(5));
        over.store(true, Ordering::Relaxed);
        (disturbed.join().unwrap(), undisturbed.join().unwrap())
    });
    let longest = disturbed[disturbed.len() - 1];
    println!("{} round trips beside {}, at most {longest:?}", disturbed.len(), undisturbed.len());
    assert!(disturbed.len() > undisturbed.len() / 4, "{} of {}", disturbed.len(), undisturbed.len());
    assert!(longest < undisturbed[undisturbed.len() - 1] * 2 + Duration::from_millis(500), "{longest:?}");
    assert_it_serves(&mut gateway);
}

/// Subscribes to everything and stays. Reads nothing, or so much that it still counts as quick.
fn greedy(port: u16, number: usize, over: &AtomicBool) {
    let mut client = Connect::new(&format!("greedy-{number}")).open(port);
    client.subscribe("#", 0);
    while !over.load(Ordering::Relaxed) {
        if number % 2 == 1 {
            client.sip(8 << 10);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn greedy_subscribers_that_stay_and_a_flood_hold_nobody_who_publishes_little() {
    const GREEDY: usize = 20;
    let (mut gateway, beside) = (Gateway::start(), Gateway::start());
    let over = AtomicBool::new(false);
    let (disturbed, undisturbed) = std::thread::scope(|scope| {
        let disturbed = scope.spawn(|| pair(gateway.port, &over));
        let undisturbed = scope.spawn(|| pair(beside.port, &over));
        for number in 0..2 {
            let (port, over) = (gateway.port, &over);
            scope.spawn(move || {
                let mut client = Connect::new(&format!("flood-{number}")).open(port);
                let burst = publish(b"flood", &[b'x'; 100], 0, None, None).repeat(600);
                while !over.load(Ordering::Relaxed) && client.try_send(&burst) {}
            });
        }
        for number in 0..GREEDY {
            let (port, over) = (gateway.port, &over);
            scope.spawn(move || greedy(port, number, over));
            std::thread::sleep(Duration::from_millis(200));
        }
        std::thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        (disturbed.join().unwrap(), undisturbed.join().unwrap())
    });
    let middle = |times: &[Duration]| times[times.len() / 2];
    let (median, reference) = (middle(&disturbed), middle(&undisturbed));
    println!("{} round trips beside {}, {median:?}, {:?}", disturbed.len(), undisturbed.len(), disturbed.last());
    assert!(disturbed.len() > undisturbed.len() / 10, "{} of {}", disturbed.len(), undisturbed.len());
    assert!(median < 10 * reference.max(Duration::from_millis(1)), "{median:?} instead of {reference:?}");
    assert_it_serves(&mut gateway);
}

#[test]
fn a_persistent_subscriber_that_stands_still_holds_nobody_and_loses_nothing_that_the_journal_has() {
    const MESSAGES: usize = 3000;
    let (setup, http) = crate::support::Setup::default().http();
    let mut gateway = setup.start();
    let mut still = Connect::v5("still").persistent().open(gateway.port);
    still.subscribe("news/#", 1);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let mut slowest = Duration::ZERO;
    for number in 0..MESSAGES {
        let begin = Instant::now();
        publisher.publish("news/a", format!("{number:01000}"), 1, false);
        slowest = slowest.max(begin.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let clients = crate::support::http::get(http, "/api/v1/clients").json();
    let still_shown = clients.as_array().unwrap().iter().find(|client| client["client_id"] == "still").unwrap();
    assert_eq!(still_shown["dropped"], 0);
    assert!(!gateway.log().iter().any(|line| line.contains("too slowly")), "{:#?}", gateway.log());
    for number in 0..MESSAGES {
        assert_eq!(still.receive().text(), format!("{number:01000}"));
    }
    assert_it_serves(&mut gateway);
}
