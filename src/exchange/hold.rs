//! Whether publishers wait for a reader whose queue is full.
//!
//! A burst must not cost a reader messages that goes on reading, and a reader that does not read must not cost others their
//! time. So:
//!
//! - Who publishes to no full queue is never held.
//! - Who publishes to a full one is held while its reader has taken at least a quarter of its queue in the last
//!   [`LATELY`], or, at QoS 1 and 2, [`WINDOWS`] messages: it acknowledges each window, on a slow line or beside other work.
//! - For any other reader publishers are held for at most [`BUDGET`] in any [`PERIOD`], all readers of one user together and
//!   its new connections too. Guests are one user.
//! - After that the reader loses what does not fit, counted, until it has caught up or taken a quarter that quickly.
//!
//! Where the queues of more than [`ALONE`] readers are full at the same time, it is the machine that is slow, and they share
//! its pace: each has to take that much less.
//!
//! Time in which the gateway itself did not get around to its work is nobody's delay. It passes in steps of [`STEP`] while
//! somebody is held, and steps that come late count as if they had come in time.
//!
//! [`Uptake`] and [`Budget`] decide and know no clock. [`Holds`] is what publishers, readers and the dispatcher share.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::inbox::InboxLimits;
use super::subscribers::Subscriber;
use crate::message::Origin;

/// What a reader has taken within this time tells whether it reads.
pub(crate) const LATELY: Duration = Duration::from_millis(250);
const QUARTER: f64 = 0.25;
/// Three windows of the usual 20 messages: a client that answers at once takes so many in [`LATELY`] on a line of 80 ms.
const WINDOWS: f64 = 60.0;
/// Up to this many readers with full queues are each judged as if they were alone.
const ALONE: usize = 8;
/// How long publishers are held for the readers of one user that do not read ...
pub(crate) const BUDGET: Duration = Duration::from_millis(50);
/// ... in any time of this length.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);
/// How often it is looked whether publishers are still to be held.
pub(crate) const STEP: Duration = Duration::from_millis(5);
/// Longest hold for a reader that its own client does not keep from reading: the gateway has not got around to it.
const LONGEST: Duration = Duration::from_secs(3);
/// Marks of what a reader had taken are this far apart.
const MARK: Duration = Duration::from_millis(25);

/// What a reader has taken, in messages and bytes since it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReaderTaken {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Messages at QoS 1 and 2, which its client acknowledges before it gets more than a window of them.
    pub(crate) by_window: u64,
}

/// How fast a reader takes what there is for it. Times are of any clock that goes forward.
#[derive(Debug, Default)]
pub(crate) struct Uptake {
    marks: VecDeque<(Duration, ReaderTaken)>,
    /// Since when its queue is full, and what it had taken then.
    full: Option<(Duration, ReaderTaken)>,
}

impl Uptake {
    /// So much it has taken at this time.
    pub(crate) fn mark(&mut self, now: Duration, taken: ReaderTaken) {
        if self.marks.back().is_some_and(|(last, _)| now < *last + MARK) {
            return;
        }
        while self.marks.front().is_some_and(|(first, _)| now > *first + LATELY) {
            self.marks.pop_front();
        }
        self.marks.push_back((now, taken));
    }

    /// Its queue is full now, or not any more.
    pub(crate) fn set_full(&mut self, full: Option<(Duration, ReaderTaken)>) {
        self.full = full;
    }

    /// Whether it has taken a quarter of its queue lately; while its queue has been full for less long than that, whether it
    /// is about to.
    /// `full` readers have a full queue at the same time.
    pub(crate) fn is_quick(&self, now: Duration, taken: ReaderTaken, limits: &InboxLimits, full: usize) -> bool {
        let enough = QUARTER * (ALONE as f64 / full.max(1) as f64).min(1.0);
        let is_about_to = self.full.as_ref().is_some_and(|(since, before)| {
            let passed = now.saturating_sub(*since);
            passed <= LATELY
                && taken != *before
                && share(before, taken, limits) >= enough * passed.div_duration_f64(LATELY)
        });
        is_about_to || self.share_lately(now, taken, limits) >= enough
    }

