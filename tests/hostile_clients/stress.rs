//! All kinds of hostile clients at the same time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Random, assert_it_serves_but};
use crate::support::packet::{Properties, V5, V31, V311, binary, packet, publish};
use crate::support::{Client, Connect, Gateway};

const THREADS: u64 = 16;
const LENGTH: Duration = Duration::from_secs(30);

/// A connection whose answers are ignored.
struct Rascal(TcpStream);

impl Rascal {
    fn new(port: u16) -> Option<Rascal> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        stream.set_write_timeout(Some(Duration::from_millis(500))).ok()?;
        Some(Rascal(stream))
    }

    fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn listen(&mut self) {
        let _ = self.0.read(&mut [0; 4096]);
    }
}

impl Drop for Rascal {
    fn drop(&mut self) {
        // a reset, because thousands of orderly ends would use up the ports of this host
        let _ = socket2::SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}

fn connect(random: &mut Random) -> Connect {
    // few client ids, so that the clients take over each other's sessions
    let connect = Connect::version([V31, V311, V5][random.below(3)], &format!("rascal/{}", random.below(40)));
    let connect = if random.below(3) == 0 { connect.persistent() } else { connect };
    if random.below(3) == 0 { connect.will(topic(random), "will", random.below(3) as u8, true) } else { connect }
}

fn topic(random: &mut Random) -> &'static str {
    ["été/a", "a/b", "日本", "/", "a//b", "$share", "x", "a", "🙂/🙂"][random.below(9)]
}

fn filter(random: &mut Random) -> &'static str {
    let all = [
        "#",
        "a/#",
        "+/b",
        "$share/g/#",
        "$share/h/a/+",
        "日本",
        "été/+",
        "$SYS/#",
        "a/#/b",
        "",
        "+",
        "$share/g",
        "/+",
    ];
    all[random.below(all.len())]
}

fn a_packet(random: &mut Random) -> Vec<u8> {
    let id = random.below(30) as u16;
    let flags = random.below(16) as u8;
    match random.below(9) {
        0..=2 => {
            let len = random.below(2000);
            let payload = random.bytes(len);
            let properties = Properties::new();
            let properties = (random.below(2) == 0).then_some(&properties);
            publish(topic(random).as_bytes(), &payload, flags, (flags & 6 != 0).then_some(id), properties)
        }
        3 => packet(0x82, &[&id.to_be_bytes(), &binary(filter(random).as_bytes()), &[flags & 3]]),
        4 => packet(0x82, &[&id.to_be_bytes(), &[0], &binary(filter(random).as_bytes()), &[flags]]),
        5 => packet(0xa2, &[&id.to_be_bytes(), &binary(filter(random).as_bytes())]),
        6 => packet([0x40, 0x50, 0x62, 0x70][random.below(4)], &[&id.to_be_bytes()]),
        7 => vec![0xc0, 0],
        _ => {
            let len = random.below(40);
            random.bytes(len)
        }
    }
}

fn one_life(port: u16, random: &mut Random) {
    let Some(mut rascal) = Rascal::new(port) else { return };
    match random.below(10) {
        0 => {
            let noise = random.bytes(100);
            rascal.say(&noise);
        }
        1 => {
            let whole = connect(random).encode();
            rascal.say(&whole[..random.below(whole.len())]);
        }
        2 => rascal.say(&connect(random).encode()),
        _ => {
            rascal.say(&connect(random).encode());
            rascal.listen();
            for _ in 0..random.below(30) {
                let bytes = a_packet(random);
                rascal.say(&bytes);
                if random.below(3) == 0 {
                    rascal.listen();
                }
            }
            if random.below(3) == 0 {
                rascal.say(&[0xe0, 0]);
            }
        }
    }
}

/// Runs two well-behaved clients that must not notice anything. Returns the number of exchanged messages.
fn converse(port: u16, over: &AtomicBool) -> u32 {
    let mut subscriber: Client = Connect::v5("good/subscriber").open(port);
    subscriber.subscribe("good/#", 1);
    let mut publisher = Connect::new("good/publisher").open(port);
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        publisher.publish("good/topic", count.to_string(), 1, false);
        assert_eq!(subscriber.receive().text(), count.to_string());
        count += 1;
    }
    count
}

#[test]
fn sixteen_threads_of_mischief() {
    let mut gateway = Gateway::with("[broker]\nmax_connections = 400\n[log]\nlevel = \"warn\"");
    let port = gateway.port;
    let over = AtomicBool::new(false);
    let exchanged = std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (thread + 1).wrapping_mul(0x2545_f491_4f6c_dd1d));
                let begin = Instant::now();
                while begin.elapsed() < LENGTH {
                    one_life(port, &mut random);
                }
            });
        }
        let conversation = scope.spawn(|| converse(port, &over));
        let begin = Instant::now();
        while begin.elapsed() < LENGTH {
            std::thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
        conversation.join().unwrap()
    });
    assert!(exchanged > 100, "{exchanged} messages");
    let rss = gateway.memory_kib("VmHWM");
    assert!(rss < 150 << 10, "{rss} KiB");
    // The changes of the guests' sessions have to wait in the end. A shared subscription may then have no members to receive
    // messages, and sessions that could not be ended may exceed their limits. Losses of others would still be noticed.
    let theirs = ["shared subscription g/# has lost its oldest messages", "the session of client rascal/"];
    assert_it_serves_but(&mut gateway, &theirs);
}
