//! `[home_assistant]`.

use crate::message::Topic;

/// Whether Home Assistant is told of the gateway and its sensors, and where it listens for that.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HomeAssistantSettings {
    /// Whether it is told.
    pub enabled: bool,
    /// Its discovery prefix; `None`: the one that it has unless somebody changed it.
    pub prefix: Option<Topic>,
}

/// Home Assistant's own default for the discovery prefix, and what its birth message begins with whatever that prefix is.
pub const PREFIX: &str = "homeassistant";

impl HomeAssistantSettings {
    /// The first level of discovery topics, `homeassistant` unless configured otherwise.
    pub fn prefix(&self) -> &str {
        self.prefix.as_ref().map_or(PREFIX, |prefix| prefix.as_str())
    }
}

/// Topic that says whether the gateway is there.
pub fn status_topic(gateway_id: &str) -> String {
    format!("pigateway/{gateway_id}/status")
}

/// Topic that says how the gateway is.
pub fn state_topic(gateway_id: &str) -> String {
    format!("pigateway/{gateway_id}/state")
}
