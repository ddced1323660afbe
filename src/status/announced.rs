//! The announcements in the local network, for those who show them.

use schemars::JsonSchema;
use serde::Serialize;

/// What is announced of the gateway in the local network by mDNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Announced {
    /// The services that everybody in the network can find.
    pub(crate) services: Vec<AnnouncedService>,
    /// Why nothing is announced, if that is so.
    pub(crate) note: Option<String>,
}

/// A service in the sense of DNS-SD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct AnnouncedService {
    /// The name of the service. It is changed if another service has the same.
    pub(crate) name: String,
    /// The type of the service, such as `_mqtt._tcp`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The TCP port of the service.
    pub(crate) port: u16,
}
