//! The messages for Home Assistant: a device for the gateway and one for each sensor, in the form of MQTT device discovery.
//!
//! Each sensor is a device, so that it can have its own area and is removed by one empty message. The availability of a
//! component would replace that of its device, so no component has one. Parts of the topic consist of `[A-Za-z0-9_-]` only,
//! while names may have other characters: see [`slug`].

use serde_json::{Map, Value, json};

use super::settings::{state_topic, status_topic};
use crate::secret::sha256_hex;
use crate::sensors::settings::{PayloadFormat, SensorSettings};

/// A device to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) topic: String,
    /// A digest of the device's configuration. It does not depend on the version of the gateway.
    pub(crate) fingerprint: String,
    pub(crate) payload: Map<String, Value>,
}

/// The properties of the gateway that are announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AnnouncedGateway {
    /// `gateway.id`, which is a part of its topics.
    pub(crate) id: String,
    pub(crate) upstreams: Vec<String>,
    /// The URL of its web page, if other machines can reach it.
    pub(crate) url: Option<String>,
}

/// A name as part of a topic. A name that fits is used unchanged. Otherwise `-` replaces other characters, and the beginning
/// of the name's digest is appended, so that different names stay different.
pub(crate) fn slug(name: &str, fits: impl Fn(char) -> bool) -> String {
    if !name.is_empty() && name.chars().all(&fits) {
        return name.into();
    }
    let kept: String = name.chars().map(|c| if fits(c) { c } else { '-' }).collect();
    let digits = sha256_hex(name.as_bytes());
    format!("{kept}-{}", &digits[..8])
}

/// The gateway's part of topics and unique ids. It has no `_`; otherwise gateway `a` with sensor `b_c` and gateway `a_b`
/// with sensor `c` would have the same ids in one Home Assistant.
fn gateway_slug(id: &str) -> String {
    slug(id, |c| c.is_ascii_alphanumeric() || c == '-')
}

