//! Chooses the source of edges for a machine. Motion is simulated only where a person has asked for it, because a simulated
//! visitor that looks real is worse than none.
//!
//! | machine | pins |
//! |---|---|
//! | a Pi that rppal knows | rppal |
//! | another with a Pi's GPIO chip, by its label | the kernel's lines |
//! | one whose chip `gpio.chip` names | the kernel's lines |
//! | any other | sensors with `simulate` are simulated, unless this is a Pi; the others are faulty until a chip is found |

use std::collections::VecDeque;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::edge::{EdgeSource, PinEvent, PinEventKind, SourceEnded};
use super::settings::{GpioBackend, GpioSettings, SensorSettings};
use super::simulated::Simulated;
use super::watcher::{RETRY, Watched};
use super::{lines, rppal};
use crate::status::Fault;
use crate::time::SharedClock;

/// The source of edges that follows from settings and machine.
pub(crate) struct ChosenSource {
    settings: GpioSettings,
    sensors: Vec<SensorSettings>,
    inner: SourceKind,
}

enum SourceKind {
    /// The pins of a board.
    Pins(Watched),
    /// All sensors are simulated, as the configuration asks.
    Simulated(Simulated),
    /// There are no pins: sensors with a simulation are simulated, and the others wait.
    Without { simulated: Simulated, faults: VecDeque<PinEvent>, look_at: Instant },
}

/// What pins a machine has.
enum Machine {
    Pins(Watched),
    Nothing,
}

impl ChosenSource {
    /// Opens the source. Simulated motion follows from `seed`. Fails only if no thread can be started.
    pub(crate) fn open(settings: &GpioSettings, clock: SharedClock, seed: u64) -> std::io::Result<ChosenSource> {
        let inner = match settings.backend {
            GpioBackend::Simulated => SourceKind::Simulated(Simulated::new(clock, seed)),
            _ => match look(settings)? {
                Machine::Pins(pins) => SourceKind::Pins(pins),
                Machine::Nothing => SourceKind::Without {
                    simulated: Simulated::new(clock, seed),
                    faults: VecDeque::new(),
                    look_at: Instant::now() + RETRY,
                },
            },
        };
        Ok(ChosenSource { settings: settings.clone(), sensors: Vec::new(), inner })
    }

    /// Checks whether there are pins by now.
    fn look_again(&mut self) {
        if let Ok(Machine::Pins(mut pins)) = look(&self.settings) {
            info!("there is a GPIO now");
            pins.watch(&self.sensors);
            self.inner = SourceKind::Pins(pins);
        } else if let SourceKind::Without { look_at, .. } = &mut self.inner {
            *look_at = Instant::now() + RETRY;
        }
    }
}

fn look(settings: &GpioSettings) -> std::io::Result<Machine> {
    let named = settings.chip.as_deref();
    let is_rppals = match settings.backend {
        GpioBackend::Rppal => true,
        GpioBackend::Auto => rppal::is_pi(),
        GpioBackend::Gpiocdev | GpioBackend::Simulated => false,
    };
    if is_rppals {
        return Ok(Machine::Pins(rppal::pins()?));
    }
    match lines::find(named) {
        Some(chip) => Ok(Machine::Pins(lines::lines(chip, named.is_some())?)),
        None => Ok(Machine::Nothing),
    }
}

/// Whether this is a Raspberry Pi, also one that rppal does not know.
fn is_a_pi() -> bool {
    let model = std::fs::read("/proc/device-tree/model").unwrap_or_default();
    rppal::is_pi() || String::from_utf8_lossy(&model).contains("Raspberry Pi") || lines::pi_chip().is_some()
}

/// Why a pin cannot be watched on a machine without pins.
fn without_pins(pin: u8, named: Option<&str>, is_a_pi: bool) -> Fault {
    match named {
        Some(chip) => Fault::new(
            format!("pin {pin} cannot be used: the chip {chip:?} that [gpio] names is not there"),
            "see which there are with gpiodetect; it is looked for every 5 seconds",
        ),
        None if is_a_pi => Fault::new(
            format!("pin {pin} cannot be used: this is a Raspberry Pi, and its GPIO chip is not there"),
            "see that /dev/gpiochip0 exists (in a container, hand it in); it is looked for every 5 seconds",
        ),
        None => Fault::new(
            format!("pin {pin} cannot be used: this machine has no GPIO of a Raspberry Pi"),
            "for made-up motion set simulate = \"random\" for this sensor, or name another chip with chip in [gpio]",
        ),
    }
}

