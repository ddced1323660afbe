//! The disk space that is ours where messages are refused rather than given up: how much is known to be left, for whom, and
//! for what there was none when somebody looked.

use std::time::Instant;

use tracing::{error, info};

use super::consumers::{ConsumerQueues, Queue};
use super::pace::LossPace;
use super::parts::{PARTS, Part};
use crate::access::owner::ConsumerOwner;

/// What is known of the space.
#[derive(Debug, Default)]
pub(crate) struct SpaceLeft {
    /// Bytes that it takes at least, by part.
    parts: [u64; PARTS],
    /// Bytes that it takes at least in all.
    all: u64,
    /// Messages as large as this one had no room when that was looked at last, and nothing has changed since: by whose they
    /// were, a bit for each part.
    full_for: [Option<u64>; 1 << PARTS],
    /// Whether there was none when somebody looked last.
    was_full: bool,
    /// No file can be written to without giving up messages that wait, and these must not be given up.
    is_full: bool,
    /// Lines in the log about having no room.
    lines: LossPace,
    /// The last of them was not followed by one that there is room again.
    is_said: bool,
    /// How often it was looked at.
    #[cfg(test)]
    looks: u64,
}

impl SpaceLeft {
    /// Whether a message that is for these parts is known to have room.
    pub(crate) fn has(&self, len: u64, mut parts: impl Iterator<Item = Part>) -> bool {
        self.all >= len && parts.all(|part| self.parts[part as usize] >= len)
    }

    /// A message takes its room, whoever it is for.
    pub(crate) fn take(&mut self, len: u64) {
        self.parts.iter_mut().chain([&mut self.all]).for_each(|room| *room = room.saturating_sub(len));
    }

    /// Whether a message that is for these parts, a bit for each, is known to have no room.
    pub(crate) fn is_full_for(&self, len: u64, parts: usize) -> bool {
        self.full_for[parts].is_some_and(|least| least <= len)
    }

    /// Somebody has looked: bytes for each part, and in all.
    pub(crate) fn looked(&mut self, (parts, all): ([u64; PARTS], u64)) {
        (self.parts, self.all) = (parts, all);
        #[cfg(test)]
        {
            self.looks += 1;
        }
    }

    /// Whether the message that was looked for has room.
    pub(crate) fn found(&mut self, has_space: bool, len: u64, parts: usize) {
        self.was_full = !has_space;
        if !has_space {
            self.full_for[parts] = Some(len);
        }
    }

    /// Something may have set space free.
    pub(crate) fn changed(&mut self) {
        self.full_for = Default::default();
    }

    /// Whom space is kept free for has changed: it must be looked at anew.
    pub(crate) fn forget(&mut self) {
        (self.parts, self.all, self.full_for) = Default::default();
    }

    /// The writing thread has found that no file can be written to, or has one again.
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

    /// Has the log speak of it if the space is used up, or is not any more; so many messages were refused.
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
