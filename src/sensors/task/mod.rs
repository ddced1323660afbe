//! The task that runs the sensors: gives them the events of their pins and publishes their messages.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::PART;
use super::edge::{EdgeSource, PinEventKind, SourceEnded};
use super::sensor::{Publication, Sensor};
use super::settings::SensorSettings;
use crate::exchange::ingress::{Ingress, IngressError};
use crate::health::{Health, Pulse};
use crate::message::{Draft, Origin};
use crate::status::{Fault, SensorSnapshot};
use crate::time::SharedClock;

/// The interval of new attempts for messages that could not be published, or were published without wall time.
const AGAIN: Duration = Duration::from_secs(1);
/// The most sensors whose last message is kept until there is room.
const MOST_LEAVING: usize = 1024;

/// Why the sensors ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SensorsError {
    #[error(transparent)]
    Source(#[from] SourceEnded),
    /// The exchange has ended.
    #[error("sensors cannot publish")]
    Ingress(#[from] IngressError),
}

/// Runs all sensors until `cancel`, and applies changes of `settings` at once. At the end every sensor is "offline".
pub(crate) async fn run<S: EdgeSource>(
    settings: watch::Receiver<Arc<[SensorSettings]>>,
    source: S,
    ingress: Ingress,
    clock: SharedClock,
    (snapshots, health): (watch::Sender<Vec<SensorSnapshot>>, Health),
    pulse: Pulse,
    cancel: CancellationToken,
) -> Result<(), SensorsError> {
    let publish = async move |draft: Draft<'_>| ingress.publish(&draft).await.map(drop);
    let (sensors, leaving) = (Vec::new(), Vec::new());
    Task { source, clock, snapshots, health, publish, sensors, leaving, again: None }.run(settings, pulse, cancel).await
}

/// A sensor, with the messages for which the gateway had no room.
struct SensorSlot {
    sensor: Sensor,
    /// Whether the pin is its own, and not that of an earlier sensor.
    has_pin: bool,
    status_unsent: bool,
    state_unsent: bool,
}

struct Task<S, P> {
    source: S,
    clock: SharedClock,
    snapshots: watch::Sender<Vec<SensorSnapshot>>,
    health: Health,
    publish: P,
    sensors: Vec<SensorSlot>,
    /// The last messages of sensors that are gone, with their names, for which the gateway had no room.
    leaving: Vec<(String, Publication)>,
    again: Option<Instant>,
}

impl<S, P> Task<S, P>
where
    S: EdgeSource,
    P: AsyncFnMut(Draft<'_>) -> Result<(), IngressError>,
{
    async fn run(
        &mut self,
        mut settings: watch::Receiver<Arc<[SensorSettings]>>,
        mut pulse: Pulse,
        cancel: CancellationToken,
    ) -> Result<(), SensorsError> {
        let first = settings.borrow_and_update().clone();
        self.apply(&first).await?;
        let mut may_change = true;
        loop {
            self.show();
            let deadline = self.sleep_deadline();
            // edges before timers, because an edge that happened before a timer was due must be processed before it
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                event = self.source.next() => {
                    let event = event?;
                    let clock = self.clock.clone();
                    let slot = self.sensors.iter().position(|slot| slot.has_pin && slot.sensor.settings.pin == event.pin);
                    let Some(index) = slot else { continue };
                    let sensor = &mut self.sensors[index].sensor;
                    sensor.simulated = self.source.simulates(&sensor.settings);
                    let publications = sensor.event(event.kind, clock.as_ref());
                    self.publish_all(index, publications).await?;
                }
                changed = settings.changed(), if may_change => match changed {
                    Ok(()) => {
                        let new = settings.borrow_and_update().clone();
                        self.apply(&new).await?;
                    }
                    // the sender of the settings is gone
                    Err(_) => may_change = false,
                },
                () = sleep_until(deadline) => self.time().await?,
                () = pulse.asked(), if self.source.is_at_work() => pulse.answer(),
            }
        }
        self.say_farewells().await?;
        for index in 0..self.sensors.len() {
            let offline = self.sensors[index].sensor.stop();
            self.publish_all(index, vec![offline]).await?;
        }
        self.show();
        Ok(())
    }

    /// Updates the snapshots of the sensors. Faults have been logged already.
    fn show(&self) {
        let snapshots: Vec<_> = self.sensors.iter().map(|slot| slot.sensor.snapshot()).collect();
        self.snapshots.send_replace(snapshots.clone());
        // snapshots are updated before the receivers are notified
        for sensor in &snapshots {
            let stuck = || {
                let problem = "it has been active for longer than stuck_after";
                Fault::new(
                    problem,
                    "look at the sensor and its wire, or set stuck_after to more where such motion is real",
                )
            };
            let fault = sensor.fault.clone().or_else(|| sensor.stuck.then(stuck));
            self.health.set(&format!("{PART}{}", sensor.name), fault.as_ref());
        }
        for faulty in self.health.faulty() {
            if let Some(name) = faulty.part.strip_prefix(PART)
                && !snapshots.iter().any(|sensor| sensor.name == name)
            {
                self.health.set(&faulty.part, None);
            }
        }
    }

    /// Starts, changes and stops sensors so that they correspond to `settings`.
    async fn apply(&mut self, settings: &[SensorSettings]) -> Result<(), IngressError> {
        for index in (0..self.sensors.len()).rev() {
            let old = &self.sensors[index].sensor;
            if let Some(new) = settings.iter().find(|new| new.has_same_pin(&old.settings)) {
                if new.topic != old.settings.topic {
                    let (name, offline) = (new.name.clone(), old.farewell());
                    if self.is_refused(&name, &offline).await? && self.leaving.len() < MOST_LEAVING {
                        self.leaving.push((name, offline));
                    }
                }
                continue;
            }
            let offline = self.sensors[index].sensor.stop();
            self.publish_all(index, vec![offline.clone()]).await?;
            let slot = self.sensors.remove(index);
            let gone = slot.sensor.settings;
            if slot.status_unsent && self.leaving.len() < MOST_LEAVING {
                self.leaving.push((gone.name.clone(), offline));
            }
            info!(sensor = gone.name, pin = gone.pin, topic = %gone.topic, "stopped");
        }
        for new in settings {
            let known = self.sensors.iter().position(|slot| slot.sensor.settings.has_same_pin(new));
            if let Some(index) = known {
                self.change(index, new).await?;
                continue;
            }
            let sensor = Sensor::new(new.clone(), self.clock.boot_ms());
            // after a crash the "online" of the last run is still retained
            let offline = sensor.status();
            self.leaving.retain(|(_, left)| left.topic != offline.topic);
            self.sensors.push(SensorSlot { sensor, has_pin: true, status_unsent: false, state_unsent: false });
            self.publish_all(self.sensors.len() - 1, vec![offline]).await?;
        }
        let (first, again) = by_pin(settings);
        for (sensor, owner) in again {
            let fault = Fault {
                problem: format!("pin {} is named twice: sensor \"{owner}\" has it", sensor.pin),
                remedy: "give each sensor a pin of its own and reload the configuration".into(),
            };
            self.take_pin(sensor, fault).await?;
        }
        for slot in &mut self.sensors {
            slot.has_pin = first.contains(&slot.sensor.settings);
        }
        self.source.watch(&first);
        Ok(())
    }

    /// Gives a sensor other settings for the same pin.
    async fn change(&mut self, index: usize, new: &SensorSettings) -> Result<(), IngressError> {
        let sensor = &mut self.sensors[index].sensor;
        if sensor.settings == *new {
            return Ok(());
        }
        info!(sensor = new.name, pin = new.pin, topic = %new.topic, "goes on with other settings");
        let clock = self.clock.clone();
        let publications = sensor.change(new.clone(), clock.as_ref());
        let status = sensor.status().topic;
        self.leaving.retain(|(_, left)| left.topic != status);
        self.publish_all(index, publications).await
    }

    /// Makes a sensor faulty, because it has no pin or has lost it.
    async fn take_pin(&mut self, settings: &SensorSettings, fault: Fault) -> Result<(), IngressError> {
        let slot = self.sensors.iter().position(|slot| slot.sensor.settings == *settings);
        let Some(index) = slot else { return Ok(()) };
        let sensor = &mut self.sensors[index].sensor;
        if sensor.snapshot().fault.as_ref() == Some(&fault) {
            return Ok(());
        }
        let clock = self.clock.clone();
        let publications = sensor.event(PinEventKind::Fault(fault), clock.as_ref());
        self.publish_all(index, publications).await
    }

    /// When to wake up if nothing happens.
    fn sleep_deadline(&mut self) -> Instant {
        let boot_now = self.clock.boot_ms();
        let now = Instant::now();
        let due = self.sensors.iter().filter_map(|slot| slot.sensor.deadline()).min();
        // a far deadline is checked again after an hour, because clocks and sleeps may drift apart
        let timer = due.map_or(3_600_000, |due| due.saturating_sub(boot_now).min(3_600_000));
        let timer = now + Duration::from_millis(timer);
        let unfinished = |slot: &SensorSlot| slot.status_unsent || slot.state_unsent || slot.sensor.lacks_time();
        if self.leaving.is_empty() && !self.sensors.iter().any(unfinished) {
            self.again = None;
            return timer;
        }
        timer.min(*self.again.get_or_insert(now + AGAIN))
    }

    async fn time(&mut self) -> Result<(), IngressError> {
        let clock = self.clock.clone();
        let now = clock.boot_ms();
        let again = self.again.take_if(|again| *again <= Instant::now()).is_some();
        if again {
            self.say_farewells().await?;
        }
        for index in 0..self.sensors.len() {
            let mut publications = self.sensors[index].sensor.time(now, clock.as_ref());
            if again && publications.is_empty() {
                let slot = &mut self.sensors[index];
                if slot.status_unsent {
                    publications.push(slot.sensor.status());
                }
                let has_time = slot.sensor.lacks_time() && clock.is_synchronised();
                if slot.state_unsent || has_time {
                    let state = slot.sensor.state(clock.as_ref());
                    slot.state_unsent &= state.is_some();
                    publications.extend(state);
                }
            }
            self.publish_all(index, publications).await?;
        }
        Ok(())
    }

    /// Publishes the last messages of sensors that are gone, as far as there is room.
    async fn say_farewells(&mut self) -> Result<(), IngressError> {
        for (name, offline) in std::mem::take(&mut self.leaving) {
            if self.is_refused(&name, &offline).await? {
                self.leaving.push((name, offline));
            }
        }
        Ok(())
    }

    /// Publishes a message of this sensor, and returns whether the gateway has no room for it.
    async fn is_refused(&mut self, sensor: &str, publication: &Publication) -> Result<bool, IngressError> {
        let draft = Draft {
            qos: publication.qos,
            retain: publication.retain,
            boot_ms: self.clock.boot_ms(),
            origin: Origin::sensor(sensor),
            ..Draft::new(&publication.topic, &publication.payload)
        };
        match (self.publish)(draft).await {
            Ok(()) => Ok(false),
            Err(IngressError::Full(_) | IngressError::TooLarge) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn publish_all(&mut self, index: usize, publications: Vec<Publication>) -> Result<(), IngressError> {
        for publication in publications {
            let name = self.sensors[index].sensor.settings.name.clone();
            let refused = self.is_refused(&name, &publication).await?;
            let slot = &mut self.sensors[index];
            let is_state = publication.topic == slot.sensor.settings.topic.as_str();
            let unsent = if is_state { &mut slot.state_unsent } else { &mut slot.status_unsent };
            if refused {
                slot.sensor.refused += 1;
                if !*unsent {
                    let (sensor, topic) = (&slot.sensor.settings.name, &publication.topic);
                    warn!(sensor, topic, "the journal is full: the latest state is published once there is room");
                }
            }
            *unsent = refused;
        }
        Ok(())
    }
}

/// The sensors with a pin of their own, and those whose pin belongs to an earlier sensor, with that sensor's name.
fn by_pin(settings: &[SensorSettings]) -> (Vec<SensorSettings>, Vec<(&SensorSettings, &str)>) {
    let (mut first, mut again): (Vec<SensorSettings>, Vec<_>) = (Vec::new(), Vec::new());
    for sensor in settings {
        match settings.iter().find(|other| other.pin == sensor.pin) {
            Some(owner) if owner != sensor => again.push((sensor, owner.name.as_str())),
            _ => first.push(sensor.clone()),
        }
    }
    (first, again)
}

#[cfg(test)]
pub(super) mod tests;
