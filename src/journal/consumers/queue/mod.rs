//! One consumer: the messages that wait for it, those in hand, and the outcomes of the others.
//!
//! The messages of a consumer are numbered from 1 on. All up to `base` have ended; those up to `accepted` wait. Of these,
//! the first may be in hand (`held`), the next in memory (`ready`), and the others only in the log.

mod reading;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use tokio::sync::Notify;

pub(crate) use self::reading::{AHEAD_BYTES, FoundMessage};
use super::ahead::Ahead;
use super::cursor::Cursor;
use super::news::News;
use super::sizes::Sizes;
use crate::journal::format::FAR;
use crate::journal::pace::LogPace;
use crate::journal::parts::Part;
use crate::journal::{Backlog, CURSOR_EVERY, ConsumerId, Delivery, Limits, Outcome, Position, WhenFull};
use crate::message::{Draft, Message};
use crate::mqtt::packet_ids::PacketIds;

/// The most messages that a consumer is assumed to have in hand at a time.
const IN_HAND: u64 = 1000;

/// The most messages that are followed for one consumer.
const FOLLOWED: usize = 16;

/// What stands for a message that is not needed any more.
static NOTHING: LazyLock<Message> = LazyLock::new(|| Message::new(&Draft::new("-", b"")));

/// A message that was handed to the consumer.
#[derive(Debug)]
struct HandedOut {
    /// Its message is not kept once it is settled.
    delivery: Delivery,
    settled: Option<Outcome>,
}

/// Messages that must be read from the log: those from this position on.
#[derive(Clone, Copy, Debug)]
struct Behind {
    position: u64,
    /// None of them has a lower ordinal.
    ordinal: u64,
}

/// Messages that were handed out and are not kept in memory, although they are not settled.
#[derive(Clone, Copy, Debug)]
struct LetGo {
    /// Where the first one is in the log.
    position: u64,
    /// The ordinals of the first and the last one. What is settled between them is in [`Queue::held`].
    first: u64,
    last: u64,
}

#[derive(Debug)]
pub(crate) struct Queue {
    name: Box<str>,
    /// The part of the journal to which its messages count.
    part: Part,
    /// The key in records.
    key: u64,
    limits: Limits,
    /// The ordinal of the newest message appended.
    accepted: u64,
    /// The ordinal of the newest message on disk; only these are handed out.
    committed: u64,
    cursor: Cursor,
    sizes: Sizes,
    held: VecDeque<HandedOut>,
    /// Those that were handed out before, and are not kept.
    let_go: Option<LetGo>,
    ready: VecDeque<Delivery>,
    /// The bytes of `ready`.
    ahead: Ahead,
    /// What must be read from the log; `None` if the next one comes from memory.
    behind: Option<Behind>,
    /// Whether the reading thread must read, or is reading.
    filling: bool,
    /// Messages up to this ordinal may have been sent before the process began, if at most [`IN_HAND`] were in flight.
    maybe_sent: u64,
    /// Packet ids of QoS 2 messages that were received from this session and not released.
    received: PacketIds,
    /// Ordinals that the client has received (PUBREC) and not completed.
    released: BTreeSet<u64>,
    /// Messages that were in hand when they had to make room.
    pushed_out: BTreeSet<Position>,
    /// Ordinals of which somebody wants to know whether limits drop them, and those that were dropped since it was asked.
    followed: Vec<u64>,
    given_up: Vec<u64>,
    /// The number of cursor movements that are not on disk.
    unsaved: u64,
    /// Whether no configuration asks for this consumer, so that it gives way first.
    is_orphan: bool,
    /// Whether a reader exists.
    is_attached: bool,
    /// Whether its cursor is among those to be written.
    is_moved: bool,
    /// The number of dropped messages that have not been logged.
    unsaid: u64,
    /// When such losses were logged.
    said: LogPace,
    /// Notified when there is something new to read.
    changed: Arc<Notify>,
    /// Told instead, if one task reads for many consumers.
    news: Option<(ConsumerId, Arc<News>)>,
}

impl Queue {
    /// A consumer without messages, whose next one has the ordinal `base + 1`.
    pub(super) fn new(name: &str, key: u64, base: u64, limits: Limits, ahead: Ahead) -> Queue {
        Queue {
            name: name.into(),
            part: Part::of(name),
            key,
            limits,
            accepted: base,
            committed: base,
            cursor: Cursor { base, read: base, ..Cursor::default() },
            sizes: Sizes::default(),
            held: VecDeque::new(),
            let_go: None,
            ready: VecDeque::new(),
            ahead,
            behind: None,
            filling: false,
            maybe_sent: 0,
            received: PacketIds::default(),
            released: BTreeSet::new(),
            pushed_out: BTreeSet::new(),
            followed: Vec::new(),
            given_up: Vec::new(),
            unsaved: 0,
            is_orphan: false,
            is_attached: false,
            is_moved: false,
            unsaid: 0,
            said: LogPace::default(),
            changed: Arc::default(),
            news: None,
        }
    }

