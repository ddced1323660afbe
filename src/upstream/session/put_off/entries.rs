//! What is known about messages that are put off. Decisions only, without I/O.

use super::super::sent::SentFrom;
use super::ended_at::{EndedAt, Trial};
use super::{FIRST_MS, LONGEST_MS, STRIKES};
use crate::journal::Position;
use crate::upstream::lanes::Lane;

/// The most messages that are known as put off.
const ENTRIES: usize = 128;

#[derive(Clone, Copy, Debug)]
pub(super) struct PutOffEntry {
    pub(super) lane: Lane,
    pub(super) position: Position,
    pub(super) attempts: u32,
    pub(super) due: u64,
    /// Set if connections went silent at this message: of messages of this size or more, one such connection is enough.
    pub(super) size: Option<usize>,
    /// The topic, if the upstream has acknowledged no later message of it: messages of this topic are like it.
    pub(super) topic: Option<u64>,
    /// Whether messages at QoS 2 are like it, because the upstream has never completed one.
    pub(super) exact: bool,
    /// Whether the upstream has acknowledged it on its earlier place.
    pub(super) has_arrived: bool,
    /// Whether it is put off because of its topic.
    pub(super) is_denied: bool,
    /// Whether it is known on this connection that it is due.
    pub(super) is_told: bool,
}

/// The messages that do not get through.
#[derive(Clone, Debug, Default)]
pub(in crate::upstream::session) struct PutOff {
    pub(super) entries: Vec<PutOffEntry>,
    /// The message at which the last connections ended.
    pub(super) ended: Option<EndedAt>,
    pub(in crate::upstream::session) trial: Trial,
    /// Whether the upstream closed the last connection while a PUBREL was unanswered.
    pub(super) at_release: bool,
    /// The time until which connections are made with small segments.
    pub(super) small_until: u64,
    /// The latest answer to a message that came after those to later ones, in milliseconds since it was sent.
    pub(super) latest: u64,
    /// Whether the upstream has completed an exchange at QoS 2.
    pub(in crate::upstream::session) has_completed: bool,
    /// Whether a message that waits may have become free.
    pub(super) is_news: bool,
}

impl PutOff {
    pub(super) fn entry(&mut self, lane: Lane, position: Position) -> Option<&mut PutOffEntry> {
        self.entries.iter_mut().find(|entry| (entry.lane, entry.position) == (lane, position))
    }

    pub(in crate::upstream::session) fn knows(&self, lane: Lane, position: Position) -> bool {
        self.entries.iter().any(|entry| (entry.lane, entry.position) == (lane, position))
    }

