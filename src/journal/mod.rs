//! What waits: messages for consumers that must get them whether they are connected or not, each upstream and each
//! persistent session being one consumer, and the state of the broker that must outlive the process.
//!
//! One [`Journal::append`] serves all consumers of a message and the retained store. Every consumer reads in the order of
//! appending, settles what it is done with, and after a break reads again from its oldest unsettled message. Bounds are
//! per consumer and for the whole; what they push out is counted and can be read.
//!
//! | file | what |
//! |---|---|
//! | `format` | what is on disk |
//! | `record`, `snapshot`, `boots` | its parts |
//! | `storage/` | files, real and for tests; `direct` writes what is small in sectors of 512 bytes, not in blocks of 4096 |
//! | `terms` | what rooms hand to the journal and get from it |
//! | `append`, `keeping` | how messages come in, and values and retained messages |
//! | `reader`, `filler` | how consumers read, and the thread that reads ahead for them |
//! | `writer/` | the thread that writes: all that waits with one write and one sync; it makes room and merges what is still needed |
//! | `recovery` | what is found at start |
//! | `inspect` | looking at it from outside |
//! | `state/` | what is in memory, behind one lock, and what needs several parts of it: what is appended, what gives way |
//!
//! What is in memory, where each file or directory alone changes what it knows:
//!
//! | file | what |
//! |---|---|
//! | `pending` | what was appended and is not on disk yet |
//! | `consumers/` | what waits for each, how far each is, whose cursor has moved |
//! | `log/` | the segments, for whom they hold what, and the files that there are for more of them |
//! | `kept` | named values and retained messages |
//! | `space_left`, `parts` | the space that is left, and for whom which part of it is |
//! | `loss`, `pace` | what bounds have pushed out |
//! | `report`, `trouble` | damage, counters, and a disk that takes nothing |
//!
//! # Promises
//! - What [`Journal::synced`] has reached is on disk. Nothing is handed to a consumer before that, so that no place or
//!   ordinal ever means one message to a consumer and another after a power cut.
//! - `append` never waits for the disk.
//! - A restart loses nothing that was synced. Consumers get again what they have settled since their cursor was last
//!   written: at most [`CURSOR_EVERY`] messages and a few that are settled while it is being written.
//! - What cannot be read costs the records concerned, is reported, and counted as lost for the consumers concerned.
//!
//! # Limits
//! - Memory: [`PENDING_MAX`] bytes that wait for the disk and as many being written; 256 KiB read ahead for a consumer
//!   and [`AHEAD_ALL`] for all together; what consumers hold unsettled, and at most 64 messages more that a reader has taken
//!   ahead; retained messages and sessions; per segment some
//!   words for each consumer that it has messages for; one segment while segments are merged.
//! - Disk: `max_size`, or what the file system can hold in all, and one segment more while segments are merged; a snapshot,
//!   which is as large as retained messages and sessions; and [`MOST_ASIDE`] files set aside.

mod append;
pub(crate) mod boots;
mod consumers;
mod filler;
pub mod format;
pub(crate) mod inspect;
mod keeping;
mod kept;
mod log;
mod loss;
mod pace;
mod parts;
mod pending;
mod reader;
pub mod record;
pub mod recovery;
pub(crate) mod report;
pub mod settings;
pub mod snapshot;
mod space_left;
pub mod state;
pub mod storage;
mod terms;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

pub(crate) use self::append::Appender;
pub(crate) use self::consumers::News;
use self::consumers::Queue;
pub(crate) use self::kept::PART;
pub(crate) use self::reader::Reader;
#[cfg(test)]
use self::report::Report;
use self::report::Status;
use self::settings::JournalSettings;
use self::state::JournalState;
use self::storage::Storage;
use self::storage::memory::MemoryStorage;
pub use self::terms::Extra;
pub(crate) use self::terms::{Backlog, Delivery, Note, Outcome, Recovered};
use crate::health::Health;
use crate::message::Message;
use crate::time::{SharedClock, SystemClock};

