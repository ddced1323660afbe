//! Decides whether publishers wait for a reader whose queue is full.
//!
//! A burst must not cost messages of a reader that keeps reading, and a reader that does not read must not cost the time of
//! others. So:
//!
//! - A publisher that publishes to no full queue is never held.
//! - Nor is one that publishes little to a full queue: there is some room beyond the bound for it ([`super::spare`]).
//! - Any other publisher to a full queue is held while the reader is quick: it has taken a good part of its queue lately, or
//!   several windows of messages at QoS 1 and 2 (`inbox/uptake.rs` has the numbers).
//! - For any other reader publishers are held for at most [`BUDGET`] in any [`PERIOD`]. All readers of one user share this
//!   time, with all their new connections. Guests count as one user.
//! - After that the reader loses what does not fit, and the losses are counted, until it has caught up or is quick again.
//!
//! Time in which the gateway itself could not work does not count. Time passes in steps of [`STEP`] while a publisher is
//! held, and a late step counts as if it were on time. While other programs use the processors as well, readers have as much
//! more time as these leave less of the processors ([`ProcessorShare`]): the gateway is late to read what a client has
//! acknowledged, and a reader on the same machine is as late. Publishers are held no longer for readers that do not read.
//!
//! Before a reader that is not quick loses anything, its connection is asked to process what the client has sent, and until
//! the connection has had its turn, no time passes for the reader (`inbox/turn.rs`).
//!
//! An inbox only knows whom to tell when half of it has been taken ([`HoldsPublishers`]). [`Budget`] makes decisions without
//! a clock. [`Holds`] is shared by publishers, readers and the dispatcher.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::delivery::InboxId;
use super::inbox::HoldsPublishers;
use super::spare::{Amount, Spare};
use super::subscribers::Subscriber;
use crate::message::Origin;
use crate::time::share::ProcessorShare;

/// How long publishers are held for the readers of one user that do not read ...
pub(crate) const BUDGET: Duration = Duration::from_millis(50);
/// ... in any time of this length.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);
/// The interval of checks whether publishers must still be held.
pub(crate) const STEP: Duration = Duration::from_millis(5);
/// The longest hold for a reader whose client would read, but which the gateway has not served.
const LONGEST: Duration = Duration::from_secs(3);

/// The rest of the time for which the readers of one user may hold publishers.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// The times at which spent steps began.
    spent: VecDeque<Duration>,
}

impl Budget {
    /// Whether publishers may be held for a step from now on. If several readers ask for the same step, it is spent once.
    pub(crate) fn spend(&mut self, now: Duration) -> bool {
        self.forget(now);
        if self.spent.back().is_some_and(|began| now < *began + STEP) {
            return true;
        }
        let is_left = STEP * (self.spent.len() as u32 + 1) <= BUDGET;
        if is_left {
            self.spent.push_back(now);
        }
        is_left
    }

    fn forget(&mut self, now: Duration) {
        while self.spent.front().is_some_and(|began| now >= *began + STEP + PERIOD) {
            self.spent.pop_front();
        }
    }

    fn is_whole(&mut self, now: Duration) -> bool {
        self.forget(now);
        self.spent.is_empty()
    }
}

/// A reader with a full queue for which publishers are held.
struct HeldReader {
    reader: Arc<Subscriber>,
    /// The publishers that fill its queue.
    publishers: SmallVec<[Origin; 4]>,
    /// What others have put into it since it is full.
    spare: Spare,
    /// When that began, as [`HoldTime::held`].
    since: Duration,
    /// When it was last looked at, as [`HoldTime::reading`].
    looked: Duration,
    /// Whether its connection has been asked for a turn since the reader was quick.
    is_asked: bool,
}

/// The time since the beginning.
#[derive(Clone, Copy, Debug, Default)]
struct HoldTime {
    /// For publishers: it counts how long they are held.
    held: Duration,
    /// For readers, for which it passes more slowly while other programs use the processors.
    reading: Duration,
}

struct HoldState {
    readers: HashMap<InboxId, HeldReader>,
    /// The publishers that are held, each with the number of readers.
    publishers: HashMap<Origin, usize>,
    budgets: HashMap<Arc<str>, Budget>,
    /// Whether somebody waits who is not among the publishers.
    others_wait: bool,
    /// Whether the connection of a reader has had no turn since it was asked at an earlier step.
    is_behind: bool,
    looked: Instant,
    time: HoldTime,
    share: ProcessorShare,
}

