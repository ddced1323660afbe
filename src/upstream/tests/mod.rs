//! Tests of the task with a scripted upstream, and in other files with real brokers.

mod attempts;
mod exact;
mod lanes;
mod limits;
mod line;
mod pulse;
mod real;
mod tls;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::door::InboxDoor;
use super::mark::SessionMark;
use super::rule::tests::rule;
use super::settings::{Order, OutQos, UpstreamAddress, UpstreamSettings};
use super::task::{Upstream, UpstreamError};
use super::wire::{
    Ack, Broken, Busy, ClientEvent, ConnectOffer, InMessage, LineProgress, Link, OutMessage, RetainedWanted,
    UpstreamClient, Version,
};
use crate::exchange::ingress::{IngressError, Receipt};
use crate::health::PulseTaker;
use crate::journal::{ConsumerId, Full, Journal, Limits, Position, WhenFull};
use crate::message::{Draft, Message, Origin, Qos, Topic, TopicFilter};
use crate::status::{UpstreamSnapshot, UpstreamState};
use crate::time::{SharedClock, SystemClock};

/// A replacement for the ingress.
#[derive(Clone, Default)]
pub(crate) struct TestDoor {
    /// Topics and payloads of the published messages.
    published: Arc<Mutex<Vec<(String, String)>>>,
    full: Arc<Mutex<bool>>,
    filters: Arc<Mutex<Vec<String>>>,
    /// The number of receipts that are complete.
    safe: Option<watch::Receiver<u64>>,
}

impl TestDoor {
    pub(crate) fn publish(&self, draft: &Draft<'_>) -> Result<Receipt, IngressError> {
        if *self.full.lock() {
            return Err(Full.into());
        }
        assert_eq!(draft.origin, Origin::upstream("home"));
        let mut published = self.published.lock();
        published.push((draft.topic.into(), String::from_utf8(draft.payload.to_vec()).unwrap()));
        Ok(Receipt { durable: Some(Position(published.len() as u64)) })
    }

    pub(crate) async fn settled(&self, receipt: Receipt) -> Result<(), IngressError> {
        let Some(safe) = &self.safe else { return Ok(()) };
        let position = receipt.durable.map_or(0, |position| position.0);
        safe.clone().wait_for(|safe| *safe >= position).await.map(drop).map_err(|_| IngressError::Closed)
    }

    pub(crate) fn set_filters(&self, filters: &[TopicFilter]) {
        *self.filters.lock() = filters.iter().map(ToString::to_string).collect();
    }
}

/// What the task asked of the scripted client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Connect(String, Version),
    Publish(String),
    Subscribe(Vec<String>),
    Unsubscribe(Vec<String>),
    Ack(Ack),
    Disconnect,
}

/// A client with answers from the test, in order.
struct Scripted {
    asked: mpsc::UnboundedSender<Asked>,
    answers: mpsc::Receiver<Result<Link, Broken>>,
    events: mpsc::Receiver<Result<Vec<ClientEvent>, Broken>>,
    /// What the line does, each time it is looked at.
    line: VecDeque<LineProgress>,
}

impl Scripted {
    fn ask(&self, what: Asked) -> Result<(), Busy> {
        self.asked.send(what).map_err(|_| Busy)
    }
}

fn strings<'a>(filters: impl Iterator<Item = &'a TopicFilter>) -> Vec<String> {
    filters.map(ToString::to_string).collect()
}