/// A consumer's cursor is written after so many settled messages at the latest.
pub(crate) const CURSOR_EVERY: u64 = 500;
/// And when something is written anyway, if it has moved and the last time is this long ago.
const CURSOR_AGE: Duration = Duration::from_secs(1);
/// And when nothing is written, after this time.
const CURSOR_IDLE: Duration = Duration::from_secs(30);
/// Messages that nobody waits for may stay unwritten for this long.
const LAZY: Duration = Duration::from_secs(10);
/// Bytes that may wait for the disk; more are refused.
pub(crate) const PENDING_MAX: usize = 4 << 20;
/// Bytes read ahead for all consumers.
pub(crate) const AHEAD_ALL: usize = 6 << 20;
/// Files set aside that are kept.
pub(crate) const MOST_ASIDE: usize = 4;
/// Reports that are kept; older ones are only counted.
const MOST_REPORTS: usize = 100;

/// A consumer of the journal, for this run of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub(crate) u32);

/// Place of a record in the journal: later records have greater places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub(crate) u64);

/// What to do with a new message when its consumer's backlog, or the whole journal, is at its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The oldest waiting message makes room.
    #[default]
    DropOldest,
    /// The new message is not accepted.
    Refuse,
}

/// Bounds of one consumer's backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages that wait.
    pub messages: usize,
    /// Most bytes that wait, as [`Message::size`] counts them.
    pub bytes: usize,
    /// What gives way.
    pub when_full: WhenFull,
}

/// The journal does not accept a message: a consumer that refuses is full, or the disk is, or it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is full")]
pub struct Full;

/// Why the journal cannot be opened. Damage is never a reason.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The files are of another version.
    #[error(
        "{file} was written by another version of pigateway (format {found}, this program reads {}): install that \
         version, or move the directory `journal` away to begin with an empty one",
        format::VERSION
    )]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u16,
    },
    /// The system refuses a thread.
    #[error("cannot start a thread for the journal: {0}")]
    Thread(std::io::Error),
}

#[derive(Debug)]
struct Shared {
    state: Mutex<JournalState>,
    /// Wakes the writing thread.
    work: Condvar,
    /// Wakes the reading thread.
    fill: Condvar,
    synced: watch::Sender<Position>,
    storage: Arc<dyn Storage>,
    clock: ClockOf,
    settings: JournalSettings,
    /// How often the lock was taken to append.
    #[cfg(test)]
    appends: std::sync::atomic::AtomicU64,
    /// How often readers took it.
    #[cfg(test)]
    reads: std::sync::atomic::AtomicU64,
}

struct ClockOf(SharedClock);

impl std::fmt::Debug for ClockOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Stops the threads when the last who could use the journal has gone.
#[derive(Debug)]
struct ThreadsGuard {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    alive: watch::Receiver<()>,
}

impl Drop for ThreadsGuard {
    fn drop(&mut self) {
        self.shared.stop(state::Stop::Now);
    }
}

/// The journal, shared by those who append and those who read.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    guard: Arc<ThreadsGuard>,
}

impl Default for Journal {
    /// A journal in memory, for tests.
    fn default() -> Self {
        let storage = Arc::new(MemoryStorage::default());
        let settings = JournalSettings { max_size: 8 << 20, ..JournalSettings::default() };
        match Journal::open(storage, settings, Arc::new(SystemClock)) {
            Ok(journal) => journal,
            Err(error) => unreachable!("an empty journal opens: {error}"),
        }
    }
}

impl Shared {
    fn stop(&self, how: state::Stop) {
        self.state.lock().stop(how);
        self.work.notify_all();
        self.fill.notify_all();
    }
}

impl Journal {
    /// Opens the journal in `storage`, whatever state it is in, and starts its threads. Reads: not for a runtime worker.
    pub fn open(
        storage: Arc<dyn Storage>,
        settings: JournalSettings,
        clock: SharedClock,
    ) -> Result<Journal, JournalError> {
        Journal::open_in_boot(storage, settings, clock, boots::kernel_boot_id())
    }

    /// The same for a boot with this id.
    pub fn open_in_boot(
        storage: Arc<dyn Storage>,
        settings: JournalSettings,
        clock: SharedClock,
        boot: u64,
    ) -> Result<Journal, JournalError> {
        let recovered = recovery::recover(&*storage, &settings, boot, &*clock)?;
        let synced = watch::Sender::new(Position(recovered.log.committed()));
        let shared = Arc::new(Shared {
            state: Mutex::new(recovered),
            work: Condvar::new(),
            fill: Condvar::new(),
            synced,
            storage,
            clock: ClockOf(clock),
            settings,
            #[cfg(test)]
            appends: Default::default(),
            #[cfg(test)]
            reads: Default::default(),
        });
        let (alive, ended) = watch::channel(());
        let mut threads = Vec::new();
        let (writer, filler) = (writer::Writer::new(shared.clone()), filler::Filler::new(shared.clone()));
        let token = alive.clone();
        threads.push(start("journal", move || drop((writer.run(), token)))?);
        threads.push(start("journal-read", move || drop((filler.run(), alive)))?);
        let guard = Arc::new(ThreadsGuard { shared: shared.clone(), threads: Mutex::new(threads), alive: ended });
        Ok(Journal { shared, guard })
    }

