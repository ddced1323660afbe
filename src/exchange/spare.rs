//! Room beyond the bound of a full queue, for publishers that have not filled it.
//!
//! While a queue is full, whoever fills it waits for its reader. Others publish into the same queue now and then, because the
//! reader has asked for everything, and need not wait with it: they share some room beyond the bound, and half of what the
//! reader takes meanwhile, so that the queue becomes shorter nevertheless. Nobody may have more than a quarter of what is
//! left afterwards. So one publisher may use a fifth of the room, and many that use all they can leave something for others.

use std::collections::HashMap;

use crate::message::Origin;

/// The room beyond the bound of one queue.
const ROOM: Amount = Amount { messages: 2048, bytes: 2 << 20 };
/// The part of what is left, as its divisor, that one publisher may have.
const SHARE: usize = 4;
/// The part of what the reader takes, as its divisor, that makes more room.
const TAKEN: usize = 2;
/// The most messages beyond the bounds of all full queues together. A short message takes about 350 bytes.
const IN_ALL: usize = 64 << 10;
/// A batch of more messages comes from a flood.
const MOST_AT_ONCE: usize = 64;
/// The most publishers that have something beyond the bound of one queue.
const PUBLISHERS: usize = 1024;

/// A number of messages with their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// What publishers have put into a queue since it is full.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    put: Amount,
    by: HashMap<Origin, Amount>,
    /// What the reader must have taken so that one of the publishers that found no room finds it.
    again_at: Option<Amount>,
}

impl Amount {
    fn plus(self, other: Amount) -> Amount {
        Amount { messages: self.messages.saturating_add(other.messages), bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn minus(self, other: Amount) -> Amount {
        Amount { messages: self.messages.saturating_sub(other.messages), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    fn times(self, factor: usize) -> Amount {
        Amount { messages: self.messages.saturating_mul(factor), bytes: self.bytes.saturating_mul(factor) }
    }

    fn least(self, other: Amount) -> Amount {
        Amount { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }

    fn is_within(self, most: Amount) -> bool {
        self.messages <= most.messages && self.bytes <= most.bytes
    }
}

impl Spare {
    /// Whether this publisher may put a batch into the queue. The reader has `taken` this since the queue is full, and so
    /// many queues are `full`.
    pub(crate) fn has_room(&mut self, publisher: Origin, batch: Amount, taken: Amount, full: usize) -> bool {
        let room = Amount { messages: ROOM.messages.min(IN_ALL / full.max(1)), ..ROOM };
        let is_counted = self.by.len() < PUBLISHERS || self.by.contains_key(&publisher);
        if batch.messages > MOST_AT_ONCE || !is_counted {
            return false;
        }
        // all that is put into the queue with this batch, and what must be left of the room for others
        let needed = self.put.plus(batch).plus(self.of(publisher).plus(batch).times(SHARE));
        let again_at = needed.minus(room).times(TAKEN);
        let has_room = again_at.is_within(taken);
        if !has_room {
            self.again_at = Some(self.again_at.map_or(again_at, |earlier| earlier.least(again_at)));
        }
        has_room
    }

    /// Counts a batch that a publisher puts into the queue.
    pub(crate) fn put(&mut self, publisher: Origin, batch: Amount) {
        self.put = self.put.plus(batch);
        *self.by.entry(publisher).or_default() = self.of(publisher).plus(batch);
    }

    /// Notes a batch that was on its way when the queue became full, unless it is known. Returns whether its publisher may
    /// put more into the queue.
    pub(crate) fn note(&mut self, publisher: Origin, batch: Amount) -> bool {
        if self.by.contains_key(&publisher) {
            return true;
        }
        let may = batch.messages <= MOST_AT_ONCE && self.by.len() < PUBLISHERS;
        if may {
            self.put(publisher, batch);
        }
        may
    }

    /// Whether a publisher that found no room is to try again.
    pub(crate) fn is_again(&mut self, taken: impl FnOnce() -> Amount) -> bool {
        let is_again = self.again_at.is_some_and(|again_at| again_at.is_within(taken()));
        if is_again {
            self.again_at = None;
        }
        is_again
    }

    fn of(&self, publisher: Origin) -> Amount {
        self.by.get(&publisher).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Amount = Amount { messages: 0, bytes: 0 };

    fn of(messages: usize) -> Amount {
        Amount { messages, bytes: 100 * messages }
    }

    /// Puts messages into the queue until there is no room, and returns their number.
    fn fill(spare: &mut Spare, publisher: &str, taken: Amount) -> usize {
        let (publisher, mut count) = (Origin::client(publisher), 0);
        while spare.has_room(publisher, of(1), taken, 1) {
            spare.put(publisher, of(1));
            count += 1;
        }
        count
    }

    #[test]
    fn whoever_uses_all_it_can_leaves_something_for_others() {
        let mut spare = Spare::default();
        assert_eq!(fill(&mut spare, "first", NOTHING), ROOM.messages / (SHARE + 1));
        for number in 0..14 {
            assert!(fill(&mut spare, &number.to_string(), NOTHING) > 0);
        }
        assert!(fill(&mut spare, "innocent", NOTHING) >= 10);
        assert!(spare.put.messages < ROOM.messages);
        assert_eq!(fill(&mut spare, "first", of(400)), 0, "what the reader has taken is for others first");
        assert!(fill(&mut spare, "innocent", of(400)) >= 10);
    }

    #[test]
    fn a_queue_becomes_shorter_whatever_is_put_into_it() {
        let (mut spare, mut taken) = (Spare::default(), NOTHING);
        for number in 0..20_000 {
            taken = taken.plus(of(1));
            fill(&mut spare, &(number % 300).to_string(), taken);
        }
        assert!(spare.put.messages <= ROOM.messages + taken.messages / TAKEN, "{:?} beside {taken:?}", spare.put);
    }

    #[test]
    fn floods_have_no_share_and_many_full_queues_have_little_room() {
        let (mut spare, publisher) = (Spare::default(), Origin::client("p"));
        assert!(!spare.has_room(publisher, of(MOST_AT_ONCE + 1), NOTHING, 1));
        assert!(spare.has_room(publisher, of(MOST_AT_ONCE), NOTHING, 1));
        assert!(!spare.has_room(publisher, of(MOST_AT_ONCE), NOTHING, 256));
        assert!(spare.has_room(publisher, of(20), NOTHING, 256));
        assert!(!spare.has_room(publisher, Amount { messages: 1, bytes: ROOM.bytes / SHARE }, NOTHING, 1));
        assert!(!spare.note(publisher, of(MOST_AT_ONCE + 1)), "it fills the queue");
        assert!(spare.note(publisher, of(MOST_AT_ONCE)) && spare.put == of(MOST_AT_ONCE));
        assert!(spare.note(publisher, of(1000)) && spare.put == of(MOST_AT_ONCE), "it was counted before");
        for number in 0..2 * PUBLISHERS {
            spare.note(Origin::client(&number.to_string()), of(0));
        }
        assert_eq!(spare.by.len(), PUBLISHERS);
    }

    #[test]
    fn who_finds_no_room_tries_again_when_the_reader_has_taken_enough() {
        let mut spare = Spare::default();
        fill(&mut spare, "p", of(100));
        assert!(!spare.is_again(|| of(100)));
        assert!(spare.is_again(|| of(100 + TAKEN * (SHARE + 1))));
        assert!(fill(&mut spare, "p", of(100 + TAKEN * (SHARE + 1))) > 0);
        assert!(spare.is_again(|| of(1000)) && !spare.is_again(|| of(1000)), "nobody waits any more");
    }
}
