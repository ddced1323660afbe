//! During an outage of a million messages the memory stays small, because they are on disk, and all of them arrive
//! afterwards.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use support::packet::publish;
use support::{Connect, Mosquitto, Setup};

/// The number of messages in the usual run. `BACKLOG=1000000` tests the whole promise.
const USUAL: u32 = 50_000;

#[test]
fn a_backlog_is_on_disk_and_not_in_memory() {
    let count = std::env::var("BACKLOG").ok().and_then(|text| text.parse().ok()).unwrap_or(USUAL);
    let port = support::free_port();
    let config = format!(
        "[journal]\nmax_size = \"512 MiB\"\n[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n\
         [[upstream.out]]\ntopic_filter = \"up/#\"\n"
    );
    let gateway = Setup::default().config(&config).start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let begin = Instant::now();
    let mut sent = 0u32;
    while sent < count {
        let portion = (count - sent).min(500);
        let packets: Vec<u8> = (0..portion)
            .flat_map(|at| {
                publish(b"up/count", format!("{:0>100}", sent + at).as_bytes(), 0x32, Some(at as u16 + 1), None)
            })
            .collect();
        publisher.send(&packets);
        (0..portion).for_each(|_| drop(publisher.expect(4)));
        sent += portion;
    }
    let stored = begin.elapsed();
    let memory = gateway.memory_kib("VmRSS");
    println!(
        "{count} messages stored in {stored:?}, {memory} KiB resident, {} KiB at most",
        gateway.memory_kib("VmHWM")
    );
    assert!(memory < 40 << 10, "{memory} KiB");
    let gateway = gateway.kill().restart();
    let begin = Instant::now();
    let upstream = Mosquitto::with(&format!("listener {port} 127.0.0.1\nmax_queued_messages 0\n"));
    let mut reader = Connect::new("reader").open(upstream.port);
    reader.subscribe("#", 0);
    // the reader misses messages that went up before it connected, but all others are in order
    let mut next = None;
    loop {
        let number: u32 = reader.receive().text().parse().unwrap();
        assert!(next.is_none_or(|next| number <= next), "{number} after {next:?}");
        next = Some(next.unwrap_or(0).max(number + 1));
        if number + 1 == count {
            break;
        }
    }
    let memory = gateway.memory_kib("VmHWM");
    println!("drained in {:?}, {memory} KiB at most", begin.elapsed());
    assert!(memory < 40 << 10, "{memory} KiB");
}
