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

mod carried;
pub mod delivery;
mod expiry;
pub mod filters;
pub mod hold;
pub mod inbox;
pub mod ingress;
mod keeping;
pub mod live;
mod publish;
pub mod receiving;
pub mod retained;
pub mod shared;
pub mod stats;
pub mod subscribers;
pub mod trace;
