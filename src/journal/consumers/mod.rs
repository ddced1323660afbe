//! The consumers: what waits for each, their progress, which cursors have moved since they were written, and for whom to
//! read ahead.

mod ahead;
mod cursor;
mod news;
mod queue;
mod sizes;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use self::ahead::AheadOfAll;
pub(crate) use self::cursor::{CURSOR_LEN, Cursor, decode_cursors, encode_cursor};
pub(crate) use self::news::News;
pub(crate) use self::queue::{AHEAD_BYTES, FoundMessage, Queue};
use super::parts::Part;
use super::{AHEAD_ALL, CURSOR_AGE, CURSOR_EVERY, CURSOR_IDLE, ConsumerId, Limits};

#[derive(Debug, Default)]
pub(crate) struct ConsumerQueues {
    by_id: HashMap<ConsumerId, Queue>,
    by_name: HashMap<Box<str>, ConsumerId>,
    /// By their keys in records.
    by_key: HashMap<u64, ConsumerId>,
    next: u32,
    /// The consumers whose cursors have moved since they were written.
    moved: Vec<ConsumerId>,
    /// Since when there are such consumers.
    moved_since: Option<Instant>,
    /// Whether they are written with the next records, whatever their age.
    is_urgent: bool,
    /// The bytes that were read ahead for all of them.
    ahead: AheadOfAll,
    /// The consumers for which the reading thread must read ahead.
    fills: VecDeque<ConsumerId>,
}

