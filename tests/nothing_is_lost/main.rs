//! Nothing is lost silently: whatever the network does and however often the gateway is killed, every acknowledged message
//! arrives at the upstream, in order, or is reported as dropped, and the ledger adds up.
//!
//! Publishers send numbers to the real gateway, which forwards them to a real mosquitto through a proxy that breaks
//! connections in every way that occurs in networks. Meanwhile the gateway is killed with SIGKILL again and again, and
//! started with the same disk. `CHAOS_SEED` repeats the random choices of a run, which prints it.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod proxy;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use clients::{Progress, Recorder, start_publisher};
use proxy::{Fault, Proxy};
use support::{Connect, Gateway, Mosquitto, Setup, wait_until};

const PUBLISHERS: usize = 4;
/// The number of messages in flight to the upstream.
const WINDOW: u64 = 100;
/// The number of messages besides those in flight that an upstream may get again after a kill, as the README states it.
const CURSOR_EVERY: u64 = 500;

/// Random choices that can be repeated.
struct Random(u64);

impl Random {
    fn seeded() -> Random {
        let given = std::env::var("CHAOS_SEED").ok().map(|text| text.parse().expect("CHAOS_SEED is a number"));
        let seed = given.unwrap_or_else(|| getrandom::u64().expect("randomness"));
        println!("CHAOS_SEED={seed}");
        Random(seed)
    }

    /// A number below `end` (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

/// The answer of `/api/v1/upstreams` for the only upstream.
#[derive(Clone, Copy, Debug, Default)]
struct Ledger {
    accepted: u64,
    acked: u64,
    unconfirmed: u64,
    expired: u64,
    dropped: u64,
    pending: u64,
}

impl Ledger {
    fn read(http: u16) -> Ledger {
        let answer = support::http::get(http, "/api/v1/upstreams").json();
        let ledger = &answer[0]["ledger"];
        let count = |name: &str| ledger[name].as_u64().expect(name);
        let dropped = ledger["dropped"].as_object().expect("reasons").values();
        Ledger {
            accepted: count("accepted"),
            acked: count("acked"),
            unconfirmed: count("sent_unconfirmed"),
            expired: count("expired"),
            dropped: dropped.map(|count| count.as_u64().unwrap()).sum(),
            pending: count("pending"),
        }
    }

