//! The messages of a consumer that are in memory: those that were just synced or read ahead, and those in hand.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::super::news::News;
use super::{Behind, HandedOut, LetGo, Queue};
use crate::journal::{ConsumerId, Delivery, Position};
use crate::message::Message;

/// The most bytes that are read ahead for one consumer.
pub(crate) const AHEAD_BYTES: usize = 256 * 1024;
/// The most messages that are read ahead for one consumer.
const AHEAD_MESSAGES: usize = 1024;

/// A message for a consumer in the log.
#[derive(Debug)]
pub(crate) struct FoundMessage {
    pub(crate) position: Position,
    pub(crate) ordinal: u64,
    pub(crate) message: Message,
    /// As in [`Delivery`].
    pub(crate) handed_over: bool,
}

impl Queue {
    /// Whether a message that is now on disk is also kept in memory.
    pub(crate) fn takes(&self, ordinal: u64) -> bool {
        self.is_attached && self.behind.is_none() && ordinal > self.cursor.base && self.has_room()
    }

    /// Records that a message is on disk. It is kept in memory if it is the next one and there is room. `message` may be absent
    /// if there is none; with it comes whether it was handed over.
    pub(crate) fn commit(&mut self, message: Option<(&Message, bool)>, ordinal: u64, position: u64, room: bool) {
        self.committed = self.committed.max(ordinal);
        if self.behind.is_some() || ordinal <= self.cursor.base {
            return;
        }
        match message.filter(|_| room && self.takes(ordinal)) {
            Some((message, handed_over)) => {
                self.push_ready(FoundMessage {
                    position: Position(position),
                    ordinal,
                    message: message.clone(),
                    handed_over,
                });
            }
            None => self.behind = Some(Behind { position, ordinal }),
        }
        self.tell();
    }

    /// Whether the next message must be read from the log.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// Starts a new reader at the oldest unsettled message. Returns where it is told of new messages, unless one task reads
    /// for many consumers.
    pub(crate) fn read_by(&mut self, news: Option<(ConsumerId, Arc<News>)>) -> Arc<Notify> {
        self.news = news;
        self.rewind();
        self.changed.clone()
    }

    /// Records that a reader exists.
    pub(crate) fn attach(&mut self) {
        self.is_attached = true;
    }

    /// Records that there is no reader at present. Messages in memory that are not in hand are dropped, because they can be
    /// read again.
    pub(crate) fn detach(&mut self) {
        self.is_attached = false;
        if let Some(first) = self.ready.front() {
            self.behind = Some(Behind { position: first.position.0, ordinal: first.ordinal });
            self.ready.clear();
            self.ahead.clear();
        }
    }

    /// Whether more may be read ahead.
    fn has_room(&self) -> bool {
        self.ready.is_empty() || (self.ahead.bytes() < AHEAD_BYTES && self.ready.len() < AHEAD_MESSAGES)
    }

    /// Adds a message from the log to those in memory.
    fn push_ready(&mut self, found: FoundMessage) {
        let FoundMessage { position, ordinal, message, handed_over } = found;
        let ready = self.ready.back().map_or(0, |last| last.ordinal);
        if ordinal <= ready.max(self.cursor.base) {
            return;
        }
        // messages in hand are not handed out again without a rewind
        if self.held.binary_search_by_key(&ordinal, |held| held.delivery.ordinal).is_ok() {
            return;
        }
        let released = self.released.contains(&ordinal);
        self.ahead.add(message.size());
        let resent = ordinal <= self.maybe_sent;
        self.ready.push_back(Delivery { position, ordinal, message, resent, released, handed_over });
    }

    /// Whether the reading thread must read for this consumer.
    pub(crate) fn wants_fill(&self) -> bool {
        self.is_attached
            && self.behind.is_some()
            && !self.filling
            && self.ahead.bytes() < AHEAD_BYTES / 2
            && self.ready.len() < AHEAD_MESSAGES / 2
    }

    /// The same, and if so, marks that the reading thread will be asked.
    pub(crate) fn asks_for_fill(&mut self) -> bool {
        let asks = self.wants_fill();
        self.filling |= asks;
        asks
    }

    /// The first position for the reading thread, if any.
    pub(crate) fn next_to_read(&mut self) -> Option<u64> {
        self.filling = false;
        self.behind.filter(|_| self.wants_fill()).map(|behind| behind.position)
    }

