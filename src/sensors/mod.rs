//! Motion sensors at GPIO pins: from an edge to a published message.
//!
//! [`edge`] says what a source of edges is, and [`source`] which of them a machine has: `watcher` watches the pins of a board, be it
//! through [`rppal`] or through the kernel's lines (`lines`), and [`simulated`] makes edges up where a person asked for that.
//! [`motion`] decides what an edge means, [`diagnosis`] what many of them say about the sensor and its wire, [`payload`] how
//! that is written down, and [`task`] does what they say.
//!
//! Promises: an edge carries the kernel's time, however late it is handled. A pin that cannot be watched is reported
//! and tried again; the other sensors and the gateway go on. Each sensor has `<topic>/status`, retained: "online" while
//! its pin is watched, "offline" otherwise, and after a crash before anything else at the next start.
//!
//! Limits: the states of a sensor that happen while the journal refuses messages are counted, not kept; the
//! latest is published once it accepts again.
pub mod diagnosis;
pub(crate) mod edge;
mod lines;
pub(crate) mod motion;
pub(crate) mod payload;
pub(crate) mod rppal;
mod sensor;
pub(crate) mod settings;
pub(crate) mod simulated;
pub(crate) mod source;
pub(crate) mod task;
mod watcher;

pub(crate) use source::ChosenSource;
pub(crate) use task::run;

/// How the names of faulty sensors begin among all faulty parts.
pub(crate) const PART: &str = "sensor ";

/// Who holds the line of a pin of this Pi, if somebody does and we may know.
pub(crate) fn holder(pin: u8) -> Option<String> {
    lines::pi_chip().and_then(|chip| lines::holder(&chip, pin))
}
