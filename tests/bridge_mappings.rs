//! Checks that the table of topic mappings that the forwarding rules are tested with agrees with mosquitto's bridge: every
//! row is tried with two real mosquittos.

#![allow(clippy::unwrap_used, reason = "clippy knows only the functions marked as tests")]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Mapping {
    direction: String,
    filter: String,
    local_prefix: String,
    remote_prefix: String,
    topic: String,
    to: Option<String>,
}

#[derive(Deserialize)]
struct Table {
    mapping: Vec<Mapping>,
}

/// A process that ends when this value is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mosquitto(config: &Path, text: &str, port: u16) -> Process {
    std::fs::write(config, text).unwrap();
    let mut command = Command::new("/usr/sbin/mosquitto");
    let child = command.arg("-c").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut broker = Process(child);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(broker.0.try_wait().unwrap().is_none(), "mosquitto does not start with {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
    broker
}

fn publish(port: u16, topic: &str, payload: &str) {
    let port = port.to_string();
    let done = Command::new("mosquitto_pub").args(["-p", &port, "-q", "1", "-t", topic, "-m", payload]).status();
    assert!(done.unwrap().success());
}

/// Collects all messages that are published at this port, as topic and payload.
fn subscribe(port: u16) -> (Process, Receiver<(String, String)>) {
    let port = port.to_string();
    let mut command = Command::new("mosquitto_sub");
    command.args(["-p", &port, "-q", "1", "-t", "#", "-F", "%t %p"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let (topic, payload) = line.rsplit_once(' ').unwrap();
            if sender.send((topic.to_owned(), payload.to_owned())).is_err() {
                return;
            }
        }
    });
    (Process(child), receiver)
}

fn next(messages: &Receiver<(String, String)>, payload: &str) -> Option<String> {
    loop {
        let (topic, found) = messages.recv_timeout(Duration::from_secs(20)).expect("a message");
        match found.as_str() {
            found if found == payload => return Some(topic),
            "end" => return None,
            _ => {}
        }
    }
}

/// The topic to which mosquitto maps the topic of a row.
fn bridged(row: &Mapping, ports: &Mutex<Vec<u16>>) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut free = ports.lock().unwrap();
    let (local, remote) = (free.pop().unwrap(), free.pop().unwrap());
    drop(free);
    let listen = |port| format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
    let quoted = |text: &str| if text.is_empty() { "\"\"".to_owned() } else { text.to_owned() };
    let Mapping { direction, filter, local_prefix, remote_prefix, topic, .. } = row;
    // the marker shows first that the bridge is connected, and later that the message would have arrived
    let bridge = format!(
        "{}connection test\naddress 127.0.0.1:{remote}\nnotifications false\nrestart_timeout 1\n\
         topic {} {direction} 1 {} {}\ntopic marker both 1\n",
        listen(local),
        quoted(filter),
        quoted(local_prefix),
        quoted(remote_prefix),
    );
    let _remote = mosquitto(&dir.path().join("remote.conf"), &listen(remote), remote);
    let _local = mosquitto(&dir.path().join("local.conf"), &bridge, local);
    let (from, to) = if direction == "in" { (remote, local) } else { (local, remote) };
    let (_subscriber, messages) = subscribe(to);
    let start = Instant::now();
    while messages.recv_timeout(Duration::from_millis(100)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "no bridge for {row:?}");
        publish(from, "marker", "ready");
    }
    publish(from, topic, "message");
    publish(from, "marker", "end");
    next(&messages, "message")
}

#[test]
fn the_table_is_what_mosquitto_does() {
    let table: Table = toml::from_str(include_str!("fixtures/bridge_mappings.toml")).unwrap();
    assert!(table.mapping.len() >= 40);
    // all ports are taken at the same time, so that none is used twice
    let listeners: Vec<_> = (0..table.mapping.len() * 2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    drop(listeners);
    let ports = Mutex::new(ports);
    // mosquitto lets no client publish to $ topics
    let rows = Mutex::new(table.mapping.iter().filter(|row| !row.topic.starts_with('$')));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some(row) = rows.lock().unwrap().next() else { return };
                    let found = bridged(row, &ports);
                    if found != row.to {
                        wrong.lock().unwrap().push(format!("{row:?} becomes {found:?}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
