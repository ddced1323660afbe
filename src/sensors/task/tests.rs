use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing_subscriber::layer::SubscriberExt;

use super::super::edge::{PinEvent, PinEventKind};
use super::super::settings::{Level, PayloadFormat};
use super::*;
use crate::health::PulseTaker;
use crate::journal::Full;
use crate::message::Topic;
use crate::status::{Fault, SensorState};
use crate::time::{Clock, TestClock};

/// A clock that follows tokio's, which may be paused.
pub(crate) struct PausedClock {
    start: Instant,
    boot_ms: u64,
    offset: TestClock,
}

impl PausedClock {
    pub(crate) fn shared(boot_ms: u64) -> Arc<PausedClock> {
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

/// A source with events from the test.
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

/// Counts the warnings in the log.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<usize>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        *self.0.lock() += usize::from(*event.metadata().level() == tracing::Level::WARN);
    }
}

/// Published messages: milliseconds, topic and payload.
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
            leaving: Vec::new(),
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
    let expected = [told(15_000, "a/status", "offline"), told(16_000, "a/status", "online"), told(16_000, "a", "ON")];
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
    // the first sensor releases the pin
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
    let changed = SensorSettings { active: Level::Low, ..sensor("b", 5) };
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
        told(25_000, "b", "ON"),
        told(25_000, "d", "OFF"),
    ];
    assert_eq!(seen, expected);
    assert_eq!(*bench.orders.lock(), [vec![4, 5, 6], vec![4, 5, 7]]);
}

#[tokio::test(start_paused = true)]
async fn a_sensor_with_other_settings_at_the_same_pin_keeps_its_state_and_its_count() {
    let bench = Bench::new(vec![sensor("a", 4), sensor("b", 5)]);
    bench.at(15_000).await;
    bench.edge(4, Level::High).await;
    bench.at(16_000).await;
    bench.take();
    // nothing changes for those who listen
    let hold = |seconds| SensorSettings { hold: Duration::from_secs(seconds), ..sensor("a", 4) };
    bench.settings.send_replace(Arc::from(vec![hold(100), sensor("b", 5)]));
    bench.at(17_000).await;
    bench.edge(4, Level::Low).await;
    bench.at(50_000).await;
    assert_eq!(bench.take(), []);
    assert_eq!((bench.snapshots.borrow()[0].state, bench.snapshots.borrow()[0].seq), (SensorState::On, 2));
    // motion has ended by the new rule
    bench.settings.send_replace(Arc::from(vec![hold(20), sensor("b", 5)]));
    bench.at(50_001).await;
    assert_eq!(bench.take(), [told(50_000, "a", "OFF")]);
    assert_eq!((bench.snapshots.borrow()[0].since_boot_ms, bench.snapshots.borrow()[0].seq), (Some(37_000), 3));
    // two that change their places, one of them with another payload
    let topic = |name| Topic::new(name).unwrap();
    let first = SensorSettings { topic: topic("b"), ..hold(20) };
    let second = SensorSettings { topic: topic("a"), payload: PayloadFormat::Json, ..sensor("b", 5) };
    bench.settings.send_replace(Arc::from(vec![first, second]));
    bench.at(60_000).await;
    let seen = bench.take();
    let of = |topic| seen.iter().filter(|said| said.1 == topic).map(|said| &*said.2).collect::<Vec<_>>();
    assert_eq!((of("a/status"), of("b/status")), (vec!["offline", "online"], vec!["offline", "online"]));
    assert_eq!((of("b"), of("a").len()), (vec!["OFF"], 1));
    assert!(of("a")[0].contains(r#""seq":1"#) && seen.len() == 6, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sensor_is_stuck_and_warms_up_by_its_present_settings() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let with = |warm_up, stuck_after| SensorSettings { warm_up, stuck_after, ..sensor("a", 4) };
    let bench = Bench::new(vec![with(minutes(60), minutes(5))]);
    let apply = async |settings: SensorSettings| {
        bench.settings.send_replace(Arc::from(vec![settings]));
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.snapshots.borrow()[0].clone()
    };
    bench.at(60_000).await;
    bench.edge(4, Level::High).await;
    bench.at(70_000).await;
    assert_eq!(apply(with(minutes(60), minutes(5))).await.state, SensorState::WarmUp);
    let warm = apply(with(minutes(1), minutes(5))).await;
    assert_eq!((warm.state, warm.stuck), (SensorState::On, false));
    bench.at(500_000).await;
    assert!(bench.snapshots.borrow()[0].stuck);
    assert!(!apply(with(minutes(1), minutes(10))).await.stuck);
    assert!(apply(with(minutes(1), minutes(2))).await.stuck);
    // what is warm does not become cold
    assert_eq!(apply(with(minutes(60), minutes(2))).await.state, SensorState::On);
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
async fn a_sensor_that_is_gone_is_offline_once_the_journal_has_room() {
    let bench = Bench::new(vec![sensor("a", 4), sensor("b", 5), sensor("c", 6)]);
    bench.at(15_000).await;
    bench.take();
    *bench.full.lock() = true;
    bench.settings.send_replace(Arc::from(vec![sensor("a", 4)]));
    bench.at(20_000).await;
    // the next one on this topic has something newer to say
    bench.settings.send_replace(Arc::from(vec![sensor("a", 4), sensor("c", 6)]));
    bench.at(21_000).await;
    *bench.full.lock() = false;
    bench.at(23_000).await;
    let seen = bench.take();
    let mut seen: Vec<_> = seen.iter().map(|message| (message.1.as_str(), message.2.as_str())).collect();
    seen.sort();
    assert_eq!(seen, [("b/status", "offline"), ("c/status", "online")]);
}

#[tokio::test(start_paused = true)]
async fn a_full_journal_is_said_once() {
    let warnings = Warnings::default();
    let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
    let bench = Bench::new(vec![sensor("a", 4)]);
    bench.at(15_000).await;
    *bench.full.lock() = true;
    bench.edge(4, Level::High).await;
    bench.at(30_000).await;
    assert_eq!(*warnings.0.lock(), 1);
    *bench.full.lock() = false;
    bench.at(32_000).await;
    *bench.full.lock() = true;
    bench.edge(4, Level::Low).await;
    bench.at(90_000).await;
    assert_eq!(*warnings.0.lock(), 2, "it was over in between");
}

#[tokio::test(start_paused = true)]
async fn a_state_is_told_again_once_the_time_is_known() {
    let json = SensorSettings { payload: PayloadFormat::Json, ..sensor("a", 4) };
    let bench = Bench::new(vec![json]);
    bench.at(15_000).await;
    bench.clock.offset.synchronise(1_772_366_400_000);
    bench.at(20_000).await;
    let states: Vec<_> = bench.take().into_iter().filter(|message| message.1 == "a").map(|message| message.2).collect();
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
