//! The middle of the house: what every door shares.
//!
//! | file | what |
//! |---|---|
//! | `ingress` | the one door in: order, retained store, journal, router |
//! | `live`, `subscribers`, `inbox`, `delivery` | the way to connected subscribers: router, matching, bounded queues |
//! | `hold` | whether publishers wait for a reader whose queue is full |
//! | `filters`, `retained`, `expiry`, `shared` | topic filters, retained messages and their end, shared subscriptions |
//! | `carried` | what reaches another gateway without a subscription |
//! | `receiving` | one budget for what is being received |
//! | `stats`, `trace` | counters, single messages that are followed |
//!
//! A message comes from an MQTT client, a sensor, an upstream or HTTP, gets its place in `ingress`, and goes two ways: through
//! `live` to those who are connected, and through the journal to those who must get it in any case.

pub(crate) mod delivery;
mod expiry;
pub mod filters;
pub(crate) mod hold;
pub(crate) mod inbox;
pub(crate) mod ingress;
mod keeping;
pub(crate) mod live;
mod publish;
pub(crate) mod receiving;
pub(crate) mod retained;
pub(crate) mod shared;
pub(crate) mod stats;
pub(crate) mod subscribers;
pub(crate) mod trace;
pub(crate) mod waiting;
