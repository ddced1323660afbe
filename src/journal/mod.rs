//! What waits: messages for consumers that must get them whether they are connected or not, each upstream and each
//! persistent session being one consumer.
//!
//! One [`Journal::append`] serves all consumers of a message. Every consumer reads in the order of appending, settles
//! what it is done with, and after a break reads again from its oldest unsettled message. Bounds are per consumer; what
//! they push out is counted and can be read.
//!
//! This journal lives in memory and is bounded by its settings: it survives the loss of every connection, not the end
//! of the process.

pub mod settings;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::message::Message;

/// A consumer of the journal, for this run of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub u32);

/// Place of a record in the journal: later records have greater places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// What to do with a new message when its consumer's backlog is at its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The oldest waiting message makes room.
    #[default]
    DropOldest,
    /// The new message is not accepted.
    Refuse,
}

/// Bounds of one consumer's backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages that wait.
    pub messages: usize,
    /// Most bytes that wait, as [`Message::size`] counts them.
    pub bytes: usize,
    /// What gives way.
    pub when_full: WhenFull,
}

/// The journal does not accept a message: a consumer that refuses is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is full")]
pub struct Full;

/// What waits for a consumer, and what became of the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages ever accepted for it: settled + dropped + waiting.
    pub accepted: u64,
    /// Messages it settled.
    pub settled: u64,
    /// Messages that its bounds pushed out.
    pub dropped: u64,
    /// Messages that wait, in flight included.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Boot clock, in milliseconds, of the oldest that waits.
    pub oldest_boot_ms: Option<u64>,
}

/// A message for a consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its place, for [`Reader::settle`].
    pub position: Position,
    /// Its number among this consumer's messages, from 1 on, the same after every rewind.
    pub ordinal: u64,
    /// The message.
    pub message: Message,
}

#[derive(Debug)]
struct Queue {
    limits: Limits,
    waiting: VecDeque<Delivery>,
    settled_early: BTreeSet<Position>,
    next_read: Position,
    counts: Backlog,
    changed: Arc<Notify>,
}

impl Queue {
    fn is_full_for(&self, size: usize) -> bool {
        self.waiting.len() >= self.limits.messages || self.counts.bytes + size > self.limits.bytes
    }

    fn pop_oldest(&mut self) -> Option<Delivery> {
        let delivery = self.waiting.pop_front()?;
        self.counts.bytes -= delivery.message.size();
        Some(delivery)
    }

    fn push(&mut self, position: Position, message: Message) {
        while !self.waiting.is_empty() && self.is_full_for(message.size()) {
            if let Some(oldest) = self.pop_oldest() {
                if self.settled_early.remove(&oldest.position) {
                    self.counts.settled += 1;
                } else {
                    self.counts.dropped += 1;
                }
            }
        }
        self.counts.accepted += 1;
        self.counts.bytes += message.size();
        self.waiting.push_back(Delivery { position, ordinal: self.counts.accepted, message });
        self.changed.notify_one();
    }

    fn settle(&mut self, position: Position) {
        if self.waiting.front().is_none_or(|oldest| oldest.position > position) {
            return;
        }
        self.settled_early.insert(position);
        while let Some(oldest) = self.waiting.front() {
            if !self.settled_early.remove(&oldest.position) {
                break;
            }
            self.pop_oldest();
            self.counts.settled += 1;
        }
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    next_consumer: u32,
    names: HashMap<Box<str>, ConsumerId>,
    queues: HashMap<ConsumerId, Queue>,
}

/// The journal, shared by those who append and those who read.
#[derive(Clone, Debug)]
pub struct Journal {
    state: Arc<Mutex<State>>,
    synced: watch::Sender<Position>,
}

impl Default for Journal {
    fn default() -> Self {
        Journal { state: Arc::default(), synced: watch::Sender::new(Position(0)) }
    }
}

impl Journal {
    /// The consumer with this lasting name (`upstream/home`, `session/esp-loft`), known from now on.
    pub fn register(&self, name: &str, limits: Limits) -> ConsumerId {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(id) = state.names.get(name) {
            if let Some(queue) = state.queues.get_mut(id) {
                queue.limits = limits;
            }
            return *id;
        }
        let id = ConsumerId(state.next_consumer);
        state.next_consumer += 1;
        state.names.insert(name.into(), id);
        let queue = Queue {
            limits,
            waiting: VecDeque::new(),
            settled_early: BTreeSet::new(),
            next_read: Position(0),
            counts: Backlog::default(),
            changed: Arc::default(),
        };
        state.queues.insert(id, queue);
        id
    }

    /// Forgets a consumer and what waits for it.
    pub fn remove(&self, id: ConsumerId) -> Backlog {
        let mut state = self.state.lock();
        state.names.retain(|_, known| *known != id);
        state.queues.remove(&id).map(|queue| queue.counts).unwrap_or_default()
    }

    /// Appends a message for `consumers`. Never waits; the message is safe once [`Journal::synced`] has reached the
    /// place returned. Either all consumers get it or, where one of them refuses, none.
    pub fn append(&self, message: &Message, consumers: &[ConsumerId]) -> Result<Position, Full> {
        let mut state = self.state.lock();
        let refused = |id: &ConsumerId| {
            state
                .queues
                .get(id)
                .is_some_and(|queue| queue.limits.when_full == WhenFull::Refuse && queue.is_full_for(message.size()))
        };
        if consumers.iter().any(refused) {
            return Err(Full);
        }
        let kept = message.to_owned_memory();
        state.next += 1;
        let position = Position(state.next);
        for id in consumers {
            if let Some(queue) = state.queues.get_mut(id) {
                queue.push(position, kept.clone());
            }
        }
        drop(state);
        self.synced.send_replace(position);
        Ok(position)
    }

