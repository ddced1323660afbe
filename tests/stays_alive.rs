//! A gateway that was stopped, gets too little processor time, or has readers that do not read is not mistaken for one that
//! hangs.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::packet::publish;
use support::{Client, Connect, Gateway, Process, Setup, wait_until};

/// A gateway with a watchdog of this time, and the messages that systemd gets from it.
fn watched(watchdog: Duration) -> (Gateway, UnixDatagram) {
    let setup = Setup::default();
    let path = setup.dir().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let setup = setup
        .environment("NOTIFY_SOCKET", path.to_str().unwrap())
        .environment("WATCHDOG_USEC", &watchdog.as_micros().to_string());
    (setup.start(), systemd)
}

/// How often the gateway has informed the watchdog since the last call.
fn feedings(systemd: &UnixDatagram) -> usize {
    let mut buffer = [0; 512];
    let mut count = 0;
    while let Ok(length) = systemd.recv(&mut buffer) {
        count += usize::from(buffer[..length].starts_with(b"WATCHDOG=1"));
    }
    count
}

fn assert_unharmed(gateway: &mut Gateway) {
    assert!(gateway.is_running(), "{:#?}", gateway.log());
    let log = gateway.log();
    assert!(!log.iter().any(|line| line.contains("does not answer") || line.contains("ERROR")), "{log:#?}");
}

/// Publishes this many messages a second until it is told to stop.
fn publish_steadily(mut publisher: Client, topic: &str, per_second: usize, over: &AtomicBool) {
    let burst = publish(topic.as_bytes(), &[b'x'; 100], 0, None, None).repeat(per_second / 100);
    let begin = Instant::now();
    for number in 1.. {
        if over.load(Ordering::Relaxed) || !publisher.try_send(&burst) {
            return;
        }
        let due = begin + Duration::from_millis(10 * number);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn stopped_again_and_again_it_goes_on_where_it_was() {
    let (mut gateway, systemd) = watched(Duration::from_secs(6));
    let mut reader = Connect::new("reader").keep_alive(5).open(gateway.port);
    reader.subscribe("a/#", 1);
    let mut publisher = Connect::new("publisher").keep_alive(5).open(gateway.port);
    for round in 0..3 {
        publisher.publish("a/b", "before", 1, false);
        assert_eq!(reader.receive().text(), "before");
        feedings(&systemd);
        gateway.signal(Signal::STOP);
        // the clients continue meanwhile; this is longer than their keep alive allows, and than the router may take to
        // answer
        std::thread::sleep(Duration::from_secs(if round == 2 { 2 } else { 12 }));
        for client in [&mut reader, &mut publisher] {
            client.send(&[0xc0, 0]);
        }
        gateway.signal(Signal::CONT);
        for client in [&mut reader, &mut publisher] {
            client.expect(13);
        }
        let mut fed = 0;
        wait_until("the watchdog is fed", || {
            fed += feedings(&systemd);
            fed > 0
        });
        assert!(fed <= 2, "{fed} times at once");
    }
    assert_unharmed(&mut gateway);
    assert_eq!(gateway.stop().0, Some(0));
}

#[test]
fn readers_that_do_not_read_do_not_end_it() {
    let (mut gateway, systemd) = watched(Duration::from_secs(4));
    let over = AtomicBool::new(false);
    let stuck: Vec<Client> = [1024, 8 << 10, 64 << 10, 1 << 20]
        .into_iter()
        .map(|buffer| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(buffer).unwrap();
            socket.connect(&gateway.address().into()).unwrap();
            let mut client = Connect::new(&format!("stuck-{buffer}")).open_patiently(socket.into());
            client.subscribe("flood", 0);
            client
        })
        .collect();
    let publisher = Connect::new("publisher").open(gateway.port);
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| publish_steadily(publisher, "flood", 2000, &over));
        let begin = Instant::now();
        let mut last_fed = begin;
        while begin.elapsed() < Duration::from_secs(20) && gateway.is_running() {
            if feedings(&systemd) > 0 {
                last_fed = Instant::now();
            }
            longest = longest.max(last_fed.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(longest < Duration::from_secs(4), "the watchdog was not fed for {longest:?}");
    assert_unharmed(&mut gateway);
    drop(stuck);
}

/// Limits a process to a twentieth of one processor.
enum Starved {
    /// The limit is set by the control group in this directory.
    Group(PathBuf),
    /// The process is stopped most of the time.
    Stopped,
}

impl Starved {
    fn new(process: &Process) -> Starved {
        let name = format!("pigateway-test-{}", process.pid());
        for (root, quota) in [("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")] {
            let group = PathBuf::from(root).join(&name);
            let limit = if quota == "cpu.max" { "5000 100000" } else { "5000" };
            let is_limited = fs::create_dir(&group).is_ok()
                && fs::write(group.join(quota), limit).is_ok()
                && fs::write(group.join("cgroup.procs"), process.pid().to_string()).is_ok();
            if is_limited {
                return Starved::Group(group);
            }
            let _ = fs::remove_dir(&group);
        }
        Starved::Stopped
    }

    /// Lets the process run for a twentieth of this time.
    fn run(&self, process: &Process, time: Duration) {
        match self {
            Starved::Group(_) => std::thread::sleep(time),
            Starved::Stopped => {
                let end = Instant::now() + time;
                while Instant::now() < end {
                    process.signal(Signal::STOP);
                    std::thread::sleep(Duration::from_millis(95));
                    process.signal(Signal::CONT);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        if let Starved::Group(group) = self {
            // empty once the process has ended
            let _ = fs::remove_dir(group);
        }
    }
}

#[test]
fn starved_of_processor_time_it_is_slow_and_lives() {
    const TIME: Duration = Duration::from_secs(30);
    let (mut gateway, systemd) = watched(Duration::from_secs(10));
    let mut readers: Vec<Client> = (0..4).map(|n| Connect::new(&format!("r{n}")).open(gateway.port)).collect();
    for reader in &mut readers {
        reader.subscribe("#", 0);
    }
    let publishers: Vec<Client> = (0..4).map(|n| Connect::new(&format!("p{n}")).open(gateway.port)).collect();
    let starved = Starved::new(&gateway);
    let over = AtomicBool::new(false);
    let (mut fed, mut longest) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        for publisher in publishers {
            scope.spawn(|| publish_steadily(publisher, "flood", 5000, &over));
        }
        let begin = Instant::now();
        let mut last_fed = begin;
        while begin.elapsed() < TIME && gateway.is_running() {
            starved.run(&gateway, Duration::from_millis(200));
            let now_fed = feedings(&systemd);
            if now_fed > 0 {
                last_fed = Instant::now();
            }
            fed += now_fed;
            longest = longest.max(last_fed.elapsed());
        }
        over.store(true, Ordering::Relaxed);
        // the gateway works again at once when the limit ends
        if let Starved::Group(group) = &starved {
            let root = group.parent().unwrap().join("cgroup.procs");
            fs::write(root, gateway.pid().to_string()).unwrap();
        }
        drop(readers);
    });
    assert!(fed > 0 && longest < Duration::from_secs(10), "fed {fed} times, once not for {longest:?}");
    assert_unharmed(&mut gateway);
    Connect::new("after").open(gateway.port).ping();
    gateway.kill();
    drop(starved);
}
