//! A data directory on a file system of 8, 16 or 64 MB: whatever `journal.max_size` says, the gateway works within the
//! available space. While an upstream is away, the disk becomes full. The oldest messages are dropped and counted, all
//! clients are still served, a restart on the full disk serves again, and the upstream gets the rest.
//!
//! The file systems are made by the test, in a user and mount namespace. If the system does not allow users to make these,
//! the tests must run as root.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::broker::wait_until_served;
use support::packet::publish;
use support::{Connect, Gateway, Mosquitto, Setup, contents, free_port, http, wait_until};

const MESSAGE: usize = 60_000;
/// The number of messages in flight.
const AT_ONCE: usize = 16;

fn config(upstream: u16) -> String {
    format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{upstream}\"]\n\
         retry = {{ min = \"100 ms\", max = \"200 ms\" }}\n[[upstream.out]]\ntopic_filter = \"up/#\"\n\
         [[sensor]]\nname = \"loft\"\npin = 17\ntopic = \"loft\"\nwarm_up = \"0 s\"\nhold = \"0 s\"\n\
         simulate = [\"100 ms on\", \"100 ms off\"]\n"
    )
}

/// Publishes a quarter more than the disk can hold, and waits for all acknowledgements. Returns the number of the last
/// message.
fn fill(gateway: &Gateway, mebibytes: usize) -> usize {
    let mut client = Connect::new("publisher").open(gateway.port);
    let rounds = (mebibytes << 20) * 5 / 4 / MESSAGE / AT_ONCE + 1;
    for round in 0..rounds {
        for number in 0..AT_ONCE {
            let mut payload = format!("{} ", round * AT_ONCE + number).into_bytes();
            payload.resize(MESSAGE, b'x');
            client.send(&publish(b"up/x", &payload, 0x32, Some(1 + number as u16), None));
        }
        for number in 0..AT_ONCE {
            assert_eq!(usize::from(client.expect(4).id()), 1 + number);
        }
    }
    rounds * AT_ONCE - 1
}

/// Checks the figures of the journal and of the file system.
fn it_fits(gateway: &Gateway, port: u16, mebibytes: usize) {
    let journal = http::get(port, "/api/v1/gateway").json()["journal"].take();
    assert!(journal["failing"].is_null() && journal["last_error"].is_null(), "{journal}");
    assert!(journal["used_bytes"].as_u64() <= Some((mebibytes as u64) << 20), "{journal}");
    assert!(journal["max_bytes"].as_u64() < Some((mebibytes as u64) << 20), "{journal}");
    // at least 32 KiB are left for other files
    let data = gateway.dir().join("data").display().to_string();
    gateway.run_inside(&["sh", "-c", &format!("test $(df --output=avail -k {data} | tail -n 1) -ge 32")]);
}

fn others_are_served(gateway: &Gateway, port: u16) {
    let mut client = Connect::v5("other").open(gateway.port);
    assert_eq!(client.publish("kept", "x", 1, true), 0);
    client.subscribe("kept", 1);
    assert_eq!(contents(&[client.receive()]), [("kept", "x".into())]);
    let events = || http::get(port, "/api/v1/sensors/loft/events?limit=5").text();
    wait_until("the sensor has a past", || events().contains("\"on\""));
}

fn it_works_within(mebibytes: usize) {
    let upstream = free_port();
    let (setup, port) = Setup::default().config(&config(upstream)).http();
    // the second one begins when the first has been killed
    let mut gateway = setup.start_after(&format!(
        "mkdir data; mount -t tmpfs -o size={mebibytes}m tmpfs data; \"$0\" run --config \"$1\" & echo $! >first; wait $! || true"
    ));
    let last = fill(&gateway, mebibytes);
    it_fits(&gateway, port, mebibytes);
    others_are_served(&gateway, port);

    let first = fs::read_to_string(gateway.dir().join("first")).unwrap();
    gateway.run_inside(&["kill", "-KILL", first.trim()]);
    let at = gateway.port;
    wait_until_served(&mut gateway, at);
    others_are_served(&gateway, port);
    it_fits(&gateway, port, mebibytes);

    // the newest messages arrive, and the counts add up
    let mosquitto = Mosquitto::with("max_queued_messages 0");
    let mut reader = Connect::new("reader").open(mosquitto.port);
    reader.subscribe("up/#", 1);
    mosquitto.also_at(upstream);
    let end = format!("{last} ");
    while !reader.receive().text().starts_with(&end) {}
    let ledger = || http::get(port, "/api/v1/upstreams").json()[0]["ledger"].take();
    wait_until("nothing waits", || ledger()["pending"] == 0);
    let ledger = ledger();
    let count = |name: &str| ledger[name].as_u64().unwrap();
    let dropped: u64 = ledger["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(count("accepted"), last as u64 + 1, "{ledger}");
    assert_eq!(count("accepted"), count("acked") + dropped, "{ledger}");
    // messages that were dropped just before the kill are missing in the counts
    let known: u64 = ["journal_full", "unreadable"].iter().map(|why| ledger["dropped"][why].as_u64().unwrap()).sum();
    assert!(dropped > 0 && dropped == known, "{ledger}");
}

#[test]
fn eight_megabytes() {
    it_works_within(8);
}

#[test]
fn sixteen_megabytes() {
    it_works_within(16);
}

#[test]
fn sixty_four_megabytes() {
    it_works_within(64);
}
