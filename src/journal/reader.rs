//! Reads the journal for one consumer.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::MutexGuard;
use tokio::sync::Notify;

use super::consumers::{News, Queue};
use super::state::JournalState;
use super::{Backlog, ConsumerId, Delivery, Journal, Outcome, Position};

/// The most messages that are taken under one lock.
const AT_ONCE: usize = 64;

/// Reads the journal for one consumer. Never waits for the disk.
#[derive(Debug)]
pub(crate) struct Reader {
    journal: Journal,
    id: ConsumerId,
    changed: Arc<Notify>,
    /// Messages that were taken together with one that was asked for.
    taken: VecDeque<Delivery>,
    /// Settled messages that have not been reported to the journal.
    settled: Vec<(Position, Outcome)>,
}

impl Reader {
    pub(super) fn new(journal: Journal, id: ConsumerId, news: Option<Arc<News>>) -> Reader {
        let changed = {
            let mut state = journal.shared.state.lock();
            state.queues.get_mut(id).map(|queue| queue.read_by(news.map(|news| (id, news))))
        };
        let changed = changed.unwrap_or_default();
        let reader = Reader { journal, id, changed, taken: VecDeque::new(), settled: Vec::new() };
        reader.attach();
        reader
    }

    fn attach(&self) {
        let shared = &self.journal.shared;
        let mut state = shared.state.lock();
        if let Some(queue) = state.queues.get_mut(self.id) {
            queue.attach();
        }
        if state.queues.request_fills(&[self.id]) {
            shared.fill.notify_one();
        }
    }

    /// The next message, if one is in memory.
    pub(crate) fn try_next(&mut self) -> Option<Delivery> {
        self.next_of(1)
    }

    /// The same for a caller that will take up to `most` messages, so that the lock is not taken for each of them.
    pub(crate) fn next_of(&mut self, most: usize) -> Option<Delivery> {
        if let Some(delivery) = self.taken.pop_front() {
            return Some(delivery);
        }
        let mut state = lock(&self.journal, self.id, &mut self.settled);
        let queue = state.queues.get_mut(self.id)?;
        queue.attach();
        let delivery = queue.take();
        if delivery.is_some() {
            self.taken.extend(std::iter::from_fn(|| queue.take()).take(most.min(AT_ONCE).saturating_sub(1)));
        }
        if queue.wants_fill() && state.queues.request_fills(&[self.id]) {
            self.journal.shared.fill.notify_one();
        }
        delivery
    }

    /// Takes back the last message, which comes next again.
    pub(crate) fn put_back(&mut self, delivery: Delivery) {
        self.taken.push_front(delivery);
    }

    /// Runs an operation on the queue after unused messages have been put back.
    fn with_queue(&mut self, act: impl FnOnce(&mut Queue)) {
        let mut state = lock(&self.journal, self.id, &mut self.settled);
        if let Some(queue) = state.queues.get_mut(self.id) {
            queue.put_back(self.taken.drain(..));
            act(queue);
        }
        self.taken.clear();
    }

    /// Waits until [`Reader::try_next`] may have a new message. Safe to cancel.
    pub(crate) async fn ready(&self) {
        self.changed.notified().await;
    }

    /// Records that the other side has acknowledged the message at this position. Any order is allowed.
    pub(crate) fn settle(&mut self, position: Position) {
        self.settle_as(position, Outcome::Acked);
    }

    /// Settles the message at this position. Any order is allowed.
    pub(crate) fn settle_as(&mut self, position: Position, outcome: Outcome) {
        self.settle_soon(position, outcome);
        self.say_settled();
    }

    /// Settles a message, and reports that to the journal together with others: with the next message that is asked for, or
    /// by [`Reader::say_settled`].
    pub(crate) fn settle_soon(&mut self, position: Position, outcome: Outcome) {
        self.settled.push((position, outcome));
        if self.settled.len() >= AT_ONCE {
            self.say_settled();
        }
    }

    /// Reports all settled messages to the journal.
    pub(crate) fn say_settled(&mut self) {
        if !self.settled.is_empty() {
            drop(lock(&self.journal, self.id, &mut self.settled));
        }
    }

    /// Does not keep a message that was handed out in memory any longer. It stays unsettled, and comes again after a rewind.
    /// All before it must be settled or let go.
    pub(crate) fn let_go(&mut self, delivery: &Delivery) {
        let mut state = lock(&self.journal, self.id, &mut self.settled);
        if let Some(queue) = state.queues.get_mut(self.id) {
            queue.let_go(delivery);
        }
    }

    /// The number of messages that a restart would hand out again although they are settled, because earlier ones are not.
    pub(crate) fn passed(&self) -> usize {
        self.journal.shared.state.lock().queues.get(self.id).map_or(0, Queue::passed)
    }

    /// Starts again from the oldest unsettled message.
    pub(crate) fn rewind(&mut self) {
        self.with_queue(Queue::rewind);
        self.attach();
    }

    /// Releases the memory of messages that were read ahead, because nobody reads for a while. The next [`Reader::try_next`]
    /// ends that.
    pub(crate) fn rest(&mut self) {
        self.with_queue(Queue::detach);
    }

    /// Whether a message waits that was not handed out, in memory or not.
    pub(crate) fn has_unread(&self) -> bool {
        let state = self.journal.shared.state.lock();
        !self.taken.is_empty() || state.queues.get(self.id).is_some_and(Queue::has_unread)
    }

    /// What waits for this consumer, and the outcomes of all other messages.
    pub(crate) fn backlog(&self) -> Backlog {
        self.journal.backlog(self.id)
    }
}

/// Takes the journal's lock and reports settled messages.
fn lock<'a>(
    journal: &'a Journal,
    id: ConsumerId,
    settled: &mut Vec<(Position, Outcome)>,
) -> MutexGuard<'a, JournalState> {
    let shared = &journal.shared;
    #[cfg(test)]
    shared.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut state = shared.state.lock();
    if let Some(queue) = state.queues.get_mut(id).filter(|_| !settled.is_empty()) {
        settled.drain(..).for_each(|(position, outcome)| queue.settle(position, outcome));
        if state.moved(id) {
            shared.work.notify_one();
        }
    }
    settled.clear();
    state
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.rest();
    }
}
