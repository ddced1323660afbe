//! The cost of a single message when there are few messages, as in a home: the number of allocations, and how often threads
//! of the gateway are woken. Both are counted and not timed, so that a busy machine changes them little. The gateway runs
//! within this process, whose allocator counts. The clients use prepared bytes and allocate nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::System;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use clap::Parser;
use pigateway::cli::Cli;
use rustix::process::{Signal, getpid, kill_process};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::{ReadSome, Setup, wait_until, wire};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The number of messages of one measurement. The lowest of several measurements is used, so that periodic work of the
/// gateway does not count.
const MESSAGES: usize = 200;
const LOOKS: usize = 5;

/// The greatest cost of a message on each way. The speed of the client and the load of the machine decide which steps are
/// made together, with one buffer, and whether a thread sleeps between two of them. The limits for live messages leave room
/// for that. The journal's thread waits for the disk several times.
const WAYS: [(&str, Way, Cost); 6] = [
    ("live, QoS 0", |port| live(port, 0, 1), Cost { allocations: 250, wakes: 300 }),
    ("live, QoS 1", |port| live(port, 1, 1), Cost { allocations: 500, wakes: 500 }),
    ("live, QoS 2", |port| live(port, 2, 1), Cost { allocations: 600, wakes: 700 }),
    ("live, QoS 1, to five", |port| live(port, 1, 5), Cost { allocations: 1000, wakes: 1200 }),
    ("to a persistent session, QoS 1", persistent, Cost { allocations: 500, wakes: 1200 }),
    ("to an upstream, QoS 1", forwarded, Cost { allocations: 1300, wakes: 1400 }),
];
type Way = fn(u16) -> Box<dyn FnMut()>;

/// The cost of one message, in hundredths.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    allocations: u64,
    wakes: u64,
}

#[test]
fn a_message_costs_no_more_than_its_budget() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = upstream.local_addr().unwrap();
    UPSTREAM.set(upstream).unwrap();
    let setup = Setup::default().config(&format!(
        // it is connected from the start, gets its answer when its turn comes, and sends no ping meanwhile
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://{address}\"]\nprotocol = 4\nconnect_timeout = \"10 min\"\n\
         keep_alive = \"1 h\"\n\
         [[upstream.out]]\ntopic_filter = \"up/#\"\n"
    ));
    let (path, port) = (setup.write(), setup.port_number());
    let cli = Cli::parse_from(["pigateway".as_ref(), "run".as_ref(), "--config".as_ref(), path.as_os_str()]);
    let gateway = thread::spawn(move || cli.execute().map_err(|error| error.to_string()));
    wait_until("it serves", || support::broker::is_served(port));

    let mut too_dear = Vec::new();
    for (what, way, budget) in WAYS {
        let mut message = way(port);
        (0..MESSAGES).for_each(|_| message());
        let looks = (0..LOOKS).map(|_| look(&mut message)).collect::<Vec<_>>();
        let allocations = looks.iter().map(|cost| cost.allocations).min().unwrap();
        let wakes = looks.iter().map(|cost| cost.wakes).min().unwrap();
        println!("{what}: {allocations} hundredths of an allocation and {wakes} of a wake-up a message");
        if allocations > budget.allocations || wakes > budget.wakes {
            too_dear.push(what);
        }
    }
    assert!(too_dear.is_empty(), "dearer than their budget: {too_dear:?}");
    kill_process(getpid(), Signal::TERM).unwrap();
    assert_eq!(gateway.join().unwrap(), Ok(()));
}

fn look(message: &mut dyn FnMut()) -> Cost {
    let (allocations, wakes) = (COUNTED.stats(), waits());
    (0..MESSAGES).for_each(|_| message());
    let (allocated, waited) = (COUNTED.stats(), waits());
    let fresh = |stats: stats_alloc::Stats| stats.allocations + stats.reallocations;
    Cost {
        allocations: (fresh(allocated) - fresh(allocations)) as u64 * 100 / MESSAGES as u64,
        wakes: (waited - wakes) * 100 / MESSAGES as u64,
    }
}

/// How often the threads of the gateway have waited, which is how often they were woken. The threads of this test do not
/// count.
fn waits() -> u64 {
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let own = field(&own, "Pid:");
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let count = |text: String| -> u64 {
        if field(&text, "Pid:") == own { 0 } else { field(&text, "voluntary_ctxt_switches:").parse().unwrap_or(0) }
    };
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).map(count).sum()
}

