//! The messages for Home Assistant, as any MQTT client sees them. There are none unless they are configured, no other client
//! may publish them, they go upstream only if a rule names them, and they are not written to the card. The tests in
//! `tests/home_assistant` use the real Home Assistant.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use serde_json::Value;
use support::{Connect, Gateway, Mosquitto, Setup, free_port, http, wait_until};

const ENABLED: &str = "[home_assistant]\nenabled = true\n";
const SENSOR: &str = "homeassistant/device/pigateway_test_loft/config";
const GATEWAY: &str = "homeassistant/device/pigateway_test/config";

/// A sensor that sees motion from time to time.
fn sensor(name: &str, pin: u8, more: &str) -> String {
    format!(
        "[[sensor]]\nname = \"{name}\"\npin = {pin}\ntopic = \"home/{name}\"\nwarm_up = \"0 s\"\nhold = \"0 s\"\n\
         simulate = [\"1 s off\", \"1 s on\"]\n{more}\n"
    )
}

/// The retained messages of a broker, by topic.
fn retained(port: u16, filter: &str) -> BTreeMap<String, String> {
    let mut client = Connect::new("looker").open(port);
    client.subscribe(filter, 0);
    let found = client.drain().into_iter().filter(|message| message.retain);
    found.map(|message| (message.topic.clone(), message.text())).collect()
}

fn announced(gateway: &Gateway) -> Vec<String> {
    retained(gateway.port, "homeassistant/#").into_keys().collect()
}

fn status(gateway: &Gateway) -> Option<String> {
    retained(gateway.port, "pigateway/test/status").into_values().next()
}

#[track_caller]
fn reload(gateway: &Gateway, config: &str) {
    let path = gateway.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let head = &text[..text.find("# the rest").unwrap()];
    std::fs::write(&path, format!("{head}# the rest\n{config}")).unwrap();
    let count = gateway.log().iter().filter(|line| line.contains("configuration reloaded")).count();
    gateway.signal(Signal::HUP);
    gateway.wait_for_lines("configuration reloaded", count + 1);
}

fn start(config: &str) -> Gateway {
    Gateway::with(&format!("# the rest\n{config}"))
}

#[test]
fn nothing_is_said_unless_it_is_asked_for() {
    let gateway = start(&sensor("loft", 17, ""));
    let mut client = Connect::new("c").open(gateway.port);
    client.subscribe("home/loft", 0);
    let state: Value = serde_json::from_slice(&client.receive().payload).unwrap();
    assert_eq!(state.get("stuck"), None);
    for filter in ["homeassistant/#", "pigateway/#"] {
        assert_eq!(retained(gateway.port, filter), BTreeMap::new());
    }
    assert!(!gateway.dir().join("data/home_assistant.json").exists());
    // a user of such topics may continue to publish on them
    assert_eq!(Connect::v5("d").open(gateway.port).publish("pigateway/test/status", "mine", 1, true), 0);
}

#[test]
fn devices_are_announced_and_the_gateway_alone_says_how_it_is() {
    let (setup, http_port) = Setup::default().http();
    let time = sensor("porch", 18, "payload = \"time\"");
    let gateway = setup.config(&format!("{ENABLED}{}{time}", sensor("loft", 17, "stuck_after = \"1 s\""))).start();
    wait_until("online", || status(&gateway).as_deref() == Some("online"));
    assert_eq!(announced(&gateway), [GATEWAY, SENSOR], "nothing that cannot say when motion ends");
    let state = retained(gateway.port, "pigateway/test/state").into_values().next().unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    for key in ["problem", "started", "clients", "journal_used_bytes", "upstreams"] {
        assert!(state.get(key).is_some(), "{key} in {state}");
    }
    let mut client = Connect::v5("c").open(gateway.port);
    client.subscribe("home/loft", 0);
    let message: Value = serde_json::from_slice(&client.receive().payload).unwrap();
    assert_eq!(message["stuck"], false);

    for topic in ["pigateway/test/status", "pigateway/test/state"] {
        let mut client = Connect::v5("d").will(topic, "mine", 1, true).open(gateway.port);
        assert_eq!(client.publish(topic, "mine", 1, true), 0x87);
        client.vanish();
        let answer = http::request(http_port, "PUT", &format!("/api/v1/topics/{topic}"), &[], b"mine");
        assert!((400..500).contains(&answer.status), "{} {}", answer.status, answer.text());
    }
    assert_eq!(status(&gateway).as_deref(), Some("online"));

    let mut listener = Connect::new("l").open(gateway.port);
    listener.subscribe("pigateway/test/status", 0);
    listener.drain();
    let (code, _) = gateway.stop();
    assert_eq!((code, listener.receive().text().as_str()), (Some(0), "offline"));
}

