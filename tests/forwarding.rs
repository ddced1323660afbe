//! Forwarding from a sensor to an upstream and back: messages arrive there and here as the rules say, and none is sent back
//! to its source.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use support::broker::gateway;
use support::{Client, Connect, Gateway, Mosquitto, Process, Setup, free_port};

/// Reads messages until one has this payload, and returns the topics and payloads of all.
#[track_caller]
fn until(client: &mut Client, last: &str) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    loop {
        let message = client.receive();
        let text = message.text();
        seen.push((message.topic, text.clone()));
        if text == last {
            return seen;
        }
    }
}

fn upstream(name: &str, ports: &[u16], rules: &str) -> String {
    let addresses: Vec<String> = ports.iter().map(|port| format!("\"mqtt://127.0.0.1:{port}\"")).collect();
    format!("[[upstream]]\nname = \"{name}\"\naddresses = [{}]\n{rules}", addresses.join(", "))
}

const SITES: &str = "[[upstream.out]]\ntopic_filter = \"loft/#\"\nremote_prefix = \"sites/\"\n";

const SENSOR: &str = "[[sensor]]\nname = \"loft-motion\"\npin = 17\ntopic = \"loft/motion1\"\npayload = \"on_off\"\n\
                      warm_up = \"0 s\"\nhold = \"100 ms\"\nsimulate = [\"300 ms off\", \"300 ms on\"]\n";

#[test]
fn a_motion_reaches_local_subscribers_and_the_upstream() {
    let mosquitto = Mosquitto::with("");
    let mut remote = Connect::new("remote").open(mosquitto.port);
    remote.subscribe("sites/#", 1);
    let gateway = Gateway::with(&format!("{SENSOR}{}", upstream("home", &[mosquitto.port], SITES)));
    let mut local = Connect::new("local").open(gateway.port);
    local.subscribe("loft/motion1", 1);
    let seen = until(&mut local, "ON");
    assert!(seen.iter().all(|(topic, _)| topic == "loft/motion1"), "{seen:?}");
    let seen = until(&mut remote, "ON");
    assert!(seen.contains(&("sites/loft/motion1/status".into(), "online".into())), "{seen:?}");
    assert_eq!(seen.last().map(|(topic, _)| topic.as_str()), Some("sites/loft/motion1"));
    // its last value is retained there for later subscribers
    let mut late = Connect::new("late").open(mosquitto.port);
    late.subscribe("sites/loft/motion1/status", 0);
    let message = late.receive();
    assert!(message.retain && message.text() == "online");
}

#[test]
fn a_sensor_is_offline_after_a_stop_and_after_a_crash_before_anything_else() {
    let mosquitto = Mosquitto::with("");
    let mut remote = Connect::new("remote").open(mosquitto.port);
    remote.subscribe("sites/loft/motion1/status", 1);
    let gateway = Gateway::with(&format!("{SENSOR}{}", upstream("home", &[mosquitto.port], SITES)));
    assert_eq!(until(&mut remote, "online").len(), 2, "offline, then online");
    let gateway = gateway.kill().restart();
    let texts: Vec<String> = until(&mut remote, "online").into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["offline", "online"], "after a crash");
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log:?}");
    assert_eq!(until(&mut remote, "offline").len(), 1, "a clean stop says so at once");
}

#[test]
fn an_upstream_that_is_away_at_first_gets_everything_later_in_order() {
    let port = free_port();
    let rules = format!("status_topic = \"sites/status\"\n{SITES}");
    let gateway = Gateway::with(&upstream("home", &[port], &rules));
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for number in 0..300 {
        publisher.publish("loft/count", number.to_string(), 1, false);
    }
    let remote_gateway = Setup::default().port(port).config("[broker]\nmax_queued_messages = 10000\n");
    let remote_gateway = remote_gateway.start();
    // a late subscriber finds the retained status, but may have missed the numbers
    let mut remote = Connect::v5("remote").open(remote_gateway.port);
    remote.subscribe("sites/status", 1);
    assert_eq!(until(&mut remote, "online").len(), 1);
    remote.subscribe("sites/loft/#", 1);
    publisher.publish("loft/count", "last", 1, false);
    let seen = until(&mut remote, "last");
    let numbers: Vec<u32> = seen.iter().filter_map(|(_, text)| text.parse().ok()).collect();
    assert!(numbers.is_sorted(), "in order: {numbers:?}");
    drop(gateway.kill());
    assert_eq!(until(&mut remote, "offline").len(), 1, "the last will of the gateway");
}

#[test]
fn the_next_address_is_tried_and_several_upstreams_do_not_disturb_each_other() {
    let (first, second) = (Mosquitto::with(""), Mosquitto::with(""));
    let nobody = free_port();
    let config = [
        upstream("first", &[nobody, first.port], SITES),
        upstream("second", &[second.port], SITES),
        upstream("third", &[free_port()], SITES),
    ]
    .concat();
    let gateway = Gateway::with(&config);
    let mut clients: Vec<Client> = [&first, &second]
        .map(|mosquitto| {
            let mut client = Connect::new("remote").open(mosquitto.port);
            client.subscribe("sites/#", 1);
            client
        })
        .into();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    publisher.publish("loft/a", "to both", 1, false);
    for client in &mut clients {
        assert_eq!(until(client, "to both"), [("sites/loft/a".into(), "to both".into())]);
    }
}

