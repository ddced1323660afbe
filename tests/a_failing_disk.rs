//! Disks that cannot be written because they are full, read-only, gone or broken. Clients whose messages need not be kept do
//! not notice. Messages that must be kept are acknowledged when they are safe, or refused, as configured. Log and status say
//! what is wrong and what to do. When the disk can be written again, everything works without a restart.
//!
//! Full and read-only disks are file systems of the test's own, in a user and mount namespace. If the system does not allow
//! users to make these, the tests must run as root.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use pigateway::broker::Broker;
use pigateway::broker::settings::{BrokerSettings, ListenerSettings};
use pigateway::journal::Journal;
use pigateway::journal::settings::JournalSettings;
use pigateway::journal::storage::memory::{Faults, MemoryStorage};
use pigateway::time::SystemClock;
use serde_json::Value;
use support::packet::{Properties, publish};
use support::{Client, Connect, Gateway, Mosquitto, Setup, contents, wait_until};
use tokio_util::sync::CancellationToken;

fn config(upstream: u16, when_full: &str) -> String {
    format!(
        "[journal]\nwhen_full = \"{when_full}\"\n[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{upstream}\"]\n\
         [[upstream.out]]\ntopic_filter = \"up/#\"\n"
    )
}

fn journal(http: u16) -> Value {
    support::http::get(http, "/api/v1/gateway").json()["journal"].take()
}

/// Publishes a message that must be kept, at QoS 1 with this packet id, and does not wait for the answer.
fn send(client: &mut Client, id: u16, version: u8) {
    let properties = Properties::new();
    client.send(&publish(b"up/x", b"kept", 0x32, Some(id), (version == 5).then_some(&properties)));
}

/// Checks that other clients are served.
fn local_clients_are_served(port: u16) {
    let mut client = Connect::new("local").open(port);
    client.subscribe("local", 1);
    assert_eq!(client.publish("local", "x", 1, false), 0);
    assert_eq!(contents(&client.drain()), [("local", "x".into())]);
}

#[test]
fn a_full_disk_delays_puback_says_so_and_heals_by_itself() {
    let upstream = support::free_port();
    let (setup, http) = Setup::default().config(&config(upstream, "drop_oldest")).http();
    let gateway = setup.start_after(FULL);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    send(&mut publisher, 7, 5);
    let line = gateway.wait_for_line("are not acknowledged any more");
    let dir = gateway.dir().join("data/journal").display().to_string();
    for part in [&*dir, "has no room left", "delete what is not needed"] {
        assert!(line.contains(part), "{line}");
    }
    let status = journal(http);
    assert!(status["failing"].as_str().is_some_and(|text| text.contains(&dir)), "{status}");
    let metrics = support::http::get(http, "/metrics").text();
    assert!(metrics.contains("\npigateway_journal_failing 1\n"), "{metrics}");
    local_clients_are_served(gateway.port);
    // the later ping is answered, and the message that must be kept is not
    publisher.ping();

    make_room(&gateway);
    assert_eq!(publisher.expect(4).id(), 7);
    gateway.wait_for_line("writes again");
    wait_until("the status is well again", || journal(http)["failing"].is_null());
    let status = journal(http);
    assert!(status["last_error"].as_str().is_some_and(|text| text.contains("has no room left")), "{status}");
    assert!(status["messages"] == 1 && status["used_bytes"].as_u64() > Some(512 << 10), "{status}");
    it_arrives(upstream, &["kept"]);
}

#[test]
fn a_limit_of_files_is_a_full_disk_and_not_the_end() {
    let gateway = Setup::default().start_after("ulimit -f 100");
    let mut client = Connect::v5("client").open(gateway.port);
    client.send(&publish(b"kept", b"x", 0x33, Some(7), Some(&Properties::new())));
    gateway.wait_for_line("has no room left");
    client.ping();
    local_clients_are_served(gateway.port);
}

#[test]
fn a_full_disk_refuses_where_it_is_told_to() {
    let upstream = support::free_port();
    let (setup, http) = Setup::default().config(&config(upstream, "refuse")).http();
    let gateway = setup.start_after(FULL);
    let mut first = Connect::v5("first").open(gateway.port);
    send(&mut first, 1, 5);
    wait_until("trouble is known", || journal(http)["failing"].is_string());
    let mut v5 = Connect::v5("v5").open(gateway.port);
    assert_eq!(v5.publish("up/x", "refused", 1, false), 0x97);
    // MQTT 3 cannot refuse a message, so there is no PUBACK and the client keeps the message
    let mut v3 = Connect::new("v3").open(gateway.port);
    send(&mut v3, 1, 4);
    v3.ping();
    local_clients_are_served(gateway.port);
    make_room(&gateway);
    assert_eq!(first.expect(4).id(), 1);
    wait_until("it takes messages again", || v5.publish("up/x", "taken", 1, false) == 0);
    it_arrives(upstream, &["kept", "taken"]);
}