/// Which publishers are held for which readers.
pub(crate) struct Holds {
    state: Mutex<HoldState>,
    /// The number of readers with a full queue for which publishers may be held.
    count: AtomicUsize,
    /// Notified when the first such reader appears.
    begun: Notify,
    /// Notified when such a reader is gone.
    room: Notify,
}

impl std::fmt::Debug for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holds").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Holds {
    /// Nobody is held yet.
    pub(crate) fn new(share: ProcessorShare) -> Holds {
        let state = HoldState {
            readers: HashMap::new(),
            publishers: HashMap::new(),
            budgets: HashMap::new(),
            others_wait: false,
            is_behind: false,
            looked: Instant::now(),
            time: HoldTime::default(),
            share,
        };
        Holds { state: Mutex::new(state), count: AtomicUsize::new(0), begun: Notify::new(), room: Notify::new() }
    }

    /// The time on the clock of readers.
    pub(crate) fn now(&self, now: Instant) -> Duration {
        self.state.lock().now(now).reading
    }

    /// Whether any publisher may be held.
    pub(crate) fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Whether this publisher is held. If so, it waits for [`Holds::room`].
    pub(crate) fn holds(&self, publisher: Origin) -> bool {
        self.is_any() && self.state.lock().publishers.contains_key(&publisher)
    }

    /// Whether a publisher that is not held may put a batch into these full queues, whose readers have taken something since.
    /// If not, it waits for [`Holds::room`].
    pub(crate) fn may_add(&self, publisher: Origin, batch: Amount, full: &[(InboxId, Amount)]) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let count = state.readers.len();
        let may = full.iter().all(|(inbox, taken)| {
            // meanwhile half of the queue may have been taken
            let held = state.readers.get_mut(inbox);
            held.is_none_or(|held| held.spare.has_room(publisher, batch, *taken, count))
        });
        state.others_wait |= !may;
        if may {
            let held = full.iter().map(|(inbox, _)| inbox);
            held.for_each(|inbox| state.put(*inbox, publisher, batch));
        }
        may
    }

    /// Notified when held publishers may continue.
    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }

    /// Waits until a publisher is held. Safe to cancel.
    pub(crate) async fn begun(&self) {
        self.begun.notified().await;
    }

    /// Holds a publisher that has filled a reader's queue with a batch, if the reader may hold it. Otherwise returns how many
    /// messages the reader has lost.
    pub(crate) fn begin(
        self: &Arc<Self>,
        reader: &Arc<Subscriber>,
        (publisher, batch): (Origin, Amount),
        now: Instant,
    ) -> u64 {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = state.now(now);
        let inbox = reader.inbox.id();
        if !state.readers.contains_key(&inbox) {
            let mut held = HeldReader::new(reader.clone(), now);
            if !held.may_last(&mut state.budgets, now, state.readers.len() + 1, state.is_behind) {
                drop(guard);
                return reader.inbox.lose();
            }
            if !reader.inbox.hold(self.clone()) {
                return 0; // the reader has taken half of its queue meanwhile
            }
            state.readers.insert(inbox, held);
        }
        state.fills(inbox, publisher, batch);
        if self.count.swap(state.readers.len(), Ordering::AcqRel) == 0 {
            self.begun.notify_one();
        }
        0
    }

    /// Checks whether publishers must still be held; to be called every [`STEP`] while some are. Returns how many messages
    /// were lost by readers that may not hold them any longer.
    pub(crate) fn look(&self, now: Instant) -> u64 {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = state.now(now);
        let (full, mut is_room, mut over) = (state.readers.len(), false, Vec::new());
        let HoldState { readers, budgets, .. } = state;
        let mut is_behind = false;
        for (inbox, held) in readers.iter_mut() {
            is_behind |= held.is_late(now);
            if !held.may_last(budgets, now, full, true) {
                over.push(*inbox);
            } else {
                let reader = &held.reader.inbox;
                is_room |= held.spare.is_again(|| reader.taken_while_full().unwrap_or_default());
            }
        }
        state.is_behind = is_behind;
        let over: Vec<HeldReader> = over.iter().filter_map(|inbox| state.readers.remove(inbox)).collect();
        over.iter().for_each(|held| is_room |= state.let_go(held));
        state.budgets.retain(|_, budget| !budget.is_whole(now.held));
        self.count.store(state.readers.len(), Ordering::Release);
        drop(guard);
        let lost = over.iter().map(|held| held.reader.inbox.lose()).sum();
        if is_room {
            self.room.notify_waiters();
        }
        lost
    }
}

