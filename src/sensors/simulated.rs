//! Simulated edges where a person has asked for them: from a script, or at random as people cause them.
//!
//! The patterns are those of an HC-SR501 with its shortest time set. Motion comes in visits of a few pulses, a pulse is
//! active for 2.5 to 8 s, the sensor is blind for 2.5 s after it, and the room is empty for 5 to 60 s between visits. The
//! same seed and the same settings give the same edges at the same times.

use std::time::Duration;

use tokio::time::sleep;

use super::edge::{EdgeSource, PinEvent, PinEventKind, SourceEnded};
use super::settings::{Level, SensorSettings, Simulation};
use crate::time::SharedClock;

/// A source of simulated edges.
pub(crate) struct Simulated {
    clock: SharedClock,
    seed: u64,
    pins: Vec<Pin>,
}

struct Pin {
    number: u8,
    simulation: Simulation,
    active_level: Level,
    announced: bool,
    active: bool,
    /// When the next edge comes, in milliseconds of the boot clock.
    next: u64,
    pattern: Pattern,
}

impl Pin {
    fn level(&self) -> Level {
        match (self.active, self.active_level) {
            (true, level) => level,
            (false, Level::High) => Level::Low,
            (false, Level::Low) => Level::High,
        }
    }
}

enum Pattern {
    Script { steps: Vec<(Duration, bool)>, at: usize },
    Random { random: Random, pulses_left: u64 },
}

impl Pattern {
    /// The next level and its duration in milliseconds; `None` at the end of a script.
    fn next(&mut self, active: bool) -> Option<(bool, u64)> {
        match self {
            Pattern::Script { steps, at } => {
                let (duration, active) = *steps.get(*at)?;
                *at = (*at + 1) % steps.len();
                // a script of empty steps must not loop without a pause
                Some((active, (duration.as_millis() as u64).max(1)))
            }
            Pattern::Random { random, .. } if !active => Some((true, random.between(2_500, 8_000))),
            Pattern::Random { random, pulses_left } => {
                if *pulses_left == 0 {
                    *pulses_left = random.between(0, 3);
                    return Some((false, random.between(5_000, 60_000)));
                }
                *pulses_left -= 1;
                Some((false, 2_500))
            }
        }
    }
}

/// SplitMix64: simulated motion needs no better randomness, and it is the same on all machines.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

impl Simulated {
    /// A source whose patterns follow from `seed`.
    pub(crate) fn new(clock: SharedClock, seed: u64) -> Simulated {
        Simulated { clock, seed, pins: Vec::new() }
    }

    /// The number of simulated pins.
    pub(super) fn len(&self) -> usize {
        self.pins.len()
    }

    fn start(&self, sensor: &SensorSettings) -> Pin {
        let now = self.clock.boot_ms();
        let simulation = sensor.simulate.clone().unwrap_or_default();
        let (pattern, active, next) = match &simulation {
            Simulation::Script(steps) => {
                let mut pattern = Pattern::Script { steps: steps.clone(), at: 0 };
                let (active, ms) = pattern.next(true).unwrap_or((false, u64::MAX / 2));
                (pattern, active, now + ms)
            }
            Simulation::Random => {
                let mut random = Random(self.seed ^ (u64::from(sensor.pin) << 32));
                // the first visit comes soon, so that a person who tries the gateway sees something
                let next = now + random.between(1_000, 3_000);
                (Pattern::Random { random, pulses_left: 0 }, false, next)
            }
        };
        Pin { number: sensor.pin, simulation, active_level: sensor.active, announced: false, active, next, pattern }
    }
}

impl EdgeSource for Simulated {
    fn watch(&mut self, sensors: &[SensorSettings]) {
        let is_same = |pin: &Pin, sensor: &SensorSettings| {
            let simulation = sensor.simulate.as_ref().unwrap_or(&Simulation::Random);
            (pin.number, pin.active_level, &pin.simulation) == (sensor.pin, sensor.active, simulation)
        };
        self.pins.retain(|pin| sensors.iter().any(|sensor| is_same(pin, sensor)));
        self.pins.iter_mut().for_each(|pin| pin.announced = false);
        for sensor in sensors {
            if !self.pins.iter().any(|pin| is_same(pin, sensor)) {
                let pin = self.start(sensor);
                self.pins.push(pin);
            }
        }
    }

