//! Upstreams that are removed from the configuration and come back, and how they are reported.

use std::process::Command;

use crate::played::{Played, Say};
use crate::support::{Connect, Gateway, Setup, http, wait_until};
use crate::{drained, ledger, publish, start, upstream};

fn pigateway(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pigateway")).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Publishes twenty messages for an unreachable upstream, and starts the gateway again without this upstream.
fn orphaned(http_port: &mut u16) -> Gateway {
    let (gateway, _) = start(&upstream(1, ""));
    let texts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    publish(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
    let (setup, port) = gateway.end().setup().http();
    *http_port = port;
    setup.start()
}

#[test]
fn what_waits_for_an_upstream_survives_a_mistake_in_the_configuration() {
    let mut port = 0;
    let without = orphaned(&mut port);
    let line = without.wait_for_line("is configured any more");
    assert!(
        line.contains("WARN") && line.contains("home") && line.contains("20") && line.contains("--discard"),
        "{line}"
    );
    let shown = http::get(port, "/api/v1/upstreams").json();
    assert_eq!((&shown[0]["name"], &shown[0]["state"]), (&"home".into(), &"removed".into()));
    assert_eq!(shown[0]["ledger"]["pending"], 20);
    let file = without.dir().join("pigateway.toml").display().to_string();
    // the data directory of the tests is relative to the file
    let (code, text) = pigateway(&["check", &file]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("20 messages wait for upstream home, which is not configured"), "{text}");
    let played = Played::new(|_| Say::Usual);
    let (setup, port) = without.end().setup().config(&upstream(played.port, "")).http();
    let _with = setup.start();
    wait_until("all have arrived", || played.texts().len() == 20);
    assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, 20.into()));
}

/// Twenty messages wait for an unreachable upstream. Then a typo in the rule comes, and the upstream. Returns the gateway with the typo and
/// its port for HTTP.
fn mistyped(played: &Played) -> (Gateway, u16) {
    let (gateway, _) = start(&upstream(1, ""));
    let texts = (0..20).map(|n| n.to_string()).collect::<Vec<_>>();
    publish(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
    let (setup, port) = gateway.end().setup().config(&upstream(played.port, "").replace("loft/#", "lofts/#")).http();
    let gateway = setup.start();
    let line = gateway.wait_for_line("no rule of the upstream matches any more");
    assert!(line.contains("WARN") && line.contains("loft/a") && line.contains("--discard home/no-rule"), "{line}");
    (gateway, port)
}

#[test]
fn what_waits_for_a_rule_that_is_gone_goes_up_when_the_rule_is_back() {
    let played = Played::new(|_| Say::Usual);
    let (gateway, port) = mistyped(&played);
    publish(&gateway, "b", &["meant for nobody"], false);
    let counts = |port: u16| {
        let ledger = ledger(port);
        (ledger["pending"].clone(), ledger["accepted"].clone(), ledger["dropped"]["no_rule"].clone())
    };
    let nothing_lost = (20.into(), 20.into(), 0.into());
    wait_until("all are counted as waiting", || counts(port) == nothing_lost);
    let file = gateway.dir().join("pigateway.toml").display().to_string();
    // it reads the disk, where the move comes a little later than it is counted
    wait_until("the check names them", || {
        let (code, text) = pigateway(&["check", &file]);
        assert_eq!(code, Some(0), "{text}");
        text.contains("20 messages wait for upstream home, and none of its rules")
    });
    // over another restart with the typo
    let typo = upstream(played.port, "").replace("loft/#", "lofts/#");
    let (setup, port) = gateway.end().setup().config(&typo).http();
    let gateway = setup.start();
    gateway.wait_for_line("connected upstream");
    assert_eq!(counts(port), nothing_lost);
    let (setup, port) = gateway.end().setup().config(&upstream(played.port, "")).http();
    let gateway = setup.start();
    publish(&gateway, "a", &["20"], false);
    let expected: Vec<String> = (0..=20).map(|n| n.to_string()).collect();
    wait_until("all have arrived", || played.texts().len() >= expected.len());
    assert_eq!(played.texts(), expected);
    assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, 21.into()));
    gateway.wait_for_line("a rule matches them again");
}

#[test]
fn what_no_rule_matches_can_be_discarded() {
    let played = Played::new(|_| Say::Usual);
    let (gateway, port) = mistyped(&played);
    wait_until("all are counted as waiting", || ledger(port)["pending"] == 20);
    let data = gateway.dir().join("data").display().to_string();
    let killed = gateway.end();
    let (code, text) = pigateway(&["journal", &data, "--discard", "home/no-rule"]);
    assert!(code == Some(0) && text.contains("20 messages"), "{code:?} {text}");
    let (setup, port) = killed.setup().config(&upstream(played.port, "")).http();
    let gateway = setup.start();
    publish(&gateway, "a", &["new"], false);
    played.wait_for(&["new"]);
    assert_eq!((played.texts().len(), drained(port)), (1, 0));
}

#[test]
fn what_waits_for_an_upstream_can_be_discarded() {
    let mut port = 0;
    let without = orphaned(&mut port);
    let data = without.dir().join("data").display().to_string();
    let (code, text) = pigateway(&["journal", &data, "--discard", "home"]);
    assert_eq!(code, Some(73), "a gateway runs: {text}");
    let killed = without.end();
    let (code, text) = pigateway(&["journal", &data, "--discard", "other"]);
    assert_eq!(code, Some(66), "{text}");
    let (code, text) = pigateway(&["journal", &data, "--discard", "home"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("20 messages"), "{text}");
    let played = Played::new(|_| Say::Usual);
    let (setup, port) = killed.setup().config(&upstream(played.port, "")).http();
    let gateway = setup.start();
    publish(&gateway, "a", &["new"], false);
    played.wait_for(&["new"]);
    assert_eq!((played.texts().len(), drained(port)), (1, 0));
}

#[test]
fn local_topics_say_how_an_upstream_is() {
    let port = crate::support::free_port();
    let rights = "[broker.anonymous]\nsubscribe = [\"$SYS/#\"]\n";
    let (gateway, _) = start(&(rights.to_owned() + &upstream(port, "")));
    publish(&gateway, "a", &["waits"], false);
    let retained = |what: &str| {
        let mut reader = Connect::new("reader").open(gateway.port);
        reader.subscribe(&format!("$SYS/broker/connection/home/{what}"), 0);
        reader.receive().text()
    };
    assert_eq!(retained("state"), "0");
    wait_until("an error is told", || retained("status").contains("refused"));
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let played = Played::on(listener, |_| Say::Usual);
    played.wait_for(&["waits"]);
    wait_until("it is connected", || retained("state") == "1");
    let status: serde_json::Value = serde_json::from_str(&retained("status")).unwrap();
    assert_eq!(status["state"], "connected", "{status}");
    for key in ["waiting", "oldest_age_seconds", "last_error", "seconds_left", "address"] {
        assert!(status.get(key).is_some(), "{key} in {status}");
    }
}

#[test]
fn a_setup_without_upstreams_says_nothing_of_them() {
    let (setup, port) = Setup::default().http();
    let _gateway = setup.start();
    assert_eq!(http::get(port, "/api/v1/upstreams").json(), serde_json::json!([]));
}