/// A file system of 12 MiB with too little room for the journal's first file, which has a sixteenth of the size of the file
/// system.
const FULL: &str = "mkdir data; mount -t tmpfs -o size=12m tmpfs data; head -c 11900K /dev/zero >data/ballast";

fn make_room(gateway: &Gateway) {
    let ballast = gateway.dir().join("data/ballast");
    gateway.run_inside(&["rm", &ballast.display().to_string()]);
}

/// Checks that the messages that were finally acknowledged arrive.
fn it_arrives(upstream: u16, payloads: &[&str]) {
    let mosquitto = Mosquitto::with("");
    let mut reader = Connect::new("reader").open(mosquitto.port);
    reader.subscribe("up/#", 1);
    mosquitto.also_at(upstream);
    let received: Vec<String> = payloads.iter().map(|_| reader.receive().text()).collect();
    assert_eq!(received, payloads);
}

#[test]
fn what_is_retained_at_qos_0_while_the_disk_is_full_is_there_after_it_has_healed_and_a_restart() {
    // copies the files from the file system of the test's own, which ends with the gateway
    let copy = "{ (tail --pid=$$ -f /dev/null; cp -a data/journal copy && mv copy copied) >/dev/null 2>&1 & }";
    for when_full in ["refuse", "drop_oldest"] {
        let rules = format!("[journal]\nwhen_full = \"{when_full}\"\n");
        let (setup, http) = Setup::default().config(&rules).http();
        let gateway = setup.start_after(&format!("mkdir data; mount -t tmpfs -o size=12m tmpfs data; {copy}"));
        let mut client = Connect::v5("client").open(gateway.port);
        client.publish("lamp", "old", 0, true);
        client.publish("gone", "old", 0, true);
        // what has no hurry is written with it
        assert_eq!(client.publish("asked", "1", 1, true), 0);
        let data = gateway.dir().join("data").display().to_string();
        gateway.run_inside(&["sh", "-c", &format!("head -c 12M /dev/zero >{data}/ballast; true")]);
        let mut filler = Connect::v5("filler").open(gateway.port);
        for number in 0u16.. {
            let topic = format!("fill/{}", number % 4);
            filler.send(&publish(topic.as_bytes(), &[b'x'; 200_000], 0x33, Some(number + 1), Some(&Properties::new())));
            if journal(http)["refused"].as_u64() > Some(0) {
                break;
            }
            assert!(number < 300, "{}", journal(http));
        }
        client.publish("lamp", "new", 0, true);
        client.publish("gone", "", 0, true);
        client.ping();
        gateway.run_inside(&["rm", &format!("{data}/ballast")]);
        wait_until("it takes messages again", || client.publish("asked", "2", 1, true) == 0);
        wait_until("the status is well again", || journal(http)["failing"].is_null());
        let left = gateway.end();
        let path = |name: &str| left.dir().join(name);
        wait_until("a copy", || path("copied").exists());
        std::fs::create_dir_all(path("data")).unwrap();
        std::fs::rename(path("copied"), path("data/journal")).unwrap();
        let gateway = left.restart();
        let mut client = Connect::new("client").open(gateway.port);
        client.subscribe("+", 1);
        let mut kept = [client.receive(), client.receive()].map(|message| (message.topic.clone(), message.text()));
        kept.sort();
        assert_eq!(kept, [("asked".into(), "2".into()), ("lamp".into(), "new".into())], "{when_full}");
        client.ping();
    }
}

#[test]
fn a_read_only_disk_is_read_and_written_once_it_can_be() {
    let upstream = support::free_port();
    let rules = config(upstream, "drop_oldest");
    let gateway = Gateway::with(&rules);
    let mut client = Connect::new("client").open(gateway.port);
    client.publish("kept", "before", 1, true);
    client.publish("up/x", "before", 1, false);
    let gateway = gateway.end().setup().config(&rules);
    let gateway = gateway.start_after("mount --bind data data; mount -o remount,bind,ro data");
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("kept", 1);
    assert_eq!(contents(&[client.receive()]), [("kept", "before".into())]);
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    send(&mut publisher, 7, 5);
    gateway.wait_for_line("is on a file system that is read-only");
    local_clients_are_served(gateway.port);
    publisher.ping();
    let data = gateway.dir().join("data").display().to_string();
    gateway.run_inside(&["mount", "-o", "remount,bind,rw", &data]);
    assert_eq!(publisher.expect(4).id(), 7);
    it_arrives(upstream, &["before", "kept"]);
}