impl UpstreamClient for Scripted {
    async fn connect(
        &mut self,
        settings: &UpstreamSettings,
        to: &UpstreamAddress,
        offer: ConnectOffer,
        mark: &mut SessionMark,
    ) -> Result<Link, Broken> {
        let _ = timeout(settings.connect_timeout / 4, mark.asks()).await;
        self.ask(Asked::Connect(to.host.clone(), offer.version)).unwrap();
        self.answers.recv().await.unwrap_or(Err(Broken::Silent))
    }
    fn publish(&mut self, message: OutMessage) -> Result<(), Busy> {
        self.ask(Asked::Publish(format!("{} {}", message.topic, String::from_utf8_lossy(&message.payload))))
    }
    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)], _: RetainedWanted) -> Result<(), Busy> {
        self.ask(Asked::Subscribe(strings(filters.iter().map(|(filter, _)| filter))))
    }
    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy> {
        self.ask(Asked::Unsubscribe(strings(filters.iter())))
    }
    fn ack(&mut self, ack: Ack) -> Result<(), Busy> {
        self.ask(Asked::Ack(ack))
    }
    async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        self.events.recv().await.unwrap_or(Err(Broken::Closed))
    }
    fn line(&mut self, _: Duration) -> LineProgress {
        self.line.pop_front().unwrap_or(LineProgress::Nothing)
    }
    fn disconnect(&mut self) -> Result<(), Busy> {
        self.ask(Asked::Disconnect)
    }
    fn close(&mut self) {}
}

struct Running {
    journal: Journal,
    consumer: ConsumerId,
    settings: watch::Sender<Arc<UpstreamSettings>>,
    snapshots: watch::Receiver<UpstreamSnapshot>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), UpstreamError>>,
    pulse: PulseTaker,
    /// The number of times that the task was woken.
    polls: Arc<AtomicUsize>,
    /// The ordinal of the first message.
    first: u64,
}

impl Running {
    fn start<C: UpstreamClient + 'static>(settings: UpstreamSettings, door: TestDoor, client: C) -> Running {
        Running::with(Journal::default(), settings, door, client)
    }

    fn with<C: UpstreamClient + 'static>(
        journal: Journal,
        settings: UpstreamSettings,
        door: TestDoor,
        client: C,
    ) -> Running {
        Running::by(Arc::new(SystemClock), journal, settings, door, client)
    }

    fn by<C: UpstreamClient + 'static>(
        clock: SharedClock,
        journal: Journal,
        settings: UpstreamSettings,
        door: TestDoor,
        client: C,
    ) -> Running {
        let limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };
        let (settings, settings_rx) = watch::channel(Arc::new(settings));
        let cancel = CancellationToken::new();
        let (door, kept) = (InboxDoor::Test(door), (limits, Order::Strict));
        let upstream = Upstream::with(settings_rx, &journal, kept, door, client, 256 << 10, clock);
        let snapshots = upstream.snapshots.subscribe();
        let consumer = journal.register("upstream/home", limits);
        let polls = Arc::new(AtomicUsize::new(0));
        let (taker, pulse) = PulseTaker::new();
        let (mut run, polled) = (Box::pin(upstream.run(pulse, cancel.clone())), polls.clone());
        let task = tokio::spawn(poll_fn(move |context| {
            polled.fetch_add(1, Ordering::Relaxed);
            run.as_mut().poll(context)
        }));
        let first = journal.maybe_sent(consumer, 0).start;
        Running { journal, consumer, settings, snapshots, cancel, task, pulse: taker, polls, first }
    }

    fn append(&self, topic: &str, payload: &str) {
        let draft = Draft { qos: Qos::AtLeastOnce, origin: Origin::http(), ..Draft::new(topic, payload.as_bytes()) };
        let position = self.journal.append(&Message::new(&draft), &[self.consumer]).unwrap();
        // a paused clock would run ahead while the disk works
        while *self.journal.synced().borrow() < position {
            std::thread::yield_now();
        }
    }

    async fn until(&mut self, what: &str, condition: impl FnMut(&UpstreamSnapshot) -> bool) -> UpstreamSnapshot {
        let last = self.snapshots.clone();
        let found = timeout(Duration::from_secs(20), self.snapshots.wait_for(condition)).await;
        match found {
            Ok(snapshot) => snapshot.unwrap().clone(),
            Err(_) => panic!("never {what}: {:?}", last.borrow()),
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        assert_eq!(timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap(), Ok(()));
        assert_eq!(self.snapshots.borrow().state, UpstreamState::Stopped);
    }
}

