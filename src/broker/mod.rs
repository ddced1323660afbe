//! The MQTT broker.
pub mod ingress;
