//! The durable log. It holds messages for consumers that must get them whether they are connected or not, where each
//! upstream and each persistent session is a consumer. It also holds the state of the broker that must survive the process.
//!
//! One [`Journal::append`] serves all consumers of a message and the retained store. Every consumer reads in the order of
//! appending, settles messages, and after an interruption reads again from its oldest unsettled message. There are limits
//! for each consumer and for the whole; what they drop is counted and reported.
//!
//! | file | what |
//! |---|---|
//! | `format` | what is on disk |
//! | `record`, `snapshot`, `boots` | its parts |
//! | `storage/` | files, real and for tests; `direct` writes what is small in sectors of 512 bytes, not in blocks of 4096 |
//! | `terms` | the types that other rooms exchange with the journal |
//! | `append`, `keeping` | appending messages; keeping values and retained messages |
//! | `reader`, `filler` | how consumers read, and the thread that reads ahead for them |
//! | `writer/` | the thread that writes: all that waits with one write and one sync; it makes room and merges what is still needed |
//! | `recovery` | reading the state at the start |
//! | `inspect` | examining a journal from outside |
//! | `state/` | the state in memory, behind one lock, and the operations on several parts of it: appending, giving way |
//!
//! The state in memory. Each file or directory alone changes its part:
//!
//! | file | what |
//! |---|---|
//! | `pending` | records that are not on disk yet |
//! | `consumers/` | the waiting messages, progress and moved cursors of each consumer |
//! | `log/` | the segments, what they hold for whom, and the files for further segments |
//! | `kept` | named values and retained messages |
//! | `later` | which of them the log does not have in their present state |
//! | `space_left`, `parts` | the space that is left, and which part of it is for whom |
//! | `loss`, `pace` | messages that limits have dropped |
//! | `report`, `trouble` | damage, counters, and a failing disk |
//!
//! # Promises
//! - Everything up to [`Journal::synced`] is on disk. Nothing is handed to a consumer before that, so a position or ordinal
//!   never means one message before a power cut and another after it.
//! - `append` never waits for the disk.
//! - A restart loses nothing that was synced. Consumers get again what they have settled since their cursor was last
//!   written: at most [`CURSOR_EVERY`] messages and a few that are settled during the write.
//! - Unreadable data costs only the records in it. It is reported, and the messages are counted as lost for their consumers.
//!
//! # Limits
//! - Memory: [`PENDING_MAX`] bytes of messages that wait for the disk, and as many of the gateway's own; half as many at QoS 0, as many again of other records,
//!   and as many as all these being written; 256 KiB read ahead for a consumer
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
mod later;
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
pub(crate) mod tests;
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
use crate::mqtt::packet_ids::PacketIds;
use crate::time::{SharedClock, SystemClock};

/// A consumer's cursor is written after at most this number of settled messages.
pub(crate) const CURSOR_EVERY: u64 = 500;
/// The age at which a moved cursor is written together with something else.
const CURSOR_AGE: Duration = Duration::from_secs(1);
/// The age at which a moved cursor is written even if nothing else is.
const CURSOR_IDLE: Duration = Duration::from_secs(30);
/// How long that for which nobody waits may stay unwritten.
const LAZY: Duration = Duration::from_secs(10);
/// The most bytes of messages at QoS 1 and 2 that may wait for the disk. Further ones are refused, and before that those of
/// whoever has most. The gateway's own messages have as much room again. The other purposes of records have room in proportion.
pub(crate) const PENDING_MAX: usize = 4 << 20;
/// The most bytes that are read ahead for all consumers.
pub(crate) const AHEAD_ALL: usize = 6 << 20;
/// The most set-aside files that are kept.
pub(crate) const MOST_ASIDE: usize = 4;
/// The most reports that are kept; older ones are only counted.
const MOST_REPORTS: usize = 100;

/// A consumer of the journal, for this run of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub(crate) u32);

/// The position of a record in the journal: later records have higher positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub(crate) u64);

/// What happens to a new message when its consumer's limit, or that of the whole journal, is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The oldest waiting message is dropped.
    #[default]
    DropOldest,
    /// The new message is not accepted.
    Refuse,
}

/// The limits of one consumer's backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most waiting messages.
    pub messages: usize,
    /// The most bytes that wait, as counted by [`Message::size`].
    pub bytes: usize,
    /// What happens when a limit is reached.
    pub when_full: WhenFull,
}

