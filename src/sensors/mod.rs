//! Motion sensors at GPIO pins: from an edge to a published message.
//!
//! [`edge`] defines a source of edges, and [`source`] chooses the one of the machine: `watcher` watches the pins of a board,
//! through [`rppal`] or through the kernel's lines (`lines`), and [`simulated`] simulates edges where a person has asked for
//! that. [`motion`] interprets single edges, [`diagnosis`] concludes from many edges on sensor and wire, [`payload`] formats
//! the messages, and [`task`] runs all of them.
//!
//! Promises: an edge has the kernel's time, however late it is processed. A pin that cannot be watched is reported and tried
//! again; the others and the gateway continue. Each sensor has a retained topic `<topic>/status`: "online" while its pin
//! is watched, and "offline" otherwise. After a crash, "offline" is published before anything else at the next start.
//!
//! Limits: states of a sensor that occur while the journal refuses messages are counted, not kept. The latest state is
//! published once the journal accepts messages again.
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

/// The prefix of sensors' names among the faulty parts.
pub(crate) const PART: &str = "sensor ";

/// The program that holds the line of a pin of this Pi, if there is one and the gateway may see it.
pub(crate) fn holder(pin: u8) -> Option<String> {
    lines::pi_chip().and_then(|chip| lines::holder(&chip, pin))
}
