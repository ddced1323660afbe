//! MQTT over WebSocket, with common clients and with frames that no usual client sends.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use support::broker::{PROBE, Setup};
use support::http::get;
use support::{Process, ReadSome, wait_until};

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
        let protocol = format!("Sec-WebSocket-Protocol: {protocol}\r\n");
        Socket::open_at(http, "/mqtt", &format!("Host: localhost:{http}\r\n{protocol}"))
    }

    fn open_at(http: u16, path: &str, headers: &str) -> Result<Socket, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\n{headers}Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_some(&mut byte).unwrap() == 0 {
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
        let mut len = usize::from(head[1]);
        if len == 126 {
            let mut long = [0; 2];
            self.0.read_exact(&mut long).ok()?;
            len = usize::from(u16::from_be_bytes(long));
        }
        let mut payload = vec![0; len];
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
    // two and a half PINGREQ in one frame, and a ping of the WebSocket itself in between
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
    assert!(Socket::open_at(http, "/mqtt", &format!("Host: localhost:{http}\r\n")).is_ok(), "none at all");
    // a client that sends nothing after the upgrade does not keep the gateway from stopping
    let (code, lines) = {
        let _silent = Socket::open(http, "mqtt").unwrap();
        _gateway.stop()
    };
    assert_eq!(code, Some(0), "{}", lines.join("\n"));
}

#[test]
fn each_packet_has_a_frame_of_its_own() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let mut socket = Socket::open(http, "mqtt").unwrap();
    socket.frame(2, PROBE);
    assert_eq!(socket.read(), Some((2, vec![0x20, 2, 0, 0])));
    socket.frame(2, b"\x82\x06\0\x01\0\x01a\x01");
    assert_eq!(socket.read(), Some((2, vec![0x90, 3, 0, 1, 1])));
    let mut publisher = support::Connect::new("publisher").open(gateway.port);
    let messages: Vec<u8> = (0..200u8).flat_map(|number| [0x30, 4, 0, 1, b'a', number]).collect();
    publisher.send(&messages);
    for number in 0..200 {
        assert_eq!(socket.read(), Some((2, vec![0x30, 4, 0, 1, b'a', number])));
    }
    // ten acknowledgements in answer to one frame
    let asked: Vec<u8> = (1..=10u8).flat_map(|id| [0x32, 5, 0, 1, b'b', 0, id]).collect();
    socket.frame(2, &asked);
    for id in 1..=10 {
        assert_eq!(socket.read(), Some((2, vec![0x40, 2, 0, id])));
    }
}

#[test]
fn every_address_that_programs_use_answers_an_upgrade() {
    let (setup, http) = Setup::default().http();
    let _gateway = setup.start();
    let ours = format!("Host: localhost:{http}\r\n");
    for path in ["/", "/ws", "/mqtt", "/mqtt/"] {
        let mut socket = Socket::open_at(http, path, &ours).unwrap();
        socket.frame(2, PROBE);
        assert_eq!(socket.read(), Some((2, vec![0x20, 2, 0, 0])), "{path}");
    }
    assert!(Socket::open_at(http, "/api/v1/topics", &ours).is_err());
    assert!(get(http, "/").text().contains("<html"), "the page is still there");
    // a name that this host does not know as its own is accepted from a program and refused from a page
    for (path, headers, is_welcome) in [
        ("/mqtt", "Host: raspberrypi.fritz.box:8080\r\n", true),
        ("/", "Host: raspberrypi.fritz.box:8080\r\n", true),
        ("/mqtt", "Host: evil.example\r\nOrigin: http://evil.example\r\n", false),
        ("/mqtt", "Host: localhost\r\nOrigin: http://evil.example\r\n", false),
        ("/api/v1/topics", "Host: evil.example\r\n", false),
    ] {
        let opened = Socket::open_at(http, path, headers);
        assert_eq!(opened.is_ok(), is_welcome, "{path} {headers}");
        if let Err(head) = opened {
            assert!(head.contains(" 403 "), "{head}");
        }
    }
    let answer = support::http::request(http, "GET", "/", &[("Host", "evil.example")], b"");
    assert_eq!(answer.status, 403, "all else keeps the check");
}

#[test]
fn a_reason_reaches_a_websocket_that_is_still_sending() {
    let (setup, http) = Setup::default().config("[broker]\nmax_packet_size = \"64 KiB\"").http();
    let _gateway = setup.start();
    for _ in 0..20 {
        let mut socket = Socket::open(http, "mqtt").unwrap();
        socket.frame(2, b"\x10\x0e\0\x04MQTT\x05\x02\0\0\0\0\x01a");
        let (kind, connack) = socket.read().unwrap();
        assert_eq!((kind, connack[0], connack[3]), (2, 0x20, 0));
        // one frame with a packet of 1 MiB, of which the broker takes the head
        let packet = [&b"\x30\x80\x80\x40\0\x01a\0"[..], &[b'x'; (1 << 20) - 4]].concat();
        let head = [&[0x82, 0xff][..], &(packet.len() as u64).to_be_bytes(), &[0; 4]].concat();
        let _ = socket.0.write_all(&[head, packet].concat());
        assert_eq!(socket.read(), Some((2, vec![0xe0, 2, 0x95, 0])));
        assert_eq!(socket.read().map(|(kind, _)| kind), Some(8));
    }
}

#[test]
fn what_a_websocket_sent_before_it_closed_counts() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let mut watcher = support::Connect::new("watcher").open(gateway.port);
    watcher.subscribe("a", 0);
    for number in 0..100u8 {
        let mut socket = Socket::open(http, "mqtt").unwrap();
        let messages = [b'0', b'1', b'2'].iter().flat_map(|part| [0x30, 5, 0, 1, b'a', number, *part]);
        let all: Vec<u8> = PROBE.iter().copied().chain(messages).chain([0xe0, 0]).collect();
        socket.frame(2, &all);
        drop(socket);
        for part in [b'0', b'1', b'2'] {
            assert_eq!(watcher.receive().payload, [number, part]);
        }
    }
}
