//! Large numbers of connections, sessions, topics and filters: memory stays within limits, and is freed afterwards.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;

use super::{assert_it_serves, assert_it_serves_but};
use crate::support::http::get;
use crate::support::packet::{Properties, publish};
use crate::support::{Client, Connect, Gateway, Setup, wait_until};

/// The limit of memory for a debug build, in KiB.
const MOST: u64 = 80 << 10;

/// The memory that may remain after ten thousand clients or two hundred thousand topics, for a debug build, in KiB. It is
/// kept by the system's allocator, because `live_bytes_return` checks that no byte of them stays in use.
const MOST_OF_WHAT_HAS_GONE: u64 = 36 << 10;

/// Checks that the gateway never took more memory than this. `rss` has intermediate figures, which are shown on a failure.
#[track_caller]
fn assert_at_most(gateway: &Gateway, bound: u64, rss: &[u64]) {
    let most = gateway.memory_kib("VmHWM");
    println!("{rss:?} KiB, {most} KiB at most");
    assert!(most < bound, "{most} KiB at most; {rss:?} KiB");
}

#[track_caller]
fn assert_small(gateway: &Gateway) {
    let rss = gateway.memory_kib("VmRSS");
    assert!(rss < MOST, "{rss} KiB");
}

#[test]
fn a_thousand_idle_connections() {
    let mut gateway = Gateway::with("[broker]\nmax_connections = 1100");
    let mut clients: Vec<Client> = (0..1000)
        .map(|number| {
            let mut client = Connect::v5(&format!("idle-{number}")).open(gateway.port);
            client.subscribe(&format!("idle/{number}"), 1);
            client
        })
        .collect();
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in [0, 499, 999] {
        publisher.publish(&format!("idle/{number}"), "x", 1, false);
        assert_eq!(clients[number].receive().text(), "x");
    }
}

#[test]
fn more_clients_than_allowed_are_told_that_it_is_full() {
    let gateway = Gateway::with("[broker]\nmax_connections = 10");
    let mut clients: Vec<Client> =
        (0..10).map(|number| Connect::new(&number.to_string()).open_eventually(gateway.port)).collect();
    assert_eq!(Connect::v5("more").refused(gateway.port), 0x89);
    assert_eq!(Connect::new("more").refused(gateway.port), 3);
    clients.pop().unwrap().disconnect();
    wait_until("there is room again", || Connect::new("more").try_open(gateway.port).1.reason == 0);
}

#[test]
fn half_open_sockets_by_the_hundred() {
    let mut gateway = Gateway::with("[broker]\nmax_connections = 100");
    let silent: Vec<TcpStream> =
        (0..400).map(|_| TcpStream::connect(gateway.address()).expect("the port is open")).collect();
    // connections beyond the limit are dropped at once, and the others when their time for CONNECT is over
    wait_until("a client gets in", || {
        let mut client = Client::raw(gateway.port, crate::support::packet::V311);
        client.try_send(&Connect::new("patient").encode()) && client.try_read().is_some()
    });
    assert_it_serves(&mut gateway);
    drop(silent);
}

#[test]
fn clients_that_take_all_descriptors_leave_some_for_the_journal() {
    let setup = Setup::default().config("[broker]\nmax_connections = 1000\n");
    let mut gateway = setup.start_after("ulimit -n 300");
    let line = gateway.wait_for_line("fewer clients may be connected than broker.max_connections says");
    assert!(line.contains("WARN") && line.contains("300 descriptors"), "{line}");
    let mut sleeper = Connect::v5("sleeper").persistent().open(gateway.port);
    sleeper.subscribe("kept", 1);
    sleeper.disconnect();
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let sockets: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(("127.0.0.1", gateway.port)).unwrap()).collect();
    let line = gateway.wait_for_line("no new ones for now");
    assert!(line.contains("LimitNOFILE"), "{line}");
    for _ in 0..20 {
        // each needs a part of a new file
        assert_eq!(publisher.publish("kept", vec![b'x'; 1 << 20], 1, false), 0);
    }
    let in_vain: Vec<String> = gateway.log().into_iter().filter(|line| line.contains("cannot be opened")).collect();
    assert_eq!(in_vain, [""; 0]);
    drop(sockets);
    Connect::new("later").open_eventually(gateway.port).ping();
    assert_it_serves_but(&mut gateway, &["no new ones for now", "has lost its oldest messages"]);
}

