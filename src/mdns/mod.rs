//! The local network is told of the open ports (mDNS and DNS-SD), through Avahi.
//!
//! | file | what |
//! |---|---|
//! | `settings` | what the configuration says |
//! | `service` | which ports are announced, as what, and where |
//! | `interface` | which network an address belongs to |
//! | `announcer` | what to tell Avahi next, as a pure state machine |
//! | `avahi` | Avahi's D-Bus interface |
//! | `task` | performs the actions |
//!
//! We do not speak mDNS ourselves: Avahi answers for the host, and two that answer on one host get in each other's way. The
//! connection to the bus is what keeps the announcement alive: when it ends, whatever the reason, Avahi takes everything
//! back. Nothing is polled. No Avahi, or no bus, is no fault: whoever wants announcements installs it.
//!
//! TXT records are `txtvers=1`, `id` with the gateway's id, and `path=/` for the page. The key `topic`, which some give to
//! `_mqtt._tcp`, is left out: which topics there are is for those who may read them.

mod announcer;
mod avahi;
mod interface;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod task;
