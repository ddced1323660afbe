//! The gateway always starts. Whatever a power cut, a worn card or a person has done to any file in the data directory, the
//! gateway serves, reports what it found, and uses the rest.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pigateway::journal::settings::JournalSettings;
use pigateway::journal::storage::file::FileStorage;
use pigateway::journal::{Journal, Limits, Position, WhenFull};
use pigateway::message::{Draft, Message, Qos};
use pigateway::time::SystemClock;
use rustix::fs::Mode;
use support::broker::wait_until_served;
use support::{Connect, Gateway, Setup, contents, wait_until};

const UPSTREAM: &str =
    "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n";
const SENSOR: &str = "[[sensor]]\nname = \"loft-motion\"\npin = 17\ntopic = \"loft/motion1\"\nwarm_up = \"0 s\"\nhold = \"100 ms\"\n\
                      simulate = [\"200 ms off\", \"200 ms on\"]\n";

/// Every file below a directory.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => drop(found.insert(entry.path(), fs::read(entry.path()).unwrap())),
        }
    }
    found
}

/// What is in the place of a file.
enum Damage {
    Nothing,
    Bytes(Vec<u8>),
    /// A directory with something in it.
    Directory,
    /// A FIFO, at which readers and writers wait for each other.
    Fifo,
}

impl Damage {
    fn put(&self, path: &Path) {
        fs::remove_file(path).unwrap();
        match self {
            Damage::Nothing => {}
            Damage::Bytes(bytes) => fs::write(path, bytes).unwrap(),
            Damage::Directory => fs::create_dir_all(path.join("inside")).unwrap(),
            Damage::Fifo => {
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
        }
    }
}

fn damages(contents: &[u8]) -> Vec<(&'static str, Damage)> {
    let used = contents.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = contents.to_vec();
        change(&mut bytes);
        Damage::Bytes(bytes)
    };
    let flip = |at: usize| {
        changed(&|bytes| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x10;
            }
        })
    };
    vec![
        ("removed", Damage::Nothing),
        ("empty", Damage::Bytes(Vec::new())),
        ("cut in the middle", Damage::Bytes(contents[..contents.len() / 2].to_vec())),
        ("cut behind the header", Damage::Bytes(contents[..contents.len().min(8192)].to_vec())),
        ("NUL all over", Damage::Bytes(vec![0; contents.len()])),
        ("a NUL page first", changed(&|bytes| bytes.iter_mut().take(4096).for_each(|byte| *byte = 0))),
        (
            "a NUL page in the middle",
            changed(&|bytes| bytes.iter_mut().skip(used / 2).take(4096).for_each(|byte| *byte = 0)),
        ),
        (
            "noise all over",
            changed(&|bytes| bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 151) as u8)),
        ),
        ("a bit first", flip(3)),
        ("a bit in the middle", flip(used / 2)),
        ("a bit at the end", flip(used)),
        ("twice as long", changed(&|bytes| bytes.extend_from_slice(contents))),
        ("a directory", Damage::Directory),
        ("a FIFO", Damage::Fifo),
    ]
}

