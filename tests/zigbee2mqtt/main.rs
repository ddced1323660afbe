//! The real Zigbee2MQTT with a gateway with default settings. It comes from npm and has a hundred devices, and only its
//! radio is missing.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::broker::Setup;
use support::client::Connect;
use support::http::get;
use support::{Process, wait_until};

const DEVICES: usize = 100;
/// Common devices as they identify themselves: manufacturer, model, kind, clusters.
const MODELS: [(&str, &str, &str, &[u16]); 5] = [
    ("IKEA of Sweden", "TRADFRI bulb E27 WS opal 980lm", "Router", &[0, 3, 4, 5, 6, 8, 768]),
    ("LUMI", "lumi.weather", "EndDevice", &[0, 1026, 1027, 1029]),
    ("LUMI", "lumi.sensor_motion.aq2", "EndDevice", &[0, 1024, 1030]),
    ("LUMI", "lumi.sensor_magnet.aq2", "EndDevice", &[0, 6]),
    ("IKEA of Sweden", "TRADFRI control outlet", "Router", &[0, 3, 4, 5, 6]),
];

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/zigbee2mqtt/node_modules")
}

/// The database of a network.
fn database() -> String {
    let endpoint = |device: u16, clusters: &[u16]| {
        json!({ "1": { "profId": 260, "epId": 1, "devId": device, "inClusterList": clusters, "outClusterList": [], "clusters": {},
            "binds": [], "configuredReportings": [], "meta": {} } })
    };
    let coordinator = json!({ "id": 1, "type": "Coordinator", "ieeeAddr": "0x00124b0018ed3ddf", "nwkAddr": 0, "manufId": 0,
        "epList": [1], "endpoints": endpoint(5, &[]), "interviewCompleted": true, "interviewState": "SUCCESSFUL", "meta": {} });
    let device = |number: usize| {
        let (manufacturer, model, kind, clusters) = MODELS[number % MODELS.len()];
        json!({ "id": number + 2, "type": kind, "ieeeAddr": format!("0x00158d{number:010x}"), "nwkAddr": 1000 + number,
            "manufId": 4476, "manufName": manufacturer, "modelId": model, "powerSource": "Battery", "epList": [1],
            "endpoints": endpoint(268, clusters), "appVersion": 1, "stackVersion": 1, "hwVersion": 1, "dateCode": "20200101",
            "swBuildId": "1", "zclVersion": 3, "interviewCompleted": true, "interviewState": "SUCCESSFUL", "meta": {} })
    };
    let rows = std::iter::once(coordinator).chain((0..DEVICES).map(device));
    rows.map(|row| row.to_string() + "\n").collect()
}

fn start(dir: &Path, port: u16) -> Process {
    let configuration = format!(
        "version: 5\nmqtt:\n  server: mqtt://127.0.0.1:{port}\nserial:\n  port: /dev/null\n  adapter: zstack\n\
         homeassistant:\n  enabled: true\nadvanced:\n  network_key: GENERATE\n  pan_id: GENERATE\n  ext_pan_id: GENERATE\n"
    );
    fs::write(dir.join("configuration.yaml"), configuration).unwrap();
    fs::write(dir.join("database.db"), database()).unwrap();
    let radio = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zigbee2mqtt/radio.cjs");
    let mut node = Command::new("node");
    node.arg("--require").arg(radio).arg(modules().join("zigbee2mqtt/index.js"));
    // within a repository of git it would build itself again
    node.current_dir(dir).env("ZIGBEE2MQTT_DATA", dir).env("ZIGBEE2MQTT_MODULES", modules());
    Process::start(&mut node)
}

/// Waits for the retained message of a topic. Zigbee2MQTT starts slowly.
#[track_caller]
fn retained(http: u16, topic: &str) -> Value {
    let begin = Instant::now();
    loop {
        let answer = get(http, &format!("/api/v1/topics/{topic}"));
        if answer.status == 200 {
            return answer.json();
        }
        assert!(begin.elapsed() < Duration::from_secs(240), "{topic}: {}", answer.text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn zigbee2mqtt_with_a_hundred_devices_works_at_defaults() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let dir = tempfile::tempdir().unwrap();
    let zigbee2mqtt = start(dir.path(), gateway.port);
    let devices = retained(http, "zigbee2mqtt/bridge/devices");
    assert_eq!(devices.as_array().unwrap().len(), DEVICES + 1);
    assert!(
        devices.as_array().unwrap().iter().all(|device| device["type"] == "Coordinator" || device["supported"] == true)
    );
    // its largest message, which is larger than many brokers for small machines accept by default
    let definitions = retained(http, "zigbee2mqtt/bridge/definitions");
    assert!(definitions.to_string().len() > 200_000 && devices.to_string().len() > 200_000);
    assert_eq!(retained(http, "zigbee2mqtt/bridge/state"), json!({ "state": "online" }));
    // another client gets this message completely, and its requests are answered
    let mut client = Connect::v5("app").open(gateway.port);
    client.subscribe("zigbee2mqtt/bridge/definitions", 1);
    assert_eq!(serde_json::from_slice::<Value>(&client.receive().payload).unwrap(), definitions);
    client.subscribe("zigbee2mqtt/bridge/response/health_check", 1);
    client.publish("zigbee2mqtt/bridge/request/health_check", "", 1, false);
    let answer: Value = serde_json::from_slice(&client.receive().payload).unwrap();
    assert_eq!((&answer["status"], &answer["data"]["healthy"]), (&json!("ok"), &json!(true)), "{answer}");
    // every device is announced to Home Assistant
    let last = format!("homeassistant/sensor/0x00158d{:010x}/battery/config", DEVICES - 2);
    assert_eq!(retained(http, &last)["device_class"], "battery");
    assert_eq!(get(http, "/api/v1/problems?now=true").json(), json!([]), "nobody was cut off");
    zigbee2mqtt.stop();
    wait_until("its goodbye", || retained(http, "zigbee2mqtt/bridge/state") == json!({ "state": "offline" }));
}
