//! The valid settings of the whole gateway.

use std::path::PathBuf;
use std::time::Duration;

use super::paths::Environment;
use crate::broker::settings::BrokerSettings;
use crate::home_assistant::settings::HomeAssistantSettings;
use crate::http::settings::HttpSettings;
use crate::journal::settings::JournalSettings;
use crate::mdns::settings::MdnsSettings;
use crate::message::Topic;
use crate::sensors::settings::{GpioBackend, GpioSettings, SensorSettings, Simulation};
use crate::upstream::settings::{Order, UpstreamSettings};

/// The table `[gateway]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewaySettings {
    /// The name of this gateway.
    pub(crate) id: String,
    /// The directory for journal, retained messages and sessions.
    pub(crate) data_dir: PathBuf,
}

/// The table `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogSettings {
    /// A valid tracing filter.
    pub(crate) level: String,
}

/// The settings of all rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub(crate) gateway: GatewaySettings,
    pub(crate) log: LogSettings,
    /// Ports, limits and access of the broker, from `[broker]` and its tables.
    pub broker: BrokerSettings,
    pub(crate) gpio: GpioSettings,
    pub(crate) sensors: Vec<SensorSettings>,
    /// The upstreams, one for each `[[upstream]]`, with unique names.
    pub upstreams: Vec<UpstreamSettings>,
    pub(crate) journal: JournalSettings,
    /// `journal.order`: the order in which upstreams get waiting messages.
    pub(crate) order: Order,
    pub(crate) http: HttpSettings,
    pub(crate) mdns: MdnsSettings,
    pub(crate) home_assistant: HomeAssistantSettings,
}

impl Settings {
    /// The settings of an empty file.
    pub(crate) fn defaults(environment: &Environment) -> Settings {
        let data_dir = environment.state_dir.clone().unwrap_or_else(|| "pigateway-data".into());
        Settings {
            gateway: GatewaySettings { id: default_id(&environment.host_name), data_dir },
            log: LogSettings { level: "info".into() },
            broker: BrokerSettings::default(),
            gpio: GpioSettings::default(),
            sensors: Vec::new(),
            upstreams: Vec::new(),
            journal: JournalSettings::default(),
            order: Order::default(),
            http: HttpSettings::default(),
            mdns: MdnsSettings::default(),
            home_assistant: HomeAssistantSettings::default(),
        }
    }

    /// The settings without a file: a simulated motion sensor that reports within seconds, and the defaults of everything
    /// else.
    pub(crate) fn demonstration() -> Settings {
        let mut settings = Settings::defaults(&Environment::current());
        settings.gpio.backend = GpioBackend::Simulated;
        // a demonstration may run on any network, so it is not announced there
        settings.mdns.enabled = false;
        if let Ok(topic) = Topic::new("loft/motion1") {
            let script = [(1, false), (3, true), (8, false)];
            let script = script.map(|(seconds, motion)| (Duration::from_secs(seconds), motion));
            settings.sensors.push(SensorSettings {
                warm_up: Duration::ZERO,
                hold: Duration::from_secs(2),
                simulate: Some(Simulation::Script(script.into())),
                ..SensorSettings::new("loft-motion", 17, topic)
            });
        }
        settings
    }
}

/// The host name as a gateway id, which allows fewer characters.
fn default_id(host_name: &str) -> String {
    let kept = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let id: String = host_name.chars().take(64).map(kept).collect();
    if id.is_empty() { "pigateway".into() } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demonstration_has_a_sensor_that_reports_within_seconds() {
        let settings = Settings::demonstration();
        let sensor = &settings.sensors[0];
        assert_eq!((sensor.name.as_str(), sensor.pin, sensor.topic.as_str()), ("loft-motion", 17, "loft/motion1"));
        assert_eq!(settings.broker.listeners[0].address.to_string(), "[::]:1883");
        assert!(sensor.retain && sensor.warm_up.is_zero());
        assert!(!settings.mdns.enabled && Settings::defaults(&Environment::current()).mdns.enabled);
    }

    #[test]
    fn a_host_without_a_name_has_an_id() {
        assert_eq!(default_id(""), "pigateway");
        assert_eq!(default_id("pi loft"), "pi-loft");
    }
}
