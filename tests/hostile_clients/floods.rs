//! As many clients that send without a pause as there are cores, and more: others have their turns in between.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::assert_it_serves;
use super::slow_readers::InnocentPair;
use crate::support::packet::{Properties, binary, packet, publish, subscribe};
use crate::support::{Connect, Gateway, Setup, debt, http};

/// How long each kind of flood lasts.
const LENGTH: Duration = Duration::from_millis(1500);
/// The number of clients that flood.
const CLIENTS: usize = 4;

/// What one client sends again and again.
fn bursts() -> Vec<(&'static str, Vec<u8>)> {
    let none = Properties::new();
    let unsubscribe = |id: u16| packet(0xa2, &[&id.to_be_bytes(), &[0], &binary(format!("a/{id}").as_bytes())]);
    let again = |id: u16| subscribe(id, &[(&*format!("a/{}", id % 7), 0)], Some(&none));
    let group = |id: u16| {
        let name = format!("$share/g{id}/x");
        let leaves = packet(0xa2, &[&id.to_be_bytes(), &[0], &binary(name.as_bytes())]);
        [subscribe(id, &[(&*name, 0)], Some(&none)), leaves].concat()
    };
    let deep = ["a"; 190].join("/");
    let named = (0..1024).fold(Properties::new(), |all, _| all.user("", ""));
    let say = |topic: String, flags: u8| publish(topic.as_bytes(), b"x", flags, None, Some(&none));
    vec![
        ("UNSUBSCRIBE", (1..5000).flat_map(unsubscribe).collect()),
        ("SUBSCRIBE", (1..5000).flat_map(again).collect()),
        ("groups", (1..2500).flat_map(group).collect()),
        ("deep topics", (1..1000).flat_map(|number| say(format!("{deep}/{number}"), 0x30)).collect()),
        ("retained", (0..5000).flat_map(|number| say(format!("r/{}", number % 50), 0x31)).collect()),
        ("properties", publish(b"x", b"", 0x30, None, Some(&named)).repeat(20)),
        ("PUBREL", (1..5000_u16).flat_map(|id| packet(0x62, &[&id.to_be_bytes()])).collect()),
        ("PINGREQ", [0xc0, 0].repeat(30_000)),
    ]
}

