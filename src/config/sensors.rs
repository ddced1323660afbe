//! Reads `[gpio]` and `[[sensor]]`.

use std::time::Duration;

use super::document::{NAME_FORM, Table, Unique, Value, assign, topic};
use super::units;
use crate::message::{Qos, Topic};
use crate::sensors::settings::{Bias, GpioBackend, GpioSettings, Level, PayloadFormat, SensorSettings, Simulation};

/// The highest pin number on the chips of all Raspberry Pis: 0 to 27 are on the header, the others on compute modules.
const LAST_PIN: u64 = 53;
const SIMULATE_FORM: &str = "\"random\" or a list such as [\"3 s on\", \"10 s off\"]";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn gpio(root: &Table) -> GpioSettings {
    let mut settings = GpioSettings::default();
    let Some(table) = root.table("gpio") else { return settings };
    let backends = [
        ("auto", GpioBackend::Auto),
        ("rppal", GpioBackend::Rppal),
        ("gpiocdev", GpioBackend::Gpiocdev),
        ("simulated", GpioBackend::Simulated),
    ];
    assign(&mut settings.backend, table.get("backend").and_then(|value| value.choice(&backends)));
    let chip = table.get("chip");
    let valid = "path, name or label of a GPIO chip, such as \"gpiochip2\" or \"mcp23017\"";
    let fits = |text: &str| !text.is_empty() && !text.contains(char::is_control);
    settings.chip = chip.and_then(|value| value.parsed(valid, |text| fits(text).then(|| text.into())));
    table.finish();
    settings
}

pub(super) fn read(root: &Table) -> Vec<SensorSettings> {
    let mut names = Unique::new("sensor");
    let mut pins: Vec<u8> = Vec::new();
    let mut topics = Unique::new("sensor or its status");
    let mut sensors = Vec::new();
    for table in root.tables("sensor") {
        let name = table.required("name", NAME_FORM).and_then(|value| names.check(&value, value.name()?));
        let pin = table.required("pin", &format!("the BCM number of a pin, from 0 to {LAST_PIN}"));
        let pin = pin.and_then(|value| Some(value.whole(0..=LAST_PIN)? as u8));
        if let Some(pin) = pin.filter(|pin| pins.contains(pin)) {
            table.warning("pin", format!("another sensor has pin {pin}: this one will be faulty until it has its own"));
        }
        pins.extend(pin);
        let topic = table.required("topic", "a topic, such as \"loft/motion1\"");
        let topic = topic.and_then(|value| sensor_topic(&value, &mut topics));
        // an incomplete sensor is never used, but its other keys may have problems too
        if let Some(topic) = topic.or_else(|| Topic::new("missing").ok()) {
            let mut sensor = SensorSettings::new(name.unwrap_or_default(), pin.unwrap_or_default(), topic);
            optional(&table, &mut sensor);
            sensors.push(sensor);
        }
        table.finish();
    }
    sensors
}

/// A topic to which no other sensor publishes, neither its state nor its status.
fn sensor_topic(value: &Value, topics: &mut Unique<String>) -> Option<Topic> {
    let topic = topic(value, "/status")?;
    topics.check(value, topic.to_string())?;
    topics.check(value, format!("{topic}/status"))?;
    Some(topic)
}

fn optional(table: &Table, sensor: &mut SensorSettings) {
    let duration = |key, from: Duration, to: Duration| table.get(key).and_then(|value| value.duration(from..=to));
    let levels = [("high", Level::High), ("low", Level::Low)];
    assign(&mut sensor.active, table.get("active").and_then(|value| value.choice(&levels)));
    let biases = [("off", Bias::Off), ("pull_up", Bias::PullUp), ("pull_down", Bias::PullDown)];
    assign(&mut sensor.bias, table.get("bias").and_then(|value| value.choice(&biases)));
    assign(&mut sensor.debounce, duration("debounce", Duration::ZERO, Duration::from_secs(10)));
    assign(&mut sensor.hold, duration("hold", Duration::ZERO, DAY));
    assign(&mut sensor.warm_up, duration("warm_up", Duration::ZERO, Duration::from_secs(60 * 60)));
    assign(&mut sensor.stuck_after, duration("stuck_after", Duration::from_secs(1), 365 * DAY));
    let payloads = [("json", PayloadFormat::Json), ("on_off", PayloadFormat::OnOff), ("time", PayloadFormat::Time)];
    assign(&mut sensor.payload, table.get("payload").and_then(|value| value.choice(&payloads)));
    let qos = [("0", Qos::AtMostOnce), ("1", Qos::AtLeastOnce), ("2", Qos::ExactlyOnce)];
    assign(&mut sensor.qos, table.get("qos").and_then(|value| value.choice(&qos)));
    assign(&mut sensor.retain, table.get("retain").and_then(|value| value.switch()));
    sensor.simulate = table.get("simulate").and_then(|value| simulation(&value));
}

fn simulation(value: &Value) -> Option<Simulation> {
    if !value.is_list() {
        return value.parsed(SIMULATE_FORM, |text| (text == "random").then_some(Simulation::Random));
    }
    let items = value.items(SIMULATE_FORM);
    if items.is_empty() {
        value.wrong(SIMULATE_FORM);
        return None;
    }
    let steps: Vec<_> =
        items.iter().filter_map(|item| item.parsed("such as \"3 s on\" or \"10 s off\"", step)).collect();
    (steps.len() == items.len()).then_some(Simulation::Script(steps))
}

/// Reads a time that is not zero, and a state.
fn step(text: &str) -> Option<(Duration, bool)> {
    let (time, state) = text.trim().rsplit_once(' ')?;
    let motion = match state {
        "on" => true,
        "off" => false,
        _ => return None,
    };
    let time = units::parse_duration(time).filter(|time| !time.is_zero() && *time <= DAY)?;
    Some((time, motion))
}
