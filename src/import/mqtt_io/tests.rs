//! Tests of what becomes of mqtt-io's settings. Every result is read by our own configuration.

use std::time::Duration;

use super::*;
use crate::access::hash;
use crate::config::{Environment, Settings, read as read_config};
use crate::sensors::settings::{Bias, Level, PayloadFormat};

fn of(yaml: &str) -> (Settings, Imported) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yml");
    std::fs::write(&path, yaml).unwrap();
    let imported =
        import(&path, &Options { host_name: "attic", keeps_secrets: true, hash: |password| hash::make(password) })
            .unwrap();
    let loaded = read_config(&imported.text, Path::new("/x/pigateway.toml"), &Environment::default());
    let settings = loaded.unwrap_or_else(|error| panic!("{error}\n{}", imported.text)).settings;
    let summary = &imported.summary;
    let others = summary.differ + summary.not_needed + summary.not_taken + summary.not_understood;
    assert_eq!(summary.lines, summary.taken + others);
    (settings, imported)
}

const INPUTS: &str = "\
mqtt:
  host: localhost
  topic_prefix: home/porch/
gpio_modules:
  - name: rpi
    module: raspberrypi
  - {name: far, module: pcf8574, i2c_bus_num: 1}
digital_inputs:
  - name: pir   # in the hall
    module: rpi
    pin: 17
    pulldown: yes
    interrupt: both
    bouncetime: 250
    retain: true
    ha_discovery: {component: binary_sensor, device_class: motion}
  - name: \"front door\"
    module: rpi
    pin: \"22\"
    inverted: on
    pullup: True
    on_payload: \"OPEN\"
    off_payload: OFF
    interrupt: rising
    poll_interval: 0.5
  - {name: far away, module: far, pin: 3}
  - name: no pin
    module: rpi
  - name: bad/#
    module: rpi
    pin: 4
digital_outputs:
  - name: lamp
    module: rpi
    pin: 5
logging: {version: 1}
";

#[test]
fn digital_inputs_become_sensors() {
    let (settings, imported) = of(INPUTS);
    let [pir, door] = settings.sensors.as_slice() else { panic!("{}", imported.text) };
    assert_eq!((pir.name.as_str(), pir.pin, &*pir.topic), ("pir", 17, "home/porch/input/pir"));
    assert_eq!((pir.active, pir.bias, pir.debounce), (Level::High, Bias::PullDown, Duration::from_millis(250)));
    assert_eq!(
        (pir.hold, pir.warm_up, pir.payload, pir.retain),
        (Duration::ZERO, Duration::ZERO, PayloadFormat::OnOff, true)
    );
    assert_eq!((door.name.as_str(), door.pin, &*door.topic), ("front-door", 22, "home/porch/input/front door"));
    assert_eq!((door.active, door.bias, door.retain), (Level::Low, Bias::PullUp, false));
    // the broker was on this host, so there is no upstream
    assert!(settings.upstreams.is_empty());
    for (line, what) in [
        ("digital_inputs.2.on_payload: OPEN", "differs: it says ON"),
        ("digital_inputs.2.interrupt: rising", "differs"),
        ("digital_inputs.3.pin: 3", "NOT TAKEN OVER: only the Pi's own pins"),
        ("digital_inputs.4.name: no pin", "NOT TAKEN OVER: it has no pin"),
        ("digital_inputs.5.name: bad/#", "NOT TAKEN OVER: its topic"),
        ("digital_outputs.1.name: lamp", "NOT TAKEN OVER"),
        ("digital_inputs.1.ha_discovery.component: binary_sensor", "home_assistant"),
        ("gpio_modules.1.module: raspberrypi", "not needed"),
        ("gpio_modules.2.module: pcf8574", "NOT TAKEN OVER: only the Pi's own pins"),
        ("mqtt.host: localhost", "not needed"),
        ("logging.version: 1", "not needed"),
    ] {
        let remark = imported.text.lines().find(|text| text.contains(&format!("\"{line}\"")));
        assert!(remark.is_some_and(|remark| remark.contains(what)), "{line}: {remark:?}\n{}", imported.text);
    }
    assert!(imported.text.contains("config.yml:9: \"digital_inputs") || !imported.text.contains("config.yml:0:"));
}

#[test]
fn another_broker_becomes_an_upstream() {
    let (settings, imported) = of(
        "mqtt: {host: mqtt.example.org, port: 8883, user: u, password: p4ss, client_id: porch,\n  keepalive: 2, clean_session: no, \
         topic_prefix: porch, status_topic: state, tls: {enabled: yes, ca_certs: /etc/ca.crt, insecure: true}}\n\
         digital_inputs: [{name: a, module: raspberrypi, pin: 4}]\n",
    );
    let upstream = &settings.upstreams[0];
    assert_eq!(upstream.addresses[0].to_string(), "mqtts://mqtt.example.org:8883");
    assert_eq!((upstream.client_id.as_str(), upstream.username.as_deref()), ("porch", Some("u")));
    assert_eq!((upstream.keep_alive, upstream.clean_session), (Duration::from_secs(5), false));
    assert_eq!(upstream.status_topic.as_deref(), Some("porch/state"));
    assert_eq!(upstream.out[0].local_filter(), "porch/input/#");
    assert_eq!(upstream.out[0].remote_filter(), "porch/input/#");
    assert_eq!(
        (imported.secrets[0].name.as_str(), imported.secrets[0].password.as_str()),
        ("mqtt-io.password", "p4ss")
    );
    assert!(!imported.text.contains("p4ss"));
    let (settings, _) = of("mqtt: {host: 192.0.2.1, topic_prefix: ''}\ndigital_inputs: []\n");
    assert_eq!(settings.upstreams[0].out[0].local_filter(), "input/#");
}

