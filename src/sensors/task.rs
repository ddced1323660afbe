//! The task beside the sensors: hands them what their pins do and publishes what they say.

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

/// How often what could not be published, or was published without wall time, is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// Why the sensors ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SensorsError {
    /// The source did.
    #[error(transparent)]
    Source(#[from] SourceEnded),
    /// There is nobody to publish to.
    #[error("sensors cannot publish")]
    Ingress(#[from] IngressError),
}

/// Runs all sensors until `cancel`; a change of `settings` is applied at once. Leaves every sensor "offline".
pub async fn run<S: EdgeSource>(
    settings: watch::Receiver<Arc<[SensorSettings]>>,
    source: S,
    ingress: Ingress,
    clock: SharedClock,
    (snapshots, health): (watch::Sender<Vec<SensorSnapshot>>, Health),
    pulse: Pulse,
    cancel: CancellationToken,
) -> Result<(), SensorsError> {
    let publish = async move |draft: Draft<'_>| ingress.publish(&draft).await.map(drop);
    Task { source, clock, snapshots, health, publish, sensors: Vec::new(), again: None }
        .run(settings, pulse, cancel)
        .await
}

/// A sensor, and which of its messages the gateway had no room for.
struct Slot {
    sensor: Sensor,
    /// Its pin is not that of a sensor before it.
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
    sensors: Vec<Slot>,
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
            // edges before timers: what happened before a timer was due is to be seen before it
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
                    // whoever could change them is gone
                    Err(_) => may_change = false,
                },
                () = sleep_until(deadline) => self.time().await?,
                () = pulse.asked(), if self.source.is_at_work() => pulse.answer(),
            }
        }
        for index in 0..self.sensors.len() {
            let offline = self.sensors[index].sensor.stop();
            self.publish_all(index, vec![offline]).await?;
        }
        self.show();
        Ok(())
    }

    /// Tells those who show it how the sensors are. The log has heard of faults already.
    fn show(&self) {
        let snapshots: Vec<_> = self.sensors.iter().map(|slot| slot.sensor.snapshot()).collect();
        self.snapshots.send_replace(snapshots.clone());
        // whoever hears of this finds the snapshots up to date
        for sensor in &snapshots {
            self.health.set(&format!("{PART}{}", sensor.name), sensor.fault.as_ref());
        }
        for faulty in self.health.faulty() {
            if let Some(name) = faulty.part.strip_prefix(PART)
                && !snapshots.iter().any(|sensor| sensor.name == name)
            {
                self.health.set(&faulty.part, None);
            }
        }
    }

    /// Starts, restarts and ends sensors so that they are those of `settings`.
    async fn apply(&mut self, settings: &[SensorSettings]) -> Result<(), IngressError> {
        for index in (0..self.sensors.len()).rev() {
            if settings.contains(&self.sensors[index].sensor.settings) {
                continue;
            }
            let offline = self.sensors[index].sensor.stop();
            self.publish_all(index, vec![offline]).await?;
            let gone = self.sensors.remove(index).sensor.settings;
            info!(sensor = gone.name, pin = gone.pin, topic = %gone.topic, "stopped");
        }
        for new in settings {
            if self.sensors.iter().any(|slot| slot.sensor.settings == *new) {
                continue;
            }
            let sensor = Sensor::new(new.clone(), self.clock.boot_ms());
            // after a crash the last run's "online" is still retained
            let offline = sensor.status();
            self.sensors.push(Slot { sensor, has_pin: true, status_unsent: false, state_unsent: false });
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

    /// A sensor has no pin, or not any more.
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
        // a far deadline is looked at again in an hour: clocks and sleeps may drift apart
        let timer = due.map_or(3_600_000, |due| due.saturating_sub(boot_now).min(3_600_000));
        let timer = now + Duration::from_millis(timer);
        let unfinished = |slot: &Slot| slot.status_unsent || slot.state_unsent || slot.sensor.lacks_time();
        if !self.sensors.iter().any(unfinished) {
            self.again = None;
            return timer;
        }
        timer.min(*self.again.get_or_insert(now + AGAIN))
    }

    async fn time(&mut self) -> Result<(), IngressError> {
        let clock = self.clock.clone();
        let now = clock.boot_ms();
        let again = self.again.take_if(|again| *again <= Instant::now()).is_some();
        for index in 0..self.sensors.len() {
            let mut publications = self.sensors[index].sensor.time(now, clock.as_ref());
            if again && publications.is_empty() {
                let slot = &mut self.sensors[index];
                if std::mem::take(&mut slot.status_unsent) {
                    publications.push(slot.sensor.status());
                }
                let has_time = slot.sensor.lacks_time() && clock.is_synchronised();
                if std::mem::take(&mut slot.state_unsent) || has_time {
                    publications.extend(slot.sensor.state(clock.as_ref()));
                }
            }
            self.publish_all(index, publications).await?;
        }
        Ok(())
    }

    async fn publish_all(&mut self, index: usize, publications: Vec<Publication>) -> Result<(), IngressError> {
        let slot = &mut self.sensors[index];
        for publication in publications {
            let draft = Draft {
                topic: &publication.topic,
                payload: &publication.payload,
                qos: publication.qos,
                retain: publication.retain,
                properties: &[],
                expiry: None,
                boot_ms: self.clock.boot_ms(),
                origin: Origin::sensor(&slot.sensor.settings.name),
            };
            let is_state = publication.topic == slot.sensor.settings.topic.as_str();
            let refused = match (self.publish)(draft).await {
                Ok(()) => false,
                Err(IngressError::Full(_)) => true,
                Err(error) => return Err(error),
            };
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

/// Those whose pin is theirs, and those whose pin is that of another before them, with its name.
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
pub(super) mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::super::edge::{PinEvent, PinEventKind};
    use super::super::settings::{Level, PayloadFormat};
    use super::*;
    use crate::health::PulseTaker;
    use crate::journal::Full;
    use crate::message::Topic;
    use crate::status::{Fault, SensorState};
    use crate::time::{Clock, TestClock};

    /// A clock that follows tokio's, paused or not.
    pub struct PausedClock {
        start: Instant,
        boot_ms: u64,
        offset: TestClock,
    }

    impl PausedClock {
        pub fn shared(boot_ms: u64) -> Arc<PausedClock> {
            Arc::new(PausedClock { start: Instant::now(), boot_ms, offset: TestClock::default() })
        }
    }

    impl Clock for PausedClock {
        fn boot_ms(&self) -> u64 {
            self.boot_ms + self.start.elapsed().as_millis() as u64
        }
        fn unix_ms(&self) -> i64 {
            self.offset.unix_ms() + self.start.elapsed().as_millis() as i64
        }
        fn is_synchronised(&self) -> bool {
            self.offset.is_synchronised()
        }
    }

    /// A source that is told what happens.
    struct Told {
        clock: Arc<PausedClock>,
        orders: Arc<Mutex<Vec<Vec<u8>>>>,
        answers: VecDeque<PinEvent>,
        events: mpsc::Receiver<PinEvent>,
    }

    impl EdgeSource for Told {
        fn watch(&mut self, sensors: &[SensorSettings]) {
            self.orders.lock().push(sensors.iter().map(|sensor| sensor.pin).collect());
            let kind = PinEventKind::Watched { level: Level::Low, boot_ms: self.clock.boot_ms() };
            self.answers.extend(sensors.iter().map(|sensor| PinEvent { pin: sensor.pin, kind: kind.clone() }));
        }

        async fn next(&mut self) -> Result<PinEvent, SourceEnded> {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(answer);
            }
            self.events.recv().await.ok_or(SourceEnded)
        }
    }

    /// What was published: milliseconds, topic, payload.
    type Published = Arc<Mutex<Vec<(u64, String, String)>>>;

    struct Bench {
        clock: Arc<PausedClock>,
        settings: watch::Sender<Arc<[SensorSettings]>>,
        pins: Option<mpsc::Sender<PinEvent>>,
        orders: Arc<Mutex<Vec<Vec<u8>>>>,
        published: Published,
        full: Arc<Mutex<bool>>,
        snapshots: watch::Receiver<Vec<SensorSnapshot>>,
        cancel: CancellationToken,
        task: tokio::task::JoinHandle<Result<(), SensorsError>>,
    }

    fn sensor(name: &str, pin: u8) -> SensorSettings {
        SensorSettings {
            warm_up: Duration::from_secs(10),
            payload: PayloadFormat::OnOff,
            ..SensorSettings::new(name, pin, Topic::new(name).unwrap())
        }
    }

    impl Bench {
        fn new(sensors: Vec<SensorSettings>) -> Bench {
            let clock = PausedClock::shared(0);
            let (settings, settings_rx) = watch::channel(Arc::from(sensors));
            let (pins, events) = mpsc::channel(16);
            let orders = Arc::default();
            let published = Published::default();
            let full = Arc::new(Mutex::new(false));
            let (snapshots_tx, snapshots) = watch::channel(Vec::new());
            let cancel = CancellationToken::new();
            let source = Told { clock: clock.clone(), orders: Arc::clone(&orders), answers: VecDeque::new(), events };
            let (told, is_full, at) = (published.clone(), full.clone(), clock.clone());
            let publish = async move |draft: Draft<'_>| {
                if *is_full.lock() {
                    return Err(Full.into());
                }
                let payload = String::from_utf8(draft.payload.to_vec()).unwrap();
                told.lock().push((at.boot_ms(), draft.topic.to_owned(), payload));
                Ok(())
            };
            let mut task = Task {
                source,
                clock: clock.clone(),
                snapshots: snapshots_tx,
                health: Health::default(),
                publish,
                sensors: Vec::new(),
                again: None,
            };
            let until = cancel.clone();
            let task = tokio::spawn(async move { task.run(settings_rx, PulseTaker::new().1, until).await });
            Bench { clock, settings, pins: Some(pins), orders, published, full, snapshots, cancel, task }
        }

        async fn at(&self, ms: u64) {
            tokio::time::sleep(Duration::from_millis(ms - self.clock.boot_ms())).await;
        }

        async fn pin(&self, pin: u8, kind: PinEventKind) {
            self.pins.as_ref().unwrap().send(PinEvent { pin, kind }).await.unwrap();
        }

        async fn edge(&self, pin: u8, level: Level) {
            self.pin(pin, PinEventKind::Edge { level, boot_ms: self.clock.boot_ms() }).await;
        }

        fn take(&self) -> Vec<(u64, String, String)> {
            std::mem::take(&mut *self.published.lock())
        }
    }

    fn told(ms: u64, topic: &str, payload: &str) -> (u64, String, String) {
        (ms, topic.into(), payload.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_day_in_the_life_of_a_sensor() {
        let bench = Bench::new(vec![sensor("a", 4)]);
        bench.at(10_001).await;
        let start = [told(0, "a/status", "offline"), told(0, "a/status", "online"), told(10_000, "a", "OFF")];
        assert_eq!(bench.take(), start);
        bench.at(20_000).await;
        bench.edge(4, Level::High).await;
        bench.at(21_000).await;
        assert_eq!(bench.snapshots.borrow()[0].state, SensorState::On);
        bench.edge(4, Level::Low).await;
        bench.at(30_000).await;
        assert_eq!(bench.take(), [told(20_050, "a", "ON"), told(26_000, "a", "OFF")]);
        let snapshot = bench.snapshots.borrow()[0].clone();
        assert_eq!((snapshot.state, snapshot.since_boot_ms, snapshot.seq), (SensorState::Off, Some(26_000), 3));
        bench.cancel.cancel();
        assert_eq!(bench.task.await.unwrap(), Ok(()));
        assert_eq!(std::mem::take(&mut *bench.published.lock()), [told(30_000, "a/status", "offline")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_faulty_pin_is_offline_until_it_is_watched_again() {
        let bench = Bench::new(vec![sensor("a", 4), sensor("b", 5)]);
        bench.at(15_000).await;
        bench.take();
        let fault = Fault { problem: "pin 4 is gone".into(), remedy: "find it".into() };
        bench.pin(4, PinEventKind::Fault(fault.clone())).await;
        bench.pin(4, PinEventKind::Lost { count: 3 }).await;
        bench.at(16_000).await;
        let snapshot = bench.snapshots.borrow()[0].clone();
        assert_eq!((snapshot.state, snapshot.fault, snapshot.lost_edges), (SensorState::Offline, Some(fault), 3));
        assert_eq!(bench.snapshots.borrow()[1].state, SensorState::Off);
        bench.pin(4, PinEventKind::Watched { level: Level::High, boot_ms: 16_000 }).await;
        bench.at(17_000).await;
        let expected =
            [told(15_000, "a/status", "offline"), told(16_000, "a/status", "online"), told(16_000, "a", "ON")];
        assert_eq!(bench.take(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_named_twice_is_that_of_the_first_and_a_fault_of_the_other() {
        let bench = Bench::new(vec![sensor("a", 4), sensor("b", 4), sensor("c", 5)]);
        bench.at(15_000).await;
        let fault = bench.snapshots.borrow()[1].fault.clone().expect("a fault");
        assert!(fault.problem.contains("pin 4") && fault.problem.contains("\"a\""), "{fault}");
        assert_eq!(*bench.orders.lock(), [vec![4, 5]]);
        bench.take();
        bench.edge(4, Level::High).await;
        bench.at(16_000).await;
        assert_eq!(bench.take(), [told(15_050, "a", "ON")]);
        // the first gives the pin up
        bench.settings.send_replace(Arc::from(vec![sensor("b", 4), sensor("c", 5)]));
        bench.at(17_000).await;
        assert_eq!(bench.snapshots.borrow()[0].fault, None);
        let published = bench.take();
        assert!(published.contains(&told(16_000, "b/status", "online")), "{published:?}");
        assert!(published.iter().all(|(_, topic, _)| !topic.starts_with('c')), "{published:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn new_settings_touch_only_the_sensors_that_changed() {
        let bench = Bench::new(vec![sensor("a", 4), sensor("b", 5), sensor("c", 6)]);
        bench.at(15_000).await;
        bench.take();
        let changed = SensorSettings { hold: Duration::from_secs(1), ..sensor("b", 5) };
        bench.settings.send_replace(Arc::from(vec![sensor("a", 4), changed, sensor("d", 7)]));
        bench.at(26_000).await;
        let mut seen = bench.take();
        seen.sort();
        let expected = [
            told(15_000, "b/status", "offline"),
            told(15_000, "b/status", "offline"),
            told(15_000, "b/status", "online"),
            told(15_000, "c/status", "offline"),
            told(15_000, "d/status", "offline"),
            told(15_000, "d/status", "online"),
            told(25_000, "b", "OFF"),
            told(25_000, "d", "OFF"),
        ];
        assert_eq!(seen, expected);
        assert_eq!(*bench.orders.lock(), [vec![4, 5, 6], vec![4, 5, 7]]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_journal_refuses_is_told_later() {
        let bench = Bench::new(vec![sensor("a", 4)]);
        bench.at(15_000).await;
        bench.take();
        *bench.full.lock() = true;
        bench.edge(4, Level::High).await;
        bench.at(20_000).await;
        *bench.full.lock() = false;
        bench.at(22_000).await;
        let seen = bench.take();
        assert_eq!(seen.iter().map(|m| (m.1.as_str(), m.2.as_str())).collect::<Vec<_>>(), [("a", "ON")]);
        assert!(bench.snapshots.borrow()[0].refused >= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_is_told_again_once_the_time_is_known() {
        let json = SensorSettings { payload: PayloadFormat::Json, ..sensor("a", 4) };
        let bench = Bench::new(vec![json]);
        bench.at(15_000).await;
        bench.clock.offset.synchronise(1_772_366_400_000);
        bench.at(20_000).await;
        let states: Vec<_> =
            bench.take().into_iter().filter(|message| message.1 == "a").map(|message| message.2).collect();
        assert_eq!(states.len(), 2, "{states:?}");
        assert!(states[0].contains(r#""time":null"#) && states[0].contains(r#""seq":1"#));
        assert!(
            states[1].contains(r#""time":"2026-03-01T12:00:10.000Z""#) && states[1].contains(r#""seq":1"#),
            "{states:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_source_is_an_error() {
        let mut bench = Bench::new(vec![sensor("a", 4)]);
        bench.at(100).await;
        bench.pins = None;
        assert_eq!(bench.task.await.unwrap(), Err(SensorsError::Source(SourceEnded)));
    }

    #[test]
    fn the_task_can_be_spawned() {
        fn spawnable<F: Future + Send + 'static>(_: impl FnOnce(Ingress, CancellationToken) -> F) {}
        let clock = PausedClock { start: std::time::Instant::now().into(), boot_ms: 0, offset: TestClock::default() };
        let clock: SharedClock = Arc::new(clock);
        let (_, settings) = watch::channel(Arc::from(Vec::new()));
        let (snapshots, _) = watch::channel(Vec::new());
        spawnable(move |ingress, cancel| {
            let source = super::super::simulated::Simulated::new(clock.clone(), 0);
            run(settings, source, ingress, clock, (snapshots, Health::default()), PulseTaker::new().1, cancel)
        });
    }
}