impl HoldsPublishers for Holds {
    fn release(&self, inbox: InboxId) {
        let mut state = self.state.lock();
        let Some(held) = state.readers.remove(&inbox) else { return };
        let is_room = state.let_go(&held);
        self.count.store(state.readers.len(), Ordering::Release);
        drop(state);
        if is_room {
            self.room.notify_waiters();
        }
    }
}

impl HeldReader {
    fn new(reader: Arc<Subscriber>, now: HoldTime) -> HeldReader {
        let (since, looked) = (now.held, now.reading);
        HeldReader { reader, publishers: SmallVec::new(), spare: Spare::default(), since, looked, is_asked: false }
    }

    /// Whether the gateway still owes its connection a turn. If so, the time since the last look does not count for it.
    fn is_late(&mut self, now: HoldTime) -> bool {
        let inbox = &self.reader.inbox;
        let passed = now.reading - std::mem::replace(&mut self.looked, now.reading);
        let is_late = self.is_asked && inbox.turn.is_owed();
        if is_late {
            inbox.was_not_served(passed);
        }
        is_late
    }

    /// Whether publishers are held for another step. If the reader does not read, the step is taken from the budget of its
    /// user. If nothing is left of it, the step is free if `may_ask` and the connection must first be asked.
    fn may_last(&mut self, budgets: &mut HashMap<Arc<str>, Budget>, now: HoldTime, full: usize, may_ask: bool) -> bool {
        let inbox = &self.reader.inbox;
        if inbox.is_quick(now.reading, full) {
            self.is_asked = false;
            return true;
        }
        let is_owed = self.is_asked && inbox.turn.is_owed();
        let was_asked = std::mem::replace(&mut self.is_asked, true);
        inbox.turn.ask();
        let is_in_time = now.held <= self.since + LONGEST;
        is_in_time && (is_owed || !inbox.turn.is_blocked())
            || budgets.entry(inbox.payer().clone()).or_default().spend(now.held)
            || is_in_time && may_ask && !was_asked
    }
}

impl HoldState {
    fn now(&mut self, now: Instant) -> HoldTime {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = self.looked.max(now);
        let time = &mut self.time;
        if self.readers.is_empty() {
            (time.held, time.reading) = (time.held + gap, time.reading + gap);
        } else {
            // while a publisher is held, this is called at least every step, unless the gateway had no time for it
            let gap = gap.min(2 * STEP);
            (time.held, time.reading) = (time.held + gap, time.reading + gap.mul_f64(self.share.at(now)));
        }
        *time
    }

    /// Counts a batch that goes into a full queue.
    fn put(&mut self, inbox: InboxId, publisher: Origin, batch: Amount) {
        if let Some(held) = self.readers.get_mut(&inbox) {
            held.spare.put(publisher, batch);
        }
    }

    /// Holds a publisher whose batch has gone into a full queue, unless the batch is small or was counted before.
    fn fills(&mut self, inbox: InboxId, publisher: Origin, batch: Amount) {
        let Some(held) = self.readers.get_mut(&inbox) else { return };
        if !held.publishers.contains(&publisher) && !held.spare.note(publisher, batch) {
            held.publishers.push(publisher);
            *self.publishers.entry(publisher).or_default() += 1;
        }
    }

    /// Releases the publishers of a reader, and returns whether any of them may continue.
    fn let_go(&mut self, held: &HeldReader) -> bool {
        let mut is_room = std::mem::take(&mut self.others_wait);
        for publisher in &held.publishers {
            if let Some(readers) = self.publishers.get_mut(publisher) {
                *readers -= 1;
                if *readers == 0 {
                    self.publishers.remove(publisher);
                    is_room = true;
                }
            }
        }
        is_room
    }
}

#[cfg(test)]
mod tests;