fn settings(addresses: &[&str]) -> UpstreamSettings {
    let addresses = addresses.iter().map(|address| UpstreamAddress::parse(address).unwrap()).collect();
    let mut settings = UpstreamSettings::new("home", addresses, "pigateway-test");
    settings.out.push(rule("loft/#", "", "sites/", OutQos::AtLeastOnce));
    settings.inbound.push(rule("commands/#", "", "sites/loft/", Qos::AtLeastOnce));
    settings
}

fn link(version: Version) -> Link {
    Link {
        version,
        session_present: false,
        receive_maximum: 10,
        max_packet_size: None,
        max_qos: Qos::ExactlyOnce,
        retain_available: true,
        has_subscription_ids: true,
        topic_aliases: 0,
        gateway: None,
    }
}

struct Script {
    asked: mpsc::UnboundedReceiver<Asked>,
    answers: mpsc::Sender<Result<Link, Broken>>,
    events: mpsc::Sender<Result<Vec<ClientEvent>, Broken>>,
}

impl Script {
    fn new() -> (Script, Scripted) {
        let (asked_tx, asked) = mpsc::unbounded_channel();
        let (answers, answers_rx) = mpsc::channel(16);
        let (events, events_rx) = mpsc::channel(16);
        (
            Script { asked, answers, events },
            Scripted { asked: asked_tx, answers: answers_rx, events: events_rx, line: VecDeque::new() },
        )
    }

    async fn next(&mut self) -> Asked {
        timeout(Duration::from_secs(600), self.asked.recv()).await.unwrap().unwrap()
    }

    async fn event(&self, event: ClientEvent) {
        self.events.send(Ok(vec![event])).await.unwrap();
    }
}

fn connect(host: &str, version: Version) -> Asked {
    Asked::Connect(host.into(), version)
}

