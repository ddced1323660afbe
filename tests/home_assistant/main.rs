//! The real Home Assistant finds the gateway and its sensors, shows their state, and forgets them. It is started once for
//! all checks. `tests/run` installs it into the cache.

#![allow(clippy::unwrap_used)]

mod server;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use server::HomeAssistant;
use support::{Connect, Gateway, Mosquitto, Setup, free_port};

const LOFT: &str = "pigateway_test_loft_motion";
const HALL: &str = "pigateway_test_hall_motion";
/// The longest wait, because Home Assistant starts slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A sensor that publishes "off" when it is started, and nothing more. The test publishes in its place.
fn sensor(name: &str, pin: u8, more: &str) -> String {
    format!(
        "[[sensor]]\nname = \"{name}\"\npin = {pin}\ntopic = \"home/{name}\"\nwarm_up = \"0 s\"\nhold = \"0 s\"\n\
         simulate = [\"600 s off\"]\n{more}\n"
    )
}

fn config(rest: &str) -> String {
    format!("# the rest\n[home_assistant]\nenabled = true\n{rest}")
}

/// Writes another configuration.
fn write(dir: &std::path::Path, rest: &str) {
    let path = dir.join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let head = &text[..text.find("# the rest").unwrap()];
    std::fs::write(&path, format!("{head}{}", config(rest))).unwrap();
}

fn reload(gateway: &Gateway, rest: &str) {
    write(gateway.dir(), rest);
    let count = gateway.log().iter().filter(|line| line.contains("configuration reloaded")).count();
    gateway.signal(Signal::HUP);
    gateway.wait_for_lines("configuration reloaded", count + 1);
}

