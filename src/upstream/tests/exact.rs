//! Tests of QoS 2 exchanges over several connections: to which session they belong, and when they are on disk.

use super::*;
use crate::journal::Note;
use crate::journal::settings::JournalSettings;
use crate::journal::storage::memory::{Faults, MemoryStorage};
use crate::upstream::session::EXACT_IDS;
use crate::upstream::settings::Retry;

const HELD: Faults = Faults { hold_sync: true, ..Faults::NONE };
const WORKS: Faults = Faults { hold_sync: false, ..HELD };
const FAILS: Faults = Faults { write: Some(5), ..WORKS };

fn open(storage: MemoryStorage) -> Journal {
    Journal::open(Arc::new(storage), JournalSettings::default(), Arc::new(SystemClock)).unwrap()
}

fn exact() -> UpstreamSettings {
    let mut settings = settings(&["mqtt://one", "mqtt://two"]);
    (settings.out, settings.inbound) = (vec![rule("loft/#", "", "", OutQos::ExactlyOnce)], Vec::new());
    settings.inbound.push(rule("commands/#", "", "", Qos::ExactlyOnce));
    settings.retry = Retry { min: Duration::from_millis(50), max: Duration::from_millis(200) };
    settings
}

fn present(session_present: bool) -> Result<Link, Broken> {
    Ok(Link { session_present, ..link(Version::V5) })
}

/// A gateway with a simulated upstream.
struct Bench {
    running: Running,
    script: Script,
    door: TestDoor,
    storage: MemoryStorage,
}

impl Bench {
    fn start(storage: MemoryStorage) -> Bench {
        Bench::with(storage, exact())
    }

    fn with(storage: MemoryStorage, settings: UpstreamSettings) -> Bench {
        let ((script, client), door) = (Script::new(), TestDoor::default());
        let running = Running::with(open(storage.clone()), settings, door.clone(), client);
        Bench { running, script, door, storage }
    }

    /// Accepts a connection to this address.
    async fn accept(&mut self, host: &str, session_present: bool) {
        while self.script.next().await != connect(host, Version::V5) {}
        self.script.answers.send(present(session_present)).await.unwrap();
        assert_eq!(self.script.next().await, Asked::Subscribe(vec!["commands/#".into()]));
        self.event(ClientEvent::Subscribed(0, vec![2])).await;
    }

    async fn event(&self, event: ClientEvent) {
        self.script.event(event).await;
    }

    async fn lose(&self) {
        self.script.events.send(Err(Broken::Closed)).await.unwrap();
    }

    /// The next messages, and the packet ids freed before them: every PUBREL is answered.
    async fn until_published(&mut self, count: usize) -> (Vec<String>, Vec<u16>) {
        let (mut published, mut released) = (Vec::new(), Vec::new());
        while published.len() < count {
            match self.script.next().await {
                Asked::Publish(text) => published.push(text),
                Asked::Ack(Ack::Released(packet_id)) => {
                    released.push(packet_id);
                    self.event(ClientEvent::Completed(packet_id)).await;
                }
                _ => {}
            }
        }
        (published, released)
    }

    /// Publishes two messages, and lets the upstream have them.
    async fn record_two(&mut self) {
        self.running.append("loft/a", "1");
        self.running.append("loft/a", "2");
        assert_eq!(self.until_published(2).await.0, ["loft/a 1", "loft/a 2"]);
        for packet_id in self.ids() {
            self.event(ClientEvent::Sent(packet_id)).await;
            self.event(ClientEvent::Recorded(packet_id)).await;
        }
    }

    /// The packet ids of the first two messages.
    fn ids(&self) -> [u16; 2] {
        let first = EXACT_IDS.start() + (self.running.first as u16) % 0x4000;
        [first, first + 1]
    }

    async fn released_two(&mut self) {
        for packet_id in self.ids() {
            while self.script.next().await != Asked::Ack(Ack::Released(packet_id)) {}
        }
    }

    async fn received(&self, packet_id: u16, payload: &'static str) {
        let message = InMessage {
            packet_id,
            topic: "commands/lamp".into(),
            payload: payload.into(),
            qos: Qos::ExactlyOnce,
            retain: false,
            is_repeated: false,
            expiry: None,
            properties: Vec::new(),
        };
        self.event(ClientEvent::Received(message)).await;
    }

    async fn came_down(&mut self, payloads: &[&str]) {
        let count = payloads.len() as u64;
        self.running.until("they have come down", |snapshot| snapshot.received == count).await;
        let came: Vec<String> = self.door.published.lock().iter().map(|(_, payload)| payload.clone()).collect();
        assert_eq!(came, payloads);
    }
}