#[tokio::test(start_paused = true)]
async fn addresses_and_versions_are_tried_in_turn() {
    let (mut script, client) = Script::new();
    let running = Running::start(settings(&["mqtt://one", "mqtt://two"]), TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Err(Broken::Failed("no route".into()))).await.unwrap();
    assert_eq!(script.next().await, connect("two", Version::V5));
    script.answers.send(Err(Broken::Closed)).await.unwrap();
    // one connection that ends early proves nothing
    assert_eq!(script.next().await, connect("two", Version::V5));
    script.answers.send(Err(Broken::Closed)).await.unwrap();
    assert_eq!(script.next().await, connect("two", Version::V311));
    script.answers.send(Ok(link(Version::V311))).await.unwrap();
    assert_eq!(script.next().await, Asked::Subscribe(vec!["sites/loft/commands/#".into()]));
    script.events.send(Err(Broken::Closed)).await.unwrap();
    for _ in 0..2 {
        // if 3.1.1 was the answer, it is remembered
        assert_eq!(script.next().await, connect("two", Version::V311));
        script.answers.send(Ok(link(Version::V311))).await.unwrap();
        assert_eq!(script.next().await, Asked::Subscribe(vec!["sites/loft/commands/#".into()]));
        script.events.send(Err(Broken::Closed)).await.unwrap();
    }
    // it has accepted connections and soon ended them, so the next one is tried
    assert_eq!(script.next().await, connect("one", Version::V5));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn commands_are_acknowledged_in_order_once_they_are_safe() {
    let (mut script, client) = Script::new();
    let (safe, safe_rx) = watch::channel(0);
    let door = TestDoor { safe: Some(safe_rx), ..TestDoor::default() };
    let mut running = Running::start(settings(&["mqtt://one"]), door.clone(), client);
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.next().await;
    script.next().await;
    let message = |packet_id, payload: &'static str| {
        ClientEvent::Received(InMessage {
            packet_id,
            topic: "sites/loft/commands/lamp".into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            is_repeated: false,
            expiry: None,
            properties: Vec::new(),
        })
    };
    *door.full.lock() = true;
    script.event(message(1, "on")).await;
    script.event(message(2, "off")).await;
    // no rule wants it, and nobody waits for it
    let ClientEvent::Received(unwanted) = message(3, "") else { unreachable!() };
    script.event(ClientEvent::Received(InMessage { topic: "elsewhere".into(), ..unwanted })).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(door.published.lock().is_empty());
    *door.full.lock() = false;
    running.until("both published", |snapshot| snapshot.received == 2).await;
    let expected = [("commands/lamp".to_owned(), "on".to_owned()), ("commands/lamp".to_owned(), "off".to_owned())];
    assert_eq!(*door.published.lock(), expected);
    assert!(script.asked.try_recv().is_err(), "not safe yet");
    safe.send_replace(1);
    assert_eq!(script.next().await, Asked::Ack(Ack::Taken(1)));
    safe.send_replace(2);
    assert_eq!(script.next().await, Asked::Ack(Ack::Taken(2)));
    assert_eq!(script.next().await, Asked::Ack(Ack::Taken(3)));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_says_more_than_there_are_packet_ids_is_left() {
    let (mut script, client) = Script::new();
    let running = Running::start(settings(&["mqtt://one"]), TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.next().await;
    script.events.send(Ok(vec![ClientEvent::Released(7); 70_000])).await.unwrap();
    while script.next().await != connect("one", Version::V5) {}
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rules_change_on_a_live_connection_and_the_rest_needs_a_new_one() {
    let (mut script, client) = Script::new();
    let door = TestDoor::default();
    let mut first = settings(&["mqtt://one"]);
    first.status_topic = Some(Topic::new("sites/loft").unwrap());
    let running = Running::start(first.clone(), door.clone(), client);
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.next().await;
    script.next().await;
    assert_eq!(script.next().await, Asked::Publish("sites/loft online".into()));
    let mut rules = first.clone();
    rules.inbound.push(rule("x", "", "", Qos::AtMostOnce));
    rules.out = vec![rule("cellar/#", "", "", OutQos::Keep)];
    running.settings.send_replace(Arc::new(rules.clone()));
    assert_eq!(script.next().await, Asked::Subscribe(vec!["x".into()]));
    assert_eq!(*door.filters.lock(), ["cellar/#"]);
    let mut moved = rules;
    moved.addresses = settings(&["mqtt://two"]).addresses;
    running.settings.send_replace(Arc::new(moved));
    assert_eq!(script.next().await, Asked::Publish("sites/loft offline".into()));
    assert_eq!(script.next().await, Asked::Disconnect);
    script.events.send(Err(Broken::Closed)).await.unwrap();
    assert_eq!(script.next().await, connect("two", Version::V5));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_introduction_needs_a_new_connection() {
    for (version, needs_one) in [(Version::V5, true), (Version::V311, false)] {
        let (mut script, client) = Script::new();
        let mut same = settings(&["mqtt://one"]);
        same.inbound = vec![rule("commands/#", "", "", Qos::AtLeastOnce)];
        let mut running = Running::start(same.clone(), TestDoor::default(), client);
        script.next().await;
        script.answers.send(Ok(link(version))).await.unwrap();
        assert_eq!(script.next().await, Asked::Subscribe(vec!["commands/#".into()]));
        let mut mapped = same;
        mapped.inbound[0].local_prefix = "mirror/".into();
        mapped.out[0].remote_prefix = "there/".into();
        running.settings.send_replace(Arc::new(mapped));
        if needs_one {
            assert_eq!(script.next().await, Asked::Disconnect);
            script.events.send(Err(Broken::Closed)).await.unwrap();
            assert_eq!(script.next().await, connect("one", Version::V5));
        } else {
            let is_new = |snapshot: &UpstreamSnapshot| snapshot.rules.iter().any(|rule| rule.contains("there/"));
            running.until("new rules", is_new).await;
            running.append("loft/a", "1");
            assert_eq!(script.next().await, Asked::Publish("there/loft/a 1".into()));
        }
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_upstream_wakes_nobody() {
    let (mut script, client) = Script::new();
    let mut running = Running::start(settings(&["mqtt://one"]), TestDoor::default(), client);
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    script.event(ClientEvent::Subscribed(0, vec![1])).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = running.polls.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(running.polls.load(Ordering::Relaxed), before);
    running.append("loft/a", "1");
    while !matches!(script.next().await, Asked::Publish(_)) {}
    running.stop().await;
}