#[test]
fn removals_and_deletions_hold_over_restarts_and_nothing_else_is_on_the_card() {
    let both = format!("{ENABLED}{}{}", sensor("loft", 17, ""), sensor("hall", 18, ""));
    let hall = "homeassistant/device/pigateway_test_hall/config";
    let gateway = start(&both);
    let mut ha = Connect::new("ha").open(gateway.port);
    ha.publish("homeassistant/status", "online", 0, false);
    // a person deletes a device in its page
    ha.publish(hall, "", 1, true);
    gateway.wait_for_line("deleted in Home Assistant");
    reload(&gateway, &format!("{both}{}", sensor("attic", 19, "")));
    let attic = "homeassistant/device/pigateway_test_attic/config";
    wait_until("the new sensor", || announced(&gateway) == [GATEWAY, attic, SENSOR]);
    // a device that is removed while Home Assistant is connected is deleted at once
    reload(&gateway, &both);
    wait_until("the sensor has gone", || announced(&gateway) == [GATEWAY, SENSOR]);
    let file = gateway.dir().join("data/home_assistant.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // after a crash a deleted device stays deleted until its configuration is changed
    let gateway = gateway.kill().restart();
    wait_until("online", || status(&gateway).as_deref() == Some("online"));
    assert!(!announced(&gateway).contains(&hall.to_owned()));
    reload(&gateway, &format!("{ENABLED}{}", sensor("hall", 18, "retain = false")));
    wait_until("another sensor", || announced(&gateway).contains(&hall.to_owned()));
    // while Home Assistant is away, removed devices stay known, even over restarts, until it comes back
    assert!(announced(&gateway).contains(&SENSOR.to_owned()));
    let killed = gateway.kill();
    let path = killed.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("enabled = true", "enabled = false");
    std::fs::write(&path, text).unwrap();
    let gateway = killed.restart();
    let all = announced(&gateway);
    assert!(all.contains(&hall.to_owned()) && all.contains(&SENSOR.to_owned()) && all.contains(&GATEWAY.to_owned()));
    assert_eq!(retained(gateway.port, "pigateway/#"), BTreeMap::new(), "nothing was on the card");
    Connect::new("ha").open(gateway.port).publish("homeassistant/status", "online", 0, false);
    wait_until("all has gone", || announced(&gateway).is_empty());
}

#[test]
fn births_are_answered_at_a_bounded_rate() {
    let gateway = start(ENABLED);
    let mut ha = Connect::new("ha").open(gateway.port);
    wait_until("online", || status(&gateway).as_deref() == Some("online"));
    ha.subscribe(GATEWAY, 0);
    ha.drain();
    for _ in 0..200 {
        ha.publish("homeassistant/status", "online", 1, false);
    }
    // the first request is answered at once, and later ones after ten seconds
    assert!(!ha.receive().retain);
    let more = ha.drain().len();
    assert!(more < 20, "{more} answers more to 200 births");
}

#[test]
fn upstreams_get_it_where_a_rule_names_it_with_the_topics_that_it_has_there() {
    let mosquitto = Mosquitto::on(free_port(), "");
    let upstream = |rules: &str| {
        let port = mosquitto.port;
        format!(
            "{ENABLED}{}[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n\
             status_topic = \"site7/connected\"\n{rules}",
            sensor("loft", 17, "")
        )
    };
    let out = |filter: &str, prefix: &str| {
        format!("[[upstream.out]]\ntopic_filter = \"{filter}\"\nremote_prefix = \"{prefix}\"\n")
    };
    let gateway = start(&upstream(&out("#", "all/")));
    wait_until("a sensor", || retained(mosquitto.port, "all/#").contains_key("all/home/loft"));
    let named = |filter: &str| retained(mosquitto.port, filter);
    assert_eq!((named("all/homeassistant/#"), named("all/pigateway/#")), (BTreeMap::new(), BTreeMap::new()));

    let rules = [("home/#", "site7/"), ("pigateway/#", "site7/"), ("homeassistant/#", "")].map(|(a, b)| out(a, b));
    let inbound = "[[upstream.in]]\ntopic_filter = \"#\"\nremote_prefix = \"down/\"\n";
    let config = upstream(&format!("{}{inbound}", rules.concat()));
    reload(&gateway, &config);
    // rules apply to new messages, and retained messages go up with a new session
    let gateway = gateway.kill().restart();
    wait_until("the sensor is announced there", || named(SENSOR).len() == 1);
    let there: Value = serde_json::from_str(&named(SENSOR)[SENSOR]).unwrap();
    let topics: Vec<_> = there["avty"].as_array().unwrap().iter().map(|of| of["t"].as_str().unwrap()).collect();
    assert_eq!(topics, ["site7/connected", "site7/pigateway/test/status", "site7/home/loft/status"]);
    assert_eq!(there["cmps"]["motion"]["stat_t"], "site7/home/loft");
    wait_until("online", || named("site7/pigateway/test/status").into_values().eq(["online".to_owned()]));

    // messages from the upstream are not published in the name of the gateway
    let mut other = Connect::new("other").open(mosquitto.port);
    other.publish("down/pigateway/test/status", "offline", 1, true);
    other.publish("down/after", "it", 1, true);
    wait_until("what came after it", || retained(gateway.port, "after").len() == 1);
    assert_eq!(status(&gateway).as_deref(), Some("online"));

    // a crash is announced before anything else, and nothing is deleted in between
    let mut listener = Connect::new("listener").persistent().open(mosquitto.port);
    for filter in ["homeassistant/#", "site7/pigateway/test/status"] {
        listener.subscribe(filter, 1);
    }
    listener.drain();
    let _gateway = gateway.kill().restart();
    let mut seen = Vec::new();
    while !seen.contains(&"online".to_owned()) {
        let message = listener.receive();
        assert!(!message.payload.is_empty(), "{} was deleted", message.topic);
        if message.topic.ends_with("/status") {
            seen.push(message.text());
        }
    }
    assert_eq!(seen, ["offline", "online"]);
}

#[test]
fn traffic_alone_changes_nothing_before_the_minute_is_over() {
    let mosquitto = Mosquitto::on(free_port(), "");
    let upstream = format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\n[[upstream.out]]\ntopic_filter = \"up/#\"\n",
        mosquitto.port
    );
    let gateway = start(&format!("{ENABLED}{upstream}"));
    let connected = || {
        let state = retained(gateway.port, "pigateway/test/state").into_values().next();
        state.is_some_and(|state| state.contains("\"connected\":true"))
    };
    wait_until("it is connected", connected);
    let mut listener = Connect::new("listener").open(gateway.port);
    listener.subscribe("pigateway/test/state", 0);
    let before: Value = serde_json::from_slice(&listener.receive().payload).unwrap();
    let (mut publisher, mut there) = (Connect::new("p").open(gateway.port), Connect::new("t").open(mosquitto.port));
    there.subscribe("up/#", 1);
    for number in 0..200 {
        publisher.publish("up/x", number.to_string(), 1, false);
        assert_eq!(there.receive().text(), number.to_string());
    }
    let told: Vec<Value> =
        listener.drain().iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect();
    assert!(told.iter().all(|state| state["started"] == before["started"]), "{before} {told:?}");
    // one, if the minute is over just now
    assert!(told.len() <= 1, "{before} {told:?}");
}