    /// Whether it has taken a quarter of its queue lately.
    pub(crate) fn has_been_quick(&self, now: Duration, taken: ReaderTaken, limits: &InboxLimits) -> bool {
        self.share_lately(now, taken, limits) >= QUARTER
    }

    fn share_lately(&self, now: Duration, taken: ReaderTaken, limits: &InboxLimits) -> f64 {
        let lately = self.marks.iter().find(|(at, _)| now <= *at + LATELY);
        lately.map_or(0.0, |(_, before)| share(before, taken, limits))
    }
}

/// What was taken since `before`, as a share of the queue.
fn share(before: &ReaderTaken, taken: ReaderTaken, limits: &InboxLimits) -> f64 {
    let messages = (taken.messages - before.messages) as f64 / limits.messages as f64;
    let windows = QUARTER * (taken.by_window - before.by_window) as f64 / WINDOWS;
    messages.max((taken.bytes - before.bytes) as f64 / limits.bytes as f64).max(windows)
}

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
                if !reader.inbox.hold(self) {
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

    /// A reader has room again, or has gone: nobody is held for it any more.
    pub(crate) fn release(&self, inbox: *const super::inbox::Inbox) {
        let mut state = self.state.lock();
        let is_it = |held: &HeldReader| std::ptr::eq(&raw const held.reader.inbox, inbox);
        let Some(at) = state.readers.iter().position(is_it) else { return };
        let held = state.readers.swap_remove(at);
        let is_room = state.let_go(&held);
        self.count.store(state.readers.len(), Ordering::Release);
        drop(state);
        if is_room {
            self.room.notify_waiters();
        }
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
    use super::super::inbox::{Inbox, InboxOffer};
    use super::*;
    use crate::message::{BatchBuilder, Draft, Qos};

    const LIMITS: InboxLimits = InboxLimits { messages: 1000, bytes: 100_000 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_reader_is_quick_that_has_taken_a_quarter_within_a_quarter_of_a_second() {
        let mut uptake = Uptake::default();
        let taken = |messages| ReaderTaken { messages, bytes: messages * 10, by_window: 0 };
        assert!(!uptake.is_quick(ms(0), taken(5000), &LIMITS, 1), "nothing is known of it");
        uptake.mark(ms(0), taken(0));
        assert!(!uptake.is_quick(ms(100), taken(249), &LIMITS, 1));
        assert!(uptake.is_quick(ms(100), taken(250), &LIMITS, 1));
        assert!(uptake.is_quick(ms(250), taken(250), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(251), taken(250), &LIMITS, 1), "that was before");
        for step in 1..=20 {
            uptake.mark(ms(step * 25), taken(step * 25));
        }
        assert!(uptake.is_quick(ms(500), taken(500), &LIMITS, 1), "1,000 messages a second");
        assert!(!uptake.is_quick(ms(600), taken(510), &LIMITS, 1), "then hardly any");
        assert!(uptake.is_quick(ms(600), ReaderTaken { bytes: 40_000, ..taken(510) }, &LIMITS, 1), "but large ones");
        assert!(uptake.marks.len() <= 12);
        let windows = |by_window| ReaderTaken { by_window, ..taken(510) };
        assert!(!uptake.is_quick(ms(600), windows(59), &LIMITS, 1));
        assert!(uptake.is_quick(ms(600), windows(60), &LIMITS, 1), "but window by window");
        // just full: it is judged by what it has taken since then
        uptake.set_full(Some((ms(600), taken(510))));
        assert!(!uptake.is_quick(ms(600), taken(510), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(610), taken(519), &LIMITS, 1));
        assert!(uptake.is_quick(ms(610), taken(520), &LIMITS, 1));
        assert!(uptake.is_quick(ms(800), taken(710), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(851), taken(759), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(610), taken(516), &LIMITS, ALONE));
        assert!(uptake.is_quick(ms(610), taken(516), &LIMITS, 2 * ALONE), "many share the pace of the machine");
        assert!(!uptake.is_quick(ms(2000), taken(759), &LIMITS, 1000), "who takes nothing is never quick");
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
