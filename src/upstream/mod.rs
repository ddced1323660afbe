//! Upstreams: remote brokers to which messages are forwarded and from which messages are taken.
//!
//! [`rule`] maps topics, [`lanes`] decides the order, [`retained`] keeps retained messages equal, [`session`] makes the
//! decisions, `discovery` adapts messages for Home Assistant, [`client`] speaks MQTT and is the only user of rumqttc,
//! [`task`] connects all of them, and [`ledger`] counts.
//!
//! Promises: what the journal holds for an upstream arrives there in order and at least once at QoS 1, whatever happens to
//! the connection. What does not arrive is counted with a reason. A message from the upstream is acknowledged when what
//! must be kept of it is on disk. It is normal that no upstream can be reached at the start, or for weeks.
//!
//! At QoS 2 messages arrive exactly once if the upstream keeps our session (see [`session`] and [`task`]; `mark` records to
//! which session the steps belong).
//!
//! Limits: all messages are in one order, except for those that pass a message which may make the upstream end connections
//! (see [`session`]). With MQTT 3.1.1 an upstream returns the messages that it was sent if a subscription matches them;
//! rules that would loop there are refused by the configuration, or, if only the network shows that, when
//! the connection is made (see [`neighbours`]).
mod address;
pub(crate) mod announce;
pub(crate) mod approach;
mod asked;
pub(crate) mod backoff;
mod choice;
pub mod client;
pub mod discovery;
mod door;
mod inbox;
pub(crate) mod lanes;
pub mod mark;
mod mirror;
pub(crate) mod neighbours;
mod own_acks;
mod password;
mod place;
pub mod properties;
pub(crate) mod reach;
pub(crate) mod retained;
pub(crate) mod rule;
pub(crate) mod session;
pub mod settings;
mod shelf;
pub(crate) mod task;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod twins;
pub mod wire;

pub use task::Upstream;
