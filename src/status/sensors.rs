//! Sensors, for those who show them.

use schemars::JsonSchema;
use serde::Serialize;

use super::edges::LastEdges;
use crate::health::Fault;

/// The state of a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SensorState {
    /// The pin is not watched, or not yet.
    Offline,
    /// The sensor is warming up, so its edges are ignored.
    WarmUp,
    /// There is motion.
    On,
    /// There is no motion.
    Off,
}

/// A change between motion and no motion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The number of the state since the sensor was started, from 1 on.
    pub(crate) seq: u64,
    /// Whether there is motion.
    pub(crate) on: bool,
    /// When the change happened, in milliseconds of the boot clock.
    pub(crate) boot_ms: u64,
}

/// The pattern of the edges of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Pulses with the period of the mains.
    MainsHum,
    /// Short pulses in bursts, as a nearby radio causes them.
    RadioBursts,
    /// Many short pulses at random, as on a pin that is not connected.
    FloatingPin,
    /// A few pulses that are too short for a PIR.
    ShortPulses,
    /// The pin has been active for longer than a PIR can be.
    Stuck,
}

/// A diagnosis of a sensor from its edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// The pattern that was recognised.
    pub(crate) verdict: Verdict,
    /// The evidence in words, with numbers.
    pub(crate) evidence: String,
    /// What a person can do about it.
    pub remedy: String,
}

/// The state of a sensor with its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SensorSnapshot {
    /// The name of the sensor, from the configuration.
    pub(crate) name: String,
    /// The BCM number of its pin.
    pub(crate) pin: u8,
    /// The topic of its state.
    pub(crate) topic: String,
    /// Whether there is motion, or why that is not known.
    pub(crate) state: SensorState,
    /// When this state began, in milliseconds of the boot clock; `null` before the first state.
    pub(crate) since_boot_ms: Option<u64>,
    /// The number of the state, which is how many were published since the sensor was started.
    pub(crate) seq: u64,
    /// The number of edges that came faster than they could be read.
    pub(crate) lost_edges: u64,
    /// The number of messages for which the gateway had no room.
    pub(crate) refused: u64,
    /// Whether the pin has been active for suspiciously long.
    pub(crate) stuck: bool,
    /// Why the pin is not watched; `null` if it is.
    pub(crate) fault: Option<Fault>,
    /// A diagnosis of sensor and wire; `null` if nothing is wrong.
    pub(crate) finding: Option<Finding>,
    /// Whether the motion is simulated.
    pub(crate) simulated: bool,
    /// The last edges of the pin.
    #[serde(skip)]
    pub(crate) edges: LastEdges,
    /// The last changes of state, oldest first.
    #[serde(skip)]
    pub(crate) recent: Vec<Change>,
}