#[test]
fn commands_come_down_and_do_not_go_up_again() {
    let mosquitto = Mosquitto::with("");
    let rules = "[[upstream.out]]\ntopic_filter = \"#\"\nlocal_prefix = \"loft/\"\nremote_prefix = \"sites/loft/\"\n\
                 [[upstream.in]]\ntopic_filter = \"#\"\nlocal_prefix = \"loft/\"\nremote_prefix = \"sites/loft/\"\n";
    let gateway = Gateway::with(&upstream("home", &[mosquitto.port], rules));
    let mut local = Connect::new("local").open(gateway.port);
    local.subscribe("loft/#", 1);
    let mut remote = Connect::new("remote").open(mosquitto.port);
    remote.subscribe("sites/#", 1);
    gateway.wait_for_line(" subscribed");
    remote.publish("sites/loft/lamp", "on", 1, false);
    assert_eq!(until(&mut local, "on"), [("loft/lamp".into(), "on".into())]);
    local.publish("loft/lamp/state", "is on", 1, false);
    let seen = until(&mut remote, "is on");
    let expected = [("sites/loft/lamp".to_owned(), "on".to_owned()), ("sites/loft/lamp/state".into(), "is on".into())];
    assert_eq!(seen, expected, "once each: no echo");
}

#[test]
fn two_gateways_that_share_an_upstream_do_not_echo() {
    let mosquitto = Mosquitto::with("");
    let rules = "[[upstream.both]]\ntopic_filter = \"house/#\"\n";
    let gateways: Vec<Gateway> = ["one", "two"]
        .map(|id| {
            let rules = format!("client_id = \"{id}\"\nprotocol = 5\n{rules}");
            let gateway = Gateway::with(&upstream("home", &[mosquitto.port], &rules));
            gateway.wait_for_line(" subscribed");
            gateway
        })
        .into();
    let mut clients: Vec<Client> = gateways
        .iter()
        .map(|gateway| {
            let mut client = Connect::new("watcher").open(gateway.port);
            client.subscribe("house/#", 1);
            client
        })
        .collect();
    let mut expected = Vec::new();
    for round in 0..20 {
        let text = round.to_string();
        clients[round % 2].publish("house/a", &text, 1, round % 3 == 0);
        expected.push(("house/a".to_owned(), text.clone()));
        for client in &mut clients {
            assert_eq!(until(client, &text), [("house/a".to_owned(), text.clone())], "once, and nothing else");
        }
    }
    for client in &mut clients {
        client.ping();
        assert!(client.drain().is_empty(), "nothing comes round again");
    }
}

#[test]
fn two_gateways_that_are_each_others_upstream_do_not_echo() {
    let ports = [free_port(), free_port()];
    let gateways = [(0, 1), (1, 0)].map(|(own, other): (usize, usize)| {
        let rules = "protocol = 5\n[[upstream.both]]\ntopic_filter = \"#\"\n";
        Setup::default().port(ports[own]).config(&upstream("other", &[ports[other]], rules)).start()
    });
    for gateway in &gateways {
        gateway.wait_for_line(" subscribed");
    }
    let mut clients = ports.map(|port| {
        let mut client = Connect::v5("watcher").open(port);
        client.subscribe("house/#", 1);
        client
    });
    for round in 0..20 {
        let text = round.to_string();
        clients[round % 2].publish("house/a", &text, 1, round % 3 == 0);
        for client in &mut clients {
            assert_eq!(until(client, &text), [("house/a".to_owned(), text.clone())], "once, and nothing else");
        }
    }
    // a message that was sent back would arrive soon
    std::thread::sleep(Duration::from_secs(1));
    for (client, port) in clients.iter_mut().zip(ports) {
        client.ping();
        assert!(client.drain().is_empty(), "nothing comes round again");
        let mut late = Connect::v5("late").open(port);
        late.subscribe("house/a", 1);
        assert_eq!(late.receive().text(), "18", "retained on both sides");
    }
}

#[test]
fn reload_changes_rules_users_and_sensors_and_keeps_connections() {
    let mosquitto = Mosquitto::with("");
    let mut making = Process::start(gateway().args(["user", "esp"]));
    making.input(b"a long enough password\n");
    let user = making.wait().1.join("\n");
    let before = format!("{SENSOR}{}", upstream("home", &[mosquitto.port], SITES));
    let running = Gateway::with(&before);
    let mut remote = Connect::new("remote").open(mosquitto.port);
    remote.subscribe("#", 1);
    let mut local = Connect::new("local").open(running.port);
    local.subscribe("cellar/#", 1);

    let path = running.dir().join("pigateway.toml");
    let written = std::fs::read_to_string(&path).expect("the configuration");
    let other = SENSOR.replace("loft", "cellar").replace("pin = 17", "pin = 18");
    let rules = "[[upstream.out]]\ntopic_filter = \"cellar/#\"\nremote_prefix = \"moved/\"\n";
    let after = written.replace(SENSOR, &other).replace(SITES, rules).replace("\"test\"", "\"renamed\"");
    std::fs::write(&path, format!("{after}\n{user}\n")).expect("the configuration");
    running.signal(Signal::HUP);
    running.wait_for_line("configuration reloaded");
    running.wait_for_line("a restart is needed to change gateway.id");
    running.wait_for_line("users added: esp");
    until(&mut local, "ON");
    until(&mut remote, "ON");
    while remote.receive().topic != "moved/cellar/motion1" {}

    std::fs::write(&path, format!("{after}\n[brokr]\n")).expect("the configuration");
    running.signal(Signal::HUP);
    running.wait_for_line("configuration not reloaded");
    running.wait_for_line("brokr");
    until(&mut local, "ON");
    assert_eq!(running.stop().0, Some(0));
}
