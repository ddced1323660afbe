//! Edges: where changes of a pin's level come from.
//!
//! An [`EdgeSource`] watches all pins at once and tells what happens to them, in order per pin. Levels are physical
//! (high, low); which of them means motion is decided by who listens. Times are on the boot clock
//! (`CLOCK_BOOTTIME`), of the moment when the edge happened, not of the moment when somebody looked.

use std::future::Future;

use super::settings::{Level, SensorSettings};
use crate::status::Fault;

/// What happens to a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinEvent {
    /// BCM number.
    pub(crate) pin: u8,
    /// What happened.
    pub(crate) kind: PinEventKind,
}

/// What can happen to a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PinEventKind {
    /// The pin is watched and had this level at `boot_ms`: the answer to [`EdgeSource::watch`], and the end of a fault.
    Watched {
        /// Level at that time.
        level: Level,
        /// Boot clock in milliseconds.
        boot_ms: u64,
    },
    /// The level changed to this one.
    Edge {
        /// Level after the edge.
        level: Level,
        /// Boot clock in milliseconds.
        boot_ms: u64,
    },
    /// This many edges came faster than they could be read; their times are unknown.
    Lost {
        /// How many.
        count: u64,
    },
    /// The pin cannot be watched (any more). The source goes on trying.
    Fault(Fault),
}

/// The source has ended and cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source of edges ended unexpectedly")]
pub(crate) struct SourceEnded;

/// A source of edges. One source serves all pins.
pub(crate) trait EdgeSource: Send {
    /// Watches the pins of these sensors from now on, and no others. Every call is answered with
    /// [`PinEventKind::Watched`] or [`PinEventKind::Fault`] for every pin; no edge is lost of a pin that was watched in
    /// the same way before. Never waits.
    fn watch(&mut self, sensors: &[SensorSettings]);

    /// Whether the edges of this sensor are made up.
    fn simulates(&self, sensor: &SensorSettings) -> bool {
        let _ = sensor;
        false
    }

    /// Whether whatever watches the pins is at work.
    fn is_at_work(&self) -> bool {
        true
    }

    /// The next event. Safe to cancel.
    fn next(&mut self) -> impl Future<Output = Result<PinEvent, SourceEnded>> + Send;
}
