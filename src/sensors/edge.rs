//! Edges: changes of a pin's level, and where they come from.
//!
//! An [`EdgeSource`] watches all pins at once and reports what happens to them, in order for each pin. Levels are physical
//! (high, low); the receiver decides which of them means motion. Times are on the boot clock (`CLOCK_BOOTTIME`), and are
//! those of the edge itself, not of its processing.

use std::future::Future;

use super::settings::{Level, SensorSettings};
use crate::status::Fault;

/// An event at a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinEvent {
    /// The BCM number of the pin.
    pub(crate) pin: u8,
    pub(crate) kind: PinEventKind,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PinEventKind {
    /// The pin is watched, and had this level at `boot_ms`. It is the answer to [`EdgeSource::watch`], and the end of a
    /// fault.
    Watched {
        level: Level,
        /// In milliseconds of the boot clock.
        boot_ms: u64,
    },
    /// The level has changed to this one.
    Edge {
        /// The level after the edge.
        level: Level,
        /// In milliseconds of the boot clock.
        boot_ms: u64,
    },
    /// Edges came faster than they could be read; their times are unknown.
    Lost {
        /// The number of lost edges.
        count: u64,
    },
    /// The pin cannot be watched at present. The source keeps trying.
    Fault(Fault),
}

/// The error that the source has ended and cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source of edges ended unexpectedly")]
pub(crate) struct SourceEnded;

/// A source of edges for all pins.
pub(crate) trait EdgeSource: Send {
    /// Watches exactly the pins of these sensors from now on. For every pin an event [`PinEventKind::Watched`] or
    /// [`PinEventKind::Fault`] follows. A pin that was watched in the same way before loses no edge. Never waits.
    fn watch(&mut self, sensors: &[SensorSettings]);

    /// Whether the edges of this sensor are simulated.
    fn simulates(&self, sensor: &SensorSettings) -> bool {
        let _ = sensor;
        false
    }

    /// Whether the thread or task that watches the pins works.
    fn is_at_work(&self) -> bool {
        true
    }

    /// The next event. Safe to cancel.
    fn next(&mut self) -> impl Future<Output = Result<PinEvent, SourceEnded>> + Send;
}
