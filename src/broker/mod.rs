//! The MQTT broker.
pub mod ingress;
pub mod settings;