    /// Adds what the reading thread has read, from position `from` up to `upto`. Returns whether it was still needed.
    pub(crate) fn filled(&mut self, from: u64, upto: u64, found: Vec<FoundMessage>) -> bool {
        let Some(behind) = self.behind.filter(|behind| behind.position == from) else { return false };
        let last = found.last().map_or(0, |found| found.ordinal);
        found.into_iter().for_each(|found| self.push_ready(found));
        self.behind = Some(Behind { position: upto + 1, ordinal: behind.ordinal.max(last + 1) });
        self.tell();
        true
    }

    /// Records that everything on disk is in memory, so later messages come from there.
    pub(crate) fn caught_up(&mut self) {
        self.behind = None;
        self.pass();
        self.tell();
    }

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

    /// Whether a message waits that is not in hand, on disk or not.
    pub(crate) fn has_unread(&self) -> bool {
        // of what is counted, some may not be readable any more
        if self.ready.is_empty() && self.behind.is_none() && self.committed() == self.newest() {
            return false;
        }
        let let_go = self.waiting_let_go().map_or(self.cursor.base, |let_go| let_go.last);
        let known = self.held.partition_point(|held| held.delivery.ordinal <= let_go);
        self.waiting() > let_go - self.cursor.base + (self.held.len() - known) as u64
    }

    /// Stops keeping a message in hand, and all before it that were let go stay so. It is not settled, so a new reader
    /// and a rewind read it again, from the log.
    pub(crate) fn let_go(&mut self, delivery: &Delivery) {
        let Ok(at) = self.held.binary_search_by_key(&delivery.ordinal, |held| held.delivery.ordinal) else { return };
        let before = self.waiting_let_go().map(|let_go| let_go.last);
        let is_next = |held: &HandedOut| held.settled.is_some() || before.is_some_and(|it| held.delivery.ordinal <= it);
        if self.held[at].settled.is_some() || !self.held.range(..at).all(is_next) {
            return;
        }
        self.held.remove(at);
        let first = LetGo { position: delivery.position.0, first: delivery.ordinal, last: 0 };
        self.let_go = Some(LetGo { last: delivery.ordinal, ..self.waiting_let_go().unwrap_or(first) });
    }

    /// What was let go, if limits have not dropped all of it meanwhile.
    pub(super) fn waiting_let_go(&self) -> Option<LetGo> {
        self.let_go.filter(|let_go| let_go.last > self.cursor.base)
    }

    /// The number of messages that are settled although earlier ones are not, so that the cursor has not moved over them.
    pub(crate) fn passed(&self) -> usize {
        let is_passed = |held: &&HandedOut| held.settled.is_some() && held.delivery.ordinal > self.cursor.base;
        self.held.iter().filter(is_passed).count()
    }

    /// The bytes of messages in memory, in hand or not.
    #[cfg(test)]
    pub(crate) fn bytes_in_memory(&self) -> usize {
        let held = self.held.iter().filter(|held| held.settled.is_none()).map(|held| &held.delivery);
        held.chain(&self.ready).map(|delivery| delivery.message.size()).sum()
    }

    /// Takes back messages at the end of those in hand, as if they had not been handed out.
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
            self.ahead.add(delivery.message.size());
            self.ready.push_front(delivery);
        }
    }

    /// Makes all unsettled messages in hand be handed out again.
    pub(crate) fn rewind(&mut self) {
        self.pushed_out.clear();
        if let Some(let_go) = self.waiting_let_go() {
            // what comes later is read again with it
            self.held.retain(|held| held.settled.is_some());
            self.ready.clear();
            self.ahead.clear();
            self.behind = Some(Behind { position: let_go.position, ordinal: let_go.first });
        }
        self.let_go = None;
        let mut again = VecDeque::new();
        let mut kept = VecDeque::new();
        for held in self.held.drain(..) {
            match held.settled {
                // settled out of order, so it is skipped later
                Some(_) => kept.push_back(held),
                None => again.push_back(Delivery { resent: true, ..held.delivery }),
            }
        }
        self.ahead.add(again.iter().map(|delivery| delivery.message.size()).sum::<usize>());
        again.append(&mut self.ready);
        self.ready = again;
        for delivery in &mut self.ready {
            delivery.released = self.released.contains(&delivery.ordinal);
        }
        self.held = kept;
        self.tell();
    }
}