impl ConsumerQueues {
    pub(crate) fn get(&self, id: ConsumerId) -> Option<&Queue> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ConsumerId) -> Option<&mut Queue> {
        self.by_id.get_mut(&id)
    }

    /// The consumer with this key in records.
    pub(crate) fn of_key(&self, key: u64) -> Option<&Queue> {
        self.by_id.get(self.by_key.get(&key)?)
    }

    /// The consumer with this key in records.
    pub(crate) fn of_key_mut(&mut self, key: u64) -> Option<&mut Queue> {
        self.by_id.get_mut(self.by_key.get(&key)?)
    }

    /// The id of the consumer with this key in records.
    pub(crate) fn id_of_key(&self, key: u64) -> Option<ConsumerId> {
        self.by_key.get(&key).copied()
    }

    /// The id of the consumer with this lasting name.
    pub(crate) fn id_of(&self, name: &str) -> Option<ConsumerId> {
        self.by_name.get(name).copied()
    }

    /// The part of the journal to which a consumer's messages count.
    pub(crate) fn part_of_key(&self, key: u64) -> Option<Part> {
        self.of_key(key).map(Queue::part)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConsumerId, &Queue)> {
        self.by_id.iter().map(|(id, queue)| (*id, queue))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.by_id.values_mut()
    }

    /// Creates a consumer whose next message has the ordinal `base + 1`.
    pub(crate) fn insert(&mut self, name: &str, key: u64, base: u64, limits: Limits) -> ConsumerId {
        let id = ConsumerId(self.next);
        self.next += 1;
        if let Some(old) = self.by_key.insert(key, id) {
            self.by_id.remove(&old);
        }
        if !name.is_empty() {
            self.by_name.insert(name.into(), id);
        }
        self.by_id.insert(id, Queue::new(name, key, base, limits, self.ahead.one()));
        id
    }

    /// Restores a lost name. Returns the consumer's key and its part, if the part has changed.
    pub(crate) fn rename(&mut self, id: ConsumerId, name: &str) -> Option<(u64, Part)> {
        let queue = self.by_id.get_mut(&id)?;
        let old = queue.part();
        queue.rename(name);
        self.by_name.insert(name.into(), id);
        (queue.part() != old).then_some((queue.key(), queue.part()))
    }

    pub(crate) fn forget(&mut self, id: ConsumerId) -> Option<Queue> {
        let queue = self.by_id.remove(&id)?;
        self.by_name.remove(queue.name());
        self.by_key.remove(&queue.key());
        Some(queue)
    }

    /// Adds a message for a consumer. Returns its key, the message's ordinal, and how many messages had to make room.
    pub(crate) fn accept(&mut self, id: ConsumerId, size: usize, boot_ms: u64) -> Option<(u64, u64, u64)> {
        let queue = self.by_id.get_mut(&id)?;
        let dropped = queue.cursor().dropped;
        let ordinal = queue.accept(size, boot_ms);
        let (key, dropped) = (queue.key(), queue.cursor().dropped - dropped);
        if queue.unsaved() > 0 {
            mark(queue, id, &mut self.moved, &mut self.moved_since);
        }
        Some((key, ordinal, dropped))
    }

    /// Records that the cursor on disk is outdated.
    pub(crate) fn mark_moved(&mut self, id: ConsumerId) {
        if let Some(queue) = self.by_id.get_mut(&id) {
            mark(queue, id, &mut self.moved, &mut self.moved_since);
        }
    }

    /// Like `mark_moved`, if the cursor has really moved. Returns whether it has, and whether it should be written soon.
    pub(crate) fn moved(&mut self, id: ConsumerId) -> (bool, bool) {
        let Some(queue) = self.by_id.get_mut(&id).filter(|queue| queue.unsaved() > 0) else { return (false, false) };
        let is_urgent = self.moved_since.is_none() || queue.unsaved() >= CURSOR_EVERY;
        mark(queue, id, &mut self.moved, &mut self.moved_since);
        (true, is_urgent)
    }

    /// Whether anything must be written at an orderly end.
    pub(crate) fn are_worth_saving(&self) -> bool {
        !self.moved.is_empty() || self.by_id.values().any(|queue| queue.waiting() > 0)
    }

    /// Has the cursors that have moved written now.
    pub(crate) fn save_moved(&mut self) {
        self.is_urgent = !self.moved.is_empty();
    }

    /// When cursors are written even if nothing else is.
    pub(crate) fn idle_until(&self) -> Option<Instant> {
        self.moved_since.map(|since| since + CURSOR_IDLE)
    }

    /// Whether a cursor must be written now.
    pub(crate) fn are_due(&self) -> bool {
        self.moved.iter().any(|id| self.by_id.get(id).is_some_and(|queue| queue.unsaved() >= CURSOR_EVERY))
    }

    /// The cursors that have moved, or all, in the format of records; `None` if it is not time to write them.
    pub(crate) fn take_cursors(&mut self, all: bool) -> Option<Vec<u8>> {
        let is_old = || self.moved_since.is_some_and(|since| since.elapsed() >= CURSOR_AGE);
        let is_time = all || std::mem::take(&mut self.is_urgent) || is_old() || self.are_due();
        if !is_time || (self.moved.is_empty() && !all) {
            return None;
        }
        let mut body = Vec::new();
        let mut moved = std::mem::take(&mut self.moved);
        if all {
            moved = self.by_id.keys().copied().collect();
        }
        for id in moved {
            if let Some(queue) = self.by_id.get_mut(&id) {
                queue.set_saved();
                encode_cursor(queue.key(), queue.cursor(), &mut body);
            }
        }
        self.moved_since = None;
        Some(body)
    }

    pub(crate) fn have_room_ahead(&self) -> bool {
        self.ahead.bytes() < AHEAD_ALL
    }

    /// Requests reading ahead for these consumers if it is needed, and returns whether it is.
    pub(crate) fn request_fills(&mut self, ids: &[ConsumerId]) -> bool {
        let mut any = false;
        for id in ids {
            if self.by_id.get_mut(id).is_some_and(Queue::asks_for_fill) {
                self.fills.push_back(*id);
                any = true;
            }
        }
        any
    }

    /// Requests again what could not be read for a consumer.
    pub(crate) fn fill_again(&mut self, id: ConsumerId) {
        self.fills.push_back(id);
    }

    /// The next consumer for which to read ahead.
    pub(crate) fn next_fill(&mut self) -> Option<ConsumerId> {
        self.fills.pop_front()
    }
}

fn mark(queue: &mut Queue, id: ConsumerId, moved: &mut Vec<ConsumerId>, since: &mut Option<Instant>) {
    if queue.set_moved() {
        moved.push(id);
    }
    since.get_or_insert_with(Instant::now);
}
