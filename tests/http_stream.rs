//! Streams report missed events, and slow or many readers disturb nobody.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::broker::{PROBE, Setup};
use support::http::{Events, get, request, try_request};
use support::{Gateway, ReadSome, wait_until};

fn publish(http: u16, topic: &str, payload: &str) {
    let answer = request(http, "PUT", &format!("/api/v1/topics/{topic}?qos=0"), &[], payload.as_bytes());
    assert_eq!(answer.status, 204, "{}", answer.text());
}

#[test]
fn a_stream_resumes_where_it_was_and_tells_of_gaps() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let mut stream = Events::open(http, "filter=a/%23&filter=b", &[]);
    assert_eq!(stream.next().unwrap().name, "heartbeat", "the first sign of life comes at once");
    for topic in ["a/1", "other", "b", "a/2"] {
        publish(http, topic, topic);
    }
    let events: Vec<_> = (0..3).map(|_| stream.wait_for("message")).collect();
    assert_eq!(events.iter().map(|e| e.data["topic"].as_str().unwrap()).collect::<Vec<_>>(), ["a/1", "b", "a/2"]);
    assert!(events.windows(2).all(|pair| pair[1].id > pair[0].id));
    drop(stream);
    publish(http, "a/3", "while away");
    let last = events[1].id.unwrap().to_string();
    let mut resumed = Events::open(http, "filter=a/%23", &[("Last-Event-ID", &last)]);
    let topics: Vec<Value> = (0..2).map(|_| resumed.wait_for("message").data["topic"].clone()).collect();
    assert_eq!(topics, [json!("a/2"), json!("a/3")]);
    // more events than the gateway keeps
    for _ in 0..40 {
        publish(http, "flood", &"x".repeat(60_000));
    }
    let mut late = Events::open(http, &format!("filter=a/%23&last_event_id={last}"), &[]);
    let gap = loop {
        let event = late.next().unwrap();
        assert_ne!(event.name, "message", "not before the gap");
        if event.name == "gap" {
            break event;
        }
    };
    assert!(gap.data["missed"].as_u64().unwrap() > 2, "{gap:?}");
    let _gateway = gateway.kill().restart();
    let mut reborn = Events::open(http, "filter=a/%23", &[("Last-Event-ID", &last)]);
    assert_eq!(reborn.wait_for("gap").data["missed"], Value::Null, "nobody knows what happened before the restart");
    assert_eq!(get(http, "/api/v1/stream?filter=a&last_event_id=x").status, 400);
    let long = ["filter="; 3].map(|name| name.to_owned() + &"a".repeat(1400)).join("&");
    assert_eq!(get(http, &format!("/api/v1/stream?{long}")).status, 400, "they would stay in memory");
}

#[test]
fn a_quiet_stream_beats() {
    let (setup, http) = Setup::default().http();
    let _gateway = setup.start();
    let mut stream = Events::open(http, "filter=%23", &[]);
    stream.next().unwrap();
    let begin = Instant::now();
    assert_eq!(stream.next().unwrap().name, "heartbeat");
    assert!((14..30).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

/// An MQTT client that measures how long PINGREQ takes. Returns the median and the longest time of several.
fn round_trips(port: u16) -> (Duration, Duration) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(PROBE).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let begin = Instant::now();
            // publish at QoS 1 and read the PUBACK
            stream.write_all(b"\x32\x08\0\x03m/t\0\x01x").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            begin.elapsed() - Duration::from_millis(2)
        })
        .collect();
    times.sort();
    (times[times.len() / 2], times[times.len() * 95 / 100])
}

#[test]
fn slow_and_many_http_clients_do_not_disturb_mqtt() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    // the same machine, without readers
    let beside = Gateway::start();
    // a thousand unread streams of all events
    let mut readers: Vec<TcpStream> = Vec::new();
    for _ in 0..1000 {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        stream.write_all(b"GET /api/v1/stream?filter=%23 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        readers.push(stream);
    }
    wait_until("all streams", || {
        get(http, "/metrics").text().lines().any(|line| line == "pigateway_http_streams 1000")
    });
    assert_eq!(get(http, "/api/v1/stream?filter=%23").status, 503, "no more than that");
    let memory = gateway.memory_kib("VmRSS");
    // and requests that are never complete
    let mut slow: Vec<TcpStream> = Vec::new();
    for number in 0..80 {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        let head: &[u8] = if number % 2 == 0 {
            b"GET / HTTP/1.1\r\nHost: local"
        } else {
            b"PUT /api/v1/topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"
        };
        stream.write_all(head).unwrap();
        slow.push(stream);
    }
    let port = beside.port;
    let undisturbed = std::thread::spawn(move || round_trips(port));
    let (median, most) = round_trips(gateway.port);
    let undisturbed = undisturbed.join().unwrap();
    println!("undisturbed {undisturbed:?}, with readers {:?}; {memory} KiB with 1,000 streams", (median, most));
    assert!(median < undisturbed.0 * 10 + Duration::from_millis(20), "{median:?}, undisturbed {undisturbed:?}");
    assert!(most < undisturbed.1 * 10 + Duration::from_millis(250), "{most:?}, undisturbed {undisturbed:?}");
    assert!(memory < 64 << 10, "{memory} KiB");
    // a reader still gets messages
    let mut received = readers.pop().unwrap();
    received.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("m/t") {
        let count = received.read_some(&mut buffer).unwrap();
        assert!(count > 0);
        text += &String::from_utf8_lossy(&buffer[..count]);
    }
    // connections with slow heads are ended, and their places are free again
    drop((readers, received));
    let mut heads = slow.into_iter().step_by(2);
    let mut first = heads.next().unwrap();
    first.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let begin = Instant::now();
    let mut rest = Vec::new();
    let _ = first.read_to_end(&mut rest);
    assert!(begin.elapsed() < support::PATIENCE, "{:?}", begin.elapsed());
    wait_until("the streams are gone", || {
        try_request(http, "GET", "/metrics", &[], b"")
            .is_ok_and(|answer| answer.text().lines().any(|line| line == "pigateway_http_streams 0"))
    });
}

#[test]
fn a_reader_that_takes_nothing_is_dropped_and_costs_no_memory() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
    stream.write_all(b"GET /api/v1/stream?filter=%23 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let open = || get(http, "/metrics").text().lines().any(|line| line == "pigateway_http_streams 1");
    wait_until("the stream", open);
    let begin = Instant::now();
    let payload = "x".repeat(100_000);
    // more data than the sockets can hold, until the gateway ends the connection
    while open() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it is still there");
        assert!(gateway.memory_kib("VmRSS") < 64 << 10, "{}", gateway.memory_kib("VmRSS"));
        publish(http, "flood", &payload);
    }
    assert!(begin.elapsed() > Duration::from_secs(29), "it had its time");
}
