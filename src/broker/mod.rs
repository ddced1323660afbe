//! The MQTT broker.
pub mod codec;
pub mod filters;
pub mod inbox;
pub mod ingress;
pub mod live;
pub mod retained;
pub mod subscribers;
