//! Messages that are dropped because of limits are reported: the log names for whom they were, and all places show exact
//! counts.

#![allow(clippy::unwrap_used)]

mod support;

use support::broker::gateway;
use support::packet::Properties;
use support::{Connect, Gateway, Process, Setup, free_port, http, wait_until};

const OPEN: &str = "[broker.anonymous]\nsubscribe = [\"#\", \"$SYS/#\"]\n";

fn upstream(when_full: &str) -> String {
    format!(
        "{OPEN}[journal]\nmax_size = \"1 MiB\"\nwhen_full = \"{when_full}\"\n[[upstream]]\nname = \"home\"\n\
         addresses = [\"mqtt://127.0.0.1:{}\"]\n[[upstream.out]]\ntopic_filter = \"loft/#\"\n",
        free_port()
    )
}

/// Waits until a `$SYS` topic has the expected value.
fn wait_for_figure(gateway: &Gateway, name: &str, is_right: impl Fn(u64) -> bool) {
    let mut client = Connect::new("figures").open(gateway.port);
    client.subscribe(&format!("$SYS/broker/{name}"), 0);
    while !is_right(client.receive().text().parse().unwrap()) {}
}

/// The fields of the line of `pigateway journal` that begins with this name.
fn journal_line(gateway_under_test: &Gateway, name: &str) -> Vec<String> {
    let data = gateway_under_test.dir().join("data");
    let (code, lines) = Process::start(gateway().arg("journal").arg(data)).wait();
    assert_eq!(code, Some(0), "{lines:?}");
    let line = lines.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{lines:?}"));
    line.split_whitespace().map(Into::into).collect()
}

#[test]
fn of_a_client_that_is_there_and_too_slow() {
    let (setup, port) = Setup::default().config(&format!("{OPEN}[broker]\nmax_queued_messages = 10\n")).http();
    let gateway = setup.start();
    // this client acknowledges nothing
    let mut mute = Connect::v5("mute").properties(Properties::new().two(0x21, 10)).open(gateway.port);
    mute.subscribe("news/#", 1);
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..100 {
        publisher.publish("news/a", number.to_string(), 1, false);
    }
    let line = gateway.wait_for_line("reads too slowly");
    assert!(line.contains("mute") && line.contains("dropped=") && !line.contains("dropped=0"), "{line}");
    let lost = || {
        let clients = http::get(port, "/api/v1/clients").json();
        let lost =
            |id: &str| clients.as_array().unwrap().iter().find(|c| c["client_id"] == id).unwrap()["dropped"].as_u64();
        assert_eq!(lost("publisher"), Some(0));
        lost("mute").unwrap()
    };
    // messages in flight and waiting messages are not lost
    wait_until("the count", || (50..100).contains(&lost()));
    let lost = lost();
    wait_for_figure(&gateway, "publish/messages/dropped", |count| count == lost);
    drop(mute);
    let line = gateway.wait_for_line("too slow to the end");
    assert!(line.contains("mute") && line.contains(&format!("dropped={lost}")), "{line}");
}

#[test]
fn of_the_session_of_a_client_that_is_away() {
    let (setup, port) = Setup::default().config(&format!("{OPEN}[broker]\nmax_queued_messages = 10\n")).http();
    let gateway = setup.start();
    let sleeper = || Connect::new("sleeper").persistent();
    let mut client = sleeper().open(gateway.port);
    client.subscribe("news/#", 1);
    client.disconnect();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..35 {
        publisher.publish("news/a", number.to_string(), 1, false);
    }
    let line = gateway.wait_for_line("the session of client sleeper has lost its oldest messages");
    assert!(line.contains("ERROR") && line.contains("broker.max_queued_messages"), "{line}");
    let lines = gateway.log().iter().filter(|line| line.contains("has lost")).count();
    assert_eq!(lines, 1, "not one for each");
    let _client = sleeper().open(gateway.port);
    wait_until("the counts", || {
        let clients = http::get(port, "/api/v1/clients").json();
        let clients = clients.as_array().unwrap().clone();
        clients.iter().any(|client| client["client_id"] == "sleeper" && client["dropped"] == 25)
    });
    wait_for_figure(&gateway, "publish/messages/dropped", |count| count == 25);
    assert!(http::get(port, "/metrics").text().contains("pigateway_queue_dropped_total 25\n"));
}

