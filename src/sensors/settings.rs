//! Settings of the GPIO chip and of each motion sensor.

use std::time::Duration;

use crate::message::{Qos, Topic};

/// What reads the pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GpioBackend {
    /// rppal on the Raspberry Pis that it knows, the kernel's lines on others; nothing is made up unless a sensor asks for it.
    #[default]
    Auto,
    /// The Pi's own GPIO.
    Rppal,
    /// Lines of a GPIO chip, through the kernel.
    Gpiocdev,
    /// Edges made up by the gateway.
    Simulated,
}

/// `[gpio]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GpioSettings {
    /// What reads the pins.
    pub backend: GpioBackend,
    /// Path, name or label of the GPIO chip that the kernel's lines are taken from; `None`: that of a Pi.
    pub chip: Option<String>,
}

/// Physical level of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Level {
    /// Near the supply voltage.
    #[default]
    High,
    /// Near ground.
    Low,
}

/// Resistor inside the chip that holds an open pin at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Bias {
    /// None: the sensor drives the pin.
    #[default]
    Off,
    /// Towards high.
    PullUp,
    /// Towards low.
    PullDown,
}

/// What a sensor publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PayloadFormat {
    /// A JSON object with state, times and a sequence number.
    #[default]
    Json,
    /// `on` or `off`.
    OnOff,
    /// Local time of day, `%H:%M:%S`.
    Time,
}

/// What a simulated sensor does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Simulation {
    /// Motion at random, as people cause it.
    #[default]
    Random,
    /// These states (`true` is motion) for these times, again and again.
    Script(Vec<(Duration, bool)>),
}

/// One `[[sensor]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorSettings {
    /// Name, unique among the sensors.
    pub name: String,
    /// BCM number, unique among the sensors.
    pub pin: u8,
    /// Where its state is published; unique, and `<topic>/status` is a valid topic too.
    pub topic: Topic,
    /// Level that means motion.
    pub active: Level,
    /// Resistor inside the chip.
    pub bias: Bias,
    /// Electrical: shorter changes are not edges.
    pub debounce: Duration,
    /// Motion stays on this long after the last active level.
    pub hold: Duration,
    /// Time after start in which edges are noise.
    pub warm_up: Duration,
    /// Active for longer is reported as stuck.
    pub stuck_after: Duration,
    /// What is published.
    pub payload: PayloadFormat,
    /// QoS it is published with.
    pub qos: Qos,
    /// Whether the last state is retained.
    pub retain: bool,
    /// Asks for made-up motion where there is no GPIO, and says which; [`GpioBackend::Simulated`] makes `None`
    /// [`Simulation::Random`].
    pub simulate: Option<Simulation>,
    /// Whether its messages say that it is stuck, as Home Assistant is told.
    pub tells_stuck: bool,
}

impl SensorSettings {
    /// A sensor with the defaults of everything that has one.
    pub fn new(name: impl Into<String>, pin: u8, topic: Topic) -> SensorSettings {
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
}
