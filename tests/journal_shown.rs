//! `pigateway journal DIR` shows the contents of a journal, with and without a running gateway, and changes nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use support::broker::gateway;
use support::packet::publish;
use support::{Connect, Gateway, Setup};

const UPSTREAM: &str =
    "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n";

/// Runs the command, and returns its exit code and its output.
fn journal(dir: &Path, argument: &str) -> (Option<i32>, String) {
    let output = gateway().arg("journal").arg(dir).args((!argument.is_empty()).then_some(argument)).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_journal_is_shown_verified_and_exported() {
    let gateway = Gateway::with(UPSTREAM);
    let data = gateway.dir().join("data");
    let mut client = Connect::new("client").open(gateway.port);
    for number in 0..100 {
        client.publish("up/x", number.to_string(), 1, false);
    }
    for round in 0..2 {
        let (code, text) = journal(&data, "");
        assert!(code == Some(0) && text.contains("upstream/home"), "{text}");
        let line = text.lines().find(|line| line.starts_with("upstream/home")).unwrap();
        let figures: Vec<u64> = line.split_whitespace().skip(1).map(|figure| figure.parse().unwrap()).collect();
        assert_eq!((figures[0], figures[7], figures.iter().skip(1).sum()), (100, 100, 100), "{text}");
        let (code, text) = journal(&data, "--verify");
        assert!(code == Some(0) && text.contains("every record is whole"), "{text}");
        let (code, text) = journal(&data, "--export");
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let payloads: Vec<String> = lines.iter().map(|line| line["payload"].as_str().unwrap().to_owned()).collect();
        assert_eq!(payloads, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
        assert_eq!((code, &lines[0]["consumers"]["upstream/home"]["waits"]), (Some(0), &true.into()));
        if round == 0 {
            gateway.signal(rustix::process::Signal::KILL);
        }
    }
    let file = data.join("journal/00000000.segment");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[10_000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let (code, text) = journal(&data, "--verify");
    assert!(code == Some(65) && text.contains("damaged in 1 places"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "nothing is changed");
    let (code, text) = journal(&data.join("nothing"), "");
    assert!(code == Some(66) && text.contains("give the data directory"), "{text}");
}

#[test]
fn what_a_running_gateway_writes_meanwhile_is_no_damage() {
    let gateway = Setup::default().config("[journal]\nmax_size = \"1 MiB\"\n[broker]\nmax_packet_size = \"16 KiB\"\n");
    let gateway = gateway.config(UPSTREAM).start();
    let data = gateway.dir().join("data");
    let is_over = Arc::<AtomicBool>::default();
    let (port, over) = (gateway.port, is_over.clone());
    let mut client = Connect::new("client").open(port);
    client.publish("up/x", "first", 1, false);
    let publishing = std::thread::spawn(move || {
        let mut sent = 0u32;
        while !over.load(SeqCst) {
            // segments are recycled several times a second
            let portion: Vec<u8> =
                (1..=20).flat_map(|id| publish(b"up/x", &[b'x'; 8000], 0x32, Some(id), None)).collect();
            client.send(&portion);
            (0..20).for_each(|_| drop(client.expect(4)));
            sent += 20;
        }
        sent
    });
    for round in 0..60 {
        let (code, text) = journal(&data, if round % 2 == 0 { "--verify" } else { "" });
        assert_eq!(code, Some(0), "round {round}: {text}");
    }
    is_over.store(true, SeqCst);
    println!("{} messages meanwhile", publishing.join().unwrap());
}

#[test]
fn another_format_is_refused_with_a_sentence() {
    let gateway = Gateway::with(UPSTREAM);
    let mut client = Connect::new("client").open(gateway.port);
    client.publish("up/x", "x", 1, false);
    let killed = gateway.kill();
    let file = killed.dir().join("data/journal/00000000.segment");
    let mut bytes = std::fs::read(&file).unwrap();
    for header in [0, 4096] {
        bytes[header + 8] = 9;
        let crc = crc32c::crc32c(&bytes[header..header + 48]);
        bytes[header + 48..header + 52].copy_from_slice(&crc.to_le_bytes());
    }
    std::fs::write(&file, &bytes).unwrap();
    let (code, text) = journal(&killed.dir().join("data"), "");
    assert!(code == Some(66) && text.contains("another version of pigateway (format 9"), "{text}");
    let (code, log) = killed.setup().spawn().wait();
    let log = log.join("\n");
    assert!(code == Some(73) && log.contains("install that version, or move the directory"), "{log}");
}