#[test]
fn of_an_upstream_whose_oldest_messages_make_room() {
    let (setup, port) = Setup::default().config(&upstream("drop_oldest")).http();
    let mut gateway = setup.start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for _ in 0..150 {
        publisher.publish("loft/a", [b'x'; 10_000], 1, false);
    }
    let line = gateway.wait_for_line("upstream home has lost its oldest messages");
    assert!(line.contains("ERROR") && line.contains("journal.max_size"), "{line}");
    let ledger = http::get(port, "/api/v1/upstreams").json()[0]["ledger"].clone();
    let (dropped, pending) = (ledger["dropped"]["journal_full"].as_u64().unwrap(), ledger["pending"].as_u64().unwrap());
    assert!(dropped > 0 && dropped + pending == 150, "{ledger}");
    wait_for_figure(&gateway, "connection/home/messages/dropped", |count| count == dropped);
    let metrics = http::get(port, "/metrics").text();
    let expected = format!("pigateway_upstream_dropped_total{{upstream=\"home\",reason=\"journal_full\"}} {dropped}\n");
    assert!(metrics.contains(&expected), "{expected} in {metrics}");
    gateway.signal(rustix::process::Signal::TERM);
    wait_until("its end", || !gateway.is_running());
    let fields = journal_line(&gateway, "upstream/home");
    assert_eq!((&*fields[1], &*fields[6], &*fields[8]), ("150", &*dropped.to_string(), &*pending.to_string()));
}

#[test]
fn when_the_journal_refuses_it_names_who_holds_the_space() {
    let gateway = Gateway::with(&upstream("refuse"));
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    let mut accepted = 0;
    while publisher.publish("loft/a", [b'x'; 10_000], 1, false) != 0x97 {
        accepted += 1;
    }
    assert!(accepted > 50, "{accepted}");
    let line = gateway.wait_for_line("journal: full (journal.max_size)");
    assert!(line.contains("ERROR") && line.contains("wait for upstream home"), "{line}");
}

#[test]
fn what_the_journal_can_never_take_holds_up_no_client() {
    let (setup, port) = Setup::default().config(&format!("{OPEN}[journal]\nmax_size = \"4 MiB\"\n")).http();
    let gateway = setup.start();
    // its session must keep them
    let mut reader = Connect::new("reader").persistent().open(gateway.port);
    reader.subscribe("a/#", 2);
    let large = vec![b'x'; 1900 << 10];
    for qos in [1, 2] {
        // without an answer such a client sends it again and again, and nothing else
        let mut older = Connect::new("older").open(gateway.port);
        older.publish("a/large", &large, qos, false);
        older.publish("a/small", "later", qos, false);
        assert_eq!(reader.receive().text(), "later");
        let mut newer = Connect::v5("newer").open(gateway.port);
        assert_eq!(newer.publish("a/large", &large, qos, false), 0x97);
        assert_eq!(newer.publish("a/small", "later", qos, false), 0);
        assert_eq!(reader.receive().text(), "later");
    }
    for name in ["older", "newer"] {
        let line = gateway.wait_for_line(&format!("client_id=\"{name}\""));
        assert!(line.contains("ERROR") && line.contains("a/large") && line.contains("journal.max_size"), "{line}");
        let lines = gateway.log().iter().filter(|line| line.contains(name) && line.contains("not taken")).count();
        assert_eq!(lines, 1, "once");
        let status = http::get(port, "/api/v1/gateway").text();
        assert!(status.contains(&format!("client {name}")), "{status}");
    }
    wait_for_figure(&gateway, "publish/messages/dropped", |count| count == 4);
}
