//! The table `[home_assistant]`.

use crate::message::Topic;

/// Whether the gateway is announced to Home Assistant, and under which topics.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct HomeAssistantSettings {
    pub(crate) enabled: bool,
    /// The discovery prefix; `None` means Home Assistant's default.
    pub(crate) prefix: Option<Topic>,
}

/// Home Assistant's default discovery prefix. Its birth message has this first level with any prefix.
pub(crate) const PREFIX: &str = "homeassistant";

impl HomeAssistantSettings {
    /// The first level of discovery topics.
    pub(crate) fn prefix(&self) -> &str {
        self.prefix.as_ref().map_or(PREFIX, |prefix| prefix.as_str())
    }
}

/// The topic that tells whether the gateway is online.
pub(crate) fn status_topic(gateway_id: &str) -> String {
    format!("pigateway/{gateway_id}/status")
}

/// The topic with the state of the gateway.
pub(crate) fn state_topic(gateway_id: &str) -> String {
    format!("pigateway/{gateway_id}/state")
}