    async fn next(&mut self) -> Result<PinEvent, SourceEnded> {
        if let Some(pin) = self.pins.iter_mut().find(|pin| !pin.announced) {
            pin.announced = true;
            let kind = PinEventKind::Watched { level: pin.level(), boot_ms: self.clock.boot_ms() };
            return Ok(PinEvent { pin: pin.number, kind });
        }
        loop {
            let Some(pin) = self.pins.iter_mut().min_by_key(|pin| pin.next).filter(|pin| pin.next < u64::MAX) else {
                std::future::pending::<()>().await;
                continue;
            };
            let wait = pin.next.saturating_sub(self.clock.boot_ms());
            if wait > 0 {
                sleep(Duration::from_millis(wait)).await;
                continue;
            }
            let boot_ms = pin.next;
            let Some((active, ms)) = pin.pattern.next(pin.active) else {
                pin.next = u64::MAX;
                continue;
            };
            pin.next += ms;
            if active != pin.active {
                pin.active = active;
                return Ok(PinEvent { pin: pin.number, kind: PinEventKind::Edge { level: pin.level(), boot_ms } });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Topic;
    use crate::sensors::task::tests::PausedClock;

    fn sensor(pin: u8, simulate: Option<Simulation>) -> SensorSettings {
        SensorSettings { simulate, ..SensorSettings::new("a", pin, Topic::new("a").unwrap()) }
    }

    async fn events(source: &mut Simulated, count: usize) -> Vec<(u8, Level, u64)> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let event = source.next().await.unwrap();
            match event.kind {
                PinEventKind::Watched { level, boot_ms } | PinEventKind::Edge { level, boot_ms } => {
                    seen.push((event.pin, level, boot_ms));
                }
                other => panic!("{other:?}"),
            }
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_repeats() {
        let script = vec![
            (Duration::from_secs(2), false),
            (Duration::from_secs(1), true),
            (Duration::from_secs(1), false),
            (Duration::from_millis(500), false),
        ];
        let mut source = Simulated::new(PausedClock::shared(1_000), 0);
        source.watch(&[sensor(4, Some(Simulation::Script(script)))]);
        let times: Vec<_> = events(&mut source, 5).await.into_iter().map(|(_, level, at)| (level, at)).collect();
        let (high, low) = (Level::High, Level::Low);
        assert_eq!(times, [(low, 1_000), (high, 3_000), (low, 4_000), (high, 7_500), (low, 8_500)]);
    }

    #[tokio::test(start_paused = true)]
    async fn random_motion_is_that_of_a_pir_and_the_same_with_the_same_seed() {
        let run = async |seed, inverted| {
            let mut source = Simulated::new(PausedClock::shared(0), seed);
            let active = if inverted { Level::Low } else { Level::High };
            source.watch(&[sensor(4, None), SensorSettings { active, ..sensor(5, None) }]);
            events(&mut source, 200).await
        };
        let seen = run(7, false).await;
        assert_eq!(seen, run(7, false).await);
        assert_ne!(seen, run(8, false).await);
        assert_eq!(
            seen.iter().map(|e| e.2).collect::<Vec<_>>(),
            run(7, true).await.iter().map(|e| e.2).collect::<Vec<_>>()
        );
        let edges: Vec<_> = seen.iter().filter(|event| event.0 == 4).collect();
        for pair in edges.windows(2).skip(1) {
            let lasted = pair[1].2 - pair[0].2;
            let range = if pair[0].1 == Level::High { 2_500..=8_000 } else { 2_500..=60_000 };
            assert!(pair[0].1 != pair[1].1 && range.contains(&lasted), "{pair:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_that_stays_goes_on_undisturbed() {
        let mut source = Simulated::new(PausedClock::shared(0), 1);
        source.watch(&[sensor(4, None)]);
        let mut disturbed = events(&mut source, 3).await;
        source.watch(&[sensor(4, None), sensor(5, Some(Simulation::Script(vec![(Duration::from_secs(9), false)])))]);
        assert_eq!(events(&mut source, 2).await.iter().map(|event| event.0).collect::<Vec<_>>(), [4, 5]);
        disturbed.extend(events(&mut source, 4).await);
        let mut undisturbed = Simulated::new(PausedClock::shared(0), 1);
        undisturbed.watch(&[sensor(4, None)]);
        assert_eq!(disturbed, events(&mut undisturbed, 7).await);
    }
}
