//! The consumers: what waits for each, how far each is, whose cursor has moved since it was written, and for whom is to be
//! read ahead.

mod cursor;
mod news;
mod queue;
mod sizes;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

pub(crate) use self::cursor::{CURSOR_LEN, Cursor, decode_cursors, encode_cursor};
pub(crate) use self::news::News;
pub(crate) use self::queue::{AHEAD_BYTES, Queue};
use super::parts::Part;
use super::{AHEAD_ALL, CURSOR_AGE, CURSOR_EVERY, CURSOR_IDLE, ConsumerId, Limits};

/// All consumers.
#[derive(Debug, Default)]
pub(crate) struct ConsumerQueues {
    by_id: HashMap<ConsumerId, Queue>,
    /// By lasting name.
    by_name: HashMap<Box<str>, ConsumerId>,
    /// By key in records.
    by_key: HashMap<u64, ConsumerId>,
    next: u32,
    /// Those whose cursors have moved since they were written.
    moved: Vec<ConsumerId>,
    /// Since when there are such.
    moved_since: Option<Instant>,
    /// Those that the reading thread shall read ahead for.
    fills: VecDeque<ConsumerId>,
}

impl ConsumerQueues {
    pub(crate) fn get(&self, id: ConsumerId) -> Option<&Queue> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ConsumerId) -> Option<&mut Queue> {
        self.by_id.get_mut(&id)
    }

    /// By its key in records.
    pub(crate) fn of_key(&self, key: u64) -> Option<&Queue> {
        self.by_id.get(self.by_key.get(&key)?)
    }

    /// By its key in records.
    pub(crate) fn of_key_mut(&mut self, key: u64) -> Option<&mut Queue> {
        self.by_id.get_mut(self.by_key.get(&key)?)
    }

    /// The consumer with this key in records.
    pub(crate) fn id_of_key(&self, key: u64) -> Option<ConsumerId> {
        self.by_key.get(&key).copied()
    }

    /// The consumer with this lasting name.
    pub(crate) fn id_of(&self, name: &str) -> Option<ConsumerId> {
        self.by_name.get(name).copied()
    }

    /// The part of the journal that what waits under this key counts for.
    pub(crate) fn part_of_key(&self, key: u64) -> Option<Part> {
        self.of_key(key).map(Queue::part)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConsumerId, &Queue)> {
        self.by_id.iter().map(|(id, queue)| (*id, queue))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.by_id.values_mut()
    }

    /// The lasting names that are known.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Box<str>> {
        self.by_name.keys()
    }

    /// Makes a consumer whose next message has the ordinal `base + 1`.
    pub(crate) fn insert(&mut self, name: &str, key: u64, base: u64, limits: Limits) -> ConsumerId {
        let id = ConsumerId(self.next);
        self.next += 1;
        if let Some(old) = self.by_key.insert(key, id) {
            self.by_id.remove(&old);
        }
        if !name.is_empty() {
            self.by_name.insert(name.into(), id);
        }
        self.by_id.insert(id, Queue::new(name, key, base, limits));
        id
    }

    /// A consumer's name was lost and is known again. Says its key and the part that it counts for from now on, if that is
    /// another one.
    pub(crate) fn rename(&mut self, id: ConsumerId, name: &str) -> Option<(u64, Part)> {
        let queue = self.by_id.get_mut(&id)?;
        let old = queue.part();
        queue.rename(name);
        self.by_name.insert(name.into(), id);
        (queue.part() != old).then_some((queue.key(), queue.part()))
    }

    /// Takes a consumer out.
    pub(crate) fn forget(&mut self, id: ConsumerId) -> Option<Queue> {
        let queue = self.by_id.remove(&id)?;
        self.by_name.remove(queue.name());
        self.by_key.remove(&queue.key());
        Some(queue)
    }

    /// A new message for a consumer: its key, the message's ordinal, and how many messages had to make room for it.
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

    /// The consumer's cursor is not on disk any more as it is.
    pub(crate) fn mark_moved(&mut self, id: ConsumerId) {
        if let Some(queue) = self.by_id.get_mut(&id) {
            mark(queue, id, &mut self.moved, &mut self.moved_since);
        }
    }

    /// The same if it has really moved; says whether it has, and whether its cursor ought to be written soon.
    pub(crate) fn moved(&mut self, id: ConsumerId) -> (bool, bool) {
        let Some(queue) = self.by_id.get_mut(&id).filter(|queue| queue.unsaved() > 0) else { return (false, false) };
        let is_urgent = self.moved_since.is_none() || queue.unsaved() >= CURSOR_EVERY;
        mark(queue, id, &mut self.moved, &mut self.moved_since);
        (true, is_urgent)
    }

    /// Whether anything is worth writing at an orderly end.
    pub(crate) fn are_worth_saving(&self) -> bool {
        !self.moved.is_empty() || self.by_id.values().any(|queue| queue.waiting() > 0)
    }

    /// When cursors are written even if nothing else is.
    pub(crate) fn idle_until(&self) -> Option<Instant> {
        self.moved_since.map(|since| since + CURSOR_IDLE)
    }

    /// Whether a cursor is due, whatever else is written.
    pub(crate) fn are_due(&self) -> bool {
        self.moved.iter().any(|id| self.by_id.get(id).is_some_and(|queue| queue.unsaved() >= CURSOR_EVERY))
    }

    /// The cursors that have moved, or all, as records hold them, for writing; `None`: it is not time for that.
    pub(crate) fn take_cursors(&mut self, all: bool) -> Option<Vec<u8>> {
        let is_time = all || self.moved_since.is_some_and(|since| since.elapsed() >= CURSOR_AGE) || self.are_due();
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

    /// Whether more may be read ahead.
    pub(crate) fn have_room_ahead(&self) -> bool {
        self.by_id.values().map(Queue::ready_bytes).sum::<usize>() < AHEAD_ALL
    }

    /// Asks for reading ahead where it is wanted; says whether it is.
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

    /// Whom to read ahead for next.
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
