//! The space of the journal if messages are refused instead of dropped: how much is known to be left for whom, and which
//! messages had no room at the last check.

use std::time::Instant;

use tracing::{error, info};

use super::consumers::{ConsumerQueues, Queue};
use super::pace::LogPace;
use super::parts::{PARTS, PartHolder};
use crate::access::owner::ConsumerOwner;

/// Who shares a part, at the last check.
#[derive(Debug, Default)]
pub(crate) enum Sharing {
    /// Nobody: it has one holder at most.
    #[default]
    Alone,
    /// Nobody has more than half of what is in it. That may have changed when there is less room than this, in bytes.
    Evenly(u64),
    /// One holder has more than half of what is in it.
    Unevenly {
        /// The lasting name of one of the consumers of this holder.
        name: String,
        /// The bytes that it leaves to others.
        reserve: u64,
    },
}

#[derive(Debug)]
struct FullFor([Option<u64>; 1 << (2 * PARTS)]);

impl Default for FullFor {
    fn default() -> FullFor {
        FullFor([None; 1 << (2 * PARTS)])
    }
}

/// What is known of the space.
#[derive(Debug, Default)]
pub(crate) struct SpaceLeft {
    /// The bytes that can certainly be used, by part.
    parts: [u64; PARTS],
    /// The bytes that can certainly be used in all.
    all: u64,
    /// Who shares each part.
    sharing: [Sharing; PARTS],
    /// The size of messages that had no room at the last check, if nothing has changed since. The index is a set of parts
    /// with a bit for each, and another one if the message is for whoever has most of it.
    full_for: FullFor,
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
    /// Whether a message for these consumers is known to have room. `is_fresh` says that nothing has changed since the check.
    pub(crate) fn has<'a>(&self, len: u64, is_fresh: bool, mut queues: impl Iterator<Item = &'a Queue>) -> bool {
        self.all >= len
            && queues.all(|queue| {
                let Some(room) = self.parts[queue.part() as usize].checked_sub(len) else { return false };
                match &self.sharing[queue.part() as usize] {
                    Sharing::Alone => true,
                    Sharing::Evenly(least) => is_fresh || room >= *least,
                    // names are compared only where it matters
                    Sharing::Unevenly { reserve, .. } => room >= *reserve || !self.has_most(queue),
                }
            })
    }

    fn has_most(&self, queue: &Queue) -> bool {
        match &self.sharing[queue.part() as usize] {
            Sharing::Unevenly { name, .. } => PartHolder::of(name) == PartHolder::of(queue.name()),
            _ => false,
        }
    }

    /// The parts of these consumers and whether each has most of its part, a bit for each.
    pub(crate) fn kinds<'a>(&self, queues: impl Iterator<Item = &'a Queue>) -> usize {
        queues.fold(0, |kinds, queue| {
            let most = if self.has_most(queue) { 1 << PARTS } else { 0 };
            kinds | (1 | most) << queue.part() as usize
        })
    }

    /// Subtracts the room of a message.
    pub(crate) fn take(&mut self, len: u64) {
        self.parts.iter_mut().chain([&mut self.all]).for_each(|room| *room = room.saturating_sub(len));
    }

    /// Whether a message for consumers of these [kinds](SpaceLeft::kinds) is known to have no room.
    pub(crate) fn is_full_for(&self, len: u64, kinds: usize) -> bool {
        self.full_for.0[kinds].is_some_and(|least| least <= len)
    }

    /// Records the result of a check: the bytes for each part, and in all, and who shares each.
    pub(crate) fn looked(&mut self, (parts, all): ([u64; PARTS], u64), sharing: [Sharing; PARTS]) {
        (self.parts, self.all, self.sharing) = (parts, all, sharing);
        #[cfg(test)]
        {
            self.looks += 1;
        }
    }

    /// Records whether the message of the check has room.
    pub(crate) fn found(&mut self, has_space: bool, len: u64, kinds: usize) {
        self.was_full = !has_space;
        if !has_space {
            self.full_for.0[kinds] = Some(len);
        }
    }

    /// Records that space may have been released.
    pub(crate) fn changed(&mut self) {
        self.full_for = Default::default();
    }

    /// Forgets the last check, because the parts have changed.
    pub(crate) fn forget(&mut self) {
        (self.parts, self.all, self.full_for, self.sharing) = Default::default();
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
