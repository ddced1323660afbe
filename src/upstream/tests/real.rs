//! Tests with a simulated broker that knows only 3.1.1, and with mosquitto.

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use super::super::client::RemoteClient;
use super::super::settings::Protocol;
use super::*;

#[path = "../../../tests/support/port.rs"]
mod port;
pub(crate) use port::free_port;

/// A real mosquitto, which ends when this is dropped.
pub(crate) struct Mosquitto(Child);

impl Mosquitto {
    pub(crate) async fn start(dir: &Path, port: u16, extra: &str) -> Mosquitto {
        let config = dir.join("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n{extra}\n")).unwrap();
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let broker = Mosquitto(command.spawn().unwrap());
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        broker
    }
}

impl Mosquitto {
    /// Ends mosquitto in order, so that it writes its sessions.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Subscribes at mosquitto with a persistent session. Every message is one line with topic and payload.
struct Subscriber {
    early: VecDeque<String>,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
    _child: tokio::process::Child,
}

impl Subscriber {
    async fn start(port: u16, filter: &str) -> Subscriber {
        let mut command = tokio::process::Command::new("mosquitto_sub");
        let (port_text, id) = (port.to_string(), filter.replace(['/', '#'], "-"));
        command.args(["-h", "127.0.0.1", "-p", &port_text, "-q", "1", "-v", "-c", "-i", &id]);
        command.args(["-t", filter, "-t", "ready"]);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        publish(port, "ready", "1", true).await;
        let mut early = VecDeque::new();
        loop {
            match lines.next_line().await.unwrap().unwrap().as_str() {
                "ready 1" => return Subscriber { early, lines, _child: child },
                line => early.push_back(line.to_owned()),
            }
        }
    }

    async fn next(&mut self) -> String {
        if let Some(line) = self.early.pop_front() {
            return line;
        }
        loop {
            let line = timeout(Duration::from_secs(20), self.lines.next_line()).await.unwrap().unwrap().unwrap();
            if !line.starts_with("ready") {
                return line;
            }
        }
    }
}

async fn publish(port: u16, topic: &str, payload: &str, retain: bool) {
    let mut command = tokio::process::Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1", "-t", topic, "-m", payload]);
    if retain {
        command.arg("-r");
    }
    assert!(command.status().await.unwrap().success());
}

async fn through_an_outage(protocol: Protocol) {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let persistence = format!("persistence true\npersistence_location {}/\nuser root", dir.path().display());
    let address = format!("mqtt://127.0.0.1:{port}");
    let mut configured = settings(&[&address]);
    configured.protocol = protocol;
    configured.status_topic = Some(Topic::new("sites/loft/status").unwrap());
    let door = TestDoor::default();
    let mut running = Running::start(configured, door.clone(), RemoteClient::new(256 << 10));
    for n in 0..3 {
        running.append("loft/motion1", &n.to_string());
    }
    running.until("an attempt", |snapshot| snapshot.failed_attempts > 0).await;
    let broker = Mosquitto::start(dir.path(), port, &persistence).await;
    let mut subscriber = Subscriber::start(port, "sites/#").await;
    running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(subscriber.next().await);
    }
    seen.sort();
    let expected = ["sites/loft/motion1 0", "sites/loft/motion1 1", "sites/loft/motion1 2", "sites/loft/status online"];
    assert_eq!(seen, expected);
    // a command, then an outage with another command and messages that wait
    publish(port, "sites/loft/commands/lamp", "on", false).await;
    running.until("a command", |snapshot| snapshot.received == 1).await;
    running.until("all acked", |snapshot| snapshot.ledger.acked == 3).await;
    drop(subscriber);
    broker.stop();
    running.until("the end", |snapshot| snapshot.state == UpstreamState::Waiting).await;
    for n in 0..500 {
        running.append("loft/motion1", &n.to_string());
    }
    let _broker = Mosquitto::start(dir.path(), port, &persistence).await;
    let mut subscriber = Subscriber::start(port, "sites/#").await;
    let mut n = 0;
    while n < 500 {
        let line = subscriber.next().await;
        if line.starts_with("sites/loft/motion1") {
            assert_eq!(line, format!("sites/loft/motion1 {n}"));
            n += 1;
        }
    }
    let snapshot = running.until("all acked", |snapshot| snapshot.ledger.acked == 503).await;
    assert!(snapshot.ledger.is_balanced() && snapshot.ledger.pending == 0, "{snapshot:?}");
    let mut status = Subscriber::start(port, "sites/loft/status").await;
    assert_eq!(status.next().await, "sites/loft/status online");
    running.stop().await;
    assert_eq!(status.next().await, "sites/loft/status offline");
    assert_eq!(*door.published.lock(), [("commands/lamp".to_owned(), "on".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_commands_pass_a_real_mosquitto_and_its_outage() {
    through_an_outage(Protocol::Auto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_commands_pass_on_3_1_1_too() {
    through_an_outage(Protocol::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_published_during_our_absence_arrive_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = Mosquitto::start(dir.path(), port, "").await;
    let configured = settings(&[&format!("mqtt://127.0.0.1:{port}")]);
    let mut running = Running::start(configured.clone(), TestDoor::default(), RemoteClient::new(256 << 10));
    running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    publish(port, "sites/loft/commands/a", "1", false).await;
    running.until("a command", |snapshot| snapshot.received == 1).await;
    running.stop().await;
    publish(port, "sites/loft/commands/a", "2", false).await;
    publish(port, "sites/loft/commands/b", "3", false).await;
    let door = TestDoor::default();
    let mut running = Running::start(configured, door.clone(), RemoteClient::new(256 << 10));
    running.until("both commands", |snapshot| snapshot.received == 2).await;
    let topics: Vec<_> = door.published.lock().iter().map(|(_, payload)| payload.clone()).collect();
    assert_eq!(topics, ["2", "3"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_knows_only_3_1_1_gets_that() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("mqtt://{}", listener.local_addr().unwrap());
    let broker = tokio::spawn(async move {
        let mut levels = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut connect = [0; 512];
            let read = socket.read(&mut connect).await.unwrap();
            let level = connect[8];
            levels.push(level);
            assert!(read > 8);
            if level == 5 {
                socket.write_all(&[0x20, 2, 0, 1]).await.unwrap();
                continue;
            }
            socket.write_all(&[0x20, 2, 0, 0]).await.unwrap();
            return (levels, socket);
        }
    });
    let mut running = Running::start(settings(&[&address]), TestDoor::default(), RemoteClient::new(256 << 10));
    let snapshot = running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    assert_eq!(snapshot.version, Some(Version::V311));
    let (levels, socket) = broker.await.unwrap();
    assert_eq!(levels, [5, 4]);
    drop(socket);
    running.stop().await;
}
