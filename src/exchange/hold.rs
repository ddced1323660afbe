//! Decides whether publishers wait for a reader whose queue is full.
//!
//! A burst must not cost messages of a reader that keeps reading, and a reader that does not read must not cost the time of
//! others. So:
//!
//! - A publisher that publishes to no full queue is never held.
//! - A publisher to a full queue is held while the reader is quick: it has taken a good part of its queue lately, or several
//!   windows of messages at QoS 1 and 2 (`inbox/uptake.rs` has the numbers).
//! - For any other reader publishers are held for at most [`BUDGET`] in any [`PERIOD`]. All readers of one user share this
//!   time, with all their new connections. Guests count as one user.
//! - After that the reader loses what does not fit, and the losses are counted, until it has caught up or is quick again.
//!
//! Time in which the gateway itself could not work does not count. Time passes in steps of [`STEP`] while a publisher is
//! held, and a late step counts as if it were on time.
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
use super::subscribers::Subscriber;
use crate::message::Origin;

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
    /// The publishers that have published to it since its queue is full.
    publishers: SmallVec<[Origin; 4]>,
    /// When that began, on the clock of [`Holds`].
    since: Duration,
}

struct HoldState {
    readers: Vec<HeldReader>,
    /// The publishers that are held, each with the number of readers.
    publishers: HashMap<Origin, usize>,
    budgets: HashMap<Arc<str>, Budget>,
    /// Whether somebody waits who is not among the publishers.
    others_wait: bool,
    looked: Instant,
    clock: Duration,
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

impl Default for Holds {
    fn default() -> Self {
        let state = HoldState {
            readers: Vec::new(),
            publishers: HashMap::new(),
            budgets: HashMap::new(),
            others_wait: false,
            looked: Instant::now(),
            clock: Duration::ZERO,
        };
        Holds { state: Mutex::new(state), count: AtomicUsize::new(0), begun: Notify::new(), room: Notify::new() }
    }
}

impl Holds {
    /// The time on the clock of readers.
    pub(crate) fn now(&self, now: Instant) -> Duration {
        self.state.lock().now(now)
    }

    /// Whether any publisher may be held.
    pub(crate) fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Whether this publisher is held. If so, it waits for [`Holds::room`].
    pub(crate) fn holds(&self, publisher: Origin) -> bool {
        self.is_any() && self.state.lock().publishers.contains_key(&publisher)
    }

    /// Makes a publisher wait because one of its messages is for a full queue. It is not held otherwise.
    pub(crate) fn wait(&self) {
        self.state.lock().others_wait = true;
    }

    /// Notified when held publishers may continue.
    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }

    /// Waits until a publisher is held. Safe to cancel.
    pub(crate) async fn begun(&self) {
        self.begun.notified().await;
    }

    /// Holds a publisher that has filled a reader's queue, if the reader may hold it. Otherwise returns how many messages
    /// the reader has lost.
    pub(crate) fn begin(self: &Arc<Self>, reader: &Arc<Subscriber>, publisher: Origin, now: Instant) -> u64 {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = state.now(now);
        let known = state.readers.iter().position(|held| Arc::ptr_eq(&held.reader, reader));
        let at = match known {
            Some(at) => at,
            None => {
                let held = HeldReader { reader: reader.clone(), publishers: SmallVec::new(), since: now };
                if !held.may_last(&mut state.budgets, now, state.readers.len() + 1) {
                    drop(guard);
                    return reader.inbox.lose();
                }
                if !reader.inbox.hold(self.clone()) {
                    return 0; // the reader has taken half of its queue meanwhile
                }
                state.readers.push(held);
                state.readers.len() - 1
            }
        };
        let publishers = &mut state.readers[at].publishers;
        if !publishers.contains(&publisher) {
            publishers.push(publisher);
            *state.publishers.entry(publisher).or_default() += 1;
        }
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
        let (mut over, mut is_room) = (Vec::new(), false);
        let mut at = 0;
        let full = state.readers.len();
        while at < state.readers.len() {
            if state.readers[at].may_last(&mut state.budgets, now, full) {
                at += 1;
                continue;
            }
            let held = state.readers.swap_remove(at);
            is_room |= state.let_go(&held);
            over.push(held.reader);
        }
        state.budgets.retain(|_, budget| !budget.is_whole(now));
        self.count.store(state.readers.len(), Ordering::Release);
        drop(guard);
        let lost = over.iter().map(|reader| reader.inbox.lose()).sum();
        if is_room {
            self.room.notify_waiters();
        }
        lost
    }
}

impl HoldsPublishers for Holds {
    fn release(&self, inbox: InboxId) {
        let mut state = self.state.lock();
        let Some(at) = state.readers.iter().position(|held| held.reader.inbox.id() == inbox) else { return };
        let held = state.readers.swap_remove(at);
        let is_room = state.let_go(&held);
        self.count.store(state.readers.len(), Ordering::Release);
        drop(state);
        if is_room {
            self.room.notify_waiters();
        }
    }
}

impl HeldReader {
    /// Whether publishers are held for another step. If the reader does not read, the step is taken from the budget of its
    /// user.
    fn may_last(&self, budgets: &mut HashMap<Arc<str>, Budget>, now: Duration, full: usize) -> bool {
        let inbox = &self.reader.inbox;
        let by_its_client = inbox.is_blocked() || now > self.since + LONGEST;
        inbox.is_quick(now, full) || !by_its_client || budgets.entry(inbox.payer().clone()).or_default().spend(now)
    }
}