    /// Completes when the threads have ended, which they do only after [`Journal::close`] or by a fault of ours.
    pub(crate) async fn ended(&self) {
        let mut alive = self.guard.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Writes what waits and all cursors, and ends. Blocks until the disk has taken it: not for a runtime worker.
    pub fn close(&self) {
        self.shared.stop(state::Stop::Orderly);
        for thread in self.guard.threads.lock().drain(..) {
            // a thread that has panicked has been reported by its panic
            let _ = thread.join();
        }
    }

    /// The consumer with this lasting name (`upstream/home`, `session/esp-loft`), known from now on.
    pub fn register(&self, name: &str, limits: Limits) -> ConsumerId {
        let id = self.shared.state.lock().register(name, limits);
        self.shared.work.notify_one();
        id
    }

    /// Changes the bounds of a consumer for what comes from now on.
    pub(crate) fn bound(&self, id: ConsumerId, limits: Limits) {
        if let Some(queue) = self.shared.state.lock().queues.get_mut(id) {
            queue.bound(limits);
        }
    }

    /// Nobody asks for this consumer any more. What waits for it is kept for the case that it is registered again, and is the
    /// first to give way.
    pub(crate) fn orphan(&self, id: ConsumerId) {
        self.shared.state.lock().orphan(id);
    }

    /// Forgets a consumer and what waits for it.
    pub fn remove(&self, id: ConsumerId) -> Backlog {
        let backlog = self.shared.state.lock().remove(id);
        self.shared.work.notify_one();
        backlog
    }

    /// All consumers with their names, those included that nobody has registered since the start.
    pub fn consumers(&self) -> Vec<(Box<str>, ConsumerId, Backlog)> {
        let state = self.shared.state.lock();
        state.queues.iter().map(|(id, queue)| (queue.name().into(), id, queue.backlog())).collect()
    }

    /// Appends a message for `consumers`. Never waits; the message is safe once [`Journal::synced`] has reached the
    /// place returned. Either all consumers get it or, where one of them refuses, none.
    pub fn append(&self, message: &Message, consumers: &[ConsumerId]) -> Result<Position, Full> {
        self.append_with(message, consumers, Extra::default())
    }

    /// Appends a message and what goes with it, as one.
    pub fn append_with(&self, message: &Message, consumers: &[ConsumerId], extra: Extra) -> Result<Position, Full> {
        self.appender().append(message, consumers, extra)
    }

    /// See [`Appender::received`].
    #[cfg(test)]
    pub(crate) fn received(&self, id: ConsumerId, packet_id: u16) -> Result<Position, Full> {
        self.appender().received(id, packet_id)
    }

    /// Notes a step of a QoS 2 exchange; it is safe once [`Journal::synced`] has reached the place returned.
    pub(crate) fn note(&self, id: ConsumerId, note: Note) -> Result<Position, Full> {
        self.with_state(|state| state.append_note(id, note))
    }

    /// The place up to which everything appended so far is safe, once [`Journal::synced`] has reached it.
    pub fn barrier(&self) -> Position {
        self.with_state(JournalState::barrier)
    }

    fn with_state<T>(&self, act: impl FnOnce(&mut JournalState) -> T) -> T {
        let result = act(&mut self.shared.state.lock());
        self.shared.work.notify_one();
        result
    }

    /// Packet ids of QoS 2 messages that were received from this session and not released.
    pub(crate) fn unreleased(&self, id: ConsumerId) -> std::collections::BTreeSet<u16> {
        self.shared.state.lock().queues.get(id).map(|queue| queue.received().clone()).unwrap_or_default()
    }

    /// Ordinals that this consumer has said to be received there and not completed.
    pub(crate) fn released(&self, id: ConsumerId) -> std::collections::BTreeSet<u64> {
        self.shared.state.lock().queues.get(id).map(|queue| queue.released().clone()).unwrap_or_default()
    }

    /// How often the lock was taken to append.
    #[cfg(test)]
    pub(crate) fn appends(&self) -> u64 {
        self.shared.appends.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The greatest place up to which all is safe.
    pub fn synced(&self) -> watch::Receiver<Position> {
        self.shared.synced.subscribe()
    }

    /// Reads for a consumer, from its oldest unsettled message on. One reader at a time.
    pub(crate) fn reader(&self, id: ConsumerId) -> Reader {
        Reader::new(self.clone(), id, None)
    }

    /// The same for a task that reads for many consumers: `news` says whose [`Reader::try_next`] is worth a call.
    pub(crate) fn reader_with_news(&self, id: ConsumerId, news: Arc<News>) -> Reader {
        Reader::new(self.clone(), id, Some(news))
    }

    /// Gives a message that `from` has in hand to another consumer, as one: whatever happens, one of them has it.
    pub(crate) fn hand_over(&self, from: ConsumerId, delivery: &Delivery, to: ConsumerId) -> Result<Position, Full> {
        let extra = Extra { handed_over: Some((from, delivery.ordinal)), ..Extra::default() };
        let position = self.append_with(&delivery.message, &[to], extra)?;
        let mut state = self.shared.state.lock();
        if let Some(queue) = state.queues.get_mut(from) {
            queue.settle(delivery.position, Outcome::Acked);
            state.moved(from);
        }
        Ok(position)
    }

    /// What waits for a consumer.
    pub fn backlog(&self, id: ConsumerId) -> Backlog {
        self.shared.state.lock().queues.get(id).map(Queue::backlog).unwrap_or_default()
    }

    /// The same by the consumer's lasting name.
    pub(crate) fn backlog_of(&self, name: &str) -> Option<Backlog> {
        let state = self.shared.state.lock();
        Some(state.queues.get(state.queues.id_of(name)?)?.backlog())
    }

    /// This moment as a number that means the same after a restart and in other boots: see [`Journal::elapsed_since`].
    pub(crate) fn stamp(&self) -> i64 {
        self.shared.state.lock().boots.stamp(&*self.shared.clock.0)
    }

    /// Milliseconds that have passed since a moment of [`Journal::stamp`], at least: what is not known to have passed does not
    /// count. A number that is not of that kind is one of earlier versions, a Unix time, which nothing can be said about.
    pub(crate) fn elapsed_since(&self, stamp: i64) -> u64 {
        self.shared.state.lock().boots.elapsed_since(stamp, &*self.shared.clock.0)
    }

    /// Has noted how the clock is, should nothing else be written.
    pub(crate) fn observe_clock(&self) {
        self.with_state(|state| state.observe_clock(&*self.shared.clock.0));
    }

    /// Whether the log knows that the clock has been set in this boot.
    pub(crate) fn knows_clock_was_set(&self) -> bool {
        self.shared.state.lock().boots.is_set()
    }

    /// Tells this of a disk that takes nothing, from now on.
    pub(crate) fn report_to(&self, health: Health) {
        self.shared.state.lock().trouble.report_to(health);
    }

    /// How the journal is.
    pub(crate) fn status(&self) -> Status {
        self.shared.state.lock().status(&self.shared.settings)
    }

    /// Ordinals that this consumer has not settled and that may have been sent before the process began, where its task has never
    /// had more unsettled at a time.
    pub(crate) fn maybe_sent(&self, id: ConsumerId, in_hand: u64) -> std::ops::Range<u64> {
        self.shared.state.lock().queues.get(id).map_or(0..0, |queue| queue.maybe_sent(in_hand))
    }

    /// The least of the lasting names that are of this kind; looks through all of them.
    pub(crate) fn find_consumer(&self, is_it: impl Fn(&str) -> bool) -> Option<Box<str>> {
        let state = self.shared.state.lock();
        state.queues.names().filter(|name| is_it(name)).min().cloned()
    }

    /// What was wrong with the files, since the start: the last [`MOST_REPORTS`].
    #[cfg(test)]
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.shared.state.lock().reports.iter().cloned().collect()
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, JournalError> {
    std::thread::Builder::new().name(name.into()).spawn(run).map_err(JournalError::Thread)
}