#[test]
fn whoever_is_cut_while_it_signs_in_leaves_nothing_behind() {
    const WAITING: usize = 256;
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let connect = || TcpStream::connect(gateway.address()).expect("the port is open");
    let mut waiting: VecDeque<TcpStream> = (0..WAITING).map(|_| connect()).collect();
    for number in 0..2000 {
        // the oldest sends its CONNECT at the moment at which a newcomer takes its place
        let mut oldest = waiting.pop_front().expect("as many as before");
        let packet = Connect::new(&format!("ghost-{number}")).encode();
        if number % 2 == 0 {
            let _ = oldest.write_all(&packet);
            waiting.push_back(connect());
        } else {
            waiting.push_back(connect());
            let _ = oldest.write_all(&packet);
        }
    }
    drop(waiting);
    wait_until("all of them are gone", || {
        get(http, "/metrics").text().lines().any(|line| line == "pigateway_clients_connected 0")
    });
}

#[test]
fn ten_thousand_connects_with_distinct_ids() {
    let mut gateway = Gateway::start();
    let connect = |from: usize| {
        for number in from..from + 5000 {
            let mut client = Connect::new(&format!("id-{number}")).open(gateway.port);
            client.subscribe(&format!("own/{number}"), 1);
            client.reset();
        }
        gateway.memory_kib("VmRSS")
    };
    let (first, second) = (connect(0), connect(5000));
    assert_at_most(&gateway, MOST_OF_WHAT_HAS_GONE, &[first, second]);
    assert_it_serves(&mut gateway);
}

#[test]
fn more_sessions_than_are_kept() {
    let mut gateway = Gateway::with("[broker]\nmax_sessions = 100");
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..1000 {
        let mut client = Connect::v5(&format!("sleeper-{number}")).persistent().open(gateway.port);
        client.subscribe(&format!("own/{number}"), 1);
        client.disconnect();
        publisher.publish(&format!("own/{number}"), vec![b'x'; 1000], 1, false);
    }
    let present = |number: usize| {
        let connect = Connect::v5(&format!("sleeper-{number}")).persistent();
        connect.open_with(gateway.port).1.present
    };
    wait_until("the oldest is given up", || !present(0));
    assert!(present(999), "the youngest is kept");
    gateway.wait_for_line("max_sessions");
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn hundreds_of_sessions_with_the_longest_ids_are_small() {
    let mut gateway = Gateway::start();
    for number in 0..500 {
        let id = format!("{number:x>1024}");
        let mut client = Connect::v5(&id).persistent().open(gateway.port);
        client.subscribe("news", 1);
        client.disconnect();
    }
    assert_eq!(Connect::v5(&"x".repeat(1025)).persistent().refused(gateway.port), 0x85);
    gateway.wait_for_line("its client id is longer than 1024 bytes");
    assert_small(&gateway);
    assert_it_serves(&mut gateway);
}

#[test]
fn a_hundred_thousand_distinct_topics() {
    let mut gateway = Gateway::start();
    let mut client = Connect::new("client").open(gateway.port);
    let mut flood = |kind: &str, retain: u8| {
        for block in 0..100 {
            let topics = block * 1000..(block + 1) * 1000;
            let burst: Vec<u8> = topics
                .flat_map(|number| publish(format!("{kind}/{number}/x").as_bytes(), b"12345678", retain, None, None))
                .collect();
            client.send(&burst);
        }
        client.ping();
        gateway.memory_kib("VmRSS")
    };
    let (first, second) = (flood("first", 0), flood("second", 0));
    assert_at_most(&gateway, MOST_OF_WHAT_HAS_GONE, &[first, second]);
    flood("kept", 1);
    assert_small(&gateway);
    let mut subscriber = Connect::new("subscriber").open(gateway.port);
    subscriber.subscribe("kept/#", 1);
    let kept = subscriber.drain().len();
    assert_eq!(kept, 10_000, "broker.max_retained, beside which $SYS is kept");
    // existing retained messages can change, and MQTT 5 clients are told when a message does not fit
    let mut client = Connect::v5("modern").open(gateway.port);
    assert_eq!(client.publish("kept/0/x", "new", 1, true), 0);
    for qos in [1, 2] {
        assert_eq!(client.publish("one/more", "delivered all the same", qos, true), 0x97);
        assert_eq!(client.publish("one/more", "delivered", qos, false), 0);
    }
    assert_it_serves(&mut gateway);
}

/// The limit for a debug build in KiB, with ten thousand filters in use and none left of earlier clients.
const MOST_WITH_FILTERS: u64 = 40 << 10;

/// Checks how much memory the system's allocator keeps. `live_bytes_return` checks that no byte stays in use. `ROUNDS=1000`
/// makes more rounds.
#[test]
fn ten_thousand_distinct_filters() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut gateway = Gateway::start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    let mut rss = Vec::new();
    for round in 0..rounds {
        let mut client = Connect::v5(&format!("client-{round}")).open(gateway.port);
        for block in 0..100 {
            let filters: Vec<String> = (0..100).map(|number| format!("f/{round}/{}/+", block * 100 + number)).collect();
            let wanted: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
            assert!(client.subscribe_all(&wanted, &Properties::new()).iter().all(|granted| *granted == 1));
        }
        assert_eq!(client.subscribe("one/more", 1), 0x97);
        for number in [0, 5000, 9999] {
            publisher.publish(&format!("f/{round}/{number}/x"), "x", 1, false);
            assert_eq!(client.receive().topic, format!("f/{round}/{number}/x"));
        }
        client.vanish();
        rss.push(gateway.memory_kib("VmRSS"));
    }
    assert_at_most(&gateway, MOST_WITH_FILTERS, &rss);
    assert_it_serves(&mut gateway);
}

