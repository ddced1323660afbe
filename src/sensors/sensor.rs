//! One sensor: decides what it publishes when something happens at its pin. Pure, like the state machine below it.

use tracing::{debug, error, info, warn};

use super::diagnosis::PinEdges;
use super::edge::PinEventKind;
use super::motion::{Motion, MotionAction, Timing};
use super::payload::{self, Marks, SensorReading};
use super::settings::{PayloadFormat, SensorSettings};
use crate::message::Qos;
use crate::status::{Change, Fault, Finding, SensorSnapshot, SensorState};
use crate::time::Clock;

/// The number of state changes in a snapshot. A reader that is late misses nothing of a shorter burst.
const RECENT: usize = 16;

/// The interval at which the edges are examined, in milliseconds.
const EXAMINE: u64 = 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Publication {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

pub(super) struct Sensor {
    pub(crate) settings: SensorSettings,
    started: u64,
    motion: Option<Motion>,
    online: bool,
    reading: Option<SensorReading>,
    /// Whether the reading was published without wall time.
    lacks_time: bool,
    pub(crate) lost_edges: u64,
    pub(crate) refused: u64,
    stuck: bool,
    fault: Option<Fault>,
    recent: Vec<Change>,
    edges: PinEdges,
    finding: Option<Finding>,
    /// When the edges were last examined, in milliseconds of the boot clock.
    examined: u64,
    /// Whether its motion is simulated.
    pub(crate) simulated: bool,
}

impl Sensor {
    pub(crate) fn new(settings: SensorSettings, now: u64) -> Sensor {
        Sensor {
            settings,
            started: now,
            motion: None,
            online: false,
            reading: None,
            lacks_time: false,
            lost_edges: 0,
            refused: 0,
            stuck: false,
            fault: None,
            recent: Vec::new(),
            edges: PinEdges::default(),
            finding: None,
            examined: 0,
            simulated: false,
        }
    }

    pub(crate) fn snapshot(&self) -> SensorSnapshot {
        let state = match (&self.motion, self.reading) {
            (None, _) => SensorState::Offline,
            (Some(motion), Some(reading)) if motion.is_warm() => {
                if reading.on {
                    SensorState::On
                } else {
                    SensorState::Off
                }
            }
            _ => SensorState::WarmUp,
        };
        SensorSnapshot {
            name: self.settings.name.clone(),
            pin: self.settings.pin,
            topic: self.settings.topic.as_str().to_owned(),
            state,
            since_boot_ms: self.reading.map(|reading| reading.since_boot_ms),
            seq: self.reading.map_or(0, |reading| reading.seq),
            lost_edges: self.lost_edges,
            refused: self.refused,
            stuck: self.stuck,
            fault: self.fault.clone(),
            finding: self.finding.clone().filter(|_| !self.simulated),
            simulated: self.simulated,
            edges: self.edges.last(),
            recent: self.recent.clone(),
        }
    }

    /// When [`Sensor::time`] must be called next.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.motion.as_ref()?.deadline()
    }

    /// Whether the last state must be published again because wall time has become known.
    pub(crate) fn lacks_time(&self) -> bool {
        self.lacks_time
    }

    /// The message on `<topic>/status`.
    pub(crate) fn status(&self) -> Publication {
        Publication {
            topic: format!("{}/status", self.settings.topic),
            payload: if self.online { b"online".to_vec() } else { b"offline".to_vec() },
            qos: Qos::AtLeastOnce,
            retain: true,
        }
    }

    /// The message of its last state; `None` if there is none or the format does not report it.
    pub(crate) fn state(&mut self, clock: &dyn Clock) -> Option<Publication> {
        let settings = &self.settings;
        let stuck = settings.tells_stuck.then_some(self.stuck);
        let marks = Marks { simulated: self.simulated, stuck };
        let payload = payload::payload(settings.payload, &settings.name, self.reading?, marks, clock)?;
        self.lacks_time = settings.payload == PayloadFormat::Json && !clock.is_synchronised();
        Some(Publication {
            topic: settings.topic.as_str().to_owned(),
            payload,
            qos: settings.qos,
            retain: settings.retain,
        })
    }

    /// Ends the sensor, and returns its last message.
    pub(crate) fn stop(&mut self) -> Publication {
        (self.online, self.motion) = (false, None);
        // nobody knows what the pin does from now on
        (self.stuck, self.edges, self.finding) = (false, PinEdges::default(), None);
        self.status()
    }

    /// Goes on with other settings for the same pin, and returns what receivers must know of that.
    pub(crate) fn change(&mut self, settings: SensorSettings, clock: &dyn Clock) -> Vec<Publication> {
        let old = std::mem::replace(&mut self.settings, settings);
        let was_stuck = self.stuck;
        if let Some(motion) = &mut self.motion {
            motion.change(timing(&self.settings), self.started);
            self.stuck = motion.is_stuck();
        }
        let form = |sensor: &SensorSettings| (sensor.payload, sensor.qos, sensor.retain, sensor.tells_stuck);
        let has_moved = old.topic != self.settings.topic;
        let is_told = self.settings.tells_stuck && was_stuck != self.stuck;
        let differs = has_moved || is_told || form(&old) != form(&self.settings);
        let mut publications = Vec::new();
        if has_moved {
            publications.push(self.status());
        }
        if differs && self.online {
            publications.extend(self.state(clock));
        }
        publications.extend(self.time(clock.boot_ms(), clock));
        publications
    }

    /// The message that there is nothing to come on `<topic>/status`.
    pub(crate) fn farewell(&self) -> Publication {
        Publication { payload: b"offline".to_vec(), ..self.status() }
    }

    /// Processes an event at its pin.
    pub(crate) fn event(&mut self, kind: PinEventKind, clock: &dyn Clock) -> Vec<Publication> {
        match kind {
            PinEventKind::Watched { level, boot_ms } => {
                // a running sensor relies on the edges, whose times are more exact than this
                if self.motion.is_some() {
                    return Vec::new();
                }
                let active = level == self.settings.active;
                let mut motion = Motion::new(timing(&self.settings), self.started, boot_ms, active);
                let actions = motion.time(boot_ms);
                self.motion = Some(motion);
                self.fault = None;
                self.online = true;
                let (name, pin, topic) = (&self.settings.name, self.settings.pin, &self.settings.topic);
                if self.simulated {
                    info!(sensor = name, pin, %topic, "watching (simulated: its motion is made up)");
                } else {
                    info!(sensor = name, pin, %topic, "watching");
                }
                let mut publications = vec![self.status()];
                if self.motion.as_ref().is_some_and(|motion| !motion.is_warm()) {
                    let whole = timing(&self.settings).warm_up;
                    let rest = shown(whole.saturating_sub(boot_ms.saturating_sub(self.started)), whole);
                    let (name, pin, topic) = (&self.settings.name, self.settings.pin, &self.settings.topic);
                    info!(sensor = name, pin, %topic, "warming up for {rest}: says nothing until then");
                }
                publications.extend(self.perform(actions, clock));
                publications
            }
            PinEventKind::Edge { level, boot_ms } => {
                let active = level == self.settings.active;
                self.edges.push(active, boot_ms);
                self.examine(boot_ms);
                let actions = self.motion.as_mut().map(|motion| motion.level(active, boot_ms));
                self.perform(actions.unwrap_or_default(), clock)
            }
            PinEventKind::Lost { count } => {
                self.lost_edges += count;
                let (name, pin, topic) = (&self.settings.name, self.settings.pin, &self.settings.topic);
                debug!(sensor = name, pin, %topic, count, "edges came too fast to be read");
                Vec::new()
            }
            PinEventKind::Fault(fault) => {
                let (name, pin, topic) = (&self.settings.name, self.settings.pin, &self.settings.topic);
                error!(sensor = name, pin, %topic, "{}: {}", fault.problem, fault.remedy);
                self.fault = Some(fault);
                vec![self.stop()]
            }
        }
    }

    /// Reports that the time is `now`.
    pub(crate) fn time(&mut self, now: u64, clock: &dyn Clock) -> Vec<Publication> {
        let actions = self.motion.as_mut().map(|motion| motion.time(now));
        let publications = self.perform(actions.unwrap_or_default(), clock);
        self.examine(now);
        publications
    }

    /// Examines the edges at most once a second, because a pin with hum has a hundred edges in that time.
    fn examine(&mut self, now: u64) {
        if now.saturating_sub(self.examined) < EXAMINE {
            return;
        }
        self.examined = now;
        let finding = self.edges.finding(now, timing(&self.settings).stuck_after);
        let verdict = |finding: &Option<Finding>| finding.as_ref().map(|finding| finding.verdict);
        if verdict(&finding) != verdict(&self.finding)
            && let Some(Finding { evidence, remedy, .. }) = &finding
            && !self.simulated
        {
            let (sensor, pin) = (&self.settings.name, self.settings.pin);
            info!(sensor, pin, "its edges look wrong: {evidence}; {remedy}");
        }
        self.finding = finding;
    }

    /// Sets whether the sensor is stuck, and returns the message about it if its messages contain that.
    fn set_stuck(&mut self, stuck: bool, clock: &dyn Clock) -> Option<Publication> {
        self.stuck = stuck;
        let is_told = self.settings.tells_stuck && self.settings.payload == PayloadFormat::Json;
        if is_told { self.state(clock) } else { None }
    }

    fn perform(&mut self, actions: Vec<MotionAction>, clock: &dyn Clock) -> Vec<Publication> {
        let mut publications = Vec::new();
        for action in actions {
            let (sensor, pin, topic) = (self.settings.name.as_str(), self.settings.pin, self.settings.topic.clone());
            match action {
                MotionAction::WarmUpOver => debug!(sensor, pin, %topic, "warm-up is over"),
                MotionAction::Publish { on, since } => {
                    debug!(sensor, pin, %topic, on, since_boot_ms = since, "motion");
                    let seq = self.reading.map_or(0, |reading| reading.seq) + 1;
                    self.reading = Some(SensorReading { on, since_boot_ms: since, seq });
                    if self.recent.len() >= RECENT {
                        self.recent.remove(0);
                    }
                    self.recent.push(Change { seq, on, boot_ms: since });
                    publications.extend(self.state(clock));
                }
                MotionAction::Stuck { since } => {
                    let stuck_after = timing(&self.settings).stuck_after;
                    let active = shown(clock.boot_ms().saturating_sub(since), stuck_after);
                    warn!(sensor, pin, %topic, "active for {active}: the sensor or its wire is likely broken");
                    publications.extend(self.set_stuck(true, clock));
                }
                MotionAction::NotStuck => {
                    info!(sensor, pin, %topic, "inactive again");
                    publications.extend(self.set_stuck(false, clock));
                }
            }
        }
        publications
    }
}

