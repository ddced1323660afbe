//! What of a consumer's messages is in memory: those that were just made safe or read ahead, and those that it has in hand.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::super::news::News;
use super::{HandedOut, Queue};
use crate::journal::{ConsumerId, Delivery, Position};
use crate::message::Message;

/// Most bytes of messages read ahead for one consumer.
pub(crate) const AHEAD_BYTES: usize = 256 * 1024;
/// Most messages read ahead for one consumer.
const AHEAD_MESSAGES: usize = 1024;

impl Queue {
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

    /// What comes next must be read from the log.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// Somebody new reads, from the oldest message on that is not settled; returns where it hears of something new, unless it
    /// reads for many.
    pub(crate) fn read_by(&mut self, news: Option<(ConsumerId, Arc<News>)>) -> Arc<Notify> {
        self.news = news;
        self.rewind();
        self.changed.clone()
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
    fn has_room(&self) -> bool {
        self.ready.is_empty() || (self.ready_bytes < AHEAD_BYTES && self.ready.len() < AHEAD_MESSAGES)
    }

    /// Puts a message that was read from the log at the end of those in memory.
    fn push_ready(&mut self, position: Position, ordinal: u64, message: Message) {
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

    /// Whether the reading thread has something to do for this consumer.
    pub(crate) fn wants_fill(&self) -> bool {
        self.is_attached
            && self.behind.is_some()
            && !self.filling
            && self.ready_bytes < AHEAD_BYTES / 2
            && self.ready.len() < AHEAD_MESSAGES / 2
    }

    /// The same; if so, the reading thread is going to be asked.
    pub(crate) fn asks_for_fill(&mut self) -> bool {
        let asks = self.wants_fill();
        self.filling |= asks;
        asks
    }

    /// The reading thread looks: the least place that it is to read, if any.
    pub(crate) fn next_to_read(&mut self) -> Option<u64> {
        self.filling = false;
        self.behind.filter(|_| self.wants_fill())
    }

    /// The reading thread has read messages from the place `from` on, and all up to `upto`; says whether that was still asked for.
    pub(crate) fn filled(&mut self, from: u64, upto: u64, found: Vec<(u64, u64, Message)>) -> bool {
        if self.behind != Some(from) {
            return false;
        }
        for (position, ordinal, message) in found {
            self.push_ready(Position(position), ordinal, message);
        }
        self.behind = Some(upto + 1);
        self.tell();
        true
    }

    /// All that is safe is in memory: what comes now comes from there.
    pub(crate) fn caught_up(&mut self) {
        self.behind = None;
        self.pass();
        self.tell();
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
}
