//! Settings of the GPIO chip and of each motion sensor.

use std::time::Duration;

use crate::message::{Qos, Topic};

/// How pins are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum GpioBackend {
    /// rppal on the Raspberry Pis that it knows, and the kernel's lines on others. Nothing is simulated unless a sensor asks
    /// for it.
    #[default]
    Auto,
    /// The Pi's own GPIO through rppal.
    Rppal,
    /// Lines of a GPIO chip, through the kernel.
    Gpiocdev,
    /// Edges that the gateway simulates.
    Simulated,
}

/// The table `[gpio]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct GpioSettings {
    pub(crate) backend: GpioBackend,
    /// Path, name or label of the GPIO chip whose lines the kernel provides; `None` means the chip of a Pi.
    pub(crate) chip: Option<String>,
}

/// The physical level of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Level {
    /// Near the supply voltage.
    #[default]
    High,
    Low,
}

/// A resistor inside the chip that holds an open pin at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Bias {
    /// None: the sensor drives the pin.
    #[default]
    Off,
    /// A resistor towards the supply voltage.
    PullUp,
    /// A resistor towards ground.
    PullDown,
}

/// The format of a sensor's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum PayloadFormat {
    /// A JSON object with state, times and a sequence number.
    #[default]
    Json,
    /// The text `ON` or `OFF`.
    OnOff,
    /// Local time of day, `%H:%M:%S`.
    Time,
}

/// The behaviour of a simulated sensor.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Simulation {
    /// Motion at random, as people cause it.
    #[default]
    Random,
    /// These states (`true` is motion) for these times, repeated without end.
    Script(Vec<(Duration, bool)>),
}

/// One `[[sensor]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SensorSettings {
    /// The name, unique among the sensors.
    pub(crate) name: String,
    /// The BCM number, unique among the sensors.
    pub(crate) pin: u8,
    /// The topic of its state; unique, and `<topic>/status` must be a valid topic too.
    pub(crate) topic: Topic,
    /// The level that means motion.
    pub(crate) active: Level,
    pub(crate) bias: Bias,
    /// Changes shorter than this are electrical noise and not edges.
    pub(crate) debounce: Duration,
    /// How long motion stays on after the last active level.
    pub(crate) hold: Duration,
    /// The time after the start in which edges are ignored.
    pub(crate) warm_up: Duration,
    /// A level that is active for longer is reported as stuck.
    pub(crate) stuck_after: Duration,
    pub(crate) payload: PayloadFormat,
    /// The QoS of its messages.
    pub(crate) qos: Qos,
    /// Whether the last state is retained.
    pub(crate) retain: bool,
    /// The simulation to use if there is no GPIO. With [`GpioBackend::Simulated`], `None` means [`Simulation::Random`].
    pub(crate) simulate: Option<Simulation>,
    /// Whether its messages tell that it is stuck, which Home Assistant uses.
    pub(crate) tells_stuck: bool,
}

impl SensorSettings {
    /// A sensor with the defaults.
    pub(crate) fn new(name: impl Into<String>, pin: u8, topic: Topic) -> SensorSettings {
        SensorSettings {
            name: name.into(),
            pin,
            topic,
            active: Level::default(),
            bias: Bias::default(),
            debounce: Duration::from_millis(50),
            hold: Duration::from_secs(5),
            warm_up: Duration::from_secs(60),
            stuck_after: Duration::from_secs(30 * 60),
            payload: PayloadFormat::default(),
            qos: Qos::AtLeastOnce,
            retain: true,
            simulate: None,
            tells_stuck: false,
        }
    }
    /// Whether it is the same sensor at the same pin, whatever becomes of its levels.
    pub(crate) fn has_same_pin(&self, other: &SensorSettings) -> bool {
        let pin = |sensor: &SensorSettings| (sensor.pin, sensor.active, sensor.bias);
        self.name == other.name && pin(self) == pin(other) && self.simulate == other.simulate
    }
}