/// Milliseconds in a form for people. A value close to `configured` is shown as that one, because it was measured a little
/// too short or too long. Any other value is rounded to a step that is small compared with it.
fn shown(ms: u64, configured: u64) -> String {
    // from which value on a unit is used, its length, and its name
    const UNITS: [(&str, u64, u64); 4] =
        [("h", 7_200_000, 3_600_000), ("min", 120_000, 60_000), ("s", 1_000, 1_000), ("ms", 1, 1)];
    let ms = if ms.abs_diff(configured) <= (configured / 20).clamp(100, 2_000) {
        configured
    } else {
        let step = match ms {
            0..1_000 => 1,
            1_000..600_000 => 1_000,
            600_000..36_000_000 => 60_000,
            _ => 3_600_000,
        };
        ms.saturating_add(step / 2) / step * step
    };
    let fits = UNITS.iter().find(|(_, least, unit)| ms >= *least && ms.is_multiple_of(*unit));
    fits.map_or("0 s".into(), |(name, _, unit)| format!("{} {name}", ms / unit))
}

fn timing(settings: &SensorSettings) -> Timing {
    // a duration that does not fit into 64 bits of milliseconds counts as infinite
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4);
    Timing {
        warm_up: ms(settings.warm_up),
        debounce: ms(settings.debounce),
        hold: ms(settings.hold),
        stuck_after: ms(settings.stuck_after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_in_a_unit_that_fits() {
        for (ms, configured, text) in [
            (299, 300, "300 ms"),
            (599_995, 600_000, "10 min"),
            (59_990, 60_000, "60 s"),
            (89_999, 90_000, "90 s"),
            (149_980, 150_000, "150 s"),
            (1_800_030, 1_800_000, "30 min"),
            (86_399_000, 86_400_000, "24 h"),
            (1_499, 1_500, "1500 ms"),
            // a part of the time has passed already
            (423_400, 600_000, "423 s"),
            (1_500_010, 1_800_000, "25 min"),
            (59_600, 3_600_000, "60 s"),
            (0, 0, "0 s"),
        ] {
            assert_eq!(shown(ms, configured), text, "{ms} ms of {configured}");
        }
    }

    #[test]
    fn being_stuck_is_told_at_once_where_that_is_asked_for() {
        use super::super::settings::Level;
        let clock = crate::time::TestClock::new(0, 0);
        let topic = crate::message::Topic::new("a").unwrap();
        let told = |tells_stuck, payload| {
            let warm_up = std::time::Duration::ZERO;
            let settings =
                SensorSettings { tells_stuck, payload, warm_up, ..SensorSettings::new("s", 1, topic.clone()) };
            let mut sensor = Sensor::new(settings, 0);
            sensor.event(PinEventKind::Watched { level: Level::Low, boot_ms: 1 }, &*clock);
            sensor.event(PinEventKind::Edge { level: Level::High, boot_ms: 1_000 }, &*clock);
            let mut said = sensor.time(2_000, &*clock);
            said.extend(sensor.time(3_000_000, &*clock));
            sensor.event(PinEventKind::Edge { level: Level::Low, boot_ms: 3_100_000 }, &*clock);
            said.extend(sensor.time(3_200_000, &*clock));
            said.into_iter().map(|said| String::from_utf8(said.payload).unwrap()).collect::<Vec<_>>()
        };
        let said = told(true, PayloadFormat::Json);
        let stuck: Vec<_> = said.iter().map(|said| said.contains(r#""stuck":true"#)).collect();
        assert!(stuck.contains(&true) && stuck.last() == Some(&false), "{said:#?}");
        let first = stuck.iter().position(|stuck| *stuck).unwrap();
        assert!(said[first].contains(r#""state":"on""#) && said[first].contains(r#""seq":2"#), "{said:#?}");
        let said = told(false, PayloadFormat::Json);
        assert!(said.iter().all(|said| !said.contains("stuck")) && said.len() == 2, "{said:#?}");
        assert_eq!(told(true, PayloadFormat::OnOff).len(), 2, "it has no place for it");
    }

    #[test]
    fn what_a_pin_did_before_a_fault_is_forgotten() {
        use super::super::settings::Level;
        let clock = crate::time::TestClock::new(0, 0);
        let topic = crate::message::Topic::new("a").unwrap();
        let warm_up = std::time::Duration::ZERO;
        let mut sensor = Sensor::new(SensorSettings { warm_up, ..SensorSettings::new("s", 1, topic) }, 0);
        sensor.event(PinEventKind::Watched { level: Level::Low, boot_ms: 1 }, &*clock);
        sensor.event(PinEventKind::Edge { level: Level::High, boot_ms: 1_000 }, &*clock);
        for now in [2_000, 90_000_000] {
            sensor.time(now, &*clock);
        }
        let stuck = sensor.snapshot();
        assert!(stuck.stuck && stuck.finding.is_some());
        let fault = Fault { problem: "pin 1 is named twice".into(), remedy: String::new() };
        sensor.event(PinEventKind::Fault(fault), &*clock);
        assert!(!sensor.snapshot().stuck && sensor.snapshot().finding.is_none());
        sensor.event(PinEventKind::Watched { level: Level::Low, boot_ms: 90_001_000 }, &*clock);
        sensor.time(90_100_000, &*clock);
        let healed = sensor.snapshot();
        assert!(!healed.stuck && healed.finding.is_none() && healed.state == SensorState::Off, "{healed:?}");
    }

    #[test]
    fn edges_that_no_sensor_makes_are_named_until_they_are_long_ago() {
        use super::super::settings::Level;
        use crate::message::Topic;
        use crate::status::Verdict;
        let clock = crate::time::TestClock::new(0, 0);
        let mut sensor = Sensor::new(SensorSettings::new("a", 4, Topic::new("a").unwrap()), 0);
        sensor.event(PinEventKind::Watched { level: Level::Low, boot_ms: 0 }, clock.as_ref());
        for period in 0..200 {
            for (level, boot_ms) in [(Level::High, period * 20), (Level::Low, period * 20 + 10)] {
                sensor.event(PinEventKind::Edge { level, boot_ms }, clock.as_ref());
            }
        }
        let finding = sensor.snapshot().finding.unwrap();
        assert_eq!(finding.verdict, Verdict::MainsHum);
        assert!(finding.evidence.contains("50 Hz"), "{finding:?}");
        for (level, boot_ms) in [(Level::High, 700_000), (Level::Low, 705_000)] {
            sensor.event(PinEventKind::Edge { level, boot_ms }, clock.as_ref());
        }
        assert_eq!(sensor.snapshot().finding, None);
    }
}
