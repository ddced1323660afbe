//! Who pays for groups, and how many messages may wait in the groups of one owner.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::message::{Origin, Owner};

/// The most messages that wait in all groups of one owner, and for them; a few may always wait. Each takes a place in a
/// queue, however many groups share the message.
pub(super) const MOST_OF_AN_OWNER: usize = 128 << 10;
/// The messages that may wait in a group, or for the groups with one filter, even if all groups of the owner have as many as
/// they may have.
pub(super) const ALWAYS: usize = 8;
/// A queue with more room than this is given back when it is empty.
pub(super) const SMALL: usize = 64;

/// Whoever pays for groups.
#[derive(Debug)]
pub(crate) struct GroupOwner {
    owner: Owner,
    /// The number of messages that wait in its groups and for them.
    pub(super) waiting: AtomicUsize,
}

impl GroupOwner {
    pub(super) fn new(owner: Owner) -> GroupOwner {
        GroupOwner { owner, waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// Its origin at the meter.
    pub(super) fn origin(&self) -> Origin {
        Origin::groups(self.owner)
    }

    /// Counts messages that wait instead of others.
    pub(super) fn changed(&self, before: usize, now: usize) {
        if before != now {
            self.waiting.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Whether as much waits as may.
    pub(super) fn has_too_many(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > MOST_OF_AN_OWNER
    }
}
