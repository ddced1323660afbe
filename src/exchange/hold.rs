//! Whether publishers wait for a reader whose queue is full.
//!
//! A burst must not cost a reader messages that goes on reading, and a reader that does not read must not cost others their
//! time. So:
//!
//! - Who publishes to no full queue is never held.
//! - Who publishes to a full one is held while its reader is quick: it has taken a good part of its queue lately, or several
//!   windows of messages at QoS 1 and 2 (`inbox/uptake.rs` says how much).
//! - For any other reader publishers are held for at most [`BUDGET`] in any [`PERIOD`], all readers of one user together and
//!   its new connections too. Guests are one user.
//! - After that the reader loses what does not fit, counted, until it has caught up or is quick again.
//!
//! Time in which the gateway itself did not get around to its work is nobody's delay. It passes in steps of [`STEP`] while
//! somebody is held, and steps that come late count as if they had come in time.
//!
//! An inbox knows nothing of this but whom to tell when half of it is worked off ([`HoldsPublishers`]). [`Budget`] decides
//! and knows no clock. [`Holds`] is what publishers, readers and the dispatcher share.

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
/// How often it is looked whether publishers are still to be held.
pub(crate) const STEP: Duration = Duration::from_millis(5);
/// Longest hold for a reader that its own client does not keep from reading: the gateway has not got around to it.
const LONGEST: Duration = Duration::from_secs(3);

/// What is left to the readers of one user of the time for which they may hold publishers.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When steps began that were spent.
    spent: VecDeque<Duration>,
}

impl Budget {
    /// Whether publishers may be held for a step from now on. However many readers ask for the same step, it is spent once.
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

/// A reader with a full queue, for which publishers are held.
struct HeldReader {
    reader: Arc<Subscriber>,
    /// Those who have published to it since it is full.
    publishers: SmallVec<[Origin; 4]>,
    /// Since when, on the clock of [`Holds`].
    since: Duration,
}

struct HoldState {
    readers: Vec<HeldReader>,
    /// Publishers that are held, and for how many readers.
    publishers: HashMap<Origin, usize>,
    budgets: HashMap<Arc<str>, Budget>,
    /// Somebody waits who is not among the publishers.
    others_wait: bool,
    looked: Instant,
    clock: Duration,
}

/// Who is held for whom.
pub(crate) struct Holds {
    state: Mutex<HoldState>,
    /// Readers with a full queue, for which somebody may be held.
    count: AtomicUsize,
    /// The first of them is there.
    begun: Notify,
    /// One of them is no more.
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
    /// Time on the clock of readers.
    pub(crate) fn now(&self, now: Instant) -> Duration {
        self.state.lock().now(now)
    }

    /// Whether anybody may be held at all.
    pub(crate) fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Whether this publisher is held. It then waits for [`Holds::room`].
    pub(crate) fn holds(&self, publisher: Origin) -> bool {
        self.is_any() && self.state.lock().publishers.contains_key(&publisher)
    }

    /// A publisher waits because one of its messages is for a full queue; it is not held for anything else.
    pub(crate) fn wait(&self) {
        self.state.lock().others_wait = true;
    }

    /// Notified when publishers that were held may go on.
    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }

    /// Waits until somebody is held. Safe to cancel.
    pub(crate) async fn begun(&self) {
        self.begun.notified().await;
    }

    /// A publisher has filled a reader's queue and is held, if its reader may hold anybody. Returns how many messages the
    /// reader has lost otherwise.
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
                    return 0; // it has taken half of it meanwhile
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

    /// Looks whether publishers are still to be held; every [`STEP`] while some are. Returns how many messages readers have
    /// lost that may not hold them any longer.
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
    /// Whether publishers are held for it for another step, which is taken from its user's budget where it does not read.
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
        // while somebody is held, it is looked at least every step, unless there was no time for it
        self.clock += if self.readers.is_empty() { gap } else { gap.min(2 * STEP) };
        self.clock
    }

    /// Says whether somebody may go on.
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
            // two readers at once
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

    /// One publisher and readers of one user, which take so many messages in every step, for five seconds. Returns for how long
    /// the publisher was held in the worst of all seconds and in all, and how many messages were lost.
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
        // one that reads has its time beside one that does not
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