#[test]
fn the_address_of_a_broker_is_taken_as_it_is_or_not_at_all() {
    let inputs = "digital_inputs: [{name: a, module: raspberrypi, pin: 4}]\n";
    let address = |host: &str, port: &str| {
        let (settings, _) = of(&format!("mqtt: {{host: \"{host}\", port: {port}}}\n{inputs}"));
        settings.upstreams.first().map(|upstream| upstream.addresses[0].to_string())
    };
    for host in ["2001:db8::1", "[2001:db8::1]"] {
        assert_eq!(address(host, "1884").as_deref(), Some("mqtt://[2001:db8::1]:1884"));
    }
    for (host, port) in [("2001:db8::1", "0"), ("2001:db8::1", "abc"), ("example.org", "0"), ("2001:db8::1:x", "1883")]
    {
        assert_eq!(address(host, port), None, "{host} {port}");
    }
    for here in ["LOCALHOST", "localhost.", "::1", "[::1]", "::ffff:127.0.0.1"] {
        assert_eq!(address(here, "0"), None, "{here}");
    }
}

#[test]
fn a_broker_that_is_nowhere_and_names_that_cannot_be_sent_are_said_and_not_written() {
    let sensor = "digital_inputs: [{name: a, module: raspberrypi, pin: 4}]\n";
    for host in ["{host: 'a b'}", "{host: 'h/x'}", "{host: h, port: 0}", "{host: h, port: x}"] {
        let (settings, imported) = of(&format!("mqtt: {host}\n{sensor}"));
        assert!(settings.upstreams.is_empty() && settings.sensors.len() == 1, "{host}");
        assert!(imported.text.contains("valid: the name or address of a host"), "{}", imported.text);
    }
    let (settings, _) =
        of(&format!("mqtt: {{host: h, client_id: \"a\\u0007\", user: \"b\\n\", password: c}}\n{sensor}"));
    assert_eq!((settings.upstreams.len(), settings.upstreams[0].username.as_deref()), (1, None));
}

#[test]
fn what_is_not_such_a_file_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yml");
    let fails = |text: &str| {
        std::fs::write(&path, text).unwrap();
        import(&path, &Options { host_name: "h", keeps_secrets: false, hash: |password| hash::make(password) })
            .unwrap_err()
            .to_string()
    };
    assert!(fails("mqtt:\n  host: [a\n").contains("not YAML"));
    assert!(fails("a: 1\n").contains("this is not a configuration of mqtt-io"));
    assert!(fails(&"[".repeat(100)).contains("nested too deeply"));
}

#[test]
fn what_an_input_says_itself_wins_over_what_it_merges() {
    let yaml = "\
mqtt: {host: localhost}
x-defaults: &d
  module: raspberrypi
  inverted: no
  retain: no
  pullup: no
x-others: &e {module: pcf8574, bouncetime: 250, retain: yes}
digital_inputs:
  - {<<: *d, name: front, pin: 4, inverted: yes, pullup: yes, retain: yes}
  - {name: back, pin: 5, retain: yes, <<: [*d, *e]}
  - {<<: *e, <<: *d, name: side, pin: 6, module: raspberrypi}
  - {<<: *d, name: none}
";
    let (settings, imported) = of(yaml);
    let read: Vec<_> = settings
        .sensors
        .iter()
        .map(|of| (of.name.as_str(), of.active, of.bias, of.retain, of.debounce.as_millis()))
        .collect();
    let usual = 50;
    assert_eq!(
        read,
        [
            ("front", Level::Low, Bias::PullUp, true, usual),
            ("back", Level::High, Bias::Off, true, 250),
            ("side", Level::High, Bias::Off, true, 250),
        ],
        "{}",
        imported.text
    );
    assert!(!imported.text.contains("digital_inputs.1.retain: yes\""), "{}", imported.text);
    // what one input shares with another that is left out is taken over all the same
    assert!(!imported.text.contains("x-defaults.module"), "{}", imported.text);
    let (_, imported) = of("mqtt: {host: localhost}\ndigital_inputs: [{<<: x, name: a, pin: 4}]\n");
    assert!(imported.text.contains("valid after <<"), "{}", imported.text);
}

#[test]
fn a_value_that_is_null_is_none() {
    let text = |nothing: &str| {
        format!(
            "mqtt: {{host: h, user: u, password: {nothing}, client_id: {nothing}, clean_session: {nothing}, tls: {{enabled: yes, \
             ca_certs: {nothing}}}}}\ndigital_inputs: [{{name: a, pin: 4, bouncetime: {nothing}, on_payload: {nothing}}}]\n"
        )
    };
    let without = "mqtt: {host: h, user: u, tls: {enabled: yes}}\ndigital_inputs: [{name: a, pin: 4}]\n";
    let said = |settings: &Settings| {
        let upstream = &settings.upstreams[0];
        let has_files = upstream.password.is_some() || upstream.tls.as_ref().unwrap().ca.is_some();
        (upstream.client_id.clone(), upstream.clean_session, has_files, settings.sensors.clone())
    };
    let usual = said(&of(without).0);
    for nothing in ["~", "null", "''"] {
        let (settings, imported) = of(&text(nothing));
        assert_eq!(said(&settings), usual, "{}", imported.text);
        assert!(imported.secrets.is_empty() && imported.summary.to_do.is_empty(), "{nothing}: {}", imported.text);
    }
    let (_, imported) = of("mqtt: {host: h, user: u, password: '~'}\ndigital_inputs: []\n");
    assert_eq!(imported.secrets[0].password, "~");
}
