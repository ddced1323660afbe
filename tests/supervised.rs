//! The gateway is one process that reports how it ends: in order when it is told to, and at once with one clear sentence
//! when it cannot start.

mod support;

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::packet::{V31, V311};
use support::{Connect, Gateway, Setup, free_port};

/// `TimeoutStopSec` of the unit: systemd kills a process that takes longer.
const STOP: Duration = Duration::from_secs(10);

/// The last printed line, which names the cause.
fn last(log: &[String]) -> &str {
    log.last().map_or("", String::as_str)
}

#[test]
fn sigterm_and_ctrl_c_end_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let gateway = Gateway::start();
        let mut clients: Vec<_> = (0..20).map(|number| Connect::v5(&number.to_string()).open(gateway.port)).collect();
        let mut old =
            [V31, V311].map(|version| Connect::version(version, &format!("old-{version}")).open(gateway.port));
        clients[0].subscribe("a", 1);
        let silent = TcpStream::connect(gateway.address()).expect("the port is open");
        let begin = Instant::now();
        gateway.signal(signal);
        for client in &mut clients {
            client.closed_with(0x8b);
        }
        for client in &mut old {
            assert_eq!(client.closed(), []);
        }
        let (code, log) = gateway.wait();
        assert!(begin.elapsed() < STOP, "{:?}", begin.elapsed());
        assert_eq!(code, Some(0), "{log:?}");
        assert!(last(&log).contains("stopped"), "{log:?}");
        drop(silent);
    }
}

#[test]
fn everybody_hears_that_sensors_are_offline_before_the_end() {
    let sensor = "[[sensor]]\nname = \"loft\"\npin = 17\ntopic = \"loft/motion1\"\nsimulate = [\"1 h off\"]\n";
    let gateway = Gateway::with(sensor);
    let mut clients: Vec<_> = (0..20).map(|number| Connect::v5(&number.to_string()).open(gateway.port)).collect();
    for (number, client) in (0..).zip(&mut clients) {
        client.subscribe("loft/motion1/status", number % 3);
        let online = client.receive();
        assert_eq!((online.payload, online.retain), (b"online".to_vec(), true));
    }
    gateway.signal(Signal::TERM);
    for client in &mut clients {
        let offline = client.receive_unacked();
        assert_eq!((offline.payload, offline.retain), (b"offline".to_vec(), false));
        client.closed_with(0x8b);
    }
    assert_eq!(gateway.wait().0, Some(0));
}

#[test]
fn it_ends_within_a_second_when_nobody_hangs() {
    let end = || {
        let gateway = Gateway::start();
        let mut client = Connect::v5("a").open(gateway.port);
        client.subscribe("a", 1);
        let begin = Instant::now();
        assert_eq!(gateway.stop().0, Some(0));
        begin.elapsed()
    };
    // other programs may use the processor for a moment, but a gateway that waits for something would do so each time
    let quickest = (0..20).map(|_| end()).find(|took| *took < Duration::from_secs(1));
    assert!(quickest.is_some(), "not once of twenty times");
}

#[test]
fn a_client_that_takes_nothing_does_not_hold_up_the_end() {
    let gateway = Gateway::start();
    let mut stuck = Connect::v5("stuck").open(gateway.port);
    stuck.subscribe("a", 0);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let payload = vec![b'x'; 100_000];
    for _ in 0..100 {
        publisher.publish("a", &payload, 0, false);
    }
    publisher.ping();
    let begin = Instant::now();
    let (code, log) = gateway.stop();
    assert!(begin.elapsed() < STOP, "{:?}", begin.elapsed());
    assert_eq!(code, Some(0), "{log:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let setup = Setup::default();
    let mut gateway = Gateway::start();
    let setup = setup.port(gateway.port);
    let (code, log) = setup.spawn().wait();
    assert_eq!(code, Some(69), "{log:?}");
    let line = last(&log);
    assert!(line.contains(&gateway.port.to_string()) && line.contains("another program listens there"), "{log:?}");
    assert!(gateway.is_running());
    Connect::new("a").open(gateway.port).ping();
}

#[test]
fn a_port_that_a_test_is_given_is_free_while_programs_are_started() {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
        }
        let taken: Vec<_> = (0..300).filter_map(|_| TcpListener::bind(("127.0.0.1", free_port())).err()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(taken.is_empty(), "{taken:?}");
    });
}

#[test]
fn all_ports_taken_leaves_nothing_to_serve() {
    let taken = [0; 2].map(|port: u16| TcpListener::bind(("127.0.0.1", port)).expect("a port"));
    let [first, second] = taken.each_ref().map(|taken| taken.local_addr().expect("its address"));
    let setup = Setup::default().config(&format!("[[broker.listener]]\naddress = \"{second}\"")).port(first.port());
    let (code, log) = setup.spawn().wait();
    assert_eq!(code, Some(69), "{log:?}");
    assert!(last(&log).contains(&first.to_string()), "{log:?}");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let setup = Setup::default();
    std::fs::write(setup.dir().join("data"), "a file").expect("a file");
    let (code, log) = setup.spawn().wait();
    assert_eq!(code, Some(73), "{log:?}");
    assert!(last(&log).contains("data directory") && last(&log).contains("/data"), "{log:?}");
    assert!(TcpListener::bind(("127.0.0.1", setup.port_number())).is_ok());

    let setup = Setup::default();
    let data = setup.dir().join("data");
    std::fs::create_dir(&data).expect("a directory");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o500)).expect("permissions");
    if std::fs::write(data.join("x"), "").is_err() {
        // root can write everywhere
        assert_eq!(setup.spawn().wait().0, Some(73));
    }
}

#[test]
fn two_gateways_do_not_share_a_data_directory() {
    let gateway = Gateway::start();
    let data = gateway.dir().join("data");
    let setup = Setup::default();
    std::os::unix::fs::symlink(data, setup.dir().join("data")).expect("a link");
    let (code, log) = setup.spawn().wait();
    assert_eq!(code, Some(73), "{log:?}");
}

#[test]
fn a_broken_file_is_reported_with_its_places() {
    let setup = Setup::default().config("[broker]\nmax_conections = 5\nmax_inflight = \"many\"");
    let (code, log) = setup.spawn().wait();
    assert_eq!(code, Some(78), "{log:?}");
    let text = log.join("\n");
    for part in ["pigateway.toml:", "max_conections", "max_connections", "max_inflight"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!setup.dir().join("data").exists(), "nothing is half-started");
}

#[test]
fn a_session_that_fails_costs_only_its_connection() {
    let mut gateway = Gateway::start();
    let mut other = Connect::v5("other").open(gateway.port);
    for bytes in [&b"\x30\x03\0\x01\xff"[..], b"\x82\x02\0\0", b"\xff\xff\xff\xff\xff", b"\x10\0"] {
        let mut broken = Connect::v5("broken").open(gateway.port);
        broken.send(bytes);
        broken.closed();
        other.ping();
    }
    assert!(gateway.is_running());
    assert!(!gateway.log().iter().any(|line| line.contains("panic")));
}
