//! Adapts a discovery message for Home Assistant to an upstream.
//!
//! The message names topics, which differ at the upstream, so each is mapped by the rules like the messages on it. A
//! component whose states are not forwarded is left out, and so is the whole message if no component is left. The
//! availability of the gateway comes from the upstream's `status_topic`, which has a will. A topic that is only forwarded
//! would stay "online" when the connection breaks.

use serde_json::{Map, Value, json};

/// A discovery message in its form for the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// The message is no discovery message, and is forwarded unchanged.
    AsItIs,
    /// This payload is forwarded instead.
    Changed(Vec<u8>),
    /// No component of the message is useful there.
    Nothing,
}

/// Adapts a message. `there` maps topics, and `status_topic` tells at the upstream whether the gateway is connected.
pub fn forwarded(payload: &[u8], there: impl Fn(&str) -> Option<String>, status_topic: Option<&str>) -> Forwarded {
    let Ok(Value::Object(mut message)) = serde_json::from_slice(payload) else { return Forwarded::AsItIs };
    let Some(Value::Object(parts)) = message.remove("cmps") else { return Forwarded::AsItIs };
    let goes_up = |of: &mut Map<String, Value>| map_topic(of, "stat_t", &there);
    let had_states = message.contains_key("stat_t");
    let has_states = goes_up(&mut message);
    let mut kept = Map::new();
    for (name, part) in parts {
        let Value::Object(mut part) = part else { continue };
        // of a component that must be removed, only the platform is left
        let is_stub = part.len() == 1;
        let has_own = part.contains_key("stat_t");
        if !is_stub && !(if has_own { goes_up(&mut part) } else { has_states || !had_states }) {
            continue;
        }
        if part.contains_key("json_attr_t") && !map_topic(&mut part, "json_attr_t", &there) {
            part.remove("json_attr_tpl");
        }
        kept.insert(name, part.into());
    }
    if kept.is_empty() {
        return Forwarded::Nothing;
    }
    message.insert("cmps".into(), kept.into());
    availability(&mut message, there, status_topic);
    // JSON values can always be serialised
    Forwarded::Changed(serde_json::to_vec(&message).unwrap_or_default())
}

/// Maps the topic under a key, and returns whether it is forwarded. A topic that is not forwarded is removed.
fn map_topic(of: &mut Map<String, Value>, key: &str, there: impl Fn(&str) -> Option<String>) -> bool {
    let mapped = of.remove(key).and_then(|topic| there(topic.as_str()?));
    let goes = mapped.is_some();
    of.extend(mapped.map(|topic| (key.to_owned(), topic.into())));
    goes
}

fn availability(message: &mut Map<String, Value>, there: impl Fn(&str) -> Option<String>, status_topic: Option<&str>) {
    let mut topics: Vec<String> = status_topic.map(Into::into).into_iter().collect();
    let mut add = |topic: Option<&Value>| topics.extend(topic.and_then(Value::as_str).and_then(&there));
    add(message.remove("avty_t").as_ref());
    if let Some(Value::Array(list)) = message.remove("avty") {
        list.iter().for_each(|of| add(of.get("t")));
    }
    message.remove("avty_mode");
    if !topics.is_empty() {
        message.insert("avty".into(), topics.iter().map(|topic| json!({"t": topic})).collect());
        message.insert("avty_mode".into(), "all".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = include_str!("../../tests/fixtures/home_assistant.json");

    fn changed(device: &str, there: impl Fn(&str) -> Option<String>, status_topic: Option<&str>) -> Value {
        let known: Value = serde_json::from_str(KNOWN).unwrap();
        let payload = known[format!("homeassistant/device/{device}/config")].to_string();
        match forwarded(payload.as_bytes(), there, status_topic) {
            Forwarded::Changed(payload) => serde_json::from_slice(&payload).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn topics_are_those_of_the_upstream() {
        let site = |topic: &str| Some(format!("site7/{topic}"));
        let sensor = changed("pigateway_loft_loft-motion", site, Some("site7/connected"));
        for part in ["motion", "since", "stuck"] {
            assert_eq!(sensor["cmps"][part]["stat_t"], "site7/loft/motion1");
        }
        let expected =
            json!([{"t": "site7/connected"}, {"t": "site7/pigateway/loft/status"}, {"t": "site7/loft/motion1/status"}]);
        assert_eq!((&sensor["avty"], &sensor["avty_mode"]), (&expected, &json!("all")));
        assert_eq!(sensor["cmps"]["motion"]["uniq_id"], "pigateway_loft_loft-motion_motion");
        let gateway = changed("pigateway_loft", site, None);
        assert_eq!(gateway["stat_t"], "site7/pigateway/loft/state");
        assert_eq!(gateway["cmps"]["problem"]["json_attr_t"], "site7/pigateway/loft/state");
        assert_eq!(gateway["avty"], json!([{"t": "site7/pigateway/loft/status"}]));
        assert_eq!(gateway.get("avty_t"), None);
    }

    #[test]
    fn what_does_not_go_up_is_not_named() {
        let only_states = |topic: &str| (topic == "loft/motion1").then(|| topic.to_owned());
        let sensor = changed("pigateway_loft_loft-motion", only_states, None);
        assert_eq!((sensor.get("avty"), sensor.get("avty_mode")), (None, None));
        let known: Value = serde_json::from_str(KNOWN).unwrap();
        let gateway = known["homeassistant/device/pigateway_loft/config"].to_string();
        assert_eq!(forwarded(gateway.as_bytes(), only_states, Some("s")), Forwarded::Nothing);
        for other in ["", "online", r#"{"problem":null}"#, "[]"] {
            assert_eq!(forwarded(other.as_bytes(), only_states, Some("s")), Forwarded::AsItIs, "{other}");
        }
    }

    #[test]
    fn what_is_to_go_there_goes() {
        let payload = json!({"avty_t": "a", "cmps": {"x": {"p": "sensor"}, "y": {"p": "sensor", "stat_t": "none"}}});
        let Forwarded::Changed(payload) =
            forwarded(payload.to_string().as_bytes(), |topic| (topic == "a").then(|| "b".into()), None)
        else {
            panic!()
        };
        let payload: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(payload["cmps"], json!({"x": {"p": "sensor"}}));
    }
}
