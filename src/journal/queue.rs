//! One consumer: what waits for it, what it has in hand, what became of the rest.
//!
//! Messages of a consumer are numbered from 1 on. All up to `base` are done with; those after it wait, up to `accepted`.
//! Of these, the first ones may be in hand (`held`), the next ones in memory (`ready`), and the rest in the log only.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::format::FAR;
use super::loss::LossPace;
use super::parts::Part;
use super::sizes::Sizes;
use super::{Backlog, ConsumerId, Delivery, Limits, Outcome, Position, WhenFull};
use crate::message::Message;

/// Most bytes of messages read ahead for one consumer.
pub(crate) const AHEAD_BYTES: usize = 256 * 1024;
/// Most messages read ahead for one consumer.
const AHEAD_MESSAGES: usize = 1024;
/// Messages that a consumer may have in hand at a time, as far as is known.
pub(crate) const IN_HAND: u64 = 1000;
/// A message that the consumer has got.
#[derive(Debug)]
struct HandedOut {
    delivery: Delivery,
    settled: Option<Outcome>,
}

/// A consumer's cursor, as it is kept on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// All ordinals up to this one are done with.
    pub(crate) base: u64,
    /// Greatest ordinal ever handed out.
    pub(crate) read: u64,
    /// Settled, by outcome.
    pub(crate) settled: [u64; Outcome::COUNT],
    /// Pushed out by bounds.
    pub(crate) dropped: u64,
    /// Could not be read.
    pub(crate) lost: u64,
}

/// Consumers that have something new, for a task that reads for many of them.
#[derive(Debug, Default)]
pub(crate) struct News {
    consumers: Mutex<BTreeSet<ConsumerId>>,
    some: Notify,
}

impl News {
    fn add(&self, id: ConsumerId) {
        let mut consumers = self.consumers.lock();
        consumers.insert(id);
        drop(consumers);
        self.some.notify_one();
    }

    /// The next consumer that has something new. Safe to cancel.
    pub(crate) async fn next(&self) -> ConsumerId {
        loop {
            if let Some(id) = self.consumers.lock().pop_first() {
                return id;
            }
            self.some.notified().await;
        }
    }
}

/// A consumer.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Lasting name.
    pub(crate) name: Box<str>,
    /// The part of the journal that what waits for it counts for.
    pub(crate) part: Part,
    /// Key in records.
    pub(crate) key: u64,
    /// Bounds.
    pub(crate) limits: Limits,
    /// Ordinal of the newest message appended.
    pub(crate) accepted: u64,
    /// Ordinal of the newest message that is safe; only these are handed out.
    pub(crate) committed: u64,
    /// Cursor and counts.
    pub(crate) cursor: Cursor,
    pub(crate) sizes: Sizes,
    held: VecDeque<HandedOut>,
    ready: VecDeque<Delivery>,
    ready_bytes: usize,
    /// Messages from this place on must be read from the log; `None`: what comes next comes from memory.
    pub(crate) behind: Option<u64>,
    /// The reading thread is to look, or looks.
    pub(crate) filling: bool,
    /// Messages up to this one may have been sent before the process began, where no more than [`IN_HAND`] were under way.
    pub(crate) maybe_sent: u64,
    /// Packet ids of QoS 2 messages received from this session and not released.
    pub(crate) received: BTreeSet<u16>,
    /// Ordinals that this session has received (PUBREC) and not completed.
    pub(crate) released: BTreeSet<u64>,
    /// In hand when they had to make room.
    pushed_out: BTreeSet<Position>,
    /// Cursor movements that are not on disk.
    pub(crate) unsaved: u64,
    /// No configuration asks for it: it gives way first.
    pub(crate) is_orphan: bool,
    /// Somebody reads.
    pub(crate) is_attached: bool,
    /// It is among those whose cursors are to be written.
    pub(crate) is_moved: bool,
    /// Messages pushed out that the log has not spoken of.
    pub(crate) unsaid: u64,
    /// When it has.
    pub(crate) said: LossPace,
    /// Something new to read.
    pub(crate) changed: Arc<Notify>,
    /// Who reads for many consumers is told here instead.
    pub(crate) news: Option<(ConsumerId, Arc<News>)>,
}

impl Queue {
    /// A consumer with nothing waiting.
    pub(crate) fn new(name: &str, key: u64, limits: Limits) -> Queue {
        Queue {
            name: name.into(),
            part: Part::of(name),
            key,
            limits,
            accepted: 0,
            committed: 0,
            cursor: Cursor::default(),
            sizes: Sizes::default(),
            held: VecDeque::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            behind: None,
            filling: false,
            maybe_sent: 0,
            received: BTreeSet::new(),
            released: BTreeSet::new(),
            pushed_out: BTreeSet::new(),
            unsaved: 0,
            is_orphan: false,
            is_attached: false,
            is_moved: false,
            unsaid: 0,
            said: LossPace::default(),
            changed: Arc::default(),
            news: None,
        }
    }

    /// Its name was lost and is known again.
    pub(crate) fn rename(&mut self, name: &str) {
        (self.name, self.part) = (name.into(), Part::of(name));
    }