/// Waits until Home Assistant shows the expected values.
#[track_caller]
fn wait_for<T: std::fmt::Debug>(expected: &str, mut look: impl FnMut() -> T, is_right: impl Fn(&T) -> bool) {
    let begin = Instant::now();
    loop {
        let seen = look();
        if is_right(&seen) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{seen:?}, not {expected}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn shows(server: &HomeAssistant, unique_id: &str, expected: &str) {
    let what = format!("{unique_id} as {expected}");
    wait_for(&what, || server.state(unique_id), |seen| seen.as_deref() == Some(expected));
}

#[track_caller]
fn forgets(server: &HomeAssistant, unique_id: &str) {
    wait_for(&format!("{unique_id} gone"), || server.state(unique_id), Option::is_none);
}

/// Waits until Home Assistant has these devices of the gateway and no others.
#[track_caller]
fn has(server: &HomeAssistant, expected: &[&str]) {
    wait_for(&format!("{expected:?}"), || server.devices(), |seen| seen == expected);
}

fn motion(port: u16, name: &str, state: &str) {
    let text = format!(r#"{{"state":"{state}","since":"2026-03-01T12:00:00.250Z","stuck":false}}"#);
    Connect::new("pin").open(port).publish(&format!("home/{name}"), text, 1, true);
}

#[test]
fn home_assistant_finds_follows_and_forgets() {
    let both = format!("{}{}", sensor("loft", 17, ""), sensor("hall", 18, ""));
    let moving = both.replace("600 s off", "1 s off\", \"1 s on");
    let gateway = Setup::default().config(&config(&moving)).start();
    let mut server = HomeAssistant::new(gateway.port);
    has(&server, &["hall", "loft", "pigateway test"]);
    for state in ["on", "off", "on"] {
        shows(&server, HALL, state);
    }
    reload(&gateway, &both);
    entities_appear_and_follow(&server, &gateway);
    let gateway = it_survives_restarts_in_every_order(&mut server, gateway);
    let gateway = what_goes_disappears(&mut server, gateway, &both);
    a_persons_decision_holds(&mut server, gateway, &both);
}

fn entities_appear_and_follow(server: &HomeAssistant, gateway: &Gateway) {
    shows(server, "pigateway_test_problem", "off");
    // the number of clients includes Home Assistant's own connection
    let clients = || server.state("pigateway_test_clients");
    wait_for("a number of clients", clients, |seen| seen.as_deref().is_some_and(|text| text.parse::<u32>().is_ok()));
    assert_ne!(server.state("pigateway_test_started").as_deref(), Some("unavailable"));
    assert_eq!(server.state("pigateway_test_journal_used").as_deref(), Some("not shown"), "disabled at first");
    shows(server, LOFT, "off");
    let follow = |state| {
        let begin = Instant::now();
        motion(gateway.port, "loft", state);
        shows(server, LOFT, state);
        begin.elapsed()
    };
    // on a busy machine not each of many is seen, but at least one
    let within_a_second =
        ["on", "off"].into_iter().cycle().take(60).any(|state| follow(state) < Duration::from_secs(1));
    assert!(within_a_second);
    motion(gateway.port, "loft", "on");
    shows(server, LOFT, "on");
    shows(server, "pigateway_test_loft_since", "2026-03-01T12:00:00+00:00");
    shows(server, "pigateway_test_loft_stuck", "off");
}

fn it_survives_restarts_in_every_order(server: &mut HomeAssistant, gateway: Gateway) -> Gateway {
    // the gateway ends, in order and by a crash
    let gateway = gateway.end().restart();
    shows(server, LOFT, "off");
    let killed = gateway.kill();
    shows(server, LOFT, "unavailable");
    let gateway = killed.restart();
    shows(server, LOFT, "off");
    motion(gateway.port, "loft", "on");
    shows(server, LOFT, "on");
    // Home Assistant ends, in order and by a crash
    server.stop();
    server.start();
    shows(server, LOFT, "on");
    server.kill();
    server.start();
    shows(server, LOFT, "on");
    // both end: the gateway first, and then Home Assistant first
    server.kill();
    let gateway = gateway.kill().restart();
    server.start();
    shows(server, LOFT, "off");
    motion(gateway.port, "loft", "on");
    shows(server, LOFT, "on");
    let killed = gateway.kill();
    server.stop();
    server.start();
    let gateway = killed.restart();
    shows(server, LOFT, "off");
    has(server, &["hall", "loft", "pigateway test"]);
    gateway
}

fn what_goes_disappears(server: &mut HomeAssistant, gateway: Gateway, both: &str) -> Gateway {
    // a sensor is removed while Home Assistant is connected
    gateway.wait_for_line("announced to Home Assistant");
    reload(&gateway, &sensor("loft", 17, ""));
    has(server, &["loft", "pigateway test"]);
    reload(&gateway, both);
    has(server, &["hall", "loft", "pigateway test"]);
    shows(server, HALL, "off");
    // a component is removed
    reload(&gateway, &format!("{}{}", sensor("loft", 17, ""), sensor("hall", 18, "payload = \"on_off\"")));
    forgets(server, "pigateway_test_hall_since");
    reload(&gateway, both);
    shows(server, "pigateway_test_hall_stuck", "off");
    // a sensor and a component of another are removed while it is away, and the gateway is started in between
    server.stop();
    reload(&gateway, &sensor("loft", 17, "payload = \"on_off\""));
    let gateway = gateway.kill().restart();
    server.start();
    has(server, &["loft", "pigateway test"]);
    forgets(server, "pigateway_test_loft_since");
    assert!(server.state(LOFT).is_some());
    // the id changes while it is away
    server.kill();
    let killed = gateway.end();
    let path = killed.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("id = \"test\"", "id = \"attic\"")).unwrap();
    let gateway = killed.restart();
    server.start();
    has(server, &["loft", "pigateway attic"]);
    assert_eq!(server.state(LOFT), None);
    // the id changes back while it is connected
    let killed = gateway.end();
    std::fs::write(&path, text).unwrap();
    write(killed.dir(), both);
    let gateway = killed.restart();
    has(server, &["hall", "loft", "pigateway test"]);
    assert_eq!(server.state("pigateway_attic_loft_motion"), None);
    gateway
}

fn a_persons_decision_holds(server: &mut HomeAssistant, gateway: Gateway, both: &str) {
    server.delete("hall");
    has(server, &["loft", "pigateway test"]);
    gateway.wait_for_line("deleted in Home Assistant");
    reload(&gateway, &format!("{both}{}", sensor("porch", 19, "")));
    has(server, &["loft", "pigateway test", "porch"]);
    let gateway = gateway.kill().restart();
    server.stop();
    server.start();
    shows(server, LOFT, "off");
    has(server, &["loft", "pigateway test", "porch"]);
    reload(
        &gateway,
        &format!(
            "{}{}",
            sensor("loft", 17, ""),
            sensor("hall", 18, "hold = \"1 s\"").replacen("hold = \"0 s\"\n", "", 1)
        ),
    );
    has(server, &["hall", "loft", "pigateway test"]);
    // no device is left when the announcements are switched off
    let killed = gateway.end();
    let path = killed.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("enabled = true", "enabled = false");
    std::fs::write(&path, text).unwrap();
    let _gateway = killed.restart();
    has(server, &[]);
}

#[test]
fn a_home_assistant_at_the_upstream_follows_too() {
    let mosquitto = Mosquitto::on(free_port(), "");
    let mut rules = format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\nstatus_topic = \"sites/connected\"\n",
        mosquitto.port
    );
    for (filter, prefix) in [("homeassistant/device/#", ""), ("pigateway/#", "sites/"), ("home/#", "sites/")] {
        rules += &format!("[[upstream.out]]\ntopic_filter = \"{filter}\"\nremote_prefix = \"{prefix}\"\n");
    }
    rules += "[[upstream.in]]\ntopic_filter = \"homeassistant/status\"\n";
    let gateway = Setup::default().config(&config(&format!("{}{rules}", sensor("loft", 17, "")))).start();
    let mut server = HomeAssistant::new(mosquitto.port);
    has(&server, &["loft", "pigateway test"]);
    shows(&server, "pigateway_test_upstream_home_connected", "on");
    motion(gateway.port, "loft", "on");
    shows(&server, LOFT, "on");
    // the will of `status_topic`
    let killed = gateway.kill();
    shows(&server, LOFT, "unavailable");
    let gateway = killed.restart();
    shows(&server, LOFT, "off");
    // removed while it was away: its birth message comes down from the upstream
    server.kill();
    reload(&gateway, &rules);
    server.start();
    has(&server, &["pigateway test"]);
}
