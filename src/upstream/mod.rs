//! Upstreams: remote brokers that messages are forwarded to and taken from.
//!
//! [`rule`] maps topics, [`lanes`] says what goes before what, [`retained`] keeps retained messages equal, [`session`]
//! decides, `discovery` rewrites what Home Assistant is told, [`client`] speaks MQTT (and is the only one that names rumqttc), [`task`] brings them together, and [`ledger`]
//! keeps account.
//!
//! Promises: what the journal holds for an upstream arrives there in order, at least once at QoS 1, whatever happens to the
//! connection; what does not arrive is counted with a reason. A command is acknowledged upstream when the gateway
//! has it safe. No upstream at start, or for weeks, is normal.
//!
//! With QoS 2 exactly once, where the upstream keeps our session (see [`session`] and [`task`]; `mark` says whose session the
//! steps belong to).
//!
//! Limits: One order holds for all messages, but for those
//! that pass a message which may be what the upstream ends connections for (see [`session`]). On MQTT 3.1.1 an upstream sends back what it is
//! sent where a subscription covers it; rules that would loop there are refused by the configuration.
mod address;
pub(crate) mod announce;
pub(crate) mod approach;
pub(crate) mod backoff;
pub mod client;
pub mod discovery;
mod inbox;
pub(crate) mod lanes;
pub mod mark;
mod password;
pub mod properties;
pub(crate) mod retained;
pub(crate) mod rule;
pub(crate) mod session;
pub mod settings;
pub(crate) mod task;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod twins;
pub mod wire;

pub use task::Upstream;