#[test]
fn a_directory_that_vanishes_is_made_again_with_what_is_known() {
    let upstream = support::free_port();
    let gateway = Gateway::with(&config(upstream, "drop_oldest"));
    let mut client = Connect::new("client").open(gateway.port);
    let mut sleeper = Connect::new("sleeper").persistent().open(gateway.port);
    sleeper.subscribe("news", 1);
    sleeper.disconnect();
    client.publish("kept", "before", 1, true);
    std::fs::remove_dir_all(gateway.dir().join("data")).unwrap();
    client.publish("up/x", "after", 1, false);
    gateway.wait_for_line("written elsewhere");
    local_clients_are_served(gateway.port);
    wait_until("a snapshot", || Path::new(&gateway.dir().join("data/journal/snapshot")).exists());
    let gateway = gateway.kill().restart();
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("kept", 1);
    assert_eq!(contents(&[client.receive()]), [("kept", "before".into())]);
    assert!(Connect::new("sleeper").persistent().open_with(gateway.port).1.present);
    it_arrives(upstream, &["after"]);
}

/// Sends a message that must be kept, and returns what `/readyz` says once it is known that it is not written.
fn is_refused(gateway: &Gateway, http: u16, why: &str) {
    let mut client = Connect::new("late").open(gateway.port);
    send(&mut client, 9, 4);
    wait_until("it is said", || journal(http)["failing"].as_str().is_some_and(|text| text.contains(why)));
    let ready = support::http::get(http, "/readyz").text();
    assert!(ready.contains("journal"), "{ready}");
    client.ping();
    local_clients_are_served(gateway.port);
}

#[test]
fn a_file_of_another_user_is_left_as_it_is_and_is_read_after_the_restart() {
    let upstream = support::free_port();
    let rules = config(upstream, "drop_oldest");
    for path in ["data/journal/00000000.segment", "data/journal"] {
        let gateway = Gateway::with(&rules);
        let mut sleeper = Connect::new("sleeper").persistent().open(gateway.port);
        sleeper.subscribe("news", 1);
        Connect::new("client").open(gateway.port).publish("kept", "before", 1, true);
        let left = gateway.end();
        let file = left.dir().join(path);
        let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0);
        // without these capabilities a file without permissions is like one of another user
        let as_another = "exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\" run --config \"$1\"";
        let (setup, http) = left.setup().config(&rules).http();
        let gateway = setup.start_after(as_another);
        wait_until("it is said", || {
            journal(http)["failing"].as_str().is_some_and(|text| text.contains("give it to the user"))
        });
        is_refused(&gateway, http, "give it to the user");
        // the person does what it says
        mode(0o700);
        is_refused(&gateway, http, "restart pigateway");
        let gateway = gateway.end().restart();
        let mut client = Connect::new("client").open(gateway.port);
        client.subscribe("kept", 1);
        assert_eq!(contents(&[client.receive()]), [("kept", "before".into())]);
        assert!(Connect::new("sleeper").persistent().open_with(gateway.port).1.present);
        let names =
            std::fs::read_dir(gateway.dir().join("data/journal")).unwrap().map(|file| file.unwrap().file_name());
        assert!(!names.map(|name| name.into_string().unwrap()).any(|name| name.ends_with("set-aside")));
    }
}

#[test]
fn a_disk_that_is_mounted_late_keeps_the_journal_on_it() {
    let gateway = Gateway::with("");
    Connect::new("client").open(gateway.port).publish("kept", "before", 1, true);
    let left = gateway.end();
    std::fs::rename(left.dir().join("data"), left.dir().join("disk")).unwrap();
    let (setup, http) = left.setup().http();
    let gateway = setup.start_after("mkdir data");
    let path = |name: &str| gateway.dir().join(name).display().to_string();
    gateway.run_inside(&["mount", "--bind", &path("disk"), &path("data")]);
    let mut client = Connect::new("other").open(gateway.port);
    client.send(&publish(b"kept", b"new", 0x33, Some(1), None));
    wait_until("it is said", || {
        journal(http)["failing"].as_str().is_some_and(|text| text.contains("restart pigateway, which then reads it"))
    });
    client.ping();
    let left = gateway.kill();
    std::fs::remove_dir_all(left.dir().join("data")).unwrap();
    std::fs::rename(left.dir().join("disk"), left.dir().join("data")).unwrap();
    let gateway = left.restart();
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("kept", 1);
    assert_eq!(contents(&[client.receive()]), [("kept", "before".into())]);
}

