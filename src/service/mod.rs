//! The gateway as a service: its log, the signals it gets and what it tells systemd.
pub mod logging;
pub mod notify;
pub mod problems;
pub mod signals;
