//! What the local network is told of the gateway.

use schemars::JsonSchema;
use serde::Serialize;

/// What the local network is told of the gateway by mDNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Announced {
    /// What everybody there can find.
    pub(crate) services: Vec<AnnouncedService>,
    /// Where that is nothing: why.
    pub(crate) note: Option<String>,
}

/// A service, as DNS-SD calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct AnnouncedService {
    /// Its name, which is changed where others have the same.
    pub(crate) name: String,
    /// Its type, such as `_mqtt._tcp`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The TCP port at which it answers.
    pub(crate) port: u16,
}
