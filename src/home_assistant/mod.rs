//! Announces the gateway and its sensors to Home Assistant, with MQTT device discovery and with topics about the gateway
//! itself.
//!
//! | topic, all retained | what |
//! |---|---|
//! | `pigateway/<id>/status` | `online` or `offline`; after a crash `offline` before anything else |
//! | `pigateway/<id>/state` | [`state`] |
//! | `<prefix>/device/pigateway_<id>/config` | the gateway, see [`device`] |
//! | `<prefix>/device/pigateway_<id>_<sensor>/config` | a sensor |
//!
//! These topics exist only if the configuration asks for them. They are kept in memory and published again after every
//! start. The disk has only what must be removed later ([`announcer`]), in a file that is written when something is
//! announced or removed. The topics go to an upstream only if one of its rules names them explicitly, which `#` does not.
//! Nobody else may publish the first two.
//!
//! Home Assistant's birth message (`homeassistant/status`) shows when it is listening. This has limits. If birth messages
//! are switched off or have another topic, Home Assistant is never told what was removed in its absence. If a Home Assistant
//! sees only what is forwarded to an upstream, a deletion there is noticed only if a rule brings it down.

pub mod announcer;
pub(crate) mod device;
pub(crate) mod settings;
pub(crate) mod state;
mod store;
mod task;

pub(crate) use task::HomeAssistant;