/// A connection whose packets have known lengths.
struct Raw(TcpStream);

impl Raw {
    fn connect(port: u16, packet: &[u8]) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        let mut raw = Raw(stream);
        raw.say(packet);
        assert_eq!(raw.hear::<4>()[3], 0);
        raw
    }

    fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn hear<const LENGTH: usize>(&mut self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Receives a PUBLISH, which always has the same length, and acknowledges it.
    fn take(&mut self, qos: u8) {
        let mut packet = [0; LENGTH];
        let length = if qos == 0 { LENGTH - 2 } else { LENGTH };
        self.0.read_exact(&mut packet[..length]).unwrap();
        assert_eq!(packet[0] & !8, 0x30 | qos << 1);
        let [high, low] = [packet[ID_AT], packet[ID_AT + 1]];
        match qos {
            0 => {}
            1 => self.say(&[0x40, 2, high, low]),
            _ => {
                self.say(&[0x50, 2, high, low]);
                assert_eq!(self.hear::<4>(), [0x62, 2, high, low]);
                self.say(&[0x70, 2, high, low]);
            }
        }
    }

    fn publish(&mut self, packet: &[u8], qos: u8) {
        self.say(packet);
        match qos {
            0 => {}
            1 => assert_eq!(self.hear::<4>()[0], 0x40),
            _ => {
                assert_eq!(self.hear::<4>(), [0x50, 2, 0, 1]);
                self.say(&[0x62, 2, 0, 1]);
                assert_eq!(self.hear::<4>(), [0x70, 2, 0, 1]);
            }
        }
    }
}

/// The length of a PUBLISH at QoS 1 with a topic of seven characters and a payload of 40 bytes.
const LENGTH: usize = 2 + 2 + 7 + 2 + 40;
const ID_AT: usize = 2 + 2 + 7;

fn packet(topic: &str, qos: u8) -> Vec<u8> {
    assert_eq!(topic.len(), 7);
    let mut template = wire::publish(topic, qos, 40).bytes;
    if qos > 0 {
        template[ID_AT..ID_AT + 2].copy_from_slice(&[0, 1]);
    }
    template
}

fn subscriber(port: u16, connect: &[u8], filter: &str, qos: u8) -> Raw {
    let mut raw = Raw::connect(port, connect);
    raw.say(&wire::subscribe(filter, qos));
    assert_eq!(raw.hear::<5>()[4], qos);
    raw
}

fn live(port: u16, qos: u8, readers: usize) -> Box<dyn FnMut()> {
    let open = |at| subscriber(port, &wire::connect(&format!("live-{qos}-{readers}-{at}")), "live/+", qos);
    let mut readers: Vec<Raw> = (0..readers).map(open).collect();
    let mut publisher = Raw::connect(port, &wire::connect(&format!("publisher-{qos}-{}", readers.len())));
    let packet = packet("live/xx", qos);
    Box::new(move || {
        publisher.publish(&packet, qos);
        readers.iter_mut().for_each(|reader| reader.take(qos));
    })
}

fn persistent(port: u16) -> Box<dyn FnMut()> {
    let mut connect = wire::connect("keeper");
    connect[9] = 0;
    let mut reader = subscriber(port, &connect, "kept/+", 1);
    let mut publisher = Raw::connect(port, &wire::connect("publisher-kept"));
    let packet = packet("kept/xx", 1);
    Box::new(move || {
        publisher.publish(&packet, 1);
        reader.take(1);
    })
}

/// The upstream, which this test plays.
static UPSTREAM: std::sync::OnceLock<TcpListener> = std::sync::OnceLock::new();

fn forwarded(port: u16) -> Box<dyn FnMut()> {
    let (stream, _) = UPSTREAM.get().unwrap().accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut upstream = Raw(stream);
    let mut connect = [0; 1024];
    assert!(upstream.0.read_some(&mut connect).unwrap() > 10);
    upstream.say(&[0x20, 2, 0, 0]);
    let mut publisher = Raw::connect(port, &wire::connect("publisher-up"));
    let packet = packet("up/seve", 1);
    Box::new(move || {
        publisher.publish(&packet, 1);
        upstream.take(1);
    })
}
