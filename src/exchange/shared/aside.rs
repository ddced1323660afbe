//! Messages of a group that wait for some of its members while the others go on: for those that have no room, and for
//! those that are away.
//!
//! Both are few, because the others' messages that are settled meanwhile stay in the journal's list of those in hand.

use std::collections::{BTreeMap, VecDeque};

use crate::exchange::inbox::InboxLimits;
use crate::journal::Delivery;
use crate::message::Message;

/// The most messages that wait in either way ...
const MOST: usize = 64;
/// ... and the bytes with which no more are added.
const MOST_BYTES: usize = 256 << 10;
/// How many messages the group may go on beyond one that waits for a member that is away.
const FARTHEST: u64 = 256;

/// The next message of a group.
#[derive(Debug)]
pub(super) enum GroupNext {
    Kept(Delivery),
    InMemory(Message),
}

impl GroupNext {
    pub(super) fn message(&self) -> &Message {
        match self {
            GroupNext::Kept(delivery) => &delivery.message,
            GroupNext::InMemory(message) => message,
        }
    }
}

/// Messages that were passed over, because no member that may receive them has room. The oldest is first.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    queue: VecDeque<GroupNext>,
    bytes: usize,
}

impl PassedOver {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < MOST && self.bytes < MOST_BYTES
    }

    pub(super) fn push(&mut self, next: GroupNext) {
        self.bytes += next.message().size();
        self.queue.push_back(next);
    }

    pub(super) fn take(&mut self) -> VecDeque<GroupNext> {
        self.bytes = 0;
        std::mem::take(&mut self.queue)
    }
}

/// A kept message that waits for a member that is away.
#[derive(Debug)]
struct ApartDelivery {
    delivery: Delivery,
    /// The bytes that the group had come across when it was added.
    at_bytes: u64,
}

/// Kept messages that only members that are away may receive, by ordinal. They stay unsettled in the journal.
#[derive(Debug, Default)]
pub(super) struct SetApart {
    by_ordinal: BTreeMap<u64, ApartDelivery>,
    bytes: usize,
    /// The newest ordinal that the group has come across, and the bytes of all messages up to it.
    newest: (u64, u64),
}

impl SetApart {
    /// Notes how far the group has come in the journal.
    pub(super) fn note(&mut self, delivery: &Delivery) {
        if delivery.ordinal > self.newest.0 {
            self.newest = (delivery.ordinal, self.newest.1 + delivery.message.size() as u64);
        }
    }

    pub(super) fn add(&mut self, delivery: Delivery) {
        self.bytes += delivery.message.size();
        let at_bytes = self.newest.1;
        self.by_ordinal.insert(delivery.ordinal, ApartDelivery { delivery, at_bytes });
    }

    /// Takes out the oldest message if it cannot wait any longer, because too many do, or so many have come after it
    /// that the journal's limits would soon drop it.
    pub(super) fn pop_due(&mut self, limits: InboxLimits, is_short: impl Fn() -> bool) -> Option<Delivery> {
        let first = self.by_ordinal.first_entry()?;
        let is_far = self.newest.0 - *first.key().min(&self.newest.0) >= FARTHEST.min(limits.messages as u64 / 2)
            || self.newest.1 - first.get().at_bytes >= limits.bytes as u64 / 2;
        let ordinal = *first.key();
        let is_due = is_far || self.by_ordinal.len() > MOST || self.bytes > MOST_BYTES || is_short();
        if is_due { self.remove(ordinal) } else { None }
    }

    fn remove(&mut self, ordinal: u64) -> Option<Delivery> {
        let ApartDelivery { delivery, .. } = self.by_ordinal.remove(&ordinal)?;
        self.bytes -= delivery.message.size();
        Some(delivery)
    }

    /// Takes out the messages on these topics.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&str) -> bool) -> Vec<Delivery> {
        let is_it = |apart: &ApartDelivery| is_wanted(apart.delivery.message.view().topic());
        let wanted = self.by_ordinal.iter().filter(|(_, apart)| is_it(apart)).map(|(ordinal, _)| *ordinal);
        let wanted: Vec<u64> = wanted.collect();
        wanted.into_iter().filter_map(|ordinal| self.remove(ordinal)).collect()
    }
}