    /// Wakes who reads.
    pub(crate) fn tell(&self) {
        match &self.news {
            Some((id, news)) => news.add(*id),
            None => self.changed.notify_one(),
        }
    }

    /// See [`super::Journal::maybe_sent`].
    pub(crate) fn maybe_sent(&self, in_hand: u64) -> std::ops::Range<u64> {
        let end = self.maybe_sent + in_hand.saturating_sub(IN_HAND);
        self.cursor.base + 1..end.min(self.accepted) + 1
    }

    /// Messages that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.accepted.saturating_sub(self.cursor.base)
    }

    /// Whether one more message of this size is beyond the bounds.
    pub(crate) fn is_full_for(&self, size: usize) -> bool {
        self.waiting() > 0
            && (self.waiting() >= self.limits.messages as u64 || self.sizes.bytes() + size > self.limits.bytes)
    }

    /// Whether a message must be refused.
    pub(crate) fn refuses(&self, size: usize) -> bool {
        self.limits.when_full == WhenFull::Refuse && self.is_full_for(size)
    }

    /// Takes a new message; returns its ordinal.
    pub(crate) fn accept(&mut self, size: usize, boot_ms: u64) -> u64 {
        while self.is_full_for(size) {
            self.drop_oldest();
        }
        self.accepted += 1;
        self.sizes.push(1, size as u64, Some(boot_ms));
        self.accepted
    }

    /// The oldest message that waits makes room.
    pub(crate) fn drop_oldest(&mut self) {
        let ordinal = self.cursor.base + 1;
        let mut settled = None;
        if self.held.front().is_some_and(|held| held.delivery.ordinal <= ordinal) {
            if let Some(held) = self.held.pop_front() {
                settled = held.settled;
                if settled.is_none() {
                    self.pushed_out.insert(held.delivery.position);
                }
            }
        } else if self.ready.front().is_some_and(|ready| ready.ordinal <= ordinal) {
            self.pop_ready();
        }
        match settled {
            Some(outcome) => self.cursor.settled[outcome.slot()] += 1,
            None => self.cursor.dropped += 1,
        }
        self.advance(ordinal);
    }

    /// All up to `ordinal` is given up.
    pub(crate) fn drop_through(&mut self, ordinal: u64) {
        while self.cursor.base < ordinal {
            self.drop_oldest();
        }
    }

    fn advance(&mut self, base: u64) {
        self.cursor.base = base;
        self.released.retain(|ordinal| *ordinal > base);
        self.sizes.pop();
        if self.waiting() == 0 {
            self.sizes.clear();
        }
        self.unsaved += 1;
    }

    fn pop_ready(&mut self) -> Option<Delivery> {
        let delivery = self.ready.pop_front()?;
        self.ready_bytes -= delivery.message.size();
        Some(delivery)
    }

    /// Whether a message that has become safe goes into memory.
    pub(crate) fn takes(&self, ordinal: u64) -> bool {
        self.is_attached && self.behind.is_none() && ordinal > self.cursor.base && self.has_room()
    }

    /// A message has become safe: into memory with it, if it is next and fits.
    pub(crate) fn commit(&mut self, message: Option<&Message>, ordinal: u64, position: u64, room: bool) {
        self.committed = self.committed.max(ordinal);
        if self.behind.is_some() || ordinal <= self.cursor.base {
            return;
        }
        match message.filter(|_| room && self.takes(ordinal)) {
            Some(message) => self.push_ready(Position(position), ordinal, message.clone()),
            None => self.behind = Some(position),
        }
        self.tell();
    }

    /// A step of a QoS 2 exchange has become safe.
    pub(crate) fn note(&mut self, what: u64, value: u64) {
        match what {
            0 => drop(self.received.remove(&(value as u16))),
            2 => drop(self.released.remove(&value)),
            _ if (self.cursor.base + 1..=FAR).contains(&value) => drop(self.released.insert(value)),
            _ => {}
        }
    }

    /// Somebody reads from now on.
    pub(crate) fn attach(&mut self) {
        self.is_attached = true;
    }

    /// Nobody reads for the time being: what is in memory and not in hand can be read again.
    pub(crate) fn detach(&mut self) {
        self.is_attached = false;
        if let Some(first) = self.ready.front() {
            self.behind = Some(first.position.0);
            self.ready.clear();
            self.ready_bytes = 0;
        }
    }

    /// Whether more may be read ahead.
    pub(crate) fn has_room(&self) -> bool {
        self.ready.is_empty() || (self.ready_bytes < AHEAD_BYTES && self.ready.len() < AHEAD_MESSAGES)
    }

    /// Puts a message that was read from the log at the end of those in memory.
    pub(crate) fn push_ready(&mut self, position: Position, ordinal: u64, message: Message) {
        let ready = self.ready.back().map_or(0, |last| last.ordinal);
        if ordinal <= ready.max(self.cursor.base) {
            return;
        }
        // what is in hand is not handed out again without a rewind
        if self.held.binary_search_by_key(&ordinal, |held| held.delivery.ordinal).is_ok() {
            return;
        }
        let released = self.released.contains(&ordinal);
        self.ready_bytes += message.size();
        let resent = ordinal <= self.maybe_sent;
        self.ready.push_back(Delivery { position, ordinal, message, resent, released });
    }

    /// Bytes in memory that were not handed out.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Whether the reading thread has something to do for this consumer.
    pub(crate) fn wants_fill(&self) -> bool {
        self.is_attached
            && self.behind.is_some()
            && !self.filling
            && self.ready_bytes < AHEAD_BYTES / 2
            && self.ready.len() < AHEAD_MESSAGES / 2
    }

    /// The next message.
    pub(crate) fn take(&mut self) -> Option<Delivery> {
        loop {
            let delivery = self.pop_ready()?;
            if delivery.ordinal > self.cursor.base {
                self.cursor.read = self.cursor.read.max(delivery.ordinal);
                let at = self.held.partition_point(|held| held.delivery.ordinal < delivery.ordinal);
                self.held.insert(at, HandedOut { delivery: delivery.clone(), settled: None });
                return Some(delivery);
            }
        }
    }

    /// Messages at the end of what is in hand were not used: they are as if they had not been handed out.
    pub(crate) fn put_back(&mut self, unused: impl DoubleEndedIterator<Item = Delivery>) {
        for delivery in unused.rev() {
            if self.pushed_out.remove(&delivery.position) {
                continue;
            }
            let Ok(at) = self.held.binary_search_by_key(&delivery.ordinal, |held| held.delivery.ordinal) else {
                continue;
            };
            self.held.remove(at);
            if !delivery.resent {
                self.cursor.read = self.cursor.read.min(delivery.ordinal - 1);
            }
            self.ready_bytes += delivery.message.size();
            self.ready.push_front(delivery);
        }
    }

    /// What is in hand and not settled is to be handed out again.
    pub(crate) fn rewind(&mut self) {
        self.pushed_out.clear();
        let mut again = VecDeque::new();
        let mut kept = VecDeque::new();
        for held in self.held.drain(..) {
            match held.settled {
                // settled out of order: it is skipped when its turn comes
                Some(_) => kept.push_back(held),
                None => again.push_back(Delivery { resent: true, ..held.delivery }),
            }
        }
        self.ready_bytes += again.iter().map(|delivery| delivery.message.size()).sum::<usize>();
        again.append(&mut self.ready);
        self.ready = again;
        for delivery in &mut self.ready {
            delivery.released = self.released.contains(&delivery.ordinal);
        }
        self.held = kept;
        self.tell();
    }

    /// The consumer is done with a message.
    pub(crate) fn settle(&mut self, position: Position, outcome: Outcome) {
        let Some(held) = self.held.iter_mut().find(|held| held.delivery.position == position) else {
            if self.pushed_out.remove(&position) {
                // it was on its way when it had to make room, and has arrived nevertheless
                self.cursor.dropped -= 1;
                self.cursor.settled[outcome.slot()] += 1;
                self.unsaved += 1;
            }
            return;
        };
        held.settled.get_or_insert(outcome);
        self.pass();
    }

    /// Moves the cursor over what is settled, and over what cannot be read any more.
    pub(crate) fn pass(&mut self) {
        loop {
            // after a rewind, what was settled before may lie behind what is ready again
            let next_ready = self.ready.front().map_or(u64::MAX, |ready| ready.ordinal);
            let Some(held) = self.held.front().filter(|held| held.settled.is_some()) else { break };
            if held.delivery.ordinal > next_ready {
                break;
            }
            if let Some(HandedOut { delivery, settled: Some(outcome) }) = self.held.pop_front() {
                self.lose_before(delivery.ordinal);
                if delivery.ordinal > self.cursor.base {
                    self.cursor.settled[outcome.slot()] += 1;
                    self.advance(delivery.ordinal);
                }
            }
        }
        if self.held.is_empty() && self.ready.is_empty() && self.behind.is_none() {
            self.lose_before(self.committed + 1);
        }
    }

    fn lose_before(&mut self, ordinal: u64) {
        while self.cursor.base + 1 < ordinal {
            self.cursor.lost += 1;
            self.advance(self.cursor.base + 1);
        }
    }

    /// What waits and what became of the rest.
    pub(crate) fn backlog(&self) -> Backlog {
        let front = self.held.front().map(|held| &held.delivery).or(self.ready.front());
        let in_memory = front.filter(|front| front.ordinal == self.cursor.base + 1);
        let settled: u64 = self.cursor.settled.iter().sum();
        let waiting = self.waiting();
        Backlog {
            // ordinals of a consumer begin where the journal was when it was made: they do not count
            accepted: settled + self.cursor.dropped + self.cursor.lost + waiting,
            settled,
            outcomes: self.cursor.settled,
            dropped: self.cursor.dropped,
            lost: self.cursor.lost,
            messages: waiting as usize,
            bytes: self.sizes.bytes(),
            oldest_boot_ms: in_memory
                .map(|front| front.message.view().boot_ms())
                .or_else(|| self.sizes.oldest_boot_ms()),
        }
    }
}