/// Sends this until it is over, and reads all answers.
fn flood(mut stream: TcpStream, burst: &[u8], over: &AtomicBool) {
    let mut answers = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || while answers.read(&mut vec![0; 1 << 20]).is_ok_and(|count| count > 0) {});
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut at = 0;
        while !over.load(Ordering::Relaxed) {
            match stream.write(&burst[at..]) {
                Ok(count) => at = (at + count) % burst.len(),
                // a client that is slowed down goes on when it may
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
}

/// Checks that a pair of clients of this gateway has round trips during a flood, compared with a pair of another gateway on
/// the same machine.
#[track_caller]
fn others_have_turns(name: &str, gateway: &Gateway, beside: &Gateway, open: impl Fn(usize) -> TcpStream, burst: &[u8]) {
    let streams: Vec<_> = (0..CLIENTS).map(open).collect();
    others_go_on_beside(name, gateway, beside, |number, over| {
        flood(streams[number].try_clone().unwrap(), burst, over);
    });
}

/// The same for floods of any kind, one of each number. The pairs connect first, because a new client waits with the others of
/// its network. The gateway that is flooded has much to do, and the other has nothing.
/// So on a busy machine the kernel lets only the flooded one wait for processors, and that time does not count.
#[track_caller]
fn others_go_on_beside(name: &str, gateway: &Gateway, beside: &Gateway, flood: impl Fn(usize, &AtomicBool) + Sync) {
    let over = AtomicBool::new(false);
    let (disturbed, undisturbed) = (InnocentPair::connect(gateway.port), InnocentPair::connect(beside.port));
    let before = gateway.scheduled();
    let (times, undisturbed) = thread::scope(|scope| {
        let (over, flood) = (&over, &flood);
        (0..CLIENTS).for_each(|number| drop(scope.spawn(move || flood(number, over))));
        let disturbed = scope.spawn(|| disturbed.round_trips(over));
        let undisturbed = scope.spawn(|| undisturbed.round_trips(over));
        thread::sleep(LENGTH);
        over.store(true, Ordering::Relaxed);
        (disturbed.join().unwrap(), undisturbed.join().unwrap())
    });
    let middle = |times: &[Duration]| times[times.len() / 2];
    let (middle, reference, share) = (middle(&times), middle(&undisturbed), gateway.share_since(before));
    assert!(
        middle.mul_f64(share) < 20 * reference.max(Duration::from_millis(2)),
        "{name}: {middle:?} instead of {reference:?} in the middle, {:?} at most, {} round trips instead of {}, ran for {share:.2}",
        times.last(),
        times.len(),
        undisturbed.len()
    );
}

#[test]
fn whoever_sends_without_a_pause_does_not_keep_others_from_their_turns() {
    let (mut gateway, beside) = (Gateway::start(), Gateway::start());
    for (name, burst) in bursts() {
        let open = |number: usize| Connect::v5(&format!("flood-{number}")).open(gateway.port).socket;
        others_have_turns(name, &gateway, &beside, open, &burst);
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn frames_without_contents_do_not_keep_others_from_their_turns() {
    let (setup, port) = Setup::default().http();
    let (mut gateway, beside) = (setup.start(), Gateway::start());
    let open = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let key =
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt";
        let upgrade = format!(
            "GET /mqtt HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n"
        );
        stream.write_all(upgrade.as_bytes()).unwrap();
        let connect = packet(0x10, &[&binary(b"MQTT"), &[4, 2, 0, 0], &binary(b"")]);
        // masked with zeros, and the first of several fragments
        stream.write_all(&[&[0x02, 0x80 | connect.len() as u8, 0, 0, 0, 0], &*connect].concat()).unwrap();
        stream
    };
    for (name, frame) in [("pings", [0x89, 0x80, 0, 0, 0, 0]), ("empty fragments", [0x00, 0x80, 0, 0, 0, 0])] {
        others_have_turns(name, &gateway, &beside, open, &frame.repeat(10_000));
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn more_properties_than_anybody_uses_end_the_connection_of_whoever_sends_them() {
    let mut gateway = Gateway::start();
    for (count, is_read) in [(1024, true), (1025, false)] {
        let named = (0..count).fold(Properties::new(), |all, _| all.user("", ""));
        let mut client = Connect::v5("named").open(gateway.port);
        client.send(&publish(b"x", b"", 0x30, None, Some(&named)));
        // quota exceeded
        if is_read { client.ping() } else { client.closed_with(0x97) }
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn requests_by_http_that_do_not_wait_for_their_answers_do_not_keep_mqtt_waiting() {
    let (setup, port) = Setup::default().http();
    let (mut gateway, beside) = (setup.start(), Gateway::start());
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let kept = |number| publish(format!("t/{number}").as_bytes(), &[b'x'; 256], 0x31, None, None);
    publisher.send(&(0..4000).flat_map(kept).collect::<Vec<u8>>());
    publisher.ping();
    assert_eq!(http::get(port, "/api/v1/topics?limit=1").json()["messages"].as_array().unwrap().len(), 1);
    for path in ["/api/v1/topics?filter=%23&contains=zzz&limit=1", "/api/v1/topics?filter=t/%23", "/metrics"] {
        let burst = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").repeat(100);
        let open = |_| TcpStream::connect(("127.0.0.1", port)).unwrap();
        others_have_turns(path, &gateway, &beside, open, burst.as_bytes());
    }
    assert_it_serves(&mut gateway);
}

#[test]
fn publications_by_http_wait_for_their_turns_like_others() {
    let (setup, port) = Setup::default().http();
    let (mut gateway, beside) = (setup.start(), Gateway::start());
    let _subscribers = debt::subscribe(gateway.port, Connect::v5);
    let target = format!("/api/v1/topics/{}?qos=0", debt::dear_topic("x"));
    let put = format!("PUT {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1\r\n\r\nx").repeat(100);
    let open = |_| TcpStream::connect(("127.0.0.1", port)).unwrap();
    others_have_turns("PUT", &gateway, &beside, open, put.as_bytes());
    assert_it_serves(&mut gateway);
}

#[test]
fn streams_with_many_filters_pay_for_what_they_look_at() {
    const KEPT: u64 = 2_000;
    let (setup, port) = Setup::default().http();
    let (mut gateway, beside) = (setup.start(), Gateway::start());
    let mut stream = http::Events::open(port, "filter=last", &[]);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let deep = ["a"; 200].join("/");
    publisher.send(&publish(deep.as_bytes(), b"x", 0x30, None, None).repeat(KEPT as usize));
    publisher.publish("last", "x", 1, false);
    let last = stream.wait_for("message").id.unwrap();
    let filter = |number: usize| format!("&filter={}/z{number}", ["%2B"; 199].join("/"));
    let filters: String = (0..32).map(filter).collect();
    let get =
        format!("GET /api/v1/stream?last_event_id={}{filters} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", last - KEPT);
    others_go_on_beside("streams", &gateway, &beside, |_, over| {
        while !over.load(Ordering::Relaxed) {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            stream.write_all(get.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let more = "filter=".to_owned() + &["a"; 201].join("/");
    for target in ["/api/v1/stream?", "/api/v1/topics?"] {
        assert_eq!(http::get(port, &format!("{target}{more}")).status, 400);
    }
    assert_it_serves(&mut gateway);
}
