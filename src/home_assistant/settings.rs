//! `[home_assistant]`.

use crate::message::Topic;

/// Whether Home Assistant is told of the gateway and its sensors, and where it listens for that.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct HomeAssistantSettings {
    /// Whether it is told.
    pub(crate) enabled: bool,
    /// Its discovery prefix; `None`: the one that it has unless somebody changed it.
    pub(crate) prefix: Option<Topic>,
}

/// Home Assistant's own default for the discovery prefix, and what its birth message begins with whatever that prefix is.
pub(crate) const PREFIX: &str = "homeassistant";

impl HomeAssistantSettings {
    /// The first level of discovery topics, `homeassistant` unless configured otherwise.
    pub(crate) fn prefix(&self) -> &str {
        self.prefix.as_ref().map_or(PREFIX, |prefix| prefix.as_str())
    }
}

/// Topic that says whether the gateway is there.
pub(crate) fn status_topic(gateway_id: &str) -> String {
    format!("pigateway/{gateway_id}/status")
}

/// Topic that says how the gateway is.
pub(crate) fn state_topic(gateway_id: &str) -> String {
    format!("pigateway/{gateway_id}/state")
}
