//! Starts the sensors.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::AppError;
use super::pulse::Rooms;
use crate::broker::core::Core;
use crate::config::Settings;
use crate::health::Health;
use crate::sensors::edge::EdgeSource;
use crate::sensors::settings::SensorSettings;
use crate::sensors::{self, ChosenSource};
use crate::status::{SensorSnapshot, SensorState};
use crate::supervise::Supervisor;
use crate::time::SharedClock;

/// The longest time that readiness waits for the pins.
const SENSORS: Duration = Duration::from_millis(500);

/// Sensors whose pins are not watched yet.
pub(super) struct WaitingSensors {
    source: ChosenSource,
    made_up: Vec<SensorSettings>,
    settings: watch::Sender<Arc<[SensorSettings]>>,
    shown: watch::Sender<Vec<SensorSnapshot>>,
    /// Dropped by all who have it, once the sensors have published that they are offline.
    pub(super) gone: watch::Sender<()>,
}

/// What the others need of sensors that were started.
pub(super) struct StartedSensors {
    /// Those whose motion is simulated.
    pub(super) made_up: Vec<SensorSettings>,
    /// Takes other settings.
    pub(super) settings: watch::Sender<Arc<[SensorSettings]>>,
    /// Closed once the sensors have published that they are offline.
    pub(super) gone: watch::Receiver<()>,
}

impl WaitingSensors {
    pub(super) fn open(settings: &Settings, clock: &SharedClock) -> Result<WaitingSensors, AppError> {
        let source = ChosenSource::open(&settings.gpio, clock.clone(), seed())?;
        let made_up = settings.sensors.iter().filter(|sensor| source.simulates(sensor)).cloned().collect();
        Ok(WaitingSensors {
            source,
            made_up,
            settings: watch::Sender::new(settings.sensors.clone().into()),
            shown: watch::Sender::default(),
            gone: watch::Sender::default(),
        })
    }

    /// The states of the sensors.
    pub(super) fn shown(&self) -> watch::Receiver<Vec<SensorSnapshot>> {
        self.shown.subscribe()
    }

    /// The settings of the sensors, which a reload may change.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<[SensorSettings]>> {
        self.settings.subscribe()
    }

    /// Starts the task that watches the pins.
    pub(super) fn start(
        self,
        core: &Arc<Core>,
        clock: &SharedClock,
        health: Health,
        doors: &CancellationToken,
        supervisor: &Supervisor,
        rooms: &mut Rooms,
    ) -> StartedSensors {
        let WaitingSensors { source, made_up, settings, shown, gone } = self;
        let started = StartedSensors { made_up, gone: gone.subscribe(), settings };
        let pulse = rooms.watch("sensors");
        let (changes, ingress) = (started.settings.subscribe(), core.ingress.clone());
        let sensors = sensors::run(changes, source, ingress, clock.clone(), (shown, health), pulse, doors.clone());
        supervisor.spawn("sensors", async move {
            let result = sensors.await;
            drop(gone);
            result
        });
        started
    }
}

/// Waits until every pin is watched or known to be faulty, but only for a moment, because a sensor must not
/// delay the start.
pub(super) async fn have_answered(settings: &Settings, mut sensors: watch::Receiver<Vec<SensorSnapshot>>) {
    let answered = |sensors: &Vec<SensorSnapshot>| {
        sensors.len() == settings.sensors.len()
            && sensors.iter().all(|sensor| sensor.fault.is_some() || sensor.state != SensorState::Offline)
    };
    let _ = timeout(SENSORS, sensors.wait_for(answered)).await;
}

/// A seed that differs at every start, for simulated motion.
fn seed() -> u64 {
    let mut seed = [0; 8];
    match getrandom::fill(&mut seed) {
        Ok(()) => u64::from_le_bytes(seed),
        Err(_) => 0,
    }
}