#[test]
fn what_is_acknowledged_after_the_journal_has_moved_is_found_by_the_next_start() {
    let gateway = Setup::default().start_after("mkdir data empty");
    let path = |name: &str| gateway.dir().join(name).display().to_string();
    let steps: [&dyn Fn(); 3] =
        [&|| {}, &|| std::fs::rename(path("data/journal"), path("data/moved")).unwrap(), &|| {
            gateway.run_inside(&["mount", "--bind", &path("empty"), &path("data")])
        }];
    let mut sleeper = Connect::new("sleeper").persistent().open(gateway.port);
    for (number, step) in steps.into_iter().enumerate() {
        step();
        let mut client = Connect::new("client").open(gateway.port);
        assert_eq!(client.publish(&format!("kept/{number}"), "x", 1, true), 0);
        sleeper.subscribe(&format!("news/{number}"), 1);
        sleeper.disconnect();
        assert_eq!(client.publish(&format!("news/{number}"), "x", 1, false), 0);
        sleeper = Connect::new("sleeper").persistent().open(gateway.port);
        sleeper.receive();
    }
    drop(sleeper);
    let left = gateway.kill();
    std::fs::remove_dir_all(left.dir().join("data")).unwrap();
    std::fs::rename(left.dir().join("empty"), left.dir().join("data")).unwrap();
    let gateway = left.restart();
    let mut client = Connect::new("client").open(gateway.port);
    client.subscribe("kept/#", 1);
    let mut kept: Vec<String> = (0..3).map(|_| client.receive().topic).collect();
    kept.sort();
    assert_eq!(kept, ["kept/0", "kept/1", "kept/2"]);
    assert!(Connect::new("sleeper").persistent().open_with(gateway.port).1.present);
}

/// Starts a broker on a disk of the test's own, and returns its port.
fn broker_on(storage: &MemoryStorage, runtime: &tokio::runtime::Runtime) -> u16 {
    let clock = Arc::new(SystemClock);
    let settings = JournalSettings { max_size: 8 << 20, ..JournalSettings::default() };
    let journal = Journal::open(Arc::new(storage.clone()), settings, clock.clone()).unwrap();
    let _guard = runtime.enter();
    let listener = ListenerSettings { address: ([127, 0, 0, 1], 0).into(), ..ListenerSettings::default() };
    let settings = BrokerSettings { listeners: vec![listener], ..BrokerSettings::default() };
    let cancel = CancellationToken::new();
    let broker = Broker::open(settings, journal, clock, cancel.clone()).unwrap();
    let port = broker.addresses()[0].port();
    let Broker { core, dispatcher, listeners, connections } = broker;
    let probe = core.ingress.clone();
    let (_, pulse) = pigateway::health::PulseTaker::new();
    runtime.spawn(dispatcher.run(cancel, move || probe.probe(), pulse));
    for listener in listeners {
        runtime.spawn(listener.run(core.clone(), connections.clone()));
    }
    port
}

#[test]
fn no_puback_leaves_before_the_sync_has_succeeded() {
    let storage = MemoryStorage::default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let port = broker_on(&storage, &runtime);
    let mut client = Connect::v5("client").open(port);
    client.publish("kept", "0", 1, true);
    for (faults, first, answer) in [
        (Faults { hold_sync: true, ..Faults::default() }, 0x33, 4),
        (Faults { hold_sync: true, ..Faults::default() }, 0x35, 5),
        // EIO: the kernel then considers the pages clean, so the journal writes them to another file
        (Faults { sync: Some(5), ..Faults::default() }, 0x33, 4),
        (Faults { write: Some(5), ..Faults::default() }, 0x35, 5),
    ] {
        storage.set_faults(faults);
        client.send(&publish(b"kept", b"1", first, Some(9), Some(&Properties::new())));
        client.ping();
        local_clients_are_served(port);
        client.ping();
        // the publisher gets no acknowledgement for messages that a power cut would lose
        let cut = storage.after_power_cut();
        let clock = Arc::new(SystemClock);
        let settings = JournalSettings { max_size: 8 << 20, ..JournalSettings::default() };
        let left = Journal::open(Arc::new(cut), settings, clock).unwrap().recovered();
        assert_eq!(left.retained[0].view().payload(), b"0", "{faults:?}");
        storage.set_faults(Faults::default());
        assert_eq!(client.expect(answer).id(), 9);
        if answer == 5 {
            client.ack(0x62, 9);
            client.expect(7);
        }
        client.publish("kept", "0", 1, true);
    }
}