    /// Puts a message off. Returns whether that is new.
    pub(super) fn add(&mut self, source: &SentFrom, now: u64) -> (bool, &mut PutOffEntry) {
        let (lane, position) = (source.lane, source.position);
        let at = self.entries.iter().position(|entry| (entry.lane, entry.position) == (lane, position));
        let is_new = at.is_none();
        let at = at.unwrap_or_else(|| {
            if self.entries.len() >= ENTRIES {
                self.entries.remove(0);
            }
            self.entries.push(PutOffEntry {
                lane,
                position,
                attempts: 0,
                due: 0,
                size: None,
                topic: None,
                exact: false,
                has_arrived: false,
                is_denied: false,
                is_told: false,
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[at];
        entry.due = now + (FIRST_MS << entry.attempts.min(10)).min(LONGEST_MS);
        (entry.attempts, entry.is_told) = (entry.attempts + 1, false);
        (is_new, entry)
    }

    /// Whether a message must wait. `is_like` tells that it is like one that is put off.
    pub(super) fn holds(&self, source: &SentFrom, is_like: impl Fn(&PutOffEntry) -> bool, now: u64) -> bool {
        let is_it = |entry: &&PutOffEntry| (entry.lane, entry.position) == (source.lane, source.position);
        match self.entries.iter().find(is_it) {
            Some(entry) => entry.due > now,
            None => self.entries.iter().any(is_like),
        }
    }

    /// Handles a connection that ended while this was the oldest unanswered message. Returns its entry if it is put off, and
    /// whether that is new. `got_through` tells that others were acknowledged on this connection.
    pub(super) fn ended(&mut self, source: &SentFrom, got_through: bool, now: u64) -> Option<(bool, &mut PutOffEntry)> {
        let (lane, position) = (source.lane, source.position);
        let ended = EndedAt::after(self.ended, source, got_through, self.trial);
        self.ended = Some(ended);
        let is_known = self.knows(lane, position);
        if !is_known && !got_through {
            // the others do not get through either
            self.entries.iter_mut().for_each(|entry| entry.due = entry.due.min(now));
        }
        let is_large = self.entries.iter().any(|entry| entry.size.is_some_and(|size| source.message.size() >= size));
        (is_known || ended.with_others >= STRIKES || got_through && is_large).then(|| self.add(source, now))
    }

    /// Puts a message off until then, because of its topic.
    pub(in crate::upstream::session) fn deny(&mut self, source: &SentFrom, topic: u64, due: u64) {
        if !self.knows(source.lane, source.position) {
            self.add(source, due);
        }
        if let Some(entry) = self.entry(source.lane, source.position) {
            (entry.topic, entry.due, entry.is_denied, entry.is_told) = (Some(topic), due, true, false);
        }
    }

    /// Whether a message is put off because of its topic.
    pub(in crate::upstream::session) fn is_denied(&self, lane: Lane, position: Position) -> bool {
        let mut entries = self.entries.iter().filter(|entry| entry.is_denied);
        entries.any(|entry| (entry.lane, entry.position) == (lane, position))
    }

    /// Lets an attempt follow at once for each topic.
    pub(in crate::upstream::session) fn try_denied(&mut self) {
        self.entries.iter_mut().filter(|entry| entry.is_denied).for_each(|entry| entry.due = 0);
    }

    /// Sets when a message that is put off is tried.
    pub(in crate::upstream::session) fn set_due(&mut self, (lane, position): (Lane, Position), due: u64) {
        if let Some(entry) = self.entry(lane, position) {
            entry.due = due;
        }
    }

    /// Sets the topic whose messages are like one that is put off.
    pub(in crate::upstream::session) fn set_topic(&mut self, (lane, position): (Lane, Position), topic: u64) {
        if let Some(entry) = self.entry(lane, position) {
            entry.topic = Some(topic);
        }
    }

    /// Records that a message has ended, with whatever outcome.
    pub(in crate::upstream::session) fn past(&mut self, lane: Lane, position: Position) {
        let before = self.entries.len();
        self.entries.retain(|entry| (entry.lane, entry.position) != (lane, position));
        self.is_news |= self.entries.len() < before;
        self.ended = self.ended.filter(|ended| ended.place != (lane, position));
    }

    /// Handles a new connection.
    pub(in crate::upstream::session) fn connected(&mut self) {
        self.is_news = true;
        self.entries.iter_mut().for_each(|entry| entry.is_told = false);
        self.begin_trial();
    }

    /// Handles a silence that large packets may be the reason of.
    pub(in crate::upstream::session) fn suspect_path(&mut self, now: u64) {
        self.small_until = now + LONGEST_MS;
    }

    /// Tells that the time is `now`.
    pub(in crate::upstream::session) fn time(&mut self, now: u64) {
        self.entries.iter_mut().for_each(|entry| entry.is_told |= entry.due <= now);
    }

    /// Whether nothing is put off.
    #[cfg(test)]
    pub(in crate::upstream::session) fn is_clear(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether anything is put off, connections keep ending at the same message, or the last one ended before a PUBREL was
    /// answered.
    pub(in crate::upstream::session) fn blames(&self) -> bool {
        self.entries.iter().any(|entry| !entry.is_denied)
            || self.at_release
            || self.ended.is_some_and(|ended| ended.ends > 1)
    }
}
