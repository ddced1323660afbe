//! The payloads of a sensor's messages.
//!
//! `json` is one object:
//!
//! ```json
//! {"sensor":"loft-motion","state":"on","since":"2026-03-01T12:00:00.250Z","time":"2026-03-01T12:00:00.250Z",
//!  "boot_ms":81250,"seq":7}
//! ```
//!
//! | key | what |
//! |---|---|
//! | `sensor` | the name of the sensor |
//! | `state` | `"on"` or `"off"` |
//! | `since` | when that state began, in UTC; `null` while the clock is not synchronised |
//! | `time` | the time of the event, which is the same; `null` likewise |
//! | `boot_ms` | `since` on the boot clock: milliseconds since the Pi started, correct even if its date is not |
//! | `seq` | number of this state since the gateway started or the sensor got another pin, from 1: a gap means that a message was missed |
//! | `clock` | only while the clock is not synchronised: `"unsynchronised"`. The message is repeated with times, and the same `seq`, once it is |
//! | `simulated` | only if the motion is simulated: `true` |
//! | `stuck` | only if the sensors are announced to Home Assistant: whether motion has lasted for suspiciously long; repeated when that changes |
//!
//! `on_off` is `ON` or `OFF`. `time` is the local time of day at which motion began, as `%H:%M:%S`; the end of a motion is
//! not published. This format cannot mark an uncertain time, so before the clock is synchronised it is as wrong as the
//! system's clock.

use jiff::Timestamp;
use serde::Serialize;

use super::settings::PayloadFormat;
use crate::time::{Clock, zone};

/// A state to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SensorReading {
    /// Whether there is motion.
    pub(crate) on: bool,
    /// When the state began, in milliseconds of the boot clock.
    pub(crate) since_boot_ms: u64,
    /// The number of the state since the sensor was started.
    pub(crate) seq: u64,
}

/// Additional properties of the sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Whether its motion is simulated.
    pub(crate) simulated: bool,
    /// Whether the sensor is stuck; `None` if messages do not contain that.
    pub(crate) stuck: Option<bool>,
}

#[derive(Serialize)]
struct Json<'a> {
    sensor: &'a str,
    state: &'static str,
    since: Option<&'a str>,
    time: Option<&'a str>,
    boot_ms: u64,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stuck: Option<bool>,
}

/// The wall time of a moment of the boot clock as RFC 3339 in UTC, if it is known.
pub(crate) fn wall_time(clock: &dyn Clock, boot_ms: u64) -> Option<String> {
    if !clock.is_synchronised() {
        return None;
    }
    Timestamp::from_millisecond(clock.unix_ms_at(boot_ms)).ok().map(|time| format!("{time:.3}"))
}

/// The payload for a state; `None` if this format does not report it.
pub(crate) fn payload(
    format: PayloadFormat,
    sensor: &str,
    reading: SensorReading,
    marks: Marks,
    clock: &dyn Clock,
) -> Option<Vec<u8>> {
    match format {
        PayloadFormat::Json => Some(json(sensor, reading, marks, clock)),
        PayloadFormat::OnOff => Some(if reading.on { b"ON".to_vec() } else { b"OFF".to_vec() }),
        PayloadFormat::Time => reading.on.then(|| {
            let moment = Timestamp::from_millisecond(clock.unix_ms_at(reading.since_boot_ms)).unwrap_or_default();
            moment.to_zoned(zone::local()).strftime("%H:%M:%S").to_string().into_bytes()
        }),
    }
}

fn json(sensor: &str, reading: SensorReading, marks: Marks, clock: &dyn Clock) -> Vec<u8> {
    let since = wall_time(clock, reading.since_boot_ms);
    let since = since.as_deref();
    let json = Json {
        sensor,
        state: if reading.on { "on" } else { "off" },
        since,
        time: since,
        boot_ms: reading.since_boot_ms,
        seq: reading.seq,
        clock: since.is_none().then_some("unsynchronised"),
        simulated: marks.simulated.then_some(true),
        stuck: marks.stuck,
    };
    // strings, numbers and times can always be serialised
    serde_json::to_vec(&json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::time::TestClock;

    const READING: SensorReading = SensorReading { on: true, since_boot_ms: 1_000, seq: 7 };

    fn text(format: PayloadFormat, reading: SensorReading, clock: &TestClock) -> Option<String> {
        payload(format, "loft", reading, Marks::default(), clock).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn json_has_wall_time_when_it_is_known() {
        let clock = TestClock::new(3_000, 0);
        clock.synchronise(1_772_366_402_250);
        let expected = concat!(
            r#"{"sensor":"loft","state":"on","since":"2026-03-01T12:00:00.250Z","#,
            r#""time":"2026-03-01T12:00:00.250Z","boot_ms":1000,"seq":7}"#
        );
        assert_eq!(text(PayloadFormat::Json, READING, &clock).unwrap(), expected);
    }

    #[test]
    fn json_says_when_wall_time_is_not_known() {
        let clock = TestClock::new(3_000, 1_000_000);
        let expected = concat!(
            r#"{"sensor":"loft","state":"off","since":null,"time":null,"#,
            r#""boot_ms":1000,"seq":7,"clock":"unsynchronised"}"#
        );
        assert_eq!(text(PayloadFormat::Json, SensorReading { on: false, ..READING }, &clock).unwrap(), expected);
    }

    #[test]
    fn json_says_when_motion_is_made_up() {
        let clock = TestClock::new(3_000, 0);
        let with =
            |marks| String::from_utf8(payload(PayloadFormat::Json, "loft", READING, marks, &*clock).unwrap()).unwrap();
        assert!(with(Marks { simulated: true, stuck: None }).ends_with(r#","simulated":true}"#));
        assert!(with(Marks { simulated: false, stuck: Some(false) }).ends_with(r#","stuck":false}"#));
    }

    #[test]
    fn time_zones_have_names() {
        // TZ=Europe/Berlin in the unit is looked up here
        if std::path::Path::new("/usr/share/zoneinfo/Europe/Berlin").exists() {
            let berlin = TimeZone::get("Europe/Berlin").unwrap();
            let moment = Timestamp::from_millisecond(1_772_366_402_000).unwrap().to_zoned(berlin);
            assert_eq!(moment.strftime("%H:%M:%S").to_string(), "13:00:02");
        }
    }

    #[test]
    fn other_formats() {
        let clock = TestClock::new(1_000, 0);
        clock.synchronise(1_772_366_402_000);
        assert_eq!(text(PayloadFormat::OnOff, READING, &clock).unwrap(), "ON");
        assert_eq!(text(PayloadFormat::OnOff, SensorReading { on: false, ..READING }, &clock).unwrap(), "OFF");
        let expected = Timestamp::from_millisecond(1_772_366_402_000).unwrap().to_zoned(TimeZone::system());
        let time = text(PayloadFormat::Time, READING, &clock).unwrap();
        assert_eq!(time, expected.strftime("%H:%M:%S").to_string());
        assert!(time.ends_with(":02") && time.len() == 8);
        assert_eq!(text(PayloadFormat::Time, SensorReading { on: false, ..READING }, &clock), None);
    }
}
