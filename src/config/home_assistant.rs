//! Reads `[home_assistant]`.

use super::document::{Table, assign, topic};
use super::settings::Settings;
use crate::home_assistant::settings::{HomeAssistantSettings, PREFIX, state_topic, status_topic};
use crate::sensors::settings::PayloadFormat;

/// Reads the table and applies its consequences to the other settings.
pub(super) fn read(root: &Table, settings: &mut Settings) {
    let Some(table) = root.table("home_assistant") else { return };
    let mut read = HomeAssistantSettings::default();
    assign(&mut read.enabled, table.get("enabled").and_then(|value| value.switch()));
    let longest = format!("/device/pigateway_{0}_{0}/config", "x".repeat(73));
    let prefix = table.get("prefix").and_then(|value| topic(&value, &longest));
    read.prefix = prefix.filter(|prefix| prefix.as_str() != PREFIX);
    if read.enabled {
        sensors(root, settings);
    }
    table.finish();
    apply(&read, settings);
    settings.home_assistant = read;
}

/// Changes the settings of other rooms as Home Assistant requires.
pub(super) fn apply(home_assistant: &HomeAssistantSettings, settings: &mut Settings) {
    let id = &settings.gateway.id;
    let reserved = match home_assistant.enabled {
        true => vec![status_topic(id), state_topic(id)],
        false => Vec::new(),
    };
    settings.broker.access.reserved.clone_from(&reserved);
    for upstream in &mut settings.upstreams {
        upstream.reserved.clone_from(&reserved);
    }
    for sensor in &mut settings.sensors {
        sensor.tells_stuck = home_assistant.enabled;
    }
}

/// Records problems with sensors that cannot be announced, or that would publish on the gateway's own topics.
fn sensors(root: &Table, settings: &Settings) {
    let id = &settings.gateway.id;
    for (table, sensor) in root.tables("sensor").iter().zip(&settings.sensors) {
        if sensor.payload == PayloadFormat::Time
            && let Some(value) = table.get("payload")
        {
            let message = "Home Assistant is not told of this sensor: \"time\" does not say when motion ends, and the retained \
                           message would be motion after each of its starts; valid for it: \"json\" or \"on_off\"";
            value.warning(message);
        }
        let topic = sensor.topic.as_str();
        let ours = [status_topic(id), state_topic(id)];
        if (ours.contains(&topic.to_owned()) || ours.contains(&format!("{topic}/status")))
            && let Some(value) = table.get("topic")
        {
            let message = format!("the gateway itself publishes on {} and {}; valid: another topic", ours[0], ours[1]);
            value.problem(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::Loaded;
    use super::super::{ConfigProblems, read};
    use crate::config::Environment;

    fn parse(sensor: &str) -> Result<Loaded, ConfigProblems> {
        let text = format!(
            "[gateway]\nid = \"loft\"\n[home_assistant]\nenabled = true\nprefix = \"ha\"\n[[sensor]]\nname = \"s\"\npin = 1\n\
             {sensor}\n[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://192.0.2.7\"]\n[[upstream.out]]\ntopic_filter = \"#\"\n"
        );
        read(&text, Path::new("t.toml"), &Environment::current())
    }

    #[test]
    fn everybody_hears_of_it() {
        let settings = parse("topic = \"a\"").unwrap().settings;
        assert_eq!(settings.home_assistant.prefix(), "ha");
        let reserved = ["pigateway/loft/status", "pigateway/loft/state"];
        assert_eq!(settings.broker.access.reserved, reserved);
        assert_eq!(settings.upstreams[0].reserved, reserved);
        assert!(settings.sensors[0].tells_stuck);
        // a change that needs a restart is not applied before it
        let off = read("", Path::new("t.toml"), &Environment::current()).unwrap().settings;
        let reload = crate::config::reload::Reload::plan(&settings, &off);
        assert!(reload.settings.home_assistant.enabled);
        assert_eq!(reload.settings.broker.access.reserved, reserved);
        assert!(reload.restart.contains(&"home_assistant".into()), "{:?}", reload.restart);
    }

    #[test]
    fn what_cannot_be_announced_is_said_with_the_reason() {
        let warnings = parse("topic = \"a\"\npayload = \"time\"").unwrap().warnings;
        let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("t.toml:10:11: sensor.payload: Home Assistant is not told of this"), "{}", said[0]);
        assert!(said[0].contains("does not say when motion ends"), "{}", said[0]);
        assert_eq!(parse("topic = \"a\"\npayload = \"on_off\"").unwrap().warnings, []);
    }

    #[test]
    fn no_sensor_speaks_for_the_gateway() {
        for topic in ["pigateway/loft/status", "pigateway/loft/state", "pigateway/loft"] {
            let problems = parse(&format!("topic = \"{topic}\"")).unwrap_err().to_string();
            assert!(problems.contains("the gateway itself publishes on pigateway/loft/status"), "{problems}");
        }
        assert!(parse("topic = \"pigateway/attic\"").is_ok());
    }
}
