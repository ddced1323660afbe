//! The space of the journal if messages are refused instead of dropped: how much is known to be left for whom, and which
//! messages had no room at the last check.

use std::time::Instant;

use tracing::{error, info};

use super::consumers::{ConsumerQueues, Queue};
use super::pace::LogPace;
use super::parts::{PARTS, Part};
use crate::access::owner::ConsumerOwner;

/// What is known of the space.
#[derive(Debug, Default)]
pub(crate) struct SpaceLeft {
    /// The bytes that can certainly be used, by part.
    parts: [u64; PARTS],
    /// The bytes that can certainly be used in all.
    all: u64,
    /// The size of messages that had no room at the last check, if nothing has changed since. The index is a set of parts
    /// with a bit for each.
    full_for: [Option<u64>; 1 << PARTS],
    /// Whether there was no room at the last check.
    was_full: bool,
    /// Whether no file can be written without dropping waiting messages, which is not allowed.
    is_full: bool,
    /// Limits log lines about missing room.
    lines: LogPace,
    /// Whether the last line about missing room was not followed by one about new room.
    is_said: bool,
    /// The number of checks.
    #[cfg(test)]
    looks: u64,
}

impl SpaceLeft {
    /// Whether a message for these parts is known to have room.
    pub(crate) fn has(&self, len: u64, mut parts: impl Iterator<Item = Part>) -> bool {
        self.all >= len && parts.all(|part| self.parts[part as usize] >= len)
    }

    /// Subtracts the room of a message.
    pub(crate) fn take(&mut self, len: u64) {
        self.parts.iter_mut().chain([&mut self.all]).for_each(|room| *room = room.saturating_sub(len));
    }

    /// Whether a message for these parts, a bit for each, is known to have no room.
    pub(crate) fn is_full_for(&self, len: u64, parts: usize) -> bool {
        self.full_for[parts].is_some_and(|least| least <= len)
    }

    /// Records the result of a check: the bytes for each part, and in all.
    pub(crate) fn looked(&mut self, (parts, all): ([u64; PARTS], u64)) {
        (self.parts, self.all) = (parts, all);
        #[cfg(test)]
        {
            self.looks += 1;
        }
    }

    /// Records whether the message of the check has room.
    pub(crate) fn found(&mut self, has_space: bool, len: u64, parts: usize) {
        self.was_full = !has_space;
        if !has_space {
            self.full_for[parts] = Some(len);
        }
    }

    /// Records that space may have been released.
    pub(crate) fn changed(&mut self) {
        self.full_for = Default::default();
    }

    /// Forgets the last check, because the parts have changed.
    pub(crate) fn forget(&mut self) {
        (self.parts, self.all, self.full_for) = Default::default();
    }

    /// Records whether the writing thread finds no file to write to.
    pub(crate) fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    /// Whether the writing thread waits for space.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether messages are refused.
    pub(crate) fn refuses(&self) -> bool {
        self.is_full || self.was_full
    }

    /// Logs when the space is used up and when there is space again. `refused` is the number of refused messages.
    pub(crate) fn say(&mut self, is_full: bool, refused: u64, queues: &ConsumerQueues) {
        if !is_full {
            if std::mem::take(&mut self.is_said) {
                info!("journal: there is room again");
            }
            return;
        }
        if !self.lines.admits(1, Instant::now()) {
            return;
        }
        self.is_said = true;
        let largest = queues.iter().map(|(_, queue)| queue).max_by_key(|queue| queue.bytes());
        let waiting = largest.map_or(0, Queue::waiting);
        let owner = ConsumerOwner::of(largest.map_or("", Queue::name));
        error!(
            refused,
            "journal: full (journal.max_size), most of it with {waiting} messages that wait for {owner}: \
             messages that must be kept are refused until there is room"
        );
    }

    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.looks
    }
}
