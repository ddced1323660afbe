//! The exchange, which all doors share.
//!
//! | file | what |
//! |---|---|
//! | `ingress` | the entrance for messages: order, retained store, journal, router |
//! | `live`, `fanout`, `subscribers`, `inbox`, `delivery`, `matched_ids` | from router to client |
//! | `hold`, `spare` | whether publishers wait for a reader whose queue is full, and room for those who have not filled it |
//! | `filters`, `values`, `shared`, `missed` | topic filters with what they select, shared subscriptions, groups that wait for room at a member |
//! | `retained`, `search`, `expiry` | retained messages: the store, reading it, expiry |
//! | `carried` | messages that reach another gateway without a subscription |
//! | `meter` | limits what searches of one client may cost the others |
//! | `receiving` | the memory for packets that are being received |
//! | `stats`, `trace` | counters, traces of single messages |
//!
//! Of `live`, `fanout`, `subscribers`, `inbox` and `delivery` each uses those named after it. `hold` and `shared` use
//! subscribers with their inboxes, which know neither of them: an inbox tells those that hold publishers for it when there
//! is room (`HoldsPublishers`), and both an inbox without room and a message from a shared group know the way back to
//! the group (`SharesOut`).
//!
//! A message comes from an MQTT client, a sensor, an upstream or HTTP, gets its place in `ingress`, and goes two ways:
//! through `live` to connected subscribers, and through the journal to those who must get it in any case.

pub(crate) mod delivery;
mod expiry;
mod fanout;
pub mod filters;
pub(crate) mod hold;
pub(crate) mod inbox;
pub(crate) mod ingress;
mod keeping;
pub(crate) mod live;
pub(crate) mod matched_ids;
pub mod meter;
mod missed;
mod publish;
pub(crate) mod receiving;
pub(crate) mod retained;
pub(crate) mod search;
pub(crate) mod shared;
mod spare;
pub(crate) mod stats;
pub(crate) mod subscribers;
pub(crate) mod trace;
mod values;
pub(crate) mod waiting;
