//! The broker is closed by default: which clients are accepted, what they may do, and what the others are told.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod groups;
mod guessing;
mod listeners;
mod places;
mod rules;
mod sessions;
mod storm;
mod tls;

use std::sync::OnceLock;

use support::broker::{gateway, password_hash};
use support::packet::{V5, V31, V311};
use support::{Connect, Gateway, Process};

const PASSWORD: &str = "correct horse";

/// The hash of [`PASSWORD`], as `pigateway user` prints it.
fn hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| password_hash(PASSWORD))
}

/// The table of a user with [`PASSWORD`] and these further keys.
fn user(name: &str, rules: &str) -> String {
    format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{}\"\n{rules}\n", hash())
}

#[test]
fn the_table_that_the_command_prints_lets_its_user_in() {
    let mut process = Process::start(gateway().args(["user", "esp"]));
    process.input(format!("{PASSWORD}\n").as_bytes());
    let (_, lines) = process.wait();
    let begin = lines.iter().position(|line| line == "[[broker.user]]").expect("a table");
    let gateway = Gateway::with(&lines[begin..].join("\n"));
    Connect::new("a").login("esp", PASSWORD).open(gateway.port).ping();
}

#[test]
fn no_core_with_passwords_and_keys_is_dumped() {
    let gateway = Gateway::start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    // with 0 the kernel would still pass cores to programs through a pipe
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["1", "1"], "{core}");
}

#[test]
fn names_and_passwords_must_be_right() {
    let gateway = Gateway::with(&(user("esp", "") + "[broker.anonymous]\naccept = \"none\""));
    for (version, bad_password, not_authorised) in [(V31, 4, 5), (V311, 4, 5), (V5, 0x86, 0x87)] {
        let connect = || Connect::version(version, "a");
        connect().login("esp", PASSWORD).open(gateway.port).ping();
        // each failure makes the next one wait longer
        let (name, password) = match version {
            V31 => ("esp", "wrong"),
            V311 => ("esp", ""),
            _ => ("nobody", PASSWORD),
        };
        assert_eq!(connect().login(name, password).refused(gateway.port), bad_password);
        assert_eq!(connect().refused(gateway.port), not_authorised);
    }
}

#[test]
fn a_refusal_says_once_how_to_let_the_client_in() {
    let gateway = Gateway::with("[broker.anonymous]\naccept = \"none\"");
    let refused = |line: &String| line.contains("refused");
    for _ in 0..50 {
        Connect::new("lost-esp").refused(gateway.port);
    }
    let lines: Vec<String> = gateway.log().into_iter().filter(refused).collect();
    // the probe at the start may have got the first one
    assert!(lines.len() == 1, "{lines:?}");
    for part in ["pigateway user", "accept = \"all\"", "127.0.0.1"] {
        assert!(lines[0].contains(part), "{part} is missing in {lines:?}");
    }
}

#[test]
fn one_client_does_not_hide_why_others_are_refused() {
    let gateway = Gateway::with(&(user("esp", "") + "[broker.anonymous]\naccept = \"none\""));
    for _ in 0..3 {
        Connect::new("lost-esp").refused(gateway.port);
        Connect::new("typo").login("esp", "wrong").refused(gateway.port);
        Connect::new("stranger").login("nobody", PASSWORD).refused(gateway.port);
    }
    let lines: Vec<String> = gateway.log().into_iter().filter(|line| line.contains("refused")).collect();
    assert!(lines.len() == 3, "{lines:?}");
    for name in ["esp", "nobody"] {
        assert!(lines.iter().any(|line| line.contains(&format!("user=\"{name}\""))), "{name} in {lines:?}");
    }
}

#[test]
fn with_users_anonymous_clients_still_come_in_from_this_host() {
    let gateway = Gateway::with(&(user("esp", "") + "[broker.anonymous]\npublish = [\"from/here/#\"]"));
    let mut anonymous = Connect::v5("a").open(gateway.port);
    assert_eq!(anonymous.publish("from/here/x", "", 1, false), 0);
    assert_eq!(anonymous.publish("elsewhere", "", 1, false), 0x87);
    let mut known = Connect::v5("b").login("esp", PASSWORD).open(gateway.port);
    assert_eq!(known.publish("elsewhere", "", 1, false), 0);
}

#[test]
fn a_failed_login_holds_up_nobody_else() {
    let gateway = Gateway::with(&user("esp", ""));
    let known = Connect::new("a").login("esp", PASSWORD);
    known.open(gateway.port).disconnect();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let wrong = Connect::new(&format!("wrong-{number}")).login("esp", "wrong");
            let port = gateway.port;
            scope.spawn(move || wrong.refused(port));
        }
        // while those wait for their answers
        for _ in 0..100 {
            known.open(gateway.port).disconnect();
            Connect::new("anonymous").open(gateway.port).disconnect();
        }
    });
}