    /// Restores the state from a snapshot.
    pub(crate) fn restore(&mut self, cursor: Cursor, committed: u64, received: &PacketIds, released: &[u64]) {
        (self.cursor, self.accepted, self.committed) = (cursor, committed, committed);
        self.received = received.clone();
        self.released = released.iter().copied().collect();
    }

    /// Records that the log has a message for it.
    pub(crate) fn found(&mut self, ordinal: u64) {
        self.accepted = self.accepted.max(ordinal);
    }

    /// Applies a cursor from the log, and returns whether it is not older than the present one.
    pub(crate) fn follow(&mut self, cursor: Cursor) -> bool {
        if self.cursor.base > cursor.base {
            return false;
        }
        self.cursor = cursor;
        self.released.retain(|ordinal| *ordinal > cursor.base);
        true
    }

    /// Starts after the log was read, with numbers and bytes of the waiting messages, oldest first, and whether the cursor
    /// was written at an orderly end.
    pub(crate) fn begin(&mut self, waiting: &[(u32, u64)], is_orderly: bool) {
        self.accepted = self.accepted.max(self.cursor.base);
        self.committed = self.accepted;
        let in_doubt = if is_orderly { 0 } else { CURSOR_EVERY + IN_HAND };
        // what comes from now on has not been sent
        self.maybe_sent = self.cursor.read.max(self.cursor.base + in_doubt).min(self.accepted);
        for (messages, bytes) in waiting {
            self.sizes.push(*messages, *bytes, None);
        }
        self.behind = (self.waiting() > 0).then_some(Behind { position: 0, ordinal: self.cursor.base + 1 });
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The part of the journal to which its messages count.
    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// The key in records.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// All messages up to this ordinal have ended.
    pub(crate) fn base(&self) -> u64 {
        self.cursor.base
    }

    /// The ordinal of the newest message on disk. Messages that limits have dropped before that are left out.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.max(self.cursor.base)
    }

    /// Packet ids of QoS 2 messages that were received from this session and not released.
    pub(crate) fn received(&self) -> &PacketIds {
        &self.received
    }

    /// Ordinals that the other side has received (PUBREC) and not completed.
    pub(crate) fn released(&self) -> &BTreeSet<u64> {
        &self.released
    }

    /// The ordinal of the newest message that was appended, on disk or not.
    pub(crate) fn newest(&self) -> u64 {
        self.accepted.max(self.cursor.base)
    }

    /// The bytes of waiting messages.
    pub(crate) fn bytes(&self) -> usize {
        self.sizes.bytes()
    }

    /// Changes the limits for later messages.
    pub(crate) fn bound(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Registers the consumer again with these limits.
    pub(crate) fn claim(&mut self, limits: Limits) {
        (self.limits, self.is_orphan) = (limits, false);
    }

    /// Marks the consumer as an orphan, so that it gives way first.
    pub(crate) fn orphan(&mut self) {
        self.is_orphan = true;
    }

    pub(crate) fn is_orphan(&self) -> bool {
        self.is_orphan
    }

    /// Restores a lost name.
    pub(super) fn rename(&mut self, name: &str) {
        (self.name, self.part) = (name.into(), Part::of(name));
    }

    /// The number of cursor movements that are not on disk.
    pub(super) fn unsaved(&self) -> u64 {
        self.unsaved
    }

    /// Marks the cursor as to be written, and returns whether that is new.
    pub(super) fn set_moved(&mut self) -> bool {
        !std::mem::replace(&mut self.is_moved, true)
    }

    /// Marks the cursor as about to be written.
    pub(super) fn set_saved(&mut self) {
        (self.unsaved, self.is_moved) = (0, false);
    }

    /// Counts dropped messages. Returns the number to log now, if this consumer and all `others` together have log lines
    /// left.
    pub(crate) fn say_lost(&mut self, messages: u64, now: Instant, others: impl FnOnce() -> bool) -> Option<u64> {
        self.unsaid += messages;
        (self.said.admits(1, now) && others()).then(|| std::mem::take(&mut self.unsaid))
    }

    fn tell(&self) {
        match &self.news {
            Some((id, news)) => news.add(*id),
            None => self.changed.notify_one(),
        }
    }

    /// See [`super::super::Journal::maybe_sent`].
    pub(crate) fn maybe_sent(&self, in_hand: u64) -> std::ops::Range<u64> {
        let end = self.maybe_sent + in_hand.saturating_sub(IN_HAND);
        self.cursor.base + 1..end.min(self.accepted) + 1
    }

    /// The number of waiting messages.
    pub(crate) fn waiting(&self) -> u64 {
        self.accepted.saturating_sub(self.cursor.base)
    }

    /// Whether one more message of this size would exceed the limits.
    fn is_full_for(&self, size: usize) -> bool {
        self.waiting() > 0
            && (self.waiting() >= self.limits.messages as u64 || self.sizes.bytes() + size > self.limits.bytes)
    }

    /// Whether a message of this size must be refused.
    pub(crate) fn refuses(&self, size: usize) -> bool {
        self.limits.when_full == WhenFull::Refuse && self.is_full_for(size)
    }

    /// Adds a message, and returns its ordinal.
    pub(super) fn accept(&mut self, size: usize, boot_ms: u64) -> u64 {
        while self.is_full_for(size) {
            self.drop_oldest();
        }
        self.accepted += 1;
        self.sizes.push(1, size as u64, Some(boot_ms));
        self.accepted
    }

    /// Drops the oldest waiting message to make room.
    fn drop_oldest(&mut self) {
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
            Some(outcome) => self.cursor.count(outcome),
            None => {
                self.cursor.dropped += 1;
                self.given_up.extend(self.followed.extract_if(.., |followed| *followed == ordinal));
            }
        }
        self.advance(ordinal);
    }

