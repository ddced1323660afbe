//! Upstreams: remote brokers that messages are forwarded to and taken from.
pub mod overlap;
pub mod settings;
