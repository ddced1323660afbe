//! The middle of the house: what every door shares.
//!
//! | file | what |
//! |---|---|
//! | `ingress` | the one door in: order, retained store, journal, router |
//! | `live`, `subscribers`, `inbox` | the way to connected subscribers: router, matching, bounded queues |
//! | `filters`, `retained`, `shared` | topic filters, retained messages, shared subscriptions |
//! | `stats` | counters |
//!
//! A message comes from an MQTT client, a sensor, an upstream or HTTP, gets its place in `ingress`, and goes two ways: through
//! `live` to those who are connected, and through the journal to those who must get it in any case.

pub mod filters;
pub mod inbox;
pub mod ingress;
pub mod live;
pub mod retained;
pub mod shared;
pub mod stats;
pub mod subscribers;
