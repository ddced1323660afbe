//! Sensors as others see them.

use schemars::JsonSchema;
use serde::Serialize;

use super::edges::LastEdges;
use crate::health::Fault;

/// What a sensor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SensorState {
    /// Its pin is not watched (yet).
    Offline,
    /// What it says is noise.
    WarmUp,
    /// Motion.
    On,
    /// No motion.
    Off,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Number of the state since the sensor was started, from 1 on.
    pub(crate) seq: u64,
    /// Motion or none.
    pub(crate) on: bool,
    /// Boot clock, in milliseconds, when it happened.
    pub(crate) boot_ms: u64,
}

/// What the edges of a pin look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Pulses with the period of the mains.
    MainsHum,
    /// Short pulses in bursts, as when a radio sends.
    RadioBursts,
    /// Many short pulses at random: nothing drives the pin.
    FloatingPin,
    /// Pulses shorter than a PIR can make.
    ShortPulses,
    /// Active for longer than a PIR can be.
    Stuck,
}

/// What is the matter with a sensor, by its edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// What it looks like.
    pub(crate) verdict: Verdict,
    /// What the edges look like, with figures.
    pub(crate) evidence: String,
    /// What a person can do about it.
    pub remedy: String,
}

/// A sensor as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SensorSnapshot {
    /// Its name.
    pub(crate) name: String,
    /// BCM number of its pin.
    pub(crate) pin: u8,
    /// Where its state is published.
    pub(crate) topic: String,
    /// What it is doing.
    pub(crate) state: SensorState,
    /// Boot clock, in milliseconds, when it began to; `None` before the first state.
    pub(crate) since_boot_ms: Option<u64>,
    /// Number of the state: how many were published since the sensor was started.
    pub(crate) seq: u64,
    /// Edges that came faster than they could be read.
    pub(crate) lost_edges: u64,
    /// Messages that the gateway had no room for.
    pub(crate) refused: u64,
    /// Whether the pin has been active for suspiciously long.
    pub(crate) stuck: bool,
    /// Why its pin is not watched.
    pub(crate) fault: Option<Fault>,
    /// What its edges say about sensor and wire; `None`: nothing is the matter.
    pub(crate) finding: Option<Finding>,
    /// Whether its motion is made up.
    pub(crate) simulated: bool,
    /// The last edges of its pin.
    #[serde(skip)]
    pub(crate) edges: LastEdges,
    /// The last changes of state, oldest first.
    #[serde(skip)]
    pub(crate) recent: Vec<Change>,
}
