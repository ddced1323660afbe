//! Home Assistant finds the gateway and its sensors, and knows how they are: MQTT device discovery, and topics about the
//! gateway itself.
//!
//! | topic, all retained | what |
//! |---|---|
//! | `pigateway/<id>/status` | `online` or `offline`; after a crash `offline` before anything else |
//! | `pigateway/<id>/state` | [`state`] |
//! | `<prefix>/device/pigateway_<id>/config` | the gateway, see [`device`] |
//! | `<prefix>/device/pigateway_<id>_<sensor>/config` | a sensor |
//!
//! They exist only where the configuration asks for them. They are in memory and said anew after every start: the disk has
//! only what must be removed one day ([`announcer`]), in a file that is written when something is announced or removed. They
//! go to an upstream only where one of its rules names them, which `#` does not, and nobody else may publish the first two.
//!
//! Home Assistant's birth message (`homeassistant/status`) tells when it listens. Limits: one that has it switched off, or
//! under another topic, is never told what has gone while it was away. What is deleted in a Home Assistant that sees only what
//! is forwarded to an upstream is known here where a rule brings the deletion down.

pub mod announcer;
pub(crate) mod device;
pub(crate) mod settings;
pub(crate) mod state;
mod store;
mod task;

pub(crate) use task::HomeAssistant;
