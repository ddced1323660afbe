//! What upstreams speak.

/// Version of MQTT spoken with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Version {
    /// 3.1.1.
    #[serde(rename = "3.1.1")]
    V4,
    /// 5.
    #[serde(rename = "5")]
    V5,
}