    /// The greatest place up to which all is safe.
    pub fn synced(&self) -> watch::Receiver<Position> {
        self.synced.subscribe()
    }

    /// Reads for a consumer, from its oldest unsettled message on. One reader at a time.
    pub fn reader(&self, id: ConsumerId) -> Reader {
        let mut state = self.state.lock();
        let changed = state.queues.get(&id).map(|queue| queue.changed.clone()).unwrap_or_default();
        if let Some(queue) = state.queues.get_mut(&id) {
            queue.next_read = Position(0);
        }
        Reader { journal: self.clone(), id, changed }
    }

    /// What waits for a consumer.
    pub fn backlog(&self, id: ConsumerId) -> Backlog {
        let state = self.state.lock();
        let Some(queue) = state.queues.get(&id) else { return Backlog::default() };
        Backlog {
            messages: queue.waiting.len(),
            oldest_boot_ms: queue.waiting.front().map(|delivery| delivery.message.view().boot_ms()),
            ..queue.counts
        }
    }
}

/// Reads the journal for one consumer.
#[derive(Debug)]
pub struct Reader {
    journal: Journal,
    id: ConsumerId,
    changed: Arc<Notify>,
}

impl Reader {
    /// The next message, if there is one yet.
    pub fn try_next(&mut self) -> Option<Delivery> {
        let mut state = self.journal.state.lock();
        let queue = state.queues.get_mut(&self.id)?;
        let from = queue.next_read;
        let at = queue.waiting.partition_point(|delivery| delivery.position <= from);
        let delivery = queue.waiting.range(at..).find(|delivery| !queue.settled_early.contains(&delivery.position));
        let delivery = delivery.cloned()?;
        queue.next_read = delivery.position;
        Some(delivery)
    }

    /// Waits until [`Reader::try_next`] may have something new. Safe to cancel.
    pub async fn ready(&self) {
        self.changed.notified().await;
    }

    /// The consumer is done with the message at this place, in any order.
    pub fn settle(&mut self, position: Position) {
        let mut state = self.journal.state.lock();
        if let Some(queue) = state.queues.get_mut(&self.id) {
            queue.settle(position);
        }
    }

    /// Reads again from the oldest unsettled message on.
    pub fn rewind(&mut self) {
        let mut state = self.journal.state.lock();
        if let Some(queue) = state.queues.get_mut(&self.id) {
            queue.next_read = Position(0);
        }
    }

    /// What waits for this consumer.
    pub fn backlog(&self) -> Backlog {
        self.journal.backlog(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Origin, Qos};

    fn message(payload: &str) -> Message {
        Message::new(&Draft {
            topic: "t",
            payload: payload.as_bytes(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: &[],
            expiry: None,
            hops: 0,
            boot_ms: 7,
            origin: Origin::gateway(),
        })
    }

    fn limits(messages: usize, when_full: WhenFull) -> Limits {
        Limits { messages, bytes: 1 << 20, when_full }
    }

    fn read_all(reader: &mut Reader) -> Vec<(u64, String)> {
        std::iter::from_fn(|| reader.try_next())
            .map(|d| (d.ordinal, String::from_utf8(d.message.view().payload().to_vec()).unwrap()))
            .collect()
    }

    #[test]
    fn what_is_not_settled_is_read_again() {
        let journal = Journal::default();
        let id = journal.register("session/a", limits(10, WhenFull::DropOldest));
        for payload in ["1", "2", "3"] {
            journal.append(&message(payload), &[id]).unwrap();
        }
        let mut reader = journal.reader(id);
        let first = reader.try_next().unwrap();
        let second = reader.try_next().unwrap();
        reader.settle(second.position);
        assert_eq!(reader.backlog().messages, 3, "the oldest is not settled yet");
        reader.rewind();
        assert_eq!(read_all(&mut reader), [(1, "1".into()), (3, "3".into())]);
        reader.settle(first.position);
        let backlog = reader.backlog();
        assert_eq!((backlog.settled, backlog.messages, backlog.accepted), (2, 1, 3));
    }

    #[test]
    fn bounds_drop_the_oldest_or_refuse_the_newest_and_count() {
        let journal = Journal::default();
        let old = journal.register("session/a", limits(2, WhenFull::DropOldest));
        let new = journal.register("upstream/b", limits(2, WhenFull::Refuse));
        for payload in ["1", "2", "3"] {
            journal.append(&message(payload), &[old]).unwrap();
        }
        assert_eq!(read_all(&mut journal.reader(old)), [(2, "2".into()), (3, "3".into())]);
        assert_eq!(journal.backlog(old).dropped, 1);
        journal.append(&message("1"), &[new]).unwrap();
        journal.append(&message("2"), &[new]).unwrap();
        assert_eq!(journal.append(&message("3"), &[old, new]), Err(Full));
        assert_eq!(journal.backlog(old).accepted, 3, "none gets what one refuses");
    }

    #[test]
    fn a_consumer_is_known_by_its_name() {
        let journal = Journal::default();
        let id = journal.register("upstream/a", limits(5, WhenFull::DropOldest));
        journal.append(&message("1"), &[id]).unwrap();
        assert_eq!(journal.register("upstream/a", limits(9, WhenFull::DropOldest)), id);
        assert_eq!(journal.backlog(id).messages, 1);
        assert_eq!(journal.remove(id).accepted, 1);
        assert_ne!(journal.register("upstream/a", limits(5, WhenFull::DropOldest)), id);
    }
}