fn all_ids() -> Vec<u16> {
    EXACT_IDS.collect()
}

#[tokio::test]
async fn a_session_of_another_broker_knows_nothing_of_what_was_recorded() {
    let mut bench = Bench::start(MemoryStorage::default());
    bench.accept("one", false).await;
    bench.received(7, "from one").await;
    bench.came_down(&["from one"]).await;
    bench.record_two().await;
    bench.released_two().await;
    bench.lose().await;
    assert_eq!(bench.script.next().await, connect("one", Version::V5));
    bench.script.answers.send(Err(Broken::Failed("no route".into()))).await.unwrap();
    bench.accept("two", true).await;
    bench.received(7, "from two").await;
    let (published, released) = bench.until_published(2).await;
    assert_eq!(published, ["loft/a 1", "loft/a 2"]);
    assert_eq!(released, all_ids(), "one of them may be in use by a message of another time");
    bench.came_down(&["from one", "from two"]).await;
    // the same session again: what was recorded in it counts
    for packet_id in bench.ids() {
        bench.event(ClientEvent::Sent(packet_id)).await;
        bench.event(ClientEvent::Recorded(packet_id)).await;
    }
    bench.released_two().await;
    bench.lose().await;
    bench.accept("two", true).await;
    bench.released_two().await;
    assert!(bench.script.asked.try_recv().is_err(), "nothing is sent again");
    bench.running.stop().await;
}

#[tokio::test]
async fn a_session_that_was_lost_once_is_lost_although_a_newer_one_is_there() {
    // CONNECT waits for the disk, but not for long
    let settings = UpstreamSettings { connect_timeout: Duration::from_millis(400), ..exact() };
    let mut bench = Bench::with(MemoryStorage::default(), settings);
    bench.accept("one", false).await;
    bench.running.append("loft/a", "1");
    bench.running.append("loft/a", "2");
    bench.until_published(2).await;
    bench.storage.set_faults(HELD);
    for packet_id in bench.ids() {
        bench.event(ClientEvent::Sent(packet_id)).await;
        bench.event(ClientEvent::Recorded(packet_id)).await;
    }
    bench.lose().await;
    bench.accept("one", false).await;
    bench.lose().await;
    bench.accept("one", true).await;
    bench.storage.set_faults(WORKS);
    assert_eq!(bench.until_published(2).await.0, ["loft/a 1", "loft/a 2"]);
    bench.running.stop().await;
}

#[tokio::test]
async fn a_power_cut_before_that_is_safe_changes_nothing() {
    let mut bench = Bench::start(MemoryStorage::default());
    bench.accept("one", false).await;
    bench.record_two().await;
    bench.released_two().await;
    bench.lose().await;
    while bench.script.next().await != connect("one", Version::V5) {}
    bench.storage.set_faults(HELD);
    bench.script.answers.send(present(false)).await.unwrap();
    bench.running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    let after = bench.storage.after_power_cut();
    bench.storage.set_faults(WORKS);
    bench.running.stop().await;
    let mut bench = Bench::start(after);
    bench.accept("one", true).await;
    assert_eq!(bench.until_published(2).await.0, ["loft/a 1", "loft/a 2"]);
    bench.running.stop().await;
}

#[tokio::test]
async fn nothing_leaves_with_the_good_bye_that_may_not_leave() {
    let mut bench = Bench::start(MemoryStorage::default());
    bench.accept("one", false).await;
    bench.record_two().await;
    bench.released_two().await;
    bench.lose().await;
    while bench.script.next().await != connect("one", Version::V5) {}
    bench.storage.set_faults(HELD);
    bench.script.answers.send(present(false)).await.unwrap();
    bench.running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    bench.running.cancel.cancel();
    let mut said = Vec::new();
    while said.last() != Some(&Asked::Disconnect) {
        said.push(bench.script.next().await);
    }
    assert!(!said.iter().any(|asked| matches!(asked, Asked::Publish(_))), "{said:?}");
    bench.storage.set_faults(WORKS);
    bench.lose().await;
    bench.running.stop().await;
}

#[tokio::test]
async fn an_upstream_that_ends_connections_at_pubrel_gets_its_messages() {
    let mut bench = Bench::start(MemoryStorage::default());
    bench.running.append("loft/a", "1");
    for _ in 0..2 {
        bench.accept("one", true).await;
        while !matches!(bench.script.next().await, Asked::Ack(Ack::Released(_))) {}
        bench.lose().await;
    }
    bench.accept("one", true).await;
    assert_eq!(bench.until_published(1).await, (vec!["loft/a 1".into()], Vec::new()));
    bench.running.stop().await;
    // packet ids may be in use there nevertheless, which is known after a restart
    let mut bench = Bench::start(bench.storage);
    bench.accept("one", true).await;
    assert_eq!(bench.until_published(1).await, (vec!["loft/a 1".into()], all_ids()));
    bench.running.stop().await;
    let mut bench = Bench::start(bench.storage);
    bench.accept("one", true).await;
    assert_eq!(bench.until_published(1).await, (vec!["loft/a 1".into()], Vec::new()), "and they are free now");
    bench.running.stop().await;
}