    #[track_caller]
    fn assert_balanced(&self) {
        let ended = self.acked + self.unconfirmed + self.expired + self.dropped + self.pending;
        assert_eq!(self.accepted, ended, "the ledger adds up: {self:?}");
    }
}

/// Breaks the network at random until `is_over` is set.
fn break_network(proxy: &Proxy, seed: u64, is_over: &AtomicBool) {
    let mut random = Random(seed);
    while !is_over.load(SeqCst) {
        std::thread::sleep(random.millis(300));
        let fault = Fault::ALL[random.below(Fault::ALL.len() as u64) as usize];
        let (met, patience) = (proxy.met(fault), Instant::now() + Duration::from_millis(500));
        proxy.set(fault);
        while proxy.met(fault) == met && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(random.millis(150));
        proxy.set(Fault::None);
    }
}

struct Chaos {
    random: Random,
    gateway: Gateway,
    http: u16,
    proxy: Arc<Proxy>,
    progress: Arc<Progress>,
}

impl Chaos {
    /// Kills the gateway at a random point and starts it again. Its figures must then be consistent.
    fn kill(mut self, portion: u32) -> Chaos {
        let acked = || self.progress.acked.load(SeqCst);
        match self.random.below(4) {
            // while it acknowledges messages
            0 => {
                let point = acked() + self.random.below(u64::from(portion) * PUBLISHERS as u64);
                let patience = Instant::now() + Duration::from_secs(1);
                while acked() < point && Instant::now() < patience {
                    std::thread::yield_now();
                }
            }
            // after it has connected again by itself
            1 => {
                let (connections, patience) = (self.proxy.connections(), Instant::now() + Duration::from_secs(3));
                while self.proxy.connections() == connections && Instant::now() < patience {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(self.random.millis(50));
            }
            // while it forwards
            _ => std::thread::sleep(self.random.millis(800)),
        }
        let mut killed = self.gateway.kill();
        let acked = self.progress.acked.load(SeqCst);
        self.progress.limit.fetch_add(portion, SeqCst);
        if self.random.below(5) == 0 {
            killed = killed.start_and_kill(self.random.millis(60));
        }
        self.gateway = killed.restart();
        let mut ledger = Ledger::default();
        wait_until("the restarted gateway knows of all that it had acknowledged", || {
            ledger = Ledger::read(self.http);
            ledger.accepted >= acked
        });
        ledger.assert_balanced();
        self
    }
}

/// Checks the messages that arrived. If `is_strict`, the first copies of each publisher's numbers must be in order. Returns
/// how many numbers are missing. If the journal is too small, the first of two copies of a publisher may be dropped in
/// part.
fn missing(received: &[(usize, u32)], count: u32, is_strict: bool) -> u64 {
    let mut missing = 0;
    for name in 0..PUBLISHERS {
        let mut seen = HashSet::new();
        let mut newest = None;
        for (_, number) in received.iter().filter(|(from, _)| *from == name) {
            if seen.insert(*number) {
                assert!(
                    !is_strict || newest < Some(*number),
                    "publisher {name}: {number} came for the first time after {newest:?}"
                );
                newest = Some(*number);
            }
        }
        missing += u64::from(count) - seen.len() as u64;
    }
    missing
}

/// The result of a run.
struct Outcome {
    ledger: Ledger,
    /// The number of acknowledged messages that did not arrive.
    missing: u64,
    gateway: Gateway,
    http: u16,
    proxy: Arc<Proxy>,
    /// The upstream.
    mosquitto: Mosquitto,
}

/// Sends this number of messages with this number of kills. `journal` is the configuration of the journal. The upstream is
/// started only after a number of messages is acknowledged.
fn chaos(messages: u32, kills: u32, journal: &str, outage: u64) -> Outcome {
    let begin = Instant::now();
    let mut random = Random::seeded();
    let mosquitto = Mosquitto::with("max_queued_messages 0\nmax_inflight_messages 100");
    let recorder = Recorder::start(mosquitto.port);
    let proxy = Arc::new(Proxy::start(mosquitto.port));
    let config = format!(
        "{journal}[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\nmax_inflight = {WINDOW}\nkeep_alive = \"5 s\"\nconnect_timeout = \"5 s\"\n\
         [[upstream.out]]\ntopic_filter = \"up/#\"\n",
        proxy.port
    );
    let (setup, http) = Setup::default().config(&config).http();
    let gateway = setup.start();
    let count = messages / PUBLISHERS as u32;
    let progress = Arc::<Progress>::default();
    let portion = count / (kills + 1) + 1;
    progress.limit.store(portion, SeqCst);
    let port = gateway.port;
    let publishers: Vec<_> = (0..PUBLISHERS).map(|name| start_publisher(name, port, count, progress.clone())).collect();
    let is_over = Arc::<AtomicBool>::default();
    let (breaking, over, seed) = (proxy.clone(), is_over.clone(), random.below(u64::MAX));
    let acked = progress.clone();
    let breaker = std::thread::spawn(move || {
        breaking.set(Fault::Fin);
        while acked.acked.load(SeqCst) < outage {
            std::thread::sleep(Duration::from_millis(1));
        }
        breaking.set(Fault::None);
        break_network(&breaking, seed, &over);
    });

    let mut chaos = Chaos { random, gateway, http, proxy: proxy.clone(), progress: progress.clone() };
    for _ in 0..kills {
        chaos = chaos.kill(portion);
    }
    for publisher in publishers {
        publisher.join().expect("a publisher");
    }
    is_over.store(true, SeqCst);
    breaker.join().expect("the network");
    let published = begin.elapsed();
    assert_eq!(progress.acked.load(SeqCst), u64::from(count) * PUBLISHERS as u64);
    let mut last = (0, Instant::now());
    while Ledger::read(http).pending > 0 {
        let count = recorder.count();
        if count > last.0 {
            last = (count, Instant::now());
        }
        assert!(last.1.elapsed() < Duration::from_secs(60), "it forwards no more: {:?}", Ledger::read(http));
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = Ledger::read(http).accepted;
    let mut closing = Connect::new("closing").open(port);
    closing.publish("up/end", "", 1, false);
    wait_until("the last message", || recorder.is_over());
    let mut ledger = Ledger::default();
    wait_until("the last acknowledgement", || {
        ledger = Ledger::read(http);
        ledger.pending == 0 && ledger.accepted > before
    });
    ledger.assert_balanced();

    let received = recorder.received();
    let missing = missing(&received, count, journal.is_empty());
    let distinct = u64::from(count) * PUBLISHERS as u64 - missing;
    let (resent, connections) = (progress.resent.load(SeqCst), proxy.connections() as u64);
    let again = received.len() as u64 - distinct;
    println!(
        "{messages} messages, {kills} kills, {connections} connections, {} MiB forwarded; published in {published:?}, \
         all in {:?}; {} received, {again} of them again ({resent} sent again by publishers), {missing} missing; {ledger:?}",
        proxy.forwarded() >> 20,
        begin.elapsed(),
        received.len(),
    );
    let most = resent + u64::from(kills) * (CURSOR_EVERY + WINDOW) + connections * WINDOW;
    assert!(again <= most, "{again} came again, {most} at most: {resent} {connections}");
    let accepted = u64::from(count) * PUBLISHERS as u64 + 1;
    assert!((accepted..=accepted + resent).contains(&ledger.accepted), "{accepted} {resent} {ledger:?}");
    println!("{:?}", Fault::ALL.map(|fault| (fault, proxy.met(fault))));
    Outcome { ledger, missing, gateway: chaos.gateway, http, proxy, mosquitto }
}

#[test]
fn every_acknowledged_message_arrives() {
    let Outcome { ledger, missing, gateway, http, proxy, mosquitto: _upstream } = chaos(100_000, 50, "", 0);
    assert_eq!((missing, ledger.dropped), (0, 0), "{ledger:?}");
    for fault in Fault::ALL {
        assert!(proxy.met(fault) > 0, "{fault:?} met nothing");
    }
    // the gateway notices that a link has died silently, and sends its messages again; a gateway that was just started does
    // not wait long before it connects again
    let connections = proxy.connections();
    let gateway = gateway.kill().restart();
    wait_until("it is connected", || support::http::get(http, "/api/v1/upstreams").json()[0]["state"] == "connected");
    proxy.set(Fault::HalfOpen);
    Connect::new("late").open(gateway.port).publish("up/0", "0", 1, false);
    wait_until("the gateway gives the link up", || proxy.connections() > connections + 1);
    proxy.set(Fault::None);
    wait_until("the last message is acknowledged", || Ledger::read(http).acked == ledger.acked + 1);
    Ledger::read(http).assert_balanced();
}

#[test]
fn every_acknowledged_message_arrives_where_new_ones_pass() {
    let Outcome { ledger, missing, .. } = chaos(20_000, 10, "[journal]\norder = \"live_first\"\n", 6_000);
    assert_eq!((missing, ledger.dropped), (0, 0), "{ledger:?}");
}

#[test]
fn what_a_small_journal_gives_up_is_reported() {
    let Outcome { ledger, missing, .. } = chaos(20_000, 10, "[journal]\nmax_size = \"1 MiB\"\n", 12_000);
    assert!(missing > 0, "the journal was to be too small: {ledger:?}");
    assert!(missing <= ledger.dropped, "{missing} did not arrive, and reported are only {ledger:?}");
}
