//! The gateway as a service: its log, the signals it gets and what it tells systemd.
pub(crate) mod logging;
pub(crate) mod notify;
pub(crate) mod problems;
pub(crate) mod signals;
