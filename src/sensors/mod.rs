//! Motion sensors at GPIO pins: from an edge to a published message.
//!
//! [`edge`] says what a source of edges is; [`rppal`] is the Pi's, [`simulated`] makes them up where there is no Pi.
//! [`motion`] decides what an edge means, [`payload`] how that is written down, and [`task`] does what they say.
//!
//! Promises: an edge carries the kernel's time, however late it is handled. A pin that cannot be watched is reported
//! and tried again; the other sensors and the gateway go on. Each sensor has `<topic>/status`, retained: "online" while
//! its pin is watched, "offline" otherwise, and after a crash before anything else at the next start.
//!
//! Limits: the states of a sensor that happen while the journal refuses messages are counted, not kept; the
//! latest is published once it accepts again.
pub mod edge;
pub mod motion;
pub mod payload;
pub mod rppal;
mod sensor;
pub mod settings;
pub mod simulated;
pub mod task;

pub use rppal::holder;
pub use task::{SensorsError, run};

use crate::time::SharedClock;

/// How the names of faulty sensors begin among all faulty parts.
pub const PART: &str = "sensor ";

use edge::{EdgeSource, PinEvent, SourceEnded};
use settings::{GpioBackend, GpioSettings, SensorSettings};

/// The source of edges that the settings ask for.
pub enum Source {
    /// The Pi's pins.
    Pins(rppal::Pins),
    /// Made up.
    Simulated(simulated::Simulated),
}

impl Source {
    /// Opens it. Simulated motion follows from `seed`. Fails only if no thread can be started.
    pub fn open(settings: &GpioSettings, clock: SharedClock, seed: u64) -> std::io::Result<Source> {
        let real = match settings.backend {
            GpioBackend::Auto => rppal::is_pi(),
            GpioBackend::Rppal => true,
            GpioBackend::Simulated => false,
        };
        Ok(if real {
            Source::Pins(rppal::Pins::new()?)
        } else {
            Source::Simulated(simulated::Simulated::new(clock, seed))
        })
    }
}

impl EdgeSource for Source {
    fn watch(&mut self, sensors: &[SensorSettings]) {
        match self {
            Source::Pins(pins) => pins.watch(sensors),
            Source::Simulated(simulated) => simulated.watch(sensors),
        }
    }

    fn is_at_work(&self) -> bool {
        match self {
            Source::Pins(pins) => pins.is_at_work(),
            Source::Simulated(simulated) => simulated.is_at_work(),
        }
    }

    async fn next(&mut self) -> Result<PinEvent, SourceEnded> {
        match self {
            Source::Pins(pins) => pins.next().await,
            Source::Simulated(simulated) => simulated.next().await,
        }
    }
}
