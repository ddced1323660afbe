//! Settings of the GPIO chip and of each motion sensor.

use std::time::Duration;

use crate::message::{Qos, Topic};

/// What reads the pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum GpioBackend {
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
pub(crate) struct GpioSettings {
    /// What reads the pins.
    pub(crate) backend: GpioBackend,
    /// Path, name or label of the GPIO chip that the kernel's lines are taken from; `None`: that of a Pi.
    pub(crate) chip: Option<String>,
}

/// Physical level of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Level {
    /// Near the supply voltage.
    #[default]
    High,
    /// Near ground.
    Low,
}

/// Resistor inside the chip that holds an open pin at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Bias {
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
pub(crate) enum PayloadFormat {
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
pub(crate) enum Simulation {
    /// Motion at random, as people cause it.
    #[default]
    Random,
    /// These states (`true` is motion) for these times, again and again.
    Script(Vec<(Duration, bool)>),
}

/// One `[[sensor]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SensorSettings {
    /// Name, unique among the sensors.
    pub(crate) name: String,
    /// BCM number, unique among the sensors.
    pub(crate) pin: u8,
    /// Where its state is published; unique, and `<topic>/status` is a valid topic too.
    pub(crate) topic: Topic,
    /// Level that means motion.
    pub(crate) active: Level,
    /// Resistor inside the chip.
    pub(crate) bias: Bias,
    /// Electrical: shorter changes are not edges.
    pub(crate) debounce: Duration,
    /// Motion stays on this long after the last active level.
    pub(crate) hold: Duration,
    /// Time after start in which edges are noise.
    pub(crate) warm_up: Duration,
    /// Active for longer is reported as stuck.
    pub(crate) stuck_after: Duration,
    /// What is published.
    pub(crate) payload: PayloadFormat,
    /// QoS it is published with.
    pub(crate) qos: Qos,
    /// Whether the last state is retained.
    pub(crate) retain: bool,
    /// Asks for made-up motion where there is no GPIO, and says which; [`GpioBackend::Simulated`] makes `None`
    /// [`Simulation::Random`].
    pub(crate) simulate: Option<Simulation>,
    /// Whether its messages say that it is stuck, as Home Assistant is told.
    pub(crate) tells_stuck: bool,
}

impl SensorSettings {
    /// A sensor with the defaults of everything that has one.
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
}
