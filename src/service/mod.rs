//! The gateway as a service: log, signals, and messages to systemd.
mod bounds;
mod lines;
pub(crate) mod logging;
pub(crate) mod notify;
pub(crate) mod problems;
pub(crate) mod signals;
