//! Announces the open ports in the local network (mDNS and DNS-SD), through Avahi.
//!
//! | file | what |
//! |---|---|
//! | `settings` | the settings of the announcements |
//! | `service` | which ports are announced, as what, and where |
//! | `interface` | which network an address belongs to |
//! | `announcer` | decides what to tell Avahi next, as a pure state machine |
//! | `avahi` | Avahi's D-Bus interface |
//! | `task` | performs the actions |
//!
//! The gateway does not speak mDNS itself: Avahi answers for the host, and two responders on one host disturb each other. An
//! announcement lives as long as the connection to the bus: when that ends for any reason, Avahi withdraws everything.
//! Nothing is polled. It is no fault if there is no Avahi or no bus, because those who want announcements install it.
//!
//! The TXT records are `txtvers=1`, `id` with the gateway's id, and `path=/` for the web page. The key `topic`, which some
//! programs add to `_mqtt._tcp`, is left out, because topics are visible only to those who may read them.

mod announcer;
mod avahi;
mod interface;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod task;