#[test]
fn filters_that_are_too_large_to_keep_are_refused_and_others_go_on() {
    let mut gateway = Gateway::start();
    let mut greedy = Connect::v5("greedy").persistent().open(gateway.port);
    let granted: Vec<u8> =
        (0..65).map(|number| greedy.subscribe(&format!("{number}{}", "x".repeat(65_000)), 1)).collect();
    assert_eq!((granted[0], granted[64]), (1, 0x97), "{granted:?}");
    assert_eq!(greedy.subscribe(&"y".repeat(65_535), 1), 0x97, "longer than a name on disk can be");
    let mut sleeper = Connect::v5("sleeper").persistent().open(gateway.port);
    sleeper.subscribe("news", 1);
    sleeper.disconnect();
    assert_eq!(Connect::v5("publisher").open(gateway.port).publish("news", "kept", 1, false), 0);
    let gateway_again = gateway.kill().restart();
    assert_eq!(Connect::v5("sleeper").persistent().open(gateway_again.port).receive().text(), "kept");
    gateway = gateway_again;
    assert_it_serves(&mut gateway);
}

#[test]
fn wills_are_bounded_by_who_has_most_of_them() {
    let user = crate::support::quick_hash("secret");
    let gateway = Gateway::with(&format!(
        "[broker]\nmax_connections = 1000\n[[broker.user]]\nname = \"ada\"\npassword_hash = \"{user}\"\n"
    ));
    let large = "w".repeat(60_000);
    let with_will = |number: usize| {
        let delay = Properties::new().four(0x18, 3600);
        Connect::v5(&format!("{number}")).persistent().will_with("will", &large, 1, false, delay)
    };
    let mut clients = VecDeque::new();
    let refusal = loop {
        let (client, connack) = with_will(clients.len()).try_open(gateway.port);
        if connack.reason != 0 {
            break connack.reason;
        }
        clients.push_back(client);
        assert!(clients.len() < 200, "nobody is refused");
    };
    assert_eq!((refusal, clients.len() > 50), (0x97, true), "{}", clients.len());
    assert_eq!(Connect::new("old").will("will", &large, 1, false).refused(gateway.port), 3);
    // others have their share, and small wills cost nearly nothing
    Connect::new("ada").login("ada", "secret").will("will", &large, 1, false).open(gateway.port);
    Connect::new("small").will("will", "offline", 1, false).open(gateway.port);
    // a client that comes back replaces its own will, also that of a session that waits for its delay
    drop(clients.pop_front());
    wait_until("it has left", || with_will(0).try_open(gateway.port).1.reason == 0);
    assert_eq!(with_will(500).refused(gateway.port), 0x97);
    clients.pop_back().unwrap().disconnect();
    wait_until("there is room again", || with_will(500).try_open(gateway.port).1.reason == 0);
}
