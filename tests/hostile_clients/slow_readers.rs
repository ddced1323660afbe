//! Subscribers that do not read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::assert_it_serves;
use crate::support::packet::{Properties, publish};
use crate::support::{Connect, Gateway};

/// A subscriber that takes nothing is cut off after half a minute.
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
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                reading.receive();
            }
        });
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
    assert!(slowest < Duration::from_secs(8), "{slowest:?}");
    gateway.wait_for_line("reads too slowly");
    assert!(gateway.memory_kib("VmHWM") < 80 << 10, "{} KiB", gateway.memory_kib("VmHWM"));
    for _ in 0..10 {
        mute.receive_unacked();
    }
    assert_it_serves(&mut gateway);
}