fn name_slug(name: &str) -> String {
    slug(name, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn topic(prefix: &str, device: &str) -> String {
    format!("{prefix}/device/{device}/config")
}

fn origin() -> Value {
    json!({"name": "pigateway", "sw": env!("CARGO_PKG_VERSION")})
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A part of the device of the gateway with this name: its id, and how it is announced.
fn part(device: &str, (id, platform, name): (&str, &str, &str), more: Value) -> (String, Value) {
    let mut part = object(more);
    part.insert("p".into(), platform.into());
    part.insert("uniq_id".into(), format!("{device}_{id}").into());
    part.insert("name".into(), name.into());
    part.insert("ent_cat".into(), "diagnostic".into());
    (id.to_owned(), Value::Object(part))
}

/// The parts that every gateway has.
fn own_parts(device: &str, state: &str) -> Vec<(String, Value)> {
    let part = |id, platform, name, more| part(device, (id, platform, name), more);
    vec![
        part(
            "problem",
            "binary_sensor",
            "Problem",
            json!({
                "dev_cla": "problem", "val_tpl": "{{ 'ON' if value_json.problem else 'OFF' }}", "json_attr_t": state,
                "json_attr_tpl": "{{ {'problem': value_json.problem} | tojson }}",
            }),
        ),
        part("started", "sensor", "Started", json!({"dev_cla": "timestamp", "val_tpl": "{{ value_json.started }}"})),
        part(
            "clients",
            "sensor",
            "Clients",
            json!({"stat_cla": "measurement", "ic": "mdi:lan-connect", "val_tpl": "{{ value_json.clients }}"}),
        ),
        part(
            "journal_used",
            "sensor",
            "Journal used",
            json!({
                "dev_cla": "data_size", "unit_of_meas": "B", "stat_cla": "measurement", "en": false,
                "val_tpl": "{{ value_json.journal_used_bytes }}",
            }),
        ),
    ]
}

/// The parts for one upstream.
fn upstream_parts(device: &str, name: &str) -> [(String, Value); 2] {
    let (id, of) = (name_slug(name), format!("value_json.upstreams['{name}']"));
    let connected = format!("{{{{ 'ON' if {of}.connected else 'OFF' }}}}");
    let connected = part(
        device,
        (&format!("upstream_{id}_connected"), "binary_sensor", &format!("Upstream {name}")),
        json!({"dev_cla": "connectivity", "val_tpl": connected}),
    );
    let pending = format!("{{{{ {of}.pending }}}}");
    let backlog = part(
        device,
        (&format!("upstream_{id}_backlog"), "sensor", &format!("Upstream {name} backlog")),
        json!({
            "stat_cla": "measurement", "unit_of_meas": "messages", "ic": "mdi:tray-full", "val_tpl": pending,
        }),
    );
    [connected, backlog]
}

pub(crate) fn gateway(prefix: &str, gateway: &AnnouncedGateway) -> Device {
    let device = format!("pigateway_{}", gateway_slug(&gateway.id));
    let state = state_topic(&gateway.id);
    let mut parts = own_parts(&device, &state);
    parts.extend(gateway.upstreams.iter().flat_map(|name| upstream_parts(&device, name)));
    let mut about = json!({
        "ids": [device], "name": format!("pigateway {}", gateway.id), "mf": "pigateway", "mdl": "MQTT gateway",
        "sw": env!("CARGO_PKG_VERSION"),
    });
    if let Some(url) = &gateway.url {
        about["cu"] = url.as_str().into();
    }
    let payload = json!({
        "dev": about, "o": origin(), "stat_t": state, "qos": 1, "avty_t": status_topic(&gateway.id),
        "cmps": parts.into_iter().collect::<Map<_, _>>(),
    });
    let fingerprint = sha256_hex(format!("{}\n{}", gateway.id, gateway.upstreams.join("\n")).as_bytes());
    Device { topic: topic(prefix, &device), fingerprint, payload: object(payload) }
}

/// The device of a sensor; `None` if its messages do not tell when motion ends, because a starting Home Assistant would then
/// take the retained message for motion.
pub(crate) fn sensor(prefix: &str, gateway_id: &str, sensor: &SensorSettings) -> Option<Device> {
    let gateway = format!("pigateway_{}", gateway_slug(gateway_id));
    let device = format!("{gateway}_{}", name_slug(&sensor.name));
    let states = sensor.topic.as_str();
    let mut motion = object(json!({
        "p": "binary_sensor", "uniq_id": format!("{device}_motion"), "name": null, "dev_cla": "motion", "stat_t": states,
    }));
    let mut parts = Map::new();
    match sensor.payload {
        PayloadFormat::Time => return None,
        // ON and OFF are Home Assistant's defaults
        PayloadFormat::OnOff => {}
        PayloadFormat::Json => {
            motion.append(&mut object(json!({"val_tpl": "{{ value_json.state }}", "pl_on": "on", "pl_off": "off"})));
            parts.insert(
                "since".into(),
                json!({
                    "p": "sensor", "uniq_id": format!("{device}_since"), "name": "Since", "dev_cla": "timestamp",
                    "ent_cat": "diagnostic", "stat_t": states, "val_tpl": "{{ value_json.since }}",
                }),
            );
            parts.insert(
                "stuck".into(),
                json!({
                    "p": "binary_sensor", "uniq_id": format!("{device}_stuck"), "name": "Stuck", "dev_cla": "problem",
                    "ent_cat": "diagnostic", "stat_t": states,
                    "val_tpl": "{{ 'ON' if value_json.stuck | default(false) else 'OFF' }}",
                }),
            );
        }
    }
    parts.insert("motion".into(), motion.into());
    let payload = json!({
        "dev": {
            "ids": [device], "name": sensor.name, "mf": "pigateway", "mdl": "motion sensor", "via_device": gateway,
            "sw": env!("CARGO_PKG_VERSION"),
        },
        "o": origin(), "qos": 1,
        "avty": [{"t": status_topic(gateway_id)}, {"t": format!("{states}/status")}], "avty_mode": "all", "cmps": parts,
    });
    Some(Device { topic: topic(prefix, &device), fingerprint: fingerprint(sensor), payload: object(payload) })
}

/// A digest of the sensor's configuration. The keys are listed explicitly, so that a new key in a later version does not
/// change every fingerprint.
fn fingerprint(sensor: &SensorSettings) -> String {
    let SensorSettings { name, pin, topic, active, bias, debounce, hold, warm_up, stuck_after, payload, qos, .. } =
        sensor;
    let text = format!(
        "{name}\n{pin}\n{topic}\n{active:?}\n{bias:?}\n{debounce:?}\n{hold:?}\n{warm_up:?}\n{stuck_after:?}\n{payload:?}\n{}\n{}",
        *qos as u8, sensor.retain
    );
    sha256_hex(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Topic;

    fn motion() -> SensorSettings {
        SensorSettings::new("loft-motion", 17, Topic::new("loft/motion1").unwrap())
    }

    #[test]
    fn payloads_are_those_that_home_assistant_takes() {
        let known: Value = serde_json::from_str(include_str!("../../tests/fixtures/home_assistant.json")).unwrap();
        let url = Some("http://loft.local:8080/".into());
        let loft =
            gateway("homeassistant", &AnnouncedGateway { id: "loft".into(), upstreams: vec!["home".into()], url });
        let sensor = sensor("homeassistant", "loft", &motion()).unwrap();
        for device in [loft, sensor] {
            let mut expected = known[&device.topic].clone();
            for of in ["dev", "o"] {
                expected[of]["sw"] = env!("CARGO_PKG_VERSION").into();
            }
            assert_eq!(Value::Object(device.payload), expected, "{}", device.topic);
        }
    }

    #[test]
    fn formats_that_say_less_have_fewer_components_or_none() {
        let on_off = SensorSettings { payload: PayloadFormat::OnOff, ..motion() };
        let device = sensor("ha", "loft", &on_off).unwrap();
        let parts = device.payload["cmps"].as_object().unwrap();
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["motion"]);
        for key in ["val_tpl", "pl_on", "pl_off"] {
            assert_eq!(parts["motion"].get(key), None, "Home Assistant's defaults are right");
        }
        assert_eq!(device.topic, "ha/device/pigateway_loft_loft-motion/config");
        assert_eq!(sensor("ha", "loft", &SensorSettings { payload: PayloadFormat::Time, ..motion() }), None);
    }

    #[test]
    fn topics_have_only_what_home_assistant_matches_and_differ_for_different_names() {
        let names = ["a", "a.b", "a-b", "a_b", "ä", "ö", "a.b.c", "a_b.c"];
        let mut topics: Vec<String> = Vec::new();
        for id in names {
            topics.push(gateway("h", &AnnouncedGateway { id: id.into(), ..AnnouncedGateway::default() }).topic);
            for name in ["b", "b.c", "b_c", "c", "ü"] {
                topics.push(sensor("h", id, &SensorSettings { name: name.into(), ..motion() }).unwrap().topic);
            }
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        assert!(topics.iter().all(|topic| topic.split('/').nth(2).unwrap().chars().all(fits)), "{topics:?}");
        let count = topics.len();
        topics.sort();
        topics.dedup();
        assert_eq!(topics.len(), count);
    }

    #[test]
    fn a_fingerprint_follows_what_is_configured() {
        let of = |sensor: &SensorSettings| fingerprint(sensor);
        assert_eq!(of(&motion()), of(&motion()));
        let other = SensorSettings { hold: std::time::Duration::from_secs(9), ..motion() };
        assert_ne!(of(&motion()), of(&other));
        assert_ne!(of(&motion()), of(&SensorSettings { retain: false, ..motion() }));
    }
}
