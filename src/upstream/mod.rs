//! Upstreams: remote brokers that messages are forwarded to and taken from.
pub mod ledger;
pub mod overlap;
pub mod settings;
pub mod snapshot;
pub mod wire;

pub use snapshot::{Snapshot, State};