impl EdgeSource for ChosenSource {
    fn watch(&mut self, sensors: &[SensorSettings]) {
        self.sensors = sensors.to_vec();
        let (made_up, real): (Vec<_>, Vec<_>) = sensors.iter().cloned().partition(|sensor| self.simulates(sensor));
        match &mut self.inner {
            SourceKind::Pins(pins) => pins.watch(sensors),
            SourceKind::Simulated(simulated) => simulated.watch(sensors),
            SourceKind::Without { simulated, faults, .. } => {
                simulated.watch(&made_up);
                let (named, is_a_pi) = (self.settings.chip.as_deref(), is_a_pi());
                let fault = |sensor: &SensorSettings| {
                    let kind = PinEventKind::Fault(without_pins(sensor.pin, named, is_a_pi));
                    PinEvent { pin: sensor.pin, kind }
                };
                *faults = real.iter().map(fault).collect();
            }
        }
    }

    fn simulates(&self, sensor: &SensorSettings) -> bool {
        match &self.inner {
            SourceKind::Pins(_) => false,
            SourceKind::Simulated(_) => true,
            SourceKind::Without { .. } => {
                let may = self.settings.backend == GpioBackend::Auto && self.settings.chip.is_none();
                may && sensor.simulate.is_some() && !is_a_pi()
            }
        }
    }

    fn is_at_work(&self) -> bool {
        match &self.inner {
            SourceKind::Pins(pins) => pins.is_at_work(),
            SourceKind::Simulated(_) | SourceKind::Without { .. } => true,
        }
    }

    async fn next(&mut self) -> Result<PinEvent, SourceEnded> {
        loop {
            let look_at = match &mut self.inner {
                SourceKind::Pins(pins) => return pins.next().await,
                SourceKind::Simulated(simulated) => return simulated.next().await,
                SourceKind::Without { simulated, faults, look_at } => {
                    if let Some(fault) = faults.pop_front() {
                        return Ok(fault);
                    }
                    // while every sensor is simulated, pins are not needed
                    let has_real = self.sensors.len() > simulated.len();
                    tokio::select! {
                        event = simulated.next() => return event,
                        () = sleep_until(*look_at), if has_real => true,
                    }
                }
            };
            if look_at {
                self.look_again();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::message::Topic;
    use crate::sensors::settings::Simulation;
    use crate::time::SystemClock;

    fn sensor(pin: u8, simulate: bool) -> SensorSettings {
        let simulate = simulate.then_some(Simulation::Random);
        SensorSettings { simulate, ..SensorSettings::new("a", pin, Topic::new("a").unwrap()) }
    }

    async fn first_of_each(settings: GpioSettings) -> Vec<(u8, bool)> {
        let mut source = ChosenSource::open(&settings, std::sync::Arc::new(SystemClock), 1).unwrap();
        source.watch(&[sensor(17, true), sensor(18, false)]);
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let event = timeout(Duration::from_secs(10), source.next()).await.unwrap().unwrap();
            if !matches!(event.kind, PinEventKind::Edge { .. }) {
                seen.push((event.pin, matches!(event.kind, PinEventKind::Watched { .. })));
            }
        }
        seen.sort_unstable();
        seen
    }

    #[tokio::test]
    async fn motion_is_made_up_only_where_a_person_asked_for_it() {
        if is_a_pi() {
            return; // the pins of this machine may be in use by other programs
        }
        let settings = |backend, chip: Option<&str>| GpioSettings { backend, chip: chip.map(Into::into) };
        assert_eq!(first_of_each(settings(GpioBackend::Simulated, None)).await, [(17, true), (18, true)]);
        assert_eq!(first_of_each(settings(GpioBackend::Auto, None)).await, [(17, true), (18, false)]);
        for (backend, chip) in [
            (GpioBackend::Rppal, None),
            (GpioBackend::Gpiocdev, None),
            (GpioBackend::Auto, Some("no-such-chip")),
            (GpioBackend::Gpiocdev, Some("no-such-chip")),
        ] {
            assert_eq!(
                first_of_each(settings(backend, chip)).await,
                [(17, false), (18, false)],
                "{backend:?} {chip:?}"
            );
        }
    }

    #[test]
    fn a_pi_is_told_from_other_machines() {
        let fault = |named, is_a_pi| without_pins(17, named, is_a_pi).to_string();
        assert!(fault(None, true).contains("hand it in") && !fault(None, true).contains("simulate"));
        assert!(fault(None, false).contains("simulate = \"random\""));
        assert!(fault(Some("x"), false).contains("\"x\" that [gpio] names"));
    }
}