#[test]
fn any_file_of_the_data_directory_may_be_damaged() {
    let config = format!("[journal]\nmax_size = \"1 MiB\"\n[broker]\nmax_packet_size = \"16 KiB\"\n{UPSTREAM}{SENSOR}");
    let (setup, http) = Setup::default().config(&config).http();
    let gateway = setup.start();
    let mut client = Connect::new("client").open(gateway.port);
    let mut sleeper = Connect::new("sleeper").persistent().open(gateway.port);
    sleeper.subscribe("news", 1);
    sleeper.disconnect();
    for number in 0..40 {
        client.publish("up/x", [b'x'; 10_000], 1, false);
        client.publish("news", format!("{number}"), 1, false);
        client.publish("kept", format!("{number}"), 1, true);
    }
    let sensors = || support::http::get(http, "/api/v1/sensors/loft-motion/events?limit=5");
    wait_until("the sensor has a past", || sensors().text().contains("\"on\""));
    let mut killed = gateway.kill();
    let data = killed.dir().join("data");
    let whole = files(&data);
    let names: Vec<String> = whole.keys().map(|path| path.file_name().unwrap().to_string_lossy().into()).collect();
    for name in ["lock", "snapshot", "00000000.segment", "loft-motion.jsonl"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    let mut starts = 0;
    // only the first and the last segment are damaged
    let segments = names.iter().filter(|name| name.ends_with(".segment")).count();
    let is_of_interest = |at: usize| !names[at].ends_with(".segment") || at % (segments - 1).max(1) < 2;
    for (at, (path, contents)) in whole.iter().enumerate().filter(|(at, _)| is_of_interest(*at)) {
        for (what, damaged) in damages(contents) {
            fs::remove_dir_all(&data).unwrap();
            for (path, contents) in &whole {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, contents).unwrap();
            }
            damaged.put(path);
            let gateway = killed.restart();
            let what = format!("{} {what}", names[at]);
            it_works(&gateway, http, &what);
            killed = gateway.kill();
            starts += 1;
        }
    }
    println!("{starts} starts with a damaged file");
}

fn it_works(gateway: &Gateway, http: u16, what: &str) {
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("local", 1);
    client.publish("local", "x", 1, false);
    assert_eq!(client.publish("kept", "new", 1, true), 0, "{what}");
    assert_eq!(contents(&client.drain()), [("local", "x".into())], "{what}");
    for target in ["/readyz", "/api/v1/sensors/loft-motion/events?limit=5", "/api/v1/upstreams"] {
        let answer = support::http::get(http, target);
        assert_eq!(answer.status, 200, "{what}: {target}: {}", answer.text());
    }
    let log = gateway.log();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{what}: {log:?}");
}

/// Makes a journal of a quarter of a gigabyte, and returns the number of its messages.
fn store_256_mib(dir: &Path) -> u64 {
    let clock = Arc::new(SystemClock);
    let settings = JournalSettings { max_size: 256 << 20, ..JournalSettings::default() };
    let journal = Journal::open(Arc::new(FileStorage::new(dir)), settings, clock).unwrap();
    let limits = Limits { messages: usize::MAX, bytes: usize::MAX, when_full: WhenFull::DropOldest };
    let id = journal.register("upstream/home", limits);
    let payload = [b'x'; 4000];
    let draft = Draft { qos: Qos::AtLeastOnce, boot_ms: 1, ..Draft::new("up/x", &payload) };
    let (mut count, mut last) = (0, Position::default());
    while count * 4100 < 240 << 20 {
        match journal.append(&Message::new(&draft), &[id]) {
            Ok(position) => (count, last) = (count + 1, position),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    wait_until("all is on disk", || *journal.synced().borrow() >= last);
    count
}

#[test]
fn with_256_mib_stored_it_serves_at_once_and_checks_the_rest_behind() {
    let (setup, http) = Setup::default().config(UPSTREAM).http();
    let dir = setup.dir().join("data/journal");
    let count = store_256_mib(&dir);
    let first = dir.join("00000000.segment");
    let mut bytes = fs::read(&first).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&first, bytes).unwrap();
    let stored: u64 = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.metadata().unwrap().len()).sum();
    let begin = Instant::now();
    let mut gateway = setup.spawn();
    wait_until_served(&mut gateway, setup.port_number());
    println!("{} MiB stored, served after {:?}", stored >> 20, begin.elapsed());
    let pending = || support::http::get(http, "/api/v1/upstreams").json()[0]["ledger"]["pending"].as_u64();
    wait_until("what waits is known", || pending() == Some(count));
    // damage in segments that were not read at the start is found later
    gateway.wait_for_line("00000000.segment: damaged in 1 places");
    let journal = support::http::get(http, "/api/v1/gateway").json()["journal"].take();
    assert_eq!(journal["damaged"], 1, "{journal}");
    assert!(journal["used_bytes"].as_u64() > Some(240 << 20), "{journal}");
}