    /// Drops all messages up to `ordinal`, and returns their number.
    pub(crate) fn drop_through(&mut self, ordinal: u64) -> u64 {
        let dropped = self.cursor.dropped;
        while self.cursor.base < ordinal {
            self.drop_oldest();
        }
        self.cursor.dropped - dropped
    }

    /// Wants to know whether limits drop the message with this ordinal. Of more than [`FOLLOWED`], the first is forgotten.
    pub(crate) fn follow_loss(&mut self, ordinal: u64) {
        if self.followed.len() >= FOLLOWED {
            self.followed.remove(0);
        }
        self.followed.push(ordinal);
    }

    /// Those that are followed and that limits have dropped since the last call.
    pub(crate) fn take_given_up(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.given_up)
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
        self.ahead.sub(delivery.message.size());
        Some(delivery)
    }

    /// Records that a QoS 2 message of this session was received with this packet id.
    pub(crate) fn receive(&mut self, packet_id: u16) {
        self.received.insert(packet_id);
    }

    /// Applies a step of a QoS 2 exchange that is on disk.
    pub(crate) fn note(&mut self, what: u64, value: u64) {
        match what {
            0 => drop(self.received.remove(value as u16)),
            2 => drop(self.released.remove(&value)),
            _ if (self.cursor.base + 1..=FAR).contains(&value) => drop(self.released.insert(value)),
            _ => {}
        }
    }

    pub(crate) fn settle(&mut self, position: Position, outcome: Outcome) {
        let Some(at) = self.held.iter().position(|held| held.delivery.position == position) else {
            if self.pushed_out.remove(&position) {
                // it was in flight when it had to make room, and has arrived nevertheless
                self.cursor.dropped -= 1;
                self.cursor.count(outcome);
                self.unsaved += 1;
            }
            return;
        };
        self.held[at].settled.get_or_insert(outcome);
        if at > 0 {
            // it may stay for long behind one that is not settled
            self.held[at].delivery.message = NOTHING.clone();
        }
        self.pass();
    }

    /// Moves the cursor over settled messages and over those that cannot be read any more.
    fn pass(&mut self) {
        loop {
            // after a rewind, messages that were settled before may come after those that are handed out again
            let unsettled = [
                self.ready.front().map(|ready| ready.ordinal),
                self.waiting_let_go().map(|let_go| let_go.first),
                self.behind.map(|behind| behind.ordinal),
            ];
            let Some(held) = self.held.front().filter(|held| held.settled.is_some()) else { break };
            if unsettled.into_iter().flatten().any(|unsettled| held.delivery.ordinal > unsettled) {
                break;
            }
            if let Some(HandedOut { delivery, settled: Some(outcome) }) = self.held.pop_front() {
                self.lose_before(delivery.ordinal);
                if delivery.ordinal > self.cursor.base {
                    self.cursor.count(outcome);
                    self.advance(delivery.ordinal);
                }
            }
        }
        let is_read = self.ready.is_empty() && self.behind.is_none();
        if is_read && self.held.is_empty() && self.waiting_let_go().is_none() {
            self.lose_before(self.committed + 1);
        }
    }

    fn lose_before(&mut self, ordinal: u64) {
        while self.cursor.base + 1 < ordinal {
            self.cursor.lost += 1;
            self.advance(self.cursor.base + 1);
        }
    }

    /// What waits, and the outcomes of all other messages.
    pub(crate) fn backlog(&self) -> Backlog {
        let front = self.held.front().map(|held| &held.delivery).or(self.ready.front());
        let in_memory = front.filter(|front| front.ordinal == self.cursor.base + 1);
        // what is settled out of order does not wait any more, but the cursor has not moved over it
        let mut cursor = self.cursor;
        let mut waiting = self.waiting();
        for held in self.held.iter().filter(|held| held.delivery.ordinal > self.cursor.base) {
            if let Some(outcome) = held.settled {
                cursor.count(outcome);
                waiting = waiting.saturating_sub(1);
            }
        }
        let settled: u64 = cursor.settled.iter().sum();
        Backlog {
            // the ordinals of a consumer start at the journal's position when it was created, so earlier ones do not count
            accepted: settled + self.cursor.dropped + self.cursor.lost + waiting,
            settled,
            outcomes: cursor.settled,
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
