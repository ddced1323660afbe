//! The MQTT broker.
pub mod authorise;
pub mod codec;
pub mod filters;
pub mod inbox;
pub mod ingress;
pub mod live;
pub mod password;
pub mod retained;
pub mod settings;
pub mod shared;
pub mod stats;
pub mod subscribers;
