//! MQTT over WebSocket: the clients that people have, and frames as no client sends them.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use support::broker::{PROBE, Setup};
use support::http::get;
use support::{Process, wait_until};

const CACHE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache");
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

#[track_caller]
fn finish(process: Process) -> Vec<String> {
    let (code, lines) = process.wait();
    assert_eq!(code, Some(0), "{}", lines.join("\n"));
    lines.into_iter().filter(|line| line.starts_with("version ")).collect()
}

#[test]
fn mqtt_js_connects() {
    let modules = format!("{CACHE}/mqttjs/node_modules");
    assert!(Path::new(&modules).exists(), "{modules} is missing: npm install --prefix .cache/mqttjs mqtt@5");
    let (setup, http) = Setup::default().http();
    let _gateway = setup.start();
    let url = format!("ws://localhost:{http}/mqtt");
    let script = format!("{FIXTURES}/websocket.js");
    let lines = finish(Process::start(Command::new("node").env("NODE_PATH", modules).args([&script, &url])));
    let expected = ["default", "5", "4", "3"].map(|version| format!("version {version}: websocket/mqttjs 100000"));
    assert_eq!(lines, expected);
}

#[test]
fn paho_connects() {
    let python = format!("{CACHE}/paho-2/bin/python");
    assert!(Path::new(&python).exists(), "{python} is missing: tests/run installs it");
    let (setup, http) = Setup::default().http();
    let _gateway = setup.start();
    let script = format!("{FIXTURES}/websocket_paho.py");
    let lines = finish(Process::start(Command::new(python).args(["-u", &script, &http.to_string()])));
    let expected = [3, 4, 5].map(|version| format!("version {version}: websocket/paho 100000"));
    assert_eq!(lines, expected);
}

/// A WebSocket that a test writes frame by frame.
struct Socket(TcpStream);

impl Socket {
    fn open(http: u16, protocol: &str) -> Result<Socket, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        write!(
            stream,
            "GET /mqtt HTTP/1.1\r\nHost: localhost:{http}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                break;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        if head.contains(" 101 ") { Ok(Socket(stream)) } else { Err(head) }
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        assert!(payload.len() < 126);
        // a mask of zeros changes nothing
        let head = [0x80 | kind, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        self.0.write_all(&[&head[..], payload].concat()).unwrap();
    }

    /// The next frame's kind and payload; `None` at the end.
    fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[0] & 15, payload))
    }
}

#[test]
fn packets_and_frames_need_not_end_together() {
    let (setup, http) = Setup::default().http();
    let _gateway = setup.start();
    let mut socket = Socket::open(http, "mqtt").unwrap();
    for byte in PROBE {
        socket.frame(2, &[*byte]);
    }
    assert_eq!(socket.read(), Some((2, vec![0x20, 2, 0, 0])));
    // two pings and half a third in one frame, a ping of the WebSocket's own in between
    socket.frame(2, &[0xc0, 0, 0xc0, 0, 0xc0]);
    socket.frame(9, b"still there?");
    socket.frame(2, &[0]);
    let (mut answers, mut pongs) = (Vec::new(), 0);
    while answers.len() < 6 || pongs < 1 {
        match socket.read().unwrap() {
            (2, payload) => answers.extend(payload),
            (10, payload) => {
                assert_eq!(payload, b"still there?");
                pongs += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers, [0xd0, 0, 0xd0, 0, 0xd0, 0]);
    wait_until("it is listed", || get(http, "/api/v1/clients").json()[0]["client_id"] == "probe");
    socket.frame(1, b"text");
    while let Some((kind, _)) = socket.read() {
        assert_eq!(kind, 8, "text ends the connection [MQTT-6.0.0-1]");
    }
    wait_until("it has gone", || get(http, "/api/v1/clients").text() == "[]");
}

#[test]
fn only_the_subprotocols_of_mqtt() {
    let (setup, http) = Setup::default().http();
    let _gateway = setup.start();
    for protocol in ["mqtt", "mqttv3.1", "chat, mqtt"] {
        assert!(Socket::open(http, protocol).is_ok(), "{protocol}");
    }
    assert!(Socket::open(http, "chat").err().unwrap().contains(" 400 "));
    // whoever says nothing after the upgrade is not waited for, and does not keep the gateway from stopping
    let (code, lines) = {
        let _silent = Socket::open(http, "mqtt").unwrap();
        _gateway.stop()
    };
    assert_eq!(code, Some(0), "{}", lines.join("\n"));
}