/// The error that the journal does not accept a message: a consumer that refuses is full, the disk is full, or the disk
/// fails.
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
        /// The name of the file.
        file: String,
        /// The version of the file.
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
    /// The number of times that the lock was taken to append.
    #[cfg(test)]
    appends: std::sync::atomic::AtomicU64,
    /// The number of times that readers took the lock.
    #[cfg(test)]
    reads: std::sync::atomic::AtomicU64,
}

struct ClockOf(SharedClock);

impl std::fmt::Debug for ClockOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Stops the threads when the last user of the journal is dropped.
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

/// The journal, shared by all that append and read. Cheap to clone.
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
    /// Opens the journal in `storage`, whatever its state, and starts its threads. Reads files, so it must not run on a
    /// runtime worker.
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

    /// Completes when the threads have ended, which they do only after [`Journal::close`] or by a fault of the program.
    pub(crate) async fn ended(&self) {
        let mut alive = self.guard.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Writes all waiting records and all cursors, and ends. Blocks until they are on disk, so it must not run on a runtime
    /// worker.
    pub fn close(&self) {
        self.shared.stop(state::Stop::Orderly);
        for thread in self.guard.threads.lock().drain(..) {
            // a panic of the thread has been reported already
            let _ = thread.join();
        }
    }

    /// Registers the consumer with this lasting name (`upstream/home`, `session/esp-loft`).
    pub fn register(&self, name: &str, limits: Limits) -> ConsumerId {
        let id = self.shared.state.lock().register(name, limits);
        self.shared.work.notify_one();
        id
    }

    /// Changes the limits of a consumer for later messages.
    pub(crate) fn bound(&self, id: ConsumerId, limits: Limits) {
        if let Some(queue) = self.shared.state.lock().queues.get_mut(id) {
            queue.bound(limits);
        }
    }

    /// Marks a consumer for which nobody asks any more. Its messages are kept in case it is registered again, and give way
    /// first.
    pub(crate) fn orphan(&self, id: ConsumerId) {
        self.shared.state.lock().orphan(id);
    }

    /// Removes a consumer with its waiting messages.
    pub fn remove(&self, id: ConsumerId) -> Backlog {
        let backlog = self.shared.state.lock().remove(id);
        self.shared.work.notify_one();
        backlog
    }

    /// All consumers with their names, including those that nobody has registered since the start.
    pub fn consumers(&self) -> Vec<(Box<str>, ConsumerId, Backlog)> {
        let state = self.shared.state.lock();
        state.queues.iter().map(|(id, queue)| (queue.name().into(), id, queue.backlog())).collect()
    }

    /// Appends a message for `consumers`. Never waits: the message is on disk once [`Journal::synced`] has reached the
    /// returned position. Either all consumers get it, or, if one of them refuses, none.
    pub fn append(&self, message: &Message, consumers: &[ConsumerId]) -> Result<Position, Full> {
        self.append_with(message, consumers, Extra::default())
    }

    /// Appends a message together with additional data.
    pub fn append_with(&self, message: &Message, consumers: &[ConsumerId], extra: Extra) -> Result<Position, Full> {
        self.appender().append(message, consumers, extra)
    }

    /// See [`Appender::received`].
    #[cfg(test)]
    pub(crate) fn received(&self, id: ConsumerId, packet_id: u16) -> Result<Position, Full> {
        self.appender().received(id, packet_id)
    }

    /// Records a step of a QoS 2 exchange. It is on disk once [`Journal::synced`] has reached the returned position.
    pub(crate) fn note(&self, id: ConsumerId, note: Note) -> Result<Position, Full> {
        self.with_state(|state| state.append_note(id, note))
    }

    /// Writes the cursors that have moved with the next write. Otherwise a crash within seconds hands out again what was settled
    /// last, which must not happen again and again if each time something else was written for it.
    pub(crate) fn save_cursors(&self) {
        self.with_state(JournalState::save_cursors);
    }

    /// The position up to which everything appended so far is on disk, once [`Journal::synced`] has reached it.
    pub fn barrier(&self) -> Position {
        self.with_state(JournalState::barrier)
    }

    /// Whether nothing is being written.
    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.with_state(|state| state.pending.is_quiet())
    }

    fn with_state<T>(&self, act: impl FnOnce(&mut JournalState) -> T) -> T {
        let result = act(&mut self.shared.state.lock());
        self.shared.work.notify_one();
        result
    }

    /// Packet ids of QoS 2 messages that were received from this session and not released.
    pub(crate) fn unreleased(&self, id: ConsumerId) -> PacketIds {
        self.shared.state.lock().queues.get(id).map(|queue| queue.received().clone()).unwrap_or_default()
    }

    /// Ordinals that the other side of this consumer has received and not completed.
    pub(crate) fn released(&self, id: ConsumerId) -> std::collections::BTreeSet<u64> {
        self.shared.state.lock().queues.get(id).map(|queue| queue.released().clone()).unwrap_or_default()
    }

    /// The number of times that the lock was taken to append.
    #[cfg(test)]
    pub(crate) fn appends(&self) -> u64 {
        self.shared.appends.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The position up to which everything is on disk.
    pub fn synced(&self) -> watch::Receiver<Position> {
        self.shared.synced.subscribe()
    }

    /// A reader for a consumer, from its oldest unsettled message on. There may be one reader at a time.
    pub(crate) fn reader(&self, id: ConsumerId) -> Reader {
        Reader::new(self.clone(), id, None)
    }

    /// The same for a task that reads for many consumers. `news` tells for which of them [`Reader::try_next`] is worth a
    /// call.
    pub(crate) fn reader_with_news(&self, id: ConsumerId, news: Arc<News>) -> Reader {
        Reader::new(self.clone(), id, Some(news))
    }

    /// Moves a message in the hand of `from` to another consumer in one step: after a crash exactly one of them has it.
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

    /// The ordinal of the newest message that was appended for a consumer.
    pub(crate) fn newest(&self, id: ConsumerId) -> u64 {
        self.shared.state.lock().queues.get(id).map_or(0, Queue::newest)
    }

    /// What waits for a consumer, and the outcomes of all other messages.
    pub fn backlog(&self, id: ConsumerId) -> Backlog {
        self.shared.state.lock().queues.get(id).map(Queue::backlog).unwrap_or_default()
    }

    /// The same, by the consumer's lasting name.
    pub(crate) fn backlog_of(&self, name: &str) -> Option<Backlog> {
        let state = self.shared.state.lock();
        Some(state.queues.get(state.queues.id_of(name)?)?.backlog())
    }

    /// The present moment as a number that keeps its meaning after a restart and in other boots: see
    /// [`Journal::elapsed_since`].
    pub(crate) fn stamp(&self) -> i64 {
        self.shared.state.lock().boots.stamp(&*self.shared.clock.0)
    }

    /// The least number of milliseconds since a moment of [`Journal::stamp`]; time that is not known to have passed does not
    /// count. Any other number is a Unix time of an earlier version, from which nothing can be concluded.
    pub(crate) fn elapsed_since(&self, stamp: i64) -> u64 {
        self.shared.state.lock().boots.elapsed_since(stamp, &*self.shared.clock.0)
    }

    /// Records the state of the clock, in case nothing else is written.
    pub(crate) fn observe_clock(&self) {
        self.with_state(|state| state.observe_clock(&*self.shared.clock.0));
    }

    /// Whether the log knows that the clock was set in this boot.
    pub(crate) fn knows_clock_was_set(&self) -> bool {
        self.shared.state.lock().boots.is_set()
    }

    /// Reports a failing disk to this health from now on.
    pub(crate) fn report_to(&self, health: Health) {
        self.shared.state.lock().trouble.report_to(health);
    }

    /// The state of the journal with its counters.
    pub(crate) fn status(&self) -> Status {
        self.shared.state.lock().status(&self.shared.settings)
    }

    /// Ordinals that this consumer has not settled and that may have been sent before the process began, if its task never
    /// had more than `in_hand` unsettled at a time.
    pub(crate) fn maybe_sent(&self, id: ConsumerId, in_hand: u64) -> std::ops::Range<u64> {
        self.shared.state.lock().queues.get(id).map_or(0..0, |queue| queue.maybe_sent(in_hand))
    }

    /// The last [`MOST_REPORTS`] problems of the files since the start.
    #[cfg(test)]
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.shared.state.lock().reports.iter().cloned().collect()
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, JournalError> {
    std::thread::Builder::new().name(name.into()).spawn(run).map_err(JournalError::Thread)
}
