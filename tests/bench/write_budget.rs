//! The number of bytes that reach the disk for a message that must not be lost: with the gateway, with mosquitto that saves
//! once a second, and with SQLite and a transaction per message.
//!
//! A subscriber with a persistent session is away, and a publisher sends messages of 200 bytes at QoS 1 and a steady rate.
//! Two figures are shown per message. The first is the number of bytes that the process has written (`write_bytes` of
//! /proc/PID/io, which counts changed pages, or whole folios if the kernel keeps files in large ones). The second is the
//! number of bytes that the disk of the temporary directory has written (/sys/dev/block/*/stat), including the file
//! system's own journal and all other writes to that disk, so `TMPDIR` should be on a separate loop device. The ratio
//! compares the disk's bytes with the gateway's.
//!
//! `BENCH_SECONDS` (10) is the length of each measurement, and `BENCH_RATES` (`1,10,100,0`) are the messages per second,
//! where 0 stands for bursts of 100 once a second.

#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::packet::publish;
use support::{Client, Connect, Gateway, Process};

const SQLITE: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('pragma journal_mode=wal')
db.execute('pragma synchronous=full')
db.execute('create table if not exists queue(id integer primary key, message blob)')
for line in sys.stdin:
    db.execute('begin')
    for _ in range(int(line)):
        db.execute('insert into queue(message) values(?)', (b'x' * 200,))
    db.execute('commit')
    print('ok', flush=True)
";

fn main() {
    let setting = |name: &str, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.into());
    let seconds: u64 = setting("BENCH_SECONDS", "10").parse().expect("BENCH_SECONDS is a number");
    let rates = setting("BENCH_RATES", "1,10,100,0");
    println!("{:<12}{:>28}{:>28}{:>28}", "bytes/message", "pigateway", "mosquitto, every second", "SQLite, WAL, full");
    println!("{:<12}{}", "messages/s", format!("{:>11}{:>11}{:>6}", "process", "disk", "").repeat(3));
    for rate in rates.split(',').map(|rate| rate.trim().parse::<u64>().expect("BENCH_RATES are numbers")) {
        let (burst, pause) = match rate {
            0 => (100, Duration::from_secs(1)),
            rate => (1, Duration::from_secs(1) / rate as u32),
        };
        let mut row = if rate == 0 { format!("{:<12}", "100 at once") } else { format!("{rate:<12}") };
        let mut ours = None;
        for measure in [gateway, mosquitto, sqlite] {
            let (process, disk) = measure(burst, pause, Duration::from_secs(seconds));
            let ratio = disk as f64 / *ours.get_or_insert(disk.max(1)) as f64;
            row.push_str(&format!("{process:>11}{disk:>11}{ratio:>5.1}x"));
        }
        println!("{row}");
    }
}

/// The number of bytes that a process has written.
fn written(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("/proc/PID/io");
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).expect("write_bytes")
}

/// The number of bytes that the disk of the temporary directory has written.
fn taken() -> u64 {
    let device = std::fs::metadata(std::env::temp_dir()).expect("the temporary directory").dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap_or_default();
    stat.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or(0) * 512
}

/// Lets `send` send this number of messages every `pause`. Returns the bytes per message of the process and of the disk.
fn measure(pid: u32, burst: u64, pause: Duration, time: Duration, mut send: impl FnMut(u64)) -> (u64, u64) {
    // files that are made only once are not counted
    send(burst);
    std::thread::sleep(Duration::from_secs(2));
    let before = (written(pid), taken());
    let (begin, mut messages) = (Instant::now(), 0);
    while begin.elapsed() < time {
        send(burst);
        messages += burst;
        std::thread::sleep(
            pause.saturating_sub(begin.elapsed().saturating_sub(pause * (messages / burst) as u32 - pause)),
        );
    }
    // late writes are counted
    std::thread::sleep(Duration::from_millis(1500));
    ((written(pid) - before.0) / messages, (taken() - before.1) / messages)
}

fn through(port: u16, pid: u32, burst: u64, pause: Duration, time: Duration) -> (u64, u64) {
    let mut sleeper = Connect::new("sleeper").persistent().open(port);
    sleeper.subscribe("news", 1);
    sleeper.disconnect();
    let mut publisher: Client = Connect::new("publisher").open(port);
    measure(pid, burst, pause, time, |count| {
        let packets: Vec<u8> =
            (1..=count).flat_map(|id| publish(b"news", &[b'x'; 200], 0x32, Some(id as u16), None)).collect();
        publisher.send(&packets);
        (0..count).for_each(|_| drop(publisher.expect(4)));
    })
}

fn gateway(burst: u64, pause: Duration, time: Duration) -> (u64, u64) {
    let gateway = Gateway::with("[broker]\nmax_queued_messages = 1000000\n");
    through(gateway.port, gateway.pid(), burst, pause, time)
}

fn mosquitto(burst: u64, pause: Duration, time: Duration) -> (u64, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    // mosquitto drops its privileges when it is started as root
    let path: PathBuf = dir.path().join("mosquitto.conf");
    let port = support::free_port();
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\nautosave_interval 1\n\
         max_queued_messages 0\nuser root\n",
        dir.path().display()
    );
    std::fs::write(&path, text).expect("the configuration");
    let mut process = Process::start(Command::new("/usr/sbin/mosquitto").arg("-c").arg(path));
    support::broker::wait_until_served(&mut process, port);
    through(port, process.pid(), burst, pause, time)
}

fn sqlite(burst: u64, pause: Duration, time: Duration) -> (u64, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let path: &Path = &dir.path().join("queue.db");
    let mut child = Command::new("python3")
        .args(["-c", SQLITE])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let (mut input, output) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let result = measure(child.id(), burst, pause, time, |count| {
        writeln!(input, "{count}").expect("SQLite takes messages");
        lines.next().expect("an answer").expect("an answer");
    });
    drop(input);
    child.wait().expect("the end of SQLite");
    result
}
