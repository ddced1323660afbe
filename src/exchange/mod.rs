//! The middle of the house: what every door shares.
//!
//! | file | what |
//! |---|---|
//! | `ingress` | the one door in: order, retained store, journal, router |
//! | `live`, `fanout`, `subscribers`, `inbox`, `delivery` | the way to connected subscribers: router, what each gets, who it is, bounded queues, what waits there |
//! | `hold` | whether publishers wait for a reader whose queue is full |
//! | `filters`, `shared` | topic filters, shared subscriptions |
//! | `retained`, `search`, `expiry` | retained messages, how they are read, and their end |
//! | `carried` | what reaches another gateway without a subscription |
//! | `meter` | what searches of one client may cost the one order, and its turns where they cost more |
//! | `receiving` | one budget for what is being received |
//! | `stats`, `trace` | counters, single messages that are followed |
//!
//! Of `live`, `fanout`, `subscribers`, `inbox` and `delivery` each uses those named after it. `hold` and `shared` use
//! subscribers with their inboxes, which know neither of them: an inbox tells whoever holds publishers for it when there is
//! room (`HoldsPublishers`), and a message from a shared group carries its way back there (`SharesOut`).
//!
//! A message comes from an MQTT client, a sensor, an upstream or HTTP, gets its place in `ingress`, and goes two ways: through
//! `live` to those who are connected, and through the journal to those who must get it in any case.

pub(crate) mod delivery;
mod expiry;
mod fanout;
pub mod filters;
pub(crate) mod hold;
pub(crate) mod inbox;
pub(crate) mod ingress;
mod keeping;
pub(crate) mod live;
pub(crate) mod meter;
mod publish;
pub(crate) mod receiving;
pub(crate) mod retained;
pub(crate) mod search;
pub(crate) mod shared;
pub(crate) mod stats;
pub(crate) mod subscribers;
pub(crate) mod trace;
pub(crate) mod waiting;
