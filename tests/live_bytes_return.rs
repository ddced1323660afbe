//! All memory that clients have used is freed, to the last byte, however many clients come and go. The gateway runs within
//! this process, whose allocator counts the bytes in use. `hostile_clients` tests how much memory the system's allocator
//! keeps.

#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::System;
use std::thread;
use std::time::Duration;

use cap::Cap;
use clap::Parser;
use pigateway::cli::Cli;
use rustix::process::{Signal, getpid, kill_process};
use support::packet::{Properties, publish};
use support::{Client, Connect, Setup, wait_until};

#[global_allocator]
static IN_USE: Cap<System> = Cap::new(System, usize::MAX);

/// The number of rounds in the usual run. `ROUNDS=1000` makes more.
const USUAL: usize = 200;
/// The number of rounds until everything that is bounded is full, such as buffers, tables and statistics.
const WARM_UP: usize = 50;

/// What clients do in a round, under names that no other round uses, and how many more bytes may be in use in the end. Most
/// kinds return to the same number. The journal knows a will and a session until its next sync or its next segment, and
/// batches of messages have different sizes.
const HABITS: [(&str, Habit, usize); 6] = [
    ("many filters", many_filters, 32 << 10),
    ("many clients", many_clients, 32 << 10),
    ("many topics", many_topics, 512 << 10),
    ("wills", wills, 128 << 10),
    ("sessions that are given up", a_session_that_is_given_up, 128 << 10),
    ("shared subscriptions", a_shared_subscription, 32 << 10),
];
type Habit = fn(usize, &mut Client, u16);

/// The number of bytes in use, once no more are freed.
fn settled() -> usize {
    let mut least = IN_USE.allocated();
    let mut unchanged = 0;
    while unchanged < 20 {
        thread::sleep(Duration::from_millis(10));
        let now = IN_USE.allocated();
        unchanged = if now < least { 0 } else { unchanged + 1 };
        least = least.min(now);
    }
    least
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(USUAL);
    let setup = Setup::default();
    let (path, port) = (setup.write(), setup.port_number());
    // relative paths of the configuration are relative to its file
    let cli = Cli::parse_from(["pigateway".as_ref(), "run".as_ref(), "--config".as_ref(), path.as_os_str()]);
    let gateway = thread::spawn(move || cli.execute().map_err(|error| error.to_string()));
    wait_until("it serves", || support::broker::is_served(port));

    let mut publisher = Connect::v5("publisher").open(port);
    for (what, habit, slack) in HABITS {
        (0..WARM_UP).for_each(|number| habit(number, &mut publisher, port));
        let before = settled();
        (WARM_UP..WARM_UP + rounds).for_each(|number| habit(number, &mut publisher, port));
        let after = settled();
        println!("{what}: {before} bytes after {WARM_UP} rounds, {after} after {rounds} more");
        assert!(after < before + slack, "{what}: {before} bytes after {WARM_UP} rounds, {after} after {rounds} more");
    }

    publisher.disconnect();
    kill_process(getpid(), Signal::TERM).unwrap();
    assert_eq!(gateway.join().unwrap(), Ok(()));
}

fn many_clients(number: usize, _: &mut Client, port: u16) {
    for id in 0..10 {
        let mut client = Connect::new(&format!("id-{number}-{id}")).open(port);
        client.subscribe(&format!("own/{number}/{id}"), 1);
        client.reset();
    }
}

fn wills(number: usize, publisher: &mut Client, port: u16) {
    for id in 0..5 {
        let topic = format!("will/{number}/{id}");
        Connect::new(&format!("will-{number}-{id}")).will(&topic, "gone", 1, false).open(port).vanish();
    }
    // changes of wills are collected until the next sync
    assert_eq!(publisher.publish("will/sync", "x", 1, true), 0);
}

fn many_filters(number: usize, publisher: &mut Client, port: u16) {
    let mut client = Connect::v5(&format!("filters-{number}")).open(port);
    for block in 0..10 {
        let filters: Vec<String> = (0..100).map(|at| format!("f/{number}/{}/+", block * 100 + at)).collect();
        let wanted: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
        assert!(client.subscribe_all(&wanted, &Properties::new()).iter().all(|granted| *granted == 1));
    }
    for at in [0, 500, 999] {
        publisher.publish(&format!("f/{number}/{at}/x"), "x", 1, false);
        assert_eq!(client.receive().topic, format!("f/{number}/{at}/x"));
    }
    client.vanish();
}

fn many_topics(number: usize, publisher: &mut Client, _: u16) {
    let burst: Vec<u8> = (0..1000)
        .flat_map(|at| publish(format!("t/{number}/{at}").as_bytes(), b"x", 0, None, Some(&Properties::new())))
        .collect();
    publisher.send(&burst);
    for payload in ["kept", ""] {
        (0..10).for_each(|at| assert_eq!(publisher.publish(&format!("kept/{number}/{at}"), payload, 1, true), 0));
    }
}

fn a_session_that_is_given_up(number: usize, publisher: &mut Client, port: u16) {
    let (id, topic) = (format!("sleeper-{number}"), format!("later/{number}"));
    let mut client = Connect::v5(&id).persistent().open(port);
    client.subscribe(&topic, 1);
    client.vanish();
    (0..5).for_each(|_| assert_eq!(publisher.publish(&topic, vec![b'x'; 500], 1, false), 0));
    let (client, connack) = Connect::v5(&id).clean(true).open_with(port);
    assert!(!connack.present);
    client.disconnect();
}

fn a_shared_subscription(number: usize, publisher: &mut Client, port: u16) {
    let filter = format!("$share/group-{number}/shared/{number}");
    let mut members: Vec<Client> = ["a", "b"].map(|id| Connect::v5(&format!("{id}-{number}")).open(port)).into();
    members.iter_mut().for_each(|member| assert_eq!(member.subscribe(&filter, 1), 1));
    (0..10).for_each(|_| assert_eq!(publisher.publish(&format!("shared/{number}"), "x", 1, false), 0));
    members.into_iter().for_each(Client::vanish);
}