#[tokio::test]
async fn who_has_no_rule_at_qos_2_has_nothing_to_forget() {
    let mut settings = settings(&["mqtt://one"]);
    settings.inbound.clear();
    let mut bench = Bench::with(MemoryStorage::default(), settings);
    assert_eq!(bench.script.next().await, connect("one", Version::V5));
    bench.script.answers.send(present(true)).await.unwrap();
    bench.running.append("loft/a", "1");
    assert_eq!(bench.until_published(1).await, (vec!["sites/loft/a 1".into()], Vec::new()));
    assert_eq!(bench.running.journal.kept("\0upstream/home\0"), []);
    // a rule that is added needs to know what was before
    let exact = UpstreamSettings { inbound: Vec::new(), ..exact() };
    bench.running.settings.send(Arc::new(exact)).unwrap();
    while bench.script.next().await != Asked::Disconnect {}
    bench.lose().await;
    while bench.script.next().await != connect("one", Version::V5) {}
    bench.script.answers.send(present(true)).await.unwrap();
    assert_eq!(bench.until_published(1).await, (vec!["loft/a 1".into()], all_ids()));
    assert_eq!(bench.running.journal.kept("\0upstream/home\0").len(), 1);
    bench.running.stop().await;
}

/// Makes the journal accept nothing at all, not even steps of QoS 2.
fn fill_up(bench: &Bench) {
    bench.storage.set_faults(FAILS);
    let note = || bench.running.journal.note(bench.running.consumer, Note::Again(0));
    note().unwrap();
    // what the writing thread already has stays there
    while bench.running.journal.status().failing.is_none() {
        std::thread::yield_now();
    }
    while note().is_ok() {}
    let (journal, mut names) = (&bench.running.journal, 0..);
    while journal.keep(&format!("{}", names.next().unwrap()), Some(&[0; 4096]), false).is_ok() {}
    while journal.keep(&format!("{}", names.next().unwrap()), Some(&[0]), false).is_ok() {}
}

#[tokio::test]
async fn a_journal_that_takes_nothing_ends_the_connection_and_is_shown() {
    let settings = UpstreamSettings { inbound: Vec::new(), ..exact() };
    let mut bench = Bench::with(MemoryStorage::default(), settings);
    bench.running.append("loft/a", "1");
    fill_up(&bench);
    assert_eq!(bench.script.next().await, connect("one", Version::V5));
    tokio::time::pause();
    bench.script.answers.send(present(false)).await.unwrap();
    assert_eq!(bench.script.next().await, connect("one", Version::V5), "after half a minute");
    let why = bench.running.snapshots.borrow().last_error.clone().unwrap();
    assert!(why.contains("cannot be noted in the journal"), "{why}");
    tokio::time::resume();
    bench.storage.set_faults(WORKS);
    bench.script.answers.send(present(true)).await.unwrap();
    assert_eq!(bench.until_published(1).await.0, ["loft/a 1"]);
    bench.running.stop().await;
}

#[tokio::test]
async fn a_gateway_without_its_data_frees_the_packet_ids_of_its_old_session() {
    let mut bench = Bench::start(MemoryStorage::default());
    bench.running.append("loft/a", "1");
    bench.accept("one", true).await;
    assert_eq!(bench.until_published(1).await, (vec!["loft/a 1".into()], all_ids()));
    bench.running.stop().await;
}

#[tokio::test]
async fn what_an_upstream_repeats_while_the_disk_stands_still_is_bounded() {
    let (script, client) = Script::new();
    let (_safe, safe) = watch::channel(0);
    let door = TestDoor { safe: Some(safe), ..TestDoor::default() };
    let running = Running::start(exact(), door, client);
    let mut bench = Bench { running, script, door: TestDoor::default(), storage: MemoryStorage::default() };
    bench.accept("one", false).await;
    bench.received(7, "on").await;
    for _ in 0..70 {
        bench.script.events.send(Ok(vec![ClientEvent::Released(7); 1000])).await.unwrap();
    }
    while bench.script.next().await != connect("one", Version::V5) {}
    bench.running.stop().await;
}