impl HoldState {
    fn now(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = self.looked.max(now);
        // while a publisher is held, this is called at least every step, unless the gateway had no time for it
        self.clock += if self.readers.is_empty() { gap } else { gap.min(2 * STEP) };
        self.clock
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
mod tests {
    use super::super::delivery::{RetainFlag, Run, Terms};
    use super::super::inbox::{Inbox, InboxLimits, InboxOffer};
    use super::*;
    use crate::message::{BatchBuilder, Draft, Qos};

    const LIMITS: InboxLimits = InboxLimits { messages: 1000, bytes: 100_000 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn no_second_has_more_than_its_budget() {
        let mut budget = Budget::default();
        let mut spent: Vec<u64> = Vec::new();
        for at in (0..10_000).step_by(5) {
            // two readers at the same time
            let may = budget.spend(ms(at));
            assert_eq!(budget.spend(ms(at + 1)), may);
            if may {
                spent.push(at);
            }
        }
        for from in 0..9_000 {
            let within = spent.iter().filter(|at| (from..from + 1000).contains(*at)).count() as u64;
            assert!(within * 5 <= 50, "{within} steps in the second from {from} ms on");
        }
        assert!(spent.len() >= 90, "{} steps in ten seconds: it is not lost either", spent.len());
    }

    /// Simulates one publisher and readers of one user for five seconds. Each reader takes this number of messages in every
    /// step. Returns how long the publisher was held in the worst second and in all, and how many messages were lost.
    fn simulate(takes: &[usize], blocked: bool) -> (Duration, Duration, u64) {
        let readers: Vec<Arc<Subscriber>> = takes.iter().map(|_| reader(blocked)).collect();
        let (holds, publisher) = (Arc::new(Holds::default()), Origin::client("p"));
        let begin = Instant::now();
        let mut held: Vec<bool> = Vec::new();
        let (mut published, mut taken, mut lost) = (0, 0, 0);
        for step in 0..1000 {
            let now = begin + STEP * step;
            lost += holds.look(now);
            for (reader, takes) in readers.iter().zip(takes) {
                let mut out = VecDeque::new();
                reader.inbox.take(*takes, &mut out);
                taken += out.len() as u64;
            }
            held.push(holds.holds(publisher));
            if held[step as usize] {
                continue;
            }
            for reader in &readers {
                published += 200;
                match reader.inbox.offer(&mut messages(200), holds.now(now)) {
                    InboxOffer::Done => {}
                    InboxOffer::Dropped(messages) => lost += messages,
                    InboxOffer::Full => lost += holds.begin(reader, publisher, now),
                }
            }
        }
        let waiting: usize = readers.iter().map(|reader| reader.inbox.len()).sum();
        assert_eq!(published, taken + lost + waiting as u64, "each is taken, lost and counted, or waits");
        assert_eq!(lost, readers.iter().map(|reader| reader.inbox.dropped()).sum::<u64>());
        let sum = |part: &[bool]| STEP * part.iter().filter(|held| **held).count() as u32;
        (held.windows(200).map(sum).max().unwrap(), sum(&held), lost)
    }

    #[test]
    fn a_reader_that_reads_is_waited_for_and_loses_nothing() {
        for takes in [7, 20, 50, 100] {
            let (_, held, lost) = simulate(&[takes], true);
            assert!(held > Duration::ZERO && lost == 0, "{takes} in each step: held {held:?}, lost {lost}");
        }
        let (_, held, lost) = simulate(&[200], true);
        assert_eq!((held, lost), (Duration::ZERO, 0), "it keeps up");
    }

    #[test]
    fn readers_of_one_user_that_do_not_read_have_fifty_milliseconds_of_a_second_together() {
        for takes in [&[0][..], &[1], &[3], &[0, 0], &[0, 1, 4, 0]] {
            let (worst, _, lost) = simulate(takes, true);
            assert!(worst <= BUDGET && lost > 0, "{takes:?} in each step: {worst:?}, lost {lost}");
        }
        // a reader that reads has its own time beside one that does not
        let (worst, _, _) = simulate(&[0, 20], true);
        assert!(worst > BUDGET);
    }

    #[test]
    fn a_reader_that_the_gateway_has_not_served_yet_is_not_blamed_for_seconds() {
        let (_, held, lost) = simulate(&[0], false);
        assert!(held >= LONGEST && held <= LONGEST + 2 * BUDGET && lost > 0, "{held:?}, {lost}");
    }

    fn reader(blocked: bool) -> Arc<Subscriber> {
        let inbox = Inbox::new("a", LIMITS);
        inbox.set_blocked(blocked);
        Arc::new(Subscriber { inbox, origin: Origin::client("a"), is_durable: false })
    }

    fn messages(count: usize) -> VecDeque<Run> {
        let mut builder = BatchBuilder::default();
        for _ in 0..count {
            let (topic, payload, origin) = ("t", &b"x"[..], Origin::client("p"));
            let (qos, retain, properties, expiry, boot_ms) = (Qos::AtMostOnce, false, &[][..], None, 0);
            builder.push(&Draft { topic, payload, qos, retain, properties, expiry, boot_ms, origin });
        }
        let batch = builder.finish(0);
        let (qos, retain, ids) = (Qos::AtMostOnce, RetainFlag::Clear, SmallVec::new());
        let terms = Terms { qos, retain, no_local: false, ids, share: None };
        VecDeque::from([Run { messages: batch.pack(0, batch.size(), count), terms }])
    }
}
